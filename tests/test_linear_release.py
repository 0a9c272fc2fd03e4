"""Decryptions for release: the noise that floods them, its accounting, and HESplit's masked weight gradient."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.layer.keys import ReleaseLedger


def make(n, d, o, *, releases=0, packing="blocks", fresh_keys=False, weight_gradients=False, seed=0, **options):
    """A client, a server with random weights, and what it computes exactly."""
    generator = np.random.default_rng(seed)
    params = hn.Parameters.recommend(
        in_features=d,
        out_features=o,
        batch_size=n,
        packing=packing,
        releases=releases,
        activation_bound=32.0,
        **options,
    )
    key = hn.SecretKey.generate(params)
    client = hn.LinearClient(key, d, o, fresh_keys=fresh_keys, weight_gradients=weight_gradients)
    weight, bias = generator.normal(size=(o, d)) / math.sqrt(d), generator.normal(size=o)
    server = hn.LinearServer(client.public_material(), weight, bias)
    x = generator.normal(size=(n, d))
    return client, server, x, x @ weight.T + bias, key


def released(client, server, x):
    return client.decrypt_for_release(server.forward(client.encrypt(x)))


def test_gaussian_noise_has_the_deviation_that_is_asked_for():
    for deviation in (1e3, 1e6, 2.0**50):
        values = _testing.gaussian(7, deviation, 200_000).astype(np.float64)
        assert abs(values.mean()) < 5 * deviation / math.sqrt(200_000)
        assert abs(values.std() / deviation - 1) < 0.01
        share = np.mean(np.abs(values) < deviation)
        assert abs(share - 0.6827) < 0.01
    assert np.array_equal(_testing.gaussian(7, 100.0, 10), _testing.gaussian(7, 100.0, 10))


def test_a_released_logit_is_flooded_with_the_deviation_that_is_stated():
    client, server, x, exact, _ = make(4, 64, 5, releases=1, fresh_keys=True)
    errors = np.array([released(client, server, x) - exact for _ in range(400)])
    stated = client.flooding_deviation
    assert 0.01 < stated < 0.5
    # The rest of the error is at most a part of the bound that flooded parameters keep.
    assert abs(errors.std(axis=0).mean() / stated - 1) < 0.1
    local = client.decrypt(server.forward(client.encrypt(x)))
    assert np.abs(local - exact).max() <= client.parameters.error_bound


def test_the_flood_drowns_the_noise_by_the_proven_factor():
    # sigma = sqrt(12 tau) 2^15 B: noise that can be observed without the flood stays below B, which is sigma / 2^16.8 / sqrt(n o).
    client, server, x, _, _ = make(4, 64, 5, releases=1, fresh_keys=True)
    released(client, server, x)
    noise = [client.decrypt(server.forward(client.encrypt(x))) for _ in range(50)]
    spread = np.max(np.abs(noise - np.mean(noise, axis=0)))
    worst = client.flooding_deviation / (math.sqrt(12) * 2**15)
    assert math.sqrt(20) * spread < worst


def bits_beside_the_integers(y, scale):
    """What a released value says beside the flooded integer that it stands for: the entropy of its last bits, which the unflooded
    value decides once that integer is known. 0 where it is a function of the integer."""
    left = np.round((y - np.rint(y * scale) / scale) / np.spacing(np.abs(y)))
    share = np.unique(left, return_counts=True)[1] / left.size
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize(("n", "d", "o", "releases"), [(4, 64, 5, 1), (40, 300, 7, 1), (9, 20, 3, 1 << 20)])
def test_the_last_bits_of_released_values_say_nothing_of_the_unflooded_ones(n, d, o, releases):
    client, server, x, exact, _ = make(n, d, o, releases=releases, fresh_keys=releases == 1)
    values, scales = [], set()
    while len(values) * n * o < 4000:
        reply = server.forward(client.encrypt(x))
        scales.add(struct.unpack_from("<d", reply, 64 + 12 + 1)[0])
        values.append(client.decrypt_for_release(reply))
    (scale,) = scales
    y = np.ravel(values)
    assert bits_beside_the_integers(y, scale) == 0
    assert np.array_equal(y, np.rint(y * scale) / scale)
    # The same with noise that is added after the division tells more than half a bit of each.
    unflooded = np.rint(np.tile(exact.ravel(), len(values)) * scale)
    noise = np.rint(np.random.default_rng(0).normal(size=y.size) * client.flooding_deviation * scale)
    assert bits_beside_the_integers(unflooded / scale + noise / scale, scale) > 0.5


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 7), st.sampled_from([1, 2, 1 << 20]), st.integers(0, 99))
def test_released_logits_of_random_shapes(n, d, o, releases, seed):
    client, server, x, exact, _ = make(n, d, o, releases=releases, fresh_keys=releases < 3, seed=seed)
    y = released(client, server, x)
    bound = client.parameters.error_bound + 8 * client.flooding_deviation
    assert np.abs(y - exact).max() <= bound


def test_releases_are_counted_and_end():
    client, server, x, _, _ = make(2, 16, 3, releases=3)
    for _ in range(3):
        released(client, server, x)
    with pytest.raises(hn.ParameterError, match="allow 3 flooded releases under one key"):
        released(client, server, x)
    client.decrypt(server.forward(client.encrypt(x)))  # local use is free


def test_without_flooding_there_is_nothing_to_release():
    client, server, x, _, _ = make(2, 16, 3)
    with pytest.raises(hn.ParameterError, match="allow 0 flooded releases"):
        released(client, server, x)


def test_fresh_keys_are_fresh_and_each_has_its_own_budget():
    client, server, x, exact, _ = make(2, 16, 3, releases=1, fresh_keys=True)
    requests = [client.encrypt(x) for _ in range(3)]
    assert len({request[32:48] for request in requests}) == 3  # key ids
    for request in reversed(requests):
        assert np.abs(client.decrypt_for_release(server.forward(request)) - exact).max() < 5


def test_a_server_of_one_key_refuses_another():
    _, server, x, _, _ = make(2, 16, 3, releases=1)
    other, *_ = make(2, 16, 3, releases=1)
    with pytest.raises(hn.KeyMismatchError):
        server.forward(other.encrypt(x))


@pytest.mark.parametrize("packing", ["merged", "slots"])
def test_only_blocks_flood(packing):
    with pytest.raises(hn.ParameterError, match='need packing="blocks"'):
        make(2, 16, 3, releases=1, packing=packing)
    params = hn.Parameters.recommend(in_features=4, out_features=2, batch_size=1, packing=packing)
    with pytest.raises(hn.ParameterError, match="need evaluation keys"):
        hn.LinearClient(hn.SecretKey.generate(params), 4, 2, fresh_keys=True)


def test_the_ledger_is_written_before_a_release_and_never_counts_backwards(tmp_path):
    path = tmp_path / "releases.json"
    params = hn.Parameters.recommend(in_features=16, out_features=3, batch_size=2, releases=5000)
    key = hn.SecretKey.generate(params)
    ledger = ReleaseLedger(path, key)
    assert not path.exists()
    client = hn.LinearClient(key, 16, 3, ledger=ledger)
    server = hn.LinearServer(client.public_material(), np.zeros((3, 16)))
    released(client, server, np.ones((2, 16)))
    reserved = json.loads(path.read_text(encoding="utf-8"))["released"]
    assert reserved >= 1
    # A process that was killed here goes on from what was reserved.
    assert ReleaseLedger(path, key).released == reserved
    again = hn.LinearClient(key, 16, 3, ledger=ReleaseLedger(path, key))
    released(again, hn.LinearServer(again.public_material(), np.zeros((3, 16))), np.ones((2, 16)))
    assert json.loads(path.read_text(encoding="utf-8"))["released"] > reserved
    with pytest.raises(hn.KeyMismatchError):
        ReleaseLedger(path, hn.SecretKey.generate(params))
    for damaged in ("", "[]", '{"key": 1}', json.dumps({"key": key.id, "released": -1})):
        path.write_text(damaged)
        with pytest.raises(hn.WireError if damaged != '{"key": 1}' else hn.HESplitError):
            ReleaseLedger(path, key)


def test_a_destroyed_key_is_gone():
    client, server, x, _, key = make(2, 16, 3)
    reply = server.forward(client.encrypt(x))
    client.destroy()
    for attempt in (lambda: client.encrypt(x), lambda: client.decrypt(reply), client.public_material):
        with pytest.raises(hn.KeyMismatchError):
            attempt()
    with pytest.raises(hn.KeyMismatchError, match="destroyed"):
        hn.LinearClient(key, 16, 3)
    with pytest.raises(hn.KeyMismatchError, match="destroyed"):
        key.save("never-written")


# The masked weight gradient


@settings(max_examples=25)
@given(
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(1, 9),
    st.sampled_from(["blocks", "merged", "slots"]),
    st.integers(0, 99),
)
def test_weight_gradients_of_random_shapes(n, d, o, packing, seed):
    client, server, x, exact, _ = make(n, d, o, packing=packing, weight_gradients=True, seed=seed)
    gradient = np.random.default_rng(seed).normal(size=(n, o)) / n
    reply, samples, kept = server.forward_training(client.encrypt(x), keep=True)
    assert samples == n
    y = client.decrypt(reply, weight_gradient_follows=True)
    assert np.abs(y - exact).max() <= client.parameters.error_bound
    message, masked = server.weight_gradient(kept, gradient)
    found = server.unmask(masked, client.open_weight_gradient(message, gradient))
    reach = client.parameters.activation_bound * np.abs(gradient).sum(0).max()
    assert found.shape == (o, d)
    assert np.abs(found - gradient.T @ x).max() <= 1e-5 * reach + 1e-9


@pytest.mark.parametrize("name", ["S1", "S2", "8192-60", "8192-40"])
def test_weight_gradients_of_published_sets(name):
    rng = np.random.default_rng(0)
    params = hn.Parameters.published(name, in_features=60, out_features=5, batch_size=4, activation_bound=64.0)
    client = hn.LinearClient(hn.SecretKey.generate(params), 60, 5, weight_gradients=True)
    server = hn.LinearServer(client.public_material(), rng.normal(size=(5, 60)) / 8, np.zeros(5))
    for size in (1.0, 1e-4):
        x, gradient = rng.normal(size=(4, 60)), size * rng.normal(size=(4, 5))
        reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
        client.decrypt(reply, weight_gradient_follows=True)
        message, masked = server.weight_gradient(kept, gradient)
        found = server.unmask(masked, client.open_weight_gradient(message, gradient))
        reach = 64.0 * np.abs(gradient).sum(0).max()
        assert np.abs(found - gradient.T @ x).max() <= 5e-5 * reach


def test_large_batches_and_scalar_layouts():
    for n, d, o in ((700, 3, 2), (2048, 2, 1), (5000, 2, 2)):
        client, server, x, _, _ = make(n, d, o, weight_gradients=True)
        gradient = np.random.default_rng(0).normal(size=(n, o)) / n
        reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
        client.decrypt(reply, weight_gradient_follows=True)
        message, masked = server.weight_gradient(kept, gradient)
        found = server.unmask(masked, client.open_weight_gradient(message, gradient))
        assert np.abs(found - gradient.T @ x).max() < 1e-3


def test_zero_gradients():
    for packing in ("blocks", "merged", "slots"):
        client, server, x, _, _ = make(4, 20, 3, packing=packing, weight_gradients=True)
        reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
        client.decrypt(reply, weight_gradient_follows=True)
        message, masked = server.weight_gradient(kept, np.zeros((4, 3)))
        assert np.abs(server.unmask(masked, client.open_weight_gradient(message, np.zeros((4, 3))))).max() < 1


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
@pytest.mark.parametrize("size", [1e-8, 1e-15, 1e-35])
def test_tiny_gradients(packing, size):
    client, server, x, _, _ = make(4, 20, 3, packing=packing, weight_gradients=True)
    reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
    client.decrypt(reply, weight_gradient_follows=True)
    gradient = size * np.random.default_rng(0).normal(size=(4, 3))
    message, masked = server.weight_gradient(kept, gradient)
    found = server.unmask(masked, client.open_weight_gradient(message, gradient))
    assert np.abs(found - gradient.T @ x).max() < 1e-2 * size + 1e-20


def test_flooded_weight_gradients_count_as_releases():
    client, server, x, _, _ = make(4, 64, 5, releases=2, fresh_keys=True, weight_gradients=True)
    gradient = np.random.default_rng(0).normal(size=(4, 5)) / 4
    errors = []
    for _ in range(30):
        reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
        client.decrypt_for_release(reply, weight_gradient_follows=True)
        message, masked = server.weight_gradient(kept, gradient)
        errors.append(server.unmask(masked, client.open_weight_gradient(message, gradient)) - gradient.T @ x)
    assert 1e-6 < np.std(errors) < 0.1
    assert np.abs(np.mean(errors)) < 5 * np.std(errors) / math.sqrt(np.size(errors))


def test_what_the_client_opens_is_uniform():
    client, server, x, _, _ = make(4, 64, 5, weight_gradients=True)
    gradient = np.ones((4, 5))
    values = []
    for _ in range(20):
        reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
        client.decrypt(reply, weight_gradient_follows=True)
        message, _ = server.weight_gradient(kept, gradient)
        opened = client.open_weight_gradient(message, gradient)
        values.append(np.frombuffer(opened[64:-8], np.uint8))
    counts = np.bincount(np.concatenate(values), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 256 + 6 * math.sqrt(2 * 256)


def test_order_and_origin_of_the_messages():
    client, server, x, _, _ = make(4, 20, 3, weight_gradients=True)
    gradient = np.ones((4, 3))
    reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
    message, masked = server.weight_gradient(kept, gradient)
    with pytest.raises(hn.WireError, match="not asked for"):
        client.open_weight_gradient(message, gradient)  # before the logits
    client.decrypt(reply, weight_gradient_follows=True)
    with pytest.raises(hn.KeyMismatchError, match="answered already"):
        client.decrypt(reply)
    with pytest.raises(hn.ParameterError, match="gradient of the logits"):
        client.open_weight_gradient(message, np.ones((3, 3)))
    opened = client.open_weight_gradient(message, gradient)
    with pytest.raises(hn.KeyMismatchError):
        client.open_weight_gradient(message, gradient)  # once
    reply2, _, kept2 = server.forward_training(client.encrypt(x), keep=True)
    client.decrypt(reply2, weight_gradient_follows=True)
    _, masked2 = server.weight_gradient(kept2, gradient)
    with pytest.raises(hn.KeyMismatchError, match="another request"):
        server.unmask(masked2, opened)
    with pytest.raises(hn.WireError):
        server.unmask(masked, opened[:-1])
    with pytest.raises(hn.WireError, match="4 samples"):
        server.weight_gradient(kept, np.ones((3, 3)))
    with pytest.raises(hn.RangeError):
        server.weight_gradient(kept, np.full((4, 3), np.nan))
    plain, plain_server, x, _, _ = make(4, 20, 3)
    _, _, kept = plain_server.forward_training(plain.encrypt(x), keep=True)
    with pytest.raises(hn.ParameterError, match="not for weight gradients"):
        plain_server.weight_gradient(kept, gradient)


@settings(max_examples=40)
@given(st.data())
def test_damaged_gradients_are_errors_of_ours(data):
    client, server, x, _, _ = make(2, 6, 2, weight_gradients=True)
    gradient = np.ones((2, 2))
    reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
    client.decrypt(reply, weight_gradient_follows=True)
    message, masked = server.weight_gradient(kept, gradient)
    for good, use in (
        (message, lambda b: client.open_weight_gradient(b, gradient)),
        (None, lambda b: server.unmask(masked, b)),
    ):
        whole = bytearray(good if good is not None else client.open_weight_gradient(message, gradient))
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(hn.HESplitError):
            use(bytes(whole))


@pytest.mark.parametrize(("batch", "rows", "d", "o"), [(1, 2, 8, 2), (2, 5, 20, 20), (5, 6, 300, 7), (8, 60, 4, 3)])
def test_weight_gradients_of_more_samples_than_there_are_rotation_keys_for(batch, rows, d, o):
    params = hn.Parameters(
        ring_degree=4096, modulus_bits=[35, 35, 36], scale=2.0**25, packing="slots", batch_size=batch, error_bound=10
    )
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o, weight_gradients=True)
    server = hn.LinearServer(client.public_material(), np.zeros((o, d)))
    for n in (batch, rows):
        _, _, kept = server.forward_training(client.encrypt(np.ones((n, d))), keep=True)
        if n == batch:
            server.weight_gradient(kept, np.ones((n, o)))
        else:
            with pytest.raises(hn.WireError, match=f"batches of up to {batch} samples"):
                server.weight_gradient(kept, np.ones((n, o)))


LARGE_MODULI = [
    (2048, [50], 20), (2048, [26, 27], 22), (4096, [50, 50], 20), (4096, [53, 53], 45), (8192, [50, 50, 50], 20),
    (8192, [60, 60, 60], 20), (8192, [60, 60, 60], 55), (8192, [40] * 5, 40), (16384, [60] * 6, 20), (16384, [60] * 6, 56),
]  # fmt: skip


@pytest.mark.parametrize(("ring_degree", "modulus_bits", "scale_bits"), LARGE_MODULI)
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e7])
@pytest.mark.parametrize("releases", [0, 1])
def test_weight_gradients_are_precise_whatever_the_modulus(ring_degree, modulus_bits, scale_bits, size, releases):
    n, d, o = 4, 20, 3
    params = hn.Parameters(
        ring_degree=ring_degree, modulus_bits=modulus_bits, scale=2.0**scale_bits, error_bound=1.0, releases=releases
    )
    rng = np.random.default_rng(ring_degree + scale_bits)
    x, g, w = rng.normal(size=(n, d)), size * rng.normal(size=(n, o)), rng.normal(size=(o, d)) / 5
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o, weight_gradients=True)
    server = hn.LinearServer(client.public_material(), w)
    reply, _, kept = server.forward_training(client.encrypt(x), keep=True)
    client.decrypt(reply, weight_gradient_follows=True)
    message, masked = server.weight_gradient(kept, g)
    gradient = server.unmask(masked, client.open_weight_gradient(message, g))
    # Noise and rounding of x meet G; the message is rounded to at most as much as that, or to 62 bits.
    sums = np.abs(g).sum(0).max() * params.activation_bound
    bound = 60 * np.linalg.norm(g) / params.scale + 20 * math.sqrt(ring_degree) * sums * 2.0**-62 + 1e-13 * sums
    if releases:
        # sqrt(12 tau) 2^15 B floods that: B is the worst case of the same noise, for all d o entries.
        rounding = ring_degree * (0.5 + len(modulus_bits) / 2) * 2.1 * sums * 2.0**-62  # at 62 bits
        noise = 1.5 * 23 * np.abs(g).sum() / params.scale + rounding
        bound = 9 * math.sqrt(12 * d * o) * 2**15 * noise
    assert np.abs(gradient - g.T @ x).max() <= bound
