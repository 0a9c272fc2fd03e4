"""hesplit_native.tenseal: every operation against float64 numpy, within the bound that its docstring states."""

from __future__ import annotations

import contextlib
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
import hesplit_native.tenseal as ts
from hesplit_native import _core
from hesplit_native.errors import HESplitError, KeyMismatchError, RangeError, WireError
from hesplit_native.tenseal import sources
from hesplit_native.tenseal.layout import Layout

SCALE = 2.0**21
few = settings(derandomize=True, database=None, max_examples=60, deadline=None)


def make_context() -> ts.Context:
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=4096, coeff_mod_bit_sizes=[40, 20, 20])
    context.global_scale = SCALE
    context.generate_galois_keys()
    return context


CONTEXT = make_context()
PUBLIC = ts.Context.load(CONTEXT.serialize())


def sent(tensor: Any) -> Any:
    """The tensor as the client finds it that a server sends it to."""
    return type(tensor).load(CONTEXT, tensor.serialize())


def decrypted(tensor: Any) -> np.ndarray:
    return np.array(tensor.decrypt().tolist())


def decrypted_of(tensor: Any) -> np.ndarray:
    """The same of tensors and vectors."""
    found = tensor.decrypt()
    return np.array(found if isinstance(found, list) else found.tolist())


def bound(x: np.ndarray, matrix: np.ndarray) -> float:
    """Of |decrypted - exact|: the rounding, that of weights, and the noise (docs/tenseal.md)."""
    sums_of_columns = np.abs(matrix).reshape(-1, matrix.shape[-1]).sum(0).max()
    norms = np.sqrt((matrix**2).reshape(-1, matrix.shape[-1]).sum(0).max())
    rows = np.abs(x).reshape(len(x), -1).sum(1).max()
    return 7 / SCALE + rows * sums_of_columns * 2.0**-33 + 8 * 250 * norms / sources.SCALE + 1e-12


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, bool, bool]:
    rows, inner, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 300)), draw(st.integers(1, 12))
    seed, magnitude = draw(st.integers(0, 2**32)), draw(st.sampled_from([1e-3, 1.0, 1e3]))
    rng = np.random.default_rng(seed)
    x, w = (
        rng.normal(size=(rows, inner)) * magnitude,
        rng.normal(size=(inner, outputs)) * draw(st.sampled_from([1e-4, 1, 50])),
    )
    return x, w, draw(st.booleans()), draw(st.booleans())


@few
@given(matrices())
def test_products_with_matrices(case: tuple[np.ndarray, np.ndarray, bool, bool]) -> None:
    x, w, batch, public = case
    context = PUBLIC if public else CONTEXT
    tensor = ts.ckks_tensor(context, x.tolist(), batch=batch)
    if batch:
        tensor.reshape_([1, tensor.shape[0]])
    received = ts.CKKSTensor.load(PUBLIC, tensor.serialize())
    b = np.arange(w.shape[1]) - 0.5
    y = sent(received.mm(w.tolist()) + b.tolist())
    assert y.shape == [1, w.shape[1]] if batch else [*x.shape[:1], w.shape[1]]
    found = decrypted(y).reshape(len(x), -1)
    assert np.abs(found - (x @ w + b)).max() <= bound(x, w)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("shape", [(3000, 2), (1, 9000), (1100, 5), (2, 4096), (5000, 1)])
def test_tensors_of_many_polynomials(shape: tuple[int, int], batch: bool) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=shape), rng.normal(size=(shape[1], 3))
    tensor = ts.ckks_tensor(CONTEXT, x, batch=batch)
    assert np.abs(decrypted(sent(tensor)) - x).max() < 3e-8
    tensor.reshape_([1, shape[1]] if batch else shape)
    assert np.abs(decrypted(sent(tensor.mm(w))).reshape(-1, 3) - x @ w).max() <= bound(x, w)


OPERATIONS: dict[str, tuple[Any, Any]] = {
    "+ number": (lambda t, v: t + 1.5, lambda x, v: x + 1.5),
    "number -": (lambda t, v: 2 - t, lambda x, v: 2 - x),
    "array -": (lambda t, v: v - t, lambda x, v: v - x),
    "torch -": (lambda t, v: torch.tensor(v) - t, lambda x, v: v - x),
    "- list": (lambda t, v: t - v.tolist(), lambda x, v: x - v),
    "* number": (lambda t, v: 0.25 * t, lambda x, v: 0.25 * x),
    "* array": (lambda t, v: t * v, lambda x, v: x * v),
    "* plain tensor": (lambda t, v: t * ts.plain_tensor(v), lambda x, v: x * v),
    "* last axis": (lambda t, v: t * v[0] + v[0], lambda x, v: x * v[0] + v[0]),
    "* first axis": (lambda t, v: t * v[:, :1], lambda x, v: x * v[:, :1]),
    "+ itself": (lambda t, v: t + t * v, lambda x, v: x + x * v),
    "- itself": (lambda t, v: t - t, lambda x, v: x - x),
    "neg": (lambda t, v: -t, lambda x, v: -x),
    "sum 0": (lambda t, v: t.sum(), lambda x, v: x.sum(0)),  # as in TenSEAL the batch's axis counts
    "sum 1": (lambda t, v: t.sum(axis=1), lambda x, v: x.sum(1)),
    "sum last": (lambda t, v: t.sum_(len(t.decrypt(CONTEXT.secret_key()).shape) - 1), lambda x, v: x.sum(-1)),
    "transpose": (lambda t, v: t.transpose() * 2, lambda x, v: np.swapaxes(x, -1, -2) * 2),
    "slice": (lambda t, v: t[0:2, 1:3], lambda x, v: x[..., 0:2, 1:3]),
    "slice * array": (lambda t, v: t[0:3, 1:4] * v[:3, :3], lambda x, v: x[..., 0:3, 1:4] * v[:3, :3]),
    "* array * array": (lambda t, v: t * v * v[::-1], lambda x, v: x * v * v[::-1]),
    "index": (lambda t, v: t[-1], lambda x, v: x[..., -1:, :]),
    "mm twice": (lambda t, v: t.mm(v.T).mm(v) - 1, lambda x, v: x @ v.T @ v - 1),
    "@": (lambda t, v: t @ v.T, lambda x, v: x @ v.T),
    "polynomial": (lambda t, v: t.polyval([1, 3, 0]), lambda x, v: 1 + 3 * x),
    "in place": (
        lambda t, v: t.copy().add_(v).mul_(2).sub_(v).neg_().mm_(v.T).reshape_([t.shape[0], v.shape[0]]),
        lambda x, v: -((x + v) * 2 - v) @ v.T,
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("batch", [None, 1, 7])
def test_operations(operation: str, batch: int | None) -> None:
    encrypted, plain = OPERATIONS[operation]
    rng = np.random.default_rng(len(operation))
    v = rng.normal(size=(4, 6))
    x = rng.normal(size=(4, 6) if batch is None else (batch, 4, 6))
    exact = plain(x, v)
    for context in (CONTEXT, PUBLIC):
        result = encrypted(ts.ckks_tensor(context, x, batch=batch is not None), v)
        assert result.shape == list(exact.shape[exact.ndim - len(result.shape) :])
        assert np.abs(decrypted(sent(result)) - exact).max() < 1e-5
        here = np.array(result.decrypt(CONTEXT.secret_key()).tolist())
        assert np.abs(here - exact).max() < 1e-5


@few
@given(
    st.integers(1, 300), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.booleans(), st.integers(0, 2**32)
)
def test_sums_of_ciphertexts(rows: int, inner: int, outputs: int, more: int, batch: bool, seed: int) -> None:
    """HESplit's update, W - eta * X^T G with both encrypted, whatever their shapes."""
    rng = np.random.default_rng(seed)
    x, g, w = rng.normal(size=(rows, inner)), rng.normal(size=(inner, outputs)), rng.normal(size=(rows, outputs))
    left, weight = ts.ckks_tensor(CONTEXT, x, batch=batch), ts.ckks_tensor(PUBLIC, w, batch=batch)
    if batch:
        left.reshape_([1, inner])
        weight.reshape_([1, outputs])
    update = weight - left.mm(g) * 0.5
    exact = w - 0.5 * x @ g
    for _ in range(more):
        update = update + 0.25 * weight
        exact = exact + 0.25 * w
    assert np.abs(decrypted(sent(update)).reshape(exact.shape) - exact).max() <= bound(x, g) + 1e-5


def test_sums_over_many_steps_do_not_grow() -> None:
    """Whatever was done to a tensor before it is added up, and none is lost."""
    rng = np.random.default_rng(12)
    x, v, w = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=4)
    tensor = ts.ckks_tensor(CONTEXT, x)
    total, exact = tensor + tensor * v, x + x * v
    for _ in range(5):
        total, exact = total + tensor * v - tensor * w + total, 2 * exact + x * v - x * w
    same = total._sum.plus_sum(total._sum)
    assert len(same.terms) == 3  # scaled, times one row's numbers, times all numbers
    assert np.abs(decrypted(sent(total)) - exact).max() < 1e-4
    assert np.abs(same.decrypt(CONTEXT.secret_key()._native) - 2 * exact).max() < 1e-4


def test_sums_that_mix_rows() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(5, 7)), rng.normal(size=(35, 4))
    flat = ts.ckks_tensor(CONTEXT, x).reshape([1, 35]).mm(w)
    other = ts.ckks_tensor(PUBLIC, rng.normal(size=(1, 4)))
    exact = x.reshape(1, 35) @ w + decrypted(ts.CKKSTensor.load(CONTEXT, other.serialize()))
    assert np.abs(decrypted(sent(flat + other)) - exact).max() < 1e-5


def test_sums_of_fresh_tensors_stay_fresh() -> None:
    """Gradients of several clients under one public key, averaged and then multiplied."""
    rng = np.random.default_rng(4)
    parts, w = rng.normal(size=(9, 3, 8)), rng.normal(size=(8, 2))
    total = sum((ts.ckks_tensor(PUBLIC, part) for part in parts[1:]), ts.ckks_tensor(CONTEXT, parts[0]))
    average = sent((total + np.ones((3, 8))) * (1 / 9))
    assert np.abs(decrypted(average) - (parts.sum(0) + 1) / 9).max() < 3e-8
    assert np.abs(decrypted(sent(average.mm(w))) - (parts.sum(0) + 1) / 9 @ w).max() < 1e-5


def test_no_sum_wraps_around() -> None:
    """The largest numbers that can be encrypted, as many as may be added up, under the largest weights."""
    largest = np.full((2, 5), sources.BOUND)
    total = ts.ckks_tensor(CONTEXT, largest)
    for _ in range(_core.MOST_SUMMANDS + 3):
        total = total + ts.ckks_tensor(PUBLIC, largest)
    count = _core.MOST_SUMMANDS + 4
    assert np.abs(decrypted(sent(total)) / (count * sources.BOUND) - 1).max() < 3e-8
    w = np.full((5, 3), 1e6)
    assert np.abs(decrypted(sent(total.mm(w))) / (count * sources.BOUND * 5e6) - 1).max() < 1e-6
    few = ts.ckks_tensor(CONTEXT, largest) + ts.ckks_tensor(PUBLIC, largest) + largest
    assert np.abs(decrypted(sent(sent(few).mm(w))) / (3 * sources.BOUND * 5e6) - 1).max() < 1e-6


def test_a_batch_of_vectors_needs_no_reshaping() -> None:
    rng = np.random.default_rng(8)
    x, w, g = rng.normal(size=(4, 256)), rng.normal(size=(256, 5)), rng.normal(size=(4, 5))
    y = ts.ckks_tensor(CONTEXT, x.tolist(), batch=True).mm(w.tolist())
    assert y.shape == [5]
    assert np.abs(decrypted(sent(y)) - x @ w).max() <= bound(x, w)
    update = ts.ckks_tensor(CONTEXT, x.T.tolist(), batch=True).mm(g.tolist())
    assert np.abs(decrypted(sent(update)) - x.T @ g).max() <= bound(x.T, g)


def test_plain_operands_that_change_later() -> None:
    """Products are computed in the end, with the numbers that an operand had when it was used."""
    rng = np.random.default_rng(8)
    for as_operand in (np.array, torch.tensor, torch.nn.Parameter, ts.plain_tensor):
        for operate in (
            lambda t, w: t.mm(w),
            lambda t, w: t @ w,
            lambda t, w: t.mm_(w),
            lambda t, w: t.dot(w),
            lambda t, w: t + w,
            lambda t, w: w - t if not isinstance(w, ts.PlainTensor) else t - w,
            lambda t, w: t * w,
        ):
            w = rng.normal(size=(3, 3))
            given = torch.tensor(w) if as_operand is torch.nn.Parameter else w.copy()
            operand = as_operand(given)
            result = operate(ts.ckks_tensor(CONTEXT, np.ones((3, 3))), operand)
            before = decrypted(result)
            if isinstance(operand, ts.PlainTensor):
                operand.reshape_([9]).reshape_([3, 3])
                operand._values *= 100
            elif isinstance(operand, torch.Tensor):
                operand.detach().mul_(100)
            else:
                operand *= 100
            assert np.abs(decrypted(result) - before).max() < 1e-5
    vector, w = ts.ckks_vector(CONTEXT, [1.0, 2.0, 3.0]), np.ones((3, 2))
    product = vector.mm(w)
    w *= 100
    assert np.abs(np.array(product.decrypt()) - 6).max() < 1e-5


def test_sum_of_a_batch() -> None:
    x = np.random.default_rng(5).normal(size=(6, 3))
    total = (ts.ckks_tensor(CONTEXT, x, batch=True) * [1, 2, 3] + 1).sum_batch()
    assert np.abs(decrypted(sent(total)) - (x * [1, 2, 3] + 1).sum(0)).max() < 1e-5


def test_results_that_were_sent_can_be_added_and_scaled() -> None:
    rng = np.random.default_rng(6)
    x, w = rng.normal(size=(4, 6)), rng.normal(size=(6, 3))
    first, second = (sent(ts.ckks_tensor(CONTEXT, x).mm(w) + c) for c in (0, 2))
    result = 1 - (first - second * 3 + w[:4]) * 0.5
    exact = 1 - (x @ w - 3 * (x @ w + 2) + w[:4]) * 0.5
    assert np.abs(decrypted(sent(result)) - exact).max() < 1e-5
    with pytest.raises(NotImplementedError, match="more depth"):
        first.mm(w.T)
    with pytest.raises(NotImplementedError, match="more depth"):
        first * [1.0, 2.0, 3.0]


@few
@given(st.integers(1, 200), st.integers(1, 8), st.integers(0, 2**32))
def test_vectors(size: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, v, w = rng.normal(size=size), rng.normal(size=size), rng.normal(size=(size, outputs))
    vector = ts.ckks_vector(PUBLIC, x.tolist())
    assert vector.size() == size
    assert vector.shape == [size]
    for result, exact in [
        (vector, x),
        (vector.mm(w.tolist()), x @ w),
        (vector @ w, x @ w),
        (vector.dot(v), [x @ v]),
        (vector.sum(), [x.sum()]),
        ((vector + v) * 2 - vector, x + 2 * v),
        (vector * v, x * v),
    ]:
        received = sent(result).decrypt()
        assert isinstance(received, list)
        assert np.abs(np.array(received) - exact).max() < 1e-5 * max(1, np.abs(exact).max()) + 1e-6


def test_vectors_meet_vectors_of_their_size() -> None:
    """Vectors never become something else by broadcasting."""
    vector, single = ts.ckks_vector(CONTEXT, [1.0, 2.0, 3.0]), ts.ckks_vector(CONTEXT, [2.0])
    for operand in ([1.0], [1.0, 2.0], [[1.0, 2.0, 3.0]], [[1.0], [2.0]], np.ones((3, 3)), ts.plain_tensor([1.0])):
        for operate in (
            lambda t, o: t + o,
            lambda t, o: t - o,
            lambda t, o: o - t if not isinstance(o, ts.PlainTensor) else t - o,
            lambda t, o: t * o,
            lambda t, o: t.add_(o),
            lambda t, o: t.dot(o),
        ):
            with pytest.raises(ValueError, match="vector"):
                operate(vector, operand)
    for operand in ([1.0, 2.0, 3.0], np.ones((1, 1))):
        with pytest.raises(ValueError, match="vector"):
            single + operand
    for operand in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)):
        assert np.abs(np.array((vector * operand).decrypt()) - [2, 4, 6]).max() < 1e-5
    with pytest.raises(ValueError, match="vector"):
        vector.dot(2.0)
    with pytest.raises(ValueError, match="vector"):
        ts.ckks_vector(CONTEXT, 1.0)
    for attempt in (
        lambda: vector + ts.ckks_tensor(CONTEXT, [1.0, 2.0, 3.0]),
        lambda: ts.ckks_tensor(CONTEXT, [1.0, 2.0, 3.0]) - vector,
    ):
        with pytest.raises(TypeError, match="can't operate"):
            attempt()
    assert np.abs(np.array(sent(vector - single).decrypt()) - [-1, 0, 1]).max() < 1e-5
    assert np.abs(np.array(sent(single - vector).decrypt()) - [1, 0, -1]).max() < 1e-5


@pytest.mark.parametrize("batch", [None, 1, 5])
def test_tensors_of_ciphertexts_are_broadcast(batch: int | None) -> None:
    """An encrypted bias, for example."""
    rng = np.random.default_rng(9)
    lead = () if batch is None else (batch,)
    x, w = rng.normal(size=(*lead, 4, 6)), rng.normal(size=(6, 3))
    y = ts.ckks_tensor(CONTEXT, x, batch=batch is not None).mm(w)
    for shape in ((3,), (1,), (1, 3), (4, 1), (4, 3)):
        b = rng.normal(size=(*lead, *shape))
        bias = ts.ckks_tensor(PUBLIC, b, batch=batch is not None)
        wide = b.reshape(*lead, *(1,) * (2 - len(shape)), *shape)
        for result, exact in ((y + bias, x @ w + wide), (bias - y, wide - x @ w)):
            assert result.shape == [4, 3]
            assert np.abs(decrypted(sent(result)) - exact).max() < 1e-5


def test_maps_are_no_larger_than_what_they_give() -> None:
    """Rows of a batch of activations, their sum, and long vectors: no map of all numbers by all numbers is written out."""
    rng = np.random.default_rng(11)
    x, v = rng.normal(size=(32, 256)), rng.normal(size=9000)
    tensor, vector = ts.ckks_tensor(CONTEXT, x), ts.ckks_vector(PUBLIC, v)
    for result, exact in (
        (tensor[3:7], x[3:7]),
        (tensor[:, 10:12], x[:, 10:12]),
        (tensor.sum(0), x.sum(0)),
        (tensor.sum(1), x.sum(1)),
        (tensor.mm(np.ones((256, 3)))[30:], x[30:] @ np.ones((256, 3))),
        (ts.ckks_tensor(CONTEXT, v).dot(v), v @ v),
        (ts.ckks_tensor(CONTEXT, v)[8999:], v[8999:]),
        (vector.dot(v), [v @ v]),
        (vector.sum(), [v.sum()]),
    ):
        received = sent(result).decrypt()
        found = np.array(received if isinstance(received, list) else received.tolist())
        assert found.shape == np.shape(exact)
        assert np.abs(found - exact).max() < 1e-3


def test_indices_of_any_integer_type_keep_their_axis() -> None:
    x = np.random.default_rng(13).normal(size=(3, 4))
    tensor = ts.ckks_tensor(CONTEXT, x)
    for index in (1, np.int64(1), -2, np.int8(-2)):
        assert tensor[index].shape == [1, 4]
        assert tensor.transpose()[:, index].shape == [4, 1]
        assert np.abs(decrypted(tensor[index, np.int32(3)]) - x[1:2, 3:]).max() < 1e-5
    assert ts.ckks_tensor(CONTEXT, np.arange(200.0))[np.int8(127)].decrypt().tolist() == pytest.approx([127], abs=1e-4)
    for index in (3, np.int64(3), np.int8(-4)):
        with pytest.raises(IndexError):
            tensor[index]


IN_PLACE: dict[str, list[tuple[str, list[Any]]]] = {
    "tensor": [
        ("add", [2.0]), ("sub", [np.ones((3, 3))]), ("mul", [[1.0, 2.0, 3.0]]), ("neg", []), ("pow", [1]), ("polyval", [[1, 2]]),
        ("sum", [1]), ("mm", [np.ones((3, 2))]), ("dot", [np.ones(3)]), ("reshape", [[9]]), ("broadcast", [[2, 3, 3]]),
        ("transpose", []),
    ],
    "batch": [("add", [2.0]), ("mul", [[1.0, 2.0, 3.0]]), ("sum", [0]), ("sum", [1]), ("dot", [np.ones(3)]), ("sum_batch", [])],
    "vector": [
        ("add", [2.0]), ("sub", [np.ones(3)]), ("mul", [[1.0, 2.0, 3.0]]), ("neg", []), ("pow", [1]), ("polyval", [[1, 2]]),
        ("sum", []), ("mm", [np.ones((3, 2))]), ("matmul", [np.ones((3, 2))]), ("dot", [np.ones(3)]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", IN_PLACE)
def test_operations_in_place_change_the_tensor_and_no_other(kind: str) -> None:
    x = np.random.default_rng(14).normal(size=(3, 3))
    for name, arguments in IN_PLACE[kind]:
        tensor: Any = (
            ts.ckks_vector(CONTEXT, x[0]) if kind == "vector" else ts.ckks_tensor(CONTEXT, x, batch=kind == "batch")
        )
        before, other = decrypted_of(tensor), tensor.copy()
        expected = getattr(tensor, name)(*arguments)
        assert np.array_equal(decrypted_of(tensor), before)
        assert getattr(tensor, f"{name}_")(*arguments) is tensor
        assert (type(expected), expected.shape) == (type(tensor), tensor.shape)
        assert np.abs(decrypted_of(tensor) - decrypted_of(expected)).max() < 1e-5
        assert np.array_equal(decrypted_of(other), before)


def test_other_powers_in_place_are_refused() -> None:
    tensor = ts.ckks_tensor(CONTEXT, [1.0, 2.0])
    with pytest.raises(NotImplementedError, match="powers"):
        tensor.pow_(2)
    with pytest.raises(NotImplementedError, match="powers"):
        tensor **= 2


def test_a_sum_of_everything_has_no_axes() -> None:
    total = ts.ckks_tensor(CONTEXT, [1.0, 2.0]).sum()
    for tensor in (total, total.transpose(), total.transpose()[...], total.reshape([]), sent(total + 0)):
        assert tensor.shape == []
        assert tensor.decrypt().tolist() == pytest.approx(3, abs=1e-5)


def test_a_matrix_times_a_vector() -> None:
    rng = np.random.default_rng(10)
    x, v = rng.normal(size=(4, 6)), rng.normal(size=6)
    result = ts.ckks_tensor(CONTEXT, x).dot(v)
    assert result.shape == [4]
    assert np.abs(decrypted(sent(result)) - x @ v).max() < 1e-5
    for wrong in (v[:5], [v[0]]):
        with pytest.raises(ValueError, match="multiply"):
            ts.ckks_tensor(CONTEXT, x).dot(wrong)


def test_precision_follows_the_scale() -> None:
    rng = np.random.default_rng(7)
    x, w = rng.normal(size=(4, 256)), rng.normal(size=(256, 5)) / 16
    errors, sizes = [], []
    for scale in (2.0**12, 2.0**21, 2.0**40):
        result = ts.ckks_tensor(CONTEXT, x, scale=scale).mm(w)
        sizes.append(len(result.serialize()))
        errors.append(np.abs(decrypted(sent(result)) - x @ w).max() * scale)
        assert result.scale() == scale
    assert errors[0] < 7
    assert errors[1] < 7
    assert errors[2] < 2**16  # what is left are the noise and the rounding of the weights
    assert sizes[0] < sizes[1] < sizes[2]


def test_plain_tensors() -> None:
    values = np.arange(6.0).reshape(2, 3)
    plain = ts.plain_tensor(values.tolist())
    assert (plain.shape, plain.tolist(), plain.raw) == ([2, 3], values.tolist(), values.ravel().tolist())
    assert plain.reshape([3, 2]).transpose().tolist() == values.reshape(3, 2).T.tolist()
    assert ts.plain_tensor([1.7, -1.7], dtype="int").tolist() == [1, -1]
    assert ts.plain_tensor([1, 2, 3, 4], [2, 2]).at([1, 0]) == 3
    assert (len(plain), plain.size(), len(ts.plain_tensor(1.0))) == (2, 2, 0)
    with pytest.raises(TypeError, match="well structured"):
        ts.plain_tensor([[1, 2], [3]])
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    x = np.array([[1.0, 2, 3]])
    assert np.abs(decrypted(ts.ckks_tensor(CONTEXT, x).mm(parameter)) - 6).max() <= bound(x, np.ones((3, 2)))


# What is refused.


def test_numbers_that_cannot_be_encrypted() -> None:
    for values in ([np.nan], [np.inf, 0.0], [65537.0]):
        with pytest.raises(RangeError):
            ts.ckks_tensor(CONTEXT, values)
        with pytest.raises(RangeError):
            ts.ckks_vector(PUBLIC, values)
    tensor = ts.ckks_tensor(CONTEXT, [[1.0]])
    for operand in ([[np.nan]], [[np.inf]]):
        with pytest.raises(RangeError):
            tensor.mm(operand).serialize()
        with pytest.raises(RangeError):
            (tensor.mm([[1.0]]) + operand).serialize()
    for empty in ([], [[]]):
        with pytest.raises(ValueError, match="empty"):
            ts.ckks_tensor(CONTEXT, empty)


def test_constants_that_a_received_result_has_no_room_for() -> None:
    """Each fits, and all of them do not: an error, and no sum that wrapped around."""
    x, w = np.ones((1, 4)), np.full((4, 2), 1e-3)
    result = sent(ts.ckks_tensor(CONTEXT, x).mm(w))
    added = 0.0
    with pytest.raises(RangeError, match="constant"):  # noqa: PT012 (at whichever step)
        for _ in range(40):
            result = sent(result + 90.0)
            added += 90
            assert np.abs(decrypted(result) - (4e-3 + added)).max() < 1e-3
    assert added >= 180
    whatever = ts.ckks_tensor(CONTEXT, x).mm(w) + 1e9  # there is room for any before
    assert np.abs(decrypted(sent(whatever)) / 1e9 - 1).max() < 1e-9


def test_factors_beyond_what_can_be_written() -> None:
    tensor = ts.ckks_tensor(CONTEXT, [[1.0, 2.0]])
    for factor in (1e200, -1e200):
        assert np.abs(decrypted(sent(tensor * factor)) / factor / [[1, 2]] - 1).max() < 1e-7
        with pytest.raises(RangeError, match="too large"):
            tensor * factor * factor
        with pytest.raises(RangeError, match="too large"):
            sent(tensor.mm([[1.0], [1.0]])) * factor * factor
    with pytest.raises(RangeError, match="too large"):
        tensor.mul_(1e308)


def test_what_nobody_would_load_is_not_serialized() -> None:
    tensor = ts.ckks_tensor(CONTEXT, [[1.0, 2.0]])
    for largest in (2.0**1000, -(2.0**1000)):
        assert np.abs(decrypted(sent(tensor * largest)) / largest / [[1, 2]] - 1).max() < 1e-7
    assert np.abs(decrypted(sent(tensor.mm([[1e270], [1.0]]) + 1e270)) / 2e270 - 1).max() < 1e-6
    for operand in ([[1e303], [1.0]], [[-1e290], [1e290]]):
        with pytest.raises(RangeError, match="too large"):
            tensor.mm(operand).serialize()
    with pytest.raises(RangeError, match="too large"):
        (tensor.mm([[1.0], [1.0]]) + 1e300).decrypt()
    many = tensor.reshape([1] * 15 + [2])
    assert many.shape == sent(many).shape
    with pytest.raises(NotImplementedError, match="16 axes"):
        tensor.reshape([1] * 16 + [2]).serialize()


def test_sums_of_too_many_results_are_refused_where_they_are_sent() -> None:
    results = [sent(ts.ckks_tensor(CONTEXT, [[1.0, 2.0]]).mm([[1.0], [1.0]])) for _ in range(65)]
    total = sum(results[1:64], results[0])
    assert np.abs(decrypted(sent(total)) - 3 * 64).max() < 1e-4
    with pytest.raises(NotImplementedError, match="sum of so many"):
        (total + results[64]).serialize()


def test_what_is_not_here_says_so() -> None:
    tensor, vector = ts.ckks_tensor(CONTEXT, [[1.0, 2.0]]), ts.ckks_vector(CONTEXT, [1.0, 2.0])
    for attempt, what in [
        (lambda: tensor * tensor, "two tensors of ciphertexts"),
        (lambda: tensor.mm(tensor), "two tensors of ciphertexts"),
        (lambda: vector.dot(vector), "two tensors of ciphertexts"),
        (lambda: tensor.square(), "squares"),
        (lambda: tensor**2, "powers"),
        (lambda: tensor.polyval([1, 1, 1]), "polynomial"),
        (lambda: vector.conv2d_im2col([[1.0]], 1), "convolutions"),
        (lambda: ts.im2col_encoding(CONTEXT, [[1.0]], 1, 1, 1), "convolutions"),
        (lambda: vector.enc_matmul_plain([1.0], 1), "encrypted matrix"),
        (lambda: ts.bfv_vector(CONTEXT, [1]), "BFV"),
        (lambda: ts.context(ts.SCHEME_TYPE.BFV, 4096, 1032193), "BFV"),
        (lambda: CONTEXT.galois_keys(), "Galois"),
        (lambda: tensor.ciphertext(), "SEAL ciphertexts"),
    ]:
        with pytest.raises(NotImplementedError, match=what):
            attempt()


def test_shapes_that_do_not_fit() -> None:
    tensor = ts.ckks_tensor(CONTEXT, np.ones((2, 3)))
    batch = ts.ckks_tensor(CONTEXT, np.ones((2, 3)), batch=True)
    for attempt in (
        lambda: tensor.mm(np.ones((2, 3))),
        lambda: batch.mm(np.ones((2, 2))),
        lambda: batch.mm(np.ones(3)),
        lambda: ts.ckks_tensor(CONTEXT, np.ones((2, 3, 4))).mm(np.ones((4, 2))),
        lambda: tensor + np.ones((4, 4)),
        lambda: tensor + ts.ckks_tensor(CONTEXT, np.ones((3, 2))),
        lambda: batch + ts.ckks_tensor(CONTEXT, np.ones(3)),
        lambda: tensor.reshape_([5]),
        lambda: tensor.sum(2),
        lambda: batch.sum(2),
        lambda: tensor.polyval([]),
        lambda: tensor + np.zeros((0, 1, 1)),
        lambda: ts.ckks_tensor(CONTEXT, [1.0]) * [],
        lambda: ts.ckks_tensor(CONTEXT, [[1.0]]) - np.zeros((0, 1)),
        lambda: ts.ckks_tensor(CONTEXT, [1.0]).broadcast([0]),
        lambda: tensor.mm(np.zeros((3, 0))),
        lambda: ts.ckks_vector(CONTEXT, [1.0]).mm(np.zeros((1, 0))),
        lambda: tensor.sum_batch(),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 (numpy's own messages among them)
            attempt()
    with pytest.raises(TypeError, match="can't operate"):
        tensor + "one"
    with pytest.raises(TypeError, match="context"):
        ts.ckks_tensor([[1.0]], [1.0])


def test_contexts_that_cannot_be() -> None:
    for arguments in (
        {"poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [60, 60]},
        {"poly_modulus_degree": 5000, "coeff_mod_bit_sizes": [30]},
        {"poly_modulus_degree": 4096},
        {"poly_modulus_degree": 32768, "coeff_mod_bit_sizes": [13] * 65},
        {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [40, 1.5]},
    ):
        with pytest.raises(ValueError, match=r"coeff_mod_bit_sizes|poly_modulus_degree"):
            ts.context(ts.SCHEME_TYPE.CKKS, **arguments)
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[40, 21, 21, 40])
    with pytest.raises(ValueError, match="global scale"):
        ts.ckks_tensor(context, [1.0])
    with pytest.raises(ValueError, match="scale"):
        context.global_scale = float("nan")


# Contexts and keys.


def test_contexts_travel() -> None:
    private = ts.Context.load(CONTEXT.serialize(save_secret_key=True))
    assert private.is_private()
    assert private.has_galois_keys()
    assert private.global_scale == SCALE
    assert PUBLIC.is_public()
    assert not PUBLIC.has_secret_key()
    tensor = ts.ckks_tensor(PUBLIC, [[1.0, -2.0]])
    assert np.abs(decrypted(ts.CKKSTensor.load(private, tensor.serialize())) - [[1, -2]]).max() < 3e-8
    with pytest.raises(ValueError, match="secret_key"):
        tensor.decrypt()
    dropped = private.copy()
    dropped.make_context_public()
    assert dropped.is_public()
    assert private.is_private()
    keyless = ts.context(ts.SCHEME_TYPE.CKKS, 4096, None, [40, 20, 20], ts.ENCRYPTION_TYPE.SYMMETRIC)
    keyless.global_scale = SCALE
    keyless.make_context_public()
    with pytest.raises(ValueError, match="no key"):
        ts.ckks_tensor(keyless, [1.0])
    lazy = ts.lazy_ckks_tensor_from(tensor.serialize())
    with pytest.raises(ValueError, match="missing context"):
        lazy.decrypt()
    lazy.link_context(private)
    assert np.abs(decrypted(lazy) - [[1, -2]]).max() < 3e-8


def test_contexts_are_copied_whole() -> None:
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=list(np.array([40, 21, 40])))
    context.global_scale = SCALE
    assert context.has_relin_keys()  # made with the context, as in TenSEAL; Galois keys are not
    assert not context.has_galois_keys()
    context.auto_rescale = False
    context.generate_galois_keys()
    tensor = ts.ckks_tensor(context, [1.0])
    for other in (context.copy(), copy.copy(context), copy.deepcopy({"context": context})["context"]):
        assert (other.auto_rescale, other.auto_relin, other.has_galois_keys()) == (False, True, True)
        assert np.abs(np.array(ts.CKKSTensor.load(other, tensor.serialize()).decrypt().tolist()) - 1).max() < 1e-6
        other.make_context_public()
        other.global_scale = 2.0**30
        assert (context.is_private(), context.global_scale) == (True, SCALE)
    assert ts.Context.load(context.serialize()).has_relin_keys()
    assert not ts.Context.load(context.serialize(save_relin_keys=False)).has_relin_keys()


def test_the_secret_key_is_not_where_it_was_not_asked_for() -> None:
    secret = bytes(CONTEXT._secret.to_bytearray())[64:-8]
    assert secret in CONTEXT.serialize(save_secret_key=True)
    assert secret not in CONTEXT.serialize()
    for thing in (CONTEXT, CONTEXT.secret_key(), ts.ckks_tensor(CONTEXT, [1.0])):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(thing)
        assert "0x" in repr(thing) or len(repr(thing)) < 200
    assert copy.copy(CONTEXT).is_private()


def test_other_keys() -> None:
    other = make_context()
    tensor = ts.ckks_tensor(CONTEXT, [[1.0]])
    for made in (tensor, tensor.mm([[2.0]])):
        with pytest.raises(KeyMismatchError):
            ts.CKKSTensor.load(other, made.serialize()).decrypt()
    with pytest.raises(KeyMismatchError):
        (tensor + ts.ckks_tensor(other, [[1.0]])).serialize()
    with pytest.raises(KeyMismatchError):
        (tensor.mm([[1.0]]) + ts.ckks_tensor(other, [[1.0]])).serialize()


def test_ciphertexts_of_the_same_numbers_differ() -> None:
    for context in (CONTEXT, PUBLIC):
        first, second = (ts.ckks_tensor(context, np.zeros(9)).serialize() for _ in range(2))
        same = sum(a == b for a, b in zip(first[300:], second[300:], strict=True)) / len(first[300:])
        assert same < 0.02


# Bytes from outside.


def messages() -> list[tuple[type, bytes]]:
    tensor = ts.ckks_tensor(CONTEXT, np.ones((2, 3)))
    return [
        (ts.CKKSTensor, tensor.serialize()),
        (ts.CKKSTensor, ts.ckks_tensor(PUBLIC, np.ones((2, 3)), batch=True).serialize()),
        (ts.CKKSTensor, tensor.mm(np.ones((3, 2))).serialize()),
        (ts.CKKSVector, ts.ckks_vector(CONTEXT, [1.0]).serialize()),
        (ts.Context, CONTEXT.serialize()),
        (ts.Context, CONTEXT.serialize(save_secret_key=True)),
    ]


def opened(kind: type, data: bytes) -> None:
    if kind is ts.Context:
        ts.Context.load(data)
    else:
        (kind.load(CONTEXT, data) + 1).decrypt()


@pytest.mark.parametrize("which", range(6))
def test_damage_is_a_typed_error(which: int) -> None:
    kind, data = messages()[which]
    opened(kind, data)
    for other in (
        b"",
        b"HESTS",
        data[: len(data) // 2],
        data[:-1],
        data + b"\0",
        data[:5] + b"\2" + data[6:],
        b"\x08\x02" * 50,
    ):
        with pytest.raises(WireError):
            opened(kind, other)
    rng = np.random.default_rng(which)
    for _ in range(150):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), size=rng.integers(1, 4)):
            changed[min(at, 400) if rng.random() < 0.7 else at] = rng.integers(256)
        with contextlib.suppress(HESplitError, NotImplementedError):
            opened(kind, bytes(changed))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [3, 3]), ("shape", [2**26, 2**26]), ("shape", [-2, -3]), ("shape", [True, 6]), ("shape", "6"),
        ("batch", 2), ("batch", 0), ("batch", 1.5), ("scale", -1), ("scale", 1e400), ("scale", None), ("terms", []),
        ("terms", [{"factor": 1.0, "messages": 1, "fresh": [6, 1, 6, 1], "summands": 1}] * 2),
        ("terms", [{"factor": 1.0, "messages": 1, "fresh": [2, 3, 2, 3000], "summands": 1}]),
        ("terms", [{"factor": 1.0, "messages": 1, "fresh": [2, 3, 2, 1], "summands": 1}]),
        ("terms", [{"factor": 1.0, "messages": 1, "fresh": [2, 3, 2], "summands": 1}]),
        ("terms", [{"factor": 1.0, "messages": 1, "fresh": [2, 3, 2, 3], "summands": 10**6}]),
        ("terms", [{"factor": "1", "messages": 1, "fresh": [2, 3, 2, 3], "summands": 1}]),
        ("terms", [{"factor": 1.0, "messages": 1, "product": [2, 3, 2, 3]}]),
        ("terms", [{"factor": 1.0, "messages": 1, "product": [2, 3, 2, 3], "room": 1.0}]),
        ("terms", [{"factor": 1.0, "messages": 10**9, "fresh": [2, 3, 2, 3], "summands": 1}]),
        ("kind", "vector"), ("kind", "context"),
    ],
)  # fmt: skip
def test_headers_that_lie(field: str, value: Any) -> None:
    from hesplit_native.tenseal import wire

    fields, blobs = wire.read(ts.ckks_tensor(CONTEXT, np.ones((2, 3))).serialize(), "tensor")
    with pytest.raises(WireError):
        ts.CKKSTensor.load(CONTEXT, wire.write({**fields._values, field: value}, blobs))


@pytest.mark.parametrize(
    "head",
    [
        {"product": [1024, 64, 1, 1]}, {"product": [1, 65536, 1, 1]}, {"product": [64, 1024, 64, 1]}, {"room": -1.0}, {"room": None},
    ],
)  # fmt: skip
def test_products_in_an_order_that_their_messages_cannot_have(head: dict[str, Any]) -> None:
    """A step for each of millions of products that are not there would keep the receiver busy."""
    from hesplit_native.tenseal import wire

    data = ts.ckks_tensor(CONTEXT, np.ones((1024, 2))).mm(np.ones((2, 64))).serialize()
    fields, blobs = wire.read(data, "tensor")
    (term,) = fields._values["terms"]
    with pytest.raises(WireError):
        ts.CKKSTensor.load(CONTEXT, wire.write({**fields._values, "terms": [{**term, **head}]}, blobs))


def test_messages_of_another_kind() -> None:
    tensor = ts.ckks_tensor(CONTEXT, [1.0]).serialize()
    with pytest.raises(WireError, match="vector"):
        ts.CKKSVector.load(CONTEXT, tensor)
    with pytest.raises(WireError):
        ts.Context.load(tensor)
    with pytest.raises(TypeError):
        ts.CKKSTensor.load(CONTEXT, bytearray(tensor))
    with pytest.raises(TypeError):
        ts.CKKSTensor.load(tensor, CONTEXT)


def test_ciphertexts_are_read_once_they_are_needed_but_those_from_outside_at_once() -> None:
    for context in (CONTEXT, PUBLIC):
        tensor = ts.ckks_tensor(context, np.ones((2, 3))) * 2 + 1
        data = tensor.serialize()
        (term,) = tensor._sum.terms
        assert "polynomials" not in vars(term.source)
        damaged = bytearray(data)
        damaged[-100] ^= 1
        with pytest.raises(WireError):
            ts.CKKSTensor.load(CONTEXT, bytes(damaged))
        (term,) = ts.CKKSTensor.load(CONTEXT, data)._sum.terms
        assert "polynomials" in vars(term.source)


def test_threads_may_compute_with_one_tensor() -> None:
    x, w = np.ones((40, 300)), np.ones((300, 20))
    tensor = ts.ckks_tensor(CONTEXT, x)
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda factor: decrypted(sent(tensor.mm(w * factor))) / factor, range(1, 9))
        for result in results:
            assert np.abs(result - 300).max() < 1e-5


# The layout and the public key beneath.


@few
@given(st.integers(1, 3000), st.integers(1, 9000))
def test_layouts_hold_every_number(rows: int, columns: int) -> None:
    if rows * columns > 1 << 20:
        columns = max(1, (1 << 20) // rows)
    layout = Layout.choose(4096, rows, columns)
    assert layout.block <= layout.degree
    values = np.arange(rows * columns).reshape(rows, columns)
    assert np.array_equal(layout.read(layout.place(values).astype(float)), values)


def test_public_keys_and_what_they_encrypt() -> None:
    secret = _core.SecretKey.generate(sources.PARAMETERS._native)
    first, second = secret.public_key(), secret.public_key()
    assert first.to_bytes() != second.to_bytes()
    assert first.id == second.id == secret.id
    read = _core.PublicKey.from_bytes(first.to_bytes())
    zeros = np.zeros((3, 4096), np.int64)
    for key in (first, second, read):
        found = _core.EncryptedPolynomials(
            sources.ring(), _core.encrypt_polynomials(sources.ring(), key, zeros)
        ).decrypt(secret)
        # e*u + e0 + e1*s: variance 10.5 * (1 + 2 * 2N/3), and what decryption rounds, below 2^6.
        assert 200 < found.std() < 290
        assert np.abs(found).max() < 8 * 250
    fresh = _core.EncryptedPolynomials(
        sources.ring(), _core.encrypt_polynomials(sources.ring(), secret, zeros)
    ).decrypt(secret)
    assert fresh.std() < 30
    damaged = bytearray(first.to_bytes())
    damaged[200] ^= 1
    with pytest.raises(WireError):
        _core.PublicKey.from_bytes(bytes(damaged))
    with pytest.raises(WireError):
        _core.PublicKey.from_bytes(bytes(secret.to_bytearray()))
    other = hn.SecretKey.generate(hn.Parameters.recommend(in_features=4, out_features=2, batch_size=1))._native
    with pytest.raises(KeyMismatchError):
        _core.encrypt_polynomials(sources.ring(), other, zeros)
    with pytest.raises(KeyMismatchError):
        _core.encrypt_polynomials(sources.ring(), other.public_key(), zeros)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(threads: int) -> None:
    before = _core.num_threads()
    _core.set_num_threads(threads)
    try:
        x, w = np.ones((40, 300)), np.ones((300, 20))
        assert np.abs(decrypted(sent(ts.ckks_tensor(CONTEXT, x).mm(w))) - 300).max() < 1e-5
    finally:
        _core.set_num_threads(before)
