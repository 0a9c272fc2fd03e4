"""Whole epochs of `hesplit_native.train` beside a loop written by hand over the same layer, `nn.SplitLinear`.

    python -m benchmarks.own_loop

Both train the same network on the same batches under the same protocol, with a server in the process, an epoch each in turn. The
ratio of medians counts. `without a server` is torch alone, whole network, by hand.
"""

from __future__ import annotations

import sys
from contextlib import closing
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.nn import SplitLinear
from hesplit_native.training.config import RunConfig
from hesplit_native.training.fit import _data, _task
from hesplit_native.training.run import Run

ROWS, BATCH, CLASSES, EPOCHS = 3200, 32, 10, 15


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    )  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 1, 16, 16, generator=generator), torch.randint(0, CLASSES, (ROWS,), generator=generator)


def by_hand(layer):
    """Epochs of a loop of one's own."""
    x, y = data()
    whole = nn.Sequential(network(), nn.Flatten(), layer)
    optimizer = torch.optim.Adam(whole.parameters(), lr=1e-3, fused=True)
    order = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(ROWS, generator=order).split(BATCH):
            loss = nn.functional.cross_entropy(whole(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield


def by_run(protocol):
    """Epochs of the library's loop, as `train` goes through it."""
    config = RunConfig(protocol=protocol, batch_size=BATCH, epochs=10**6)
    found = _data(data(), None, None, outputs=None, own_loss=False, seed=0, names=None)
    run = Run(config, _task(network(), found, config, None, torch.device("cpu"), metrics=False), [np.arange(ROWS)])
    run.begin()
    while True:
        with closing(run.epoch()) as batches:
            for _ in batches:
                pass
        run.close_epoch()
        yield


def seconds(protocol):
    """Median seconds of an epoch, by who wrote the loop."""
    torch.set_num_threads(1)
    hn.set_num_threads(1)
    layer = SplitLinear(16 * 4 * 4, CLASSES, protocol, batch_size=BATCH)
    loops = {"train": by_run(protocol), "by hand": by_hand(layer), "without a server": by_hand(nn.Linear(256, CLASSES))}
    taken = {name: [] for name in loops}
    for epoch in range(EPOCHS):
        for name, loop in loops.items():
            start = perf_counter()
            next(loop)
            if epoch:  # the first one warms up
                taken[name].append(perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


def main(protocols):
    for protocol in protocols:
        found = seconds(protocol)
        print(
            f"{protocol:10} {', '.join(f'{name} {1e3 * value / (ROWS / BATCH):.3f} ms a step' for name, value in found.items())}; "
            f"train : by hand {found['train'] / found['by hand']:.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["plain", "splitways", "sealed"])
