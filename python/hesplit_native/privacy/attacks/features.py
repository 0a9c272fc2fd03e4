"""Private features from cut-layer gradients (Qiu et al., Evaluating Privacy Leakage in Split Learning).

The server holds the public features and most of the model; the device holds private features, the label and a small model, which takes
the server's representation z and the private features. The device keeps everything but dJ/dz, which the server needs. The server knows
the device's model, having sent it, and looks for the private features and the label with which it would give that gradient.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.data.tables import (
    Fault,
    Notation,
    is_censored,
    is_missing,
    not_a_number,
    notations,
    number,
    read_table,
    settle,
)
from hesplit_native.errors import DataError, ParameterError
from hesplit_native.seeding import seeded

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """Rows of a tabular task: public features [n, p], private yes-or-no features [n, k] and labels [n], all but p in {0, 1}."""

    name: str
    public: Float32
    private: Float32
    labels: Float32

    def __post_init__(self) -> None:
        if len(self.public) < 10 or not np.isin(self.private, (0, 1)).all() or not np.isin(self.labels, (0, 1)).all():
            raise DataError(f"{self.name}: needs at least 10 rows, private features and labels of 0 and 1")


def synthetic_table(rows: int = 2000, *, public: int = 12, private: int = 8, seed: int = 0) -> Table:
    """Public features that say a little about the private ones, and a label that depends on both."""
    generator = np.random.default_rng(seed)
    hidden = (generator.random((rows, private)) < generator.uniform(0.3, 0.7, private)).astype(np.float32)
    shown = generator.normal(size=(rows, public)) + 0.3 * hidden @ generator.normal(size=(private, public))
    score = shown @ generator.normal(size=public) / public**0.5 + (hidden - 0.5) @ generator.normal(size=private)
    labels = (score + 0.5 * generator.normal(size=rows) > 0).astype(np.float32)
    return Table("synthetic", shown.astype(np.float32), hidden, labels)


def load_table(path: Path, *, private: list[str], label: str) -> Table:
    """Any table with a header: the named private columns and the label have two values each, the other numeric columns are public.

    Columns without a name are a spreadsheet's index, no feature. Rows that lack a value of these columns, or have one that only lies
    beyond a limit (``<0.2``), are left out; so are malformed ones and those without a number in a column of numbers, with a warning
    that counts them and as long as they are at most one in fifty.

    Raises
    ------
    DataError
        When a column is missing or has more than two values, or nothing numeric is left.
    """
    table = read_table(path, (*private, label))
    named = [table.place(name) for name in (*private, label)]
    cells = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    written = notations({str(at): [cell for cell in column if not is_missing(cell)] for at, column in enumerate(cells)})
    numbers = {
        at: [number(cell, written[str(at)]) for cell in column]
        for at, column in enumerate(cells)
        if at not in named
        and not re.fullmatch(r"(Unnamed: \d+)?", table.header[at])
        and _numeric(column, written[str(at)])
    }
    if not numbers:
        raise DataError(f"{path}: no numeric column is left as a public feature")
    whole, faults = [], list(table.faults)
    for row, line in enumerate(table.lines):
        if any(is_missing(cells[at][row]) or is_censored(cells[at][row]) for at in (*named, *numbers)):
            continue
        strange = [at for at, values in numbers.items() if values[row] is None or not math.isfinite(values[row] or 0)]
        if strange:
            where = f"row {line}, column {table.header[strange[0]]!r}"
            faults.append(Fault("not a number", f"{where}: {not_a_number(cells[strange[0]][row])}"))
        else:
            whole.append(row)
    dropped = settle(path, faults, len(table.rows) + len(table.faults))
    if dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        warnings.warn(f"{path}: rows left out: {counts}; the first: {faults[0].words}", stacklevel=2)
    if not whole:
        raise DataError(f"{path}: no row has a value in every column that is used")
    two = [_two_values(path, table.header[at], [cells[at][row] for row in whole], written[str(at)]) for at in named]
    shown = np.array([[values[row] for row in whole] for values in numbers.values()], np.float64)
    varied = shown[shown.std(axis=1) > 0]
    if not len(varied):
        raise DataError(f"{path}: no numeric column is left as a public feature")
    public = (varied - varied.mean(axis=1, keepdims=True)) / varied.std(axis=1, keepdims=True)
    return Table(path.stem, np.ascontiguousarray(public.T, np.float32), np.stack(two[:-1], 1), two[-1])


def _numeric(column: Sequence[str], notation: Notation) -> bool:
    """Whether most cells that are not missing are numbers."""
    present = [cell for cell in column if not (is_missing(cell) or is_censored(cell))]
    return 2 * sum(number(cell, notation) is not None for cell in present) > len(present)


def _two_values(path: Path, name: str, cells: Sequence[str], notation: Notation) -> Float32:
    """0 and 1 for the two values of a column, whatever their case or, of numbers, their decimals."""
    values = [cell.casefold() if (value := number(cell, notation)) is None else repr(value) for cell in cells]
    kinds = sorted(set(values))
    if len(kinds) != 2:
        raise DataError(f"{path}: column {name!r} has {len(kinds)} values, a private feature or label has 2")
    return np.array([kinds.index(value) for value in values], np.float32)


def _device_model(representation: int, private: int, width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(representation + private, width), nn.Tanh(), nn.Linear(width, 1))


@dataclass(frozen=True)
class Observed:
    """What the server has of one batch: its representation z [n, r], dJ/dz of it [n, r], and the device's model at that time."""

    representation: Tensor
    gradient: Tensor
    device: nn.Module


def train(
    table: Table,
    *,
    protect: Callable[[Tensor], Tensor] | None = None,
    steps: int = 200,
    batch_size: int = 32,
    representation: int = 16,
    seed: int = 0,
) -> tuple[Observed, Float32, float]:
    """Train the split model; what the server saw of a last batch, its private features, and the accuracy.

    `protect` is applied to the gradients [n, r] before they are sent (`defences`).
    """
    public, private = torch.from_numpy(table.public), torch.from_numpy(table.private)
    labels = torch.from_numpy(table.labels)
    with seeded(seed):
        server = nn.Sequential(nn.Linear(public.shape[1], 32), nn.Tanh(), nn.Linear(32, representation))
        device = _device_model(representation, private.shape[1])
        optimizer = torch.optim.Adam([*server.parameters(), *device.parameters()], 3e-3)
        criterion = nn.BCEWithLogitsLoss()
        observed, rows = None, torch.arange(batch_size)
        for step in range(steps + 1):
            rows = torch.randint(0, len(public), (batch_size,))
            z = server(public[rows])
            received = z.detach().requires_grad_()
            loss = criterion(device(torch.cat([received, private[rows]], 1))[:, 0], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            assert received.grad is not None
            gradient = protect(received.grad) if protect is not None else received.grad
            if step == steps:
                copy = _device_model(representation, private.shape[1])
                copy.load_state_dict(device.state_dict())
                observed = Observed(z.detach(), gradient.detach().clone(), copy)
                break
            z.backward(gradient)
            optimizer.step()
        with torch.no_grad():
            logits = device(torch.cat([server(public), private], 1))[:, 0]
    assert observed is not None
    accuracy = float(((logits > 0).float() == labels).float().mean())
    return observed, private[rows].numpy(), accuracy


def reconstruct(observed: Observed, private: int, *, seed: int = 0) -> Float32:
    """Private features [n, private] in {0, 1} whose gradient matches best: of all there are, or of what a local search finds."""
    if private < 1:
        raise ParameterError("there must be a private feature to look for")
    for parameter in observed.device.parameters():
        parameter.requires_grad_(False)
    if private <= _EXHAUSTIVE:
        every = (torch.arange(1 << private)[:, None] >> torch.arange(private) & 1).float()
    found = []
    for row in range(len(observed.representation)):
        if private > _EXHAUSTIVE:
            with seeded(seed + row):
                every = _local_search(observed, row, (torch.rand(4096, private) < 0.5).float())
        found.append(every[_mismatch(observed, row, every).argmin()])
    return np.asarray(torch.stack(found).numpy())


_EXHAUSTIVE = 16


def _mismatch(observed: Observed, row: int, features: Tensor) -> Tensor:
    """How far the gradient of one row with these features [m, k], and the label that suits them, is from the observed one: [m]."""
    target = observed.gradient[row]
    distances = []
    for label in (0.0, 1.0):
        z = observed.representation[row].expand(len(features), -1).clone().requires_grad_()
        logits = observed.device(torch.cat([z, features], 1))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="sum")
        (gradient,) = torch.autograd.grad(loss / len(observed.representation), z)
        distances.append((gradient - target).square().sum(1))
    return torch.minimum(*distances)


def _local_search(observed: Observed, row: int, features: Tensor, *, passes: int = 4) -> Tensor:
    """Turn single features over as long as that fits better, from every start [m, k]."""

    def mismatch(values: Tensor) -> Tensor:
        return _mismatch(observed, row, values)

    present = mismatch(features)
    for _ in range(passes):
        for feature in range(features.shape[1]):
            turned = features.clone()
            turned[:, feature] = 1 - turned[:, feature]
            found = mismatch(turned)
            better = found < present
            features = torch.where(better[:, None], turned, features)
            present = torch.where(better, found, present)
    return features


def accuracy(guess: Float32, truth: Float32) -> float:
    """The share of private features that are right."""
    return float((guess == truth).mean())


def chance(table: Table) -> float:
    """What guessing each feature's more frequent value gets right."""
    share = table.private.mean(0)
    return float(np.maximum(share, 1 - share).mean())
