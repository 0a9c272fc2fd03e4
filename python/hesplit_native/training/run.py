"""One training run: the same loop for every protocol and for one client or several, with checkpoints from which it resumes.

Several clients take part in turns, or in parallel with an average per epoch. In turns (Gupta and Raskar; Abuadbba et
al.) a participant takes over the convolutions of the one before it, trains an epoch on its own data, and hands them on;
the server's layer is one for all. In parallel every participant has its own copy of both, and after an epoch both are
averaged, weighted by the rows of data. Every participant has a session and a key of its own, except in `sealed`, whose
consortium shares one key. They work one after the other in this process; what they send to the server travels as it
would between machines.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native.choices import Division, Mode
from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import DataError, HESplitError
from hesplit_native.layer.keys import SecretKey
from hesplit_native.protocols.guards import leaks
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import RolledBack, Session, resumable
from hesplit_native.training.account import PrivacyAccount
from hesplit_native.training.checkpoints import ClientCheckpoints, Progress, Snapshot
from hesplit_native.training.client import Client, choose_parameters
from hesplit_native.training.config import RunConfig
from hesplit_native.training.division import divide, epoch_batches
from hesplit_native.training.draws import Draws
from hesplit_native.training.evaluation import evaluate
from hesplit_native.training.models import Architecture
from hesplit_native.training.recipes import paper_task
from hesplit_native.training.result import EpochRecord, Observer, RunResult, StopTraining
from hesplit_native.training.tally import Tally
from hesplit_native.training.task import Examples, Task
from hesplit_native.transport.channel import Channel, ClientInfo
from hesplit_native.transport.in_process import InProcessChannel

_REPORT_SECONDS = 0.1  # between two calls of Observer.on_batch: reading the loss costs a few microseconds


def train(
    config: RunConfig,
    dataset: Dataset,
    *,
    connect: Callable[[], Channel] | None = None,
    observer: Observer | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
) -> RunResult:
    """Train the client's convolutions and the server's layer.

    Parameters
    ----------
    connect
        Opens a connection to a server; called again when one is lost. None: a server in this process.
    checkpoints
        Directory for the state of client (and of a server in this process), from which a killed run resumes; None: none is kept.
    resume
        Go on from the last checkpoint in that directory.

    Returns
    -------
    RunResult
        Also when something ends the run before its time: then `interrupted` says what, with the metrics so far.

    Raises
    ------
    ProtocolError
        When the handshake fails.
    DataError
        When there is nothing to resume, or it belongs to another run; when the data set is of no use (`data.check_dataset`).
    """
    rows = [np.arange(len(dataset.train_y))]
    opener = (lambda index: connect()) if connect is not None else None
    run = Run(config, paper_task(config, dataset), rows, connect=opener, checkpoints=checkpoints)
    return run_through(run, observer, resume=resume)


def train_together(
    config: RunConfig,
    dataset: Dataset,
    *,
    participants: int,
    mode: Mode = "turns",
    division: Division = "even",
    connect: Callable[[int], Channel] | None = None,
    observer: Observer | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
) -> RunResult:
    """Train with several participants; as `train` otherwise. `connect` opens the connection of participant 0, 1, …."""
    shares = divide(dataset, participants, division, config.seed)
    run = Run(config, paper_task(config, dataset), shares, mode=mode, connect=connect, checkpoints=checkpoints)
    return run_through(run, observer, resume=resume)


def run_through(run: Run, observer: Observer | None, *, resume: bool) -> RunResult:
    """Begin, train all epochs and end: whatever stops it on the way is in the result, with the metrics so far."""
    run.begin(resume=resume)
    interrupted = None
    try:
        with contextlib.suppress(StopTraining):
            _all_epochs(run, observer)
        run.finish()
    except (HESplitError, OSError) as error:
        interrupted = str(error)
    except KeyboardInterrupt:
        interrupted = "interrupted by the user"
    return run.result(interrupted)


def _all_epochs(run: Run, observer: Observer | None) -> None:
    if observer:
        observer.on_start(run.batches_per_epoch, run.config.epochs)
    while not run.is_over:
        try:
            reported = perf_counter()
            with closing(run.epoch()) as batches:
                for _ in batches:
                    if observer and perf_counter() - reported > _REPORT_SECONDS:
                        observer.on_batch(run.progress.epoch, run.progress.done, *run.means())
                        reported = perf_counter()
            if observer:
                observer.on_batch(run.progress.epoch, run.progress.done, *run.means())
                observer.on_evaluate(run.progress.epoch)
            record = run.close_epoch()
            if observer:
                observer.on_epoch(record)
        except RolledBack:
            run.roll_back()


@dataclass
class Participant:
    """A client with its share of the training data: indices of rows [n], batches of an epoch, and the order that it takes them in.

    `before` is the state of `order` before the permutation of the present epoch.
    """

    client: Client
    rows: Tensor
    batches: int
    order: torch.Generator
    before: Tensor

    @property
    def session(self) -> Session:
        """The session with the server, where there is one."""
        assert self.client.session is not None
        return self.client.session


class Run:
    """Data, participants, the server if it is in this process, and progress.

    `epoch` is the only loop over training batches: whoever trains, records or measures a run iterates over it. With `group` this
    run is one participant of a group whose others are elsewhere, and goes on from theirs by `adopt`.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        shares: list[npt.NDArray[np.int64]],
        *,
        mode: Mode = "turns",
        connect: Callable[[int], Channel] | None = None,
        checkpoints: Path | None = None,
        group: str = "",
    ) -> None:
        self.config = config
        self.task = task
        self.mode = mode
        self.checkpoints = ClientCheckpoints(checkpoints, config) if checkpoints is not None else None
        self.server: Server | None = None
        #: Connections that can break are made again.
        self._reconnects = connect is not None
        if connect is None and config.traits.is_split:
            self.server = Server(
                checkpoints=checkpoints / "server" if checkpoints else None,
                labels=task.train.labels() if config.traits.own_labels else None,
                told_seeds=True,
            )
            connect = _participants_of(self.server)
        self._connect = connect
        self._alone = not group
        self.group = group or (secrets.token_hex(16) if len(shares) > 1 else "")
        self.participants = self._make_participants(shares, checkpoints)
        self.account = PrivacyAccount(
            self.participants[0].client.defender,
            task.signals(),
            checkpoints / "noised-releases.safetensors" if checkpoints else None,
        )
        #: Labels [n] that were noised, once; None: those of the data.
        self.labels: Tensor | None = None
        if config.defences.label_epsilon is not None:
            self.labels = self.account.labels(task.train.labels(), task.network.classes)
        self.progress = Progress(steps=[0] * len(shares), stored=[0] * len(shares))
        self._tally = Tally(self)
        self.server_seconds: dict[str, float] = {}
        self.tested: dict[str, Any] = {}
        self._best: Snapshot | None = None  # where there is no folder for it
        self._draws = Draws(config.seed, task.device) if task.network.draws else None

    def _make_participants(self, shares: list[npt.NDArray[np.int64]], ledgers: Path | None) -> list[Participant]:
        config, network = self.config, self.task.network
        sealed = config.traits.seals_weights
        parameters = choose_parameters(config, network.activations, network.outputs) if sealed else None
        key = SecretKey.generate(parameters) if parameters is not None and len(shares) > 1 else None
        found = []
        for index, share in enumerate(shares):
            batches = epoch_batches(config, len(share), network.outputs, drop_last=self.task.drop_last)
            client = Client(
                config,
                self.task,
                batches=batches,
                connect=_opener(self._connect, index),
                group=self.group,
                members=self._members(len(shares)),
                key=key,
                ledgers=ledgers,
            )
            rows = torch.from_numpy(share)
            # Independent of the protocol: the same data in the same order for one seed.
            order = torch.Generator().manual_seed(config.seed + 7919 * index)
            found.append(Participant(client, rows, batches, order, order.get_state()))
        return found

    def _members(self, participants: int) -> int:
        """As in `Terms`: of a group whose others are elsewhere nobody here knows how many there are."""
        if not self._alone:
            return 0 if self.config.traits.client_holds_layer else 1
        return participants if self._averages_at_server(participants) else 0

    def _averages_at_server(self, participants: int) -> bool:
        return participants > 1 and self.mode == "parallel" and not self.config.traits.client_holds_layer

    @property
    def latest(self) -> Client:
        """The client that trained last: it has what all have learnt."""
        return self.participants[self.progress.latest].client

    @property
    def batches_per_epoch(self) -> int:
        """Batches of all participants in an epoch."""
        return sum(participant.batches for participant in self.participants)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or enough of them were no better."""
        done, best, patience = self.progress.epoch - 1, self.progress.best_epoch, self.task.patience
        return done >= self.config.epochs or (patience is not None and best > 0 and done - best >= patience)

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes up and down so far, of all participants."""
        counts = [participant.client.bytes for participant in self.participants]
        return sum(up for up, _ in counts), sum(down for _, down in counts)

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy of this epoch so far; NaN where nothing is right or wrong."""
        self._tally.read()
        progress = self.progress
        accuracy = progress.correct / max(progress.seen, 1) if self.task.hits is not None else math.nan
        return progress.loss / max(progress.done, 1), accuracy

    # Beginning, and going on

    def begin(self, *, resume: bool = False, at: int | None = None) -> None:
        """Connect; with `resume` go on from the last checkpoint that client and server both have, or from that of number `at`."""
        if resume:
            if self.checkpoints is None or not self.checkpoints.numbers():
                folder = self.checkpoints.folder if self.checkpoints is not None else None
                raise DataError(f"there is no checkpoint in {folder} to resume from; start without --resume")
            self.account.resume()
            self._go_back(at)
        else:
            if self.checkpoints is not None:
                self.checkpoints.clear()
                self.account.ahead(np.arange(0))  # nothing is sent before there is a file to resume from
            for participant in self.participants:
                participant.client.begin(reconnect=self._reconnects)
            self.count("setup", (0, 0))
            self._tally.restart()
            self._checkpoint(self.participants)
            for participant in self.participants:
                participant.client.phases.seconds.clear()  # the handshake is not training

    def roll_back(self, *, at: int | None = None) -> None:
        """The server was restarted: go back with it to the last checkpoint that both have, or to that of number `at`."""
        if self.checkpoints is None:
            raise DataError("the server lost this run, and there are no checkpoints to go back to")
        self._go_back(at)

    def _go_back(self, at: int | None) -> None:
        assert self.checkpoints is not None
        self._restore(self.checkpoints.load(at) if at is not None else self._last_in_common())

    def _last_in_common(self) -> Snapshot:
        """The newest snapshot of which the server has its part for every participant."""
        assert self.checkpoints is not None
        found: dict[str, list[int]] = {}
        for number in reversed(self.checkpoints.numbers()):
            snapshot = self.checkpoints.load(number)
            for index, run in enumerate(snapshot.sessions):
                if run and run not in found:
                    found[run] = self._stored_at_server(index, run)
            stored = zip(snapshot.sessions, snapshot.progress.stored, strict=True)
            if all(step in found[run] for run, step in stored if run):
                return snapshot
        raise DataError("client and server have no checkpoint of this run in common; start without --resume")

    def _stored_at_server(self, index: int, run: str) -> list[int]:
        assert self._connect is not None
        channel = self._connect(index)
        try:
            return resumable(channel, run) or []
        finally:
            channel.close()

    def _restore(self, snapshot: Snapshot) -> None:
        """Put a snapshot's state into this run, and let every session go on from it under new keys."""
        self._load(snapshot)
        before = self.bytes
        # Who learnt last comes last: in turns the layer is one for all, and that checkpoint is the newest.
        latest = self.progress.latest
        for index in sorted(range(len(self.participants)), key=lambda index: index == latest):
            client = self.participants[index].client
            client.begin(resume=(snapshot.sessions[index], snapshot.progress.stored[index]), reconnect=self._reconnects)
            client.clipped = snapshot.values["clipped"][index]
            client.phases.seconds.clear()
            client.phases.seconds.update(snapshot.values["phases"][index])
        self.count("setup", before)

    def _load(self, snapshot: Snapshot) -> None:
        tensors, values = snapshot.tensors, snapshot.values
        if len(snapshot.progress.steps) != len(self.participants) or values.get("mode") != self.mode:
            raise DataError(
                f"the checkpoint is of {len(snapshot.progress.steps)} participants ({values.get('mode')}), this run has "
                f"{len(self.participants)} ({self.mode})"
            )
        try:
            self.progress, self.group = snapshot.progress, snapshot.group
            for index, participant in enumerate(self.participants):
                prefix = f"{index}."
                participant.client.load({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
                participant.client.join(self.group)
                participant.before = tensors[f"order.{index}"]
            if "labels" in tensors:
                self.labels = tensors["labels"]
            if self._draws is not None:
                self._draws.load(tensors)
            self._tally = Tally(self)
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"the checkpoint is damaged or of another version: {error}") from error

    def _checkpoint(self, changed: list[Participant], *, keep: bool = False) -> None:
        """Store this state at both ends: here first, so that the server never has one that the client lacks.

        `changed` are those whose layer at the server is another than the one that it stored last. With `keep` this state stays at
        both ends, also where the others are not stored.
        """
        if self.checkpoints is None and not keep:
            return
        self._tally.add_up()
        self._tally.check()
        back = [participant.client.phases.enter("checkpoint") for participant in changed]
        sessions = [p.client.session.run if p.client.session is not None else "" for p in self.participants]
        for participant in changed:
            index = self.participants.index(participant)
            self.progress.stored[index] = self.progress.steps[index]
        tensors = {f"order.{i}": p.before for i, p in enumerate(self.participants)}
        for index, participant in enumerate(self.participants):
            tensors |= {f"{index}.{name}": value for name, value in participant.client.tensors().items()}
        if self.labels is not None:
            tensors["labels"] = self.labels  # noised once: noising them again would say more of the true ones
        if self._draws is not None:
            tensors |= self._draws.tensors()
        values = {
            "mode": self.mode,
            "phases": [dict(p.client.phases.seconds) for p in self.participants],
            "clipped": [p.client.clipped for p in self.participants],
        }
        snapshot = Snapshot(self.progress, self.group, sessions, values, tensors)
        if self.checkpoints is not None:
            self.checkpoints.save(snapshot)
        else:
            copies = {name: value.detach().clone() for name, value in tensors.items()}
            self._best = replace(snapshot, progress=deepcopy(self.progress), tensors=copies)
        before = self.bytes
        at_server = not self.config.traits.client_holds_layer  # otherwise it shall not learn which epochs are good
        for participant in changed:
            if participant.client.session is not None and (self.checkpoints is not None or at_server):
                step = self.progress.steps[self.participants.index(participant)]
                participant.client.settle()
                participant.session.checkpoint(step, keep=keep and at_server)
        self.count("setup", before)
        if self.checkpoints is not None:
            self.checkpoints.prune(keep=self.progress.best_number)
        for participant, phase in zip(changed, back, strict=True):
            participant.client.phases.enter(phase)
        self._tally.restart()

    # Training

    def epoch(self) -> Generator[Tensor, None, None]:
        """What is left of this epoch: trains on one batch after the other, and yields the rows of each when it is done.

        Close it when leaving early.
        """
        progress = self.progress
        if self.task.schedule is not None:
            factor = self.task.schedule(progress.epoch)
            for participant in self.participants:
                participant.client.set_rates(factor)
        self._tally.restart()
        if self._draws is not None:
            self._draws.enter()
        try:
            while progress.turn < len(self.participants):
                participant = self.participants[progress.turn]
                if progress.batch == 0:
                    self._take_over(progress.turn)
                yield from self._turn(participant)
                participant.client.phases.enter(None)
                participant.before = participant.order.get_state()
                progress.turn, progress.batch = progress.turn + 1, 0
                if progress.turn < len(self.participants) or self._average_is_due():
                    self._checkpoint([participant])
            if self._average_is_due():
                self._average()
            self._tally.check()
        finally:
            if self._draws is not None:
                self._draws.leave()
            for participant in self.participants:
                participant.client.phases.enter(None)
            self.account.settle()
            self._tally.add_up()

    def _turn(self, participant: Participant) -> Generator[Tensor, None, None]:
        """One participant's batches that are left of this epoch."""
        progress = self.progress
        participant.client.phases.enter("accounting")  # every moment of training belongs to a phase
        participant.order.set_state(participant.before)
        order = participant.rows[torch.randperm(len(participant.rows), generator=participant.order)]
        batches = torch.split(order, self.config.batch_size)[: participant.batches]
        self._account_ahead(batches)
        left = batches[progress.batch :]
        for rows, (x, y) in zip(left, self.task.train.batches(left), strict=True):
            self.account.add(rows)
            labels = rows if self.config.traits.own_labels else y if self.labels is None else self.labels[rows]
            self._tally.add(*participant.client.learn(x, labels), len(rows))
            progress.batch += 1
            progress.steps[progress.turn] += 1
            if progress.batch % self.config.checkpoint_every == 0:
                self._checkpoint([participant])
                self._account_ahead(batches)
            yield rows

    def _account_ahead(self, batches: tuple[Tensor, ...]) -> None:
        """Account for what may be sent before the next checkpoint."""
        batch, every = self.progress.batch, self.config.checkpoint_every
        coming = batches[batch : batch - batch % every + every]
        if coming:
            self.account.ahead(torch.cat(coming))

    def close_epoch(self) -> EpochRecord:
        """Evaluate what is held out, and turn to the next epoch."""
        progress = self.progress
        mean, accuracy = self.means()
        scores = self.evaluate_held_out()
        monitored = bool(self.task.monitor)
        record = EpochRecord(
            progress.epoch, mean, accuracy if self.task.hits is not None else None,
            None if monitored else scores.get("accuracy"), progress.seconds, self.account.epsilon(), scores if monitored else {},
            {} if monitored else {name: value for name, value in scores.items() if name != "accuracy"},
        )  # fmt: skip
        # Tables are kept of the best or last epoch only: of all epochs they would outgrow the checkpoints.
        progress.history.append(
            asdict(replace(record, validation=_numbers(record.validation), test=_numbers(record.test)))
        )
        progress.last_scores = {} if monitored else scores
        better = self._is_better(scores)
        if better:
            progress.best_epoch, progress.best_scores = progress.epoch, scores
            progress.best_number = sum(progress.steps)
        self.next_epoch()
        averaged = self._averages_at_server(len(self.participants))
        self._checkpoint(self.participants if averaged or better else self.participants[-1:], keep=better)
        self.participants[-1].client.phases.enter(None)
        return record

    def _is_better(self, scores: dict[str, Any]) -> bool:
        monitor = self.task.monitor
        if not monitor:
            return False
        score, best = scores.get(monitor), self.progress.best_scores.get(monitor)
        if score is None:
            raise DataError(
                f"{monitor} is not defined on the validation rows: some class has no row, or all rows, there"
            )
        return best is None or (score < best if self.task.minimise else score > best)

    def next_epoch(self) -> None:
        """Turn to the next epoch."""
        progress = self.progress
        progress.epoch, progress.turn, progress.batch = progress.epoch + 1, 0, 0
        progress.done, progress.seen, progress.correct = 0, 0, 0
        progress.loss = progress.seconds = 0.0
        self._tally = Tally(self)

    def evaluate(self) -> float:
        """Accuracy on what is held out."""
        return float(self.evaluate_held_out()["accuracy"])

    def evaluate_held_out(self) -> dict[str, Any]:
        """What is measured on the rows that are held out, through the protocol."""
        return self._measure(self.task.held_out, len(self.task.train))

    def _measure(self, examples: Examples | None, first: int) -> dict[str, Any]:
        """By the last participant, which has what all have learnt; the rows are released as those from `first` on."""
        if examples is None:
            return {}
        before = self.bytes
        rows = np.arange(first, first + len(examples))
        self.account.ahead(rows, gradients=False)
        self.account.add(rows, gradients=False)
        scores = evaluate(self.participants[-1].client, examples)
        self.count("evaluation", before)
        return scores

    def count(self, what: str, before: tuple[int, int]) -> None:
        """Add the bytes since `before` to those of that name; empty: of training."""
        up, down = self.bytes
        prefix = f"{what}_" if what else ""
        self.progress.add(**{f"{prefix}bytes_up": up - before[0], f"{prefix}bytes_down": down - before[1]})

    # Several participants

    def _take_over(self, turn: int) -> None:
        """In turns, go on from the participant before this one; the first from the last of the epoch before."""
        alone = len(self.participants) == 1 or self.mode == "parallel"
        if not alone and (turn > 0 or self.progress.epoch > 1):
            self.participants[turn].client.take_over(self.participants[turn - 1].client)

    def _average_is_due(self) -> bool:
        return self.mode == "parallel" and len(self.participants) > 1

    def _average(self) -> None:
        """Average what all have learnt: convolutions here, the server's layers there, layers that clients hold by their owners."""
        sizes = [float(len(participant.rows)) for participant in self.participants]
        weights = [size / sum(sizes) for size in sizes]
        clients = [participant.client for participant in self.participants]
        for modules in ([client.model for client in clients], [client.head for client in clients]):
            mean = weighted_mean([module.state_dict() for module in modules], weights)
            for module in modules:
                module.load_state_dict(mean)
        own = [client.own_layer for client in clients if client.own_layer is not None]
        if own:
            mean = weighted_mean([layer.linear.state_dict() for layer in own], weights)
            for client, layer in zip(clients, own, strict=True):
                layer.assign(mean["weight"], mean["bias"])
                client.refresh()
            return
        for participant, size in zip(self.participants, sizes, strict=True):
            participant.session.merge(size)
        for index, participant in enumerate(self.participants):
            participant.session.adopt()
            self.progress.steps[index] += 1

    def adopt(self, of: Sequence[tuple[str, int, float]], *, whole: bool = False) -> None:
        """Let the layer at the server go on from checkpoints of the group's members, as `Session.adopt`."""
        self.participants[0].session.adopt(of, whole=whole)
        self.progress.steps[0] += 1

    # The end

    def store(self) -> None:
        """Let both ends keep this state."""
        self._checkpoint(self.participants)

    def close(self) -> None:
        """Close all connections; the sessions stay at the server for a while, and their checkpoints."""
        for participant in self.participants:
            participant.client.close()

    def finish(self) -> None:
        """Go back to the best epoch, test it, end all sessions and take the server's account of its time."""
        self._go_back_to_best()
        held_out = self.task.held_out
        self.tested = self._measure(self.task.test, len(self.task.train) + (len(held_out) if held_out else 0))
        for participant in self.participants:
            with participant.client.phases.uncounted():
                spent = participant.client.end()
            for phase, seconds in spent.items():
                self.server_seconds[phase] = self.server_seconds.get(phase, 0.0) + seconds

    def _go_back_to_best(self) -> None:
        """Both sides take the state of the epoch that was best, unless it was the last one. What was counted stays."""
        number = self.progress.best_number
        if not number or number == sum(self.progress.steps):
            return
        snapshot = self.checkpoints.load(number) if self.checkpoints is not None else self._best
        assert snapshot is not None
        before = self.bytes
        for index, participant in enumerate(self.participants):
            client, prefix = participant.client, f"{index}."
            client.load({k[len(prefix) :]: v for k, v in snapshot.tensors.items() if k.startswith(prefix)})
            with client.phases.uncounted():
                if client.own_layer is not None:
                    client.refresh()
                else:
                    stored = snapshot.sessions[index], snapshot.progress.stored[index]
                    client.begin(resume=stored, reconnect=self._reconnects)
        self.count("setup", before)

    def result(self, interrupted: str | None) -> RunResult:
        """What was learnt and measured so far."""
        clients = [participant.client for participant in self.participants]
        last = self.latest
        layer = last.own_layer.linear if last.own_layer is not None else None
        if layer is None and self.server is not None:
            layer = self.server.last_linear()
        phases: dict[str, float] = {}
        for client in clients:
            client.phases.enter(None)
            for phase, seconds in client.phases.seconds.items():
                phases[phase] = phases.get(phase, 0.0) + seconds
        counts = {
            name: value if name == "train_seconds" else int(value) for name, value in self.progress.counts.items()
        }
        network = self.task.network
        together = (f"{len(clients)} participants, {self.mode}",) if len(clients) > 1 else ()
        return RunResult(
            self.config,
            history=self.progress.records,
            seconds_by_phase=phases,
            server_seconds_by_phase=self.server_seconds,
            parameters=last.parameters.to_dict() if last.parameters else None,
            clipped=sum(client.clipped for client in clients),
            flooding_deviation=max(client.flooding_deviation for client in clients),
            batches_per_epoch=self.batches_per_epoch,
            participants=len(clients),
            notes=(*notes(self.config, network.outputs), *together, *self.account.notes),
            epsilon=self.account.epsilon(),
            interrupted=interrupted,
            architecture=network if isinstance(network, Architecture) else None,
            best_epoch=self.progress.best_epoch,
            validation=self.progress.best_scores,
            test=self.tested or self.progress.last_scores,
            client_state=client_state(last),
            server_weight=layer.weight.detach() if layer is not None else None,
            server_bias=layer.bias.detach() if layer is not None else None,
            **cast(Any, counts),
        )


def _numbers(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores without tables."""
    return {name: value for name, value in scores.items() if not isinstance(value, dict | list)}


def _opener(connect: Callable[[int], Channel] | None, index: int) -> Callable[[], Channel] | None:
    return (lambda: connect(index)) if connect is not None else None


def _participants_of(server: Server) -> Callable[[int], Channel]:
    return lambda index: in_process(server, f"participant-{index + 1}")()


def in_process(server: Server, client: str = "in-process") -> Callable[[], Channel]:
    """Connections to a server in this process."""
    return lambda: InProcessChannel(server.converse(ClientInfo(client)))


def client_state(client: Client) -> dict[str, Tensor]:
    """What the client trained: convolutions, and the second fully connected layer where there is one."""
    state = {f"body.{name}": value for name, value in client.model.state_dict().items()}
    return state | {f"head.{name}": value for name, value in client.head.state_dict().items()}


def weighted_mean(states: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """The mean of several state dicts."""
    return {
        name: sum((weight * state[name] for weight, state in zip(weights, states, strict=True)), torch.zeros(()))
        for name in states[0]
    }


def notes(config: RunConfig, outputs: int) -> tuple[str, ...]:
    """What a reader of the report has to know."""
    found = []
    if config.accept_leak and leaks(config.protocol, config.batch_size * config.accumulate, outputs):
        found.append(
            f"leak accepted: batches with fewer samples than outputs (batch size {config.batch_size}) give the server the activations"
        )
    if config.releases and config.flooding == "off":
        found.append("noise flooding is off: gradients computed from decrypted logits are released as they are")
    if config.traits.seals_weights:
        found.append(
            f"{config.protocol} is encrypted custody of shared parameters: the client knows W and could compute the layer itself, see "
            "the row local; one client that colludes with the server opens the key"
        )
    return tuple(found)
