"""Split learning on encrypted activations: CKKS in C++, PyTorch on top."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesplit_native._core import __version__, cpu_features, set_num_threads
from hesplit_native.errors import (
    DataError,
    HESplitError,
    KeyMismatchError,
    ParameterError,
    ProtocolError,
    RangeError,
    WireError,
)
from hesplit_native.keys import SecretKey
from hesplit_native.linear import LinearClient, LinearServer
from hesplit_native.parameters import Parameters

if TYPE_CHECKING:
    from hesplit_native import nn as nn

__all__ = [
    "DataError",
    "HESplitError",
    "KeyMismatchError",
    "LinearClient",
    "LinearServer",
    "ParameterError",
    "Parameters",
    "ProtocolError",
    "RangeError",
    "SecretKey",
    "WireError",
    "__version__",
    "cpu_features",
    "nn",
    "set_num_threads",
]


def __getattr__(name: str) -> object:
    # torch is imported only when it is used.
    if name == "nn":
        import importlib

        return importlib.import_module("hesplit_native.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
