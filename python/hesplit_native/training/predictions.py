"""What a trained network says of rows: classes, probabilities, a table and a CSV file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hesplit_native.choices import Labels
from hesplit_native.files import SHARED, write_atomically

if TYPE_CHECKING:
    from rich.table import Table

NO_CLASS = "none"  # of a row of several labels to which none applies


@dataclass(frozen=True)
class Predictions:
    """What a network says of rows, and what is known of these.

    Parameters
    ----------
    classes
        Names of the outputs.
    logits
        float32 [n, classes].
    labels
        Whether a row is of one class, or of any number of them.
    annotated
        The true ones: int64 [n], or [n, classes] of 0 and 1; None: nobody says.
    samples, seconds
        Where each row lies in its recording, int64 and float64 [n]; None: it is of a data set.
    """

    classes: tuple[str, ...]
    logits: Tensor
    labels: Labels
    annotated: Tensor | None = None
    samples: npt.NDArray[np.int64] | None = None
    seconds: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.logits)

    @property
    def predicted(self) -> Tensor:
        """As `annotated`: the likeliest class, or every label that is likelier than not."""
        return (self.logits > 0).long() if self.labels == "multi" else self.logits.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """Of each class, float32 [n, classes]."""
        return self.logits.sigmoid() if self.labels == "multi" else self.logits.softmax(1)

    def names(self, which: Tensor) -> list[str]:
        """What such classes are called; those of several labels are joined by ``+``."""
        if self.labels == "single":
            return [self.classes[label] for label in which.tolist()]
        rows = ([name for name, applies in zip(self.classes, row, strict=True) if applies] for row in which.tolist())
        return ["+".join(row) or NO_CLASS for row in rows]


def write_predictions(path: Path, found: Predictions) -> None:
    """A CSV file with a row for each prediction; ``annotated`` is left out where there are no annotations."""
    columns: dict[str, Sequence[object]] = {
        "beat": range(len(found)),
        "sample": _column(found.samples, len(found)),
        "predicted": found.names(found.predicted),
    }
    if found.annotated is not None:
        columns["annotated"] = found.names(found.annotated)
    for what, values in (("logit", found.logits), ("probability", found.probabilities)):
        columns |= {f"{what}_{name}": values[:, index].tolist() for index, name in enumerate(found.classes)}
    columns["seconds"] = _column(found.seconds, len(found))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    if path.exists() and not path.is_file():  # a device or a pipe is not replaced
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    else:
        write_atomically(path, text.getvalue().encode(), mode=SHARED)


def _column(values: npt.NDArray[np.int64] | npt.NDArray[np.float64] | None, rows: int) -> Sequence[object]:
    return [""] * rows if values is None else values.tolist()


def prediction_table(found: Predictions, rows: str) -> Table:
    """How many rows are predicted as what, by their annotated class where there is one. ``rows`` is what they are called."""
    from rich.table import Table

    table = Table(title=f"{len(found)} {rows}", title_justify="left")
    if found.annotated is None:
        _predicted_alone(table, found)
    elif found.labels == "multi":
        _by_label(table, found, found.annotated)
    else:
        _by_class(table, found, found.annotated)
    return table


def _predicted_alone(table: Table, found: Predictions) -> None:
    for name, justify in (
        ("predicted", "left"),
        ("how many", "right"),
        ("share", "right"),
        ("mean probability", "right"),
    ):
        table.add_column(name, justify="right" if justify == "right" else "left")
    several, predicted = found.labels == "multi", found.predicted
    for index, name in enumerate(found.classes):
        mine = predicted[:, index] == 1 if several else predicted == index
        count = int(mine.sum())
        probability = f"{float(found.probabilities[mine, index].mean()):.1%}" if count else "-"
        table.add_row(name, str(count), f"{count / max(len(found), 1):.1%}", probability)
    if several:
        count = Counter(found.names(predicted))[NO_CLASS]
        table.add_row(NO_CLASS, str(count), f"{count / max(len(found), 1):.1%}", "-")


def _by_class(table: Table, found: Predictions, annotated: Tensor) -> None:
    table.add_column("annotated")
    for name in found.classes:
        table.add_column(f"as {name}", justify="right")
    table.add_column("right", justify="right")
    for label, name in enumerate(found.classes):
        mine = found.predicted[annotated == label]
        counts = [int((mine == other).sum()) for other in range(len(found.classes))]
        table.add_row(name, *map(str, counts), f"{counts[label] / len(mine):.1%}" if len(mine) else "-")


def _by_label(table: Table, found: Predictions, annotated: Tensor) -> None:
    for name in ("label", "annotated", "found of them", "predicted wrongly"):
        table.add_column(name, justify="left" if name == "label" else "right")
    for index, name in enumerate(found.classes):
        true, said = annotated[:, index] == 1, found.predicted[:, index] == 1
        table.add_row(name, str(int(true.sum())), str(int((true & said).sum())), str(int((~true & said).sum())))


def accuracy(found: Predictions) -> float | None:
    """The share of rows, or of their labels, that are right; None where nobody knows."""
    if found.annotated is None:
        return None
    return float((found.predicted == found.annotated).double().mean())
