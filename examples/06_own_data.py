"""An own network on own arrays, its last layer at a server on ciphertexts: `python examples/06_own_data.py`."""

import numpy as np
import torch
from torch import nn

import hesplit_native as hn


def pictures(rows, seed):  # 12 x 12 pixels; the class is where it is brighter
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, rows)
    x = random.normal(size=(rows, 1, 12, 12))
    x[np.arange(rows), 0, 4 * y, :] += 1.0
    return x, y


torch.set_num_threads(1)  # small networks gain nothing from more
for protocol in ("splitways", "sealed"):
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    result = hn.train(
        network, pictures(800, 0), validation=pictures(200, 1), protocol=protocol, monitor="auroc", patience=3, metrics=True
    )  # fmt: skip
    print(f"{protocol}: AUROC {result.validation['auroc']:.3f} after epoch {result.best_epoch}")
