"""Training scripts in the form of both papers' own, some hundred steps, as processes with a socket between them."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = ["splitways", "hesplit"]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("benchmarks.tenseal_scripts").run


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_train(run, script):
    _, sizes, losses, errors = run(script, "hesplit_native.tenseal", 300)
    assert errors.max() < 1e-4
    assert losses[-50:].mean() < losses[:50].mean() - 0.05
    assert np.all(sizes < 250e3)


@pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_on_tenseal_too(run, script):
    _, _, losses, _ = run(script, "tenseal", 1)
    assert np.isfinite(losses).all()
