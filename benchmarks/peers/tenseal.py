"""TenSEAL 0.3.18, as the papers use it and as fast as we got it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.diagonals import Diagonals
from benchmarks.peers.layers import Layer, LeftOut, Phases, duration

BITS = "128 bits (SEAL's table); hides x from the server"


class _Tenseal(Layer):
    """A TenSEAL layer whose ciphertexts are serialised on the way, as in the papers' code."""

    about = ""
    degree, bits, scale = 8192, [40, 21, 21, 21, 40], 2.0**21
    galois = False
    most_outputs = 64
    pace = (0.0, 0.0, 0.0)
    """Milliseconds by feature, by feature and output, by feature and row, as 4 x 256 -> 5 takes."""

    def setup(self) -> None:
        import tenseal as ts

        if self.n * self.d > 4096 or self.o > self.most_outputs:
            feature, product, row = self.pace
            raise LeftOut(duration(self.d * (feature + self.o * product + self.n * row) / 1e3))
        self.ts = ts
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, self.degree, coeff_mod_bit_sizes=self.bits, n_threads=1)
        self.context.global_scale = self.scale
        if self.galois:
            self.context.generate_galois_keys()
            self.once = len(self.context.serialize(save_public_key=False, save_relin_keys=False))

    def phases(self) -> Phases:
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
    about = f"0.3.18, CKKS, N = 8192, 143 bits; {BITS}"
    pace = (8.1, 1.36, 0.0)


class TensealSplitWays(_Tenseal):
    """As Split Ways uses it, with its fastest accurate set."""

    name = "TenSEAL, as Split Ways"
    about = f"0.3.18, CKKS, N = 4096, 80 bits; {BITS}"
    pace = (2.3, 0.3, 0.0)
    degree, bits = 4096, [40, 20, 20]


class TensealVectors(_Tenseal):
    """Its own product of an encrypted vector, one for each sample, and a plain matrix, by rotations."""

    name = "TenSEAL, a vector per sample"
    about = f"0.3.18, CKKS, N = 8192, 160 bits; {BITS}"
    pace = (0.0, 0.0, 5.0)
    bits, scale, galois = [60, 40, 60], 2.0**40, True
    most_outputs = 4096

    def _encrypt(self) -> None:
        self.request = [self.ts.ckks_vector(self.context, row.tolist()).serialize() for row in self.x]

    def _forward(self) -> None:
        columns, bias = self.weight.T.tolist(), self.bias.tolist()
        vectors = (self.ts.ckks_vector_from(self.context, row) for row in self.request)
        self.reply = [(vector.mm(columns) + bias).serialize() for vector in vectors]
        self.bytes = (sum(map(len, self.request)), sum(map(len, self.reply)))

    def _decrypt(self) -> Any:
        return [self.ts.ckks_vector_from(self.context, row).decrypt() for row in self.reply]


class TensealSlots(Diagonals):
    """The best that we found: products of slots without rotations, of which its Python has none; the client adds up."""

    name = "TenSEAL, products of slots"
    about = f"0.3.18, CKKS, N = 8192, 160 bits; {BITS}"
    slots = 4096
    costs = {"encrypt": 7.0, "encode": 1.0, "multiply": 1.0, "hoisted": 1e9, "rotate": 1e9, "decrypt": 2.0}

    def keys(self, steps: Sequence[int]) -> None:
        import tenseal as ts

        self.ts = ts
        self.context = ts.context(
            ts.SCHEME_TYPE.CKKS, 2 * self.slots, coeff_mod_bit_sizes=[60, 40, 60], n_threads=1,
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )  # fmt: skip
        self.context.global_scale = 2.0**40

    def encrypt(self, slots: np.ndarray) -> bytes:
        return self.ts.ckks_vector(self.context, slots.tolist()).serialize()

    def load(self, message: bytes) -> Any:
        return self.ts.ckks_vector_from(self.context, message)

    def encode(self, slots: np.ndarray) -> Any:
        return slots.tolist()  # it encodes where it multiplies

    def rotations(self, ciphertext: Any, steps: Sequence[int]) -> list[Any]:
        if steps:
            raise NotImplementedError
        return []

    def multiply(self, ciphertext: Any, plaintext: Any) -> Any:
        return ciphertext * plaintext

    def add(self, first: Any, second: Any) -> Any:
        first += second
        return first

    def finish(self, ciphertext: Any, bias: np.ndarray) -> bytes:
        return (ciphertext + bias.tolist()).serialize()

    def decrypt(self, message: bytes) -> np.ndarray:
        return np.array(self.load(message).decrypt())
