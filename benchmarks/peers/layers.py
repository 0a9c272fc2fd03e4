"""The same encrypted layer, y = x W^T + b with W in the clear at the server, by us and by others.

Each layer has `step()`: encrypt a batch, take over new weights, compute, decrypt; it returns the seconds of its phases and the
logits, and `bytes` what went up and down. Peers that are not installed are left out.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np

# Trained layers on MIT-BIH: activations of a few units, rows of W of norm 1 to 4.
SHAPES = {
    "4 x 256 -> 5": (4, 256, 5),
    "32 x 2000 -> 5": (32, 2000, 5),
    "128 x 768 -> 768": (128, 768, 768),
    "2048 x 768 -> 768": (2048, 768, 768),
}
# What a batch of normalised activations agrees on for a large layer; small ones take the defaults.
NORMALISED = {"activation_bound": 8.0, "activation_norm": 36.0}


class Layer:
    """A batch and weights; what all peers share."""

    name = ""

    def __init__(self, n: int, d: int, o: int) -> None:
        generator = np.random.default_rng(0)
        self.n, self.d, self.o = n, d, o
        self.x = generator.normal(size=(n, d))
        self.weight = generator.normal(size=(o, d)) * 2 / np.sqrt(d)
        self.bias = generator.normal(size=o)
        self.exact = self.x @ self.weight.T + self.bias
        self.bytes = (0, 0)
        self.setup()

    def setup(self) -> None:
        """Keys and whatever else is made once."""

    def phases(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The phases of a step, in order."""
        raise NotImplementedError

    def step(self) -> tuple[dict[str, float], np.ndarray]:
        """Seconds by phase, and the logits."""
        seconds, result = {}, None
        for name, work in self.phases():
            start = perf_counter()
            result = work()
            seconds[name] = perf_counter() - start
        return seconds, np.asarray(result)

    def error(self) -> float:
        """The largest error of one step."""
        return float(np.abs(self.step()[1] - self.exact).max())


class Ours(Layer):
    """hesplit_native on coefficient blocks, recommended parameters, error bound 1e-3, nothing worked ahead.

    Rows of the weights have norm 2, and what is agreed on leaves room for twice that.
    """

    name = "hesplit_native"

    def setup(self) -> None:
        import hesplit_native as hn
        from hesplit_native import _core

        hn.set_num_threads(1)
        _core.set_work_ahead(False)
        ranges = NORMALISED if self.d == self.o == 768 else {}
        params = hn.Parameters.recommend(
            in_features=self.d, out_features=self.o, batch_size=self.n, weight_norm=4.0, **ranges
        )
        self.client = hn.LinearClient(hn.SecretKey.generate(params), self.d, self.o)
        self.server = hn.LinearServer(self.client.public_material(), self.weight, self.bias)

    def phases(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "encrypt", self._encrypt
        yield "weights", lambda: self.server.set_weight(self.weight, self.bias)
        yield "forward", self._forward
        yield "decrypt", lambda: self.client.decrypt(self.reply)

    def _encrypt(self) -> None:
        self.request = self.client.encrypt(self.x)

    def _forward(self) -> None:
        self.reply = self.server.forward(self.request)
        self.bytes = (len(self.request), len(self.reply))


class SealPrimitives(Layer):
    """The same packing from SEAL's own primitives (seal_peer.cpp), where the batch fits one ciphertext."""

    name = "SEAL primitives"

    def setup(self) -> None:
        module = importlib.import_module("hesplit_native._seal_peer")
        if self.n * self.d > 2048:
            raise ImportError("only for batches that fit one ciphertext")
        self.layer = module.SealLayer(2048, 53, self.n, self.d, self.o, 2.0**20, 2.0**20)

    def phases(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "encrypt", self._encrypt
        yield "weights", lambda: self.layer.set_weight(self.weight, self.bias)
        yield "forward", self._forward
        yield "decrypt", lambda: self.layer.decrypt(self.reply)

    def _encrypt(self) -> None:
        self.request = self.layer.encrypt(self.x)

    def _forward(self) -> None:
        self.reply = self.layer.forward(self.request)
        self.bytes = (len(self.request), len(self.reply))


class _Tenseal(Layer):
    """A TenSEAL layer whose ciphertexts are serialised on the way, as in the papers' code."""

    degree, bits, scale = 8192, [40, 21, 21, 21, 40], 2.0**21
    galois = False

    def setup(self) -> None:
        import tenseal as ts

        if self.n * self.d > 4096:
            raise ImportError("takes minutes")
        self.ts = ts
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, self.degree, coeff_mod_bit_sizes=self.bits, n_threads=1)
        self.context.global_scale = self.scale
        if self.galois:
            self.context.generate_galois_keys()

    def phases(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "encrypt", self._encrypt
        yield "forward", self._forward
        yield "decrypt", self._decrypt

    def _encrypt(self) -> None:
        # A [1, d] matrix of ciphertexts, the batch in their slots.
        self.request = self.ts.ckks_tensor(self.context, self.x[:, None].tolist(), batch=True).serialize()

    def _forward(self) -> None:
        x = self.ts.ckks_tensor_from(self.context, self.request)
        columns, bias = self.weight.T.tolist(), self.bias[None].tolist()
        self.reply = (x.mm(columns) + bias).serialize()
        self.bytes = (len(self.request), len(self.reply))

    def _decrypt(self) -> Any:
        logits = self.ts.ckks_tensor_from(self.context, self.reply).decrypt().tolist()
        return np.asarray(logits).reshape(self.n, self.o)


class TensealHESplit(_Tenseal):
    """As HESplit uses TenSEAL: a ciphertext per feature, set S1."""

    name = "TenSEAL, as HESplit"


class TensealSplitWays(_Tenseal):
    """As Split Ways uses it, with its fastest accurate set."""

    name = "TenSEAL, as Split Ways"
    degree, bits = 4096, [40, 20, 20]


class TensealBest(_Tenseal):
    """The best that we found: a vector per sample and a plain matrix, by rotations."""

    name = "TenSEAL, a vector per sample"
    bits, scale, galois = [60, 40, 60], 2.0**40, True

    def _encrypt(self) -> None:
        self.request = [self.ts.ckks_vector(self.context, row.tolist()).serialize() for row in self.x]

    def _forward(self) -> None:
        columns, bias = self.weight.T.tolist(), self.bias.tolist()
        vectors = (self.ts.ckks_vector_from(self.context, row) for row in self.request)
        self.reply = [(vector.mm(columns) + bias).serialize() for vector in vectors]
        self.bytes = (sum(map(len, self.request)), sum(map(len, self.reply)))

    def _decrypt(self) -> Any:
        return [self.ts.ckks_vector_from(self.context, row).decrypt() for row in self.reply]


class ConcreteML(Layer):
    """concrete-ml-extensions' product of encrypted and clear integers, inputs and weights quantised to 7 bits."""

    name = "concrete-ml-extensions"
    bits = 7
    patient = False
    """Whether products that take half an hour are made as well."""

    def setup(self) -> None:
        if self.n * self.o > (100_000 if self.patient else 10_000):
            raise ImportError("takes hours" if self.patient else "takes half an hour or more; see --patient")
        module: Any = importlib.import_module("concrete_ml_extensions")
        self.module = module
        self.params = module.MatmulCryptoParameters.deserialize(module.default_params())
        self.key, self.compression = module.create_private_key(self.params)
        self.polynomial = json.loads(module.default_params())["packing_ks_polynomial_size"]
        levels = 2**self.bits - 1
        self.x_step = (self.x.max() - self.x.min()) / levels
        self.w_step = (self.weight.max() - self.weight.min()) / levels
        self.integers = np.rint((self.x - self.x.min()) / self.x_step).astype(np.uint64)
        self.weights = np.rint((self.weight.T - self.weight.min()) / self.w_step).astype(np.uint64)

    def phases(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "encrypt", self._encrypt
        yield "forward", self._forward
        yield "decrypt", self._decrypt

    def _encrypt(self) -> None:
        self.request = self.module.encrypt_matrix(self.key, self.params, self.integers)

    def _forward(self) -> None:
        self.reply = self.module.matrix_multiplication(self.request, self.weights, self.compression)

    def _decrypt(self) -> Any:
        self.bytes = (len(self.request.serialize()), len(self.reply.serialize()))
        last = self.o % self.polynomial or self.polynomial
        products = self.module.decrypt_matrix(self.reply, self.key, self.params, last).astype(np.float64)
        # (x' x_step + x_min)(w' w_step + w_min), of which only sum x' w' was computed on ciphertexts.
        x_min, w_min = self.x.min(), self.weight.min()
        sums_x = self.integers.sum(1, keepdims=True) * self.x_step * w_min
        sums_w = self.weights.sum(0, keepdims=True) * self.w_step * x_min
        return products * self.x_step * self.w_step + sums_x + sums_w + self.d * x_min * w_min + self.bias


class Torch(Layer):
    """PyTorch in the clear, float32, one thread."""

    name = "torch, in the clear"

    def setup(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        self.tensors = [torch.from_numpy(a.astype(np.float32)) for a in (self.x, self.weight, self.bias)]
        self.bytes = (4 * self.x.size, 4 * self.n * self.o)

    def phases(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "forward", lambda: self.torch.nn.functional.linear(*self.tensors)


PEERS: list[type[Layer]] = [Ours, Torch, SealPrimitives, TensealBest, TensealHESplit, TensealSplitWays, ConcreteML]
