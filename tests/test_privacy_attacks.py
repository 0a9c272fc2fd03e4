"""Each attack succeeds against a planted leak and fails against noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.layer.parameters import SEALED_UPDATES
from hesplit_native.privacy import metrics
from hesplit_native.privacy.attacks import (
    activations,
    features,
    forged,
    hijack,
    inversion,
    keys,
    labels,
    traffic,
)
from hesplit_native.privacy.transcript import Recording, record
from hesplit_native.training.config import RunConfig


@pytest.fixture(scope="module")
def data():
    return synthetic_ecg(train=600, test=300)


def recorded(data, protocol, flooding="off", *, steps=60, n=4):
    config = RunConfig(protocol=protocol, flooding=flooding, batch_size=n, accept_leak=True)
    return record(config, data, steps=steps, keep=steps)


def likeness(estimates, recording):
    return np.median(metrics.correlations(np.concatenate(estimates), np.concatenate(recording.truth.activations)))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_activations_follow_exactly_from_small_batches(n):
    generator = np.random.default_rng(n)
    x = generator.normal(size=(n, 50))
    g = generator.normal(size=(n, 5)) * 10.0 ** -generator.integers(0, 5, (n, 1))
    found = activations.from_gradients(g.astype(np.float32), g.T @ x, np.zeros(50))
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-3)


def test_activations_of_large_batches_are_only_estimated():
    generator = np.random.default_rng(0)
    x, g = generator.normal(size=(20, 50)), generator.normal(size=(20, 5))
    found = activations.from_gradients(g, g.T @ x, np.zeros(50))
    assert 0.2 < np.median(metrics.correlations(found, x)) < 0.8
    noise = activations.from_gradients(generator.normal(size=(20, 5)), g.T @ x, np.zeros(50))
    assert abs(np.median(metrics.correlations(noise, x))) < 0.2


@pytest.mark.parametrize(
    ("protocol", "flooding"),
    [("vanilla", "off"), ("plain", "off"), ("splitways", "off"), ("splitways", "step"), ("hesplit", "off")],
)
def test_servers_recover_activations_and_labels(data, protocol, flooding):
    recording = recorded(data, protocol, flooding)
    assert likeness(activations.recover(recording.transcript), recording) > 0.999
    truth = np.concatenate(recording.truth.labels)
    assert labels.accuracy(np.concatenate(labels.infer(recording.transcript)), truth) == 1.0


def test_sealed_tells_its_server_nothing(data):
    recording = recorded(data, "sealed")
    assert all(step.weight is None and step.weight_gradient is None for step in recording.transcript.steps)
    assert abs(likeness(activations.recover(recording.transcript), recording)) < 0.15
    truth = np.concatenate(recording.truth.labels)
    guessed = labels.accuracy(np.concatenate(labels.infer(recording.transcript)), truth)
    assert guessed < np.bincount(truth).max() / len(truth) + 0.1
    seen = traffic.observe(recording.transcript, recording.truth.labels)
    assert len(seen.sizes_down) == 1
    # Weights go with every so many steps, whatever is in them.
    sizes = [len(step.forward) + len(step.backward) for step in recording.transcript.steps]
    due = [step % SEALED_UPDATES == 0 for step in range(1, len(sizes) + 1)]
    assert [size == max(seen.sizes_up) for size in sizes] == due
    assert len(seen.sizes_up) == 2


def test_the_mean_activation_follows_from_many_steps(data):
    recording = recorded(data, "splitways", n=8)
    mean = activations.mean_activation(recording.transcript)
    truth = np.concatenate(recording.truth.activations).mean(0)
    assert np.corrcoef(mean, truth)[0, 1] > 0.8


def test_labels_by_the_direction_of_gradients():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 300)
    directions = generator.normal(size=(4, 12))
    gradients = directions[truth] * generator.uniform(0.01, 2, (300, 1)) + 0.001 * generator.normal(size=(300, 12))
    assert labels.cluster_accuracy(labels.by_direction(gradients, 4), truth) > 0.95
    assert labels.cluster_accuracy(labels.by_direction(generator.normal(size=(300, 12)), 4), truth) < 0.5


def test_traffic_that_depends_on_labels_is_found(data):
    recording = recorded(data, "plain")
    common = np.bincount(np.concatenate(recording.truth.labels)).argmax()
    planted = Recording(recording.transcript, recording.truth)
    for step, known in zip(planted.transcript.steps, planted.truth.labels, strict=True):
        step.reply_bytes += 100 * int((known == common).sum())
    assert traffic.observe(planted.transcript, planted.truth.labels).label_information > 0.9


def test_signals_are_rebuilt_from_activations_of_a_known_network(data):
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 256), torch.nn.LeakyReLU())
    invert = inversion.learn_inverse(body, data.train_x, steps=600)
    with torch.no_grad():
        known = body(torch.from_numpy(data.test_x)).numpy()
    signals = data.test_x[:, 0]
    assert np.median(metrics.correlations(invert(known)[:, 0], signals)) > 0.6
    noise = np.random.default_rng(0).normal(size=known.shape)
    assert abs(np.median(metrics.correlations(invert(noise)[:, 0], signals))) < 0.2


def test_the_closest_channel_is_found(data):
    signals = data.test_x[:50, 0]
    noise = np.random.default_rng(0).normal(size=(50, 3, 32))
    planted = noise.copy()
    planted[:, 1] = signals.reshape(50, 32, 4).mean(2)
    shown = inversion.closest_channel_correlation(
        inversion.stretched_channels(planted.reshape(50, -1), 3, 128), signals
    )
    hidden = inversion.closest_channel_correlation(inversion.stretched_channels(noise.reshape(50, -1), 3, 128), signals)
    assert np.median(shown) > 0.8 > 0.5 > np.median(hidden)


def test_resemblance_of_channels():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, 1, 64)).cumsum(2)
    maps = generator.normal(size=(20, 2, 32))
    maps[:, 1] = -2 * x[:, 0].reshape(20, 32, 2).mean(2)
    found = metrics.resemblance(x, maps.reshape(20, -1), 2)
    assert found.worst == 1
    assert found.distance_correlation[1] == pytest.approx(1)
    assert found.distance_correlation[0] < 0.5
    maps[:, 1] *= -1
    warped = metrics.resemblance(x, maps.reshape(20, -1), 2).dynamic_time_warping
    assert warped[1] < 1e-6 < warped[0]


class TestKeys:
    def test_masked_weights_give_the_key_away_in_two_steps(self, data):
        recording = recorded(data, "hesplit", steps=8)
        found = keys.from_masked_weights(recording.transcript)
        assert found.share == 1
        opened = [x for x in found.opened if x is not None]
        np.testing.assert_allclose(opened[-1], recording.truth.activations[-1], atol=1e-3)

    @pytest.mark.parametrize("flooding", ["step", "run"])
    def test_flooded_masked_weights_do_not(self, data, flooding):
        assert keys.from_masked_weights(recorded(data, "hesplit", flooding, steps=6).transcript).share == 0

    def test_unflooded_gradients_give_the_key_away(self):
        recording = recorded(synthetic_ecg(train=2000, test=50), "splitways", steps=700)
        found = keys.from_gradients_of_logits(recording.transcript)
        assert found.share == 1
        np.testing.assert_allclose(found.opened[-1], recording.truth.activations[-1], atol=1e-3)

    @pytest.mark.parametrize("flooding", ["step", "run"])
    def test_flooded_gradients_do_not(self, data, flooding):
        recording = recorded(data, "splitways", flooding, steps=200)
        assert keys.from_gradients_of_logits(recording.transcript).share == 0

    def test_a_wrong_key_opens_nothing(self, data):
        recording = recorded(data, "splitways", steps=2)
        server = keys.honest_server(recording.transcript)
        guess = np.random.default_rng(0).integers(-1, 2, 2048).astype(np.int8)
        assert keys.open_request(server, recording.transcript, recording.transcript.steps[0], guess) is None


class TestForgedReplies:
    @pytest.mark.parametrize("flooding", ["off", "run"])
    def test_a_client_that_goes_on_under_one_key_loses_it(self, data, flooding):
        found = forged.extract_key(RunConfig(flooding=flooding, batch_size=4, accept_leak=True), data)
        assert found.opens
        assert found.steps <= 260

    def test_fresh_keys_leave_a_heap_of_unrelated_coefficients(self, data):
        found = forged.extract_key(RunConfig(flooding="step", batch_size=4, accept_leak=True), data)
        assert not found.opens

    def test_a_client_that_destroys_its_key_gives_nothing_more(self, data):
        config = RunConfig(flooding="off", batch_size=4, accept_leak=True)
        found = forged.extract_key(config, data, logit=1e9)
        assert (found.steps, found.known, found.opens) == (1, 0.0, False)
        assert "key was destroyed" in found.ended


class TestPrivateFeatures:
    def test_gradients_give_them_away_and_noise_does_not(self):
        table = features.synthetic_table(500, private=6)
        observed, truth, _ = features.train(table, steps=50)
        assert features.accuracy(features.reconstruct(observed, 6), truth) == 1
        noisy, truth, _ = features.train(table, steps=50, protect=lambda g: g + torch.randn_like(g))
        assert features.accuracy(features.reconstruct(noisy, 6), truth) < features.chance(table) + 0.1

    def test_any_table_with_its_columns_named(self, tmp_path):
        table = features.synthetic_table(100, public=3, private=2)
        rows = ["a,b,c,sick,smokes,name,y"]
        for shown, hidden, label in zip(table.public, table.private, table.labels, strict=True):
            rows.append(",".join([*map(str, shown), "NY"[int(hidden[0])], str(int(hidden[1])), "x", str(int(label))]))
        path = tmp_path / "t.csv"
        path.write_text("\n".join(rows))
        loaded = features.load_table(path, private=["sick", "smokes"], label="y")
        assert loaded.public.shape == (100, 3)
        np.testing.assert_array_equal(loaded.private[:, 1], table.private[:, 1])
        with pytest.raises(hn.DataError, match="no column 'age'"):
            features.load_table(path, private=["age"], label="y")
        with pytest.raises(hn.DataError, match="has 100 values"):
            features.load_table(path, private=["a"], label="y")


def test_a_malicious_server_trains_the_client_for_itself(data):
    config = RunConfig(protocol="plain", batch_size=32)
    found = hijack.hijack(config, data, data.test_x, steps=500, keep=10)
    decoded, signals = found.decoded[:, 0], found.inputs[:, 0]
    assert np.median(metrics.correlations(decoded, signals)) > 0.5
    other = np.random.default_rng(0).permutation(len(signals))
    assert abs(np.median(metrics.correlations(decoded, signals[other]))) < 0.2


def test_labels_by_the_size_of_gradients():
    generator = np.random.default_rng(0)
    rare = generator.random(500) < 0.1
    gradients = generator.normal(size=(500, 5)) * np.where(rare, 3.0, 1.0)[:, None]
    assert labels.by_norm(gradients, rare) > 0.9
    assert abs(labels.by_norm(generator.normal(size=(500, 5)), rare) - 0.5) < 0.1
