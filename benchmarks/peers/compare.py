"""Our layer beside those of others, interleaved in one run, into docs/benchmarks.md and a log-scale plot.

    python -m benchmarks.peers.compare [--seconds 10] [--shapes 256,2000] [--patient] [--write]
        [--python spu=/path/to/python] [--python openfhe=/path/to/python]

Peers whose wheels do not go with the others' (SPU: numpy 1; OpenFHE: CPython 3.10) run in the interpreter that `--python` names.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
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
    Ours, OursOnAvx2, OursMerged, OursMergedOnAvx2, OursFrozen, OursFrozenOnAvx2, Torch, SealPrimitives, OpenFHE, Spu, DesiloFHE,
    DesiloMatrices, TensealSlots, TensealVectors, TensealHESplit, TensealSplitWays, ConcreteML,
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


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else number(1e3 * seconds)


def size(count: int) -> str:
    return f"{count / 1e3:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def table(name: str, found: list[Row], left_out: dict[str, str]) -> list[str]:
    from hesplit_native import _core

    ours = next(sum(phases.values()) for layer, phases, _ in found if layer.name == Ours.name)
    lines = [
        f"### {name}",
        "",
        f"{platform.machine()}, kernels `{_core.kernels()}`.",
        "",
        "| | encrypt | weights | forward | decrypt | step, ms | slower than ours | once | up | down | largest error | runs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for layer, phases, runs in found:
        total = sum(phases.values())
        cells = [milliseconds(phases.get(phase)) for phase in ("encrypt", "weights", "forward", "decrypt")]
        sizes = ["" if layer.once == 0 else size(layer.once), *map(size, layer.bytes)]
        lines.append(
            f"| {layer.name} | {' | '.join(cells)} | {milliseconds(total)} | {number(total / ours)}× | {' | '.join(sizes)} | "
            f"{layer.worst:.1e} | {runs} |"
        )
    peers = by_value({f"*{peer}*": reason for peer, reason in left_out.items()})
    reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in peers.items())
    return [*lines, "", *([f"Left out: {reasons}.", ""] if reasons else [])]


def by_value(values: dict[str, str]) -> dict[str, list[str]]:
    """The keys of each value."""
    return {value: [key for key in values if values[key] == value] for value in values.values()}


def descriptions(peers: Sequence[type[Layer]]) -> list[str]:
    """What every peer is and gives, a line for those that are alike."""
    alike = by_value({f"*{peer.name}*": peer.about for peer in peers})
    return [*(f"- {', '.join(names)}: {about}." for about, names in alike.items()), ""]


def sections(text: str) -> dict[str, str]:
    """The tables of a page by their shapes, each with its heading."""
    parts = re.split(r"^(?=### )", text.split(BEGIN)[1].split(END)[0], flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("### "): part.strip() for part in parts}


def steps(section: str) -> dict[str, float]:
    """Milliseconds of a step by peer, as a table says."""
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    return {cells[1].strip(): float(cells[6].replace(",", "")) for cells in rows if cells[1].strip()}


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Milliseconds of a step by shape and peer on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    # Words stay words: as outlines they are most of the file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "peers"})
    from matplotlib import pyplot as plt

    # Below one another, so that a phone shows them as large as a book would.
    bars = [len(found) for found in results.values()]
    figure, axes = plt.subplots(
        len(results), 1, figsize=(5.6, 0.3 * sum(bars) + 0.9 * len(bars)), height_ratios=bars, layout="constrained", squeeze=False
    )  # fmt: skip
    for axis, (name, found) in zip(axes[:, 0], results.items(), strict=True):
        names, values = list(found)[::-1], list(found.values())[::-1]
        colours = ["#c2410c" if label.startswith(Ours.name) else "#64748b" for label in names]
        axis.barh(names, values, color=colours)
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("ms per step (log scale)", fontsize=8)
        axis.tick_params(labelsize=7)
        for index, value in enumerate(values):
            axis.text(value, index, f" {number(value)}", va="center", fontsize=7)
        axis.set_xlim(min(values) / 5, max(values) * 8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for every peer and shape")
    parser.add_argument("--shapes", default="", help="only shapes with one of these words, comma-separated")
    parser.add_argument("--patient", action="store_true", help="with products that take minutes to hours")
    parser.add_argument("--write", action="store_true", help="put the tables of these shapes, and the plot, into docs/")
    parser.add_argument("--python", action="append", default=[], help="PEER=INTERPRETER: where a peer runs")
    options = parser.parse_args()
    pythons = interpreters(options.python)
    Layer.patient = options.patient
    measured = {}
    for name, shape in SHAPES.items():
        if not any(word in name for word in options.shapes.split(",")):
            continue
        left_out: dict[str, str] = {}
        measured[name] = "\n".join(table(name, measure(shape, options.seconds, pythons, left_out), left_out)).strip()
        print(measured[name], flush=True)
    if options.write:
        page = DOCS / "benchmarks.md"
        text = page.read_text(encoding="utf-8")
        tables = sections(text) | measured
        head = "One thread each; medians, rounds interleaved in one run a table."
        ordered = {name: tables[name] for name in SHAPES if name in tables}
        parts = [BEGIN, "\n".join(descriptions(PEERS)).strip(), head, *ordered.values(), END]
        page.write_text(text.split(BEGIN)[0] + "\n\n".join(parts) + text.split(END)[1], encoding="utf-8")
        plot({name: steps(section) for name, section in ordered.items()}, DOCS / "peers.svg")


if __name__ == "__main__":
    main()
