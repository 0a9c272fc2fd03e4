"""Several clients that train one network over one server: in turns, or in parallel with an average per epoch.

In turns (Gupta and Raskar; Abuadbba et al.) a participant takes over the convolutions of the one before it, trains an epoch on its own
data, and hands them on; the server's layer is one for all. In parallel every participant has its own copy of both, and after an epoch
both are averaged, weighted by the rows of data. Every participant has a session and a key of its own, except in `sealed`, whose
consortium shares one key.

Participants take part one after the other in this process; what they send to the server travels as it would between machines.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native.choices import Division as Division
from hesplit_native.choices import Mode as Mode
from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ParameterError, ProtocolError
from hesplit_native.layer.keys import SecretKey
from hesplit_native.protocols.sealed import SealedClient
from hesplit_native.protocols.server import Server
from hesplit_native.training.client import Client, choose_parameters
from hesplit_native.training.config import RunConfig
from hesplit_native.training.run import (
    EpochRecord,
    Observer,
    RunResult,
    client_state,
    dataset_architecture,
    epoch_batches,
    evaluate,
    in_process,
    notes,
)
from hesplit_native.transport.channel import Channel


def divide(dataset: Dataset, participants: int, division: Division, seed: int) -> list[npt.NDArray[np.int64]]:
    """The training rows of each participant: at random in equal parts, or whole patients, the largest first to whoever has least."""
    rows = len(dataset.train_y)
    if not 1 <= participants <= rows:
        raise ParameterError(f"participants must be between 1 and the {rows} training rows, got {participants}")
    if division == "even":
        order = np.random.default_rng(seed).permutation(rows)
        return [np.sort(part) for part in np.array_split(order, participants)]
    if dataset.train_patient is None:
        raise ParameterError(f"the data set {dataset.name} does not say which patient a row is of; divide it evenly")
    patients, counts = np.unique(dataset.train_patient, return_counts=True)
    if len(patients) < participants:
        raise ParameterError(f"{participants} participants need as many patients; the training set has {len(patients)}")
    shares: list[list[int]] = [[] for _ in range(participants)]
    sizes = np.zeros(participants, np.int64)
    for index in np.argsort(-counts, kind="stable"):
        least = int(sizes.argmin())
        shares[least].append(int(patients[index]))
        sizes[least] += counts[index]
    return [np.flatnonzero(np.isin(dataset.train_patient, share)) for share in shares]


def train_together(
    config: RunConfig,
    dataset: Dataset,
    *,
    participants: int,
    mode: Mode = "turns",
    division: Division = "even",
    connect: Callable[[int], Channel] | None = None,
    observer: Observer | None = None,
) -> RunResult:
    """Train with several participants; as `training.train` otherwise. `connect` opens the connection of participant 0, 1, …."""
    group = _Group(config, dataset, divide(dataset, participants, division, config.seed), mode, connect)
    interrupted = None
    try:
        group.begin()
        group.train(observer)
        group.finish()
    except ProtocolError as error:
        interrupted = str(error)
    except KeyboardInterrupt:
        interrupted = "interrupted by the user"
    return group.result(interrupted)


class _Group:
    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        shares: list[npt.NDArray[np.int64]],
        mode: Mode,
        connect: Callable[[int], Channel] | None,
    ) -> None:
        self.config, self.mode, self.shares = config, mode, shares
        self.x, self.y = torch.from_numpy(dataset.train_x), torch.from_numpy(dataset.train_y).clone()
        self.test_x, self.test_y = torch.from_numpy(dataset.test_x), torch.from_numpy(dataset.test_y)
        shape = dataset_architecture(config, dataset)
        self.outputs = shape.outputs
        self.server = Server() if connect is None and config.protocol != "local" else None
        server = self.server
        parameters = choose_parameters(config, shape)
        key = SecretKey.generate(parameters) if parameters and config.protocol == "sealed" else None
        name = secrets.token_hex(16)
        members = len(shares) if mode == "parallel" and config.protocol not in ("local", "sealed") else 0
        self.clients = []
        for i, share in enumerate(shares):
            opener = in_process(server, f"participant-{i + 1}") if server is not None else None
            if connect is not None:
                opener = _opener(connect, i)
            batches = self._batches(share)
            client = Client(
                config, shape, batches=batches, connect=opener, group=name if members or mode == "turns" else "",
                members=members, key=key,
            )  # fmt: skip
            self.clients.append(client)
            if client.defender is not None:
                rows = torch.from_numpy(share)
                self.y[rows] = client.defender.labels(self.y[rows], len(dataset.classes))
        # One order for everyone, as independent of the protocol as that of a single client.
        self.orders = [torch.Generator().manual_seed(config.seed + 7919 * i) for i in range(len(shares))]
        self.history: list[EpochRecord] = []
        self.seconds, self.batches = 0.0, 0
        self.setup = self.evaluation = (0, 0)
        self.server_seconds: dict[str, float] = {}

    def _batches(self, share: npt.NDArray[np.int64]) -> int:
        return epoch_batches(self.config, len(share), self.outputs)

    def _bytes(self) -> tuple[int, int]:
        counts = [client.bytes for client in self.clients]
        return sum(up for up, _ in counts), sum(down for _, down in counts)

    def begin(self) -> None:
        """Every participant's session."""
        for client in self.clients:
            client.begin()
        self.setup = self._bytes()

    def train(self, observer: Observer | None) -> None:
        """All epochs."""
        total = sum(self._batches(share) for share in self.shares)
        if observer:
            observer.on_start(total, self.config.epochs)
        for epoch in range(1, self.config.epochs + 1):
            start = perf_counter()
            loss, correct, seen, done = 0.0, 0, 0, 0
            for i, client in enumerate(self.clients):
                if self.mode == "turns":
                    previous = self.clients[i - 1]  # the first takes over from the last of the epoch before
                    if epoch > 1 or i > 0:
                        _hand_over(previous, client)
                order = torch.from_numpy(self.shares[i])[torch.randperm(len(self.shares[i]), generator=self.orders[i])]
                for rows in torch.split(order, self.config.batch_size)[: self._batches(self.shares[i])]:
                    batch_loss, batch_correct = client.learn(self.x[rows], self.y[rows])
                    loss += batch_loss.item()
                    correct += int(batch_correct)
                    seen += len(rows)
                    done += 1
                    if observer and done % 50 == 0:
                        observer.on_batch(epoch, done, loss / done, correct / seen)
                client.phases.enter(None)
            if self.mode == "parallel" and len(self.clients) > 1:
                self._average()
            seconds = perf_counter() - start
            self.seconds += seconds
            self.batches += done
            if observer:
                observer.on_evaluate(epoch)
            before = self._bytes()
            accuracy = evaluate(self.clients[-1], self.test_x, self.test_y)
            after = self._bytes()
            self.evaluation = (
                self.evaluation[0] + after[0] - before[0],
                self.evaluation[1] + after[1] - before[1],
            )
            epsilon = self.clients[0].epsilon(epoch)
            self.history.append(EpochRecord(epoch, loss / done, correct / seen, accuracy, seconds, epsilon))
            if observer:
                observer.on_epoch(self.history[-1])

    def _average(self) -> None:
        """Average what all have learnt: convolutions here, the server's layers there, sealed ones by their owners."""
        sizes = [len(share) for share in self.shares]
        weights = [size / sum(sizes) for size in sizes]
        for part in ("model", "head"):
            states = [getattr(client, part).state_dict() for client in self.clients]
            mean = _mean(states, weights)
            for client in self.clients:
                getattr(client, part).load_state_dict(mean)
        if self.clients[0].own_layer is not None:
            layers = [client.own_layer for client in self.clients if client.own_layer is not None]
            mean = _mean([layer.linear.state_dict() for layer in layers], weights)
            for client in self.clients:
                assert client.own_layer is not None
                client.own_layer.assign(mean["weight"], mean["bias"])
                if isinstance(client.layer, SealedClient):
                    client.layer.refresh()
            return
        for client, size in zip(self.clients, sizes, strict=True):
            assert client.session is not None
            client.session.merge(float(size))
        for client in self.clients:
            assert client.session is not None
            client.session.adopt()

    def finish(self) -> None:
        """End all sessions."""
        for client in self.clients:
            for phase, seconds in client.end().items():
                self.server_seconds[phase] = self.server_seconds.get(phase, 0.0) + seconds

    def result(self, interrupted: str | None) -> RunResult:
        last = self.clients[-1]
        layer = last.own_layer.linear if last.own_layer is not None else None
        if layer is None and self.server is not None:
            layer = self.server.last_linear()
        phases: dict[str, float] = {}
        for client in self.clients:
            for phase, seconds in client.phases.seconds.items():
                phases[phase] = phases.get(phase, 0.0) + seconds
        up, down = self._bytes()
        result = RunResult(
            self.config,
            history=tuple(self.history),
            train_seconds=self.seconds,
            seconds_by_phase=phases,
            server_seconds_by_phase=self.server_seconds,
            bytes_up=up - self.setup[0] - self.evaluation[0],
            bytes_down=down - self.setup[1] - self.evaluation[1],
            batches=self.batches,
            parameters=last.parameters.to_dict() if last.parameters else None,
            clipped=sum(client.linear.clipped for client in self.clients if client.linear is not None),
            flooding_deviation=max(getattr(client.linear, "flooding_deviation", 0.0) for client in self.clients),
            participants=len(self.clients),
            notes=(*notes(self.config, self.outputs), f"{len(self.clients)} participants, {self.mode}"),
            interrupted=interrupted,
            architecture=last.architecture,
            client_state=client_state(last),
            server_weight=layer.weight.detach() if layer is not None else None,
            server_bias=layer.bias.detach() if layer is not None else None,
        )
        return replace(
            result,
            setup_bytes_up=self.setup[0],
            setup_bytes_down=self.setup[1],
            evaluation_bytes_up=self.evaluation[0],
            evaluation_bytes_down=self.evaluation[1],
        )


def _opener(connect: Callable[[int], Channel], participant: int) -> Callable[[], Channel]:
    return lambda: connect(participant)


def _hand_over(previous: Client, client: Client) -> None:
    """Pass on the convolutions, and in `local` and `sealed` the layer, of which no one else has the present weights."""
    if previous is client:
        return
    client.model.load_state_dict(previous.model.state_dict())
    client.head.load_state_dict(previous.head.state_dict())
    if previous.own_layer is not None and client.own_layer is not None:
        # With the optimiser's moments, which a server that all share would have kept too.
        client.own_layer.load(previous.own_layer.tensors())
        if isinstance(client.layer, SealedClient):
            client.layer.refresh()


def _mean(states: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    return {
        name: sum((weight * state[name] for weight, state in zip(weights, states, strict=True)), torch.zeros(()))
        for name in states[0]
    }
