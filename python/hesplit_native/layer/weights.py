"""Weights of linear layers from a module, a state dict or a safetensors file: checked, and as [out_features, in_features]."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.errors import DataError, ParameterError, shortened

Float = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_SUFFIX = ".weight"
_SAID = 8  # problems of one error
_ALONE = "linear"  # the name of a layer whose tensors are called "weight" and "bias"
_FLOATING = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_SAFETENSORS_DTYPES = {"F64", "F32", "F16", "BF16"}
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_CONVERSION = 'convert it: safetensors.torch.save_file(torch.load(path, map_location="cpu", weights_only=True), "weights.safetensors")'


@dataclass(frozen=True, eq=False)
class Weights:
    """One linear layer: `weight` float32 or float64 [out_features, in_features], `bias` [out_features] or None."""

    name: str
    weight: Float
    bias: Float | None


@dataclass(frozen=True, eq=False)
class _Found:
    """A tensor that may be the weight of a linear layer, not read yet."""

    shape: tuple[int, ...]
    dtype: str
    floating: bool
    read: Callable[[], Tensor]


def weights_of(
    source: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str],
    layers: str | Iterable[str] = "*",
    *,
    transposed: str | Iterable[str] = (),
) -> Iterator[Weights]:
    """The linear layers of a model, one after the other.

    Of a module those of the types `torch.nn.Linear` and `transformers.pytorch_utils.Conv1D`. Of tensors by name and of a file: every
    matrix of floating numbers that is called ``<layer>.weight``, with ``<layer>.bias`` beside it where there is one. Embeddings
    look the same there: leave them out by `layers`.

    Parameters
    ----------
    source
        A module; tensors by name; a ``.safetensors`` file; or a folder of them, whose names must differ.
    layers
        Patterns, as of shells, for the names of layers.
    transposed
        Patterns for the layers of tensors and files that are stored as [in_features, out_features], as transformers' Conv1D (GPT-2)
        stores them; of a module the type says so.

    Raises
    ------
    DataError
        A file that is missing, damaged or a pickle; a tensor that is quantised, sparse, of another dtype, empty, not there, or holds
        NaN or infinity, with its name.
    ParameterError
        No layer is chosen; with those that there are.
    """
    if isinstance(source, nn.Module):
        found, turned = _of_module(source)
    else:
        found = _of_file(Path(source)) if isinstance(source, (str, os.PathLike)) else _of_tensors(source)
        turned = {name for name in _layer_names(found) if _matches(name, transposed)}
    names = _layer_names(found)
    chosen = [name for name in names if _matches(name, layers)]
    if not chosen:
        what = (
            f"there are {shortened(names)}"
            if names
            else f"there is no linear layer, only {shortened(found) if found else 'nothing'}"
        )
        raise ParameterError(f"no layer is chosen; {what}")
    # What can be said without reading numbers is said at once, and before anything is read.
    problems = [problem for name in chosen for problem in _problems(name, found, name in turned)]
    if problems:
        raise DataError(
            "; ".join(problems[:_SAID]) + (f"; and {len(problems) - _SAID} more" if problems[_SAID:] else "")
        )
    for name in chosen:
        yield _weights(name, found, name in turned)


def _layer_names(found: Mapping[str, _Found]) -> list[str]:
    """Names of layers: their weights are matrices, of whatever numbers."""
    matrices = [name for name, tensor in found.items() if len(tensor.shape) == 2]
    return [_layer(name) for name in matrices if name.endswith(_SUFFIX) or name == "weight"]


def _layer(tensor: str) -> str:
    return tensor.removesuffix(_SUFFIX) if tensor.endswith(_SUFFIX) else _ALONE


def _keys(name: str, found: Mapping[str, _Found]) -> tuple[str, str | None]:
    """What the weight of a layer is called, and its bias."""
    weight = name + _SUFFIX if name + _SUFFIX in found else "weight"
    bias = weight.removesuffix("weight") + "bias"
    return weight, bias if bias in found else None


def _problems(name: str, found: Mapping[str, _Found], turned: bool) -> Iterator[str]:
    """Why a layer cannot be served, as far as dtypes and shapes say so."""
    weight, bias = _keys(name, found)
    for key in (weight, bias):
        if key is None:
            continue
        if not found[key].floating:
            yield (
                f"{key}: {found[key].dtype} is not served (convert quantised, integer and 8-bit weights to float32, float16 or "
                "bfloat16, or leave the layer out)"
            )
        elif 0 in found[key].shape:
            yield f"{key}: it is empty, {list(found[key].shape)}"
    inputs, outputs = found[weight].shape if turned else found[weight].shape[::-1]
    if bias is not None and found[bias].shape != (outputs,):
        turn = "" if turned else f" (a weight stored as [in, out] is read with transposed={name!r}, --transposed)"
        yield f"{bias}: of shape {list(found[bias].shape)}, where {weight} gives {outputs} outputs for {inputs} inputs{turn}"


def _weights(name: str, found: Mapping[str, _Found], turned: bool) -> Weights:
    weight, bias = _keys(name, found)
    matrix = _numbers(weight, found[weight])
    return Weights(name, matrix.T if turned else matrix, None if bias is None else _numbers(bias, found[bias]))


def _numbers(name: str, tensor: _Found) -> Float:
    """A tensor's values, float32 or float64; DataError for NaN and infinity."""
    value = tensor.read()
    value = value if value.dtype == torch.float64 else value.float()
    numbers: Float = value.contiguous().numpy()
    if not np.isfinite(numbers).all():
        where = tuple(int(index) for index in np.argwhere(~np.isfinite(numbers))[0])
        raise DataError(f"{name}: it holds {numbers[where]} at {list(where)}")
    return numbers


# Where they are


def _of_module(module: nn.Module) -> tuple[dict[str, _Found], set[str]]:
    found: dict[str, _Found] = {}
    turned = set()
    for name, layer in module.named_modules():
        conv1d = any(is_conv1d(kind) for kind in type(layer).__mro__)
        if not (isinstance(layer, nn.Linear) or conv1d) or getattr(layer, "weight", None) is None:
            continue
        name = name or _ALONE
        if conv1d:
            turned.add(name)
        found |= _of_tensors({name + _SUFFIX: layer.weight})
        if getattr(layer, "bias", None) is not None:
            found |= _of_tensors({name + ".bias": layer.bias})
    return found, turned


def _of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, _Found]:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise DataError(f"{name}: expected a tensor, got {type(value).__name__}")
    return {name: _of_tensor(name, value) for name, value in tensors.items()}


def _of_tensor(name: str, value: Tensor) -> _Found:
    plain = value.layout is torch.strided and not value.is_quantized
    kind = (
        str(value.dtype).removeprefix("torch.")
        if plain
        else f"a {'quantised' if value.is_quantized else 'sparse'} tensor"
    )

    def read() -> Tensor:
        if value.is_meta:
            raise DataError(f"{name}: its values are not here (a tensor of the meta device)")
        return value.detach().cpu()

    return _Found(tuple(value.shape), kind, plain and value.dtype in _FLOATING, read)


def _of_file(path: Path) -> dict[str, _Found]:
    if not path.is_dir():
        return _of_safetensors(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError(f"{path}: no .safetensors file in this folder")
    found: dict[str, _Found] = {}
    for file in files:
        more = _of_safetensors(file)
        twice = next((name for name in more if name in found), None)
        if twice is not None:
            raise DataError(f"{path}: {twice} is in {file.name} and in another file of this folder; name one file")
        found |= more
    return found


def _of_safetensors(path: Path) -> dict[str, _Found]:
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as file:
            beginning = file.read(9)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a .safetensors file") from error
    # A safetensors file begins with a length in 8 bytes, which may look like anything, and JSON.
    if beginning[8:] != b"{" and beginning.startswith((_ZIP, _PICKLE)):
        raise DataError(
            f"{path} is a pickle or an archive, not safetensors, and is not opened: reading a pickle runs what is in it; {_CONVERSION}"
        )
    try:
        opened: Any = safe_open(path, framework="pt")
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        described = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from error

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            try:
                tensor: Tensor = opened.get_tensor(name)
            except (SafetensorError, OSError, ValueError) as error:
                raise DataError(f"{path}: {name} cannot be read: {error}") from error
            return tensor

        return read

    return {
        name: _Found(shape, dtype, dtype in _SAFETENSORS_DTYPES, reader(name))
        for name, (shape, dtype) in described.items()
    }


def is_conv1d(kind: type) -> bool:
    """Whether this class is transformers' `Conv1D`, a linear layer with weights [in_features, out_features]; it is not imported."""
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _matches(name: str, patterns: str | Iterable[str]) -> bool:
    return any(fnmatchcase(name, one) for one in ([patterns] if isinstance(patterns, str) else patterns))
