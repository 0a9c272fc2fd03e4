"""Decrypting replies, and how far their logits are from exact ones."""

from __future__ import annotations

from time import process_time

from benchmarks.common import PACKINGS, SHAPES, Layer


class Decrypt:
    params = [PACKINGS, SHAPES]
    param_names = ["packing", "(batch, in, out)"]
    timer = process_time
    number = 1  # a reply is decrypted once

    def setup(self, packing, shape):
        self.layer = Layer(packing, shape)

    def time_decrypt(self, packing, shape):
        self.layer.client.decrypt(self.layer.reply)

    def track_error_over_bound(self, packing, shape):
        return self.layer.error() / self.layer.params.error_bound
