"""Few rows and many outputs: blocks beside merged blocks, in turns in one process, and searches in a table.

    python -m benchmarks.search [--rounds 30] [--threads 1]

For each shape, of the same ranges and error bound: milliseconds of the client (encryption, decryption) and of the server, whose
weights stay as they are; bytes of a request, its reply, and the evaluation keys, which go up once. Then tables of unit vectors, as
`hesplit_native.search` asks for them: milliseconds of one search at both ends together, bytes, and the server's memory.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import hesplit_native as hn
from hesplit_native.layer.keyed import KeyedClient, KeyedServer

UNIT: dict[str, Any] = {"activation_bound": 1.0, "activation_norm": 1.0, "weight_norm": 1.0}
SHAPES: list[tuple[int, int, int, dict[str, Any]]] = [
    (1, 128, 4096, {}),
    (1, 128, 4096, UNIT),
    (1, 768, 768, {}),
    (4, 768, 768, {}),
    (1, 4096, 4096, {}),
]
TABLES = [(10_000, 128), (100_000, 128), (100_000, 768)]


class Layer:
    """A layer with its client, and a batch."""

    def __init__(self, rows: int, features: int, outputs: int, options: dict[str, Any], packing: Any) -> None:
        generator = np.random.default_rng(0)
        self.parameters = hn.Parameters.recommend(
            in_features=features,
            out_features=outputs,
            batch_size=rows,
            packing=packing,
            link=1e9 if packing == "merged" else None,  # there some bytes more take many rotations less
            **options,
        )
        weight = generator.normal(size=(outputs, features))
        weight *= options.get("weight_norm", 16.0) / np.linalg.norm(weight, axis=1, keepdims=True)
        x = generator.normal(size=(rows, features))
        self.x = x * 0.9 * self.parameters.activation_norm / np.linalg.norm(x, axis=1, keepdims=True)
        self.x = np.clip(self.x, -self.parameters.activation_bound, self.parameters.activation_bound)
        self.client = hn.LinearClient(hn.SecretKey.generate(self.parameters), features, outputs)
        self.keys = len(self.client.public_material())
        self.server = hn.LinearServer(self.client.public_material(), weight)
        self.request, self.reply = b"", b""
        self.times: list[tuple[float, float, float]] = []
        self.round()
        self.error = float(np.abs(self.y - self.x @ weight.T).max())
        self.times.clear()

    def round(self) -> None:
        """One request, its reply and its logits."""
        start = perf_counter()
        self.request = self.client.encrypt(self.x)
        sent = perf_counter()
        self.reply = self.server.forward(self.request)
        answered = perf_counter()
        self.y = self.client.decrypt(self.reply)
        self.times.append((sent - start, answered - sent, perf_counter() - answered))

    def line(self) -> str:
        """What it took."""
        encrypt, server, decrypt = (1e3 * median(column) for column in zip(*self.times, strict=True))
        moved = len(self.request) + len(self.reply)
        return (
            f"{self.parameters.packing:7} {'+'.join(map(str, self.parameters.modulus_bits)):10} {encrypt:8.3f} {server:8.3f} "
            f"{decrypt:8.3f} | {len(self.request):8} {len(self.reply):8} {moved:8} {self.keys:8} | {self.error:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    hn.set_num_threads(chosen.threads)
    hn.set_work_ahead(False)
    print(
        f"{'rows x in -> out':24} packing q, bits      encrypt   server  decrypt |  request    reply     both     keys | error"
    )
    for rows, features, outputs, options in SHAPES:
        layers = [Layer(rows, features, outputs, options, packing) for packing in ("blocks", "merged")]
        for _ in range(max(3, chosen.rounds // (1 + features * outputs // 4_000_000))):
            for layer in layers:
                layer.round()
        shape = f"{rows} x {features} -> {outputs}" + (" (unit)" if options else "")
        for layer in layers:
            print(f"{shape:24} {layer.line()}", flush=True)
    print(f"\n{'table':24}   search  in the clear |       up     down     keys | memory | exact first of 20")
    for rows, features in TABLES:
        print(f"{f'{rows} x {features}':24} {searched(rows, features)}", flush=True)


def searched(rows: int, features: int) -> str:
    """Twenty searches in a table of unit vectors, of which five are timed."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(rows, features)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    holder = KeyedServer(table, private=False, precision="bfloat16")
    client = KeyedClient(holder.agreement, bias=False)
    material = client.material()
    products = holder.for_client(material)
    seconds, clear, right = [], [], 0
    up = down = 0
    for number in range(20):
        query = table[number : number + 1] + 0.1 * generator.normal(size=(1, features)).astype(np.float32)
        start = perf_counter()
        request, norms = client.encrypt(query)
        reply = products.multiply(request)
        found = int(client.decrypt(reply, norms)[0].argmax())
        middle = perf_counter()
        right += found == int((table @ query[0]).argmax())
        clear.append(perf_counter() - middle)
        seconds.append(middle - start)
        up, down = len(request), len(reply)
    return (
        f"{1e3 * median(seconds[1:6]):8.1f} {1e3 * median(clear):13.1f} | {up:8} {down:8} {len(material):8} | "
        f"{holder.resident_bytes / 1e6:5.0f} M | {right}"
    )


if __name__ == "__main__":
    main()
