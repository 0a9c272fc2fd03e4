"""A step of all cryptography as the batch, the features or the outputs grow."""

from __future__ import annotations

from benchmarks.common import Layer

BASE = {"n": 4, "d": 256, "o": 5}
VALUES = {"n": [1, 16, 64, 256, 2048], "d": [16, 64, 1024, 4096], "o": [1, 20, 64]}


class Scaling:
    params = [[(name, value) for name, values in VALUES.items() for value in values]]
    param_names = ["what grows"]

    def setup(self, change):
        name, value = change
        shape = BASE | {name: value}
        self.layer = Layer("blocks", (shape["n"], shape["d"], shape["o"]))

    def time_step(self, change):
        layer = self.layer
        request = layer.client.encrypt(layer.x)
        layer.server.set_weight(layer.weight, layer.bias)
        layer.client.decrypt(layer.server.forward(request))

    def track_bytes(self, change):
        return len(self.layer.request) + len(self.layer.reply)


Scaling.track_bytes.unit = "bytes"
