"""Data sets: real MIT-BIH heartbeats and a synthetic stand-in."""

from __future__ import annotations

from hesplit_native.data.dataset import Dataset
from hesplit_native.data.mitbih import load_mitbih
from hesplit_native.data.synthetic import synthetic_ecg

__all__ = ["Dataset", "load_mitbih", "synthetic_ecg"]
