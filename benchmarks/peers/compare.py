"""Our layer beside those of others, interleaved in one run, into docs/benchmarks.md and a log-scale plot.

    python -m benchmarks.peers.compare [--seconds 10] [--shapes 256,2000] [--patient] [--write]
        [--python spu=/path/to/python] [--python openfhe=/path/to/python]

Peers whose wheels do not go with the others' (SPU: numpy 1; OpenFHE: CPython 3.10) run in the interpreter that `--python` names.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

# Before numpy and its like start their threads: everyone gets one.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from benchmarks.peers.concrete import ConcreteML  # noqa: E402
from benchmarks.peers.desilofhe import DesiloFHE, DesiloMatrices  # noqa: E402
from benchmarks.peers.elsewhere import Elsewhere, elsewhere  # noqa: E402
from benchmarks.peers.layers import (  # noqa: E402
    SHAPES,
    Layer,
    LeftOut,
    Ours,
    OursFrozen,
    OursFrozenOnAvx2,
    OursMerged,
    OursMergedOnAvx2,
    OursOnAvx2,
    SealPrimitives,
    Torch,
)  # fmt: skip
from benchmarks.peers.openfhe import OpenFHE  # noqa: E402
from benchmarks.peers.spu import Spu  # noqa: E402
from benchmarks.peers.tenseal import TensealHESplit, TensealSlots, TensealSplitWays, TensealVectors  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
PEERS: list[type[Layer]] = [
    Ours, OursOnAvx2, OursMerged, OursMergedOnAvx2, OursFrozen, OursFrozenOnAvx2, Torch, SealPrimitives, OpenFHE, Spu, DesiloFHE, DesiloMatrices,
    TensealSlots, TensealVectors, TensealHESplit, TensealSplitWays, ConcreteML,
]  # fmt: skip

Row = tuple["Layer | Elsewhere", dict[str, float], int]


def interpreters(options: Sequence[str]) -> dict[str, str]:
    """The interpreter by the peer's module, of options such as `spu=/path/to/python`."""
    found = dict(option.partition("=")[::2] for option in options)
    known = {peer.__module__.rpartition(".")[2] for peer in PEERS}
    for module, python in found.items():
        if module not in known or not python:
            raise SystemExit(f"--python takes PEER=INTERPRETER, and a peer is one of {', '.join(sorted(known))}")
    return found


def measure(
    shape: tuple[int, int, int], seconds: float, pythons: dict[str, str], left_out: dict[str, str]
) -> list[Row]:
    """Every peer's median seconds by phase, rounds interleaved; slow peers take part in fewer rounds."""
    layers: list[Layer | Elsewhere] = []
    for peer in PEERS:
        python = pythons.get(peer.__module__.rpartition(".")[2]) or (sys.executable if peer.environment else "")
        try:
            layers.append(elsewhere(peer, python)(*shape) if python else peer(*shape))
        except (ImportError, LeftOut) as error:
            left_out[peer.name] = str(error)
    samples: dict[str, list[dict[str, float]]] = {layer.name: [] for layer in layers}
    spent = dict.fromkeys(samples, 0.0)
    while waiting := [layer for layer in layers if spent[layer.name] < seconds]:
        for layer in waiting:
            quick = samples[layer.name] and sum(samples[layer.name][-1].values()) < 0.01
            start = perf_counter()
            try:
                samples[layer.name] += [layer.step() for _ in range(20 if quick else 1)]
            except LeftOut as error:
                left_out[layer.name] = str(error)
                layers.remove(layer)
                del samples[layer.name]
                continue
            spent[layer.name] += perf_counter() - start
    found = []
    for layer in layers:
        runs = samples[layer.name]
        found.append((layer, {phase: median(run[phase] for run in runs) for phase in runs[0]}, len(runs)))
        if isinstance(layer, Elsewhere):
            layer.close()
    return found


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def size(count: int) -> str:
    return f"{count / 1e3:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def table(name: str, found: list[Row], left_out: dict[str, str]) -> list[str]:
    ours = next(sum(phases.values()) for layer, phases, _ in found if layer.name == Ours.name)
    lines = [
        f"### {name}",
        "",
        "| | encrypt | weights | forward | decrypt | step, ms | slower than ours | once | up | down | largest error | runs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for layer, phases, runs in found:
        total = sum(phases.values())
        cells = [milliseconds(phases.get(phase)) for phase in ("encrypt", "weights", "forward", "decrypt")]
        sizes = ["" if layer.once == 0 else size(layer.once), *map(size, layer.bytes)]
        lines.append(
            f"| {layer.name} | {' | '.join(cells)} | {milliseconds(total)} | {total / ours:,.3g}× | {' | '.join(sizes)} | "
            f"{layer.worst:.1e} | {runs} |"
        )
    reasons = "; ".join(f"{peer} ({reason})" for peer, reason in left_out.items())
    return [*lines, "", *([f"Left out: {reasons}.", ""] if reasons else [])]


def securities(peers: Sequence[type[Layer]]) -> list[str]:
    """What every peer gives, a line each."""
    return [*(f"- *{peer.name}*: {peer.security}." for peer in peers), ""]


def plot(results: dict[str, list[Row]], path: Path) -> None:
    """Milliseconds of a step on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # Below one another, so that a phone shows them as large as a book would.
    bars = [len(found) for found in results.values()]
    figure, axes = plt.subplots(
        len(results), 1, figsize=(5.6, 0.3 * sum(bars) + 0.9 * len(bars)), height_ratios=bars, layout="constrained", squeeze=False
    )  # fmt: skip
    for axis, (name, found) in zip(axes[:, 0], results.items(), strict=True):
        names = [layer.name for layer, _, _ in found][::-1]
        values = [1e3 * sum(phases.values()) for _, phases, _ in found][::-1]
        colours = ["#c2410c" if label.startswith(Ours.name) else "#64748b" for label in names]
        axis.barh(names, values, color=colours)
        axis.set_xscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("ms per step (log scale)", fontsize=8)
        axis.tick_params(labelsize=7)
        for index, value in enumerate(values):
            axis.text(value, index, f" {value:,.0f}" if value >= 100 else f" {value:.3g}", va="center", fontsize=7)
        axis.set_xlim(min(values) / 5, max(values) * 8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for every peer and shape")
    parser.add_argument("--shapes", default="", help="only shapes with one of these words, comma-separated")
    parser.add_argument("--patient", action="store_true", help="with products that take minutes to hours")
    parser.add_argument("--write", action="store_true", help="put table and plot into docs/")
    parser.add_argument("--python", action="append", default=[], help="PEER=INTERPRETER: where a peer runs")
    options = parser.parse_args()
    pythons = interpreters(options.python)
    Layer.patient = options.patient
    import hesplit_native

    results = {}
    lines = [
        f"{platform.machine()}, kernels `{hesplit_native._core.kernels()}`, one thread each; medians, rounds interleaved in one run.",
        "",
    ]
    for name, shape in SHAPES.items():
        if not any(word in name for word in options.shapes.split(",")):
            continue
        left_out: dict[str, str] = {}
        results[name] = measure(shape, options.seconds, pythons, left_out)
        rows = table(name, results[name], left_out)
        print("\n".join(rows), flush=True)
        lines += rows
    lines += securities(PEERS)
    if options.write:
        page = DOCS / "benchmarks.md"
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}", encoding="utf-8")
        plot(results, DOCS / "peers.svg")


if __name__ == "__main__":
    main()
