"""The benchmark suites run and measure what they say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.parametrize("packing", ["blocks", "slots"])
def test_linear(suite, packing):
    module = suite("benchmarks.bench_linear")
    bench = module.Linear()
    assert len(bench.param_names) == len(bench.params)
    shape = module.SHAPES[0]
    bench.setup(packing, shape)
    for name in dir(bench):
        if name.startswith("time_"):
            getattr(bench, name)(packing, shape)
    assert bench.track_request_bytes(packing, shape) == len(bench.layer.client.encrypt(bench.layer.x))
    assert 0 < bench.track_error_over_bound(packing, shape) <= 1


def test_training(suite, monkeypatch):
    module = suite("benchmarks.bench_training")
    monkeypatch.setattr(module, "STEPS", 5)
    bench = module.Steps()
    for protocol in bench.params:
        bench.setup(protocol)
        assert bench.track_milliseconds_per_step(protocol) > 0
        assert (bench.track_bytes_per_step(protocol) > 0) == (protocol != "local")
