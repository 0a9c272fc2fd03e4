"""Parameters of layers whose rows are scaled by their own norms: precision relative to the data, and nothing agreed depends on it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import ParameterError, RangeError
from hesplit_native.layer.parameters import GIGABIT, Parameters, byte_nanoseconds

#: Rows of one request at most; more only take memory.
MAX_ROWS = 2048
#: Layouts follow the rows that come: the bound must hold for each of them.
_ROWS = tuple(2**k for k in range(MAX_ROWS.bit_length()))
# About float32's own precision; larger rings hold the first, N = 2048 one of them up to some thousand features.
_ERROR_BOUNDS = (2e-6, 3e-6, 4e-6, 6e-6, 8e-6)
_SETS = ((2048, (25, 26)), (2048, (26, 27)), (4096, (30, 30)), (4096, (40, 40)))


@lru_cache(maxsize=256)
def normalised_parameters(in_features: int, out_features: int) -> Parameters:
    """The smallest 128-bit set for ``y = x W^T`` with rows of x and of W of l2 norm at most 1, whatever the number of rows.

    Its error bound E is absolute at that norm: for x and W as they are, ``|decrypted - exact| <= E |x_i| max_j |W_j|``, except with
    probability 2**-39 an output.

    Raises
    ------
    ParameterError
        When no supported ring holds so many features.
    """
    for ring_degree, modulus_bits in _SETS:
        for error_bound in _ERROR_BOUNDS:
            found = _at_best_scale(ring_degree, modulus_bits, error_bound, in_features, out_features)
            if found is not None:
                return found
    raise ParameterError(
        f"no 128-bit parameter set computes {in_features} -> {out_features} to a relative error of {_ERROR_BOUNDS[-1]:g}; split the "
        "layer's input features"
    )


def _at_best_scale(
    ring_degree: int, modulus_bits: tuple[int, ...], error_bound: float, in_features: int, out_features: int
) -> Parameters | None:
    def at(scale: float) -> Parameters:
        return Parameters(
            ring_degree, modulus_bits, scale, activation_bound=1.0, activation_norm=1.0, error_bound=error_bound
        )

    start = at(2.0**20)
    shapes = [(in_features, out_features, rows) for rows in _ROWS]
    scales = [start._native.best_scale(*shape, 1.0, byte_nanoseconds(GIGABIT)) for shape in shapes]
    if min(scales) == 0:
        return None
    # Every layout has a scale of its own at which it is best; one must serve all.
    for scale in sorted(set(scales)):
        candidate = at(scale)
        if _holds(candidate, shapes):
            return candidate
    return None


def _holds(parameters: Parameters, shapes: list[tuple[int, int, int]]) -> bool:
    try:
        for shape in shapes:
            parameters.estimate(*shape, weight_norm=1.0)
    except RangeError:
        return False
    return True


def normalised_rows(x: npt.NDArray[Any], name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rows [n, d] of l2 norm at most 1, and what they were divided by, [n]; by parts, so that no square overflows or vanishes.

    Raises
    ------
    RangeError
        For NaN and infinity, and for a row whose norm float64 does not hold.
    """
    largest = np.abs(x).max(axis=1, initial=0.0).astype(np.float64)
    if not np.isfinite(largest).all():
        raise RangeError(f"{name} contains NaN or Inf")
    inside = x / np.where(largest > 0, largest, 1.0)[:, None]
    # A little more, so that rounding leaves no row beyond 1.
    parts = np.maximum(np.sqrt(np.einsum("ij,ij->i", inside, inside)), 1.0) * (1 + 1e-9)
    inside /= parts[:, None]
    with np.errstate(over="ignore"):
        norms = largest * parts
    if not np.isfinite(norms).all():
        raise RangeError(f"{name} has a row whose norm is beyond float64")
    return inside, norms
