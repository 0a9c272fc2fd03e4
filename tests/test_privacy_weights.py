"""What a client learns of W, from one reply and from answers."""

from __future__ import annotations

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.privacy.attacks import weights


def layer(features, outputs, samples, seed=0):
    rng = np.random.default_rng(seed)
    params = hn.Parameters.recommend(in_features=features, out_features=outputs, batch_size=samples)
    client = hn.LinearClient(hn.SecretKey.generate(params), features, outputs)
    weight, bias = rng.normal(size=(outputs, features)), rng.normal(size=outputs)
    return client, hn.LinearServer(client.public_material(), weight, bias), weight, bias, rng


@pytest.mark.parametrize(("features", "outputs", "samples"), [(12, 1, 1), (20, 1, 4), (12, 3, 4)])
def test_one_reply_of_a_small_layer_says_w(features, outputs, samples):
    pytest.importorskip("fpylll")
    client, server, weight, _, rng = layer(features, outputs, samples)
    request = client.encrypt(rng.normal(size=(samples, features)))
    found = weights.from_reply(client, request, server.forward(request))
    assert np.abs(found.weights - weight).max() < 1e-5
    assert found.dimension < 100


def test_a_reply_to_somebody_elses_request_says_nothing():
    """The attack can fail: with a_j that the reply was not made from."""
    pytest.importorskip("fpylll")
    client, server, weight, _, rng = layer(12, 1, 1)
    replies = [server.forward(client.encrypt(rng.normal(size=(1, 12)))) for _ in range(2)]
    other = client.encrypt(rng.normal(size=(1, 12)))
    found = weights.from_reply(client, other, replies[0])
    assert np.isnan(found.weights).all() or np.abs(found.weights - weight).max() > 0.1


class TestHeads:
    @pytest.mark.parametrize(("features", "outputs", "samples"), [(12, 1, 1), (256, 5, 4), (64, 3, 40)])
    def test_a_head_says_how_large_logits_can_be(self, features, outputs, samples):
        rng = np.random.default_rng(1)
        params = hn.Parameters.recommend(in_features=features, out_features=outputs, batch_size=samples)
        client = hn.LinearClient(hn.SecretKey.generate(params), features, outputs)
        weight, bias = rng.normal(size=(outputs, features)) / features**0.5, rng.normal(size=outputs)
        server = hn.LinearServer(client.public_material(), weight, bias)
        for _ in range(2):  # whatever is asked
            head = weights.from_head(client, server.forward(client.encrypt(rng.normal(size=(samples, features)))))
            bounds = np.minimum(
                params.activation_bound * np.abs(weight).sum(1), params.activation_norm * np.linalg.norm(weight, axis=1)
            )
            assert head.reach == pytest.approx((bounds + np.abs(bias)).max(), rel=1e-9)

    def test_larger_weights_make_longer_replies(self):
        client, server, weight, bias, _ = layer(12, 1, 1)
        heads = []
        for factor in (0.1, 1, 10):
            server.set_weight(factor * weight, bias)
            heads.append(weights.from_head(client, server.forward(client.encrypt(np.zeros((1, 12))))))
        assert heads[0].length < heads[1].length < heads[2].length
        assert heads[0].bits < heads[1].bits < heads[2].bits

    def test_weights_of_one_size_have_one_head(self):
        """The attack can fail: two layers whose norms agree."""
        client, server, weight, bias, _ = layer(12, 1, 1)
        found = []
        for other in (weight, -weight[:, ::-1]):
            server.set_weight(other, bias)
            found.append(weights.from_head(client, server.forward(client.encrypt(np.ones((1, 12))))))
        assert found[0].reach == pytest.approx(found[1].reach, rel=1e-12)
        assert found[0].length == found[1].length


def test_large_layers_are_not_tried():
    client, server, _, _, rng = layer(256, 5, 4)
    request = client.encrypt(rng.normal(size=(4, 256)))
    with pytest.raises(hn.ParameterError, match="dimensions"):
        weights.from_reply(client, request, server.forward(request))


def test_answers_to_as_many_questions_as_there_are_features_say_w():
    client, server, weight, bias, rng = layer(30, 3, 8)

    def asked(count, deviation=0.0):
        x = rng.normal(size=(count, 30))
        y = client.decrypt(server.forward(client.encrypt(x)))
        return weights.from_answers(x, y + deviation * rng.normal(size=y.shape))

    found, found_bias = asked(31)
    assert np.abs(found - weight).max() < 0.1  # the questions are barely enough: errors of the logits are magnified
    found, found_bias = asked(60)
    assert np.abs(found - weight).max() < 3e-3
    assert np.abs(found_bias - bias).max() < 3e-3
    short, _ = asked(20)
    assert np.abs(short - weight).max() > 0.3
    # Noise on the answers is averaged out: four times the questions, half the error.
    few, many = (np.sqrt(np.mean((asked(count, 0.5)[0] - weight) ** 2)) for count in (400, 6400))
    assert 2 < few / many < 8


def test_chosen_questions_say_w_exactly_and_fewer_say_their_columns():
    client, server, weight, bias, _ = layer(30, 3, 8)
    asked = weights.questions(30, client.parameters.activation_bound)
    answers = client.decrypt(server.forward(client.encrypt(asked)))
    found, found_bias = weights.from_answers(asked, answers)
    assert np.abs(found - weight).max() < 1e-4
    assert np.abs(found_bias - bias).max() < 3e-3
    half, _ = weights.from_answers(asked[:16], answers[:16])
    assert np.abs(half[:, :15] - weight[:, :15]).max() < 0.1
    assert np.abs(half[:, 15:]).max() < 1e-6  # nothing is known of them


def test_who_knows_the_noise_makes_more_of_few_answers():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 30))
    x = rng.normal(size=(31, 30))
    y = x @ weight.T + rng.normal(size=(31, 3))
    plain, ridge = (weights.from_answers(x, y, ridge=value)[0] for value in (0.0, 1.0))
    errors = [np.sqrt(np.mean((found - weight) ** 2)) for found in (plain, ridge)]
    assert errors[1] < min(0.8, 0.75 * errors[0])
    exact = weights.from_answers(x, x @ weight.T, ridge=1e-12)[0]
    assert np.abs(exact - weight).max() < 1e-4
