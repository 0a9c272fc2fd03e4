"""The split-learning protocols: what travels, in which order, and what each side does with it.

This is their registry. A protocol is an entry in `PROTOCOLS`, which says what it encrypts, releases and leaks, and a module of the
same name with its two halves (`halves.Halves`). Whoever must treat protocols differently asks for the property that makes the
difference, not for a name.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from hesplit_native.choices import Packing, ProtocolName

if TYPE_CHECKING:
    from hesplit_native.protocols.halves import Halves

#: What a server may see: activations a, labels, and the gradient dJ/dy at the logits.
Seen = Literal["activations", "labels", "gradient"]


@dataclass(frozen=True)
class Protocol:
    """What one protocol encrypts, releases and leaks.

    Parameters
    ----------
    name
        Also the name of the module with its halves.
    seen
        What the server gets in the clear.
    encrypts
        Activations travel as ciphertexts.
    releases
        Values computed from decryptions that the client sends in one training step, each of which must be flooded.
    client_holds_layer
        The client has the linear layer in the clear and runs its optimiser.
    accumulates
        The client sends dJ/dW, so that it can send the sum over several batches.
    packings
        Ways of filling ciphertexts that it runs on.
    own_labels
        The labels are the server's: clients name rows of them.
    private_weights
        Replies hide the server's weights (`Parameters.private_bits`).
    """

    name: ProtocolName
    seen: frozenset[Seen]
    encrypts: bool = False
    releases: int = 0
    client_holds_layer: bool = False
    accumulates: bool = False
    packings: tuple[Packing, ...] = ("blocks", "slots")
    own_labels: bool = False
    private_weights: bool = False

    @property
    def is_split(self) -> bool:
        """Whether there is a server."""
        return self.encrypts or bool(self.seen)

    @property
    def labels_at_server(self) -> bool:
        """The server computes the loss, and holds every layer after the client's."""
        return "labels" in self.seen

    @property
    def seals_weights(self) -> bool:
        """The server holds the layer only as ciphertexts."""
        return self.encrypts and self.client_holds_layer

    @property
    def gradients_tell_activations(self) -> bool:
        """Encrypted activations follow from dJ/dy and dJ/dW, which the server has, where a batch is small (`guards.leaks`)."""
        return self.encrypts and "gradient" in self.seen

    @property
    def halves(self) -> Halves:
        """The client's and the server's half. Loads torch."""
        return cast("Halves", importlib.import_module(f"{__name__}.{self.name}").HALVES)


_EVERY_ONE = (
    Protocol("local", frozenset(), client_holds_layer=True),
    Protocol("vanilla", frozenset({"activations", "labels"})),
    Protocol("plain", frozenset({"activations", "gradient"})),
    Protocol("splitways", frozenset({"gradient"}), encrypts=True, releases=1, accumulates=True),
    Protocol("hesplit", frozenset({"gradient"}), encrypts=True, releases=2),
    Protocol("sealed", frozenset(), encrypts=True, client_holds_layer=True, packings=("blocks",)),
    Protocol(
        "vertical", frozenset({"labels", "gradient"}), encrypts=True, releases=2, packings=("blocks",),
        own_labels=True, private_weights=True,
    ),
)  # fmt: skip
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _EVERY_ONE}
