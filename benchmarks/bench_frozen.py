"""Layers whose weights do not change: client, server and the hint, beside torch's product in the clear."""

from __future__ import annotations

import numpy as np
import torch

import hesplit_native as hn
from hesplit_native.layer.frozen import FrozenClient, FrozenServer

# (rows, in_features, out_features)
SHAPES = [(1, 768, 768), (16, 768, 768), (128, 768, 768)]


class Frozen:
    params = [["float32", "bfloat16"], SHAPES]
    param_names = ["precision", "(rows, in, out)"]

    def setup(self, precision, shape):
        torch.set_num_threads(1)
        hn.set_num_threads(1)
        rows, features, outputs = shape
        generator = np.random.default_rng(0)
        weight = generator.normal(size=(outputs, features)).astype(np.float32)
        self.x = generator.normal(size=(rows, features)).astype(np.float32)
        self.server = FrozenServer(weight, precision=precision)
        self.client = FrozenClient(features, outputs, precision=precision)
        self.hint = self.server.hint()
        self.client.load_hint(self.hint)
        self.request, self.secret = self.client.encrypt(self.x)
        self.reply = self.server.multiply(self.request)
        self.clear = torch.from_numpy(self.x), torch.from_numpy(weight)

    def time_encrypt(self, precision, shape):
        self.client.encrypt(self.x)

    def time_multiply(self, precision, shape):
        self.server.multiply(self.request)

    def time_decrypt(self, precision, shape):
        self.client.decrypt(self.reply, self.secret)

    def time_torch(self, precision, shape):
        torch.nn.functional.linear(*self.clear)

    def track_bytes(self, precision, shape):
        return len(self.request) + len(self.reply)

    def track_hint_bytes(self, precision, shape):
        return len(self.hint)


Frozen.track_bytes.unit = Frozen.track_hint_bytes.unit = "bytes"
