"""Noise of differential privacy on a grid, and what it costs.

Noise that is drawn in floating point gives away what it is added to by its last bits: the sums of two values with noise are not the
same floats (Mironov 2012). So rows are rounded to whole steps of a grid, within a bound, and noised by integers (Canonne, Kamath,
Steinke 2020), which the core draws exactly under randomness of the operating system. What is released is a whole number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native import _core
from hesplit_native.choices import Mechanism
from hesplit_native.errors import ParameterError

# What the core takes (cpp/privacy/noise.h).
_MAX_BOUND = 2**23
_MAX_SCALE = 2**18


@dataclass(frozen=True)
class GridNoise:
    """Noise for rows within a bound: `bound` of their norm and `scale` of the noise, both in steps of `grid`.

    The norm is l2 and the noise Gaussian of deviation `scale` under ``"gaussian"``, l1 and Laplace under ``"laplace"``; ``"values"``
    bounds and noises every value on its own, by Laplace noise.
    """

    mechanism: Mechanism
    grid: float
    bound: int
    scale: int

    @classmethod
    def of(cls, mechanism: Mechanism, bound: float, multiplier: float) -> GridNoise:
        """Noise of at least `multiplier` times the sensitivity, 2 `bound`, on the finest grid that there is.

        ParameterError where the bound would be less than a step of it.
        """
        scale = 2 * bound * multiplier
        least = max(bound / _MAX_BOUND, scale / _MAX_SCALE)
        grid = math.ldexp(1.0, math.frexp(least)[1]) if 2.0**-100 < least < 2.0**98 else math.inf
        if bound < grid:
            raise ParameterError(
                f"noise of scale {scale:.3g} on values within {bound:.3g} leaves nothing of them, or is beyond what float32 holds; "
                "choose another clip or epsilon"
            )
        return cls(mechanism, grid, math.floor(bound / grid), math.ceil(scale / grid))

    def add(self, rows: Tensor) -> Tensor:
        """Rows [n, d] within the bound on the grid, with noise; float32. RangeError for NaN and infinities."""
        values = rows.detach().to(torch.float32).contiguous().numpy()
        return torch.from_numpy(_core.add_noise(values, self.mechanism, self.grid, self.bound, self.scale))

    def divergences(self, orders: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
        """The Rényi divergences of these orders that tell a row of `width` values from any other by one release."""
        if self.mechanism == "gaussian":  # theorem 14 of Canonne, Kamath, Steinke
            return orders * (2 * self.bound / self.scale) ** 2 / 2
        one = laplace_divergences(orders, 2 * self.bound, self.scale)
        return width * one if self.mechanism == "values" else one


def laplace_divergences(orders: npt.NDArray[np.float64], shift: int, scale: int) -> npt.NDArray[np.float64]:
    """The Rényi divergences of discrete Laplace noise, P(z) proportional to exp(-|z| / scale), from itself moved by `shift`.

    They are the sums of the geometric series left of both centres, between them and right of both. As convex functions of the shift
    that begin at 0 they are largest for a row of that l1 norm when all of it is in one value.
    """
    between = -(2 * orders - 1) / scale  # the logarithm of r in the sum of r^z
    one = 1 + math.exp(-1 / scale)
    near = (1 - np.exp(between) * math.expm1(-1 / scale) / -np.expm1(between)) / one
    far = math.exp(-1 / scale) * np.expm1(-(2 * orders - 2) / scale) / np.expm1(between) / one
    step = shift / scale
    total = np.logaddexp((orders - 1) * step + np.log(near), np.log(far) - orders * step)
    found: npt.NDArray[np.float64] = np.maximum(total, 0) / (orders - 1)
    return found
