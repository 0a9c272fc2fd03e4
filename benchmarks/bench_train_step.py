"""Training steps of batch 4 on M1, in process: the price of encryption.

All protocols are trained in turn, a block of steps each, so that a slow moment of the machine is everyone's; the ratio of
medians counts. On one core it is the process' time that counts, which is a step's on an idle machine, and with both sides
working ahead a clock's.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter, process_time

import torch

import hesplit_native as hn
from benchmarks.bench_wire import PROTOCOLS
from hesplit_native import _core
from hesplit_native.data import synthetic_ecg
from hesplit_native.protocols.server import Server
from hesplit_native.training.client import Client
from hesplit_native.training.config import RunConfig
from hesplit_native.training.recipes import paper_task
from hesplit_native.training.run import in_process

STEPS, ROUNDS = 50, 8


def clients():
    """One client with a server of its own for every protocol."""
    found = {}
    for name, choice in {"local": {"protocol": "local"}, **PROTOCOLS}.items():
        config = RunConfig(**choice, batch_size=4, accept_leak=True)
        client = Client(
            config,
            paper_task(config, synthetic_ecg(train=10, test=10)),
            batches=10**6,
            connect=in_process(Server()),
        )
        client.begin()
        found[name] = client
    return found


def microseconds(ahead):
    """Median microseconds of a step by protocol."""
    torch.set_num_threads(1)
    hn.set_num_threads(1)
    before = _core.work_ahead()
    _core.set_work_ahead(ahead)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 4, 1, 128, generator=generator)
    labels = torch.randint(0, 5, (STEPS, 4), generator=generator)
    samples = {}
    clock = perf_counter if ahead else process_time
    try:
        everyone = clients()
        for _ in range(ROUNDS):
            for name, client in everyone.items():
                start = clock()
                for batch, target in zip(x, labels, strict=True):
                    client.learn(batch, target)
                samples.setdefault(name, []).append(1e6 * (clock() - start) / STEPS)
    finally:
        _core.set_work_ahead(before)
    return {name: median(values[1:]) for name, values in samples.items()}


class Steps:
    params = [["local", *PROTOCOLS], [False, True]]
    param_names = ["protocol", "ahead"]
    timeout = 300

    def setup_cache(self):
        return {ahead: microseconds(ahead) for ahead in (False, True)}

    def track_microseconds_per_step(self, found, protocol, ahead):
        return found[ahead][protocol]

    def track_times_plain(self, found, protocol, ahead):
        return found[ahead][protocol] / found[ahead]["plain"]


Steps.track_microseconds_per_step.unit = "us"
Steps.track_times_plain.unit = "times"
