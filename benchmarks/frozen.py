"""Layers whose weights do not change beside the same layers in the clear, in turns in one process.

    python -m benchmarks.frozen [--rounds 15] [--threads 1] [--blocks 0]

For each shape and precision: the client's milliseconds (encryption, decryption), the server's, and how many times what torch's float32
product takes; bytes of a request and its reply beside those of x and y in float32. With --blocks, all linear layers of so many blocks
of a GPT-2-small-shaped model on 128 tokens, with their hints (1.4 GB for its 12 blocks), in milliseconds a token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
import torch

import hesplit_native as hn
from hesplit_native.choices import Precision
from hesplit_native.layer.frozen import FrozenClient, FrozenServer

SHAPES = [
    (1, 768, 768),
    (4, 768, 768),
    (16, 768, 768),
    (128, 768, 768),
    (1, 4096, 4096),
    (4, 4096, 4096),
    (128, 4096, 4096),
]
BLOCK = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]  # in, out
TOKENS = 128
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


class Layer:
    """One layer, its client with the hint, and a batch."""

    def __init__(self, rows: int, features: int, outputs: int, precision: Precision) -> None:
        generator = np.random.default_rng(0)
        self.weight = generator.normal(size=(outputs, features)).astype(np.float32)
        self.x = generator.normal(size=(rows, features)).astype(np.float32)
        self.server = FrozenServer(self.weight, precision=precision)
        self.client = FrozenClient(features, outputs, precision=precision)
        self.client.load_hint(self.server.hint())
        self.clear = torch.from_numpy(self.x), torch.from_numpy(self.weight)
        self.request, self.secret = self.client.encrypt(self.x)
        self.reply = self.server.multiply(self.request)
        exact = self.x.astype(np.float64) @ self.weight.T.astype(np.float64)
        error = self.client.decrypt(self.reply, self.secret) - exact
        self.error = float(np.sqrt((error**2).mean() / (exact**2).mean()))

    def parts(self) -> list[Callable[[], object]]:
        return [
            lambda: self.client.encrypt(self.x),
            lambda: self.server.multiply(self.request),
            lambda: self.client.decrypt(self.reply, self.secret),
            lambda: torch.nn.functional.linear(*self.clear),
        ]


def in_turns(parts: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of each."""
    times: list[list[float]] = [[] for _ in parts]
    for _ in range(rounds + 1):
        for part, taken in zip(parts, times, strict=True):
            start = perf_counter()
            part()
            taken.append(1e3 * (perf_counter() - start))
    return [median(taken[1:]) for taken in times]


def blocks(count: int, precision: Precision) -> None:
    layers = [Layer(TOKENS, *shape, precision) for _ in range(count) for shape in BLOCK]
    totals = np.zeros(4)
    for _ in range(3):
        taken = [in_turns(layer.parts(), 1) for layer in layers]
        totals = np.sum(taken, axis=0) if not totals.any() else np.minimum(totals, np.sum(taken, axis=0))
    client, server, clear = totals[0] + totals[2], totals[1], totals[3]
    print(
        f"{count} blocks of GPT-2 small, {TOKENS} tokens, {precision}: {(client + server) / TOKENS:.2f} ms a token, of which the "
        f"client {client / TOKENS:.2f}; torch {clear / TOKENS:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    hn.set_num_threads(chosen.threads)
    print(
        "precision  rows x in -> out       encrypt  server decrypt   torch | server whole client (times torch) | bytes, hint MB, error"
    )
    for precision in PRECISIONS:
        for rows, features, outputs in SHAPES:
            layer = Layer(rows, features, outputs, precision)
            encrypt, multiply, decrypt, clear = in_turns(
                layer.parts(), chosen.rounds if features < 2000 else chosen.rounds // 3
            )
            plain = 4 * rows * (features + outputs)
            print(
                f"{precision:9} {rows:5} x {features} -> {outputs:5} {encrypt:10.2f} {multiply:7.2f} {decrypt:7.2f} {clear:7.2f} | "
                f"{multiply / clear:6.1f} {(encrypt + multiply + decrypt) / clear:5.1f} {(encrypt + decrypt) / clear:6.2f} "
                f"| {(len(layer.request) + len(layer.reply)) / plain:.2f}, {layer.server.hint_bytes / 1e6:.1f}, {layer.error:.1e}",
                flush=True,
            )
    if chosen.blocks:
        for precision in PRECISIONS:
            blocks(chosen.blocks, precision)


if __name__ == "__main__":
    main()
