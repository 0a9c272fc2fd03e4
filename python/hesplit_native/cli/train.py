"""`hesplit-native train`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hesplit_native.cli.options import DatasetName, PackingName, SplitName, connector, load_dataset, set_threads

if TYPE_CHECKING:
    from rich.console import Console


class ProtocolName(str, Enum):
    """Who computes what, and what is encrypted."""

    local = "local"
    vanilla = "vanilla"
    plain = "plain"
    splitways = "splitways"
    hesplit = "hesplit"
    sealed = "sealed"


class ModelName(str, Enum):
    """The network."""

    m1 = "m1"
    m2 = "m2"
    base = "base"


class RecipeName(str, Enum):
    """How the network is trained."""

    default = "default"
    paper = "paper"


class OptimizerName(str, Enum):
    """The optimiser of the server's layer."""

    adam = "adam"
    sgd = "sgd"
    momentum = "momentum"


class FloodingName(str, Enum):
    """How released decryptions are flooded."""

    step = "step"
    run = "run"
    off = "off"


class OverflowName(str, Enum):
    """What happens to activations beyond the agreed ranges."""

    clip = "clip"
    error = "raise"


class MechanismName(str, Enum):
    """How activations are noised (privacy/defences)."""

    values = "values"
    laplace = "laplace"
    gaussian = "gaussian"


_DP = "Differential privacy and decorrelation"


class ModeName(str, Enum):
    """How several participants train together."""

    turns = "turns"
    parallel = "parallel"


class DivisionName(str, Enum):
    """How the training data is divided among participants."""

    even = "even"
    patients = "patients"


def train_command(
    dataset: DatasetName = typer.Option(DatasetName.synthetic, help="What to train on."),
    data_dir: Path | None = typer.Option(
        None,
        help="The MIT-BIH records (else HESPLIT_MITDB, else a download); the PTB-XL folder or .npz (else HESPLIT_PTBXL).",
    ),
    split: SplitName = typer.Option(SplitName.paper, help="Division of MIT-BIH; paper leaks between train and test."),
    protocol: ProtocolName = typer.Option(ProtocolName.splitways, help="Who computes what, and what is encrypted."),
    packing: PackingName = typer.Option(PackingName.blocks, help="Coefficient blocks (fast) or SIMD slots."),
    model: ModelName = typer.Option(ModelName.m1, help="m2: 512 activations; base: two fully connected layers."),
    convolutions: int = typer.Option(2, min=2, max=8),
    batch_size: int = typer.Option(8, min=1),
    epochs: int = typer.Option(10, min=1),
    seed: int = typer.Option(0, min=0, help="Initial weights and order of the data; never the encryption."),
    recipe: RecipeName = typer.Option(RecipeName.default, help="paper: double softmax, SGD at the encrypted server."),
    server_optimizer: OptimizerName | None = typer.Option(
        None, help="Overrides the recipe's; sealed: the client's choice."
    ),
    flooding: FloodingName = typer.Option(FloodingName.step, help="A fresh key per step, one key per run, or off."),
    parameter_set: str | None = typer.Option(
        None, help="A published set: 8192-60, 8192-40, 4096-20, 4096-40, 2048-18, S1, S2."
    ),
    accumulate: int = typer.Option(1, min=1, help="splitways: batches whose dJ/dW are sent as one sum."),
    accept_leak: bool = typer.Option(
        False, "--accept-leak", help="Allow batches smaller than the outputs, which give the server the activations."
    ),
    mechanism: MechanismName = typer.Option(
        MechanismName.values, help="Noise on activations: each value on its own, or whole rows.", rich_help_panel=_DP
    ),
    activation_epsilon: float | None = typer.Option(None, help="Of activations, per release.", rich_help_panel=_DP),
    activation_clip: float = typer.Option(1.0, help="Of values, or of rows' norms.", rich_help_panel=_DP),
    gradient_epsilon: float | None = typer.Option(None, help="Of dJ/dy, per release.", rich_help_panel=_DP),
    gradient_clip: float = typer.Option(1.0, help="Of its rows' norms times the batch size.", rich_help_panel=_DP),
    label_epsilon: float | None = typer.Option(None, help="Of labels, changed once.", rich_help_panel=_DP),
    delta: float = typer.Option(1e-5, help="Of (epsilon, delta).", rich_help_panel=_DP),
    decorrelation: float = typer.Option(
        0.0, help="Weight in the loss of the distance correlation of signals and activations.", rich_help_panel=_DP
    ),
    limit_batches: int | None = typer.Option(None, min=1, help="Batches per epoch at most."),
    on_overflow: OverflowName = typer.Option(OverflowName.clip, help="Clip and count, or stop."),
    threads: int = typer.Option(1, min=1, help="Threads of torch and of the core."),
    participants: int = typer.Option(1, min=1, help="Clients that share the training data."),
    mode: ModeName = typer.Option(ModeName.turns, help="In turns, or in parallel with an average per epoch."),
    division: DivisionName = typer.Option(DivisionName.even, help="Training rows at random, or whole patients."),
    server: str | None = typer.Option(None, help="host:port of a `hesplit-native serve`; else in this process."),
    tls: Path | None = typer.Option(None, help="Folder of `hesplit-native certs`, for mutual TLS."),
    client_id: str = typer.Option("client", help="Who this client is; with --tls the name in its certificate."),
    insecure: bool = typer.Option(False, "--insecure", help="Connect to another machine without TLS."),
    checkpoint_every: int = typer.Option(1000, min=1, help="Steps between two checkpoints; also after every epoch."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint in the output directory."),
    output: Path | None = typer.Option(
        None, help="Directory for metrics.json, model.safetensors, curves.png, checkpoints."
    ),
) -> None:
    """Train a network whose linear layer a server computes, on encrypted activations by default."""
    from rich.console import Console

    from hesplit_native.cli.paths import output_folder
    from hesplit_native.cli.progress import TrainingProgress
    from hesplit_native.errors import ParameterError
    from hesplit_native.training.defences import Defences
    from hesplit_native.training.participants import train_together
    from hesplit_native.training.run import RunConfig, train

    console = Console()
    set_threads(threads)
    if server is not None and protocol is ProtocolName.local:
        raise ParameterError("--protocol local has no server; leave --server out")
    if resume and participants > 1:
        raise ParameterError("runs of several participants cannot be resumed; leave --resume out")
    config = RunConfig(
        protocol=protocol.value,
        packing=packing.value,
        model=model.value,
        convolutions=convolutions,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        recipe=recipe.value,
        server_optimizer=server_optimizer.value if server_optimizer else None,
        flooding=flooding.value,
        parameter_set=parameter_set,
        limit_batches=limit_batches,
        on_overflow=on_overflow.value,
        checkpoint_every=checkpoint_every,
        accumulate=accumulate,
        accept_leak=accept_leak,
        defences=Defences(
            mechanism=mechanism.value,
            activation_epsilon=activation_epsilon,
            activation_clip=activation_clip,
            gradient_epsilon=gradient_epsilon,
            gradient_clip=gradient_clip,
            label_epsilon=label_epsilon,
            delta=delta,
            decorrelation=decorrelation,
        ),
    )
    data = load_dataset(dataset.value, data_dir, split.value)
    encrypted = protocol in (ProtocolName.splitways, ProtocolName.hesplit)
    folder = output or Path("runs") / "-".join(
        [dataset.value, *([split.value] if dataset is DatasetName.mitbih else []), protocol.value,
         *([parameter_set or packing.value] if encrypted else []),
         *([f"{participants}-{mode.value}"] if participants > 1 else []), f"seed{seed}"]
    )  # fmt: skip
    output_folder(folder)
    opener = connector(server, tls=tls, client_id=client_id, insecure=insecure) if server else None
    progress = TrainingProgress(console, config.epochs)
    with progress:
        if participants > 1:
            result = train_together(
                config, data, participants=participants, mode=mode.value, division=division.value, connect=opener,
                observer=progress,
            )  # fmt: skip
        else:
            result = train(
                config, data, connect=(lambda: opener(-1)) if opener else None, observer=progress,
                checkpoints=folder / "checkpoints", resume=resume,
            )  # fmt: skip
    _finish(console, result, data, folder)


def _finish(console: Console, result: Any, data: Any, folder: Path) -> None:
    from rich.console import Console as ErrorConsole

    from hesplit_native.training import report
    from hesplit_native.training.model_file import save_model

    values = report.metrics(result, data)
    report.write_metrics(folder / "metrics.json", values)
    run = {key: values[key] for key in ("dataset", "split", "protocol", "config", "epochs", "versions")}
    save_model(
        folder / "model.safetensors", result.architecture, result.client_state, result.server_weight,
        result.server_bias, data.classes, run,
    )  # fmt: skip
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
    for note in result.notes:
        if result.flooding != "off" or not note.startswith("noise flooding"):
            console.print(note, style="yellow", highlight=False, markup=False)
    if result.clipped:
        console.print(f"{result.clipped} samples were beyond the agreed ranges and were clipped.", style="yellow")
    console.print(f"Written to {folder}: {', '.join(written)}", highlight=False)
    if result.interrupted:
        ErrorConsole(stderr=True).print(f"stopped early: {result.interrupted}", style="red", markup=False)
        raise typer.Exit(130 if "by the user" in result.interrupted else 1)
