"""The benchmark suites run and measure what they say."""

from __future__ import annotations

import importlib
import itertools
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


AREAS = [
    "kernels",
    "frozen",
    "encrypt",
    "forward",
    "backward",
    "decrypt",
    "wire",
    "train_step",
    "scaling",
    "threads",
    "memory",
]


def first(bench):
    """The first combination of parameters."""
    params = bench.params if isinstance(bench.params[0], list) else [bench.params]
    assert len(bench.param_names) == len(params)
    return [values[0] for values in params]


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # peft and transformers of each other
def test_lora_between_two_processes(suite, monkeypatch, capsys):
    pytest.importorskip("peft")
    monkeypatch.setattr(sys, "argv", ["lora", "--width", "16", "--blocks", "1", "--steps", "3", "--peer-rows", "0"])
    suite("benchmarks.lora").main()
    lines = capsys.readouterr().out.splitlines()
    ours = next(line for line in lines if line.startswith("hesplit_native, float32 ")).split()
    clear = next(line for line in lines if line.startswith("in the clear")).split()
    assert float(ours[-1]) == pytest.approx(float(clear[-1]), abs=2e-4)
    rate, up, down, client, server = map(float, ours[2:7])
    assert min(up, down, client, server) > 0
    assert rate == pytest.approx(128 / (client + server), rel=0.01)


def test_private_layers_beside_frozen_ones(suite, monkeypatch, capsys):
    module = suite("benchmarks.private_service")
    monkeypatch.setattr(module, "SHAPES", [(3, 20, 4)])
    monkeypatch.setattr(sys, "argv", ["private_service", "--rounds", "2"])
    module.main()
    rows = [line.rsplit(None, 7) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0].split("4  ")[1].strip() for row in rows] == ["frozen", "private", "public, whole"]
    for _, *times, up, down, once, error in rows:
        assert all(float(value) > 0 for value in (*times, up, down, once))
        assert 0 < float(error) < 1e-5


@pytest.mark.parametrize("area", [area for area in AREAS if area not in ("train_step", "memory")])
def test_every_benchmark_of_an_area_runs(suite, monkeypatch, area):
    module = suite(f"benchmarks.bench_{area}")
    monkeypatch.setattr(module, "ROUNDS", 2, raising=False)
    classes = [value for value in vars(module).values() if isinstance(value, type) and hasattr(value, "param_names")]
    assert classes
    for kind in classes:
        values = first(kind)
        for name in dir(kind):
            if name.startswith(("time_", "track_")):
                bench = kind()
                if hasattr(bench, "setup"):
                    bench.setup(*values)
                result = getattr(bench, name)(*values)
                assert name.startswith("time_") or result > 0
                if hasattr(bench, "teardown"):
                    bench.teardown(*values)


def test_decrypted_logits_are_within_the_bound(suite):
    bench = suite("benchmarks.bench_decrypt").Decrypt()
    for values in itertools.product(*bench.params):
        bench.setup(*values)
        assert 0 < bench.track_error_over_bound(*values) <= 1


def test_training_steps(suite, monkeypatch):
    module = suite("benchmarks.bench_train_step")
    monkeypatch.setattr(module, "STEPS", 3)
    monkeypatch.setattr(module, "ROUNDS", 2)
    bench = module.Steps()
    found = {False: module.microseconds(False)}
    for protocol in bench.params[0]:
        assert bench.track_microseconds_per_step(found, protocol, False) > 0
    assert bench.track_times_plain(found, "plain", False) == 1


def test_memory(suite):
    bench = suite("benchmarks.bench_memory")
    assert bench.kilobytes({"protocol": "plain"}) > 10_000


def test_peers_compute_the_same_layer(suite):
    layers = suite("benchmarks.peers.layers")
    for kind in layers.PEERS:
        try:
            layer = kind(2, 12, 3)
        except ImportError:
            continue
        seconds, _ = layer.step()
        assert all(value > 0 for value in seconds.values())
        assert layer.error() < 0.3
        assert all(count > 0 for count in layer.bytes)


def test_the_table_of_peers(suite):
    compare = suite("benchmarks.peers.compare")
    layers = suite("benchmarks.peers.layers")
    found = [(kind(2, 12, 3), {"encrypt": 0.002, "forward": 0.001}, 7) for kind in (layers.Ours, layers.Torch)]
    lines = compare.table("2 x 12 -> 3", found)
    assert lines[4].startswith("| hesplit_native | 2 |")
    assert "| 3 | 1× |" in lines[4]


def test_the_server_stands_up_to_every_attack(suite, capfd):
    """Honest clients are served among each kind of dishonest ones; the long form is `python -m benchmarks.load --attack ...`."""
    load, attacks = suite("benchmarks.load"), suite("benchmarks.attacks")
    with load.serving() as (address, pid, faults):
        before = load.largest_memory(pid)
        for kind in attacks.ATTACKS:
            among = load.Load(address, 2.0)
            among.run(["honest", "honest", f"{kind}", f"{kind}"])
            assert not among.failures, (kind, among.failures)
            assert among.latencies, kind
            assert among.tried[kind] > 0
        assert load.largest_memory(pid) < before + load.BUDGET
    assert not faults


def test_many_clients(suite, monkeypatch, capsys):
    module = suite("benchmarks.many_clients")
    monkeypatch.setattr(module, "_STEPS", 5)
    options = ["--clients", "3", "--workers", "1", "--protocols", "splitways,plain", "--seconds", "0.3"]
    monkeypatch.setattr(sys, "argv", ["many_clients", *options])
    assert module.main() == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == ["splitways", "plain"]
    for row in rows:
        assert row[1].strip() == "3"
        assert float(row[3]) > 0


def test_growing_memory_is_noticed(suite):
    growth = suite("benchmarks.soak").growth
    turns = [10.0 * turn for turn in range(60)]
    assert growth([(at, 300 + turn % 5) for turn, at in enumerate(turns)]) == pytest.approx(0, abs=6)
    assert growth([(at, 100 + int(at / 5)) for at in turns]) == pytest.approx(720, rel=0.05)
    assert growth([(at, 100 + min(200, 20 * turn)) for turn, at in enumerate(turns)]) == 0  # while it warms up


def test_soak(suite, monkeypatch):
    module = suite("benchmarks.soak")
    monkeypatch.setattr(module, "TURN", 0.3)
    samples, steps, faults = module.soak(3, 0.02, [])
    assert len(samples) >= 2
    assert steps >= 3
    assert not faults


def test_searches(suite, monkeypatch, capsys):
    module = suite("benchmarks.search")
    monkeypatch.setattr(module, "SHAPES", [(1, 20, 300, {})])
    monkeypatch.setattr(module, "TABLES", [(300, 16)])
    monkeypatch.setattr(sys, "argv", ["search", "--rounds", "2"])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[5] for line in lines[1:3]] == ["blocks", "merged"]
    assert lines[-1].endswith("| 20")
