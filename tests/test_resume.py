"""Two real processes over mutual TLS: the same run as in one process, also when either of them is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
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

# What a process runs: the command line, a client's on a smaller synthetic set. One that is to be killed takes its time from step
# 60 on, and goes beyond step 150 only once `killed` exists: however busy the machine, it is met in the middle of its run. `pace`:
# seconds that every step takes at least.
PROGRAM = """
import os, sys, time
sys.argv = ["hesplit-native", *arguments]
said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(said, 1), os.dup2(said, 2)
import hesplit_native.data as data
original = data.synthetic_ecg
data.synthetic_ecg = lambda: original(train=400, test=50)
if pace:
    from hesplit_native.training.client import Client
    steady_learn = Client.learn
    def paced_learn(client, *batch):
        time.sleep(pace)
        return steady_learn(client, *batch)
    Client.learn = paced_learn
if killed:
    from hesplit_native.training.client import Client
    learn, step = Client.learn, 0
    def slow_learn(client, *batch):
        global step
        step += 1
        while step > 60 and not os.path.exists(killed):
            time.sleep(0.01)
            if step < 150:
                break
        return learn(client, *batch)
    Client.learn = slow_learn
from hesplit_native.cli import app
app()
"""

# Forked from one process that has imported all of it: that takes longer than these runs. (torch's optimisers import _dynamo.)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([
    "hesplit_native.cli.train", "hesplit_native.training.run", "hesplit_native.transport", "matplotlib.backends.backend_agg",
    "matplotlib.pyplot", "rich.progress", "rich.table", "safetensors.torch", "torch._dynamo",
])  # fmt: skip


class Command:
    """`hesplit-native` in a process of its own; what it says goes to a file."""

    def __init__(self, arguments, log, *, killed=None, pace=0.0):
        self.arguments, self.log, self.killed = [str(word) for word in arguments], log, killed
        log.unlink(missing_ok=True)  # what an earlier process said is not said by this one
        names = {"__name__": "program", "arguments": self.arguments, "log": str(log), "killed": killed and str(killed)}
        names["pace"] = pace
        self.process = FORKS.Process(target=exec, args=(PROGRAM, names), daemon=True)
        self.process.start()

    @property
    def output(self):
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def kill(self):
        self.process.kill()
        self.process.join()
        if self.killed:
            self.killed.touch()

    def wait(self, code=0):
        self.process.join(300)
        assert self.process.exitcode == code, self.output

    def eventually(self, condition):
        """Wait for something that this process does."""
        deadline = time.monotonic() + 300
        while not (found := condition()):
            assert self.process.is_alive(), self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)
        return found


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
        options = ["--port", self.port, "--tls", self.tls, "--checkpoints", self.folder / "server"]
        self.command = Command(["serve", *options, "--output", self.folder / "layers"], self.folder / "server.log")
        found = self.command.eventually(lambda: re.search(r"listening on .*:(\d+) ", self.command.output))
        self.port = int(found.group(1))

    def kill(self):
        self.command.kill()


@pytest.fixture(scope="module")
def steady(tmp_path_factory, tls):
    """A server that nobody kills."""
    process = ServerProcess(tmp_path_factory.mktemp("steady"), tls)
    yield process
    process.kill()


@pytest.fixture
def server(tmp_path, tls):
    process = ServerProcess(tmp_path, tls)
    yield process
    process.kill()


def arguments(server, output, *more):
    return [
        "train", "--server", f"localhost:{server.port}", "--tls", server.tls, "--client-id", "alice", "--epochs", "2",
        "--seed", "3", "--checkpoint-every", "20", "--output", output, "--batch-size", "4", "--accept-leak", *more,
    ]  # fmt: skip


def start(command, folder):
    """A client that is going to lose its server or be killed."""
    return Command(command, folder / "part.log", killed=folder / "killed")


def wait_for_checkpoint(folder, step, process):
    """Until the client has written the checkpoint of that step or a later one."""

    def reached():
        names = (folder / "checkpoints").glob("client-*.safetensors")
        return any(int(path.stem.split("-")[1]) >= step for path in names)

    process.eventually(reached)


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def run(command, folder):
    Command(command, folder / "run.log").wait()


def same_model(a, b):
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("protocol", ["plain", "splitways", "sealed"])
def test_two_processes_over_mutual_tls_train_as_one_does(steady, tmp_path, protocol):
    options = ["--protocol", protocol, "--flooding", "off", "--limit-batches", "20"]
    run(arguments(steady, tmp_path / "two", *options), tmp_path)
    two = metrics(tmp_path / "two")
    config = RunConfig(protocol=protocol, flooding="off", epochs=2, seed=3, limit_batches=20)
    one = train(config, dataset())
    for there, here in zip(two["history"], one.history, strict=True):
        if protocol == "plain":
            assert there["train_loss"] == here.train_loss
        else:
            assert abs(there["train_loss"] - here.train_loss) < 3e-3
    assert two["bytes_up"] == one.bytes_up


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tls):
    """An undisturbed run, under `run`, with the server's layer under `layers`."""
    folder = tmp_path_factory.mktemp("whole")
    server = ServerProcess(folder, tls)
    run(arguments(server, folder / "run", "--protocol", "plain"), folder)
    server.kill()
    return folder


@pytest.mark.parametrize("whom", ["client", "server", "both"])
def test_plain_ends_bit_for_bit_as_undisturbed(server, whole, tmp_path, whom):
    part = tmp_path / "part"
    command = arguments(server, part, "--protocol", "plain")
    process = start(command, tmp_path)
    wait_for_checkpoint(part, 60, process)
    time.sleep(0.02)  # somewhere between two checkpoints
    if whom in ("client", "both"):
        process.kill()
    if whom in ("server", "both"):
        server.kill()
        server.start()
    if whom == "server":
        process.killed.touch()
        process.wait()
    else:
        run([*command, "--resume"], tmp_path)
    assert same_model(whole / "run", part)
    undisturbed, resumed = metrics(whole / "run"), metrics(part)
    keys = ("epoch", "train_loss", "train_accuracy", "test_accuracy")
    assert [[r[k] for k in keys] for r in undisturbed["history"]] == [[r[k] for k in keys] for r in resumed["history"]]
    assert resumed["batches"] == undisturbed["batches"]
    (first,), (second,) = ((folder / "layers").iterdir() for folder in (whole, tmp_path))
    first, second = load_file(first), load_file(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_survives_as_many_kills_as_there_are(server, whole, tmp_path):
    """HESPLIT_KILLS of them (`make kill`: 50), of the client, the server or both, wherever they are between two checkpoints."""
    kills, chance = int(os.environ.get("HESPLIT_KILLS", "4")), random.Random(5)
    part = tmp_path / "part"
    command = [*arguments(server, part, "--protocol", "plain"), "--checkpoint-every", "1"]
    process = Command(command, tmp_path / "part.log", pace=0.02)
    for kill in range(1, kills + 1):
        wait_for_checkpoint(part, 195 * kill // (kills + 1), process)
        time.sleep(0.02 * chance.random())
        whom = chance.choice(["client", "server", "both"])
        if whom in ("client", "both"):
            process.kill()
        if whom in ("server", "both"):
            server.kill()
            server.start()
        if whom in ("client", "both"):
            process = Command([*command, "--resume"], tmp_path / "part.log", pace=0.02)
    process.wait()
    assert same_model(whole / "run", part)
    undisturbed, resumed = metrics(whole / "run"), metrics(part)
    assert [r["train_loss"] for r in resumed["history"]] == [r["train_loss"] for r in undisturbed["history"]]
    assert resumed["batches"] == undisturbed["batches"]


@pytest.fixture(scope="module")
def plain():
    return train(RunConfig(protocol="plain", epochs=2, seed=3), dataset())


@pytest.mark.parametrize("whom", ["client", "server"])
@pytest.mark.parametrize("options", [["splitways", "--flooding", "off"], ["splitways"], ["hesplit"], ["sealed"]])
def test_encrypted_runs_go_on_after_a_kill(server, plain, tmp_path, options, whom):
    """The same order of data from the same state: losses as in an undisturbed run, up to what fresh noise changes."""
    part = tmp_path / "part"
    command = arguments(server, part, "--protocol", *options)
    process = start(command, tmp_path)
    wait_for_checkpoint(part, 40, process)
    if whom == "client":
        process.kill()
        run([*command, "--resume"], tmp_path)
    else:
        server.kill()
        server.start()
        process.killed.touch()
        process.wait()
    found = metrics(part)
    assert found["batches"] == 200
    for there, here in zip(found["history"], plain.history, strict=True):
        assert abs(there["train_loss"] - here.train_loss) < (0.02 if "off" in options else 0.1)


def test_another_client_cannot_resume_a_run(steady, tmp_path):
    part = tmp_path / "part"
    command = arguments(steady, part, "--protocol", "plain")
    process = start(command, tmp_path)
    wait_for_checkpoint(part, 20, process)
    process.kill()
    stolen = Command([word if word != "alice" else "mallory" for word in [*command, "--resume"]], tmp_path / "log")
    stolen.wait(code=1)
    assert "no such run of this client" in " ".join(stolen.output.split())
    run([*command, "--resume"], tmp_path)  # its owner can


def test_a_wrong_handshake_and_an_unknown_run(steady, tls):
    channel = connect(f"localhost:{steady.port}", tls=ClientTls.load(tls, "alice"))
    channel.send(b"HESL" + bytes(200))
    assert b"version 0" in channel.receive()
    channel.close()
    # The server still serves.
    config = RunConfig(protocol="plain", epochs=1, limit_batches=3)
    result = train(
        config, dataset(), connect=lambda: connect(f"localhost:{steady.port}", tls=ClientTls.load(tls, "alice"))
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
def test_lost_connections_are_made_again_and_the_very_same_bytes_sent_again(steady, tmp_path, tls, protocol):
    plan = {"calls": 0, "before": {11, 30}, "after": {18, 25}, "sent": []}

    def open_channel():
        return Cutter(connect(f"localhost:{steady.port}", tls=ClientTls.load(tls, "alice")), plan)

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
