"""A recording with what a network says of it, as a picture that a phone can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.data.recording_rows import Rows
from hesplit_native.errors import ParameterError
from hesplit_native.files import SHARED, write_atomically
from hesplit_native.plots import pyplot
from hesplit_native.training.predictions import NO_CLASS, Predictions

_FORMATS = ("png", "svg", "pdf")
_COLOURS = ("#2f6690", "#b3503c", "#c98f0e", "#3d8361", "#7a4e9c")
_PALE = "#9a9a9a"
_STRIP_SECONDS = 10
_STRIPS = 6
_AROUND = (-0.2, 0.3)  # of an R peak, in seconds: what is coloured of a beat
_SHOWN_LEAD = "II"


def picture_format(path: Path) -> str:
    """What a picture's name says that it shall be; ParameterError for what there is not."""
    found = path.suffix.lower().removeprefix(".")
    if found not in _FORMATS:
        raise ParameterError(f"{path}: a picture's name ends in {', '.join('.' + name for name in _FORMATS)}")
    return found


def write_picture(path: Path, rows: Rows, found: Predictions) -> None:
    """All of a recording by class, above the excerpts of ten seconds that have most of each class.

    A recording of a minute or less is shown whole.

    Raises
    ------
    ParameterError
        For a name of another kind than ``.png``, ``.svg`` or ``.pdf``.
    """
    kind = picture_format(path)
    plt = pyplot()
    classes = [
        [str(name) for name in found.classes if name in said.split("+")] for said in found.names(found.predicted)
    ]
    strips = _strips(rows, found, classes)
    heights = [0.26 * len(found.classes) + 0.3, *[1.15] * len(strips)]
    with plt.rc_context({"font.size": 8}):
        figure, axes = plt.subplots(
            len(heights),
            1,
            figsize=(4.5, sum(heights) + 0.6),
            height_ratios=heights,
            layout="constrained",
            squeeze=False,
        )
        _overview(axes[0, 0], rows, found, classes)
        for ax, start in zip(axes[1:, 0], strips, strict=True):
            _strip(ax, rows, found, classes, start)
    figure.suptitle(_title(rows, found, classes), fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=200), mode=SHARED)
    plt.close(figure)


def _title(rows: Rows, found: Predictions, classes: list[list[str]]) -> str:
    recording = rows.recording
    names = [name for row in classes for name in row or [NO_CLASS]]
    counts = ", ".join(f"{names.count(name)} {name}" for name in (*found.classes, NO_CLASS) if name in names)
    leads = recording.leads[0] if len(recording.leads) == 1 else f"{len(recording.leads)} leads"
    return f"{recording.path.name}, {leads}, {_clock(recording.seconds)}\n{len(found)} {rows.called}: {counts}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _strips(rows: Rows, found: Predictions, classes: list[list[str]]) -> list[int]:
    """Where excerpts begin, in seconds."""
    length = int(np.ceil(rows.recording.seconds / _STRIP_SECONDS))
    if length <= _STRIPS:
        return [index * _STRIP_SECONDS for index in range(length)]
    place = (rows.samples / rows.recording.sampling_rate // _STRIP_SECONDS).astype(np.int64)
    chosen = set()
    for name in found.classes:
        mine = place[[name in row for row in classes]]
        if len(mine):
            chosen.add(int(np.bincount(mine).argmax()))
    return [index * _STRIP_SECONDS for index in sorted(chosen)[:_STRIPS]]


def _colour(found: Predictions, name: str) -> str:
    return _COLOURS[found.classes.index(name) % len(_COLOURS)]


def _overview(ax: Any, rows: Rows, found: Predictions, classes: list[list[str]]) -> None:
    """A row for each class, with a mark wherever it was predicted."""
    minutes = rows.recording.seconds > 120
    unit = 60 if minutes else 1
    at = rows.samples / rows.recording.sampling_rate / unit
    for index, name in enumerate(found.classes):
        mine = at[[name in row for row in classes]]
        if len(rows.recording.leads) > 1:
            ax.hlines(
                np.full(len(mine), index), mine, mine + _STRIP_SECONDS / unit, color=_colour(found, name), linewidth=6
            )
        else:
            ax.plot(mine, np.full(len(mine), index), "|", color=_colour(found, name), markersize=8, markeredgewidth=0.8)
    ax.set_yticks(range(len(found.classes)), found.classes)
    ax.set_ylim(len(found.classes) - 0.5, -0.5)
    ax.set_xlim(0, rows.recording.seconds / unit)
    ax.set_xlabel("minutes" if minutes else "seconds", labelpad=1)
    ax.grid(axis="x", alpha=0.25)
    _plain(ax)


def _strip(ax: Any, rows: Rows, found: Predictions, classes: list[list[str]], start: int) -> None:
    """Ten seconds of a lead, its beats, or the whole, in the colour of what was predicted."""
    recording, rate = rows.recording, rows.recording.sampling_rate
    lead = recording.leads.index(_SHOWN_LEAD) if _SHOWN_LEAD in recording.leads else 0
    first, last = round(start * rate), min(round((start + _STRIP_SECONDS) * rate), len(recording.signal))
    values = recording.signal[first:last, lead]
    time = start + np.arange(len(values)) / rate
    ax.plot(time, values, color=_PALE, linewidth=0.6)
    whole = len(recording.leads) > 1
    for index in np.flatnonzero((rows.samples >= first) & (rows.samples < last)):
        names = classes[index]
        colour = _colour(found, names[0]) if names else "black"
        at = rows.samples[index] / rate
        low, high = (at, at + _STRIP_SECONDS) if whole else (at + _AROUND[0], at + _AROUND[1])
        mine = (time >= low) & (time <= high)
        ax.plot(time[mine], values[mine], color=colour, linewidth=1.0)
        words = _words(found, names, int(index)) if whole else "+".join(names)
        ax.annotate(
            words, (start if whole else at, 1), (0, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="left" if whole else "center", va="bottom", color=colour, fontsize=7,
        )  # fmt: skip
    ax.set_xlim(start, start + _STRIP_SECONDS)
    ticks = range(start, start + _STRIP_SECONDS + 1, 2)
    ax.set_xticks(ticks, [_clock(tick) for tick in ticks])
    ax.set_ylabel(f"{recording.leads[lead]}, mV" if whole else "mV", labelpad=1)
    ax.set_ylim(*_limits(values))
    ax.grid(alpha=0.25)
    _plain(ax)


def _words(found: Predictions, names: Sequence[str], index: int) -> str:
    shares = [f"{name} {float(found.probabilities[index, found.classes.index(name)]):.0%}" for name in names]
    return ", ".join(shares) or NO_CLASS


def _limits(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return -1.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = max(0.08 * (high - low), 0.05)
    return low - margin, high + margin


def _plain(ax: Any) -> None:
    ax.tick_params(labelsize=7, length=2, pad=2)
    ax.spines[["top", "right"]].set_visible(False)
