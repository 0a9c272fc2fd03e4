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
