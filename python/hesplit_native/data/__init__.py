"""Data sets: real MIT-BIH heartbeats and PTB-XL recordings, and a synthetic stand-in for each."""

from __future__ import annotations

from hesplit_native.data.dataset import Dataset, check_dataset
from hesplit_native.data.mitbih import load_mitbih
from hesplit_native.data.ptbxl import load_ptbxl
from hesplit_native.data.synthetic import synthetic_ecg
from hesplit_native.data.synthetic12 import synthetic_ptbxl

__all__ = ["Dataset", "check_dataset", "load_mitbih", "load_ptbxl", "synthetic_ecg", "synthetic_ptbxl"]
