from __future__ import annotations

import copy
import json
import math
import pickle
import struct

import numpy as np
import pytest

import hesplit_native as hn

LIMITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}

PUBLISHED = [
    (8192, [60, 40, 40, 60], 2.0**40),
    (8192, [40, 21, 21, 40], 2.0**21),
    (4096, [40, 20, 20], 2.0**21),
    (4096, [40, 20, 40], 2.0**20),
    (8192, [40, 21, 21, 21, 40], 2.0**21),
    (16384, [40, 21, 21, 21, 40], 2.0**21),
]


@pytest.mark.parametrize(("ring_degree", "limit"), LIMITS.items())
def test_128_bits_by_the_2024_guideline(ring_degree, limit):
    count = -(-limit // 50)
    bits = [limit // count] * count
    bits[0] += limit - sum(bits)
    params = hn.Parameters(ring_degree=ring_degree, modulus_bits=bits, scale=2.0**10)
    assert params.total_bits == params.max_bits == limit
    bits[-1] += 1
    with pytest.raises(hn.ParameterError, match=rf"only up to {limit} bits"):
        hn.Parameters(ring_degree=ring_degree, modulus_bits=bits, scale=2.0**10)


def test_a_published_set_below_128_bits_runs_only_when_asked_for():
    options = {"ring_degree": 2048, "modulus_bits": [18, 18, 18], "scale": 2.0**16, "packing": "slots"}
    with pytest.raises(hn.ParameterError, match="54 bits"):
        hn.Parameters(**options)
    assert hn.Parameters(**options, security="paper").security == "paper"


@pytest.mark.parametrize(("ring_degree", "bits", "scale"), PUBLISHED)
def test_published_sets_are_accepted_on_the_slot_path(ring_degree, bits, scale):
    params = hn.Parameters(ring_degree=ring_degree, modulus_bits=bits, scale=scale, packing="slots")
    assert params.modulus_bits == tuple(bits)
    assert params.scale == scale


@pytest.mark.parametrize(
    "change",
    [
        {"ring_degree": 3000},
        {"ring_degree": 512},
        {"modulus_bits": []},
        {"modulus_bits": [61]},
        {"modulus_bits": [10]},
        {"modulus_bits": [20] * 40, "ring_degree": 32768},
        {"scale": 0.0},
        {"scale": math.nan},
        {"scale": 2.0**61},
        {"packing": "diagonals"},
        {"packing": "slots"},
        {"security": "none"},
        {"activation_bound": 0.0},
        {"activation_norm": math.inf},
        {"error_bound": -1.0},
        {"batch_size": 0},
        {"ring_degree": "2048"},
    ],
)
def test_what_cannot_work_is_a_parameter_error(change):
    options = {"ring_degree": 2048, "modulus_bits": [50], "scale": 2.0**20} | change
    with pytest.raises(hn.ParameterError):
        hn.Parameters(**options)


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
@pytest.mark.parametrize("shape", [(256, 5, 4), (256, 5, 64), (512, 5, 4), (2000, 5, 32), (768, 768, 128), (1, 1, 1)])
def test_recommended_sets_are_secure_and_keep_the_default_bound(packing, shape):
    in_features, out_features, batch_size = shape
    params = hn.Parameters.recommend(
        in_features=in_features, out_features=out_features, batch_size=batch_size, packing=packing, weight_norm=4.0
    )
    assert params.total_bits <= params.max_bits == LIMITS[params.ring_degree]
    assert params.error_bound <= 1e-3
    step = params.estimate(in_features, out_features, batch_size, weight_norm=4.0)
    assert step["error"] <= params.error_bound


def test_impossible_wishes_say_what_to_change():
    with pytest.raises(hn.ParameterError, match="raise error_bound or lower the ranges"):
        hn.Parameters.recommend(in_features=256, out_features=5, batch_size=4, error_bound=1e-30)


def test_the_hash_covers_every_field():
    base = {"ring_degree": 4096, "modulus_bits": [40, 40], "scale": 2.0**20, "batch_size": 4}
    changes = [
        {"ring_degree": 8192},
        {"modulus_bits": [40, 41]},
        {"scale": 2.0**21},
        {"packing": "slots"},
        {"security": "paper"},
        {"activation_bound": 65.0},
        {"activation_norm": 129.0},
        {"error_bound": 1e-2},
        {"batch_size": 5},
    ]
    hashes = {hn.Parameters(**(base | change)).hash for change in [{}, *changes]}
    assert len(hashes) == len(changes) + 1


def test_dict_and_bytes_round_trip():
    params = hn.Parameters.recommend(in_features=256, out_features=5, batch_size=4)
    assert hn.Parameters.from_bytes(params.to_bytes()) == params
    values = params.to_dict()
    assert values.pop("hash") == params.hash
    assert hn.Parameters(**values) == params


QUANTUM = {1024: 20, 2048: 40, 4096: 80, 8192: 161, 16384: 322, 32768: 644}


@pytest.mark.parametrize("ring_degree", QUANTUM)
def test_limits_against_quantum_computers(ring_degree):
    def primes(total):
        count = -(-total // 50)
        return [total // count + (i < total % count) for i in range(count)]

    sizes = {"ring_degree": ring_degree, "scale": 2.0**8, "security": "quantum"}
    params = hn.Parameters(modulus_bits=primes(QUANTUM[ring_degree]), **sizes)
    assert params.max_bits == QUANTUM[ring_degree]
    assert params.strength == "128 bits, quantum"
    assert hn.Parameters.from_bytes(params.to_bytes()) == params
    with pytest.raises(hn.ParameterError, match=f"only up to {QUANTUM[ring_degree]} bits against quantum"):
        hn.Parameters(modulus_bits=primes(QUANTUM[ring_degree] + 1), **sizes)
    classical = hn.Parameters(modulus_bits=primes(QUANTUM[ring_degree] + 1), **(sizes | {"security": "standard"}))
    assert classical.strength == "128 bits, classical"
    assert classical.max_bits > params.max_bits


@pytest.mark.parametrize(
    ("d", "o", "options"),
    [
        (256, 5, {}),
        (300, 7, {"releases": 1}),
        (64, 2, {"releases": 1 << 20}),
        (40, 3, {"packing": "slots"}),
        (1, 1, {}),
    ],
)
def test_recommendations_against_quantum_computers(d, o, options):
    params = hn.Parameters.recommend(
        in_features=d, out_features=o, batch_size=4, activation_bound=32.0, security="quantum", **options
    )
    assert params.security == "quantum"
    assert params.total_bits <= QUANTUM[params.ring_degree]
    sealed = hn.Parameters.recommend_sealed(in_features=d, out_features=o, batch_size=4, security="quantum")
    assert sealed.total_bits <= QUANTUM[sealed.ring_degree]
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, d)), rng.normal(size=(o, d)) / np.sqrt(d)
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o)
    server = hn.LinearServer(client.public_material(), w)
    assert np.abs(client.decrypt(server.forward(client.encrypt(x))) - x @ w.T).max() <= params.error_bound


@pytest.mark.parametrize("releases", [1, 3, 1 << 20])
def test_ten_more_statistical_bits_flood_with_32_times_the_noise(releases):
    sizes = {"ring_degree": 4096, "modulus_bits": [53, 53], "scale": 2.0**45, "error_bound": 10.0, "releases": releases}
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 20)), rng.normal(size=(3, 20))
    deviations = {}
    for bits in (30, 40):
        params = hn.Parameters(**sizes, statistical_bits=bits)
        client = hn.LinearClient(hn.SecretKey.generate(params), 20, 3)
        server = hn.LinearServer(client.public_material(), w)
        client.decrypt_for_release(server.forward(client.encrypt(x)))
        deviations[bits] = client.flooding_deviation
        assert 0 < deviations[bits] <= params.estimate(20, 3, 4)["flooding_deviation"]
    assert deviations[40] / deviations[30] == pytest.approx(32)


def test_statistical_bits_are_agreed_on_and_the_usual_ones_are_written_as_ever():
    sizes = {"ring_degree": 2048, "modulus_bits": [50], "scale": 2.0**30, "releases": 1}
    usual = hn.Parameters(**sizes)
    # As the first release wrote them.
    assert usual.to_bytes()[0] == 2
    assert len(usual.to_bytes()) == 4 + 1 + 8 * 8
    seen = {usual.hash}
    for bits in (20, 31, 40, 60):
        params = hn.Parameters(**sizes, statistical_bits=bits)
        assert hn.Parameters.from_bytes(params.to_bytes()) == params
        assert hn.Parameters.from_bytes(params.to_bytes()).statistical_bits == bits
        seen.add(params.hash)
    assert len(seen) == 5
    for bits in (0, 19, 61, 1 << 31):
        with pytest.raises(hn.ParameterError, match="statistical_bits must be between 20 and 60"):
            hn.Parameters(**sizes, statistical_bits=bits)
    longer = bytearray(hn.Parameters(**sizes, statistical_bits=40).to_bytes())
    for bits in (0, 19, 30, 61, 2**32 + 40, 2**63):
        longer[-8:] = struct.pack("<Q", bits)
        with pytest.raises(hn.WireError):
            hn.Parameters.from_bytes(bytes(longer))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])  # noqa: S301
@pytest.mark.parametrize("options", [{}, {"packing": "slots"}, {"releases": 4}, {"activation_bound": np.float32(7.3)}])
def test_parameters_are_plain_data(copied, options):
    params = hn.Parameters.recommend(in_features=30, out_features=3, batch_size=4, **options)
    twin = copied(params)
    assert twin == params
    assert twin.to_bytes() == params.to_bytes()
    assert json.loads(json.dumps(params.to_dict()))["hash"] == twin.hash
