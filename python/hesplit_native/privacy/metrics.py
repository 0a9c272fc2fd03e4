"""How close an estimate is to the truth: correlation, and what Abuadbba et al. measure between signals and activation maps.

They plot each channel of the last convolution beside its input ("visual invertibility") and quantify the resemblance by distance
correlation (Székely et al. 2007) and dynamic time warping, for the mean and the worst channel.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import ParameterError

Array = npt.NDArray[np.floating]


def correlations(estimate: Array, truth: Array) -> npt.NDArray[np.float64]:
    """Pearson's correlation of each row of the estimate with that of the truth, both less the truth's mean row: [n].

    So knowing what rows look like on average is worth nothing, and rows of somebody else correlate by about 0.
    """
    mean = truth.mean(0)
    a, b = (estimate - mean).astype(np.float64), (truth - mean).astype(np.float64)
    a -= a.mean(1, keepdims=True)
    b -= b.mean(1, keepdims=True)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0))


@dataclass(frozen=True)
class Resemblance:
    """Of activation channels to their inputs: mean over signals, for every channel."""

    distance_correlation: npt.NDArray[np.float64]  # [channels], 0 to 1
    dynamic_time_warping: npt.NDArray[np.float64]  # [channels], 0 for equal shapes

    @property
    def worst(self) -> int:
        """The channel that resembles its input most."""
        return int(self.distance_correlation.argmax())


def resemblance(inputs: Array, activations: Array, channels: int, *, rows: int = 200) -> Resemblance:
    """Resemblance of each of the activations' channels to the first channel of the inputs.

    Parameters
    ----------
    inputs
        Signals [n, channels, samples].
    activations
        Activations [n, channels * length], channel by channel.
    channels
        Their number.
    rows
        How many signals to compare at most.
    """
    try:
        import dcor
        from dtaidistance import dtw
    except ImportError as error:
        raise ParameterError(
            f"{error.name} is missing: pip install -c constraints.txt '.[privacy]' (from the source) brings it"
        ) from error
    signals = inputs[:rows, 0].astype(np.float64)
    maps = activations[:rows].reshape(len(signals), channels, -1).astype(np.float64)
    length = maps.shape[2]
    # A channel is shorter than its input: the input is averaged down to it.
    usable = signals.shape[1] // length * length
    short = signals[:, :usable].reshape(len(signals), length, -1).mean(2)
    distances, warpings = np.zeros(channels), np.zeros(channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's, on first use
        for channel in range(channels):
            pairs = list(zip(short, maps[:, channel], strict=True))
            distances[channel] = np.mean([dcor.distance_correlation(a, b) for a, b in pairs])
            # Not dtw.distance_fast: its C code (2.5.1) returns infinity for some pairs.
            warpings[channel] = np.mean([dtw.distance(_standard(a), _standard(b)) / length**0.5 for a, b in pairs])
    return Resemblance(distances, warpings)


def _standard(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    spread = values.std()
    # A dead channel is flat, but for rounding.
    return (values - values.mean()) / spread if spread > 1e-6 * np.abs(values).max() else values * 0.0
