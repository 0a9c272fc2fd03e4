"""Instructions that ARM kernels take, NEON and portable, counted one by one in QEMU.

For want of an ARM processor: how many instructions there are says little about how many run at once. After
`make test-aarch64`:

    python cpp/checks/instructions.py build/aarch64/cpp/kernels
"""

from __future__ import annotations

import re
import subprocess
import sys

QEMU = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]
# Kernel, bits of the prime or of what is packed, n, terms, and what a row counts per.
CASES = [
    ("forward", 27, 2048, 1, "butterfly"),
    ("forward", 45, 2048, 1, "butterfly"),
    ("forward", 49, 4096, 1, "butterfly"),
    ("inverse", 27, 2048, 1, "butterfly"),
    ("inverse", 36, 4096, 1, "butterfly"),
    ("inverse", 49, 4096, 1, "butterfly"),
    ("multiply", 49, 1024, 1, "residue"),
    ("dot", 27, 256, 64, "product"),
    ("inner", 27, 256, 16, "product"),
    ("combine", 27, 256, 64, "product"),
    ("dot_short", 25, 256, 16, "product"),
    ("add", 27, 1024, 1, "residue"),
    ("subtract_from", 27, 1024, 1, "residue"),
    ("negate", 27, 1024, 1, "residue"),
    ("add_small", 27, 1024, 1, "residue"),
    ("lift", 27, 1024, 1, "residue"),
    ("add_fraction", 27, 1024, 1, "residue"),
    ("ternary_dot", 64, 1024, 8, "product"),
    ("chacha20", 32, 64, 64, "byte"),
    ("noise", 48, 1024, 1, "sample"),
    ("accept", 27, 1024, 1, "word"),
    ("accept", 49, 1024, 1, "word"),
    ("pack", 30, 1024, 1, "value"),
    ("unpack", 30, 1024, 1, "value"),
    ("multiply_tile", 25, 144, 64, "product"),
]


def kernel_code(program: str) -> list[tuple[int, int]]:
    """First address and length of every function of the kernels, but for those that prepare tables."""
    listing = subprocess.run(["nm", "-C", "-S", program], capture_output=True, text=True, check=True).stdout
    scope = r"hesplit::(?:scalar::\(anonymous namespace\)|\(anonymous namespace\)::(?:neon|vectorised))::"
    found = re.findall(rf"^(\w+) (\w+) [tT] (?:[\w ]+ )?{scope}(?!prepare)", listing, re.MULTILINE)
    return [(int(start, 16), int(length, 16)) for start, length in found]


def load_address(program: str) -> int:
    """Where QEMU puts a position-independent program, always the same."""
    run = subprocess.run([*QEMU, "-d", "page", program, "?"], capture_output=True, text=True, check=False)
    text = re.search(r"^start_code\s+0x(\w+)", run.stderr, re.MULTILINE)
    if text is None:
        raise SystemExit("QEMU does not say where it puts the program")
    return int(text[1], 16)


def count(program: str, code: str, *case: object) -> int:
    """Instructions within `code` of one call: translated one at a time, each writes a line."""
    log = ["-singlestep", "-d", "exec,nochain", "-dfilter", code]
    run = subprocess.run([*QEMU, *log, program, *map(str, case)], capture_output=True, text=True, check=True)
    return run.stderr.count("\nTrace ") + run.stderr.startswith("Trace ")


def units(kernel: str, n: int, terms: int) -> int:
    """How often the innermost operation runs."""
    if kernel in ("forward", "inverse"):
        return n // 2 * (n.bit_length() - 1)
    return n * terms * (13 if kernel == "combine" else 1)


def main(program: str) -> None:
    """Print the table."""
    base = load_address(program)
    code = ",".join(f"{base + start:#x}+{length:#x}" for start, length in kernel_code(program))
    print("| kernel | bits | per | portable | NEON | times |\n|---|---|---|---|---|---|")
    for kernel, bits, n, terms, unit in CASES:
        portable, neon = (count(program, code, name, kernel, bits, n, terms) for name in ("scalar", "neon"))
        per = units(kernel, n, terms)
        row = [kernel, bits, unit, f"{portable / per:.1f}", f"{neon / per:.1f}", f"{portable / neon:.1f}"]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
