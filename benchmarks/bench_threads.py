"""Large products on one thread and on two."""

from __future__ import annotations

import hesplit_native as hn
from benchmarks.common import Layer


class Threads:
    params = [[(64, 256, 5), (128, 768, 768)], [1, 2]]
    param_names = ["(batch, in, out)", "threads"]
    timeout = 120

    def setup(self, shape, threads):
        self.layer = Layer("blocks", shape)
        hn.set_num_threads(threads)

    def teardown(self, shape, threads):
        hn.set_num_threads(1)

    def time_forward(self, shape, threads):
        self.layer.server.forward(self.layer.request)

    def time_encrypt(self, shape, threads):
        self.layer.client.encrypt(self.layer.x)
