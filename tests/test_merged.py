"""Merged blocks: few rows and many outputs in short replies, with evaluation keys that are sent once."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.layer.parameters import _candidates

SETS = {
    "one prime": hn.Parameters(
        ring_degree=4096, modulus_bits=[50, 50], scale=2.0**20, packing="merged", error_bound=0.02
    ),
    "two primes": hn.Parameters(
        ring_degree=4096, modulus_bits=[28, 28, 50], scale=2.0**22, packing="merged", error_bound=0.005
    ),
    "room for rotated inputs": hn.Parameters(
        ring_degree=4096,
        modulus_bits=[45, 50],
        scale=2.0**22,
        packing="merged",
        error_bound=0.1,
        activation_bound=8,
        activation_norm=80,
    ),
    "two digits": hn.Parameters(
        ring_degree=4096, modulus_bits=[30, 31, 38], scale=2.0**25, packing="merged", error_bound=0.005
    ),
    "two short digits": hn.Parameters(
        ring_degree=4096,
        modulus_bits=[25, 25, 40],
        scale=2.0**23,
        packing="merged",
        error_bound=0.02,
        activation_bound=8,
        activation_norm=80,
    ),
    "short": hn.Parameters(ring_degree=4096, modulus_bits=[40, 40], scale=2.0**16, packing="merged", error_bound=0.1),
}


def layer(params, d, o, seed=0, *, bias=True):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(o, d)) / np.sqrt(d)
    w /= np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1)
    b = rng.normal(size=o) if bias else None
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o)
    return client, hn.LinearServer(client.public_material(), w, b), w, 0 if b is None else b


@pytest.mark.parametrize(("d", "o", "most"), [(128, 4096, 80_000), (768, 768, 60_000)])
def test_a_row_with_many_outputs_is_cheap(d, o, most):
    params = hn.Parameters.recommend(in_features=d, out_features=o, batch_size=1, packing="merged")
    client, server, w, b = layer(params, d, o)
    x = np.random.default_rng(1).normal(size=(1, d))
    request = client.encrypt(x)
    reply = server.forward(request)
    assert np.abs(client.decrypt(reply) - x @ w.T - b).max() < params.error_bound == 1e-3
    assert len(request) + len(reply) < most
    assert len(client.public_material()) < 500_000
    told = params.estimate(d, o, 1)
    assert 0 <= len(request) - told["request_bytes"] < 300
    assert 0 <= len(client.public_material()) - told["key_bytes"] < 300
    assert len(reply) < told["reply_bytes"] + 300  # shorter for weights that are smaller than planned
    in_blocks = hn.Parameters.recommend(in_features=d, out_features=o, batch_size=1).estimate(d, o, 1)
    assert len(request) + len(reply) < 0.2 * (in_blocks["request_bytes"] + in_blocks["reply_bytes"])


# How many products there are decides how full the last reply is, and which merges have nothing to merge with.
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SETS)),
    d=st.integers(1, 5000),
    products=st.integers(1, 300),
    short=st.integers(0, 50),
    seed=st.integers(0, 99),
    bias=st.booleans(),
)
@example(name="two primes", d=2048, products=257, short=0, seed=0, bias=True)  # 256 to a reply, and one
@example(name="room for rotated inputs", d=128, products=129, short=0, seed=0, bias=True)
@example(name="room for rotated inputs", d=4096, products=500, short=0, seed=0, bias=True)
@example(name="room for rotated inputs", d=5000, products=40, short=0, seed=3, bias=False)
@example(name="two primes", d=4096, products=33, short=0, seed=0, bias=False)
@example(name="two digits", d=128, products=129, short=0, seed=0, bias=True)
@example(name="two digits", d=4096, products=300, short=0, seed=0, bias=True)
@example(name="two short digits", d=5000, products=40, short=0, seed=3, bias=False)
@example(name="two short digits", d=3, products=2, short=0, seed=0, bias=True)
@example(name="one prime", d=1, products=1, short=0, seed=0, bias=True)
@example(name="one prime", d=2, products=3, short=3, seed=0, bias=True)
@example(name="short", d=64, products=65, short=50, seed=1, bias=True)
def test_replies_of_any_number_of_products(name, d, products, short, seed, bias):
    params = SETS[name]
    width = min(4096, 1 << (d - 1).bit_length())
    o = max(1, min(products * (4096 // width) - short, 2_000_000 // d, 100_000))
    client, server, w, b = layer(params, d, o, seed, bias=bias)
    x = np.random.default_rng(seed).normal(size=(1, d))
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert client.clipped == 0
    assert np.abs(y - x @ w.T - b).max() < params.error_bound


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 40),
    planned=st.integers(1, 40),
    d=st.integers(1, 300),
    o=st.integers(1, 60),
    seed=st.integers(0, 99),
)
@example(rows=40, planned=1, d=100, o=33, seed=0)
@example(rows=1, planned=40, d=100, o=33, seed=0)
@example(rows=40, planned=40, d=300, o=60, seed=0)
def test_batches_of_other_sizes_than_the_agreed_one(rows, planned, d, o, seed):
    params = hn.Parameters(
        ring_degree=4096, modulus_bits=[28, 28, 50], scale=2.0**22, packing="merged", batch_size=planned
    )
    client, server, w, b = layer(params, d, o, seed)
    for n in (rows, 1, planned):
        x = np.random.default_rng(seed).normal(size=(n, d))
        y = client.decrypt(server.forward(client.encrypt(x)))
        assert np.abs(y - x @ w.T - b).max() < params.error_bound


# Noise of inputs that were rotated meets the weights of several products, which may be the same.
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(["two digits", "two short digits", "room for rotated inputs"]),
    d=st.integers(1, 600),
    o=st.integers(1, 3000),
    same=st.booleans(),
    seed=st.integers(0, 99),
)
@example(name="two digits", d=128, o=3000, same=True, seed=0)
def test_weights_and_rows_at_the_ends_of_their_ranges(name, d, o, same, seed):
    params = SETS[name]
    rng = np.random.default_rng(seed)
    w = np.ones((o, d)) if same else rng.choice([-1.0, 1.0], size=(o, d))
    w *= 4 / np.sqrt(d)
    x = rng.choice([-1.0, 1.0], size=(1, d)) if seed % 2 else np.ones((1, d))
    x *= min(params.activation_bound, params.activation_norm / np.sqrt(d)) * (1 - 1e-6)
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o)
    y = client.decrypt(hn.LinearServer(client.public_material(), w).forward(client.encrypt(x)))
    assert client.clipped == 0
    assert np.abs(y - x @ w.T).max() < params.error_bound


def test_clients_share_weights_and_not_keys():
    params = SETS["two primes"]
    one, server, w, b = layer(params, 40, 900)
    other = hn.LinearClient(hn.SecretKey.generate(params), 40, 900)
    served = server.for_client(other.public_material())
    x = np.random.default_rng(1).normal(size=(3, 40))
    for client, at in ((one, server), (other, served)):
        assert np.abs(client.decrypt(at.forward(client.encrypt(x))) - x @ w.T - b).max() < params.error_bound
    with pytest.raises(hn.KeyMismatchError):
        served.forward(one.encrypt(x))


def test_weights_are_replaced():
    client, server, _, _ = layer(SETS["one prime"], 30, 500)
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(1, 30)), rng.normal(size=(500, 30)) / 5
    server.set_weight(w)
    assert np.abs(client.decrypt(server.forward(client.encrypt(x))) - x @ w.T).max() < 0.02
    with pytest.raises(hn.RangeError, match="weight_norm"):
        server.set_weight(w * 1e6)
    assert np.abs(client.decrypt(server.forward(client.encrypt(x))) - x @ w.T).max() < 0.02


# A request's header has 64 bytes; then come its rows, the rows of a group, the width.
@pytest.mark.parametrize("shape", [(1, 1, 32), (1, 1, 128), (2, 2, 64), (1, 0, 64), (1, 2, 64), (1, 1, 0)])
def test_other_layouts_are_refused(shape):
    client, server, _, _ = layer(SETS["one prime"], 40, 900)
    request = bytearray(client.encrypt(np.zeros((1, 40))))
    assert struct.unpack_from("<III", request, 64) == (1, 1, 64)
    struct.pack_into("<III", request, 64, *shape)
    with pytest.raises(hn.WireError, match="another layout"):
        server.forward(_testing.reseal(bytes(request)))


@pytest.mark.parametrize(("name", "key"), [("one prime", 51_200), ("two short digits", 46_080)])
@pytest.mark.parametrize("length", [0, 32, 46_112, 9 * 46_080 + 32, 10**6])
def test_keys_of_another_length_are_refused(name, key, length):
    material = layer(SETS[name], 40, 900)[0].public_material()
    seeds, keys = (1, 6) if name == "one prime" else (2, 9)  # three of six levels have two digits
    head = bytearray(material[: len(material) - 8 - seeds * 32 - keys * key])
    head[8:16] = struct.pack("<Q", len(head) + length + 8)
    with pytest.raises(hn.WireError):
        hn.LinearServer(_testing.reseal(bytes(head) + bytes(length + 8)), np.zeros((900, 40)))


@pytest.mark.parametrize(("name", "at"), [("one prime", 1000), ("two digits", 1000), ("two digits", 400_000)])
def test_keys_beyond_the_modulus_are_refused(name, at):
    material = bytearray(layer(SETS[name], 40, 900)[0].public_material())
    material[-at : 992 - at] = b"\xff" * 992
    with pytest.raises(hn.WireError):
        hn.LinearServer(_testing.reseal(bytes(material)), np.zeros((900, 40)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modulus_bits": [50]}, "2 or 3 primes"),
        ({"modulus_bits": [20, 20, 20, 40]}, "2 or 3 primes"),
        ({"modulus_bits": [31, 31, 44]}, "at most 61 bits together"),
        ({"modulus_bits": [56, 51]}, "106"),
        ({"releases": 1}, 'packing="blocks"'),
        ({"updates": 1}, 'packing="blocks"'),
        ({"private_bits": 40, "weight_norm": 1.0}, 'packing="blocks"'),
    ],
)
def test_parameters_that_cannot_work(change, message):
    options = {"ring_degree": 4096, "modulus_bits": [50, 50], "scale": 2.0**20, "packing": "merged"}
    with pytest.raises(hn.ParameterError, match=message):
        hn.Parameters(**(options | change))


def test_there_is_a_set_against_quantum_computers():
    params = hn.Parameters.recommend(
        in_features=64, out_features=2000, batch_size=1, packing="merged", activation_bound=1, activation_norm=1,
        weight_norm=1, security="quantum",
    )  # fmt: skip
    assert params.total_bits <= params.max_bits == 80
    client, server, w, _ = layer(params, 64, 2000, bias=False)
    x = np.random.default_rng(0).normal(size=(1, 64)) / 20
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert np.abs(y - x @ w.T).max() < params.error_bound


@pytest.mark.parametrize("security", ["standard", "quantum"])
def test_every_candidate_is_a_set_of_parameters(security):
    for ring_degree, modulus_bits in _candidates("merged", security):
        hn.Parameters(
            ring_degree=ring_degree, modulus_bits=modulus_bits, scale=2.0**20, packing="merged", security=security
        )


def test_what_is_not_needed_for_precision_makes_searches_fast():
    """Seconds of the model: inputs are rotated instead of products where the modulus has room."""
    ranges = {"activation_bound": 1, "activation_norm": 1, "weight_norm": 1, "packing": "merged"}
    short, fast = (
        hn.Parameters.recommend(in_features=128, out_features=50_000, batch_size=1, link=link, **ranges)
        for link in (None, 1e9)
    )
    estimates = [params.estimate(128, 50_000, 1, weight_norm=1) for params in (short, fast)]
    assert short.total_bits < fast.total_bits
    assert estimates[1]["server_seconds"] < 0.75 * estimates[0]["server_seconds"]  # with the encoding of weights
    assert estimates[1]["request_bytes"] < 1.4 * estimates[0]["request_bytes"]


@pytest.mark.parametrize(("d", "o"), [(128, 4096), (768, 768)])
def test_default_ranges_leave_room_for_rotated_inputs(d, o):
    short, fast = (
        hn.Parameters.recommend(in_features=d, out_features=o, batch_size=1, packing="merged", link=link).estimate(
            d, o, 1
        )
        for link in (None, 1e9)
    )
    assert fast["server_seconds"] < 0.5 * short["server_seconds"]
    assert fast["request_bytes"] + fast["reply_bytes"] < 1.15 * (short["request_bytes"] + short["reply_bytes"])
    assert fast["key_bytes"] < 520_000
