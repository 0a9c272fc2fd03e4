"""DESILO FHE 2.0 on one CPU thread: its vector engine, products with diagonals, and its matrix engine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.diagonals import Diagonals
from benchmarks.peers.layers import Layer, LeftOut, Phases, duration


class DesiloFHE(Diagonals):
    """The smallest vector engine: one level, N = 8192; keys for the rotations that are needed."""

    name = "DESILO FHE"
    about = "2.0.0, CKKS, N = 8192, a level; the engine's own set, unstated in the wheel and not to be chosen; hides x from the server"
    slots = 4096
    costs = {"encrypt": 7.0, "encode": 0.3, "multiply": 1.4, "hoisted": 5.7, "rotate": 6.0, "decrypt": 7.0}

    def keys(self, steps: Sequence[int]) -> None:
        module: Any = importlib.import_module("desilofhe")
        self.engine = module.Engine(max_level=1, thread_count=1)
        if self.engine.slot_count != self.slots:
            raise ValueError(f"expected {self.slots} slots, not {self.engine.slot_count}")
        self.secret = self.engine.create_secret_key()
        self.rotation_keys = {step: self.engine.create_fixed_rotation_key(self.secret, step) for step in steps}
        self.once = sum(len(self.engine.serialize_fixed_rotation_key(key)) for key in self.rotation_keys.values())

    def encode(self, slots: np.ndarray) -> Any:
        return self.engine.encode_to_light_plaintext(slots)

    def encrypt(self, slots: np.ndarray) -> bytes:
        message: bytes = self.engine.serialize_ciphertext(self.engine.encrypt(slots, self.secret))
        return message

    def load(self, message: bytes) -> Any:
        return self.engine.deserialize_ciphertext(message)

    def rotations(self, ciphertext: Any, steps: Sequence[int]) -> list[Any]:
        return list(self.engine.rotate_many(ciphertext, [self.rotation_keys[step] for step in steps])) if steps else []

    def rotate(self, ciphertext: Any, step: int) -> Any:
        return self.engine.rotate(ciphertext, self.rotation_keys[step])

    def multiply(self, ciphertext: Any, plaintext: Any) -> Any:
        return self.engine.multiply(ciphertext, plaintext)

    def add(self, first: Any, second: Any) -> Any:
        return self.engine.add(first, second)

    def finish(self, ciphertext: Any, bias: np.ndarray) -> bytes:
        message: bytes = self.engine.serialize_ciphertext(self.engine.add(ciphertext, bias))
        return message

    def decrypt(self, message: bytes) -> np.ndarray:
        return np.asarray(self.engine.decrypt(self.load(message), self.secret)).real


def blocks(matrix: np.ndarray, side: int) -> np.ndarray:
    """A matrix in square blocks, [block row, block column, side, side], filled up with zeros."""
    rows, columns = (-(-length // side) for length in matrix.shape)
    padded = np.zeros((rows * side, columns * side))
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.reshape(rows, side, columns, side).transpose(0, 2, 1, 3)


class DesiloMatrices(Layer):
    """The matrix engine: a ciphertext of 256 blocks of 32 x 32, each multiplied with the transpose of a clear block.

    A block of x is repeated for all blocks of outputs that it contributes to; what belongs to one block of y lies in one place of
    several ciphertexts, which the server adds up, and in several places of one, which the client does.
    """

    name = "DESILO FHE, matrices"
    about = "2.0.0, 256 x 32 x 32 numbers; the engine's own set, unstated in the wheel and not to be chosen; hides x from the server"

    def setup(self) -> None:
        if self.n < 32 or self.o < 256:
            raise LeftOut("for whole blocks of 32 rows")
        module: Any = importlib.import_module("desilofhe")
        self.engine = module.Engine(form="matrix", thread_count=1)
        self.places, self.side, _ = self.engine.shape
        self.x_blocks = blocks(self.x, self.side)
        self.shape = (self.x_blocks.shape[0], -(-self.o // self.side))
        self.pairs = self.shape[0] * self.shape[1]
        if self.pairs > self.places and not self.patient:
            raise LeftOut(duration(10 * self.pairs / 96))
        self.together = max(1, self.places // self.pairs)  # blocks of features in one ciphertext
        self.secret = self.engine.create_secret_key()
        self.key = self.engine.create_matrix_multiplication_key(self.secret, 1)
        self.once = len(self.engine.serialize_matrix_multiplication_key(self.key))

    def phases(self) -> Phases:
        yield "encrypt", self._encrypt
        yield "weights", self._weights
        yield "forward", self._forward
        yield "decrypt", self._decrypt

    def _arranged(self, found: np.ndarray) -> np.ndarray:
        """Blocks [row, output, feature] as the ciphertexts hold them, [chunk of pairs, ciphertext, place]."""
        features = -(-found.shape[2] // self.together)
        chunks = -(-self.pairs // self.places)
        size = min(self.pairs, self.places)
        out = np.zeros((chunks, features, self.places, self.side, self.side))
        flat = found.reshape(self.pairs, found.shape[2], self.side, self.side)
        for pair in range(self.pairs):
            for feature in range(found.shape[2]):
                place = (feature % self.together) * size + pair % self.places
                out[pair // self.places, feature // self.together, place] = flat[pair, feature]
        return out

    def _encrypt(self) -> None:
        spread = np.broadcast_to(self.x_blocks[:, None], (*self.shape, *self.x_blocks.shape[1:]))
        self.request = [
            [self.engine.serialize_ciphertext(self.engine.encrypt(values, self.secret, 1)) for values in chunk]
            for chunk in self._arranged(spread)
        ]

    def _weights(self) -> None:
        weight = blocks(self.weight, self.side)
        spread = np.broadcast_to(weight[None], (self.shape[0], *weight.shape))
        self.encoded = [[self.engine.encode(values, 1) for values in chunk] for chunk in self._arranged(spread)]

    def _forward(self) -> None:
        self.reply = []
        for request, encoded in zip(self.request, self.encoded, strict=True):
            total = None
            for message, weights in zip(request, encoded, strict=True):
                x = self.engine.deserialize_ciphertext(message)
                product = self.engine.matrix_multiply(x, weights, self.key)
                total = product if total is None else self.engine.add(total, product)
            self.reply.append(self.engine.serialize_ciphertext(total))
        self.bytes = (sum(len(m) for chunk in self.request for m in chunk), sum(map(len, self.reply)))

    def _decrypt(self) -> np.ndarray:
        size = min(self.pairs, self.places)
        found = []
        for message in self.reply:
            y = np.asarray(self.engine.decrypt(self.engine.deserialize_ciphertext(message), self.secret))
            y = y.reshape(self.places, self.side, self.side)[: self.together * size]
            found.append(y.reshape(self.together, size, self.side, self.side).sum(0))
        y = np.concatenate(found)[: self.pairs].reshape(*self.shape, self.side, self.side)
        rows, outputs = (count * self.side for count in self.shape)
        return y.transpose(0, 2, 1, 3).reshape(rows, outputs)[: self.n, : self.o] + self.bias
