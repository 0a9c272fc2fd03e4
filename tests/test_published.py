"""The papers' parameter sets on slots: what they hold, and that what they hold is right."""

from __future__ import annotations

import numpy as np
import pytest

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
