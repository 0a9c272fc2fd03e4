"""`hesplit-native train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hesplit_native.choices import DatasetName, Division, Labels, Mode, Split
from hesplit_native.cli.fields import options_from_fields
from hesplit_native.cli.options import connector, load_dataset, set_threads
from hesplit_native.layer.published import PARAMETER_SETS
from hesplit_native.training.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from hesplit_native.training.result import RunResult


@dataclass(frozen=True)
class Source:
    """What is learnt from."""

    dataset: DatasetName = "synthetic"
    data_dir: Path | None = None
    split: Split = "paper"
    labels: Labels = "single"


@dataclass(frozen=True)
class Together:
    """Several clients that share the training data."""

    participants: int = 1
    mode: Mode = "turns"
    division: Division = "even"


@dataclass(frozen=True)
class Connection:
    """Where the server is."""

    server: str | None = None
    tls: Path | None = None
    client_id: str = "client"
    insecure: bool = False


@dataclass(frozen=True)
class Execution:
    """How the run is carried out."""

    threads: int = 1
    resume: bool = False
    output: Path | None = None


_HELP = {
    "dataset": "What to train on.",
    "data_dir": "The MIT-BIH records (else HESPLIT_MITDB, else a download); the PTB-XL folder or .npz (else HESPLIT_PTBXL).",
    "split": "Division of MIT-BIH; paper leaks between train and test.",
    "labels": "Of PTB-XL: the first class of a recording, or all of them (extra `train`).",
    "protocol": "Who computes what, and what is encrypted.",
    "packing": "Coefficient blocks (fast) or SIMD slots.",
    "model": "m2: 512 activations; base: two fully connected layers.",
    "convolutions": "2 to 8.",
    "seed": "Initial weights and order of the data; never the encryption.",
    "recipe": "paper: double softmax, SGD at the encrypted server.",
    "server_optimizer": "Overrides the recipe's; sealed: the client's choice.",
    "learning_rate": "Of both sides.",
    "flooding": "A fresh key per step, one key per run, or off.",
    "parameter_set": f"A published set: {', '.join(PARAMETER_SETS)}.",
    "security": "128 bits against classical or against quantum computers.",
    "statistical_bits": "Statistical security of the releases under one key.",
    "limit_batches": "Batches per epoch at most.",
    "on_overflow": "Clip and count, or stop.",
    "checkpoint_every": "Steps between two checkpoints; also after every epoch.",
    "accumulate": "splitways: batches whose dJ/dW are sent as one sum.",
    "layer": "The layer of the server's model (serve --train) to start from.",
    "accept_leak": "Allow batches smaller than the outputs, which give the server the activations.",
    "defences": "Differential privacy and decorrelation",
    "mechanism": "Noise on activations: each value on its own, or whole rows.",
    "activation_epsilon": "Of activations, per release.",
    "activation_clip": "Of values, or of rows' norms.",
    "gradient_epsilon": "Of dJ/dy, per release.",
    "gradient_clip": "Of its rows' norms times the batch size.",
    "label_epsilon": "Of labels, changed once.",
    "delta": "Of (epsilon, delta).",
    "decorrelation": "Weight in the loss of the distance correlation of signals and activations.",
    "participants": "Clients that share the training data.",
    "mode": "In turns, or in parallel with an average per epoch.",
    "division": "Training rows at random, or whole patients.",
    "server": "host:port of a `hesplit-native serve`; else in this process.",
    "tls": "Folder of `hesplit-native certs`, for mutual TLS.",
    "client_id": "Who this client is; with --tls the name in its certificate.",
    "insecure": "Connect to another machine without TLS.",
    "threads": "Threads of torch and of the core.",
    "resume": "Go on from the last checkpoint in the output directory.",
    "output": "Directory for metrics.json, model.safetensors, curves.png, checkpoints.",
}


@options_from_fields(_HELP)
def train_command(
    source: Source, config: RunConfig, together: Together, connection: Connection, execution: Execution
) -> None:
    """Train a network whose linear layer a server computes, on encrypted activations by default."""
    from rich.console import Console

    from hesplit_native.cli.paths import output_folder
    from hesplit_native.errors import ParameterError
    from hesplit_native.training.metrics import check_torchmetrics
    from hesplit_native.training.objectives import check_objective

    console = Console()
    set_threads(execution.threads)
    if connection.server is not None and not config.traits.is_split:
        raise ParameterError(f"--protocol {config.protocol} has no server; leave --server out")
    if source.labels == "multi":
        check_torchmetrics("macro AUROC (--labels multi)")
        check_objective(config, "labels")
    folder = output_folder(execution.output or _default_folder(source, config, together))
    data = load_dataset(source.dataset, source.data_dir, source.split, source.labels)
    result = _run(console, config, data, together, connection, folder, resume=execution.resume)
    _finish(console, result, data, folder)


def _default_folder(source: Source, config: RunConfig, together: Together) -> Path:
    return Path("runs") / "-".join(
        [
            source.dataset,
            *([source.split] if source.dataset == "mitbih" else []),
            *([source.labels] if source.labels == "multi" else []),
            config.protocol,
            *([config.parameter_set or config.packing] if config.releases else []),
            *([f"{together.participants}-{together.mode}"] if together.participants > 1 else []),
            f"seed{config.seed}",
        ]
    )


def _run(
    console: Console, config: RunConfig, data: Any, together: Together, connection: Connection, folder: Path, *,
    resume: bool,
) -> RunResult:  # fmt: skip
    from hesplit_native.training.progress import TrainingProgress
    from hesplit_native.training.run import train, train_together

    opener = None
    if connection.server is not None:
        opener = connector(
            connection.server, tls=connection.tls, client_id=connection.client_id, insecure=connection.insecure
        )
    checkpoints = folder / "checkpoints"
    progress = TrainingProgress(console, config.epochs)
    with progress:
        if together.participants > 1:
            return train_together(
                config, data, participants=together.participants, mode=together.mode, division=together.division,
                connect=opener, observer=progress, checkpoints=checkpoints, resume=resume,
            )  # fmt: skip
        connect = (lambda: opener(-1)) if opener is not None else None
        return train(config, data, connect=connect, observer=progress, checkpoints=checkpoints, resume=resume)


def _finish(console: Console, result: RunResult, data: Any, folder: Path) -> None:
    from rich.console import Console as ErrorConsole

    from hesplit_native.cli.terminal import one_line
    from hesplit_native.reproduce.published import published_table
    from hesplit_native.training import report

    values = report.metrics(result, data)
    written, refused = _write(result, data, folder, values)
    console.print(report.summary_table(values))
    by_class = report.class_table(values)
    if by_class is not None:
        console.print(by_class)
    published = published_table(values)
    if published is not None:
        console.print(published)
    if result.flooding == "off":
        console.print(
            "noise flooding: off. Gradients computed from decrypted logits are sent as they are; over many steps they let the server "
            "recover the secret key (IND-CPA^D, docs/security.md).",
            style="red",
        )
    for note in result.notes:
        if result.flooding != "off" or not note.startswith("noise flooding"):
            console.print(note, style="yellow", highlight=False, markup=False)
    if result.clipped:
        console.print(f"{result.clipped} samples were beyond the agreed ranges and were clipped.", style="yellow")
    if written:
        console.print(f"Written to {folder}: {', '.join(written)}", highlight=False)
    reasons = [f"stopped early: {result.interrupted}"] if result.interrupted else []
    reasons += [f"not everything could be written: {refused}"] if refused else []
    if reasons:
        line = one_line("; ".join(reasons))  # a server's words, perhaps
        ErrorConsole(stderr=True, soft_wrap=True).print(line, style="red", markup=False)
        raise typer.Exit(130 if result.interrupted and "by the user" in result.interrupted else 1)


def _write(result: RunResult, data: Any, folder: Path, values: dict[str, Any]) -> tuple[list[str], OSError | None]:
    """Write metrics, model and curves: the files that are there, and why the others are not, so that the rest can be shown."""
    from hesplit_native.training import report
    from hesplit_native.training.model_file import save_model

    assert result.architecture is not None
    written = []
    try:
        report.write_metrics(folder / "metrics.json", values)
        written.append("metrics.json")
        run = {key: values[key] for key in ("dataset", "split", "protocol", "config", "epochs", "versions")}
        save_model(
            folder / "model.safetensors", result.architecture, result.client_state, result.server_weight,
            result.server_bias, data.classes, run, data.labels,
        )  # fmt: skip
        written.append("model.safetensors")
        if result.history:
            report.write_curves(folder / "curves.png", values)
            written.append("curves.png")
    except OSError as error:
        return written, error
    return written, None
