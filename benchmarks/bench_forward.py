"""The server's forward pass, with the weights of the last batch and with new ones."""

from __future__ import annotations

from time import process_time

from benchmarks.common import PACKINGS, SHAPES, Layer


class Forward:
    params = [PACKINGS, SHAPES]
    param_names = ["packing", "(batch, in, out)"]
    timer = process_time

    def setup(self, packing, shape):
        self.layer = Layer(packing, shape)

    def time_forward(self, packing, shape):
        self.layer.server.forward(self.layer.request)

    def time_new_weights_and_forward(self, packing, shape):
        self.layer.server.set_weight(self.layer.weight, self.layer.bias)
        self.layer.server.forward(self.layer.request)

    def track_reply_bytes(self, packing, shape):
        return len(self.layer.reply)


class PrivateForward:
    """Replies that hide the weights."""

    params = [SHAPES]
    param_names = ["(batch, in, out)"]
    timer = process_time

    def setup(self, shape):
        self.layer = Layer("blocks", shape, private=True)

    def time_forward(self, shape):
        self.layer.server.forward(self.layer.request)

    def track_reply_bytes(self, shape):
        return len(self.layer.reply)


class OneRow:
    """A row with many outputs, without and with merging."""

    params = [["blocks", "merged"], [(1, 128, 4096), (1, 768, 768)]]
    param_names = ["packing", "(batch, in, out)"]
    timer = process_time

    def setup(self, packing, shape):
        self.layer = Layer(packing, shape)

    def time_forward(self, packing, shape):
        self.layer.server.forward(self.layer.request)

    def track_message_bytes(self, packing, shape):
        return len(self.layer.request) + len(self.layer.reply)


OneRow.track_message_bytes.unit = Forward.track_reply_bytes.unit = PrivateForward.track_reply_bytes.unit = "bytes"
