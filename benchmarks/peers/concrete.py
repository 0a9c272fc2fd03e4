"""concrete-ml-extensions: a product of encrypted and clear integers."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np

from benchmarks.peers.layers import Layer, LeftOut, Phases, duration


class ConcreteML(Layer):
    """concrete-ml-extensions' product of encrypted and clear integers, inputs and weights quantised to 7 bits."""

    name = "concrete-ml-extensions"
    about = "0.2.0, 7-bit integers, GLWE, N = 2048, 39 bits up and 26 down; 128 bits (its documentation); hides x from the server"
    bits = 7

    def setup(self) -> None:
        if self.n * self.o > (100_000 if self.patient else 10_000):
            raise LeftOut(duration(0.016 * self.n * self.o))  # packing an output takes most of it, whatever d
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

    def phases(self) -> Phases:
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
