"""What serving the encrypted layer takes, known before anything is done: bytes in, out and held, and work.

A client lays out its requests itself, so the length of a message says little about what it leads to. The core computes the cost
from a layer and a batch alone (`serving_cost`), or from the head of a message (`LinearServer.cost`, `SealedServer.cost`), and
compares it with a server's limits before it allocates anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from hesplit_native import _core
from hesplit_native.choices import Served
from hesplit_native.layer.parameters import GIGABIT, Parameters, byte_nanoseconds

#: Beyond what a server refuses unless it is told otherwise: the largest message of the transport, some minutes of one core, and
#: the memory of one message (all of its cost's bytes but the request's).
MAX_REPLY_BYTES: int = _core.MAX_REPLY_BYTES
MAX_MULTIPLICATIONS: float = _core.MAX_MULTIPLICATIONS
MAX_MEMORY_BYTES: int = _core.MAX_MEMORY_BYTES


@dataclass(frozen=True)
class ServingCost:
    """Of one message.

    Parameters
    ----------
    request_bytes, reply_bytes
        The core's messages, framing included; what a protocol puts around them comes on top. ``request_bytes`` is 0 for
        ``"weight_gradient"``, whose request is dJ/dy in the clear, ``reply_bytes`` 0 where nothing answers.
    held_bytes
        Memory that stays until the next message of that kind, or for the session: rotation keys, sealed weights, the ciphertexts
        of a batch, the masks of its gradient.
    layer_bytes
        Memory of the weights made ready for this layout. They stay for the next request and count once, not per request: all
        layouts of one server together keep no more than one of them or 256 MiB.
    working_bytes
        Memory beyond that while one thread works, the reply's copy included; every further thread takes at most as much again
        as is left without the replies.
    multiplications
        Work, in multiplications of residues; what is not one is counted as so many. A core takes 0.1 to 0.4 ns for each with AVX-512
        IFMA, 0.3 to 0.8 with AVX2.
    """

    request_bytes: int
    reply_bytes: int
    held_bytes: int
    layer_bytes: int
    working_bytes: int
    multiplications: float


def serving_cost(
    parameters: Parameters,
    in_features: int,
    out_features: int,
    rows: int,
    kind: Served,
    *,
    link: float = GIGABIT,
    weight_gradients: bool = False,
) -> ServingCost:
    """What one message of an honest client takes, at most, whatever the weights are.

    Parameters
    ----------
    parameters
        Those of the client's key.
    in_features, out_features
        Shape of the layer; without the bias.
    rows
        Samples of the batch; ``"public_material"`` and ``"sealed_weight"`` do not depend on it.
    kind
        ``"public_material"`` (of `LinearClient`), ``"forward"``; ``"training"``, a forward pass whose ciphertexts are kept for
        ``"weight_gradient"``, after which ``"opened_gradient"`` comes; of sealed weights ``"sealed_weight"`` (to begin, and what
        `SealedServer.saved` writes), ``"sealed_forward"``, ``"sealed_gradient"``, and ``"sealed_update"``, a gradient with weights.
    link
        What the client lays out its requests for (`LinearClient`).
    weight_gradients
        The server computes weight gradients, so that slots have another layout and more rotation keys; implied by the three
        kinds that are about them.

    Raises
    ------
    ParameterError
        For a layer, a batch or a kind that these parameters cannot serve.
    """
    values = _core.serving_cost(
        parameters._native, kind, in_features, out_features, rows, byte_nanoseconds(link), weight_gradients
    )
    return ServingCost(**values)
