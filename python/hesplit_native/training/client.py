"""The client of a training run: its part of the network, its keys, and one step at a time under any protocol."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hesplit_native.errors import DataError
from hesplit_native.layer.keys import ReleaseLedger, SecretKey
from hesplit_native.layer.linear import LinearClient
from hesplit_native.layer.parameters import SEALED_ERROR_BOUND, WEIGHT_NORM, Parameters
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.protocols.costs import usual_evaluation
from hesplit_native.protocols.guards import check_batch
from hesplit_native.protocols.halves import ClientSetup, Encryption
from hesplit_native.protocols.layer import load_optimizer, optimizer_tensors
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.remote import RemoteLayer, RemoteLearner, remote_linear
from hesplit_native.protocols.session import Reconnection, Session
from hesplit_native.protocols.terms import Terms, make_optimizer, set_rate
from hesplit_native.training.config import RunConfig
from hesplit_native.training.defences import Defender
from hesplit_native.training.task import Inputs, Task, call, each
from hesplit_native.transport.channel import Channel

#: Of a logit where what hides the weights is part of its error.
PRIVATE_ERROR_BOUND = 0.125
#: Releases under one key that last for a whole run are planned for (docs/security.md).
RUN_RELEASES = 1 << 20


class HeldLayer(Protocol):
    """A client's half that holds the layer itself."""

    def refresh(self) -> None:
        """Send all weights anew to wherever there is a copy."""
        ...

    def settle(self) -> None:
        """Let that copy be as new as the layer."""
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
        private_weights=config.traits.private_weights,
        error_bound=PRIVATE_ERROR_BOUND if config.traits.private_weights else None,
    )


def evaluation_rows(terms: Terms) -> int:
    """Rows of one evaluation: many, whose layer is a matrix product.

    Sealed weights keep the batch size's layout whatever the rows: more of them at once only take memory.
    """
    sealed = PROTOCOLS[terms.protocol].seals_weights
    return min(64 * terms.batch_size, terms.max_rows) if sealed else usual_evaluation(terms)


class Client:
    """One participant: its part of the network and its optimiser, a session with the server, and keys.

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
        task: Task,
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
        self.task = task
        network = task.network
        together = config.batch_size * config.accumulate
        check_batch(config.protocol, together, network.outputs, accept_leak=config.accept_leak)
        self.phases = Phases()
        self.defender = Defender(config.defences, network.activations) if config.defences.any else None
        self.model = network.body(config.seed).to(task.device)
        self.head = network.head(weight_seed(config.seed) + 1)
        trained = [*self.model.parameters(), *(() if config.traits.labels_at_server else self.head.parameters())]
        self.optimizer = self._optimizer([parameter for parameter in trained if parameter.requires_grad])
        self._rates = [group["lr"] for group in self.optimizer.param_groups] if self.optimizer is not None else []
        #: The learning rate that the server's layer has.
        self._server_rate = config.learning_rate
        self.parameters = choose_parameters(config, network.activations, network.outputs)
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
            weight_norm=config.ranges(network.activations).get("weight_norm", WEIGHT_NORM),
            accumulate=config.accumulate,
        )
        #: The linear layer where the client holds it: `local`, which trains it here, and `sealed`, whose server sees ciphertexts.
        self.own_layer = self._setup.layer
        self.layer: RemoteLayer | RemoteLearner | None = None

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
        """The optimiser of this client's own parameters, where there are any."""
        if not parameters:
            return None
        if self.task.optimizer is not None:
            return self.task.optimizer(parameters)
        return make_optimizer("adam", parameters, self.config.learning_rate)

    def _terms(self, batches: int, group: str, members: int) -> Terms:
        """What the server is to agree on, if it holds the layer."""
        config, network = self.config, self.task.network
        return Terms(
            protocol=config.protocol,
            in_features=network.activations,
            out_features=network.outputs,
            batch_size=config.batch_size,
            batches=batches,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            server_optimizer=config.optimizer,
            weight_seed=weight_seed(config.seed),
            parameter_hash=self.parameters.hash if self.parameters else "",
            hidden=network.hidden,
            classes=network.classes,
            double_softmax=config.recipe == "paper",
            group=group,
            members=members,
            layer=config.layer,
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
        clipped, deviation = self.clipped, self.flooding_deviation
        self.linear, material = halves.encryption(self._setup)
        self.clipped = clipped
        if isinstance(self.linear, LinearClient):
            self.linear.flooding_deviation = deviation
        if self.session is not None:
            assert resume is not None
            assert self._connect is not None
            self.session.restore(material, resume[1], self._connect)
        elif self._connect is not None:
            channel = self._connect()
            reconnection = Reconnection(self._connect) if reconnect else None
            self.session = Session(channel, self.terms, material, self.phases, resume=resume, reconnection=reconnection)
        self.layer = halves.client(self._setup, self.session, self.linear)
        self._server_rate = self.config.learning_rate  # no checkpoint holds another one

    def set_rates(self, factor: float) -> None:
        """Multiply the learning rates that everything began with: here, and of the layer wherever it is trained."""
        for group, rate in zip(self.optimizer.param_groups if self.optimizer else (), self._rates, strict=True):
            group["lr"] = rate * factor
        rate = self.config.learning_rate * factor
        if self.own_layer is not None:
            set_rate(self.own_layer.optimizer, rate)
        elif self.session is not None and rate != self._server_rate:
            self.session.set_rate(rate)
            self._server_rate = rate

    @property
    def clipped(self) -> int:
        """Samples that were beyond the agreed ranges so far."""
        return self.linear.clipped if self.linear is not None else 0

    @clipped.setter
    def clipped(self, count: int) -> None:
        if self.linear is not None:
            self.linear.clipped = count

    @property
    def flooding_deviation(self) -> float:
        """The largest deviation so far of the noise that flooded a logit."""
        return getattr(self.linear, "flooding_deviation", 0.0)

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

    def settle(self) -> None:
        """Before the server stores what it holds: let its copy of the client's own layer be as new as that is."""
        if self.own_layer is not None and self.layer is not None:
            cast(HeldLayer, self.layer).settle()

    def end(self) -> dict[str, float]:
        """End the session; the server's seconds by phase."""
        if self.session is None:
            return {}
        try:
            self.settle()
        finally:
            seconds = self.session.end()
        return seconds

    def close(self) -> None:
        """Close the connection."""
        if self.session is not None:
            self.session.channel.close()

    # Steps

    def _activations(self, inputs: Inputs) -> Tensor:
        """What the client's part of the network makes of inputs: [n, activations], float32 on the CPU."""
        if self.task.device.type != "cpu":
            inputs = each(inputs, lambda tensor: tensor.to(self.task.device))
        found = call(self.model, inputs)
        return cast(Tensor, found.flatten(1).to("cpu", torch.float32))

    def learn(self, x: Inputs, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """One training step: mean loss and number of correct predictions, where there are such."""
        phases = self.phases
        phases.enter("convolutions")
        convolved = activations = self._activations(x)
        if not convolved.requires_grad:  # the layer learns where nothing before it does
            convolved = activations = convolved.detach().requires_grad_()
        if self.defender is not None:
            activations = self.defender.activations(convolved)
        if self.config.traits.labels_at_server:
            phases.enter("activations and loss")
            loss_value, right, gradient = cast(RemoteLearner, self.layer).learn(activations, labels)
            phases.enter("backward")
            self._zero_grad()
            if self.defender is not None and self.config.defences.decorrelation:
                self.defender.penalty(cast(Tensor, x), convolved).backward(retain_graph=True)  # type: ignore[no-untyped-call]
            activations.backward(gradient)  # type: ignore[no-untyped-call]
            loss, hits = torch.tensor(loss_value), cast(Tensor | None, torch.tensor(right))
        else:
            phases.enter("activations and loss")
            outputs = remote_linear(activations, cast(RemoteLayer, self.layer))
            if self.defender is not None:
                outputs.register_hook(self.defender.gradient)  # type: ignore[no-untyped-call]
            logits = self.head(outputs)
            loss = self.task.loss(logits, labels)
            hits = self.task.hits(logits.detach(), labels) if self.task.hits is not None else None
            phases.enter("backward")
            self._zero_grad()
            if self.defender is not None and self.config.defences.decorrelation:
                (loss + self.defender.penalty(cast(Tensor, x), convolved)).backward()  # type: ignore[no-untyped-call]
            else:
                loss.backward()  # type: ignore[no-untyped-call]
        phases.enter("optimizer")
        if self.optimizer is not None:
            self.optimizer.step()
        phases.enter("accounting")
        return loss.detach(), hits

    def _zero_grad(self) -> None:
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    @torch.no_grad()
    def outputs(self, x: Iterable[Inputs]) -> Tensor:
        """The network's outputs [n, classes], through the protocol, of inputs that are sent together."""
        activations = torch.cat([self._activations(part) for part in x])
        if self.defender is not None:
            activations = self.defender.activations(activations)
        assert self.layer is not None
        if self.config.traits.labels_at_server:
            return self.layer.evaluate(activations)
        return cast(Tensor, self.head(remote_linear(activations, cast(RemoteLayer, self.layer))))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Outside of training: its time is not counted, and dropout and normalisation are as in `eval()`."""
        modes = [(module, module.training) for network in (self.model, self.head) for module in network.modules()]
        self.model.eval()
        self.head.eval()
        try:
            with self.phases.uncounted():
                yield
        finally:
            for module, training in modes:
                module.training = training

    # State

    def tensors(self) -> dict[str, Tensor]:
        """Everything that this client has learnt. No keys and no randomness of encryption: those are fresh in every process."""
        tensors = {f"body.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer) if self.optimizer is not None else {}
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
            if self.optimizer is not None:
                load_optimizer(self.optimizer, tensors)
            if self.own_layer is not None:
                self.own_layer.load(part("layer."))
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(f"the checkpoint belongs to another network: {error}") from error

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes up and down so far."""
        return (self.session.bytes_up, self.session.bytes_down) if self.session is not None else (0, 0)
