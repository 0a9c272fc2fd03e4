"""Layers whose weights do not change: exact within the stated bound, under secrets of their own, and strict about bytes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.layer.frozen import MAX_ROWS, FrozenClient, FrozenServer, error_bound

PRECISIONS = ["float32", "bfloat16"]
ROWS_AT, NUMBERS_AT = 64, 68  # in a request, behind the core's header


@dataclass
class Pair:
    client: FrozenClient
    server: FrozenServer

    def product(self, x):
        request, secret = self.client.encrypt(x)
        return self.client.decrypt(self.server.multiply(request), secret)


def pair(weight, bias=None, **options):
    server = FrozenServer(weight, bias, **options)
    client = FrozenClient(weight.shape[1], weight.shape[0], bias=bias is not None, **options)
    client.load_hint(server.hint())
    return Pair(client, server)


def bounds(x, weight, bias, precision):
    """What each product may be off by."""
    features = x.shape[1]
    if bias is not None:
        x, weight, features = np.column_stack([x, np.ones(len(x))]), np.column_stack([weight, bias]), features + 1
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1)
    return 1.001 * error_bound(features, precision) * norms


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 70), st.integers(1, 40)),
    precision=st.sampled_from(PRECISIONS),
    with_bias=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    scales=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_float64(shape, precision, with_bias, dtype, scales, seed):
    rows, features, outputs = shape
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, features)) * 10.0 ** scales[0]).astype(dtype)
    weight = (rng.normal(size=(outputs, features)) * 10.0 ** scales[1]).astype(dtype)
    bias = (rng.normal(size=outputs) * 10.0 ** scales[1]).astype(dtype) if with_bias else None
    x[rng.random(rows) < 0.1] = 0
    weight[rng.random(outputs) < 0.1] = 0
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + (0 if bias is None else bias.astype(np.float64))
    y = pair(weight, bias, precision=precision).product(x)
    wide = (x.astype(np.float64), weight.astype(np.float64), bias, precision)
    assert (np.abs(y - exact) <= bounds(*wide)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("features", [15, 16, 17, 768, 3072])
def test_rows_that_reach_every_limit(features, precision):
    """Parallel rows: the largest product there is. And all of a row's norm, or of a weight's, in one number."""
    one = np.zeros((1, features))
    one[0, -1] = 1
    weight = np.concatenate([np.ones((1, features)), -np.ones((1, features)), one, -one])
    y = pair(weight, precision=precision).product(weight)
    assert (np.abs(y - weight @ weight.T) <= bounds(weight, weight, None, precision)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_error_is_relative_and_about_that_of_the_dtype(precision):
    rng = np.random.default_rng(5)
    weight, x = rng.normal(size=(100, 768)), rng.normal(size=(128, 768))
    error = pair(weight, precision=precision).product(x) - x @ weight.T
    relative = np.sqrt((error**2).mean() / ((x @ weight.T) ** 2).mean())
    # Of sums of 768 products in float32 about 3e-7, in bfloat16 3e-3.
    assert relative < {"float32": 5e-6, "bfloat16": 1e-3}[precision]


def test_extreme_numbers():
    weight = np.array([[1e308, -1e308], [1e-290, 0.0], [0.0, 0.0], [5e-324, 0.0]])
    x = np.array([[1e-290, 0.0], [5e-324, 5e-324], [1e300, 1e-300], [0.0, 0.0]])
    y = pair(weight).product(x)
    assert y[0, 0] == pytest.approx(1e18, rel=1e-5)
    assert y[2, 1] == pytest.approx(1e10, rel=1e-5)
    np.testing.assert_array_equal(y[:, 2:], 0)
    np.testing.assert_array_equal(y[[1, 3]], 0)
    with pytest.raises(hn.RangeError, match="beyond float64"):
        FrozenClient(3, 1).encrypt(np.full((1, 3), 1.7e308))


def numbers_of(request, count, bits):
    return _testing.unpack_bits(request[NUMBERS_AT : NUMBERS_AT + (count * bits + 7) // 8], count, bits, 2**bits)


def test_every_request_and_every_group_has_a_secret_of_its_own():
    """The common matrix is the same: under one secret, equal rows would differ by noise alone."""
    features, rows = 32, 256
    client = FrozenClient(features, 3)
    x = np.ones((rows, features))
    first, _ = client.encrypt(x)
    second, _ = client.encrypt(x)
    bits = 48
    assert len(first) == NUMBERS_AT + rows * features * bits // 8 + 8
    one, other = (
        numbers_of(r, rows * features, bits).astype(np.int64).reshape(rows, features) for r in (first, second)
    )
    modulus = 2**51 / 8  # about; what matters is that no difference is small
    for a, b in ((one, other), (one[:128], one[128:])):
        difference = np.abs(a - b)
        near = np.minimum(difference, np.abs(modulus - difference))
        assert (near < 2**30).mean() < 1e-3


def test_lengths_depend_on_shapes_alone():
    client, server = FrozenClient(9, 4), FrozenServer(np.zeros((4, 9)))
    rng = np.random.default_rng(0)
    for x in (np.zeros((5, 9)), 1e9 * rng.normal(size=(5, 9)), np.eye(5, 9)):
        request, _ = client.encrypt(x)
        assert len(request) == server.cost(5).request_bytes
        assert server.rows_of(request[:100]) == 5
        assert len(server.multiply(request)) == server.cost(5).reply_bytes
    assert len(server.hint()) == server.hint_bytes


def test_the_matrix_in_common_follows_from_features_precision_and_epoch():
    weight = np.arange(12.0).reshape(3, 4)
    hints = [
        FrozenServer(weight).hint(),
        FrozenServer(weight, epoch="2027").hint(),
        FrozenServer(weight[:, :3]).hint(),
        FrozenServer(weight, precision="bfloat16").hint(),
    ]
    assert FrozenServer(weight).hint() == hints[0]
    assert len(set(hints)) == 4
    client = FrozenClient(4, 3)
    client.load_hint(hints[0])
    request, secret = client.encrypt(np.ones((1, 4)))
    for other in (
        FrozenServer(weight, epoch="2027"),
        FrozenServer(weight[:, :3]),
        FrozenServer(weight, precision="bfloat16"),
    ):
        with pytest.raises(hn.KeyMismatchError):
            other.multiply(request)
    # Another layer of as many features takes the same request: queries, keys and values share one.
    values = pair(weight[:2] + 1)
    y = values.client.decrypt(values.server.multiply(request), secret)
    np.testing.assert_allclose(y, [[10.0, 26.0]], rtol=1e-5)


def test_weights_that_changed_are_noticed():
    weight = np.ones((3, 4))
    layer = pair(weight)
    request, secret = layer.client.encrypt(np.ones((2, 4)))
    for changed in (weight * 2, weight - np.eye(3, 4)):
        with pytest.raises(hn.KeyMismatchError, match="load the hint again"):
            layer.client.decrypt(FrozenServer(changed).multiply(request), secret)
    layer.client.load_hint(FrozenServer(2 * weight).hint())
    y = layer.client.decrypt(FrozenServer(2 * weight).multiply(request), secret)
    np.testing.assert_allclose(y, 8, rtol=1e-5)


def test_replies_belong_to_their_request_and_hints_to_their_layer():
    layer = pair(np.ones((3, 4)))
    (first, one), (second, other) = layer.client.encrypt(np.ones((2, 4))), layer.client.encrypt(np.ones((2, 4)))
    reply = layer.server.multiply(first)
    with pytest.raises(hn.KeyMismatchError, match="another request"):
        layer.client.decrypt(reply, other)
    layer.client.decrypt(reply, one)
    layer.client.decrypt(layer.server.multiply(second), other)
    fresh = FrozenClient(4, 3)
    with pytest.raises(hn.KeyMismatchError, match="no hint"):
        fresh.decrypt(reply, one)
    with pytest.raises(hn.WireError):
        fresh.load_hint(FrozenServer(np.ones((2, 4))).hint())
    with pytest.raises(hn.KeyMismatchError):
        FrozenClient(70, 3).load_hint(FrozenServer(np.ones((3, 4)), precision="bfloat16").hint())


def changed(message, at, value):
    """A message whose checksum is right after the change."""
    return _testing.reseal(message[:at] + value + message[at + len(value) :])


def test_bytes_that_are_no_request():
    layer = pair(np.ones((3, 4)))
    request, _ = layer.client.encrypt(np.ones((2, 4)))
    reply = layer.server.multiply(request)
    limit = b"\xff" * 6  # a number of 48 ones is above the modulus
    for wrong in (
        b"",
        request[:-1],
        request + b"\0",
        request[:100],
        reply,
        bytes([request[0] ^ 1]) + request[1:],
        request[:-1] + bytes([request[-1] ^ 1]),
        changed(request, ROWS_AT, (3).to_bytes(4, "little")),
        changed(request, ROWS_AT, (0).to_bytes(4, "little")),
        changed(request, ROWS_AT, (2**31).to_bytes(4, "little")),
        changed(request, NUMBERS_AT, limit),
    ):
        with pytest.raises(hn.WireError):
            layer.server.multiply(wrong)
    for beginning in (b"", request[:67], changed(request, ROWS_AT, (MAX_ROWS + 1).to_bytes(4, "little"))):
        with pytest.raises(hn.WireError):
            layer.server.rows_of(beginning)


def test_bytes_that_are_no_reply_or_no_hint():
    layer = pair(np.ones((3, 4)))
    request, secret = layer.client.encrypt(np.ones((2, 4)))
    reply, hint = layer.server.multiply(request), layer.server.hint()
    for wrong in (reply[:-1], reply + b"\0", changed(reply, ROWS_AT, (1).to_bytes(4, "little"))):
        with pytest.raises(hn.WireError):
            layer.client.decrypt(wrong, secret)
    not_a_number, negative = np.float64(np.nan).tobytes(), np.float64(-1).tobytes()
    for wrong in (
        hint[:-1],
        reply,
        changed(hint, ROWS_AT, (2).to_bytes(4, "little")),
        changed(hint, ROWS_AT + 4, not_a_number),
        changed(hint, ROWS_AT + 4, negative),
        changed(hint, ROWS_AT + 4 + 3 * 8, b"\xff" * 8),
    ):
        with pytest.raises(hn.WireError):
            layer.client.load_hint(wrong)
    # What was there stays.
    np.testing.assert_allclose(layer.client.decrypt(reply, secret), 4, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(value):
    x = np.ones((2, 4))
    x[1, 2] = value
    with pytest.raises(hn.RangeError, match="x contains NaN or Inf"):
        FrozenClient(4, 3).encrypt(x)
    with pytest.raises(hn.RangeError, match="weight contains NaN or Inf"):
        FrozenServer(x)
    with pytest.raises(hn.RangeError):
        FrozenServer(np.ones((2, 4)), np.array([0, value]))


def test_shapes_and_dtypes():
    client = FrozenClient(4, 3)
    for wrong in (
        np.ones((2, 5)),
        np.ones(4),
        np.ones((2, 4), np.int64),
        np.ones((0, 4)),
        np.ones((MAX_ROWS + 1, 4)),
        [[1.0]],
    ):
        with pytest.raises(hn.ParameterError):
            client.encrypt(wrong)
    for wrong in (np.ones(4), np.ones((0, 4)), np.ones((4, 0)), np.ones((2, 4), np.float16)):
        with pytest.raises(hn.ParameterError):
            FrozenServer(wrong)
    with pytest.raises(hn.ParameterError, match="bias of shape"):
        FrozenServer(np.ones((2, 4)), np.ones(3))
    for features, outputs in ((0, 1), (1, 0), ((1 << 20) + 1, 1), (1, 70000)):
        with pytest.raises(hn.ParameterError):
            FrozenClient(features, outputs)
    with pytest.raises(hn.ParameterError, match="precision must be one of"):
        FrozenClient(1, 1, precision="float64")


def test_views_that_are_not_contiguous():
    rng = np.random.default_rng(1)
    weight, x = rng.normal(size=(8, 6)), rng.normal(size=(6, 5))
    layer = pair(weight.T[:, ::2])
    wide = np.ascontiguousarray(weight.T[:, ::2])
    np.testing.assert_allclose(layer.product(x.T[:, :4][:, ::-1]), x.T[:, :4][:, ::-1] @ wide.T, atol=1e-4)


def test_the_most_rows():
    layer = pair(np.eye(3, 4))
    x = np.random.default_rng(0).normal(size=(MAX_ROWS, 4))
    np.testing.assert_allclose(layer.product(x), x[:, :3], atol=1e-5)


def test_threads_share_a_client_and_a_server():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(40, 50))
    layer = pair(weight)
    batches = [rng.normal(size=(n, 50)) for n in (1, 3, 130, 7, 64, 200)] * 3

    def work(x):
        layer.client.load_hint(layer.server.hint())
        return np.abs(layer.product(x) - x @ weight.T).max()

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(work, batches)) < 1e-3


def test_secrets_do_not_show():
    client = FrozenClient(4, 3)
    _, secret = client.encrypt(np.ones((2, 4)))
    assert "FrozenSecret object" in repr(secret)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
