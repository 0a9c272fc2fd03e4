"""What sizes and timing give away, in every protocol: nothing of the data that they do not depend on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesplit_native.privacy.transcript import Transcript


@dataclass(frozen=True)
class Traffic:
    """What an observer of the wire can count."""

    steps: int
    sizes_up: tuple[int, ...]  # the different sizes of a step's requests
    sizes_down: tuple[int, ...]  # and of its replies
    steps_per_second: float
    label_information: float  # how much of the labels' variance a step's size and duration explain, 0 to 1


def observe(transcript: Transcript, labels: list[npt.NDArray[np.int64]]) -> Traffic:
    """Sizes and rates; and what they say about the labels of a step (its share of the most frequent class, by regression)."""
    up = np.array([len(s.forward) + len(s.backward) + len(s.opened) for s in transcript.steps], np.float64)
    down = np.array([s.reply_bytes for s in transcript.steps], np.float64)
    times = np.array([s.seconds for s in transcript.steps])
    spans = np.diff(times, append=times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 1.0))
    common = np.bincount(np.concatenate(labels)).argmax()
    share = np.array([(row == common).mean() for row in labels])
    design = np.stack([np.ones_like(up), up, down, spans], 1)
    design = design / np.maximum(np.abs(design).max(0), 1e-30)
    half = len(design) // 2  # fitted on one half, judged on the other
    fitted, *_ = np.linalg.lstsq(design[:half], share[:half], rcond=1e-9)
    rest = share[half:]
    error, spread = ((rest - design[half:] @ fitted) ** 2).sum(), ((rest - share[:half].mean()) ** 2).sum()
    explained = float(max(0.0, 1 - error / spread)) if spread > 0 else 0.0
    rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9) if len(times) > 1 else 0.0
    return Traffic(
        len(up), tuple(sorted({int(v) for v in up})), tuple(sorted({int(v) for v in down})), float(rate), explained
    )
