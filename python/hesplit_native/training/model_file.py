"""The model file: safetensors with readable metadata. No pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from hesplit_native.choices import Labels
from hesplit_native.errors import DataError
from hesplit_native.files import write_atomically
from hesplit_native.training.models import Architecture

FORMAT = "hesplit_native-2"
_ROWS = 4096  # computed at once: what convolutions give on the way is sixteen times as large as what comes in


@dataclass(frozen=True)
class Model:
    """A trained network: the client's convolutions and head, and the server's layer where this process held it."""

    architecture: Architecture
    body: nn.Sequential
    linear: nn.Linear | None
    head: nn.Sequential
    classes: tuple[str, ...]
    metadata: dict[str, Any]
    labels: Labels = "single"  # whether a row is of one class, or of any number of them


def save_model(
    path: Path,
    architecture: Architecture,
    client_state: dict[str, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    classes: tuple[str, ...],
    metadata: dict[str, Any],
    labels: Labels = "single",
) -> None:
    """Write a model atomically, readable only by its owner. `client_state` is `training.client_state`."""
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in client_state.items()}
    if weight is not None and bias is not None:
        tensors |= {"linear.weight": weight.contiguous(), "linear.bias": bias.contiguous()}
    text = {
        "format": FORMAT,
        "architecture": json.dumps(asdict(architecture)),
        "classes": json.dumps(list(classes)),
        "labels": labels,
        "run": json.dumps(metadata),
    }
    write_atomically(path, save(tensors, metadata=text))


def load_model(path: Path) -> Model:
    """Read what `save_model` wrote; DataError for any other file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"{path} does not exist; train first, or name the model.safetensors of a run with --model")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} is not a model of this package (format {metadata.get('format')!r}, expected {FORMAT!r})"
        )
    labels = metadata.get("labels", "single")
    if labels not in get_args(Labels):
        raise DataError(f"{path} has labels of the kind {labels!r}, which this version does not know")
    try:
        classes = tuple(json.loads(metadata["classes"]))
        run = json.loads(metadata["run"])
        architecture = Architecture(**json.loads(metadata["architecture"]))
        body, head = architecture.body(0), architecture.head(0)
        for module, prefix in ((body, "body."), (head, "head.")):
            module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        linear = None
        if "linear.weight" in tensors:
            linear = nn.Linear(architecture.activations, architecture.outputs)
            linear.load_state_dict({"weight": tensors["linear.weight"], "bias": tensors["linear.bias"]})
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} is damaged or of another version: {error}") from error
    return Model(architecture, body, linear, head, classes, run, labels)


@torch.no_grad()
def activations(model: Model, x: Tensor) -> Tensor:
    """Activations float32 [n, activations] of signals [n, channels, samples]."""
    if x.shape[1:] != (model.architecture.in_channels, model.architecture.samples):
        raise DataError(
            f"the model takes signals of [{model.architecture.in_channels}, {model.architecture.samples}], "
            f"these are {list(x.shape[1:])}"
        )
    return torch.cat([model.body(rows) for rows in torch.split(x, _ROWS)])
