"""Defences that cost accuracy: differential privacy and decorrelation.

Each is applied at the client, around whatever protocol is run: noise to activations before they are sent or encrypted, to dJ/dy before
anything is computed from it, to labels before training; a penalty on the correlation between signals and activations.
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesplit_native.choices import Mechanism
from hesplit_native.errors import ParameterError
from hesplit_native.training.config import Defences
from hesplit_native.training.noise import GridNoise

#: Of Rényi divergences. With them composition is tight enough for one release and for many thousands.
_ORDERS = np.concatenate([np.linspace(1.1, 10.9, 99), np.arange(11, 64), 2.0 ** np.arange(6, 21)])


class Defender:
    """The defences of one client, with randomness of the operating system for everything that is noised.

    Parameters
    ----------
    activations
        Activations of a sample, for accounting.
    """

    def __init__(self, defences: Defences, activations: int) -> None:
        self.defences = defences
        self.width = activations
        self._activation_noise = self._gradient_noise = None
        if defences.activation_epsilon is not None:
            self._activation_noise = _noise(
                defences, defences.mechanism, defences.activation_epsilon, defences.activation_clip
            )
        if defences.gradient_epsilon is not None:
            mechanism: Mechanism = "laplace" if defences.mechanism == "laplace" else "gaussian"
            self._gradient_noise = _noise(defences, mechanism, defences.gradient_epsilon, defences.gradient_clip)

    def activations(self, values: Tensor) -> Tensor:
        """Activations [n, in] as they may be seen: clipped and noised on a grid, differentiably."""
        if self._activation_noise is None:
            return values
        bound = self.defences.activation_clip
        if self.defences.mechanism == "values":
            clipped = values.clamp(-bound, bound)
        else:
            order = 1 if self.defences.mechanism == "laplace" else 2
            clipped = values * (bound / values.norm(p=order, dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        found: Tensor = _Noised.apply(clipped, self._activation_noise)  # type: ignore[no-untyped-call]
        return found

    def gradient(self, values: Tensor) -> Tensor:
        """dJ/dy [n, out] as it may be seen: rows of norm `gradient_clip` / n at most, noised on a grid."""
        if self._gradient_noise is None:
            return values
        return self._gradient_noise.add(values * len(values)) / len(values)

    def labels(self, values: Tensor, classes: int) -> Tensor:
        """Labels [n] after randomised response. Call it once for a data set: every further answer says more."""
        epsilon = self.defences.label_epsilon
        if epsilon is None:
            return values
        # Of 2^64 equally likely numbers so many change a label: at least the share that epsilon asks for.
        share = (classes - 1) * math.exp(-epsilon) / (1 + (classes - 1) * math.exp(-epsilon))
        changing = math.ceil(share * 2.0**64)
        shifts = [secrets.randbelow(classes - 1) + 1 if secrets.randbits(64) < changing else 0 for _ in values]
        return (values + torch.tensor(shifts, dtype=values.dtype)) % classes

    def penalty(self, signals: Tensor, activations: Tensor) -> Tensor:
        """What the loss gets for activations [n, in] that resemble the signals [n, ...]."""
        return self.defences.decorrelation * distance_correlation(signals.flatten(1), activations)

    def epsilon(self, activations: int, gradients: int | None = None, labels: int = 1) -> float:
        """What releases of a sample add up to, at `delta`: so many of its activations, of its dJ/dy (None: as many), of its label."""
        if not self.defences.private:
            return math.inf
        counts = (
            (self._activation_noise, activations),
            (self._gradient_noise, activations if gradients is None else gradients),
        )
        noised = [(noise, count) for noise, count in counts if noise is not None]
        total = labels * (self.defences.label_epsilon or 0.0)
        if not any(count for _, count in noised):
            return total
        dp = _accounting()
        spent = sum(count * noise.divergences(_ORDERS, self.width) for noise, count in noised)
        return total + float(dp.rdp.compute_epsilon(_ORDERS, spent, self.defences.delta)[0])


class _Noised(torch.autograd.Function):
    """Noise on a grid. What is released is a whole number of steps, so it is not the sum of the values and a constant."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, noise: GridNoise) -> Tensor:
        return noise.add(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError as error:
        raise ParameterError(
            f"{error.name} is missing: pip install -c constraints.txt '.[privacy]' (from the source) brings it"
        ) from error
    return dp_accounting


def _noise(defences: Defences, mechanism: Mechanism, epsilon: float, clip: float) -> GridNoise:
    """The noise of one release, for rows (or values) within `clip`."""
    dp = _accounting()  # what is released is accounted for, whatever the noise: better missed now than when a run ends
    if mechanism != "gaussian":
        return GridNoise.of(mechanism, clip, 1 / epsilon)
    multiplier = dp.calibrate_dp_mechanism(dp.rdp.RdpAccountant, dp.GaussianDpEvent, epsilon, defences.delta)
    return GridNoise.of(mechanism, clip, float(multiplier))


def distance_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Distance correlation of a batch's rows [n, p] and [n, q] (Székely et al. 2007), differentiable; 0 to 1."""

    def centred(rows: Tensor) -> Tensor:
        # The square root has no derivative at 0, which the diagonal is.
        distances = (torch.cdist(rows, rows).square() + 1e-12).sqrt()
        return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()

    x, y = centred(a), centred(b)
    variance = ((x * x).mean() * (y * y).mean()).sqrt().clamp_min(1e-12)
    return ((x * y).mean().clamp_min(0) / variance + 1e-12).sqrt()
