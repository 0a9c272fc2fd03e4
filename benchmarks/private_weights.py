"""Replies that hide the weights beside replies that do not, in turns in one process.

    python -m benchmarks.private_weights [--rounds 30] [--threads 1]

For each shape, of the same error bound: milliseconds of the client (encryption, decryption) and of the server, whose weights stay as
they are; bytes of a request and its reply; the public key, which goes up once; and the deviation of the flood in a logit. The last
layer is a polygenic score: doses of 0 to 2 at 100,000 places.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import hesplit_native as hn

SCORE: dict[str, Any] = {"activation_bound": 2.0, "activation_norm": 320.0, "weight_norm": 1.0}
SHAPES: list[tuple[int, int, int, dict[str, Any]]] = [
    (4, 256, 5, {}),
    (4, 256, 5, {"error_bound": 0.5}),
    (1, 100_000, 1, SCORE),
    (128, 768, 768, {"error_bound": 0.5}),
    (128, 768, 768, {}),
]


class Layer:
    """A layer with its client, and a batch."""

    def __init__(self, rows: int, features: int, outputs: int, options: dict[str, Any], *, private: bool) -> None:
        generator = np.random.default_rng(0)
        self.parameters = hn.Parameters.recommend(
            in_features=features, out_features=outputs, batch_size=rows, private_weights=private, **options
        )
        norm = options.get("weight_norm", 16.0)
        weight = generator.normal(size=(outputs, features))
        weight *= 0.9 * norm / np.linalg.norm(weight, axis=1, keepdims=True)
        self.x = np.clip(generator.normal(size=(rows, features)), 0, 2) * (0.9 if options is SCORE else 3)
        self.client = hn.LinearClient(hn.SecretKey.generate(self.parameters), features, outputs)
        self.material = self.client.public_material()
        self.server = hn.LinearServer(self.material, weight, private=private)
        self.noise = self.parameters.estimate(features, outputs, rows, weight_norm=norm)["logit_noise"]
        self.request = self.client.encrypt(self.x)
        self.reply = self.server.forward(self.request)
        self.error = float(np.abs(self.client.decrypt(self.reply) - self.x @ weight.T).max())

    def round(self) -> tuple[float, float, float]:
        """Milliseconds of encryption, server and decryption."""
        parts: list[Callable[[Any], bytes | np.ndarray]] = [
            lambda _: self.client.encrypt(self.x), self.server.forward, self.client.decrypt,
        ]  # fmt: skip
        taken, value = [], None
        for part in parts:
            start = perf_counter()
            value = part(value)
            taken.append(1e3 * (perf_counter() - start))
        return taken[0], taken[1], taken[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    hn.set_num_threads(chosen.threads)
    hn.set_work_ahead(False)
    print(
        "rows x in -> out (error bound)   weights   N, bits      encrypt  server decrypt |   request     reply  key, once "
        "| flood, error"
    )
    for rows, features, outputs, options in SHAPES:
        layers = [Layer(rows, features, outputs, options, private=private) for private in (False, True)]
        rounds = max(3, chosen.rounds // (1 + rows * features * outputs // 2_000_000))
        times: list[list[tuple[float, float, float]]] = [[], []]
        for _ in range(rounds + 1):
            for layer, taken in zip(layers, times, strict=True):
                taken.append(layer.round())
        medians = [[median(column) for column in zip(*taken[1:], strict=True)] for taken in times]
        for name, layer, taken in zip(("public", "private"), layers, medians, strict=True):
            shape = f"{rows} x {features} -> {outputs} ({options.get('error_bound', 1e-3):g})"
            ring = f"{layer.parameters.ring_degree}, {layer.parameters.total_bits}"
            print(
                f"{shape:32} {name:9} {ring:10} {taken[0]:9.3f} {taken[1]:7.3f} {taken[2]:7.3f} | {len(layer.request):9} "
                f"{len(layer.reply):9} {len(layer.material):9} | {layer.noise:.1e}, {layer.error:.1e}",
                flush=True,
            )
        print(
            f"{'':32} server, times {medians[1][1] / medians[0][1]:.2f}; whole {sum(medians[1]) / sum(medians[0]):.2f}"
        )


if __name__ == "__main__":
    main()
