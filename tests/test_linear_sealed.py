"""Sealed weights: exact within the stated bound, also after many updates; and only ciphertexts at the server."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native.linear import SealedClient, SealedServer


def make(n, d, o, *, seed=0, weight_norm=4.0, **options):
    generator = np.random.default_rng(seed)
    params = hn.Parameters.recommend_sealed(
        in_features=d, out_features=o, batch_size=n, activation_bound=8.0, weight_norm=weight_norm,
        **({"error_bound": 0.2, "updates": 1000} | options),
    )  # fmt: skip
    client = SealedClient(hn.SecretKey.generate(params), d, o, weight_norm=weight_norm)
    weight, bias = generator.normal(size=(o, d)) / math.sqrt(d), generator.normal(size=o) / 4
    return client, SealedServer(client.seal(weight, bias)), weight, bias, generator


def inside(client, x):
    return client.clip_counted(x)


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 200), st.integers(1, 7), st.integers(1, 25), st.integers(0, 99))
def test_random_shapes_and_batches(n, d, o, rows, seed):
    client, server, weight, bias, generator = make(n, d, o, seed=seed)
    for _ in range(2):
        x = inside(client, generator.normal(size=(rows, d)))
        y = client.decrypt(server.forward(client.encrypt(x)))
        assert np.abs(y - (x @ weight.T + bias)).max() <= client.error <= client.parameters.error_bound
        gradient = generator.normal(size=(rows, o)) / rows
        new_weight, new_bias = weight + 0.01 * generator.normal(size=weight.shape), bias - 0.01
        dx = client.decrypt_input_gradient(server.update(client.update(gradient, new_weight, new_bias)))
        exact = gradient @ weight  # by the weights before the update
        assert np.abs(dx - exact).max() <= 1e-3 * (np.abs(exact).max() + np.abs(gradient).max())
        weight, bias = new_weight, new_bias


def test_the_bound_holds_after_as_many_updates_as_are_allowed():
    updates = 3000
    client, server, weight, bias, generator = make(2, 6, 2, updates=updates, error_bound=0.5)
    x = inside(client, generator.normal(size=(2, 6)))
    gradient = np.full((2, 2), 0.1)
    errors = {}
    for step in range(1, updates + 1):
        weight = weight + generator.normal(size=weight.shape) * 1e-4
        server.update(client.update(gradient, weight, bias))
        if step in (10, updates):
            samples = [client.decrypt(server.forward(client.encrypt(x))) - (x @ weight.T + bias) for _ in range(20)]
            errors[step] = np.abs(samples).max()
    assert errors[updates] <= client.error
    # What grows is the noise of the updates: the error of the first few is far below that of all.
    assert errors[updates] > errors[10]
    assert client.refresh_due(weight, bias)
    with pytest.raises(hn.ParameterError, match="refreshed before this update"):
        client.update(gradient, weight, bias)
    server.refresh(client.seal(weight, bias))
    assert not client.refresh_due(weight, bias)
    fresh = np.abs(client.decrypt(server.forward(client.encrypt(x))) - (x @ weight.T + bias)).max()
    assert fresh < errors[updates]
    server.update(client.update(gradient, weight, bias))


def test_noise_grows_with_the_square_root_of_updates_as_the_formula_says():
    """Without the rest of the error: the deviation that the noise of T updates leaves, against sqrt(v (T + 1)) ||x|| / Delta_w."""
    client, server, weight, bias, _ = make(1, 4, 1, updates=5000, error_bound=0.05)
    x = np.full((1, 4), 4.0)
    zero = np.zeros((1, 1))
    for _ in range(2000):
        server.update(client.update(zero, weight, bias))
    # Deterministic given the server's state, apart from the request's own small noise: average that away.
    mean = np.mean([client.decrypt(server.forward(client.encrypt(x))) for _ in range(30)])
    deviation = math.sqrt((10.5 + 16 / 12) * 2001) * math.sqrt(4 * 16 + 1) / client._native.weight_scale
    # The reply's own rounding is at most the whole bound.
    rest = 5 * client.error / 7.5 / math.sqrt(30)
    assert abs(mean - (x @ weight.T + bias)[0, 0]) < 7.5 * deviation + rest
    assert client.error > 7.5 * deviation


def test_weights_that_outgrow_their_scale_are_sealed_at_a_coarser_one():
    client, server, weight, bias, generator = make(2, 6, 2, error_bound=0.5)
    large = weight * 20
    assert client.refresh_due(large, bias)
    error = client.error
    server.refresh(client.seal(large, bias))
    assert client.error > error
    x = inside(client, generator.normal(size=(2, 6)))
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert np.abs(y - (x @ large.T + bias)).max() <= client.error
    with pytest.raises(hn.RangeError, match="error bound"):
        client.seal(weight * 1e7, bias)


def test_saved_state_goes_on_and_stays_encrypted():
    client, server, weight, bias, generator = make(4, 20, 3)
    saved = server.saved()
    assert saved != server.saved()[:-8] + bytes(8)
    # Full-length residues of uniform polynomials: no byte pattern of the weights, and no compression.
    import zlib

    assert len(zlib.compress(saved, 9)) > 0.97 * len(saved)
    for value in (weight.astype(np.float32), weight):
        assert value[0].tobytes() not in saved
    again = SealedServer(saved)
    x = inside(client, generator.normal(size=(4, 20)))
    assert np.abs(client.decrypt(again.forward(client.encrypt(x))) - (x @ weight.T + bias)).max() <= client.error
    again.update(client.update(np.zeros((4, 3)), weight, bias))
    for damaged in (saved[:-1], saved + b"x", saved[:40], b""):
        with pytest.raises(hn.WireError):
            SealedServer(damaged)


def test_every_encryption_is_fresh():
    client, _, weight, bias, _ = make(2, 6, 2)
    x = np.ones((2, 6))
    messages = [client.encrypt(x), client.encrypt(x), client.seal(weight, bias), client.seal(weight, bias)]
    bodies = [message[64:-8] for message in messages]
    assert bodies[0] != bodies[1]
    assert bodies[2] != bodies[3]


def test_messages_out_of_place():
    client, server, weight, bias, _ = make(2, 6, 2)
    other, other_server, *_ = make(2, 6, 2)
    x, gradient = np.ones((2, 6)), np.ones((2, 2))
    request, update = client.encrypt(x), client.update(gradient, weight, bias)
    with pytest.raises(hn.KeyMismatchError):
        other_server.forward(request)
    with pytest.raises(hn.WireError):
        server.forward(update)
    with pytest.raises(hn.WireError):
        server.update(request)
    with pytest.raises(hn.KeyMismatchError):
        server.refresh(other.seal(weight, bias))
    reply = server.forward(request)
    with pytest.raises(hn.KeyMismatchError):
        client.decrypt_input_gradient(reply)
    client.decrypt(reply)
    with pytest.raises(hn.KeyMismatchError):
        client.decrypt(reply)
    with pytest.raises(hn.RangeError):
        client.encrypt(np.full((2, 6), 1e6))
    client.destroy()
    with pytest.raises(hn.KeyMismatchError, match="destroyed"):
        client.encrypt(x)


@settings(max_examples=30)
@given(st.data())
def test_damaged_messages_are_errors_of_ours(data):
    client, server, weight, bias, _ = make(2, 6, 2)
    x = np.ones((2, 6))
    good = {
        "seal": (client.seal(weight, bias), SealedServer),
        "request": (client.encrypt(x), server.forward),
        "reply": (server.forward(client.encrypt(x)), client.decrypt),
        "state": (server.saved(), SealedServer),
    }
    whole, use = good[data.draw(st.sampled_from(sorted(good)))]
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(hn.HESplitError):
        use(bytes(broken))
