"""The inner loops of every instruction set, and SEAL's transforms beside them; timed in a native loop."""

from __future__ import annotations

from hesplit_native import _core, _testing

ROUNDS = 100


class Kernels:
    params = [
        ["forward", "inverse", "multiply", "lift", "switch to bits", "pack", "unpack", "chacha20", "reject", "noise"],
        _core.usable_kernels(),
        [(2048, 27), (2048, 49), (4096, 35)],
    ]
    param_names = ["kernel", "instruction set", "(degree, bits of the prime)"]

    def track_microseconds(self, kernel, variant, ring):
        return 1e6 * _testing.kernel_seconds(variant, kernel, *ring, ROUNDS)


class Transforms:
    """How many times as fast as SEAL's: measured one after the other, several times in turn; the median counts."""

    params = [["forward", "inverse"], _core.usable_kernels(), [(2048, 27), (2048, 49), (4096, 35), (4096, 49)]]
    param_names = ["kernel", "instruction set", "(degree, bits of the prime)"]

    def track_speed_over_seal(self, kernel, variant, ring):
        ratios = sorted(
            _testing.kernel_seconds("seal", kernel, *ring, ROUNDS)
            / _testing.kernel_seconds(variant, kernel, *ring, ROUNDS)
            for _ in range(5)
        )
        return ratios[2]


Kernels.track_microseconds.unit = "us"
Transforms.track_speed_over_seal.unit = "times"
