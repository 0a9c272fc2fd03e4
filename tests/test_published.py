"""The papers' parameter sets on slots: what they hold, and that what they hold is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native.layer.published import PARAMETER_SETS
from hesplit_native.reproduce.published import HESPLIT, SPLIT_WAYS

LIMITS = {2048: 53, 4096: 106, 8192: 214, 16384: 430}
SHAPE = {"in_features": 256, "out_features": 5, "batch_size": 4}


@pytest.mark.parametrize("name", PARAMETER_SETS)
def test_a_published_set_keeps_the_error_bound_that_it_states(name):
    ranges = {"activation_bound": 32.0, "activation_norm": 64.0, "weight_norm": 8.0}
    params = hn.Parameters.published(name, **SHAPE, **ranges)
    assert tuple(params.modulus_bits) == PARAMETER_SETS[name].modulus_bits
    assert (params.security == "paper") == (params.total_bits > LIMITS[params.ring_degree])
    generator = np.random.default_rng(0)
    client = hn.LinearClient(hn.SecretKey.generate(params), 256, 5)
    weight = generator.normal(size=(5, 256))
    weight *= 7.9 / np.linalg.norm(weight, axis=1, keepdims=True)
    bias = generator.normal(size=5)
    server = hn.LinearServer(client.public_material(), weight, bias)
    x = generator.normal(size=(4, 256))
    x *= 60 / np.linalg.norm(x, axis=1, keepdims=True)
    x, _ = client.clip(x)
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert np.abs(y - (x @ weight.T + bias)).max() <= params.error_bound


@settings(max_examples=20)
@given(
    n=st.integers(1, 24),
    d=st.integers(1, 300),
    o=st.integers(1, 9),
    name=st.sampled_from(sorted(set(PARAMETER_SETS) - {"2048-18"})),
    seed=st.integers(0, 2**32 - 1),
)
@example(n=4, d=256, o=5, name="S2", seed=0)  # copies of every sample, and no rotation of a product
@example(n=24, d=300, o=9, name="8192-60", seed=0)  # several inputs, which share the encodings of a gradient
def test_published_sets_compute_layers_and_their_weight_gradients(n, d, o, name, seed):
    rng = np.random.default_rng(seed)
    params = hn.Parameters.published(name, in_features=d, out_features=o, batch_size=n)
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o, weight_gradients=True)
    weight = rng.normal(size=(o, d)) / np.sqrt(d)
    server = hn.LinearServer(client.public_material(), weight, np.zeros(o))
    x, gradient = rng.normal(size=(n, d)), rng.normal(size=(n, o)) / n
    reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
    y = client.decrypt(reply, weight_gradient_follows=True)
    assert np.abs(y - x @ weight.T).max() <= params.error_bound
    message, masked = server.weight_gradient(kept, gradient)
    found = server.unmask(masked, client.open_weight_gradient(message, gradient))
    reach = params.activation_bound * np.abs(gradient).sum(0).max()
    assert np.abs(found - gradient.T @ x).max() <= 1e-4 * reach + 1e-9


def test_published_scales_are_kept_where_they_can_be():
    for name, chosen in PARAMETER_SETS.items():
        params = hn.Parameters.published(name, **SHAPE)
        assert (params.scale == chosen.scale) == (name != "2048-18")


def test_what_a_set_cannot_hold_is_said():
    with pytest.raises(hn.ParameterError, match=r"cannot hold logits up to 2e\+08.*36 bits"):
        hn.Parameters.published("2048-18", **SHAPE, activation_bound=1e5, activation_norm=1e6, weight_norm=200.0)
    with pytest.raises(hn.ParameterError, match="unknown parameter set"):
        hn.Parameters.published("S3", **SHAPE)


def test_below_128_bits_only_on_request():
    with pytest.raises(hn.ParameterError, match="128-bit secure only up to 53"):
        hn.Parameters(ring_degree=2048, modulus_bits=(18, 18, 18), scale=2.0**16, packing="slots")


def test_published_figures_name_known_sets():
    for row in (*SPLIT_WAYS, *HESPLIT):
        assert row.parameter_set is None or row.parameter_set in PARAMETER_SETS
    assert len(HESPLIT) == 15
