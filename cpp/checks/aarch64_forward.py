"""Layers under encryption against float64 numpy, in every packing: what aarch64.sh runs in an ARM Python."""

from __future__ import annotations

import os
import platform

import numpy as np

import hesplit_native as hn
from hesplit_native import _core
from hesplit_native.layer.frozen import FrozenClient, FrozenServer, error_bound


def matrices(rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows x [rows, inputs], and weights [outputs, inputs] of norm 1."""
    rng = np.random.default_rng(inputs)
    weight = rng.normal(size=(outputs, inputs))
    return rng.normal(size=(rows, inputs)), weight / np.linalg.norm(weight, axis=1, keepdims=True)


def error(packing: str, rows: int, inputs: int, outputs: int) -> float:
    """The largest error of a forward pass, as a share of the bound that the parameters state."""
    x, weight = matrices(rows, inputs, outputs)
    params = hn.Parameters.recommend(in_features=inputs, out_features=outputs, batch_size=rows, packing=packing)
    client = hn.LinearClient(hn.SecretKey.generate(params), inputs, outputs)
    server = hn.LinearServer(client.public_material(), weight)
    y = client.decrypt(server.forward(client.encrypt(x)))
    return float(np.abs(y - x @ weight.T).max() / params.error_bound)


def frozen_error(rows: int, inputs: int, outputs: int) -> float:
    """The same of a layer whose weights stay."""
    x, weight = matrices(rows, inputs, outputs)
    server = FrozenServer(weight)
    client = FrozenClient(inputs, outputs)
    client.load_hint(server.hint())
    request, secret = client.encrypt(x)
    y = client.decrypt(server.multiply(request), secret)
    relative = np.abs(y - x @ weight.T).max(axis=1) / np.linalg.norm(x, axis=1)
    return float(relative.max() / error_bound(inputs))


if __name__ == "__main__":
    if _core.kernels() != (os.environ.get("HESPLIT_CPU") or "neon"):
        raise SystemExit(f"the kernels are {_core.kernels()}, of {_core.usable_kernels()}")
    shares = {
        "blocks 4x256->5": error("blocks", 4, 256, 5),
        "blocks 128x64->96": error("blocks", 128, 64, 96),
        "slots 4x256->5": error("slots", 4, 256, 5),
        "frozen 4x256->96": frozen_error(4, 256, 96),
    }
    print(f"{platform.machine()}, kernels {_core.kernels()}: errors as shares of the bound")
    for name, share in shares.items():
        print(f"  {name}: {share:.2g}")
        if share > 1:
            raise SystemExit(f"{name} exceeds its error bound")
