"""The progress bar of a training run."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from hesplit_native.training.result import EpochRecord


def table_bar(console: Console) -> Progress:
    """A bar for the rows of a table, to which others can be added for the rows at work."""
    return _bar(console, "{task.description}")


def _bar(console: Console, title: str, *details: str) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    narrow = console.width < 110  # columns that do not fit are cut in the middle of a word
    return Progress(
        TextColumn(title),
        BarColumn(bar_width=10 if narrow else 40),
        MofNCompleteColumn(),
        *(TextColumn(detail) for detail in (details[:1] if narrow else details)),
        *(() if narrow else (TimeElapsedColumn(),)),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class TrainingProgress:
    """A bar over the whole run on a terminal; elsewhere a line per epoch."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console = console
        self.batches = 0
        self.started = perf_counter()
        self.paused = 0.0
        self.bar = _bar(
            console,
            "epoch {task.fields[epoch]}/" + str(epochs),
            "loss {task.fields[loss]:.4f}{task.fields[accuracy]}",
            "{task.fields[rate]:.0f} batches/s",
        )
        self.task = self.bar.add_task("train", total=None, epoch=1, loss=float("nan"), accuracy="", rate=0.0)

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def on_start(self, batches_per_epoch: int, epochs: int) -> None:
        """Set the length of the bar."""
        self.batches = batches_per_epoch
        self.started = perf_counter()
        self.bar.update(self.task, total=batches_per_epoch * epochs)

    def on_batch(self, epoch: int, batch: int, loss: float, accuracy: float) -> None:
        """Move the bar."""
        done = (epoch - 1) * self.batches + batch
        rate = done / max(perf_counter() - self.started - self.paused, 1e-9)
        shown = f"  accuracy {accuracy:.2%}" if accuracy == accuracy else ""  # NaN: nothing is right or wrong
        self.bar.update(self.task, completed=done, epoch=epoch, loss=loss, accuracy=shown, rate=rate)

    def on_evaluate(self, epoch: int) -> None:
        """Evaluation does not count as training."""
        self._evaluating = perf_counter()

    def on_epoch(self, record: EpochRecord) -> None:
        """Leave a line behind."""
        self.paused += perf_counter() - self._evaluating
        said = [f"loss {record.train_loss:.4f}"]
        if record.train_accuracy is not None:
            said.append(f"training accuracy {record.train_accuracy:.2%}")
        if record.validation:
            numbers = {name: value for name, value in record.validation.items() if isinstance(value, float)}
            said.append(
                "validation " + " ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
            )
        elif record.test_accuracy is not None:
            said.append(f"test accuracy {record.test_accuracy:.2%}")
            said += [
                f"{name.replace('_', ' ')} {value:.4f}"
                for name, value in record.test.items()
                if isinstance(value, float)
            ]
        said.append(f"{record.seconds:.1f} s")
        if record.epsilon is not None:
            said.append(f"epsilon {record.epsilon:.3g}")
        self.bar.console.print(f"epoch {record.epoch}: {', '.join(said)}", highlight=False, soft_wrap=True)
