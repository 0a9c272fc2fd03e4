"""Messages: what is sent arrives; whatever else arrives is a WireError."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hesplit_native.errors import HESplitError, RangeError, WireError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType

NONCE = bytes(range(16))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=finite)


def read(data, shape):
    """A whole message that is one matrix."""
    message = messages.unpack(data)
    if message.type is not MessageType.LOGITS:
        raise WireError("another type")
    rows = range(shape[0], shape[0] + 1)
    values, rest = messages.take_matrix(message.body, "logits", rows=rows, columns=shape[1])
    messages.take_nothing(rest, "logits")
    return message.step, values


@given(matrices, st.integers(0, 2**64 - 1))
def test_matrix_round_trip(values, step):
    received_step, received = read(
        messages.pack(MessageType.LOGITS, step, NONCE, messages.matrix(values, "logits")), values.shape
    )
    assert received_step == step
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, values)


@given(matrices, matrices)
def test_parts_follow_one_another(first, second):
    body = memoryview(messages.matrix(first, "a") + messages.matrix(second, "b") + b"blob")
    for expected in (first, second):
        rows, columns = expected.shape
        values, body = messages.take_matrix(body, "m", rows=range(1, rows + 1), columns=columns)
        np.testing.assert_array_equal(values, expected)
    assert bytes(body) == b"blob"


def test_non_contiguous_matrices_are_sent_in_row_order():
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert not values.flags.c_contiguous
    np.testing.assert_array_equal(
        read(messages.pack(MessageType.LOGITS, 0, NONCE, messages.matrix(values, "m")), (4, 3))[1], values
    )


@given(st.text(max_size=200))
def test_text_round_trip(value):
    received, rest = messages.take_text(memoryview(messages.text(value) + b"rest"), "text")
    assert (received, bytes(rest)) == (value, b"rest")


@given(matrices, st.data())
def test_truncated(values, data):
    whole = messages.pack(MessageType.LOGITS, 3, NONCE, messages.matrix(values, "logits"))
    with pytest.raises(WireError):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))], values.shape)


@given(matrices, st.binary(min_size=1, max_size=40))
def test_extended(values, extra):
    whole = messages.pack(MessageType.LOGITS, 3, NONCE, messages.matrix(values, "logits"))
    with pytest.raises(WireError, match="too many"):
        read(whole + extra, values.shape)


@given(matrices, st.data())
def test_bit_flip_in_a_header_never_passes_unseen(values, data):
    whole = bytearray(messages.pack(MessageType.LOGITS, 3, NONCE, messages.matrix(values, "logits")))
    bit = data.draw(st.integers(0, 8 * 44 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    if 8 <= bit // 8 < 32:  # step and session, which are compared by those who know them
        flipped = messages.unpack(bytes(whole))
        assert (flipped.step, flipped.session) != (3, NONCE)
    else:
        with pytest.raises(WireError):
            read(bytes(whole), values.shape)


@given(st.binary(max_size=300), st.sampled_from(MessageType))
def test_arbitrary_bytes_never_do_worse_than_an_error_of_ours(data, kind):
    for attempt in (
        lambda: messages.unpack(data),
        lambda: read(data, (2, 2)),
        lambda: read(messages.pack(MessageType.LOGITS, 0, NONCE, data), (2, 2)),
        lambda: messages.take_text(memoryview(data), "text"),
        lambda: messages.take_json(memoryview(data), "json"),
        lambda: messages.take_json(memoryview(messages.text(data.decode("latin-1"))), "json"),
    ):
        with contextlib.suppress(HESplitError):
            attempt()


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (struct.pack("<4sHHQ16s", b"HESX", 2, 4, 0, NONCE), "magic"),
        (struct.pack("<4sHHQ16s", b"HESL", 1, 4, 0, NONCE), "speaks version 1 of the messages, this side version 2"),
        (struct.pack("<4sHHQ16s", b"HESL", 2, 0, 0, NONCE), "unknown message type 0"),
        (struct.pack("<4sHHQ16s", b"HESL", 2, 999, 0, NONCE), "unknown message type 999"),
        (b"", "0 bytes is shorter than its header"),
    ],
)
def test_wrong_headers(header, match):
    with pytest.raises(WireError, match=match):
        messages.unpack(header)


@pytest.mark.parametrize("shape", [(0, 5), (5, 5), (4, 4), (2**32 - 1, 2**32 - 1), (2**31, 5), (0, 0)])
def test_absurd_shapes(shape):
    part = struct.pack("<BBHII", 1, 2, 0, *shape) + bytes(80)
    with pytest.raises(WireError, match=rf"expected \[1 to 4, 5\], got \[{shape[0]}, {shape[1]}\]"):
        messages.take_matrix(memoryview(part), "gradient", rows=range(1, 5), columns=5)


@pytest.mark.parametrize("codes", [(0, 2, 0), (2, 2, 0), (1, 1, 0), (1, 3, 0), (1, 2, 1)])
def test_other_dtypes_and_dimensions(codes):
    part = struct.pack("<BBHII", *codes, 1, 1) + bytes(4)
    with pytest.raises(WireError, match="float32 matrix"):
        messages.take_matrix(memoryview(part), "gradient", rows=range(1, 5), columns=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_neither_leave_nor_enter(bad):
    values = np.array([[1.0, bad]], np.float32)
    with pytest.raises(RangeError, match="logits: contains NaN or Inf"):
        messages.matrix(values, "logits")
    part = struct.pack("<BBHII", 1, 2, 0, 1, 2) + values.tobytes()
    with pytest.raises(RangeError, match="NaN"):
        messages.take_matrix(memoryview(part), "logits", rows=range(1, 2), columns=2)


@pytest.mark.parametrize("content", ["", "[1]", "1", "nonsense", "[" * 60_000, '{"a": ' + "9" * 9999 + "}"])
def test_text_that_is_no_json_object(content):
    with pytest.raises(WireError, match="handshake"):
        messages.take_json(memoryview(messages.text(content)), "handshake")


def test_texts_are_limited():
    with pytest.raises(WireError, match="too long"):
        messages.take_text(memoryview(messages.text("x" * 70_000)), "text")
    with pytest.raises(WireError, match="UTF-8"):
        messages.take_text(memoryview(struct.pack("<I", 1) + b"\xff"), "text")
    assert messages.take_json(memoryview(messages.text(json.dumps({"a": 1}))), "json")[0] == {"a": 1}
