"""A layer to measure: client, server and one batch, on one thread, with nothing worked ahead unless that is measured."""

from __future__ import annotations

import numpy as np
import torch

import hesplit_native as hn
from hesplit_native import _core

# (batch size, in_features, out_features)
SHAPES = [(4, 256, 5), (64, 256, 5), (32, 2000, 5)]
PACKINGS = ["blocks", "slots"]


class Layer:
    """What the suites share. Set up once per parameter combination; nothing here is timed."""

    def __init__(
        self, packing: str, shape: tuple[int, int, int], *, releases: int = 0, weight_gradients: bool = False,
        private: bool = False,
    ) -> None:  # fmt: skip
        torch.set_num_threads(1)
        hn.set_num_threads(1)
        _core.set_work_ahead(False)
        n, d, o = shape
        generator = np.random.default_rng(0)
        asked = {"private_weights": True} if private else {}  # commits before it do not know the word
        self.params = hn.Parameters.recommend(
            in_features=d, out_features=o, batch_size=n, packing=packing, weight_norm=8.0, releases=releases,
            activation_bound=32.0, **asked,
        )  # fmt: skip
        self.x = generator.normal(size=(n, d)).astype(np.float32)
        self.weight = generator.normal(size=(o, d)) * 4 / np.sqrt(d)
        self.bias = generator.normal(size=o)
        self.gradient = generator.normal(size=(n, o)) / n
        self.client = hn.LinearClient(
            hn.SecretKey.generate(self.params), d, o, fresh_keys=releases == 1, weight_gradients=weight_gradients
        )
        self.material = self.client.public_material()
        self.server = hn.LinearServer(self.material, self.weight, self.bias)
        self.request = self.client.encrypt(self.x)
        self.reply = self.server.forward(self.request)

    def error(self) -> float:
        """The largest error of one batch."""
        y = self.client.decrypt(self.server.forward(self.client.encrypt(self.x)))
        return float(np.abs(y - (self.x.astype(np.float64) @ self.weight.T + self.bias)).max())
