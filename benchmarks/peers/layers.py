"""The same encrypted layer, y = x W^T + b with W in the clear at the server, by us and by others (in the files beside this one).

Each layer has `step()`: encrypt a batch, take over new weights, compute, decrypt; it returns the seconds of CPU time of its phases, of
both ends together, which other work on the machine changes little. `bytes` is what went up and down, `once` what is sent before the
first step, `worst` the largest error so far. Peers that are not installed are left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from time import process_time
from typing import Any

import numpy as np

# Trained layers on MIT-BIH: activations of a few units, rows of W of norm 1 to 4.
SHAPES = {
    "4 x 256 -> 5": (4, 256, 5),
    "1 x 128 -> 4096": (1, 128, 4096),
    "32 x 2000 -> 5": (32, 2000, 5),
    "128 x 768 -> 768": (128, 768, 768),
    "2048 x 768 -> 768": (2048, 768, 768),
    "16 x 4096 -> 4096": (16, 4096, 4096),
}
# What a batch of normalised activations agrees on for a large layer; small ones take the defaults.
NORMS = {768: 36.0, 4096: 80.0}

Phases = Iterator[tuple[str, Callable[[], Any]]]


class LeftOut(Exception):
    """Why a peer has no row for a shape."""


def duration(seconds: float) -> str:
    """An extrapolated time, in words."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit} a step, extrapolated"
    return f"about {seconds:.0f} s a step, extrapolated"


class Layer:
    """A batch and weights; what all peers share."""

    name = ""
    about = ""
    """Version, parameters, what security they give and what is hidden from whom, in a line."""
    environment: Mapping[str, str] = {}
    """Variables that must stand before libraries are loaded, so in a process of its own."""
    patient = False
    """Whether steps that take minutes are made as well."""

    def __init__(self, n: int, d: int, o: int) -> None:
        generator = np.random.default_rng(0)
        self.n, self.d, self.o = n, d, o
        self.x = generator.normal(size=(n, d))
        self.weight = generator.normal(size=(o, d)) * 2 / np.sqrt(d)
        self.bias = generator.normal(size=o)
        self.exact = self.x @ self.weight.T + self.bias
        self.bytes = (0, 0)
        self.once = 0
        self.worst = 0.0
        self.setup()

    def setup(self) -> None:
        """Keys and whatever else is made once."""

    def phases(self) -> Phases:
        """The phases of a step, in order; the last one returns the logits."""
        raise NotImplementedError

    def step(self) -> dict[str, float]:
        """Seconds of CPU time by phase."""
        seconds, result = {}, None
        for name, work in self.phases():
            start = process_time()
            result = work()
            seconds[name] = process_time() - start
        self.worst = max(self.worst, float(np.abs(np.asarray(result) - self.exact).max()))
        return seconds


class Ours(Layer):
    """hesplit_native on coefficient blocks, recommended parameters, error bound 1e-3, nothing worked ahead.

    Rows of the weights have norm 2, and what is agreed on leaves room for twice that.
    """

    name = "hesplit_native"
    about = (
        "N = 2048, 47 to 53 bits of modulus; 128 bits (2024 guideline); hides x from the server, not W from the client"
    )
    packing = "blocks"
    link: float | None = None  # bits a second that parameters are chosen for; None: the fewest bytes

    def setup(self) -> None:
        import hesplit_native as hn
        from hesplit_native import _core

        hn.set_num_threads(1)
        _core.set_work_ahead(False)
        large = self.o >= 768 and self.d in NORMS
        ranges = {"activation_bound": 8.0, "activation_norm": NORMS[self.d]} if large else {}
        params = hn.Parameters.recommend(
            in_features=self.d,
            out_features=self.o,
            batch_size=self.n,
            weight_norm=4.0,
            packing=self.packing,
            link=self.link,
            **ranges,
        )
        self.client = hn.LinearClient(hn.SecretKey.generate(params), self.d, self.o)
        material = self.client.public_material()
        self.once = len(material)
        self.server = hn.LinearServer(material, self.weight, self.bias)

    def phases(self) -> Phases:
        yield "encrypt", self._encrypt
        yield "weights", lambda: self.server.set_weight(self.weight, self.bias)
        yield "forward", self._forward
        yield "decrypt", lambda: self.client.decrypt(self.reply)

    def _encrypt(self) -> None:
        self.request = self.client.encrypt(self.x)

    def _forward(self) -> None:
        self.reply = self.server.forward(self.request)
        self.bytes = (len(self.request), len(self.reply))


class OursMerged(Ours):
    """The same with short replies, which take evaluation keys: for few rows and many outputs."""

    name = "hesplit_native, merged"
    about = (
        "N = 4096, 90 or 91 bits; 128 bits (2024 guideline; circular security); "
        "hides x from the server, not W from the client"
    )
    packing = "merged"
    link = 1e9  # some bytes more take many rotations less

    def setup(self) -> None:
        if self.n > 4 or self.o < 64:
            raise LeftOut("for few rows and many outputs")
        super().setup()


class OursFrozen(Layer):
    """A layer whose weights do not change, with its hint: float32's precision."""

    name = "hesplit_native, frozen weights"
    about = (
        "N = 2048, 51 bits; 128 bits (2024 guideline; a secret for each request, one matrix for all); "
        "hides x from the server, not W from the client"
    )

    def setup(self) -> None:
        import hesplit_native as hn
        from hesplit_native.layer.frozen import FrozenClient, FrozenServer

        hn.set_num_threads(1)
        self.server = FrozenServer(self.weight, self.bias)
        self.client = FrozenClient(self.d, self.o, bias=True)
        hint = self.server.hint()
        self.once = len(hint)
        self.client.load_hint(hint)

    def phases(self) -> Phases:
        yield "encrypt", self._encrypt
        yield "forward", self._forward
        yield "decrypt", lambda: self.client.decrypt(self.reply, self.secret)

    def _encrypt(self) -> None:
        self.request, self.secret = self.client.encrypt(self.x)

    def _forward(self) -> None:
        self.reply = self.server.multiply(self.request)
        self.bytes = (len(self.request), len(self.reply))


AVX2 = {"HESPLIT_CPU": "avx2"}


class OursOnAvx2(Ours):
    """As on a processor without AVX-512."""

    name = "hesplit_native, AVX2"
    environment = AVX2


class OursMergedOnAvx2(OursMerged):
    """As on a processor without AVX-512."""

    name = "hesplit_native, merged, AVX2"
    environment = AVX2


class OursFrozenOnAvx2(OursFrozen):
    """As on a processor without AVX-512."""

    name = "hesplit_native, frozen weights, AVX2"
    environment = AVX2


class SealPrimitives(Layer):
    """The same packing from SEAL's own primitives (seal_peer.cpp), where the batch fits one ciphertext."""

    name = "SEAL primitives"
    about = "4.1.2, N = 2048, 53 bits; 128 bits (SEAL's table); as ours"

    def setup(self) -> None:
        module = importlib.import_module("hesplit_native._seal_peer")
        if self.n * self.d > 2048:
            raise LeftOut("only for batches that fit one ciphertext")
        self.layer = module.SealLayer(2048, 53, self.n, self.d, self.o, 2.0**20, 2.0**20)

    def phases(self) -> Phases:
        yield "encrypt", self._encrypt
        yield "weights", lambda: self.layer.set_weight(self.weight, self.bias)
        yield "forward", self._forward
        yield "decrypt", lambda: self.layer.decrypt(self.reply)

    def _encrypt(self) -> None:
        self.request = self.layer.encrypt(self.x)

    def _forward(self) -> None:
        self.reply = self.layer.forward(self.request)
        self.bytes = (len(self.request), len(self.reply))


class Torch(Layer):
    """PyTorch in the clear, float32, one thread."""

    name = "torch, in the clear"
    about = "float32; hides nothing"

    def setup(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        self.tensors = [torch.from_numpy(a.astype(np.float32)) for a in (self.x, self.weight, self.bias)]
        self.bytes = (4 * self.x.size, 4 * self.n * self.o)

    def phases(self) -> Phases:
        yield "forward", lambda: self.torch.nn.functional.linear(*self.tensors).numpy()
