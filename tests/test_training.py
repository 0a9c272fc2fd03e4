from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.protocols.server import serve
from hesplit_native.training import RunConfig, train
from hesplit_native.transport import connect


@pytest.fixture(scope="module")
def data():
    return synthetic_ecg(train=402, test=100)


class Recorder:
    def __init__(self, stop_at=None):
        self.calls = []
        self.stop_at = stop_at

    def on_start(self, batches_per_epoch, epochs):
        self.calls.append(("start", batches_per_epoch, epochs))

    def on_batch(self, epoch, batch, loss, accuracy):
        self.calls.append(("batch", epoch, batch))

    def on_evaluate(self, epoch):
        self.calls.append(("evaluate", epoch))

    def on_epoch(self, record):
        self.calls.append(("epoch", record.epoch))
        if self.stop_at == record.epoch:
            raise KeyboardInterrupt


def same_history(a, b):
    keys = ("train_loss", "train_accuracy", "test_accuracy")
    return [[getattr(r, k) for k in keys] for r in a.history] == [[getattr(r, k) for k in keys] for r in b.history]


def test_local_and_plain_are_the_same_run(data):
    local = train(RunConfig(protocol="local", epochs=2), data)
    plain = train(RunConfig(protocol="plain", epochs=2), data)
    assert same_history(local, plain)
    assert torch.equal(local.server_weight, plain.server_weight)
    assert (local.bytes_up, local.bytes_down) == (0, 0)


@pytest.mark.parametrize("packing", ["blocks", "slots"])
def test_an_encrypted_run_starts_like_the_plain_one(data, packing):
    plain = train(RunConfig(protocol="plain", epochs=1, limit_batches=20), data)
    encrypted = train(RunConfig(protocol="splitways", packing=packing, epochs=1, limit_batches=20), data)
    assert abs(plain.history[0].train_loss - encrypted.history[0].train_loss) < 1e-3
    assert encrypted.parameters["packing"] == packing
    assert encrypted.flooding == "off"
    assert encrypted.notes
    assert encrypted.batches == 20
    assert {"encrypt", "decrypt", "convolutions", "server and transport"} <= set(encrypted.seconds_by_phase)
    assert sum(encrypted.seconds_by_phase.values()) == pytest.approx(encrypted.train_seconds, rel=0.05)
    assert {"forward", "backward and update"} <= set(encrypted.server_seconds_by_phase)


def test_a_step_on_blocks_stays_below_45_kilobytes(data):
    result = train(RunConfig(epochs=1), data)
    assert (result.bytes_up + result.bytes_down) / result.batches < 45_000
    assert result.parameters["error_bound"] <= 1e-3


def test_ranges_follow_the_servers_optimiser(data):
    # Under plain gradient descent activations grow well beyond what they reach with Adam.
    results = [train(RunConfig(epochs=1, limit_batches=2, server_optimizer=name), data) for name in ("adam", "sgd")]
    assert results[0].parameters["activation_norm"] == 128.0
    assert results[1].parameters["activation_norm"] == 512.0
    assert all(result.parameters["ring_degree"] == 2048 for result in results)


def test_every_row_is_used_and_the_last_batch_is_short(data):
    recorder = Recorder()
    result = train(RunConfig(protocol="local", epochs=2), data, observer=recorder)
    assert result.batches == 2 * 101
    assert recorder.calls[0] == ("start", 101, 2)
    assert recorder.calls[-1] == ("epoch", 2)
    assert ("batch", 1, 101) in recorder.calls


def test_seeds_decide_the_run(data):
    runs = [train(RunConfig(protocol="local", epochs=1, seed=seed), data) for seed in (0, 0, 1)]
    assert same_history(runs[0], runs[1])
    assert not same_history(runs[0], runs[2])


def test_recipes():
    assert RunConfig(recipe="default").optimizer == "adam"
    assert RunConfig(recipe="paper").optimizer == "sgd"
    assert RunConfig(recipe="paper", protocol="plain").optimizer == "adam"
    assert RunConfig(recipe="paper", server_optimizer="adam").optimizer == "adam"
    with pytest.raises(hn.ParameterError, match="batch_size"):
        RunConfig(batch_size=0)


def test_paper_recipe_applies_softmax_twice(data):
    # A loss on probabilities cannot fall below log(1 + 4/e).
    result = train(RunConfig(protocol="local", recipe="paper", epochs=1), data)
    assert 0.9 < result.history[0].train_loss < 1.61


def test_interrupted_runs_keep_their_metrics(data):
    result = train(RunConfig(protocol="plain", epochs=3), data, observer=Recorder(stop_at=1))
    assert result.interrupted == "interrupted by the user"
    assert result.epochs == 1
    assert result.batches == 101


@pytest.fixture
def server():
    """A server in a process of its own."""
    code = "from hesplit_native.cli import app; app()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--sessions", "3", "--timeout", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().rpartition(":")[2].strip()
        yield f"127.0.0.1:{port}", process
        process.kill()


def test_two_processes_train_as_one_does(data, server):
    address, _ = server
    with connect(address) as channel:
        remote = train(RunConfig(protocol="plain", epochs=2), data, channel=channel)
    assert same_history(remote, train(RunConfig(protocol="plain", epochs=2), data))
    assert remote.server_weight is None
    with connect(address) as channel:
        encrypted = train(RunConfig(epochs=1, limit_batches=20), data, channel=channel)
    here = train(RunConfig(epochs=1, limit_batches=20), data)
    assert abs(encrypted.history[0].train_loss - here.history[0].train_loss) < 1e-3
    assert abs(encrypted.bytes_up - here.bytes_up) < 1000
    assert encrypted.server_seconds_by_phase["forward"] > 0


def test_a_killed_server_ends_the_run_with_its_metrics(data, server):
    address, process = server

    class Killer(Recorder):
        def on_epoch(self, record):
            process.kill()

    with connect(address) as channel:
        result = train(RunConfig(protocol="plain", epochs=3), data, channel=channel, observer=Killer())
    assert result.epochs == 1
    assert "server" in result.interrupted


def test_a_server_survives_a_broken_client(data):
    events, port = [], []
    ready = threading.Event()

    def listening(number):
        port.append(number)
        ready.set()

    thread = threading.Thread(
        target=serve,
        args=("127.0.0.1", 0),
        kwargs={"on_event": events.append, "on_listen": listening, "sessions": 3, "timeout": 10.0},
    )
    thread.start()
    assert ready.wait(10)
    address = f"127.0.0.1:{port[0]}"
    with connect(address) as channel:
        channel.send(b"not a message")
        assert b"shorter than its header" in channel.receive()
    connect(address).close()
    with connect(address) as channel:
        assert train(RunConfig(protocol="plain", epochs=1, limit_batches=3), data, channel=channel).epochs == 1
    thread.join(20)
    assert [("failed" in e, "done" in e) for e in events if "connected" not in e] == [
        (True, False),
        (True, False),
        (False, True),
    ]
