"""`hesplit-native predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hesplit_native.choices import DatasetName, Packing, Split
from hesplit_native.cli.options import load_dataset, set_threads

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from hesplit_native.data.recording_rows import Rows
    from hesplit_native.protocols.frozen_client import Connection
    from hesplit_native.training.model_file import Model


def predict_command(
    model: Path = typer.Option(..., help="The model.safetensors of a run."),
    record: Path | None = typer.Option(
        None, help="A recording: WFDB (with annotations or without), .edf, .csv or .npy."
    ),
    lead: str | None = typer.Option(None, help="Which lead of it, for models of one; else MLII."),
    rate: float | None = typer.Option(None, help="Samples a second, of .csv and .npy, which do not say it."),
    dataset: DatasetName = typer.Option("synthetic", help="Whose test set to classify, without --record."),
    data_dir: Path | None = typer.Option(None, help="Directory of the MIT-BIH records."),
    split: Split = typer.Option("paper"),
    encrypted: bool = typer.Option(True, "--encrypted/--plain", help="Compute the linear layer on ciphertexts or not."),
    packing: Packing = typer.Option("blocks"),
    server: list[str] | None = typer.Option(
        None, help="host:port of `hesplit-native serve --model` with the linear layer; several are replicas."
    ),
    layer: str | None = typer.Option(None, help="Its name there, if several layers have this shape."),
    tls: Path | None = typer.Option(None, help="Folder of `hesplit-native certs`, for mutual TLS."),
    client_id: str = typer.Option("client", help="Who this client is; with --tls the name in its certificate."),
    insecure: bool = typer.Option(False, "--insecure", help="Connect to another machine without TLS."),
    output: Path | None = typer.Option(None, help="CSV file for the predictions."),
    picture: Path | None = typer.Option(None, help="PNG, SVG or PDF of the recording with its classes."),
    threads: int = typer.Option(1, min=1),
) -> None:
    """Classify a recording or a test set with a trained model.

    A recording's beats are those that are annotated, or else found; models of twelve leads classify windows of ten seconds.
    """
    import torch
    from rich.console import Console

    from hesplit_native.cli.paths import output_file
    from hesplit_native.errors import DataError, ParameterError
    from hesplit_native.training.model_file import activations, load_model
    from hesplit_native.training.prediction_picture import picture_format, write_picture
    from hesplit_native.training.predictions import Predictions, accuracy, prediction_table, write_predictions

    set_threads(threads)
    if record is None and (lead, rate, picture) != (None, None, None):
        raise ParameterError("--lead, --rate and --picture go with --record")
    if output is not None:
        output_file(output)
    if picture is not None:
        picture_format(picture)
        output_file(picture)
    trained = load_model(model)
    if trained.linear is None and not server:
        raise DataError(
            f"{model} holds the convolutions only: the linear layer stayed with the server it was trained with. Let that serve it "
            "(hesplit-native serve --model), and name it with --server"
        )
    console = Console()
    rows = _rows(console, trained, record, lead, rate) if record is not None else None
    if rows is not None:
        x, y = torch.from_numpy(rows.x), torch.from_numpy(rows.labels) if rows.labels is not None else None
        called = rows.called
    else:
        data = load_dataset(dataset, data_dir, split, trained.labels)
        x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
        called = "beats" if trained.architecture.in_channels == 1 else "recordings"
    with torch.no_grad():
        features = activations(trained, x)
        if server:
            from hesplit_native.protocols.frozen_client import connect

            with connect(server, tls=tls, client_id=client_id, insecure=insecure) as connection:
                found = torch.from_numpy(connection.multiply(_layer(connection, trained, layer), features.numpy()))
        else:
            found = _logits(trained, features, packing if encrypted else None)
        logits = trained.head(found.float())
    said = Predictions(trained.classes, logits, trained.labels, y, *(_places(rows) if rows is not None else ()))
    console.print(prediction_table(said, called))
    right = accuracy(said)
    if right is not None:
        console.print(f"accuracy {right:.2%}", highlight=False)
    if output is not None:
        write_predictions(output, said)
    if picture is not None and rows is not None:
        write_picture(picture, rows, said)


def _layer(connection: Connection, model: Model, name: str | None) -> str:
    """The layer of that name at the server, or the only one of the model's shape."""
    from hesplit_native.errors import ParameterError

    shape = (model.architecture.activations, model.architecture.outputs)
    described = {name: connection.describe(name)} if name is not None else connection.layers
    fitting = [name for name, layer in described.items() if (layer.in_features, layer.out_features) == shape]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(f"{name} ({layer.shape})" for name, layer in list(described.items())[:8])
    raise ParameterError(
        f"the model needs a layer {shape[0]} -> {shape[1]}; the server has {there}"
        + ("; choose one with --layer" if fitting else "")
    )


def _rows(console: Console, model: Model, path: Path, lead: str | None, rate: float | None) -> Rows:
    """What the model takes of a recording; says what was done to it."""
    from rich.progress import track

    from hesplit_native.data.recording_rows import leads_of, rows_of
    from hesplit_native.data.recordings import read_recording

    leads = leads_of(model.architecture.in_channels, model.architecture.samples, lead)
    recording = read_recording(path, leads, sampling_rate=rate)
    rows = rows_of(
        recording,
        progress=lambda pieces: track(
            pieces, description="Looking for beats", transient=True, console=console, disable=not console.is_terminal
        ),
    )
    said = f"{recording.path.name}: {recording.seconds:.1f} s of {', '.join(leads)}"
    for note in (said, *rows.notes):
        console.print(note, highlight=False, markup=False)
    return rows


def _places(rows: Rows) -> tuple[Any, Any]:
    """Where rows are in their file, in samples and in seconds."""
    return rows.recording.in_file(rows.samples), rows.samples / rows.recording.sampling_rate


def _logits(model: Model, x: Tensor, packing: Any) -> Tensor:
    import torch

    linear = model.linear
    assert linear is not None
    with torch.no_grad():
        if packing is None:
            plain: Tensor = linear(x)
            return plain
    from hesplit_native.layer.keys import SecretKey
    from hesplit_native.layer.linear import LinearClient, LinearServer
    from hesplit_native.layer.parameters import Parameters

    rows = 1024
    params = Parameters.recommend(
        in_features=x.shape[1], out_features=len(linear.weight), batch_size=min(rows, len(x)), packing=packing
    )
    client = LinearClient(SecretKey.generate(params), *reversed(linear.weight.shape))
    server = LinearServer(client.public_material(), linear.weight, linear.bias)
    parts = [client.decrypt(server.forward(client.encrypt(part))) for part in torch.split(x, rows)]
    return torch.cat([torch.from_numpy(part) for part in parts])
