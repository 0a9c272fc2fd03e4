"""Training steps of batch 4 on M1, in process: the price of encryption."""

from __future__ import annotations

import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.training import RunConfig, train

STEPS = 100


FLOODING = {"flooding off": "off", "one key per run": "run"}


def config(name, epochs):
    protocol, _, flooding = name.partition(", ")
    return RunConfig(protocol=protocol, flooding=FLOODING.get(flooding, "step"), epochs=epochs)


class Steps:
    params = [
        "local",
        "plain",
        "splitways, flooding off",
        "splitways",
        "splitways, one key per run",
        "hesplit",
        "sealed",
    ]
    param_names = ["protocol"]
    timeout = 120

    def setup(self, protocol):
        torch.set_num_threads(1)
        hn.set_num_threads(1)
        self.data = synthetic_ecg(train=4 * STEPS, test=5)

    def track_milliseconds_per_step(self, protocol):
        result = train(config(protocol, epochs=3), self.data)
        return 1e3 * min(record.seconds for record in result.history) / STEPS

    def track_bytes_per_step(self, protocol):
        result = train(config(protocol, epochs=1), self.data)
        return (result.bytes_up + result.bytes_down) / result.batches


Steps.track_milliseconds_per_step.unit = "ms"
Steps.track_bytes_per_step.unit = "bytes"
