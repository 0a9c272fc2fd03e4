"""The encrypted layer, a phase at a time, with the bytes and the precision beside the time."""

from __future__ import annotations

from benchmarks.common import PACKINGS, SHAPES, Layer


class Linear:
    params = [PACKINGS, SHAPES]
    param_names = ["packing", "(batch, in, out)"]

    def setup(self, packing, shape):
        self.layer = Layer(packing, shape)

    def time_encrypt(self, packing, shape):
        self.layer.client.encrypt(self.layer.x)

    def time_set_weight_and_forward(self, packing, shape):
        self.layer.server.set_weight(self.layer.weight, self.layer.bias)
        self.layer.server.forward(self.layer.request)

    def time_forward(self, packing, shape):
        self.layer.server.forward(self.layer.request)

    def time_step(self, packing, shape):
        """All cryptography of one step: encrypt, encode new weights, forward, decrypt."""
        layer = self.layer
        request = layer.client.encrypt(layer.x)
        layer.server.set_weight(layer.weight, layer.bias)
        layer.client.decrypt(layer.server.forward(request))

    def track_request_bytes(self, packing, shape):
        return len(self.layer.request)

    def track_reply_bytes(self, packing, shape):
        return len(self.layer.reply)

    def track_public_material_bytes(self, packing, shape):
        return len(self.layer.material)

    def track_error_over_bound(self, packing, shape):
        return self.layer.error() / self.layer.params.error_bound


Linear.track_request_bytes.unit = "bytes"
Linear.track_reply_bytes.unit = "bytes"
Linear.track_public_material_bytes.unit = "bytes"
