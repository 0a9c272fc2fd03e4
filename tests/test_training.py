from __future__ import annotations

import itertools
import threading
from functools import partial

import pytest
import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg, synthetic_ptbxl
from hesplit_native.protocols import phases
from hesplit_native.protocols.server import Server
from hesplit_native.training import run, tally
from hesplit_native.training.config import RunConfig as Config
from hesplit_native.training.run import train
from hesplit_native.transport import GrpcServer, connect

RunConfig = partial(Config, batch_size=4, accept_leak=True)  # the papers' setting


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


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "splitways", "flooding": "off"},
        {"protocol": "splitways", "packing": "slots", "flooding": "off"},
        {"protocol": "hesplit", "flooding": "off"},
        {"protocol": "hesplit", "packing": "slots", "flooding": "off"},
        {"protocol": "sealed"},
        {"protocol": "vanilla"},
        {"protocol": "sealed", "server_optimizer": "momentum"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_every_protocol_starts_like_the_plain_one(data, options, monkeypatch):
    # Time that does not depend on what else the machine does: every look at the clock takes a second.
    ticks = itertools.count()
    for module in (phases, run, tally):
        monkeypatch.setattr(module, "perf_counter", lambda: float(next(ticks)))
    optimizer = options.get("server_optimizer")
    plain = train(RunConfig(protocol="plain", epochs=1, limit_batches=20, server_optimizer=optimizer), data)
    other = train(RunConfig(epochs=1, limit_batches=20, **options), data)
    assert other.interrupted is None
    assert abs(plain.history[0].train_loss - other.history[0].train_loss) < 1e-3
    assert other.batches == 20
    assert sum(other.seconds_by_phase.values()) == pytest.approx(other.train_seconds, rel=0.05)


def test_what_a_report_says_of_an_encrypted_run(data):
    result = train(RunConfig(epochs=1, limit_batches=20, flooding="off"), data)
    assert result.parameters["packing"] == "blocks"
    assert result.flooding == "off"
    assert "leak accepted" in result.notes[0]
    assert "flooding is off" in result.notes[1]
    assert {"encrypt", "decrypt", "convolutions", "server and transport"} <= set(result.seconds_by_phase)
    assert {"forward", "backward and update"} <= set(result.server_seconds_by_phase)
    assert (result.bytes_up + result.bytes_down) / result.batches < 45_000
    assert result.parameters["error_bound"] <= 1e-3


@pytest.mark.parametrize(
    ("options", "kilobytes"),
    [
        ({"protocol": "splitways", "flooding": "step"}, 60),
        ({"protocol": "splitways", "flooding": "run"}, 120),
        ({"protocol": "sealed"}, 170),
    ],
    ids=["fresh key per step", "one key per run", "sealed"],
)
def test_bytes_of_a_step_with_nothing_left_out(data, options, kilobytes):
    result = train(RunConfig(epochs=1, limit_batches=100, **options), data)
    assert (result.bytes_up + result.bytes_down) / result.batches < 1000 * kilobytes
    assert result.parameters["security"] == "standard"
    if options["protocol"] == "splitways":
        assert 0 < result.flooding_deviation < 0.5


@pytest.mark.parametrize("flooding", ["step", "run"])
@pytest.mark.parametrize("protocol", ["splitways", "hesplit"])
def test_a_flooded_run_learns_as_the_plain_one(data, protocol, flooding):
    plain = train(RunConfig(protocol="plain", epochs=2), data)
    flooded = train(RunConfig(protocol=protocol, flooding=flooding, epochs=2), data)
    assert flooded.flooding == flooding
    assert abs(plain.history[-1].train_loss - flooded.history[-1].train_loss) < 0.1


def test_what_cannot_be_flooded_is_refused_unless_asked_for(data):
    with pytest.raises(hn.ParameterError, match='flooding="off"'):
        RunConfig(packing="slots")
    with pytest.raises(hn.ParameterError, match='flooding="off"'):
        RunConfig(parameter_set="4096-20")
    with pytest.raises(hn.ParameterError, match="unknown parameter set"):
        RunConfig(parameter_set="4097", flooding="off")
    with pytest.raises(hn.ParameterError, match="sealed weights need"):
        RunConfig(protocol="sealed", packing="slots")


@pytest.mark.parametrize("model", ["m2", "base"])
@pytest.mark.parametrize("protocol", ["vanilla", "plain", "splitways", "sealed"])
def test_other_models(data, model, protocol):
    plain = train(RunConfig(protocol="plain", epochs=1, limit_batches=8, model=model), data)
    other = train(RunConfig(protocol=protocol, epochs=1, limit_batches=8, model=model), data)
    assert other.interrupted is None
    assert abs(plain.history[0].train_loss - other.history[0].train_loss) < 0.02
    assert other.architecture.activations == (512 if model == "m2" else 256)


def test_more_convolutions_and_twelve_leads():
    twelve = synthetic_ptbxl(train=40, test=20)
    result = train(RunConfig(protocol="splitways", epochs=1, convolutions=4), twelve)
    assert result.interrupted is None
    assert result.architecture.activations == 2000
    assert sum("weight" in name for name in result.client_state) == 4
    with pytest.raises(hn.ParameterError, match="2 to 8"):
        train(RunConfig(protocol="local", epochs=1, convolutions=9), twelve)


def test_ranges_follow_the_servers_optimiser(data):
    # Under plain gradient descent activations grow well beyond what they reach with Adam.
    options = {"epochs": 1, "limit_batches": 2, "flooding": "off"}
    results = [train(RunConfig(server_optimizer=name, **options), data) for name in ("adam", "sgd")]
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


def test_several_clients_at_once_on_one_server(data):
    """Each has its own session, key and layer; one that breaks off does not disturb the others."""
    server = Server()
    results = {}
    with GrpcServer("127.0.0.1:0", server.converse) as transport:
        address = f"127.0.0.1:{transport.port}"

        def work(name, config):
            results[name] = train(config, data, connect=lambda: connect(address, client_id=name))

        configs = {
            "a": RunConfig(protocol="plain", epochs=1, limit_batches=30),
            "b": RunConfig(protocol="splitways", epochs=1, limit_batches=30, flooding="off"),
            "c": RunConfig(protocol="sealed", epochs=1, limit_batches=30),
            "d": RunConfig(protocol="plain", epochs=1, limit_batches=30, seed=1),
        }
        threads = [threading.Thread(target=work, args=item) for item in configs.items()]
        for thread in threads:
            thread.start()
        broken = connect(address, client_id="broken")
        broken.send(b"nonsense")
        assert b"shorter than its header" in broken.receive()
        broken.close()
        for thread in threads:
            thread.join(120)
    assert server.ended == 4
    assert not server.sessions
    alone = train(configs["a"], data)
    assert results["a"].history[0].train_loss == alone.history[0].train_loss
    assert results["d"].history[0].train_loss != alone.history[0].train_loss
    for name in "bc":
        assert results[name].interrupted is None
        assert abs(results[name].history[0].train_loss - alone.history[0].train_loss) < 3e-3


def test_one_key_per_run_counts_its_releases_on_disk_and_resumes_under_another(data, tmp_path):
    config = RunConfig(flooding="run", epochs=1, limit_batches=6, checkpoint_every=3)
    folder = tmp_path / "c"
    assert train(config, data, checkpoints=folder).interrupted is None
    assert len(list(folder.glob("releases-*.json"))) == 1
    again = train(config, data, checkpoints=folder, resume=True)
    assert again.interrupted is None
    assert again.batches == 6
    assert train(config, data, checkpoints=folder).epochs == 1  # anew, in the same folder
