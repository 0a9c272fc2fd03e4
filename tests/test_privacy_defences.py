"""Noise has the size that its epsilon asks for, and what is refused is refused."""

from __future__ import annotations

import math

import dcor
import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.protocols.guards import check_batch, leaks
from hesplit_native.protocols.server import Server
from hesplit_native.training.client import Client
from hesplit_native.training.config import Defences, RunConfig
from hesplit_native.training.defences import Defender, distance_correlation
from hesplit_native.training.division import epoch_batches
from hesplit_native.training.recipes import paper_task
from hesplit_native.training.run import in_process, train, train_together


@pytest.fixture(scope="module")
def data():
    return synthetic_ecg(train=203, test=40)


def still(config, data):
    """A client whose convolutions do not learn, and its server's layer."""
    server = Server()
    client = Client(config, paper_task(config, data), batches=0, connect=in_process(server))
    client.begin()
    for group in client.optimizer.param_groups:
        group["lr"] = 0.0
    return client, server.last_linear


def noise_of(defences, name, values):
    defender = Defender(defences, values.shape[1])
    return (getattr(defender, name)(values) - getattr(Defender(Defences(), 1), name)(values)).double()


class TestNoise:
    def test_values_are_clipped_and_get_laplace_noise_of_twice_the_clip_over_epsilon(self):
        noise = noise_of(Defences(activation_epsilon=2.0, activation_clip=3.0), "activations", torch.zeros(400, 256))
        assert float(noise.abs().mean()) == pytest.approx(2 * 3 / 2, rel=0.02)  # mean |Laplace(b)| is b
        assert float(noise.square().mean()) == pytest.approx(2 * 3.0**2, rel=0.05)
        large = Defender(Defences(activation_epsilon=1e6, activation_clip=3.0), 1).activations(torch.full((2, 4), 9.0))
        assert torch.allclose(large, torch.full((2, 4), 3.0), atol=1e-3)

    def test_rows_are_clipped_and_get_gaussian_noise_of_the_accounted_size(self):
        defences = Defences(mechanism="gaussian", activation_epsilon=1.0, activation_clip=1.0)
        noise = noise_of(defences, "activations", torch.zeros(400, 256))
        # One Gaussian release: sigma = sqrt(2 ln(1.25 / delta)) * 2 C / epsilon is the classical bound; the accountant's is smaller.
        sigma = float(noise.std())
        assert 0.5 < sigma / (math.sqrt(2 * math.log(1.25e5)) * 2) < 1
        rows = Defender(Defences(mechanism="gaussian", activation_epsilon=1e5), 4).activations(torch.full((3, 4), 50.0))
        assert rows.norm(dim=1).max() < 1.1

    def test_gradients_are_clipped_by_row_and_noised(self):
        defences = Defences(gradient_epsilon=1e5, gradient_clip=0.5)
        clipped = Defender(defences, 1).gradient(torch.full((4, 5), 1.0))
        assert clipped.norm(dim=1).max() < 0.5 / 4 + 0.01
        laplace = noise_of(Defences(mechanism="laplace", gradient_epsilon=1.0), "gradient", torch.zeros(4000, 5))
        assert float(laplace.abs().mean()) == pytest.approx(2 / 4000, rel=0.05)

    def test_labels_change_as_often_as_randomised_response_says(self):
        truth = torch.zeros(20000, dtype=torch.int64)
        noisy = Defender(Defences(label_epsilon=1.0), 1).labels(truth, 5)
        assert float((noisy != 0).float().mean()) == pytest.approx(4 / (math.e + 4), abs=0.02)
        assert set(noisy.tolist()) == {0, 1, 2, 3, 4}

    def test_noise_is_never_the_same_twice(self):
        values = torch.zeros(3, 8)
        one, two = (Defender(Defences(activation_epsilon=1.0), 8).activations(values) for _ in range(2))
        assert not torch.equal(one, two)


class TestAccounting:
    def test_releases_add_up_over_epochs(self):
        defender = Defender(Defences(mechanism="gaussian", activation_epsilon=1.0), 256)
        once, ten = defender.epsilon(1), defender.epsilon(10)
        assert once == pytest.approx(1.0, rel=0.01)
        assert 2 < ten < 10
        both = Defender(Defences(mechanism="gaussian", activation_epsilon=1.0, gradient_epsilon=1.0), 256)
        assert both.epsilon(1) > once
        assert Defender(Defences(label_epsilon=2.0), 256).epsilon(10) == 2.0
        values = Defender(Defences(activation_epsilon=1.0), 256).epsilon(1)
        assert 100 < values < 256  # a row of 256 values of epsilon 1 each

    def test_runs_report_it(self, data):
        config = RunConfig(protocol="plain", epochs=2, defences=Defences(mechanism="gaussian", gradient_epsilon=5.0))
        result = train(config, data)
        assert result.history[0].epsilon < result.history[1].epsilon == result.epsilon
        assert train(RunConfig(protocol="plain", epochs=1, limit_batches=2), data).epsilon is None


def test_distance_correlation_is_that_of_a_known_library():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(30, 4)), generator.normal(size=(30, 3))
    b[:, 0] += a[:, 1] ** 2
    found = distance_correlation(torch.from_numpy(a), torch.from_numpy(b))
    assert float(found) == pytest.approx(float(dcor.distance_correlation(a, b)), abs=1e-4)
    x = torch.from_numpy(a).requires_grad_()
    distance_correlation(x, torch.from_numpy(b)).backward()
    assert torch.isfinite(x.grad).all()


def test_decorrelation_lowers_what_it_penalises(data):
    def likeness(weight):
        config = RunConfig(protocol="plain", batch_size=32, epochs=6, defences=Defences(decorrelation=weight))
        result = train(config, data)
        body = result.architecture.body(0)
        body.load_state_dict(
            {k.removeprefix("body."): v for k, v in result.client_state.items() if k.startswith("body.")}
        )
        x = torch.from_numpy(data.test_x)
        with torch.no_grad():
            return float(distance_correlation(x.flatten(1), body(x)))

    assert likeness(0.5) < likeness(0.0) - 0.05


@pytest.mark.parametrize("protocol", ["local", "vanilla", "plain", "splitways", "hesplit", "sealed"])
def test_defences_compose_with_every_protocol(data, protocol):
    gradient = None if protocol == "vanilla" else 50.0
    defences = Defences(activation_epsilon=20.0, gradient_epsilon=gradient, label_epsilon=3.0, decorrelation=0.1)
    result = train(RunConfig(protocol=protocol, epochs=1, limit_batches=3, flooding="off", defences=defences), data)
    assert result.batches == 3
    assert result.epsilon > 0


def test_noised_labels_survive_a_resumed_run(data, tmp_path):
    config = RunConfig(protocol="plain", epochs=1, limit_batches=4, defences=Defences(label_epsilon=0.5))
    train(config, data, checkpoints=tmp_path)
    from safetensors.torch import load_file

    paths = sorted(tmp_path.glob("client-*.safetensors"))
    first, last = (load_file(path)["labels"] for path in (paths[0], paths[-1]))
    assert torch.equal(first, last)
    assert not torch.equal(last, torch.from_numpy(data.train_y))
    resumed = train(config, data, checkpoints=tmp_path, resume=True)
    assert resumed.interrupted is None
    assert torch.equal(load_file(sorted(tmp_path.glob("client-*.safetensors"))[-1])["labels"], last)


def test_participants_have_their_own_noise(data):
    config = RunConfig(protocol="plain", epochs=1, limit_batches=2, defences=Defences(label_epsilon=1.0))
    assert train_together(config, data, participants=2).epsilon == 1.0


class TestSmallBatches:
    @pytest.mark.parametrize("protocol", ["splitways", "hesplit"])
    def test_are_refused_with_the_reason_unless_accepted(self, data, protocol):
        with pytest.raises(hn.ParameterError, match="recovers the activations exactly"):
            train(RunConfig(protocol=protocol, batch_size=4, epochs=1), data)
        config = RunConfig(protocol=protocol, batch_size=4, epochs=1, limit_batches=1, flooding="off", accept_leak=True)
        assert any("leak accepted" in note for note in train(config, data).notes)

    def test_nothing_is_refused_where_nothing_leaks(self):
        for protocol in ("local", "vanilla", "plain", "sealed"):
            check_batch(protocol, 1, 5, accept_leak=False)
        check_batch("splitways", 5, 5, accept_leak=False)
        assert leaks("splitways", 4, 5)
        assert not leaks("hesplit", 5, 5)

    def test_sums_over_several_batches_are_not_solvable_either(self, data):
        config = RunConfig(batch_size=4, accumulate=2, epochs=1, limit_batches=21, flooding="off")
        result = train(config, data)
        assert result.batches == 20
        assert not any("leak accepted" in note for note in result.notes)
        with pytest.raises(hn.ParameterError, match="recovers the activations exactly"):
            train(RunConfig(batch_size=2, accumulate=2, epochs=1), data)
        with pytest.raises(hn.ParameterError, match="larger batches"):
            RunConfig(protocol="hesplit", accumulate=2)
        with pytest.raises(hn.ParameterError, match="multiple of accumulate"):
            RunConfig(accumulate=3)

    def test_accumulated_steps_are_those_of_one_larger_batch(self, data):
        # The convolutions stand still, so the server's layer must end the same.
        def weight(**options):
            config = RunConfig(epochs=1, flooding="off", server_optimizer="sgd", **options)
            client, linear = still(config, data)
            for rows in torch.split(torch.arange(16), config.batch_size):
                client.learn(torch.from_numpy(data.train_x)[rows], torch.from_numpy(data.train_y)[rows])
            return linear().weight.detach(), linear().bias.detach()

        one, two = weight(batch_size=8), weight(batch_size=4, accumulate=2, learning_rate=0.0005)
        for a, b in zip(one, two, strict=True):
            assert torch.allclose(a, b, atol=1e-4)

    def test_a_short_last_batch_is_left_out(self):
        assert epoch_batches(RunConfig(batch_size=8), 203, 5) == 25  # a rest of 3
        assert epoch_batches(RunConfig(batch_size=8, accept_leak=True), 203, 5) == 26
        assert epoch_batches(RunConfig(batch_size=8), 205, 5) == 26  # a rest of 5
        assert epoch_batches(RunConfig(protocol="plain", batch_size=8), 203, 5) == 26


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mechanism": "magic"}, "mechanism"),
        ({"activation_epsilon": 0.0}, "activation_epsilon"),
        ({"gradient_epsilon": -1.0}, "gradient_epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"activation_clip": 0.0}, "clips"),
        ({"decorrelation": -0.1}, "decorrelation"),
    ],
)
def test_impossible_defences_are_refused(options, message):
    with pytest.raises(hn.ParameterError, match=message):
        Defences(**options)


def test_vanilla_has_no_gradient_to_noise():
    with pytest.raises(hn.ParameterError, match="vanilla"):
        RunConfig(protocol="vanilla", defences=Defences(gradient_epsilon=1.0))
