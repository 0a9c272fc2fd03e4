from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import hesplit_native as hn
from hesplit_native.cli import app
from hesplit_native.reproduce.published import published_table

SMALL = ["--epochs", "2", "--limit-batches", "5"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module", autouse=True)
def small_data():
    """The same commands on a smaller synthetic set."""
    import hesplit_native.data as data

    original = data.synthetic_ecg
    data.synthetic_ecg = lambda: original(train=80, test=40)
    yield
    data.synthetic_ecg = original


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_data):
    folder = tmp_path_factory.mktemp("run")
    result = run("train", *SMALL, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_train_writes_metrics_model_and_curves(trained):
    folder, output = trained
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    wanted = {
        *("test_accuracy", "train_seconds", "seconds_by_phase", "bytes_up", "bytes_down", "batches", "epochs"),
        *("protocol", "parameters", "history", "dataset", "split", "flooding", "clipped", "versions", "machine"),
    }
    assert wanted <= set(metrics)
    assert metrics["protocol"] == "splitways"
    assert (metrics["epochs"], metrics["batches"]) == (2, 10)
    assert metrics["parameters"]["packing"] == "blocks"
    assert 0 <= metrics["test_accuracy"] <= 1
    assert metrics["bytes_up"] > 10 * 13_000
    assert metrics["flooding"] == "step"
    assert metrics["flooding_deviation"] > 0
    image = (folder / "curves.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 5000
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.glob(".*"))
    assert "noise flooding: off" not in output
    assert "flooding of logits" in output
    assert "Split Ways" not in output  # its table is of another task
    assert published_table(metrics) is None
    as_published = {"dataset": "mitbih", "split": "paper", "config": metrics["config"] | {"batch_size": 4}}
    table = published_table(metrics | as_published)
    assert table is not None
    assert table.row_count > 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--protocol", "local"], "local on synthetic"),
        (["--protocol", "plain"], "plain on synthetic"),
        (["--protocol", "vanilla"], "vanilla on synthetic"),
        (["--protocol", "sealed"], "encrypted custody"),
        (["--protocol", "hesplit", "--flooding", "run"], "flooding of logits"),
        (["--packing", "slots", "--flooding", "off"], "noise flooding: off"),
        (["--parameter-set", "4096-20", "--flooding", "off"], "noise flooding: off"),
        (["--protocol", "plain", "--participants", "3", "--mode", "parallel"], "3 participants, parallel"),
    ],
)
def test_other_protocols_and_packings(tmp_path, options, words):
    result = run("train", *SMALL, *options, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert words in result.output
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.parametrize("how", [["--plain"], ["--encrypted"], ["--encrypted", "--packing", "slots"]])
def test_predict_classifies_the_test_set(trained, tmp_path, how):
    folder, _ = trained
    table = tmp_path / "p.csv"
    result = run("predict", "--model", folder / "model.safetensors", "--output", table, *how)
    assert result.exit_code == 0, result.output
    accuracy = float(re.search(r"accuracy ([\d.]+)%", result.output).group(1)) / 100
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert abs(accuracy - metrics["test_accuracy"]) <= 0.03
    rows = table.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 41
    assert rows[0].startswith("beat,sample,predicted,annotated,logit_N")


def test_predict_with_the_layer_at_a_server(trained, tmp_path):
    """What one side kept of a run is served, and the other predicts with its convolutions."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    import hesplit_native as hn

    whole = trained[0] / "model.safetensors"
    with safe_open(whole, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    mine, theirs = tmp_path / "mine.safetensors", tmp_path / "theirs.safetensors"
    save_file({name: value for name, value in tensors.items() if not name.startswith("linear")}, mine, metadata)
    linear = {name: value for name, value in tensors.items() if name.startswith("linear")}
    save_file(linear | {"other.weight": torch.ones(3, 7)}, theirs)
    assert "--server" in run("predict", "--model", mine).stderr
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert run("predict", "--model", whole, "--plain", "--output", here).exit_code == 0
    with hn.serve(theirs, port=0) as server:
        arguments = ["predict", "--model", mine, "--server", server.address]
        for more in ([], ["--layer", "linear"]):
            result = run(*arguments, *more, "--output", there)
            assert result.exit_code == 0, result.output
            values = [np.genfromtxt(path, delimiter=",", skip_header=1)[:, 4:] for path in (here, there)]
            np.testing.assert_allclose(*values, atol=1e-4)
        assert "other (7 -> 3 without bias)" in run(*arguments, "--layer", "other").stderr
        assert "'nothing'" in run(*arguments, "--layer", "nothing").stderr


def test_predict_classifies_a_record(trained, tmp_path):
    import wfdb

    signal = 0.05 * np.random.default_rng(0).normal(size=(7200, 2))
    peaks = np.arange(300, 6900, 300)
    wfdb.wrsamp(
        "900",
        fs=360,
        units=["mV"] * 2,
        sig_name=["MLII", "V1"],
        p_signal=signal,
        fmt=["212"] * 2,
        write_dir=str(tmp_path),
    )
    wfdb.wrann("900", "atr", peaks, symbol=["N"] * len(peaks), write_dir=str(tmp_path))
    result = run("predict", "--model", trained[0] / "model.safetensors", "--record", tmp_path / "900")
    assert result.exit_code == 0, result.output
    assert f"{len(peaks) - 4} beats" in result.output


def test_info_shows_both_packings():
    result = run("info")
    assert result.exit_code == 0, result.output
    for word in ("blocks", "slots", "sealed", "128 bits", "error bound", "request", "server"):
        assert word in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--dataset", "mitbih", "--data-dir", "/nowhere"], "/nowhere, which is not a directory"),
        (["train", "--protocol", "local", "--server", "x:1"], "local has no server"),
        (["train", "--server", "127.0.0.1:9"], "start the server there first"),
        (["train", "--server", "nonsense"], "host:port"),
        (["train", "--server", "198.51.100.1:7000"], "another machine"),
        (["train", "--server", "127.0.0.1:9", "--tls", "/nowhere"], "certs"),
        (["train", "--packing", "slots"], "flooding"),
        (["train", "--dataset", "ptbxl"], "HESPLIT_PTBXL"),
        (["serve", "--host", "198.51.100.1"], "another machine"),
        (["serve", "--model", "/nowhere"], "No such file"),
        (
            ["serve", "--model", "x", "--sessions", "1"],
            "--sessions goes with layers that are trained, not with --model alone",
        ),
        (
            ["serve", "--model", "x", "--train", "--precision", "bfloat16", "--epoch", "2"],
            "--precision, --epoch go with layers that are used as they are",
        ),
        (["serve", "--train"], "--train goes with --model"),
        (["serve", "--model", "/nowhere", "--train"], "No such file"),
        (["serve", "--layers", "a*", "--no-backward"], "--layers, --no-backward go with --model"),
        (["serve", "--metrics", "nonsense"], "host:port"),
        (["predict", "--model", "/nowhere"], "does not exist"),
    ],
)
def test_errors_are_one_readable_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_a_damaged_model_is_named(trained, tmp_path):
    good = (trained[0] / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    for damaged in (b"", b"x" * 50, good[:100], good[: len(good) // 2]):
        path.write_bytes(damaged)
        result = run("predict", "--model", path)
        assert result.exit_code == 1
        assert "model.safetensors" in result.stderr


def test_an_interrupted_run_resumes_where_it_was(tmp_path):
    whole = run("train", "--protocol", "plain", "--epochs", "3", "--limit-batches", "5", "--output", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    part = ["train", "--protocol", "plain", "--limit-batches", "5", "--output", tmp_path / "part"]
    assert run(*part, "--epochs", "2").exit_code == 0
    again = run(*part, "--epochs", "3", "--resume")
    assert again.exit_code == 1  # the server agreed on two epochs
    assert "epochs is 3 here and 2 at the peer" in again.stderr
    assert run(*part, "--epochs", "2", "--seed", "1", "--resume").exit_code == 1
    nothing = run("train", "--resume", "--output", tmp_path / "nothing")
    assert "no checkpoint" in nothing.stderr


def test_certs(tmp_path):
    result = run("certs", tmp_path / "tls", "--client", "alice", "--client", "bob")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "tls" / "client-bob.key").stat().st_mode & 0o777 == 0o600
    assert run("certs", tmp_path / "tls", "--client", "carol").exit_code == 0
    again = run("certs", tmp_path / "tls", "--client", "alice")
    assert again.exit_code == 1
    assert "exists already" in again.stderr


@pytest.mark.parametrize("arguments", [["train", "--protocol", "magic"], ["train", "--epochs", "0"], ["nothing"]])
def test_usage_errors_exit_with_2(arguments):
    assert run(*arguments).exit_code == 2


def test_the_version_needs_no_command():
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"hesplit_native {hn.__version__}\n")


def test_help_is_quick():
    code = "import sys; sys.argv = ['x', '--help']\nfrom hesplit_native.cli import app\ntry: app()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'matplotlib', 'wfdb', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")
    assert "train" in out


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "latin-1"])
def test_streams_of_other_encodings_take_whatever_is_said(encoding):
    code = (
        "import sys; from hesplit_native.cli import terminal; terminal.accept_all_characters(); print('1 × 2 … ä 漢')"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    expected = "1 × 2 ... ä \\u6f22" if encoding == "latin-1" else "1 x 2 ... \\xe4 \\u6f22"
    assert out.decode("latin-1").strip() == expected


COMMAND = [sys.executable, "-c", "from hesplit_native.cli import app; app()"]


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process, pattern):
    for line in process.stdout:
        found = re.search(pattern, line)
        if found:
            return found
    raise AssertionError(f"{pattern} never appeared")


def test_two_processes_and_what_is_left_when_one_is_interrupted(tmp_path):
    server = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--output", str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    )
    try:
        port = wait_for(server, r"listening on .*:(\d+)").group(1)
        train = [*COMMAND, "train", "--server", f"127.0.0.1:{port}", "--output"]
        done = subprocess.run([*train, str(tmp_path / "a"), *SMALL], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        wait_for(server, "client: done")
        (left,) = (tmp_path / "s").iterdir()
        assert re.fullmatch(r"client-[0-9a-f]{8}\.safetensors", left.name)

        interrupted = start([*train, str(tmp_path / "b"), "--limit-batches", "20", "--epochs", "10000"])
        wait_for(interrupted, "epoch 1:")
        interrupted.send_signal(signal.SIGINT)
        _, errors = interrupted.communicate(timeout=60)
        assert interrupted.returncode == 130
        assert "interrupted by the user" in errors
        assert json.loads((tmp_path / "b" / "metrics.json").read_text(encoding="utf-8"))["epochs"] >= 1

    finally:
        server.kill()
        server.communicate()


def test_training_starts_from_what_an_earlier_one_left_behind(tmp_path):
    from safetensors.numpy import load_file

    left = []
    for start in ((), ("--model", "LEFT", "--train")):
        options = [str(left[0]) if word == "LEFT" else word for word in start]
        server = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--sessions", "1", "--output", str(tmp_path / f"s{len(left)}"), *options],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            if start:
                wait_for(server, r"training may start from linear: 256 -> 5")
            port = wait_for(server, r"listening on .*:(\d+)").group(1)
            more = ["--layer", "linear", "--learning-rate", "1e-9"] if start else []
            train = [
                *COMMAND,
                "train",
                "--server",
                f"127.0.0.1:{port}",
                "--output",
                str(tmp_path / f"c{len(left)}"),
                *more,
            ]
            done = subprocess.run([*train, *SMALL], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            server.wait(timeout=60)
        finally:
            server.kill()
            server.communicate()
        left += (tmp_path / f"s{len(left)}").iterdir()
    assert len(left) == 2
    first, second = (load_file(path) for path in left)
    assert abs(first["weight"] - second["weight"]).max() < 1e-5  # it hardly moved from there


@pytest.fixture
def weights_file(tmp_path):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors = {"body.0.weight": torch.randn(20, 12), "body.0.bias": torch.randn(20), "head.weight": torch.randn(12, 3)}
    save_file(
        tensors | {"head.bias": torch.randn(3), "table.weight": torch.ones(4, 2, dtype=torch.int8)},
        tmp_path / "w.safetensors",
    )
    return tmp_path / "w.safetensors"


MODEL = ["--layers", "body.*", "--layers", "head", "--transposed", "head"]


def test_a_model_is_served_by_two_processes_of_which_one_is_killed(weights_file):
    import torch
    from safetensors.torch import load_file
    from torch import nn

    import hesplit_native as hn

    command = [*COMMAND, "serve", "--model", str(weights_file), "--port", "0", *MODEL]
    servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        addresses = [f"127.0.0.1:{wait_for(server, r'listening on .*:([0-9]+)').group(1)}" for server in servers]
        with torch.device("meta"):
            model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(12, 20)), "head": nn.Linear(12, 3)})
        values = load_file(weights_file)
        x = torch.randn(5, 12)
        body = x @ values["body.0.weight"].T + values["body.0.bias"]
        head = x @ values["head.weight"] + values["head.bias"]
        with hn.connect(addresses) as connection:
            hn.nn.encrypt(model, server=connection)
            for number in range(10):
                if number == 5:
                    servers[0].kill()
                x.requires_grad_()
                torch.testing.assert_close(model["body"](x), body, atol=1e-4, rtol=0)
                y = model["head"](x)
                torch.testing.assert_close(y, head, atol=1e-4, rtol=0)
                (gradient,) = torch.autograd.grad(y.sum(), x)
                torch.testing.assert_close(gradient, values["head.weight"].sum(1).expand(5, 12), atol=1e-4, rtol=0)
            assert connection.address == addresses[1]
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def test_a_served_model_is_shown_and_counted(weights_file):
    import urllib.request

    import hesplit_native as hn

    pytest.importorskip("prometheus_client")
    server = start(
        [*COMMAND, "serve", "--model", str(weights_file), "--port", "0", *MODEL, "--metrics", ":0", "--no-backward",
         "--precision", "bfloat16", "--memory", "64"]
    )  # fmt: skip
    try:
        metrics = wait_for(server, r"metrics on port (\d+)").group(1)
        wait_for(server, r"body.0 .* 12 .* 20 .* yes")
        wait_for(server, r"head .* 12 .* 3 .* yes")
        wait_for(server, r"2 layers, bfloat16, forward only; memory: .*MiB for hints")
        port = wait_for(server, r"listening on .*:(\d+) \(no TLS\)").group(1)
        with hn.connect(f"127.0.0.1:{port}") as connection:
            connection.multiply("head", np.ones((3, 12)))
            with pytest.raises(hn.ParameterError, match="no backward"):
                connection.multiply("head", np.ones((3, 3)), "backward")
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10).read().decode()
        assert 'hesplit_rows_total{request="forward"} 3.0' in text
        assert "hesplit_model_memory_bytes" in text
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)
        assert server.returncode == 130
    finally:
        server.kill()
        server.communicate()


def test_a_budget_of_queries_outlives_the_server(weights_file, tmp_path):
    import hesplit_native as hn

    command = [*COMMAND, "serve", "--model", str(weights_file), "--port", "0", *MODEL]
    command += ["--queries", "5", "--query-ledger", str(tmp_path / "queries")]
    for answered, left in ((3, 2), (2, 0)):
        server = start(command)
        try:
            port = wait_for(server, r"listening on .*:(\d+)").group(1)
            wait_for(server, "queries: 5 answers about a layer for one client")
            with hn.connect(f"127.0.0.1:{port}") as connection:
                assert connection.multiply("head", np.ones((answered, 12))).shape == (answered, 3)
                with pytest.raises(hn.QueryBudgetExceeded, match=f"{left} are left"):
                    connection.multiply("head", np.ones((3, 12)))
        finally:
            server.kill()
            server.communicate()


@pytest.mark.parametrize("options", [["--queries", "5"], ["--query-ledger", "here"]])
def test_a_budget_of_queries_needs_a_number_and_a_place(weights_file, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    for model in ([], ["--model", weights_file, *MODEL]):
        result = run("serve", "--port", "0", *model, *options)
        assert result.exit_code == 1
        assert "--query-ledger) go together" in result.stderr


def test_a_training_server_is_counted_too():
    import urllib.request

    pytest.importorskip("prometheus_client")
    server = start([*COMMAND, "serve", "--port", "0", "--metrics", "127.0.0.1:0"])
    try:
        metrics = wait_for(server, r"metrics on port (\d+)").group(1)
        wait_for(server, "listening on")
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10).read().decode()
        assert "hesplit_sessions 0.0" in text
        assert "hesplit_memory_limit_bytes" in text
    finally:
        server.kill()
        server.communicate()


def test_weights_that_cannot_be_served_are_one_readable_line(weights_file):
    result = run("serve", "--model", weights_file, "--port", "0")
    assert result.exit_code == 1
    assert "table.weight: I8 is not served" in result.stderr
    result = run("serve", "--model", weights_file, "--layers", "encoder", "--port", "0")
    assert "there are body.0, head, table" in result.stderr
    result = run("serve", "--model", weights_file, "--layers", "head", "--port", "0")
    assert "--transposed" in result.stderr
