"""Served layers whose replies hide the weights, beside the same layers frozen with their hint and with public weights sent whole.

    python -m benchmarks.private_service [--rounds 15] [--threads 1]

For each shape: milliseconds of the client (encryption, decryption) and of the server, bytes up and down, and what comes before the
first request: a hint, or the client's public material.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

import hesplit_native as hn
from benchmarks.frozen import in_turns
from hesplit_native.layer.frozen import FrozenClient, FrozenServer
from hesplit_native.layer.keyed import KeyedClient, KeyedServer

SHAPES = [(4, 256, 5), (1, 100_000, 1), (128, 768, 768)]


class Batch:
    """A layer with a bias, and rows for it."""

    def __init__(self, rows: int, features: int, outputs: int) -> None:
        generator = np.random.default_rng(0)
        self.weight = generator.normal(size=(outputs, features)) / np.sqrt(features)
        self.bias = generator.normal(size=outputs) / 100
        self.x = generator.normal(size=(rows, features))
        self.norms = np.linalg.norm(np.column_stack([self.x, np.ones(rows)]), axis=1)[:, None]

    def worst(self, y: np.ndarray) -> float:
        """The largest error relative to the norm of its row."""
        return float((np.abs(y - (self.x @ self.weight.T + self.bias)) / self.norms).max())


def frozen(batch: Batch, rounds: int) -> tuple[list[float], bytes, bytes, int, float]:
    server = FrozenServer(batch.weight, batch.bias)
    client = FrozenClient(*batch.weight.shape[::-1], bias=True)
    hint = server.hint()
    client.load_hint(hint)
    request, secret = client.encrypt(batch.x)
    reply = server.multiply(request)
    times = in_turns(
        [
            lambda: client.encrypt(batch.x),
            lambda: server.multiply(request),
            lambda: client.decrypt(reply, secret),
        ],
        rounds,
    )
    return times, request, reply, len(hint), batch.worst(client.decrypt(reply, secret))


def private(batch: Batch, rounds: int) -> tuple[list[float], bytes, bytes, int, float]:
    server = KeyedServer(batch.weight, batch.bias)
    client = KeyedClient(server.agreement, bias=True)
    material = client.material()
    products = server.for_client(material)
    state: dict[str, object] = {}

    def decrypt() -> None:  # a request is answered once
        state["y"] = client.decrypt(state["reply"], state["norms"])

    def encrypt() -> None:
        state["request"], state["norms"] = client.encrypt(batch.x)

    def multiply() -> None:
        state["reply"] = products.multiply(state["request"])

    times = in_turns([encrypt, multiply, decrypt], rounds)
    return times, state["request"], state["reply"], len(material), batch.worst(state["y"])


def whole(batch: Batch, rounds: int) -> tuple[list[float], bytes, bytes, int, float]:
    """The same error bound with public weights, replies with all of c1."""
    outputs, features = batch.weight.shape
    agreement = KeyedServer(batch.weight, batch.bias).agreement
    agreed = agreement.parameters
    parameters = hn.Parameters.recommend(
        in_features=features + 1, out_features=outputs, batch_size=len(batch.x), activation_bound=1.0, activation_norm=1.0,
        weight_norm=agreed.weight_norm, error_bound=agreed.error_bound,
    )  # fmt: skip
    client = hn.LinearClient(hn.SecretKey.generate(parameters), features + 1, outputs)
    material = client.public_material()
    server = hn.LinearServer(material, np.column_stack([batch.weight, batch.bias]) / agreement.weight_norm)
    rows = np.column_stack([batch.x, np.ones(len(batch.x))]) / batch.norms / (1 + 1e-9)
    state: dict[str, object] = {}

    def encrypt() -> None:
        state["request"] = client.encrypt(rows)

    def multiply() -> None:
        state["reply"] = server.forward(state["request"])

    def decrypt() -> None:
        state["y"] = client.decrypt(state["reply"])

    times = in_turns([encrypt, multiply, decrypt], rounds)
    return (
        times,
        state["request"],
        state["reply"],
        len(material),
        batch.worst(state["y"] * batch.norms * agreement.weight_norm),
    )


WAYS: dict[str, Callable[[Batch, int], tuple[list[float], bytes, bytes, int, float]]] = {
    "frozen": frozen, "private": private, "public, whole": whole,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    hn.set_num_threads(chosen.threads)
    print("rows x in -> out         weights        encrypt   server  decrypt        up       down      once    error")
    for shape in SHAPES:
        batch = Batch(*shape)
        for name, way in WAYS.items():
            (encrypt, server, decrypt), request, reply, once, error = way(batch, chosen.rounds)
            print(
                f"{shape[0]:4} x {shape[1]:6} -> {shape[2]:4}  {name:14} {encrypt:8.3f} {server:8.3f} {decrypt:8.3f} "
                f"{len(request):9} {len(reply):10} {once:9} {error:8.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
