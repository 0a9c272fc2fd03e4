"""Two real processes over mutual TLS: the same run as in one process, also when either of them is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from hesplit_native.data import synthetic_ecg
from hesplit_native.training.config import RunConfig as Config
from hesplit_native.training.run import train
from hesplit_native.transport import ClientTls, connect, make_authority, make_client, make_server

RunConfig = partial(Config, batch_size=4, accept_leak=True)  # the papers' setting

COMMAND = [sys.executable, "-c", "from hesplit_native.cli import app; app()"]

# The client as a user runs it, on a smaller synthetic set.
CLIENT = """
import sys
import hesplit_native.data as data
original = data.synthetic_ecg
data.synthetic_ecg = lambda: original(train=400, test=50)
from hesplit_native.cli import app
app()
"""


def dataset():
    return synthetic_ecg(train=400, test=50)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder)
    make_server(folder, ["localhost", "127.0.0.1"])
    make_client(folder, "alice")
    make_client(folder, "mallory")
    return folder


class ServerProcess:
    """`hesplit-native serve` that can be killed and started again on the same port."""

    def __init__(self, folder, tls):
        self.folder, self.tls = folder, tls
        self.port = 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(self.port), "--tls", str(self.tls), "--checkpoints",
             str(self.folder / "server"), "--output", str(self.folder / "layers")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+) ", line).group(1))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def server(tmp_path, tls):
    process = ServerProcess(tmp_path, tls)
    yield process
    process.kill()


def arguments(server, output, *more):
    return [
        sys.executable, "-c", CLIENT, "train", "--server", f"localhost:{server.port}", "--tls", str(server.tls),
        "--client-id", "alice", "--epochs", "2", "--seed", "3", "--checkpoint-every", "20", "--output", str(output),
        "--batch-size", "4", "--accept-leak",
        *more,
    ]  # fmt: skip


def wait_for_checkpoint(folder, step, process):
    """Until the client has written the checkpoint of that step or a later one."""
    for _ in range(6000):
        steps = [int(p.stem.split("-")[1]) for p in (folder / "checkpoints").glob("client-*.safetensors")]
        if steps and max(steps) >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout


def same_model(a, b):
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("protocol", ["plain", "splitways", "sealed"])
def test_two_processes_over_mutual_tls_train_as_one_does(server, tmp_path, protocol):
    run([*arguments(server, tmp_path / "two", "--protocol", protocol, "--flooding", "off"), "--limit-batches", "20"])
    two = metrics(tmp_path / "two")
    config = RunConfig(protocol=protocol, flooding="off", epochs=2, seed=3, limit_batches=20)
    one = train(config, dataset())
    for there, here in zip(two["history"], one.history, strict=True):
        if protocol == "plain":
            assert there["train_loss"] == here.train_loss
        else:
            assert abs(there["train_loss"] - here.train_loss) < 1e-3
    assert two["bytes_up"] == one.bytes_up


@pytest.mark.parametrize("whom", ["client", "server", "both"])
def test_plain_ends_bit_for_bit_as_undisturbed(server, tmp_path, whom):
    run(arguments(server, tmp_path / "whole", "--protocol", "plain"))
    part = tmp_path / "part"
    command = arguments(server, part, "--protocol", "plain")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(part, 60, process)
    time.sleep(0.02)  # somewhere between two checkpoints
    if whom in ("client", "both"):
        process.send_signal(signal.SIGKILL)
        process.communicate()
    if whom in ("server", "both"):
        server.kill()
        server.start()
    if whom == "server":
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors + output
    else:
        run([*command, "--resume"])
    assert same_model(tmp_path / "whole", part)
    whole, resumed = metrics(tmp_path / "whole"), metrics(part)
    keys = ("epoch", "train_loss", "train_accuracy", "test_accuracy")
    assert [[r[k] for k in keys] for r in whole["history"]] == [[r[k] for k in keys] for r in resumed["history"]]
    assert resumed["batches"] == whole["batches"]
    layers = sorted((tmp_path / "layers").iterdir())
    assert len(layers) == 2
    first, second = map(load_file, layers)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("whom", ["client", "server"])
@pytest.mark.parametrize("options", [["splitways", "--flooding", "off"], ["splitways"], ["hesplit"], ["sealed"]])
def test_encrypted_runs_go_on_after_a_kill(server, tmp_path, options, whom):
    """The same order of data from the same state: losses as in an undisturbed run, up to what fresh noise changes."""
    part = tmp_path / "part"
    command = arguments(server, part, "--protocol", *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(part, 40, process)
    if whom == "client":
        process.send_signal(signal.SIGKILL)
        process.communicate()
        run([*command, "--resume"])
    else:
        server.kill()
        server.start()
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors + output
    found = metrics(part)
    assert found["batches"] == 200
    plain = train(RunConfig(protocol="plain", epochs=2, seed=3), dataset())
    for there, here in zip(found["history"], plain.history, strict=True):
        assert abs(there["train_loss"] - here.train_loss) < (0.02 if "off" in options else 0.1)


def test_another_client_cannot_resume_a_run(server, tmp_path, tls):
    part = tmp_path / "part"
    command = arguments(server, part, "--protocol", "plain")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(part, 20, process)
    process.kill()
    process.communicate()
    stolen = [word if word != "alice" else "mallory" for word in command]
    done = subprocess.run([*stolen, "--resume"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no such run of this client" in " ".join(done.stderr.split())
    run([*command, "--resume"])  # its owner can


def test_a_wrong_handshake_and_an_unknown_run(server, tls):
    channel = connect(f"localhost:{server.port}", tls=ClientTls.load(tls, "alice"))
    channel.send(b"HESL" + bytes(200))
    assert b"version 0" in channel.receive()
    channel.close()
    # The server still serves.
    config = RunConfig(protocol="plain", epochs=1, limit_batches=3)
    result = train(
        config, dataset(), connect=lambda: connect(f"localhost:{server.port}", tls=ClientTls.load(tls, "alice"))
    )
    assert result.interrupted is None


class Cutter:
    """A channel that loses its connection at the n-th call, before or after the request was worked on."""

    def __init__(self, channel, plan):
        self.channel, self.plan = channel, plan

    def send(self, message):
        self.plan["sent"].append(message)
        self.plan["calls"] += 1
        if self.plan["calls"] in self.plan["before"]:
            self.channel.close()
        self.channel.send(message)

    def receive(self):
        reply = self.channel.receive()
        if self.plan["calls"] in self.plan["after"]:
            self.plan["after"].discard(self.plan["calls"])
            self.channel.close()
            from hesplit_native.errors import ConnectionLost

            raise ConnectionLost("planned")
        return reply

    def close(self):
        self.channel.close()

    bytes_up = property(lambda self: self.channel.bytes_up)
    bytes_down = property(lambda self: self.channel.bytes_down)


@pytest.mark.parametrize("protocol", ["plain", "splitways", "hesplit", "sealed"])
def test_lost_connections_are_made_again_and_the_very_same_bytes_sent_again(server, tmp_path, tls, protocol):
    plan = {"calls": 0, "before": {11, 30}, "after": {18, 25}, "sent": []}

    def open_channel():
        return Cutter(connect(f"localhost:{server.port}", tls=ClientTls.load(tls, "alice")), plan)

    config = RunConfig(protocol=protocol, flooding="off", epochs=1, seed=3, limit_batches=20)
    result = train(config, dataset(), connect=open_channel, checkpoints=tmp_path / "c")
    undisturbed = train(config, dataset())
    assert result.interrupted is None
    assert result.batches == 20
    if protocol == "plain":
        assert result.history[0].train_loss == undisturbed.history[0].train_loss
        assert all(torch.equal(result.client_state[k], undisturbed.client_state[k]) for k in result.client_state)
    else:
        assert abs(result.history[0].train_loss - undisturbed.history[0].train_loss) < 1e-3
    resends = len(plan["sent"]) - len({bytes(message) for message in plan["sent"]})
    assert resends >= 4
