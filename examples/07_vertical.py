"""Features at a bank, labels at its partner: `python examples/07_vertical.py`.

The partner's server holds the labels and the last layer, the bank its customers' features and the rest of the network. The bank learns
gradients of its own features, the partner one step of its own weights at a time; what follows from these is in docs/security.md.
"""

import numpy as np
import torch
from torch import nn

import hesplit_native as hn


def customers(rows, seed):  # income, debt and so on; the partner knows who paid
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 12))
    paid = x[:, 0] - x[:, 1] * x[:, 2] + 0.5 * np.abs(x[:, 3]) + 0.3 * random.normal(size=rows) > 0.3
    return x, paid.astype(np.int64)


torch.set_num_threads(1)  # small networks gain nothing from more
for protocol in ("local", "vertical"):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    result = hn.train(
        network, customers(1000, 0), validation=customers(500, 1), protocol=protocol, epochs=8, learning_rate=0.01
    )
    print(
        f"{protocol}: {result.validation['accuracy']:.1%} of customers are predicted right after epoch {result.best_epoch}"
    )
