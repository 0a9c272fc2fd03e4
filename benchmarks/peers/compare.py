"""Our layer beside those of others, interleaved in one run, into docs/benchmarks.md and a log-scale plot.

python -m benchmarks.peers.compare [--seconds 10] [--shapes 256,2000] [--patient] [--write]
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from statistics import median
from time import perf_counter

# Before numpy and its like start their threads: everyone gets one.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from benchmarks.peers.layers import PEERS, SHAPES, ConcreteML, Layer, Ours  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


def measure(shape: tuple[int, int, int], seconds: float) -> list[tuple[Layer, dict[str, float], int]]:
    """Every peer's median seconds by phase, rounds interleaved; slow peers take part in fewer rounds."""
    layers: list[Layer] = []
    for peer in PEERS:
        try:
            layers.append(peer(*shape))
        except ImportError as error:
            print(f"  {peer.name}: left out ({error})")
    samples: dict[str, list[dict[str, float]]] = {layer.name: [] for layer in layers}
    spent = dict.fromkeys(samples, 0.0)
    deadline = perf_counter() + seconds * len(layers)
    while perf_counter() < deadline or not all(samples.values()):
        for layer in layers:
            if spent[layer.name] > seconds and samples[layer.name]:
                continue
            quick = samples[layer.name] and sum(samples[layer.name][-1].values()) < 0.01
            for _ in range(20 if quick else 1):
                start = perf_counter()
                samples[layer.name].append(layer.step()[0])
                spent[layer.name] += perf_counter() - start
    found = []
    for layer in layers:
        runs = samples[layer.name]
        found.append((layer, {phase: median(run[phase] for run in runs) for phase in runs[0]}, len(runs)))
    return found


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def table(name: str, found: list[tuple[Layer, dict[str, float], int]]) -> list[str]:
    ours = next(sum(phases.values()) for layer, phases, _ in found if isinstance(layer, Ours))
    lines = [
        f"### {name}",
        "",
        "| | encrypt | weights | forward | decrypt | step, ms | slower than ours | up | down | largest error | runs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for layer, phases, runs in found:
        total = sum(phases.values())
        cells = [milliseconds(phases.get(phase)) for phase in ("encrypt", "weights", "forward", "decrypt")]
        up, down = (f"{count / 1e3:,.1f} kB" for count in layer.bytes)
        lines.append(
            f"| {layer.name} | {' | '.join(cells)} | {milliseconds(total)} | {total / ours:,.3g}× | {up} | {down} | "
            f"{layer.error():.1e} | {runs} |"
        )
    return [*lines, ""]


def plot(results: dict[str, list[tuple[Layer, dict[str, float], int]]], path: Path) -> None:
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
        colours = ["#c2410c" if label == Ours.name else "#64748b" for label in names]
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
    parser.add_argument("--patient", action="store_true", help="with products that take half an hour")
    parser.add_argument("--write", action="store_true", help="put table and plot into docs/")
    options = parser.parse_args()
    ConcreteML.patient = options.patient
    import hesplit_native

    results = {}
    lines = [
        f"{platform.machine()}, kernels `{hesplit_native._core.kernels()}`, one thread each; medians, rounds interleaved in one run.",
        "",
    ]
    for name, shape in SHAPES.items():
        if not any(word in name for word in options.shapes.split(",")):
            continue
        results[name] = measure(shape, options.seconds)
        rows = table(name, results[name])
        print("\n".join(rows), flush=True)
        lines += rows
    if options.write:
        page = DOCS / "benchmarks.md"
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}", encoding="utf-8")
        plot(results, DOCS / "peers.svg")


if __name__ == "__main__":
    main()
