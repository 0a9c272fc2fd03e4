"""What travels: bytes of a step by protocol, and of evaluation."""

from __future__ import annotations

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.training import RunConfig, train

PROTOCOLS = {
    "plain": {"protocol": "plain"},
    "splitways, flooding off": {"protocol": "splitways", "flooding": "off"},
    "splitways": {"protocol": "splitways"},
    "splitways, one key per run": {"protocol": "splitways", "flooding": "run"},
    "hesplit": {"protocol": "hesplit"},
    "sealed": {"protocol": "sealed"},
}


class StepBytes:
    params = [list(PROTOCOLS), [4, 64]]
    param_names = ["protocol", "batch size"]
    timeout = 120

    def setup(self, protocol, batch_size):
        hn.set_num_threads(1)
        self.data = synthetic_ecg(train=10 * batch_size, test=5)

    def track_bytes_per_step(self, protocol, batch_size):
        result = train(RunConfig(**PROTOCOLS[protocol], batch_size=batch_size, epochs=1, accept_leak=True), self.data)
        return (result.bytes_up + result.bytes_down) / result.batches


StepBytes.track_bytes_per_step.unit = "bytes"
