"""The client of a training run: its part of the network, its keys, and one step at a time under any protocol."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hesplit_native.errors import DataError
from hesplit_native.layer.keys import ReleaseLedger, SecretKey
from hesplit_native.layer.parameters import SEALED_ERROR_BOUND, WEIGHT_NORM, Parameters
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.protocols.costs import usual_evaluation
from hesplit_native.protocols.guards import check_batch
from hesplit_native.protocols.halves import ClientSetup, Encryption
from hesplit_native.protocols.layer import load_optimizer, optimizer_tensors
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.remote import RemoteLayer, RemoteLearner, remote_linear
from hesplit_native.protocols.session import Reconnection, Session
from hesplit_native.protocols.terms import Terms, make_optimizer
from hesplit_native.training.config import RunConfig
from hesplit_native.training.defences import Defender
from hesplit_native.training.models import Architecture
from hesplit_native.transport.channel import Channel

#: Releases under one key that last for a whole run are planned for (docs/security.md).
RUN_RELEASES = 1 << 20


class HeldLayer(Protocol):
    """A client's half that holds the layer itself."""

    def refresh(self) -> None:
        """Send all weights anew to wherever there is a copy."""
        ...


def _ledger(folder: Path | None, key: SecretKey) -> ReleaseLedger | None:
    return ReleaseLedger(folder / f"releases-{key.id}.json", key) if folder is not None else None


def weight_seed(seed: int) -> int:
    """The seed that the server is told: unrelated to the streams of the client's convolutions and of the order of the data."""
    return int.from_bytes(hashlib.sha256(f"server's layer {seed}".encode()).digest()[:4], "little")


def choose_parameters(config: RunConfig, in_features: int, out_features: int) -> Parameters | None:
    """The CKKS parameters of a run, for a layer of that shape; None without encryption."""
    if not config.traits.encrypts:
        return None
    shape: dict[str, Any] = {
        "in_features": in_features,
        "out_features": out_features,
        "batch_size": config.batch_size,
    }
    ranges: dict[str, Any] = {**config.ranges(in_features)}
    if config.parameter_set is not None:
        return Parameters.published(config.parameter_set, **shape, **ranges)
    if config.traits.seals_weights:
        bound = SEALED_ERROR_BOUND * max(1.0, math.sqrt(in_features * config.batch_size / 1024))
        return Parameters.recommend_sealed(**shape, **ranges, error_bound=bound, security=config.security)
    releases = 0
    if config.flooding != "off":
        releases = config.traits.releases * (RUN_RELEASES if config.flooding == "run" else 1)
    return Parameters.recommend(
        **shape,
        **ranges,
        packing=config.packing,
        releases=releases,
        security=config.security,
        statistical_bits=config.statistical_bits,
    )


def evaluation_rows(terms: Terms) -> int:
    """Rows of one evaluation: many, whose layer is a matrix product.

    Sealed weights keep the batch size's layout whatever the rows: more of them at once only take memory.
    """
    sealed = PROTOCOLS[terms.protocol].seals_weights
    return min(64 * terms.batch_size, terms.max_rows) if sealed else usual_evaluation(terms)


class Client:
    """One participant: convolutions and their optimiser, a session with the server, and keys.

    Parameters
    ----------
    batches
        Batches of an epoch, agreed on with the server.
    connect
        Opens a connection to the server; None for `local`.
    group, members
        As in `Terms`.
    key
        Under which `sealed` encrypts; None: a new one. A consortium shares one.
    ledgers
        Directory where the releases under each key are counted (``flooding="run"``); None: in memory only, for keys that live
        no longer than this process.
    """

    def __init__(
        self,
        config: RunConfig,
        architecture: Architecture,
        *,
        batches: int,
        connect: Callable[[], Channel] | None,
        group: str = "",
        members: int = 0,
        key: SecretKey | None = None,
        ledgers: Path | None = None,
    ) -> None:
        # A thread takes over torch's number of threads when it first asks for it; until then matrix products take every core.
        torch.get_num_threads()
        self.config = config
        self.architecture = architecture
        together = config.batch_size * config.accumulate
        check_batch(config.protocol, together, architecture.outputs, accept_leak=config.accept_leak)
        self.phases = Phases()
        self.defender = Defender(config.defences, architecture.activations) if config.defences.any else None
        self.model = architecture.body(config.seed)
        self.head = architecture.head(weight_seed(config.seed) + 1)
        trained = [*self.model.parameters(), *(() if config.traits.labels_at_server else self.head.parameters())]
        self.optimizer = make_optimizer("adam", trained, config.learning_rate)
        self.criterion = nn.CrossEntropyLoss()
        self.parameters = choose_parameters(config, architecture.activations, architecture.outputs)
        self.linear: Encryption | None = None
        self.session: Session | None = None
        self._connect = connect if config.traits.is_split else None
        self._setup = ClientSetup.of(
            self._terms(batches, group, members),
            self.phases,
            self.parameters,
            key=key,
            ledger=lambda own: _ledger(ledgers, own) if config.flooding == "run" else None,
            fresh_keys=config.flooding == "step",
            on_overflow=config.on_overflow,
            weight_norm=config.ranges(architecture.activations).get("weight_norm", WEIGHT_NORM),
            accumulate=config.accumulate,
        )
        #: The linear layer where the client holds it: `local`, which trains it here, and `sealed`, whose server sees ciphertexts.
        self.own_layer = self._setup.layer
        self.layer: RemoteLayer | RemoteLearner | None = None

    def _terms(self, batches: int, group: str, members: int) -> Terms:
        """What the server is to agree on, if it holds the layer."""
        config, architecture = self.config, self.architecture
        return Terms(
            protocol=config.protocol,
            in_features=architecture.activations,
            out_features=architecture.outputs,
            batch_size=config.batch_size,
            batches=batches,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            server_optimizer=config.optimizer,
            weight_seed=weight_seed(config.seed),
            parameter_hash=self.parameters.hash if self.parameters else "",
            hidden=architecture.hidden,
            classes=architecture.classes,
            double_softmax=config.recipe == "paper",
            group=group,
            members=members,
        )

    @property
    def terms(self) -> Terms:
        """What it agrees on with the server."""
        return self._setup.terms

    def join(self, group: str) -> None:
        """Take part in another group, from the next session on."""
        self._setup = replace(self._setup, terms=replace(self.terms, group=group))

    # Sessions

    def begin(self, *, resume: tuple[str, int] | None = None, reconnect: bool = False) -> None:
        """Shake hands with the server, under new keys; after `resume` from a checkpoint that was loaded into this client."""
        halves = self.config.traits.halves
        clipped = self.clipped
        self.linear, material = halves.encryption(self._setup)
        self.clipped = clipped
        if self.session is not None:
            assert resume is not None
            self.session.restore(material, resume[1])
        elif self._connect is not None:
            channel = self._connect()
            reconnection = Reconnection(self._connect) if reconnect else None
            self.session = Session(channel, self.terms, material, self.phases, resume=resume, reconnection=reconnection)
        self.layer = halves.client(self._setup, self.session, self.linear)

    @property
    def clipped(self) -> int:
        """Samples that were beyond the agreed ranges so far."""
        return self.linear.clipped if self.linear is not None else 0

    @clipped.setter
    def clipped(self, count: int) -> None:
        if self.linear is not None:
            self.linear.clipped = count

    def take_over(self, previous: Client) -> None:
        """Go on from what another participant has learnt: convolutions, and the layer where the client holds it.

        The layer's optimiser keeps its moments, as that of a server that all share does.
        """
        self.model.load_state_dict(previous.model.state_dict())
        self.head.load_state_dict(previous.head.state_dict())
        if self.own_layer is not None and previous.own_layer is not None:
            self.own_layer.load(previous.own_layer.tensors())
            self.refresh()

    def refresh(self) -> None:
        """Tell the server, where it holds a copy, that the client's own layer was replaced."""
        if self.own_layer is not None and self.layer is not None:
            cast(HeldLayer, self.layer).refresh()

    def end(self) -> dict[str, float]:
        """End the session; the server's seconds by phase."""
        if self.session is None:
            return {}
        return self.session.end()

    def close(self) -> None:
        """Close the connection."""
        if self.session is not None:
            self.session.channel.close()

    # Steps

    def learn(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One training step: mean loss and number of correct predictions."""
        phases = self.phases
        phases.enter("convolutions")
        convolved = activations = self.model(x)
        if self.defender is not None:
            activations = self.defender.activations(convolved)
        if self.config.traits.labels_at_server:
            phases.enter("activations and loss")
            loss_value, right, gradient = cast(RemoteLearner, self.layer).learn(activations, labels)
            phases.enter("backward")
            self.optimizer.zero_grad()
            if self.defender is not None and self.config.defences.decorrelation:
                self.defender.penalty(x, convolved).backward(retain_graph=True)  # type: ignore[no-untyped-call]
            activations.backward(gradient)
            loss, correct = torch.tensor(loss_value), torch.tensor(right)
        else:
            phases.enter("activations and loss")
            outputs = remote_linear(activations, cast(RemoteLayer, self.layer))
            if self.defender is not None:
                outputs.register_hook(self.defender.gradient)  # type: ignore[no-untyped-call]
            logits = self.head(outputs)
            # The papers' code applies softmax twice: once here, once inside the criterion.
            loss = self.criterion(logits.softmax(1) if self.config.recipe == "paper" else logits, labels)
            correct = (logits.detach().argmax(1) == labels).sum()
            phases.enter("backward")
            self.optimizer.zero_grad()
            if self.defender is not None and self.config.defences.decorrelation:
                (loss + self.defender.penalty(x, convolved)).backward()
            else:
                loss.backward()
        phases.enter("optimizer")
        self.optimizer.step()
        phases.enter("accounting")
        return loss.detach(), correct

    @torch.no_grad()
    def correct(self, x: Tensor, labels: Tensor) -> int:
        """How many of these are predicted correctly, through the protocol."""
        activations = self.model(x)
        if self.defender is not None:
            activations = self.defender.activations(activations)
        assert self.layer is not None
        if self.config.traits.labels_at_server:
            logits = self.layer.evaluate(activations)
        else:
            logits = self.head(remote_linear(activations, cast(RemoteLayer, self.layer)))
        return int((logits.argmax(1) == labels).sum())

    # State

    def tensors(self) -> dict[str, Tensor]:
        """Everything that this client has learnt. No keys and no randomness of encryption: those are fresh in every process."""
        tensors = {f"body.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        if self.own_layer is not None:
            tensors |= {f"layer.{name}": value for name, value in self.own_layer.tensors().items()}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.model.load_state_dict(part("body."))
            self.head.load_state_dict(part("head."))
            load_optimizer(self.optimizer, tensors)
            if self.own_layer is not None:
                self.own_layer.load(part("layer."))
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(f"the checkpoint belongs to another network: {error}") from error

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes up and down so far."""
        return (self.session.bytes_up, self.session.bytes_down) if self.session is not None else (0, 0)
