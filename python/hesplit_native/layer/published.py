"""The parameter sets that the papers published."""

from __future__ import annotations

from dataclasses import dataclass

from hesplit_native.choices import Security


@dataclass(frozen=True)
class ParameterSet:
    """Ring degree P, primes C in bits and scale, as a paper states them. ``"paper"``: below 128 bits by the 2024 guideline."""

    ring_degree: int
    modulus_bits: tuple[int, ...]
    scale: float
    security: Security = "standard"


#: Split Ways, table 1, and HESplit's S1 and S2 (Split Without a Leak, experimental results).
PARAMETER_SETS = {
    "8192-60": ParameterSet(8192, (60, 40, 40, 60), 2.0**40),
    "8192-40": ParameterSet(8192, (40, 21, 21, 40), 2.0**21),
    "4096-20": ParameterSet(4096, (40, 20, 20), 2.0**21),
    "4096-40": ParameterSet(4096, (40, 20, 40), 2.0**20),
    "2048-18": ParameterSet(2048, (18, 18, 18), 2.0**16, "paper"),
    "S1": ParameterSet(8192, (40, 21, 21, 21, 40), 2.0**21),
    "S2": ParameterSet(16384, (40, 21, 21, 21, 40), 2.0**21),
}
