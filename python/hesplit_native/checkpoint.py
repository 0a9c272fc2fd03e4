"""The model file: safetensors with readable metadata. No pickle."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hesplit_native.errors import DataError
from hesplit_native.models import ACTIVATIONS, m1_client

FORMAT = "hesplit_native-1"


@dataclass(frozen=True)
class Model:
    """A trained network: the client's convolutions, and the linear layer where this process held it."""

    convolutions: nn.Sequential
    linear: nn.Linear | None
    classes: tuple[str, ...]
    metadata: dict[str, Any]


def save_model(
    path: Path,
    client_state: dict[str, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    classes: tuple[str, ...],
    metadata: dict[str, Any],
) -> None:
    """Write a model atomically."""
    from safetensors.torch import save_file

    tensors = {f"client.{name}": value.contiguous() for name, value in client_state.items()}
    if weight is not None and bias is not None:
        tensors |= {"linear.weight": weight.contiguous(), "linear.bias": bias.contiguous()}
    text = {"format": FORMAT, "model": "M1", "classes": json.dumps(list(classes)), "run": json.dumps(metadata)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata=text)
    os.replace(temporary, path)


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
    try:
        classes = tuple(json.loads(metadata["classes"]))
        run = json.loads(metadata["run"])
        convolutions = m1_client()
        prefix = "client."
        state = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        convolutions.load_state_dict(state)
        linear = None
        if "linear.weight" in tensors:
            linear = nn.Linear(ACTIVATIONS, len(classes))
            linear.load_state_dict({"weight": tensors["linear.weight"], "bias": tensors["linear.bias"]})
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is damaged or of another version: {error}") from error
    return Model(convolutions, linear, classes, run)


@torch.no_grad()
def activations(model: Model, x: Tensor) -> Tensor:
    """Activations float32 [n, 256] of signals [n, 1, 128]."""
    result: Tensor = model.convolutions(x)
    return result
