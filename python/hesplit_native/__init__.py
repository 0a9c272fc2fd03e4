"""Split learning on encrypted activations: CKKS in C++, PyTorch on top."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesplit_native._core import __version__, cpu_features, set_num_threads, set_work_ahead
from hesplit_native.errors import (
    ConnectionLost,
    DataError,
    HESplitError,
    KeyMismatchError,
    ParameterError,
    ProtocolError,
    RangeError,
    WireError,
)
from hesplit_native.layer.keys import ReleaseLedger, SecretKey
from hesplit_native.layer.linear import LinearClient, LinearServer, SealedClient, SealedServer
from hesplit_native.layer.parameters import Parameters

if TYPE_CHECKING:
    from hesplit_native import nn as nn

__all__ = [
    "ConnectionLost",
    "DataError",
    "HESplitError",
    "KeyMismatchError",
    "LinearClient",
    "LinearServer",
    "ParameterError",
    "Parameters",
    "ProtocolError",
    "RangeError",
    "ReleaseLedger",
    "SealedClient",
    "SealedServer",
    "SecretKey",
    "WireError",
    "__version__",
    "cpu_features",
    "nn",
    "set_num_threads",
    "set_work_ahead",
]


def __getattr__(name: str) -> object:
    # torch is imported only when it is used.
    if name == "nn":
        import importlib

        return importlib.import_module("hesplit_native.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
