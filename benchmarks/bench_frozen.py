"""Layers whose weights do not change: client, server and the hint, beside torch's product in the clear."""

from __future__ import annotations

from time import process_time

import torch

import hesplit_native as hn
from benchmarks.frozen import Layer

# (rows, in_features, out_features)
SHAPES = [(1, 768, 768), (16, 768, 768), (128, 768, 768)]


class Frozen:
    params = [["float32", "bfloat16"], SHAPES]
    param_names = ["precision", "(rows, in, out)"]
    timer = process_time

    def setup(self, precision, shape):
        torch.set_num_threads(1)
        hn.set_num_threads(1)
        self.layer = Layer(*shape, precision)
        self.encrypt, self.multiply, self.decrypt, self.in_the_clear = self.layer.parts()

    def time_encrypt(self, precision, shape):
        self.encrypt()

    def time_multiply(self, precision, shape):
        self.multiply()

    def time_decrypt(self, precision, shape):
        self.decrypt()

    def time_torch(self, precision, shape):
        self.in_the_clear()

    def track_bytes(self, precision, shape):
        return len(self.layer.request) + len(self.layer.reply)

    def track_hint_bytes(self, precision, shape):
        return self.layer.server.hint_bytes


Frozen.track_bytes.unit = Frozen.track_hint_bytes.unit = "bytes"
