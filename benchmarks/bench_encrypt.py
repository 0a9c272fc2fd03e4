"""Encrypting a batch of activations."""

from __future__ import annotations

from time import process_time

from benchmarks.common import PACKINGS, SHAPES, Layer
from hesplit_native import _core


class Encrypt:
    params = [PACKINGS, SHAPES]
    param_names = ["packing", "(batch, in, out)"]
    timer = process_time

    def setup(self, packing, shape):
        self.layer = Layer(packing, shape)

    def time_encrypt(self, packing, shape):
        self.layer.client.encrypt(self.layer.x)

    def track_request_bytes(self, packing, shape):
        return len(self.layer.request)

    def track_public_material_bytes(self, packing, shape):
        return len(self.layer.material)


class FreshKeys:
    """Every request under a key of its own, which is made with it or, working ahead, before it."""

    params = [[False, True]]
    param_names = ["ahead"]

    def setup(self, ahead):
        self.layer = Layer("blocks", (4, 256, 5), releases=1)
        _core.set_work_ahead(ahead)

    def teardown(self, ahead):
        _core.set_work_ahead(False)

    def time_encrypt(self, ahead):
        self.layer.client.encrypt(self.layer.x)


Encrypt.track_request_bytes.unit = "bytes"
Encrypt.track_public_material_bytes.unit = "bytes"
