"""What a run leaves behind: metrics.json, curves.png and a table for the terminal."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesplit_native import _core
from hesplit_native.files import SHARED, write_atomically
from hesplit_native.layer.parameters import describe_security
from hesplit_native.plots import pyplot

if TYPE_CHECKING:
    from rich.table import Table

    from hesplit_native.data.dataset import Dataset
    from hesplit_native.training.result import RunResult


def metrics(result: RunResult, dataset: Dataset) -> dict[str, Any]:
    """Everything measured, as plain values. Accuracies are fractions, times seconds, sizes bytes."""
    source = {
        "dataset": dataset.name, "split": dataset.split, "train_rows": len(dataset.train_y), "test_rows": len(dataset.test_y)
    }  # fmt: skip
    if dataset.labels == "multi":
        source |= {"labels": dataset.labels, "test": result.test}
    return _metrics(result, source)


def own_metrics(result: RunResult, train_rows: int, validation_rows: int, test_rows: int) -> dict[str, Any]:
    """The same of a run on anybody's data: what was measured on validation rows after the best epoch, and on test rows in the end."""
    source = {
        "dataset": "own data", "split": "own data", "train_rows": train_rows, "validation_rows": validation_rows,
        "test_rows": test_rows, "best_epoch": result.best_epoch, "validation": result.validation, "test": result.test,
    }  # fmt: skip
    return _metrics(result, source) | {"test_accuracy": result.test.get("accuracy")}


def _metrics(result: RunResult, source: dict[str, Any]) -> dict[str, Any]:
    last = [record.test_accuracy for record in result.history[-3:] if record.test_accuracy is not None]
    batches = max(result.batches, 1)
    return {
        "protocol": result.protocol,
        **source,
        "config": asdict(result.config),
        "server_optimizer": result.config.optimizer,
        "test_accuracy": result.test_accuracy,
        "test_accuracy_last_three": sum(last) / len(last) if last else None,
        "history": [asdict(record) for record in result.history],
        "epochs": result.epochs,
        "batches": result.batches,
        "batches_per_epoch": result.batches_per_epoch,
        "train_seconds": result.train_seconds,
        "seconds_by_phase": result.seconds_by_phase,
        "server_seconds_by_phase": result.server_seconds_by_phase,
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "bytes_per_batch": (result.bytes_up + result.bytes_down) / batches,
        "setup_bytes_up": result.setup_bytes_up,
        "setup_bytes_down": result.setup_bytes_down,
        "evaluation_bytes_up": result.evaluation_bytes_up,
        "evaluation_bytes_down": result.evaluation_bytes_down,
        "parameters": result.parameters,
        "flooding": result.flooding,
        "clipped": result.clipped,
        "flooding_deviation": result.flooding_deviation,
        "participants": result.participants,
        "epsilon": result.epsilon,
        "notes": list(result.notes),
        "interrupted": result.interrupted,
        **environment(),
        "command": " ".join(["hesplit-native", *sys.argv[1:]]),
    }


def environment() -> dict[str, Any]:
    """Versions and machine."""
    import torch

    return {
        "versions": {
            "hesplit_native": _core.__version__,
            "SEAL": _core.SEAL_VERSION,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "cpu_features": _core.cpu_features(),
            "torch_threads": torch.get_num_threads(),
            "threads": _core.num_threads(),
        },
    }


def make_output(folder: Path) -> None:
    """A folder for what a run leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)


def write_metrics(path: Path, values: dict[str, Any]) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode(), mode=SHARED)


def write_curves(path: Path, values: dict[str, Any]) -> None:
    """Loss and accuracy per epoch as a PNG."""
    plt = pyplot()

    history = values["history"]
    epochs = [record["epoch"] for record in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(epochs, [r["train_loss"] for r in history], marker="o", color="#b3503c")
    left.set(xlabel="epoch", ylabel="mean training loss", title="Loss")
    left.set_ylim(bottom=0)
    right.plot(epochs, [100 * r["train_accuracy"] for r in history], marker="o", color="#8a8a8a", label="training")
    right.plot(epochs, [100 * r["test_accuracy"] for r in history], marker="o", color="#2f6690", label="test")
    several = "labels" in values
    aurocs = [r["test"].get("auroc") for r in history]
    if any(value is not None for value in aurocs):
        scaled = [math.nan if value is None else 100 * value for value in aurocs]
        right.plot(epochs, scaled, marker="o", color="#b3503c", label="test, macro AUROC")
    title = "Labels that are right, and AUROC" if several else "Accuracy"
    right.set(xlabel="epoch", ylabel="%" if several else "accuracy (%)", title=title)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    config = values["config"]
    packing = f", {values['parameters']['packing']}" if values["parameters"] else ""
    figure.suptitle(f"{data_name(values)}, {values['protocol']}{packing}, batch size {config['batch_size']}")
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130), mode=SHARED)
    plt.close(figure)


def data_name(values: dict[str, Any]) -> str:
    """The data set, with its split where there are several."""
    dataset, split = values["dataset"], values["split"]
    return str(dataset) if split == dataset else f"{dataset} ({split} split)"


def size(count: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def summary_table(values: dict[str, Any]) -> Table:
    """Accuracy, time, bytes and where they went."""
    from rich.table import Table

    table = Table(title=f"{values['protocol']} on {data_name(values)}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("in all", justify="right")
    table.add_column("per epoch", justify="right")
    table.add_column("per batch", justify="right")
    epochs = values["batches"] / max(values["batches_per_epoch"], 1)
    batches = max(values["batches"], 1)
    if "validation" in values:
        _add_scores(table, values)
    else:
        several = "labels" in values
        accuracy, last = values["test_accuracy"], values["test_accuracy_last_three"]
        table.add_row(
            "test accuracy of labels" if several else "test accuracy",
            f"{100 * accuracy:.2f} %" if accuracy is not None else "-",
            "",
            "",
        )
        if values["epochs"] >= 3:
            table.add_row("  mean of the last three epochs", f"{100 * last:.2f} %", "", "")
        if several:
            _add_scores(table, values)

    def row(name: str, seconds: float) -> None:
        table.add_row(
            name, f"{seconds:.2f} s", f"{seconds / max(epochs, 1e-9):.2f} s", f"{1e3 * seconds / batches:.3f} ms"
        )

    row("training time", values["train_seconds"])
    for name, seconds in sorted(values["seconds_by_phase"].items(), key=lambda item: -item[1]):
        row(f"  {name}", seconds)
    for name, seconds in values["server_seconds_by_phase"].items():
        if name != "evaluation":
            row(f"    server: {name}", seconds)
    for name, key in (("bytes up", "bytes_up"), ("bytes down", "bytes_down")):
        table.add_row(name, size(values[key]), size(values[key] / max(epochs, 1e-9)), size(values[key] / batches))
    table.add_row("  setup, once (up)", size(values["setup_bytes_up"]), "", "")
    parameters = values["parameters"]
    if parameters:
        bits = "+".join(str(b) for b in parameters["modulus_bits"])
        table.add_row("parameters", f"{parameters['packing']}, N={parameters['ring_degree']}", "", "")
        table.add_row("  modulus", f"{bits} bits", "", "")
        table.add_row("  security", describe_security(parameters["security"]), "", "")
        table.add_row("  error bound", f"{parameters['error_bound']:g}", "", "")
        if values["flooding_deviation"]:
            table.add_row("  flooding of logits", f"deviation up to {values['flooding_deviation']:.2g}", "", "")
        table.add_row("samples clipped", str(values["clipped"]), "", "")
    return table


def _add_scores(table: Table, values: dict[str, Any]) -> None:
    """What was measured on validation and test rows."""
    for what in ("validation", "test"):
        for name, value in values.get(what, {}).items():
            if isinstance(value, float) and not (name == "accuracy" and "labels" in values):  # there already
                mean = ", macro mean" if name == "auroc" else ""
                table.add_row(f"{what} {name.replace('_', ' ')}{mean}", f"{value:.4f}", "", "")
    if values.get("best_epoch"):
        table.add_row("best epoch", f"{values['best_epoch']} of {values['epochs']}", "", "")


def class_table(values: dict[str, Any]) -> Table | None:
    """Values per class, of test rows if there are any; None where none were measured."""
    from rich.table import Table

    what = "test" if values.get("test", {}).get("per_class") else "validation"
    classes = values.get(what, {}).get("per_class")
    if not classes:
        return None
    table = Table(title=f"{what} rows by class", title_justify="left")
    table.add_column("class")
    names = list(next(iter(classes.values())))
    for name in names:
        table.add_column(name, justify="right")
    for label, scores in classes.items():
        shown = (
            "-" if scores[n] is None else f"{scores[n]:.3f}" if isinstance(scores[n], float) else str(scores[n])
            for n in names
        )
        table.add_row(label, *shown)
    return table
