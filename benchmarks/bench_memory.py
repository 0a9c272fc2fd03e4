"""The largest resident set of a process that trains, beside that of one that trains without encryption."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource
import torch
import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.training import RunConfig, train
torch.set_num_threads(1)
hn.set_num_threads(1)
train(RunConfig(**{choice!r}, batch_size=4, accept_leak=True, epochs=1), synthetic_ecg(train=200, test=1000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def kilobytes(choice):
    command = [sys.executable, "-c", CODE.format(choice=choice)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


class Memory:
    params = ["splitways, flooding off", "splitways", "hesplit", "sealed"]
    param_names = ["protocol"]
    timeout = 300

    def track_megabytes_over_plain(self, protocol):
        from benchmarks.bench_wire import PROTOCOLS

        return (kilobytes(PROTOCOLS[protocol]) - kilobytes({"protocol": "plain"})) / 1024


Memory.track_megabytes_over_plain.unit = "MB"
