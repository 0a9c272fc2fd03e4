"""Every kernel beside its floor, for every instruction set that this processor has.

    python -m benchmarks.floors [--rounds 300] [--write]

Kernels work on N = 2048 residues of 27 bits, as in a `splitways` step of batch 4. The floor of one is the longest of

- its multiplications, by how many a cycle takes,
- all its arithmetic, by how many vector instructions a cycle takes,
- its bytes, read twice as fast as they are copied or written as fast, at the measured rate of copies within the
  caches,

with the clock measured beside it. Counted is what the algorithm needs on each vector: products, sums, reductions,
moves between lanes that no layout avoids. Loads, stores, roots that are spread over lanes, the sorting of neighbours
in the last levels of a transform and loops are not: they have units of their own, or should. So no program does
better with the same algorithm and instructions, and a program that does as well has every unit busy in every cycle.
--write puts table and plot into docs/.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from hesplit_native import _core, _testing

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- floors: begin -->", "<!-- floors: end -->"
N, BITS, PACKED_BITS = 2048, 27, 28
BUTTERFLIES = N // 2 * 11
CHACHA_BLOCKS = 4 * N // 64  # coins for N words of 32 bits


class Units(NamedTuple):
    """What a cycle takes; of vectors, but for the portable code."""

    multiplications: float
    instructions: float


# Zen 3 and 4: four vector units of 256 bits, two of which multiply, measured on Zen 4 by runs of independent
# instructions (`vpmulld`, `vpmuludq`, `vfmadd`, `vpmadd52luq`: 1.98; `vpaddd`: 3.9). Zen 4 takes two cycles of them
# for 512 bits. Intel's processors have three units of 256 bits, two of 512, and `vpmulld` is two instructions there.
# The portable code multiplies 64 x 64 -> 128 bits once a cycle, and six instructions begin in one at most.
UNITS = {"avx512ifma": Units(1, 2), "avx2": Units(2, 4), "neon": Units(2, 4), "scalar": Units(1, 6)}


class Run(NamedTuple):
    """So many vectors (words, of the portable code), and what each takes."""

    vectors: float
    multiplications: float
    instructions: float


AVX2_MULTIPLY = [Run(N / 4, 3, 10)]  # Barrett: the product, its upper bits times 1 / q, q times that; two subtractions
WORK: dict[str, dict[str, list[Run]]] = {
    # A butterfly: Shoup's product in three multiplications (AVX2 in 32 bits has the upper halves of even and odd
    # lanes apart, so four, two moves and a blend), a sum, a difference with 2q. Then a reduction below q; with AVX2
    # words are halved and widened.
    "forward": {
        "avx512ifma": [Run(BUTTERFLIES / 8, 3, 7), Run(N / 8, 2, 5)],
        "avx2": [Run(BUTTERFLIES / 8, 4, 11), Run(N / 8, 3, 14)],
        "scalar": [Run(BUTTERFLIES, 3, 9)],
    },
    # As above, but for a sum that AVX2 keeps below 2q, and a last level that multiplies both sides.
    "inverse": {
        "avx512ifma": [Run(BUTTERFLIES / 8, 3, 7), Run(N / 16, 3, 4), Run(N / 8, 0, 2)],
        "avx2": [Run(BUTTERFLIES / 8, 4, 12), Run(N / 16, 4, 8), Run(N / 8, 0, 7)],
        "scalar": [Run(BUTTERFLIES, 3, 9)],
    },
    "multiply": {"avx512ifma": AVX2_MULTIPLY, "avx2": AVX2_MULTIPLY, "scalar": [Run(N, 6, 20)]},
    # Of two terms. IFMA: low and high limb of each, and five multiplications to reduce them; AVX2: two products in a
    # word, and six multiplications (of doubles) to reduce it.
    "dot": {"avx512ifma": [Run(N / 8, 9, 19)], "avx2": [Run(N / 4, 8, 25)], "scalar": [Run(N, 7, 22)]},
    "inner": {"avx512ifma": [Run(N / 8, 2, 2)], "avx2": [Run(N / 4, 1, 2)], "scalar": [Run(N, 1, 3)]},
    "ternary dot": {"avx512ifma": [Run(N / 8, 0, 5)], "avx2": [Run(N / 4, 0, 4)], "scalar": [Run(N / 2, 0, 4)]},
    "add": {"avx512ifma": [Run(N / 8, 0, 3)], "avx2": [Run(N / 4, 0, 5)], "scalar": [Run(N, 0, 4)]},
    # Integers of up to 62 bits: two limbs, each of which is multiplied with its power, and a quotient for both.
    "lift": {"avx512ifma": [Run(N / 8, 5, 21)], "avx2": [Run(N / 4, 6, 22)], "scalar": [Run(N, 2, 12)]},
    # Of one row: Shoup's product, a 64-bit fraction of it in two or four more multiplications; then a rounding shift.
    "switch to bits": {
        "avx512ifma": [Run(N / 8, 6, 13)],
        "avx2": [Run(N / 4, 7, 20)],
        "scalar": [Run(N, 5, 12)],
    },
    # A shift for every lane, bytes put into their places, neighbours joined.
    "pack": {"avx512ifma": [Run(N / 8, 0, 4)], "avx2": [Run(N / 8, 0, 14)], "scalar": [Run(N, 0, 4)]},
    "unpack": {"avx512ifma": [Run(N / 8, 0, 4)], "avx2": [Run(N / 4, 0, 5)], "scalar": [Run(N, 0, 4)]},
    # 80 quarter rounds of four additions, four exclusive ors and four rotations (AVX-512: an instruction; AVX2: of 16
    # and 8 bits one, else three; the portable code, as compilers make vectors of it, three), the sum with the state,
    # the way from words side by side to blocks; of 16, 8 and 4 blocks.
    "chacha20": {
        "avx512ifma": [Run(CHACHA_BLOCKS / 16, 0, 80 * 12 + 16 + 64)],
        "avx2": [Run(CHACHA_BLOCKS / 8, 0, 80 * 16 + 16 + 48)],
        "scalar": [Run(CHACHA_BLOCKS / 4, 0, 80 * 20 + 16 + 32)],
    },
    "reject": {"avx512ifma": [Run(N / 8, 0, 5)], "avx2": [Run(N / 4, 0, 4)], "scalar": [Run(N, 0, 4)]},
    # 21 + 21 of 48 coins: moved apart, counted by halves of bytes in a table, added up.
    "noise": {"avx512ifma": [Run(N / 8, 0, 16)], "avx2": [Run(N / 4, 0, 17)], "scalar": [Run(N, 0, 20)]},
}  # fmt: skip
WORD, PACKED = 8 * N, PACKED_BITS * N / 8
BYTES = {  # read, written
    "forward": (WORD, WORD),
    "inverse": (WORD, WORD),
    "multiply": (2 * WORD, WORD),
    "dot": (2 * WORD, WORD),
    "inner": (2 * WORD, 0),
    "ternary dot": (3 * WORD, 0),
    "add": (2 * WORD, WORD),
    "lift": (WORD, WORD),
    "switch to bits": (WORD, WORD),
    "pack": (WORD, PACKED),
    "unpack": (PACKED, WORD),
    "chacha20": (0, WORD / 2),
    "reject": (WORD / 2, WORD),
    "noise": (6 * N, N),
}


def floor_seconds(kernel: str, variant: str, clock: float, copies: float) -> float:
    """What no program goes below."""
    units = UNITS["avx2" if WORK[kernel][variant] is AVX2_MULTIPLY else variant]
    runs = WORK[kernel][variant]
    multiplications = sum(run.vectors * run.multiplications for run in runs) / units.multiplications
    instructions = sum(run.vectors * run.instructions for run in runs) / units.instructions
    read, written = BYTES[kernel]
    return max(max(multiplications, instructions) / clock, max(read / 2, written) / copies)


def measure(rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Microseconds of every kernel and its floor by instruction set."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for kernel in WORK:
        clock, copies = _testing.clock_rate(), _testing.copy_rate(WORD)
        found[kernel] = {
            variant: (
                1e6 * _testing.kernel_seconds(variant, kernel, N, BITS, rounds),
                1e6 * floor_seconds(kernel, variant, clock, copies),
            )
            for variant in _core.usable_kernels()
            if variant in WORK[kernel]
        }
    return found


def table(found: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    variants = list(found["forward"])
    lines = [
        f"{_testing.clock_rate() / 1e9:.2f} GHz, copies of {WORD // 1024} kB at {_testing.copy_rate(WORD) / 1e9:.0f} GB/s; µs.",
        "",
        "| kernel | " + " | ".join(f"{variant} | floor | times" for variant in variants) + " |",
        "|---|" + "---:|---:|---:|" * len(variants),
    ]
    for kernel, by_variant in found.items():
        cells = [f"{spent:.2f} | {floor:.2f} | {spent / floor:.1f}" for spent, floor in by_variant.values()]
        lines.append(f"| {kernel} | " + " | ".join(cells) + " |")
    return lines


def plot(found: dict[str, dict[str, tuple[float, float]]], path: Path) -> None:
    """Microseconds on a logarithmic axis, each kernel's floor as a mark within its bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    variants = list(found["forward"])
    colours = dict(zip(variants, ["#c2410c", "#0f766e", "#94a3b8"], strict=False))
    height = 0.8 / len(variants)
    figure, axis = plt.subplots(figsize=(5.6, 0.16 * len(variants) * len(found) + 0.9), layout="constrained")
    for index, variant in enumerate(variants):
        places = [row + (index - (len(variants) - 1) / 2) * height for row in range(len(found))]
        spent = [found[kernel][variant][0] for kernel in found]
        floors = [found[kernel][variant][1] for kernel in found]
        axis.barh(places, spent, height * 0.9, color=colours[variant], label=variant)
        axis.plot(
            floors, places, "|", color="black", markersize=5, label="floor" if index == len(variants) - 1 else None
        )
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel(f"µs, N = {N}, {BITS} bits (log scale)", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.margins(y=0.01)
    figure.legend(fontsize=7, loc="outside upper center", ncols=len(variants) + 1)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--write", action="store_true", help="put table and plot into docs/")
    options = parser.parse_args()
    found = measure(options.rounds)
    lines = table(found)
    print("\n".join(lines))
    if options.write:
        page = DOCS / "benchmarks.md"
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
        plot(found, DOCS / "floors.svg")


if __name__ == "__main__":
    main()
