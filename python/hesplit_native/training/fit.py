"""Training anybody's network on anybody's data, its last layer at a server: `hesplit_native.train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hesplit_native.choices import Mode, ProtocolName
from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import DataError, ParameterError
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.training import own_data, report
from hesplit_native.training.config import RunConfig
from hesplit_native.training.division import epoch_batches, even_shares
from hesplit_native.training.metrics import check_torchmetrics, has_torchmetrics, measure
from hesplit_native.training.objectives import HITS, LOSSES, check_objective
from hesplit_native.training.observers import CsvLog, Observers
from hesplit_native.training.own_network import OwnNetwork, check_last_batch, check_loss, own_network
from hesplit_native.training.result import Observer, RunResult
from hesplit_native.training.run import Run, run_through
from hesplit_native.training.task import Examples, Loss, Task, TensorExamples
from hesplit_native.transport.opening import ServerAddress, Tls, opener

_BATCH = 32
_NEEDS_MORE = ("macro_f1", "auroc")
_SMALLER_IS_BETTER = ("loss", "mae")


#: How many, or the rows of each, by index.
Participants = int | Sequence[Sequence[int] | npt.NDArray[np.int64]]


@dataclass(frozen=True)
class PreparedData:
    """Examples by what they are for, what their labels are, and the rows of each participant."""

    train: Examples
    validation: Examples | None
    test: Examples | None
    labels: own_data.Labels
    batch_size: int | None
    classes: tuple[str, ...]
    shares: list[npt.NDArray[np.int64]]


def train(
    network: nn.Module,
    data: Any,
    *,
    outputs: int | None = None,
    loss: Loss | None = None,
    validation: Any = None,
    test: Any = None,
    classes: Sequence[str] | None = None,
    metrics: bool | None = None,
    monitor: str = "loss",
    patience: int | None = None,
    epochs: int = 10,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: Callable[[int], float] | None = None,
    protocol: ProtocolName = "splitways",
    server: ServerAddress | None = None,
    tls: Tls | None = None,
    client_id: str = "client",
    insecure: bool = False,
    participants: Participants = 1,
    mode: Mode = "turns",
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observers: Iterable[Observer] = (),
    progress: bool = True,
    output: str | os.PathLike[str] | None = None,
    **more: Any,
) -> RunResult:
    """Train a network whose last layer, a linear one, is a server's.

    `network` is all that comes before that layer; what it gives for a row is flattened to features, which are counted on two rows
    of the data. It is trained in place. The server's layer is `RunResult.linear` where its weights are in this process. Everything
    else is as for the papers' networks: checkpoints, resuming, lost connections, what is refused because it leaks.

    Parameters
    ----------
    network
        Any module that takes a batch of x and gives [n, ...]; on `device`.
    data
        ``(x, y)``, arrays or tensors [n, ...] of equal length, x possibly a tuple or dict of several; a map-style data set of such
        pairs or of dicts with ``labels``; a `DataLoader` of one, whose batch size, collate_fn, workers and drop_last are used and
        whose order is not; or a `data.Dataset`, whose test rows become `test`. float64 becomes float32, any integers int64.
    outputs
        Of the server's layer; None: the number of classes (the largest label and one), of columns of y, or 1. A data set that is not
        in memory is read once to find out.
    loss
        Of the outputs [n, outputs] and labels, the mean over rows; None: cross-entropy for classes, int [n]; binary
        cross-entropy with logits for labels 0 and 1, [n, outputs]; squared error for other floats, [n] (as [n, 1]) or [n, outputs].
    validation
        Data in the same forms, or the share of `data` that is split off at random (rows of one patient may then be on both sides);
        evaluated after every epoch. The state of the best epoch is what both sides have in the end.
    test
        Evaluated once, in the end.
    classes
        Names of the outputs, for tables.
    metrics
        Macro F1, AUROC, confusion matrix and values per class by torchmetrics; None: if that is installed.
    monitor
        What says which epoch is best, by its name in `EpochRecord.validation`: ``"loss"``, ``"accuracy"``, ``"macro_f1"``,
        ``"auroc"``, ``"mae"``, ``"r2"``.
    patience
        End when so many epochs in a row were no better.
    batch_size
        None: the loader's, or 32.
    learning_rate
        Of both sides' Adam.
    optimizer
        Makes that of `network` from its parameters; the server's is `server_optimizer`.
    schedule
        The factor of both sides' learning rates in epoch 1, 2, ….
    protocol, seed
        As in `RunConfig`. The seed decides the order of rows, the server's first weights and what dropout draws; not the weights
        that `network` came with.
    server, tls, client_id, insecure
        None: a server in this process; otherwise as in `nn.SplitLinear`.
    participants, mode
        Several clients in this process, as where hospitals divide the data: a number, among whom rows are divided evenly at random,
        or the rows of each, by index. In ``"turns"`` one goes on from the other, ``"parallel"`` averages all after every epoch. Each
        has a copy of `network`, which in the end is what the last of them has.
    device
        Where `network` is computed; what is sent comes from the CPU.
    checkpoints, resume
        As in `training.train`. What data sets draw at random is the same after a resume where torch draws it in this process.
    observers
        Told of batches and epochs (`training.Observer`), like `training.CsvLog` and `training.TensorBoardLog`. One that raises
        `training.StopTraining` ends the run as after its last epoch.
    progress
        Show a bar, or a line for every epoch where there is no terminal, and a table in the end.
    output
        Folder for ``metrics.json`` and ``log.csv``.
    more
        Other fields of `RunConfig`: `layer`, `flooding`, `accept_leak`, `server_optimizer`, `accumulate`, `checkpoint_every`,
        `limit_batches`, `defences`, `packing`, `on_overflow`, `security`, `statistical_bits`.

    Returns
    -------
    RunResult
        Also when something ends the run before its time: then `interrupted` says what, and both sides have the last state.

    Raises
    ------
    DataError
        Data of no use: empty, of unequal lengths, not finite, labels out of range or of an unclear kind. Of a data set that is not
        in memory every batch is checked when it comes.
    ParameterError
        A network or loss that does not fit the data; choices that cannot be, or need a package that is missing.
    """
    if protocol in PROTOCOLS and PROTOCOLS[protocol].own_labels and isinstance(data, Tensor | np.ndarray):
        data = data, _labels_elsewhere(len(data), outputs, server)
    found, config, task = prepare(
        network, data, validation, test, outputs=outputs, loss=loss, classes=classes, metrics=metrics, epochs=epochs,
        batch_size=batch_size, learning_rate=learning_rate, protocol=protocol, seed=seed, device=device, more=more,
        participants=participants,
    )  # fmt: skip
    shares = found.shares
    if len(shares) > 1:
        task = replace(task, network=replace(cast(OwnNetwork, task.network), copied=True))
    task = replace(
        task,
        optimizer=optimizer,
        schedule=_checked_schedule(schedule, epochs),
        monitor=_monitor(monitor, task, found) if found.validation is not None else "",
        minimise=monitor in _SMALLER_IS_BETTER,
        patience=_patience(patience, found),
    )
    if server is not None and not config.traits.is_split:
        raise ParameterError(f"{protocol} has no server; leave it out")
    opened = opener(server, tls=tls, client_id=client_id, insecure=insecure) if server is not None else None
    if opened is not None and not opened.again:
        raise ParameterError("a run opens connections when it needs them: give host:port, or a function that opens one")
    run = Run(
        config,
        task,
        shares,
        mode=mode,
        connect=(lambda index: opened.open()) if opened is not None else None,
        checkpoints=Path(checkpoints) if checkpoints is not None else None,
    )
    folder = Path(output) if output is not None else None
    watching = [*observers, *([CsvLog(folder / "log.csv")] if folder is not None else [])]
    result = _watched(run, watching, resume=resume, progress=progress)
    if len(shares) > 1:
        network.load_state_dict(run.latest.model.state_dict())
    if folder is not None or progress:
        _report(result, found, folder, progress=progress)
    return result


def _labels_elsewhere(rows: int, outputs: int | None, server: object) -> Tensor:
    """In place of labels that only the server has; its rows are those of the data."""
    if server is None:
        raise ParameterError(
            "in vertical the labels are the server's: name it, or give (x, y) for a server in this process"
        )
    if outputs is None:
        raise ParameterError("say how many outputs the server's layer has for its labels: outputs=…")
    return torch.zeros(rows, dtype=torch.int64)


def prepare(
    network: nn.Module,
    data: Any,
    validation: Any,
    test: Any,
    *,
    outputs: int | None,
    loss: Loss | None,
    classes: Sequence[str] | None,
    metrics: bool | None,
    epochs: int,
    batch_size: int | None,
    learning_rate: float,
    protocol: ProtocolName,
    seed: int,
    device: torch.device | str,
    more: dict[str, Any],
    participants: Participants = 1,
) -> tuple[PreparedData, RunConfig, Task]:
    """Data, configuration and task of a run with `train`'s arguments, all of them checked; errors as there."""
    found = _data(
        data, validation, test, outputs=outputs, own_loss=loss is not None, seed=seed, names=classes, participants=participants
    )  # fmt: skip
    rows = batch_size or found.batch_size or _BATCH
    drop_last = isinstance(data, DataLoader) and data.drop_last
    config = _config(more, protocol=protocol, batch_size=rows, epochs=epochs, learning_rate=learning_rate, seed=seed)
    task = _task(network, found, config, loss, _device(device), metrics=metrics, drop_last=drop_last)
    return found, config, task


def _data(
    data: Any, validation: Any, test: Any, *, outputs: int | None, own_loss: bool, seed: int, names: Sequence[str] | None,
    participants: Participants,
) -> PreparedData:  # fmt: skip
    if isinstance(data, Dataset):
        own, tested = own_data.of_dataset(data)
        names = data.classes if names is None else names
        outputs = outputs or len(data.classes)
        data, test = own, tested if test is None else test
    held_out: Examples | None
    train, batch_size = own_data.examples(data, "the training data")
    if isinstance(validation, float):
        train, held_out = own_data.split_off(train, validation, seed)
    else:
        held_out = own_data.examples(validation, "the validation data")[0] if validation is not None else None
    tests: Examples | None = own_data.examples(test, "the test data")[0] if test is not None else None
    some = train.labels() if outputs is None or isinstance(train, TensorExamples) else _first(train)[1]
    labels = own_data.kind_of(some, "the training data", outputs=outputs, own_loss=own_loss)
    if outputs is not None and labels.kind in ("labels", "numbers") and labels.outputs != outputs:
        raise DataError(
            f"the training data, y: {list(some.shape)} does not fit {outputs} outputs; expected [n, {outputs}]"
        )
    if not labels.outputs:
        if outputs is None:
            raise ParameterError(
                "with these labels and a loss of your own say how many outputs the server's layer has: outputs=…"
            )
        labels = own_data.Labels(labels.kind, outputs)
    train = own_data.labelled(train, labels, "the training data")
    held_out = own_data.labelled(held_out, labels, "the validation data") if held_out is not None else None
    tests = own_data.labelled(tests, labels, "the test data") if tests is not None else None
    named = tuple(names) if names is not None else tuple(str(index) for index in range(labels.outputs))
    if len(named) != labels.outputs or len(set(named)) != len(named):
        raise ParameterError(f"classes: expected {labels.outputs} different names, got {list(named)}")
    shares = _shares(participants, len(train), seed)
    return PreparedData(train, held_out, tests, labels, batch_size, named, shares)


def _first(examples: Examples) -> tuple[Any, Tensor]:
    """The first two rows, or the only one."""
    return next(iter(examples.batches([torch.arange(min(2, len(examples)))])))


def _config(more: dict[str, Any], **given: Any) -> RunConfig:
    known = {f.name for f in fields(RunConfig)} - {"model", "convolutions", "recipe", "parameter_set"}
    unknown = sorted(set(more) - known)
    if unknown:
        raise ParameterError(
            f"train has no option {unknown[0]!r}; the further ones are {', '.join(sorted(known - set(given)))}"
        )
    return RunConfig(**given, **more)


def _task(
    network: nn.Module, data: PreparedData, config: RunConfig, loss: Loss | None, device: torch.device, *, metrics: bool | None,
    drop_last: bool,
) -> Task:  # fmt: skip
    kind, outputs = data.labels.kind, data.labels.outputs
    check_objective(config, kind, own_loss=loss is not None)
    if metrics:
        check_torchmetrics("metrics=True")
    inputs, some = _first(data.train)
    chosen = loss or LOSSES[kind]
    check_loss(chosen, outputs, some)
    own = own_network(network, inputs, len(some), outputs, device)
    for rows in sorted({len(share) for share in data.shares}):
        batches = epoch_batches(config, rows, outputs, drop_last=drop_last)
        check_last_batch(network, rows, config.batch_size, batches)
    if data.validation is not None:
        _same_rows(inputs, _first(data.validation)[0], "the validation data")
    if data.test is not None:
        _same_rows(inputs, _first(data.test)[0], "the test data")
    return Task(
        network=own,
        train=data.train,
        held_out=data.validation,
        test=data.test,
        loss=chosen,
        hits=HITS.get(kind),
        measure=measure(kind, chosen, data.classes, more=has_torchmetrics() if metrics is None else metrics),
        device=device,
        rows_at_once=max(64, config.batch_size),
        drop_last=drop_last,
    )


def _same_rows(ours: Any, theirs: Any, name: str) -> None:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.shape[1:] != theirs.shape[1:]:
        raise DataError(
            f"{name}, x: rows are {list(theirs.shape[1:])}, those of the training data {list(ours.shape[1:])}"
        )


def _device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ParameterError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ParameterError("device 'meta' computes nothing")
    return found


def _shares(participants: Participants, rows: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """The rows of each participant, all of them someone's and nobody's twice."""
    if isinstance(participants, int):
        return even_shares(rows, participants, seed) if participants != 1 else [np.arange(rows)]
    shares = [np.asarray(share) for share in participants]
    for share in shares:
        if share.ndim != 1 or not len(share) or share.dtype.kind not in "iu":
            raise ParameterError("participants: expected a number, or for each participant the indices of its rows")
    every = np.concatenate(shares) if shares else np.zeros(0, np.int64)
    if len(every) == 0 or every.min() < 0 or every.max() >= rows or len(np.unique(every)) < len(every):
        raise ParameterError(f"participants: expected different rows between 0 and {rows - 1}, each of one participant")
    return [share.astype(np.int64) for share in shares]


def _checked_schedule(schedule: Callable[[int], float] | None, epochs: int) -> Callable[[int], float] | None:
    for epoch in range(1, epochs + 1) if schedule is not None else ():
        factor = cast(Callable[[int], float], schedule)(epoch)
        if not 0 < factor <= 1e3:
            raise ParameterError(
                f"schedule: the factor of epoch {epoch} is {factor}; it must be above 0 and at most 1000"
            )
    return schedule


def _monitor(monitor: str, task: Task, data: PreparedData) -> str:
    if monitor in _NEEDS_MORE and data.labels.kind in ("classes", "labels"):
        check_torchmetrics(f"monitor={monitor!r}")
    # What there is to be seen, of an output that is right.
    zeros = torch.zeros(2, data.labels.outputs)
    some = data.validation.batches([torch.zeros(2, dtype=torch.int64)]) if data.validation is not None else iter(())
    there = [name for name, value in task.measure(zeros, next(some)[1]).items() if not isinstance(value, dict | list)]
    if monitor not in there:
        raise ParameterError(f"monitor={monitor!r} is not measured here; there are {', '.join(there)}")
    return monitor


def _patience(patience: int | None, data: PreparedData) -> int | None:
    if patience is not None and patience < 1:
        raise ParameterError(f"patience must be at least 1, got {patience}")
    if patience is not None and data.validation is None:
        raise ParameterError("patience needs validation data")
    return patience


def _watched(run: Run, observers: list[Observer], *, resume: bool, progress: bool) -> RunResult:
    if not progress:
        return run_through(run, Observers(observers), resume=resume)
    from rich.console import Console

    from hesplit_native.training.progress import TrainingProgress

    with TrainingProgress(Console(), run.config.epochs) as bar:
        return run_through(run, Observers([*observers, bar]), resume=resume)


def _report(result: RunResult, data: PreparedData, folder: Path | None, *, progress: bool) -> None:
    rows = [len(part) if part is not None else 0 for part in (data.train, data.validation, data.test)]
    values = report.own_metrics(result, *rows)
    if folder is not None:
        report.make_output(folder)
        report.write_metrics(folder / "metrics.json", values)
    if not progress:
        return
    from rich.console import Console

    console = Console()
    console.print(report.summary_table(values))
    table = report.class_table(values)
    if table is not None:
        console.print(table)
    for note in result.notes:
        console.print(note, style="yellow", highlight=False, markup=False)
    if result.interrupted:
        console.print(f"stopped early: {result.interrupted}", style="red", markup=False)
