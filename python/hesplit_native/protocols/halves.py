"""The two halves of a protocol, as its module offers them, and what the client's is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hesplit_native.choices import Overflow
from hesplit_native.layer.keys import ReleaseLedger, SecretKey
from hesplit_native.layer.linear import LinearClient, SealedClient
from hesplit_native.layer.parameters import WEIGHT_NORM, Parameters
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.protocols.answers import Answers, ServerLayer
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.remote import RemoteLayer, RemoteLearner
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms


@dataclass(frozen=True)
class ClientSetup:
    """What a client decided before its first session.

    `layer` is the linear layer where the client holds it (`Protocol.client_holds_layer`); `key` the one that a consortium shares;
    `ledger` makes the count of the releases under a key, if they outlive the process; the rest is as in `LinearClient`.
    """

    terms: Terms
    phases: Phases
    parameters: Parameters | None = None
    layer: TrainedLayer | None = None
    key: SecretKey | None = None
    ledger: Callable[[SecretKey], ReleaseLedger | None] = lambda key: None
    fresh_keys: bool = False
    on_overflow: Overflow = "clip"
    weight_norm: float = WEIGHT_NORM
    accumulate: int = 1

    @classmethod
    def of(cls, terms: Terms, phases: Phases, parameters: Parameters | None, **more: Any) -> ClientSetup:
        """For these terms, with the layer where the client holds it: a server is then told nothing about that layer."""
        if not PROTOCOLS[terms.protocol].client_holds_layer:
            return cls(terms, phases, parameters, **more)
        told = replace(terms, learning_rate=0.0, server_optimizer="client", weight_seed=0)
        return cls(told, phases, parameters, layer=TrainedLayer(terms), **more)

    def encryption(self, *, weight_gradients: bool = False) -> LinearClient:
        """A client of the encrypted layer, under new keys."""
        assert self.parameters is not None
        key = SecretKey.generate(self.parameters)
        return LinearClient(
            key,
            self.terms.in_features,
            self.terms.out_features,
            on_overflow=self.on_overflow,
            fresh_keys=self.fresh_keys,
            weight_gradients=weight_gradients,
            ledger=self.ledger(key),
        )


Encryption = LinearClient | SealedClient
#: What a client half is given: the setup, the session, and the encryption whose public material the session began with.
MakeClient = Callable[[ClientSetup, Session | None, Encryption | None], RemoteLayer | RemoteLearner]


def _no_encryption(setup: ClientSetup) -> tuple[None, bytes]:
    return None, b""


@dataclass(frozen=True)
class Halves:
    """How to make both sides of one protocol.

    `encryption` gives new keys and the public material that the handshake sends; `client` the client's half; `layer` what a server
    holds in the clear for one session or group, None if nothing; `server` the server's half from the terms, that layer, the public
    material and the server's own labels, where it has such.
    """

    client: MakeClient
    server: Callable[[Terms, ServerLayer | None, bytes, Tensor | None], Answers] | None
    layer: Callable[[Terms], ServerLayer | None] = lambda terms: None
    encryption: Callable[[ClientSetup], tuple[Encryption | None, bytes]] = _no_encryption
