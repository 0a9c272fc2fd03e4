"""Synthetic 12-lead recordings of five classes, so that the larger network runs without any data set.

A recording is a train of beats of a few dipole components (P, Q, R, S, ST, T; after McSharry et al. 2003), each of which every lead
sees with its own weight. Classes change what they change in life: elevated ST and Q waves in one territory of leads (MI), flat or
inverted T waves and depressed ST (STTC), a wide QRS (CD), high voltages with strain (HYP).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hesplit_native.data.dataset import Dataset
from hesplit_native.data.ptbxl import CLASSES, LEADS, SAMPLES, SAMPLING_RATE

# (seconds from R, width in seconds, amplitude in mV) of each wave.
_WAVES = np.array(
    [
        (-0.17, 0.022, 0.12),
        (-0.035, 0.010, -0.10),
        (0.0, 0.012, 1.0),
        (0.030, 0.011, -0.25),
        (0.10, 0.035, 0.0),
        (0.26, 0.050, 0.30),
    ]
)
_Q, _R, _S, _ST, _T = 1, 2, 3, 4, 5

# How each lead sees depolarisation: limb leads by the axis, chest leads from right to left.
_AXIS = np.array([0.6, 0.9, 0.3, -0.75, 0.2, 0.6, -0.5, -0.1, 0.4, 0.9, 0.9, 0.7])
_TERRITORIES = ((1, 2, 5), (6, 7, 8, 9), (0, 4, 10, 11))  # inferior, anterior, lateral

Signals = npt.NDArray[np.float32]


def synthetic_ptbxl(*, train: int = 2000, test: int = 500, seed: int = 0) -> Dataset:
    """Balanced classes; signals float32 [n, 12, 1000] of unit deviation; the same numbers for the same seed."""
    generator = np.random.default_rng(seed)
    train_x, train_y = _draw(generator, train)
    test_x, test_y = _draw(generator, test)
    return Dataset("synthetic12", "synthetic12", train_x, train_y, test_x, test_y, CLASSES)


def _draw(generator: np.random.Generator, count: int) -> tuple[Signals, npt.NDArray[np.int64]]:
    labels = generator.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    signals = np.stack([_recording(generator, CLASSES[label]) for label in labels])
    centred = signals - signals.mean(axis=2, keepdims=True)
    return (centred / centred.std(axis=(1, 2), keepdims=True)).astype(np.float32), labels


def _recording(generator: np.random.Generator, name: str) -> npt.NDArray[np.float64]:
    """One recording [12, 1000] in millivolts."""
    waves = _WAVES.copy()
    waves[:, 2] *= generator.normal(1.0, 0.2, len(waves))
    waves[:, 1] *= generator.uniform(0.85, 1.2)
    lead = np.outer(np.ones(len(waves)), _AXIS * generator.normal(1.0, 0.15, len(LEADS)))  # [wave, lead]
    if name == "MI":
        hit = list(_TERRITORIES[generator.integers(len(_TERRITORIES))])
        waves[_ST, 2] = generator.uniform(0.12, 0.35)
        waves[_Q, 2] *= generator.uniform(2.0, 4.0)
        lead[_ST] = 0.0
        lead[_ST, hit] = 1.0
        lead[_Q, [i for i in range(len(LEADS)) if i not in hit]] *= 0.3
    elif name == "STTC":
        waves[_T, 2] *= generator.uniform(-0.9, 0.1)
        waves[_ST, 2] = -generator.uniform(0.05, 0.15)
    elif name == "CD":
        waves[[_Q, _R, _S], 1] *= generator.uniform(1.9, 2.8)
        waves[_S, 2] *= generator.uniform(1.5, 3.0)
        waves[_S, 0] += 0.03
    elif name == "HYP":
        waves[[_R, _S], 2] *= generator.uniform(1.8, 2.6)
        lead[_T, 9:] *= -generator.uniform(0.3, 0.9)
    beat = generator.uniform(0.6, 1.1)
    peaks = np.cumsum(generator.normal(beat, 0.03 * beat, 20)) - generator.uniform(0, beat)
    time = np.arange(SAMPLES) / SAMPLING_RATE
    offset = time[None, :] - peaks[peaks < time[-1] + 0.5][:, None]  # [beat, sample]
    shapes = np.stack([np.exp(-0.5 * ((offset - at) / width) ** 2).sum(0) for at, width, _ in waves])
    signal = (lead * waves[:, 2:]).T @ shapes
    wander = generator.normal(0, 0.06, (len(LEADS), 1)) * np.sin(
        2 * np.pi * (generator.uniform(0.1, 0.4) * time + generator.uniform())
    )
    noisy: npt.NDArray[np.float64] = signal + wander + generator.normal(0, 0.03, signal.shape)
    return noisy
