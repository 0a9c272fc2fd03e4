"""Discrete noise on a grid, for differential privacy.

Noise that is drawn in floating point gives away what it is added to by its last bits: the sums of two values with noise are not the
same floats (Mironov 2012). So values are rounded to whole steps of a grid, a power of two, and noised by integers (Canonne, Kamath,
Steinke 2020); what is released is a whole number of steps, at most 2^24 of them, whatever the value was. The core draws the integers
from ChaCha20, from tables that are made here to 128 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hesplit_native import _core
from hesplit_native.errors import ParameterError

Kind = Literal["gaussian", "laplace"]
Norm = Literal["each", "l1", "l2"]

_STEPS = 2**24  # of the grid that float32 holds exactly
_DIGITS = Context(prec=80)
_SMALLEST = Decimal(2) ** -140  # relative weights below are left out
# Scales of noise that have to fit into these steps: beyond are 2^-64 of it.
_REACH: dict[Kind, float] = {"gaussian": 9.5, "laplace": 45.0}
_LEAST = 2.0**-6  # scale in steps: anything below is no noise at all
_STEP_RATIO = 64.0  # the step of a Gaussian's table over its deviation is below 1 / this
_DIGIT_BITS = 8


def table(weights: Sequence[Decimal]) -> _core.Table:
    """The distribution on 0, 1, … that is proportional to these weights."""
    with localcontext(_DIGITS):
        sums = list(accumulate(weights))
        cumulative = [int(part * 2**128 / sums[-1]) for part in sums[:-1]] + [2**128 - 1]
    return _core.Table(np.array([divmod(part, 2**64) for part in cumulative], dtype=np.uint64))


def discrete_gaussian(deviation: float) -> _core.DiscreteGaussian:
    """P(z) proportional to exp(-z² / 2 deviation²) for integers z, up to a statistical distance of 2^-115."""
    variance = deviation * deviation
    step_bits = max(0, math.floor(math.log2(deviation / _STEP_RATIO)))

    def weights() -> Iterator[Decimal]:
        # exp(-(step m)² / 2 variance) for m = 0, 1, …
        first = (-(Decimal(4) ** step_bits) / (2 * Decimal(variance))).exp()
        weight, ratio = Decimal(1), first
        while weight > _SMALLEST:
            yield weight
            weight, ratio = weight * ratio, ratio * first * first

    with localcontext(_DIGITS):
        multiples = table(list(weights()))
    return _core.DiscreteGaussian(multiples, step_bits, variance)


def discrete_laplace(scale: float) -> _core.DiscreteLaplace:
    """P(z) proportional to exp(-|z| / scale) for integers z, up to a statistical distance of 2^-115."""
    digits = []
    with localcontext(_DIGITS):
        ratio = (-1 / Decimal(scale)).exp()
        base = 2**_DIGIT_BITS
        while ratio ** (4 * base) > _SMALLEST:
            digits.append(table([ratio**digit for digit in range(base)]))
            ratio **= base
        last = [Decimal(1)]
        while last[-1] > _SMALLEST:
            last.append(last[-1] * ratio)
        digits.append(table(last))
    return _core.DiscreteLaplace(digits, _DIGIT_BITS)


@dataclass(frozen=True)
class GridNoise:
    """Noise of one kind for rows within `bound` in a norm.

    `steps` is the bound and `scale` the noise's scale (deviation of a Gaussian), both in steps of `grid`.
    """

    distribution: _core.Distribution
    grid: float
    steps: int
    scale: float
    norm: Norm

    def add(self, values: Tensor) -> Tensor:
        """Rows [n, d] on the grid, with noise; float32.

        No row that noise is added to is beyond `steps` in its norm: rounding to the nearest step is given up for rounding towards zero
        where it would be. RangeError for NaN and infinities.
        """
        rows = values.detach().to(torch.float32).contiguous().numpy()
        return torch.from_numpy(_core.add_noise(rows, self.distribution, self.grid, self.steps, self.norm))


@lru_cache(maxsize=64)
def grid_noise(kind: Kind, scale: float, bound: float, norm: Norm) -> GridNoise:
    """Noise of this scale for rows within the bound, on the finest grid on which float32 holds everything.

    ParameterError where no such grid is left.
    """
    try:
        exponent = math.ceil(math.log2((bound + _REACH[kind] * scale) / _STEPS))
    except (OverflowError, ValueError):
        exponent = 1000
    if abs(exponent) > 96:
        raise ParameterError(
            f"noise of scale {scale:.3g} on values within {bound:.3g} is beyond what float32 holds; choose another clip or epsilon"
        )
    grid = 2.0**exponent
    steps = max(scale / grid, _LEAST)
    distribution = discrete_gaussian(steps) if kind == "gaussian" else discrete_laplace(steps)
    return GridNoise(distribution, grid, math.floor(bound / grid), steps, norm)
