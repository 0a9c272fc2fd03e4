"""Synthetic heartbeats of five classes, so that everything runs without any data set.

Beats are sums of Gaussian waves (P, Q, R, S, T; after McSharry et al. 2003) with the textbook signs of each class: wide notched QRS
and discordant T in left bundle branch block, rSR' in right bundle branch block, an early and odd P in atrial premature beats,
no P and a wide QRS with opposite T in ventricular ones. Each beat has its own gain, width, position, baseline and noise,
which a convolution tolerates and a linear model on the raw signal does not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hesplit_native.data.dataset import Dataset

CLASSES = ("N", "L", "R", "A", "V")
_SAMPLES = 128

# Waves as (time from the R peak, width, amplitude), times in fractions of the window.
_WAVES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "N": ((-0.17, 0.022, 0.16), (-0.030, 0.009, -0.12), (0.0, 0.013, 1.0), (0.030, 0.010, -0.22), (0.22, 0.045, 0.28)),
    "L": ((-0.19, 0.022, 0.15), (-0.028, 0.024, 0.72), (0.034, 0.026, 0.78), (0.24, 0.050, -0.30)),
    "R": (
        (-0.17, 0.022, 0.16),
        (-0.024, 0.010, 0.62),
        (0.006, 0.010, -0.38),
        (0.046, 0.020, 0.62),
        (0.22, 0.045, -0.14),
    ),
    "A": (
        (-0.115, 0.014, -0.13),
        (-0.030, 0.009, -0.12),
        (0.0, 0.013, 0.95),
        (0.030, 0.010, -0.22),
        (0.20, 0.040, 0.25),
    ),
    "V": ((0.0, 0.042, 0.95), (0.085, 0.030, -0.28), (0.25, 0.055, -0.42)),
}


def synthetic_ecg(*, train: int = 8000, test: int = 2000, seed: int = 0) -> Dataset:
    """Balanced classes; signals float32 [n, 1, 128] within [0, 1]; the same numbers for the same seed."""
    generator = np.random.default_rng(seed)
    train_x, train_y = _draw(generator, train)
    test_x, test_y = _draw(generator, test)
    return Dataset("synthetic", "synthetic", train_x, train_y, test_x, test_y, CLASSES)


def _draw(generator: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    labels = generator.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    time = np.linspace(-0.5, 0.5, _SAMPLES)
    signal = np.zeros((count, _SAMPLES))
    stretch = generator.uniform(0.8, 1.25, (count, 1))
    center = generator.uniform(-0.08, 0.08, (count, 1))
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(labels == label)
        for at, width, amplitude in _WAVES[name]:
            size = amplitude * generator.normal(1.0, 0.15, (len(rows), 1))
            place = center[rows] + at * stretch[rows] + generator.normal(0, 0.005, (len(rows), 1))
            spread = width * stretch[rows] * generator.uniform(0.85, 1.15, (len(rows), 1))
            signal[rows] += size * np.exp(-0.5 * ((time - place) / spread) ** 2)
    signal *= generator.uniform(0.4, 1.1, (count, 1))
    phase = generator.uniform(0, 2 * np.pi, (count, 1))
    signal += generator.uniform(0, 0.15, (count, 1)) * np.sin(
        2 * np.pi * generator.uniform(0.2, 1.2, (count, 1)) * time + phase
    )
    signal += generator.normal(0, 0.02, signal.shape)
    # One scale for all beats, like the min-max normalisation over a whole record.
    scaled = np.clip(0.35 + signal / 1.6, 0.0, 1.0).astype(np.float32)
    return scaled[:, None, :], labels
