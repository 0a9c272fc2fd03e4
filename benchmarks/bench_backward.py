"""Weight gradients on ciphertexts (`hesplit`): computed and masked by the server, opened by the client, unmasked."""

from __future__ import annotations

from benchmarks.common import PACKINGS, Layer


class WeightGradient:
    params = [PACKINGS]
    param_names = ["packing"]

    def setup(self, packing):
        self.layer = Layer(packing, (4, 256, 5), weight_gradients=True)
        self.request = self.layer.client.encrypt(self.layer.x)
        reply, _, self.kept = self.layer.server.forward_training(self.request, keep=True)
        self.layer.client.decrypt(reply, weight_gradient_follows=True)

    def time_masked_gradient(self, packing):
        self.layer.server.weight_gradient(self.kept, self.layer.gradient)

    def time_whole_exchange(self, packing):
        layer = self.layer
        reply, _, kept = layer.server.forward_training(layer.client.encrypt(layer.x), keep=True)
        layer.client.decrypt(reply, weight_gradient_follows=True)
        message, masked = layer.server.weight_gradient(kept, layer.gradient)
        layer.server.unmask(masked, layer.client.open_weight_gradient(message, layer.gradient))
