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
    QueryBudgetExceeded,
    RangeError,
    WireError,
)
from hesplit_native.layer.keys import ReleaseLedger, SecretKey
from hesplit_native.layer.linear import LinearClient, LinearServer, SealedClient, SealedServer
from hesplit_native.layer.parameters import Parameters
from hesplit_native.layer.public_key import EncryptedArray, PublicKey

if TYPE_CHECKING:
    from hesplit_native import nn as nn
    from hesplit_native.protocols.frozen_client import connect as connect
    from hesplit_native.protocols.search import search as search
    from hesplit_native.protocols.serving import serve as serve
    from hesplit_native.training.fit import train as train

__all__ = [
    "ConnectionLost",
    "DataError",
    "EncryptedArray",
    "HESplitError",
    "KeyMismatchError",
    "LinearClient",
    "LinearServer",
    "ParameterError",
    "Parameters",
    "ProtocolError",
    "PublicKey",
    "QueryBudgetExceeded",
    "RangeError",
    "ReleaseLedger",
    "SealedClient",
    "SealedServer",
    "SecretKey",
    "WireError",
    "__version__",
    "connect",
    "cpu_features",
    "nn",
    "search",
    "serve",
    "set_num_threads",
    "set_work_ahead",
    "train",
]


# torch is imported only when it is used.
_LATE = {
    "nn": "hesplit_native.nn",
    "connect": "hesplit_native.protocols.frozen_client",
    "search": "hesplit_native.protocols.search",
    "serve": "hesplit_native.protocols.serving",
    "train": "hesplit_native.training.fit",
}


def __getattr__(name: str) -> object:
    if name in _LATE:
        import importlib

        module = importlib.import_module(_LATE[name])
        return module if name == "nn" else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
