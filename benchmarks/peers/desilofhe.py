"""DESILO FHE 2.0 on one CPU thread: its vector engine, products with diagonals, keys for the rotations that are needed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.diagonals import Diagonals


class DesiloFHE(Diagonals):
    """The smallest engine: one level, N = 8192."""

    name = "DESILO FHE"
    security = "the engine's own set (N = 8192), which cannot be chosen; hides x from the server"
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
