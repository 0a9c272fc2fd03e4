"""Defences that cost accuracy: differential privacy and decorrelation.

Each is applied at the client, around whatever protocol is run: noise to activations before they are sent or encrypted, to dJ/dy before
anything is computed from it, to labels before training; a penalty on the correlation between signals and activations.
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import torch
from torch import Tensor

from hesplit_native.choices import Mechanism
from hesplit_native.errors import ParameterError
from hesplit_native.training.config import Defences


class Defender:
    """The defences of one client, with noise from the operating system's randomness.

    Parameters
    ----------
    activations
        Activations of a sample, for accounting.
    """

    def __init__(self, defences: Defences, activations: int) -> None:
        self.defences = defences
        self.width = activations
        self._generator = torch.Generator().manual_seed(secrets.randbits(63))
        self._activation_noise = self._gradient_noise = 0.0
        if defences.activation_epsilon is not None:
            multiplier = _noise_multiplier(defences, defences.mechanism, defences.activation_epsilon)
            self._activation_noise = 2 * defences.activation_clip * multiplier
        if defences.gradient_epsilon is not None:
            multiplier = _noise_multiplier(defences, self._gradient_mechanism, defences.gradient_epsilon)
            self._gradient_noise = 2 * defences.gradient_clip * multiplier

    @property
    def _gradient_mechanism(self) -> Mechanism:
        return "laplace" if self.defences.mechanism == "laplace" else "gaussian"

    def activations(self, values: Tensor) -> Tensor:
        """Activations [n, in] as they may be seen: clipped and noised, differentiably."""
        if not self._activation_noise:
            return values
        bound = self.defences.activation_clip
        if self.defences.mechanism == "values":
            clipped = values.clamp(-bound, bound)
        else:
            order = 1 if self.defences.mechanism == "laplace" else 2
            clipped = values * (bound / values.norm(p=order, dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        laplace = self.defences.mechanism != "gaussian"
        return clipped + self._noise(clipped.shape, self._activation_noise, laplace=laplace)

    def gradient(self, values: Tensor) -> Tensor:
        """dJ/dy [n, out] as it may be seen."""
        if not self._gradient_noise:
            return values
        laplace = self._gradient_mechanism == "laplace"
        bound = self.defences.gradient_clip / len(values)
        norms = values.norm(p=1 if laplace else 2, dim=1, keepdim=True)
        clipped = values * (bound / norms.clamp_min(1e-30)).clamp_max(1.0)
        found: Tensor = clipped + self._noise(values.shape, self._gradient_noise / len(values), laplace=laplace)
        return found

    def labels(self, values: Tensor, classes: int) -> Tensor:
        """Labels [n] after randomised response. Call it once for a data set: every further answer says more."""
        epsilon = self.defences.label_epsilon
        if epsilon is None:
            return values
        others = classes - 1
        change = torch.rand(len(values), generator=self._generator) < others / (math.exp(epsilon) + others)
        shift = torch.randint(1, classes, (len(values),), generator=self._generator)
        return torch.where(change, (values + shift) % classes, values)

    def penalty(self, signals: Tensor, activations: Tensor) -> Tensor:
        """What the loss gets for activations [n, in] that resemble the signals [n, ...]."""
        return self.defences.decorrelation * distance_correlation(signals.flatten(1), activations)

    def epsilon(self, epochs: int) -> float:
        """What a sample's releases add up to after so many epochs, at `delta`: activations, gradients and its label."""
        if not self.defences.private:
            return math.inf
        dp, accountant = _accounting()
        spent = accountant()
        if self._activation_noise:
            scale = self._activation_noise / (2 * self.defences.activation_clip)
            if self.defences.mechanism == "gaussian":
                event: Any = dp.GaussianDpEvent(scale)
            else:
                event = dp.LaplaceDpEvent(scale)
                if self.defences.mechanism == "values":
                    event = dp.SelfComposedDpEvent(event, self.width)
            spent.compose(event, epochs)
        if self._gradient_noise:
            scale = self._gradient_noise / (2 * self.defences.gradient_clip)
            laplace = self._gradient_mechanism == "laplace"
            spent.compose(dp.LaplaceDpEvent(scale) if laplace else dp.GaussianDpEvent(scale), epochs)
        noisy = self._activation_noise or self._gradient_noise
        total = float(spent.get_epsilon(self.defences.delta)) if noisy else 0.0
        return total + (self.defences.label_epsilon or 0.0)

    def _noise(self, shape: torch.Size, scale: float, *, laplace: bool) -> Tensor:
        if not laplace:
            return scale * torch.randn(shape, generator=self._generator)
        uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64) - 0.5
        return (-scale * uniform.sign() * torch.log1p(-2 * uniform.abs().clamp_max(0.5 - 1e-12))).float()


def _accounting() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise ParameterError(
            f"{error.name} is missing: pip install -c constraints.txt '.[privacy]' (from the source) brings it"
        ) from error
    return dp_accounting, RdpAccountant


def _noise_multiplier(defences: Defences, mechanism: Mechanism, epsilon: float) -> float:
    """The scale of the noise over the sensitivity."""
    if mechanism != "gaussian":
        return 1 / epsilon
    dp, accountant = _accounting()
    return float(dp.calibrate_dp_mechanism(accountant, dp.GaussianDpEvent, epsilon, defences.delta))


def distance_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Distance correlation of a batch's rows [n, p] and [n, q] (Székely et al. 2007), differentiable; 0 to 1."""

    def centred(rows: Tensor) -> Tensor:
        # The square root has no derivative at 0, which the diagonal is.
        distances = (torch.cdist(rows, rows).square() + 1e-12).sqrt()
        return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()

    x, y = centred(a), centred(b)
    variance = ((x * x).mean() * (y * y).mean()).sqrt().clamp_min(1e-12)
    return ((x * y).mean().clamp_min(0) / variance + 1e-12).sqrt()
