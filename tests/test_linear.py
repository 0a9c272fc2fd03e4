"""The encrypted layer against float64 numpy, within the stated bound, over random shapes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn

# What the property tests draw from, beside recommended sets: explicit ones, with the error bound each can hold.
EXPLICIT = {
    "blocks-1-prime": hn.Parameters(ring_degree=2048, modulus_bits=[53], scale=2.0**20),
    "blocks-2-primes": hn.Parameters(ring_degree=4096, modulus_bits=[50, 50], scale=2.0**40),
    "blocks-3-primes": hn.Parameters(ring_degree=8192, modulus_bits=[60, 60, 60], scale=2.0**50),
    "merged-1-prime": hn.Parameters(ring_degree=4096, modulus_bits=[50, 50], scale=2.0**20, packing="merged"),
    "merged-2-primes": hn.Parameters(
        ring_degree=4096, modulus_bits=[28, 28, 50], scale=2.0**22, packing="merged", batch_size=5
    ),
    "merged-60": hn.Parameters(ring_degree=8192, modulus_bits=[60, 60], scale=2.0**24, packing="merged", batch_size=40),
    "slots-8192-40": hn.Parameters(ring_degree=8192, modulus_bits=[60, 40, 40, 60], scale=2.0**40, packing="slots"),
    "slots-8192-21": hn.Parameters(
        ring_degree=8192,
        modulus_bits=[40, 21, 21, 40],
        scale=2.0**21,
        packing="slots",
        error_bound=0.1,
    ),
    "slots-4096-20": hn.Parameters(
        ring_degree=4096,
        modulus_bits=[40, 20, 20],
        scale=2.0**21,
        packing="slots",
        error_bound=1.0,
    ),
}


def make_layer(params, in_features, out_features, weight, bias, **options):
    key = hn.SecretKey.generate(params)
    client = hn.LinearClient(key, in_features, out_features, **options)
    return client, hn.LinearServer(client.public_material(), weight, bias)


def random_layer(rng, n, d, o, *, norm, rms, dtype=np.float64):
    """Activations with rows of root mean square `rms`, weights with rows of l2 norm `norm`."""
    x = np.clip(rng.normal(scale=rms, size=(n, d)), -3.9 * rms, 3.9 * rms).astype(dtype)
    w = rng.normal(size=(o, d))
    w *= norm * rng.random((o, 1)) / np.linalg.norm(w, axis=1, keepdims=True)
    return x, w, rng.normal(size=o)


def assert_close(y, x, w, b, bound):
    expected = x.astype(np.float64) @ w.T + (0 if b is None else b)
    assert y.shape == expected.shape
    assert y.dtype == np.float64
    worst = np.abs(y - expected).max()
    assert worst <= bound, f"error {worst:.3g} exceeds {bound:.3g}"
    return worst


shapes = st.tuples(st.integers(1, 300), st.integers(1, 3000), st.integers(1, 200)).filter(
    lambda s: s[0] * s[1] * s[2] <= 3_000_000
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(shape=shapes, packing=st.sampled_from(["blocks", "merged", "slots"]), seed=st.integers(0, 2**32 - 1))
@example(shape=(1, 1, 1), packing="blocks", seed=0)
@example(shape=(1, 1, 1), packing="slots", seed=0)
@example(shape=(1, 1, 200), packing="slots", seed=0)
@example(shape=(1, 3000, 200), packing="blocks", seed=0)
@example(shape=(1, 3000, 200), packing="slots", seed=0)
@example(shape=(1, 1, 1), packing="merged", seed=0)
@example(shape=(1, 100, 5000), packing="merged", seed=0)
@example(shape=(1, 3000, 200), packing="merged", seed=0)
@example(shape=(300, 1, 7), packing="merged", seed=1)
@example(shape=(40, 200, 50), packing="merged", seed=2)
@example(shape=(300, 1, 7), packing="slots", seed=1)
def test_recommended_sets_keep_the_error_bound(shape, packing, seed):
    n, d, o = shape
    rng = np.random.default_rng(seed)
    params = hn.Parameters.recommend(in_features=d, out_features=o, batch_size=n, packing=packing, weight_norm=4.0)
    assert params.error_bound <= 1e-3
    x, w, b = random_layer(rng, n, d, o, norm=4.0, rms=4.0)
    client, server = make_layer(params, d, o, w, b)
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert client.clipped == 0
    assert_close(y, x, w, b, params.error_bound)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 300),
    o=st.integers(1, 20),
    name=st.sampled_from(sorted(EXPLICIT)),
    seed=st.integers(0, 2**32 - 1),
)
def test_explicit_sets_keep_the_error_bound(n, d, o, name, seed):
    rng = np.random.default_rng(seed)
    params = EXPLICIT[name]
    x, w, b = random_layer(rng, n, d, o, norm=2.0, rms=1.0)
    client, server = make_layer(params, d, o, w, b)
    assert_close(client.decrypt(server.forward(client.encrypt(x))), x, w, b, params.error_bound)


# Layouts whose forward pass is a matrix product of residues (cpp/linear/blocks/strands): rows * width a power of two.
@pytest.mark.parametrize(
    ("n", "d", "o", "width"),
    [
        (2048, 20, 30, 1),
        (4095, 12, 8, 1),  # two groups, the second one not full
        (1024, 33, 10, 2),  # a window of two coefficients wraps around, and the last input is not full
        (128, 64, 96, 2),
        (128, 65, 97, 2),  # the last product is not full either
        (128, 400, 350, 4),  # transformed weights would take too much memory
    ],
)
def test_layouts_without_transforms(n, d, o, width):
    rng = np.random.default_rng(n + d + o)
    params = hn.Parameters.recommend(in_features=d, out_features=o, batch_size=n, weight_norm=4.0)
    assert params.estimate(d, o, n, weight_norm=4.0)["layout"]["width"] == width
    x, w, b = random_layer(rng, n, d, o, norm=4.0, rms=4.0)
    client, server = make_layer(params, d, o, w, b)
    assert_close(client.decrypt(server.forward(client.encrypt(x))), x, w, b, params.error_bound)
    server.set_weight(np.zeros_like(w), b)
    assert_close(client.decrypt(server.forward(client.encrypt(x))), x, 0 * w, b, params.error_bound)


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
def test_batches_larger_than_the_ring_are_split(packing):
    rng = np.random.default_rng(1)
    params = hn.Parameters.recommend(in_features=6, out_features=3, batch_size=64, packing=packing, weight_norm=4.0)
    x, w, b = random_layer(rng, 5000, 6, 3, norm=4.0, rms=2.0)
    client, server = make_layer(params, 6, 3, w, b)
    assert_close(client.decrypt(server.forward(client.encrypt(x))), x, w, b, params.error_bound)


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
@pytest.mark.parametrize("case", ["zero weights", "zero rows", "zero input", "constant", "no bias"])
def test_special_values(packing, case):
    rng = np.random.default_rng(2)
    params = hn.Parameters.recommend(in_features=50, out_features=6, batch_size=4, packing=packing)
    x, w, b = random_layer(rng, 4, 50, 6, norm=4.0, rms=4.0)
    if case == "zero weights":
        w[:] = 0
    elif case == "zero rows":
        w[:4] = 0
    elif case == "zero input":
        x[:] = 0
    elif case == "constant":
        w[:], x[:] = 0.3, 7.77
    bias = None if case == "no bias" else b
    client, server = make_layer(params, 50, 6, w, bias)
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert_close(y, x, w, bias, params.error_bound)


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
def test_values_at_the_edge_of_the_agreed_ranges_do_not_wrap_around(packing):
    params = hn.Parameters.recommend(in_features=256, out_features=5, batch_size=4, packing=packing)
    signs = np.where(np.arange(256) % 3 == 0, -1.0, 1.0)
    x = np.stack([signs, -signs, signs, signs]) * params.activation_norm / 16
    w = np.stack([signs, -signs, signs, np.abs(signs), signs])  # row norms of 16: the default's limit
    client, server = make_layer(params, 256, 5, w, None)
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert_close(y, x, w, None, params.error_bound)
    assert np.abs(y).max() > 2000


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
def test_observed_errors_are_not_far_below_the_bound(packing):
    # A bound that is never approached would cost bytes for nothing: it allows 7.5 standard deviations.
    rng = np.random.default_rng(3)
    params = hn.Parameters.recommend(in_features=256, out_features=5, batch_size=4, packing=packing)
    x, w, b = random_layer(rng, 400, 256, 5, norm=12.0, rms=4.0)
    client, server = make_layer(params, 256, 5, w, b)
    worst = assert_close(client.decrypt(server.forward(client.encrypt(x))), x, w, b, params.error_bound)
    assert worst >= params.error_bound / 25


def test_set_weight_takes_effect_and_a_refused_one_leaves_the_old():
    rng = np.random.default_rng(4)
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=2)
    x, w, b = random_layer(rng, 2, 20, 3, norm=4.0, rms=2.0)
    client, server = make_layer(params, 20, 3, w, b)
    server.set_weight(-w, None)
    assert_close(client.decrypt(server.forward(client.encrypt(x))), x, -w, None, params.error_bound)
    for bad, error in [(w * 1e9, hn.RangeError), (w * np.nan, hn.RangeError)]:
        with pytest.raises(error):
            server.set_weight(bad, b)
    assert_close(client.decrypt(server.forward(client.encrypt(x))), x, -w, None, params.error_bound)


def test_arrays_and_tensors_of_both_float_types():
    rng = np.random.default_rng(5)
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)
    x, w, b = random_layer(rng, 4, 20, 3, norm=4.0, rms=2.0, dtype=np.float32)
    client, server = make_layer(params, 20, 3, torch.from_numpy(w), torch.from_numpy(b).float())
    strided = np.asfortranarray(x)
    for value in (x, x.astype(np.float64), strided, torch.from_numpy(x), torch.from_numpy(x).double()):
        y = client.decrypt(server.forward(client.encrypt(value)))
        assert_close(y, x, w, b.astype(np.float32), params.error_bound)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 7)), r"\[n, 20\], got \[2, 7\]"),
        (np.zeros(20), r"\[n, 20\], got \[20\]"),
        (np.zeros((0, 20)), r"\[n, 20\], got \[0, 20\]"),
        (np.zeros((2, 20), dtype=np.int64), "float32 or float64, got int64"),
        ([[1.0] * 20], "numpy array or a torch tensor, got list"),
    ],
)
def test_wrong_shapes_and_types_name_expected_and_given(bad, message):
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(params), 20, 3)
    with pytest.raises(hn.ParameterError, match=message):
        client.encrypt(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_range_errors(value, dtype):
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(params), 20, 3)
    x = np.zeros((3, 20), dtype=dtype)
    x[1, 4] = value
    with pytest.raises(hn.RangeError, match="NaN or infinity"):
        client.encrypt(x)


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_beyond_the_ranges_are_clipped_and_counted(packing, dtype):
    rng = np.random.default_rng(6)
    params = hn.Parameters.recommend(in_features=256, out_features=5, batch_size=4, packing=packing)
    x, w, b = random_layer(rng, 4, 256, 5, norm=4.0, rms=4.0, dtype=dtype)
    x[0, 0] = 1000  # beyond the bound
    x[2] = 60  # within the bound, beyond the norm
    client, server = make_layer(params, 256, 5, w, b)
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert client.clipped == 2
    inside, count = client.clip(x)
    assert count == 2
    assert inside.dtype == dtype
    assert inside[0, 0] == params.activation_bound
    np.testing.assert_array_equal(inside[1], x[1])
    np.testing.assert_allclose(np.linalg.norm(inside[2]), params.activation_norm, rtol=1e-5)
    assert_close(y, inside, w, b, params.error_bound + (2e-3 if dtype == np.float32 else 0))
    again, count = client.clip(inside)
    assert count in (0, 1)  # the norm may be off by a rounding
    np.testing.assert_allclose(again, inside, rtol=1e-6)
    strict, _ = make_layer(params, 256, 5, w, b, on_overflow="raise")
    with pytest.raises(hn.RangeError, match="2 of 4 samples"):
        strict.encrypt(x)


def test_clip_of_a_tensor_has_the_true_gradient():
    params = hn.Parameters.recommend(in_features=8, out_features=3, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(params), 8, 3)
    x = torch.full((2, 8), 3.0, dtype=torch.float64)
    x[0, 0] = 100.0
    x.requires_grad_()
    inside, count = client.clip(x)
    assert count == 1
    inside.sum().backward()
    assert x.grad[0, 0] == 0
    assert (x.grad[1] == 1).all()


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
def test_results_do_not_depend_on_the_number_of_threads(packing):
    rng = np.random.default_rng(7)
    params = hn.Parameters.recommend(in_features=64, out_features=9, batch_size=50, packing=packing)
    x, w, b = random_layer(rng, 50, 64, 9, norm=4.0, rms=4.0)
    client, server = make_layer(params, 64, 9, w, b)
    request = client.encrypt(x)
    replies = []
    try:
        for threads in (1, 2, 3):
            hn.set_num_threads(threads)
            if packing != "slots":  # where weights are rounded at random, each time anew
                server.set_weight(w, b)
            replies.append(server.forward(request))
    finally:
        hn.set_num_threads(1)
    assert replies[0] == replies[1] == replies[2]


@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
def test_one_client_and_server_from_many_threads(packing):
    rng = np.random.default_rng(8)
    params = hn.Parameters.recommend(in_features=30, out_features=4, batch_size=8, packing=packing)
    x, w, b = random_layer(rng, 8, 30, 4, norm=4.0, rms=4.0)
    client, server = make_layer(params, 30, 4, w, b)

    def step(i):
        y = client.decrypt(server.forward(client.encrypt(x * (i % 5) / 5)))
        assert_close(y, x * (i % 5) / 5, w, b, params.error_bound)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(step, range(40)))


def test_every_encryption_is_fresh():
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(params), 20, 3)
    x = np.ones((4, 20))
    first, second = (np.frombuffer(client.encrypt(x)[64:-8], dtype=np.uint8) for _ in range(2))
    assert (first != second)[12:].mean() > 0.9


class Interrupted:
    """A counter whose every read lets other threads run, as a busy machine may at any of them."""

    def __get__(self, owner, kind=None):
        value = owner.__dict__.get("_counted", 0)
        time.sleep(1e-4)
        return value

    def __set__(self, owner, value):
        owner.__dict__["_counted"] = value


@pytest.mark.parametrize("kind", ["encrypt", "clip_counted", "sealed"])
def test_clipped_samples_of_several_threads_are_all_counted(kind):
    if kind == "sealed":
        params = hn.Parameters.recommend_sealed(in_features=6, out_features=2, batch_size=3, updates=4)
        base = hn.SealedClient
    else:
        params = hn.Parameters.recommend(in_features=6, out_features=2, batch_size=3)
        base = hn.LinearClient
    counted = type("Counted", (base,), {"clipped": Interrupted()})
    client = counted(hn.SecretKey.generate(params), 6, 2)
    act = client.encrypt if kind == "encrypt" else client.clip_counted
    x = np.full((3, 6), 2 * params.activation_bound)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: act(x), range(64)))
    assert client.clipped == 3 * 64
