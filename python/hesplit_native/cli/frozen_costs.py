"""What a layer with weights that do not change takes on this machine, beside the layer in the clear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from hesplit_native import _core
from hesplit_native.choices import Precision
from hesplit_native.layer.frozen import FrozenClient, FrozenServer, error_bound

_SECONDS = 0.2  # for which each part is repeated


@dataclass(frozen=True)
class FrozenCosts:
    """Of one request on one thread: seconds, the best of some; bytes."""

    precision: Precision
    error: float
    request_bytes: int
    reply_bytes: int
    hint_bytes: int
    client_seconds: float
    server_seconds: float
    clear_seconds: float


def measure_frozen(in_features: int, out_features: int, rows: int, precision: Precision) -> FrozenCosts:
    """Encrypt, multiply and decrypt `rows` rows, and let torch multiply them in float32."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(out_features, in_features)).astype(np.float32)
    x = generator.normal(size=(rows, in_features)).astype(np.float32)
    threads, torch_threads = _core.num_threads(), torch.get_num_threads()
    try:
        _core.set_num_threads(1)
        torch.set_num_threads(1)
        server = FrozenServer(weight, precision=precision)
        client = FrozenClient(in_features, out_features, precision=precision)
        client.load_hint(server.hint())
        request, secret = client.encrypt(x)
        reply = server.multiply(request)
        clear = torch.from_numpy(x), torch.from_numpy(weight)
        return FrozenCosts(
            precision,
            error_bound(in_features, precision),
            len(request),
            len(reply),
            server.hint_bytes,
            _best(lambda: client.encrypt(x)) + _best(lambda: client.decrypt(reply, secret)),
            _best(lambda: server.multiply(request)),
            _best(lambda: torch.nn.functional.linear(*clear)),
        )
    finally:
        _core.set_num_threads(threads)
        torch.set_num_threads(torch_threads)


def _best(call: Callable[[], object]) -> float:
    best, deadline = float("inf"), perf_counter() + _SECONDS
    while perf_counter() < deadline or best == float("inf"):
        start = perf_counter()
        call()
        best = min(best, perf_counter() - start)
    return best
