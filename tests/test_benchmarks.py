"""The benchmark suites run and measure what they say."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hesplit_native import _core

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


def test_floors_of_every_kernel_and_instruction_set(suite):
    floors = suite("benchmarks.floors")
    found = floors.measure(1)
    assert found.keys() == floors.WORK.keys() == floors.BYTES.keys()
    for by_variant in found.values():
        assert list(by_variant) == _core.usable_kernels()
    assert len(floors.table(found)) == 4 + len(found)


def test_share_of_a_step(suite):
    share = suite("benchmarks.step_share")
    found = share.measure(2)
    assert found.keys() == {"plain", *share.PARTS, *(f"hot {part}" for part in share.PARTS)}
    assert all(time >= 0 for time in found.values())


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
    compare = suite("benchmarks.peers.compare")
    for kind in compare.PEERS:
        try:
            layer = kind(2, 12, 3)
        except (ImportError, compare.LeftOut):
            continue
        seconds = layer.step()
        assert all(value >= 0 for value in seconds.values())
        # The papers' sets leave errors of the size of the numbers themselves, and more.
        assert 0 < layer.worst < (20 if kind.name.startswith("TenSEAL, as ") else 0.3)
        assert all(count > 0 for count in layer.bytes)


def test_few_rows_and_many_outputs_are_merged(suite):
    layers = suite("benchmarks.peers.layers")
    blocks, merged, frozen = (kind(1, 128, 512) for kind in (layers.Ours, layers.OursMerged, layers.OursFrozen))
    for layer in (blocks, merged, frozen):
        layer.step()
        assert 0 < layer.worst < 1e-3
    assert sum(merged.bytes) < sum(blocks.bytes)
    assert merged.once > blocks.once
    with pytest.raises(layers.LeftOut, match="few rows"):
        layers.OursMerged(4, 256, 5)


@pytest.fixture
def clear_slots(suite):
    """Layers on slots that are not encrypted, which know the rotations that they have keys for."""
    diagonals = suite("benchmarks.peers.diagonals")

    class ClearSlots(diagonals.Diagonals):
        slots = 64

        def keys(self, steps):
            self.allowed = set(steps)

        def encrypt(self, slots):
            return slots.tobytes()

        def load(self, message):
            return np.frombuffer(message).copy()

        def encode(self, slots):
            return slots

        def rotations(self, ciphertext, steps):
            return [self.rotate(ciphertext, step) for step in steps]

        def rotate(self, ciphertext, step):
            assert step in self.allowed
            return np.roll(ciphertext, -step)

        def multiply(self, ciphertext, plaintext):
            assert ciphertext.shape == plaintext.shape == (self.slots,)
            return ciphertext * plaintext

        def add(self, first, second):
            return first + second

        def finish(self, ciphertext, bias):
            return (ciphertext + bias).tobytes()

        decrypt = load

    return ClearSlots


COSTS = {"encrypt": 2.0, "encode": 1.0, "multiply": 0.1, "hoisted": 1.0, "rotate": 2.0, "decrypt": 1.0}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 90), st.integers(1, 90)),
    costs=st.fixed_dictionaries({name: st.floats(0.01, 100) for name in COSTS}),
    kept=st.integers(0, 500),
)
def test_diagonals_compute_the_layer_in_every_layout(clear_slots, shape, costs, kept):
    clear_slots.costs, clear_slots.patient, clear_slots.most_plaintexts = costs, True, kept
    layer = clear_slots(*shape)
    layer.step()
    assert layer.worst < 1e-12


def test_layouts_follow_costs(suite):
    diagonals = suite("benchmarks.peers.diagonals")
    without = diagonals.choose(1, 64, 64, 64, COSTS | {"hoisted": 1e9, "rotate": 1e9})
    assert without.diagonals == 1
    cheap = diagonals.choose(1, 64, 64, 64, COSTS | {"hoisted": 0.01, "rotate": 0.01, "encrypt": 50.0, "decrypt": 50.0})
    assert (cheap.inputs, cheap.outputs, cheap.diagonals) == (64, 64, 64)
    assert 1 < cheap.babies < 64
    with pytest.raises(diagonals.LeftOut):
        diagonals.choose(65, 4, 4, 64, COSTS)


def test_peers_in_another_interpreter(suite):
    elsewhere, layers = suite("benchmarks.peers.elsewhere"), suite("benchmarks.peers.layers")
    layer = elsewhere.elsewhere(layers.Torch, sys.executable)(2, 12, 3)
    assert layer.step()["forward"] >= 0
    assert 0 < layer.worst < 1e-5
    assert layer.bytes == (96, 24)
    layer.process.kill()
    with pytest.raises(layers.LeftOut, match="its process ended"):
        layer.step()
    with pytest.raises(layers.LeftOut, match="few rows"):
        elsewhere.elsewhere(layers.OursMerged, sys.executable)(9, 12, 3)


def test_interpreters_are_named_by_peer(suite):
    compare = suite("benchmarks.peers.compare")
    assert compare.interpreters(["spu=/a/python", "openfhe=b=c"]) == {"spu": "/a/python", "openfhe": "b=c"}
    for wrong in ("spu", "spu=", "nobody=/a/python"):
        with pytest.raises(SystemExit, match="PEER=INTERPRETER"):
            compare.interpreters([wrong])


def test_what_spu_says_of_its_link(suite):
    spu = suite("benchmarks.peers.spu")
    line = "[api.cc:233] Link details: total send bytes 840591, recv bytes 897895, send actions 932, recv actions 932"
    assert spu.carried(spu.logged(lambda: os.write(1, f"something\n{line}\n".encode()))) == (840591, 897895)
    with pytest.raises(ValueError, match="no profile"):
        spu.carried("nothing of the kind")


def test_the_table_of_peers(suite):
    compare = suite("benchmarks.peers.compare")
    found = [(kind(2, 12, 3), {"encrypt": 0.002, "forward": 0.001}, 7) for kind in (compare.Ours, compare.Torch)]
    found[0][0].once = 1_234_567
    lines = compare.table("2 x 12 -> 3", found, {"SPU, Cheetah": "no wheel", "OpenFHE": "too long", "A": "no wheel"})
    assert f"kernels `{_core.kernels()}`" in lines[2]
    assert lines[6].startswith("| hesplit_native | 2 |")
    assert "| 3 | 1× | 1.2 MB |" in lines[6]
    assert "| 1× |  | 0.1 kB |" not in lines[6]
    assert "Left out: *SPU, Cheetah*, *A* (no wheel); *OpenFHE* (too long)." in lines
    assert all(kind.about for kind in compare.PEERS)


def test_tables_of_peers_are_written_one_by_one(suite, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    compare = suite("benchmarks.peers.compare")
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{compare.BEGIN}\n{compare.END}\nafter\n")
    monkeypatch.setattr(compare, "DOCS", tmp_path)
    monkeypatch.setattr(compare, "PEERS", [compare.Ours, compare.Torch])
    monkeypatch.setattr(compare, "SHAPES", {"2 x 12 -> 3": (2, 12, 3), "3 x 5 -> 2": (3, 5, 2)})
    tables = []
    for shapes in ("", "3 x"):
        monkeypatch.setattr(sys, "argv", ["compare", "--seconds", "0.01", "--shapes", shapes, "--write"])
        compare.main()
        tables.append(compare.sections(page.read_text()))
    assert tables[0]["2 x 12 -> 3"] == tables[1]["2 x 12 -> 3"]
    assert tables[0]["3 x 5 -> 2"] != tables[1]["3 x 5 -> 2"]
    assert tables[1]["3 x 5 -> 2"] in capsys.readouterr().out
    assert list(tables[1]) == list(compare.SHAPES)
    assert all(value > 0 for value in compare.steps(tables[1]["3 x 5 -> 2"]).values())
    text, drawn = page.read_text(), (tmp_path / "peers.svg").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    for kind in compare.PEERS:
        assert f"*{kind.name}*: {kind.about}." in text
        assert drawn.count(kind.name + "<") == 2


def test_extrapolated_times_in_words(suite):
    layers = suite("benchmarks.peers.layers")
    words = [layers.duration(seconds).split(" a step")[0] for seconds in (7.4, 119, 300, 9000)]
    assert words == ["about 7 s", "about 119 s", "about 5 min", "about 2 h"]


def test_peers_that_fail_are_left_out(suite, monkeypatch):
    compare = suite("benchmarks.peers.compare")

    class Absent(compare.Torch):
        name = "absent"

        def setup(self):
            raise ImportError("No module named 'absent'")

    class Breaking(compare.Torch):
        name = "breaking"

        def step(self):
            raise compare.LeftOut("its process ended")

    monkeypatch.setattr(compare, "PEERS", [compare.Ours, Absent, Breaking])
    left_out = {}
    (row,) = compare.measure((2, 12, 3), 0.05, {}, left_out)
    assert row[0].name == compare.Ours.name
    assert row[2] > 1
    assert left_out == {"absent": "No module named 'absent'", "breaking": "its process ended"}


def test_commits_of_the_history(suite, tmp_path):
    history = suite("benchmarks.history")
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=n",
        "-c",
        "user.email=e@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    subprocess.check_call([*git, "init", "-q"])
    for at, name in enumerate(("first", "second", "third")):
        environment = os.environ | {"GIT_COMMITTER_DATE": f"2026-01-0{at + 1}T00:00:00Z"}
        subprocess.check_call([*git, "commit", "-q", "--allow-empty", "-m", name], env=environment)
    everything = subprocess.check_output([*git, "rev-list", "--reverse", "HEAD"], text=True).split()
    assert history.resolve(["HEAD", "HEAD~2", "HEAD~0"], tmp_path) == [everything[0], everything[2]]
    assert history.resolve([], tmp_path) == []
    with pytest.raises(subprocess.CalledProcessError):
        history.resolve(["--all"], tmp_path)


@pytest.mark.parametrize(
    ("pip_says", "has_asv", "message"),
    [
        ("--config-settings", False, "asv is not installed"),
        ("--global-option", True, "cannot pass settings to a build"),
    ],
)
def test_what_is_missing_to_build_commits_is_said(suite, monkeypatch, pip_says, has_asv, message):
    history = suite("benchmarks.history")
    monkeypatch.setattr(history.importlib.util, "find_spec", lambda _: object() if has_asv else None)
    monkeypatch.setattr(
        history.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, pip_says, "")
    )
    with pytest.raises(SystemExit, match=message):
        history.main(["HEAD"])


def test_a_commit_that_does_not_build_is_named_and_tried_again(suite, monkeypatch, tmp_path):
    history = suite("benchmarks.history")
    monkeypatch.setattr(history, "BUILDS", tmp_path)
    monkeypatch.setattr(history.subprocess, "check_call", lambda command: None)
    status, commands = 1, []

    def pip(command, **_):
        commands.append(command)
        folder = next(Path(part.removeprefix("--target=")) for part in command if part.startswith("--target="))
        (folder / "hesplit_native").mkdir(parents=True)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(history.subprocess, "run", pip)
    with pytest.raises(SystemExit, match=r"0123456789 was not built: pip ended with 1"):
        history.build("0123456789ab", ["--no-build-isolation"])
    status = 0
    site = history.build("0123456789ab", [])
    assert (site / "hesplit_native").is_dir()
    assert history.build("0123456789ab", []) == site
    assert len(commands) == 2
    assert {"--no-build-isolation", "--config-settings=cmake.define.HESPLIT_TESTING=ON"} <= set(commands[0])


def test_a_suite_has_what_a_commit_can_import(suite, tmp_path):
    package = tmp_path / "site" / "hesplit_native"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("_core", "def usable_kernels():\n    return []\n"), ("_testing", "")):
        (package / f"{name}.py").write_text(text)
    configuration = json.loads(suite("benchmarks.history").suite(tmp_path / "site", tmp_path / "suite").read_text())
    found = {path.stem for path in (tmp_path / "suite" / configuration["benchmark_dir"]).glob("*.py")}
    assert {"__init__", "common", "bench_kernels", "bench_forward"} <= found
    assert not {"bench_wire", "attacks"} & found  # hesplit_native.data and .layer are not there
    assert Path(configuration["results_dir"]) == ROOT / "benchmarks" / "results"


def test_results_do_not_say_where_the_interpreter_is(suite, tmp_path):
    history = suite("benchmarks.history")
    name = "existing-py" + sys.executable.replace(os.sep, "_")
    said = {"env_name": name, "python": sys.executable, "results": {"a": [1.5]}}
    (tmp_path / f"0123-{name}.json").write_text(json.dumps(said))
    history.forget_path(tmp_path)
    (found,) = tmp_path.iterdir()
    assert found.name == "0123-existing-py.json"
    assert json.loads(found.read_text()) == said | {"env_name": "existing-py", "python": platform.python_version()}


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
