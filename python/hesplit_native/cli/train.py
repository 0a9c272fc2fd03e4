"""`hesplit-native train`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer

from hesplit_native.cli.options import DatasetName, PackingName, SplitName, load_dataset, set_threads

if TYPE_CHECKING:
    from rich.console import Console

    from hesplit_native.training import EpochRecord


class ProtocolName(str, Enum):
    """Who computes what, and what is encrypted."""

    local = "local"
    plain = "plain"
    splitways = "splitways"


class RecipeName(str, Enum):
    """How the network is trained."""

    default = "default"
    paper = "paper"


class OptimizerName(str, Enum):
    """The optimiser of the server's layer."""

    adam = "adam"
    sgd = "sgd"


class OverflowName(str, Enum):
    """What happens to activations beyond the agreed ranges."""

    clip = "clip"
    error = "raise"


def train_command(
    dataset: DatasetName = typer.Option(DatasetName.synthetic, help="Heartbeats to train on."),
    data_dir: Path | None = typer.Option(
        None, help="Directory of the MIT-BIH records (else HESPLIT_MITDB, else a download)."
    ),
    split: SplitName = typer.Option(SplitName.paper, help="Division of MIT-BIH; paper leaks between train and test."),
    protocol: ProtocolName = typer.Option(ProtocolName.splitways, help="local, plain or encrypted."),
    packing: PackingName = typer.Option(PackingName.blocks, help="Coefficient blocks (fast) or SIMD slots."),
    batch_size: int = typer.Option(4, min=1),
    epochs: int = typer.Option(10, min=1),
    seed: int = typer.Option(0, min=0, help="Initial weights and order of the data; never the encryption."),
    recipe: RecipeName = typer.Option(RecipeName.default, help="paper: double softmax, SGD at the encrypted server."),
    server_optimizer: OptimizerName | None = typer.Option(None, help="Overrides the recipe's."),
    limit_batches: int | None = typer.Option(None, min=1, help="Batches per epoch at most."),
    on_overflow: OverflowName = typer.Option(OverflowName.clip, help="Clip and count, or stop."),
    threads: int = typer.Option(1, min=1, help="Threads of torch and of the core."),
    server: str | None = typer.Option(None, help="host:port of a `hesplit-native serve`; else in this process."),
    output: Path | None = typer.Option(None, help="Directory for metrics.json, model.safetensors and curves.png."),
) -> None:
    """Train a network whose linear layer a server computes, on encrypted activations by default."""
    from rich.console import Console

    from hesplit_native.errors import ParameterError
    from hesplit_native.training import RunConfig, train
    from hesplit_native.transport.tcp import connect

    console = Console()
    set_threads(threads)
    if server is not None and protocol is ProtocolName.local:
        raise ParameterError("--protocol local has no server; leave --server out")
    config = RunConfig(
        protocol=protocol.value,
        packing=packing.value,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        recipe=recipe.value,
        server_optimizer=server_optimizer.value if server_optimizer else None,
        limit_batches=limit_batches,
        on_overflow=on_overflow.value,
    )
    data = load_dataset(dataset, data_dir, split)
    folder = output or Path("runs") / "-".join(
        [dataset.value, *([split.value] if dataset is DatasetName.mitbih else []), protocol.value,
         *([packing.value] if protocol is ProtocolName.splitways else []), f"seed{seed}"]
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    channel = connect(server) if server else None
    progress = _Progress(console, config.epochs)
    try:
        with progress:
            result = train(config, data, channel=channel, observer=progress)
    finally:
        if channel is not None:
            channel.close()
    _finish(console, result, data, folder)


def _finish(console: Console, result: Any, data: Any, folder: Path) -> None:
    from rich.console import Console as ErrorConsole

    from hesplit_native import report
    from hesplit_native.checkpoint import save_model

    values = report.metrics(result, data)
    report.write_metrics(folder / "metrics.json", values)
    run = {key: values[key] for key in ("dataset", "split", "protocol", "config", "epochs", "versions")}
    save_model(
        folder / "model.safetensors", result.client_state, result.server_weight, result.server_bias, data.classes, run
    )
    written = ["metrics.json", "model.safetensors"]
    if result.history:
        report.write_curves(folder / "curves.png", values)
        written.append("curves.png")
    console.print(report.summary_table(values))
    published = report.published_table(values)
    if published is not None:
        console.print(published)
    if result.flooding == "off":
        console.print(
            "noise flooding: off. Gradients computed from decrypted logits are sent as they are; over many steps they let the server "
            "recover the secret key (IND-CPA^D, docs/security.md).",
            style="red",
        )
    if result.clipped:
        console.print(f"{result.clipped} samples were beyond the agreed ranges and were clipped.", style="yellow")
    console.print(f"Written to {folder}: {', '.join(written)}", highlight=False)
    if result.interrupted:
        ErrorConsole(stderr=True).print(f"stopped early: {result.interrupted}", style="red", markup=False)
        raise typer.Exit(130 if "by the user" in result.interrupted else 1)


class _Progress:
    """A bar over the whole run on a terminal; elsewhere a line per epoch."""

    def __init__(self, console: Console, epochs: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = console
        self.batches = 0
        self.started = perf_counter()
        self.paused = 0.0
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}  {task.fields[rate]:.0f} batches/s"
            ),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=None, epoch=1, loss=float("nan"), accuracy=0.0, rate=0.0)

    def __enter__(self) -> _Progress:
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
        self.bar.update(self.task, completed=done, epoch=epoch, loss=loss, accuracy=accuracy, rate=rate)

    def on_evaluate(self, epoch: int) -> None:
        """Evaluation does not count as training."""
        self._evaluating = perf_counter()

    def on_epoch(self, record: EpochRecord) -> None:
        """Leave a line behind."""
        self.paused += perf_counter() - self._evaluating
        self.bar.console.print(
            f"epoch {record.epoch}: loss {record.train_loss:.4f}, training accuracy {record.train_accuracy:.2%}, "
            f"test accuracy {record.test_accuracy:.2%}, {record.seconds:.1f} s",
            highlight=False,
        )
