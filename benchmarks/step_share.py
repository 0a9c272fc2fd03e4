"""How much of a plaintext training step a `splitways` step's cryptography takes, with every usable instruction set.

    python -m benchmarks.step_share [--rounds 300] [--runs 3] [--beside ANOTHER/CHECKOUT/python]

Batch 4, 256 -> 5, new weights in every step, one thread, nothing worked ahead. Each instruction set has a process of
its own, torch held to the same one; in it steps of `plain` on M1 and the calls of the core that a step of `splitways`
makes take turns, so that the calls find the caches as a training step leaves them; then the calls alone are repeated
("hot"). Medians of process time. With --beside, another build's processes take turns with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time_ns

import numpy as np

LIKE_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
TORCH = {"avx512ifma": {}, "avx2": LIKE_AVX2, "scalar": {"ATEN_CPU_CAPABILITY": "default"}}
PARTS = ["encrypt", "weights", "cost", "forward", "decrypt"]


def measure(rounds: int) -> dict[str, float]:
    """Median microseconds of a plaintext step and of each call."""
    import torch

    import hesplit_native as hn
    from hesplit_native import _core
    from hesplit_native.data import synthetic_ecg
    from hesplit_native.protocols.server import Server
    from hesplit_native.training.client import Client
    from hesplit_native.training.config import RunConfig
    from hesplit_native.training.recipes import paper_task
    from hesplit_native.training.run import in_process

    torch.set_num_threads(1)
    hn.set_num_threads(1)
    _core.set_work_ahead(False)
    config = RunConfig(protocol="plain", batch_size=4, accept_leak=True)
    data = synthetic_ecg(train=10, test=10)
    plain = Client(config, paper_task(config, data), batches=10**6, connect=in_process(Server()))
    plain.begin()
    torch.manual_seed(0)
    batch, labels = torch.randn(4, 1, 128), torch.randint(0, 5, (4,))
    n, d, o = 4, 256, 5
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, d)).astype(np.float32)
    weight, bias = generator.normal(size=(o, d)) / 4, generator.normal(size=o)
    params = hn.Parameters.recommend(in_features=d, out_features=o, batch_size=n)
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o)
    server = hn.LinearServer(client.public_material(), weight, bias)
    samples: dict[str, list[int]] = {}
    prefix = ""

    def timed(name: str, call: Callable[[], object]) -> object:
        start = process_time_ns()
        result = call()
        samples.setdefault(prefix + name, []).append(process_time_ns() - start)
        return result

    def cryptography() -> None:
        request = timed("encrypt", lambda: client.encrypt(x))
        timed("weights", lambda: server.set_weight(weight, bias))
        timed("cost", lambda: server.cost(request))
        reply = timed("forward", lambda: server.forward(request))
        timed("decrypt", lambda: client.decrypt(reply))

    for _ in range(rounds):
        timed("plain", lambda: plain.learn(batch, labels))
        cryptography()
    prefix = "hot "
    for _ in range(rounds):
        cryptography()
    return {name: median(values) / 1000 for name, values in samples.items()}


def run(variant: str, rounds: int, package: Path | None) -> dict[str, float]:
    """`measure` in a process of its own, of the package in `package` or of ours."""
    env = {**os.environ, **TORCH.get(variant, {}), "HESPLIT_CPU": variant}
    if package:
        env["PYTHONPATH"] = os.pathsep.join([str(package), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "benchmarks.step_share", "--rounds", str(rounds), "--measure"]
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3, help="processes of each kind")
    parser.add_argument("--beside", type=Path, help="the python folder of another checkout, built")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.rounds)))
        return
    from hesplit_native import _core

    sides = {"": None, **({" (beside)": args.beside} if args.beside else {})}
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.runs):
        for variant in _core.usable_kernels():
            for side, package in sides.items():
                found.setdefault(variant + side, []).append(run(variant, args.rounds, package))
    print("| kernels | " + " | ".join(PARTS) + " | cryptography | plaintext step | share | hot | share |")
    print("|---|" + "---:|" * (len(PARTS) + 5))
    for name, runs in found.items():
        parts = [median(one[part] for one in runs) for part in PARTS]
        whole = [sum(one[part] for part in PARTS) for one in runs]
        hot = [sum(one["hot " + part] for part in PARTS) for one in runs]
        shares = [median(mine / one["plain"] for mine, one in zip(times, runs, strict=True)) for times in (whole, hot)]
        cells = [f"{time:.0f}" for time in (*parts, median(whole), median(one["plain"] for one in runs))]
        print(f"| {name} | {' | '.join(cells)} | {shares[0]:.3f} | {median(hot):.0f} | {shares[1]:.3f} |")


if __name__ == "__main__":
    main()
