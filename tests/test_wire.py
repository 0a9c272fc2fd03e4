"""What damaged, foreign and hostile bytes meet: a typed error, never a crash, never partial state."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _testing

HEADER, FOOTER = 64, 8
REFUSED = (hn.WireError, hn.KeyMismatchError)


class Conversation:
    def __init__(self, packing):
        self.params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4, packing=packing)
        self.key = hn.SecretKey.generate(self.params)
        self.client = hn.LinearClient(self.key, 20, 3)
        self.material = self.client.public_material()
        rng = np.random.default_rng(0)
        self.x, self.w = rng.normal(size=(4, 20)), rng.normal(size=(3, 20))
        self.server = hn.LinearServer(self.material, self.w)
        self.request = self.client.encrypt(self.x)
        self.reply = self.server.forward(self.request)

    def receivers(self):
        return {
            "material": (self.material, lambda data: hn.LinearServer(data, self.w)),
            "request": (self.request, self.server.forward),
            "reply": (self.reply, self.client.decrypt),
        }

    def assert_alive(self):
        y = self.client.decrypt(self.server.forward(self.client.encrypt(self.x)))
        np.testing.assert_allclose(y, self.x @ self.w.T, atol=self.params.error_bound)


@pytest.fixture(scope="module", params=["blocks", "merged", "slots"])
def conversation(request):
    return Conversation(request.param)


def resealed(data, at, patch):
    """The message with other bytes at a place and a right checksum, so that the checks behind it are reached."""
    changed = bytearray(data)
    changed[at : at + len(patch)] = patch
    return _testing.reseal(bytes(changed))


KINDS = ["material", "request", "reply"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(conversation, kind):
    data, receive = conversation.receivers()[kind]
    for size in [0, 1, 7, 63, 64, 71, 72, 100, len(data) // 2, len(data) - 1]:
        with pytest.raises(hn.WireError):
            receive(data[:size])
    conversation.assert_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_with_right_length_and_checksum(conversation, kind):
    data, receive = conversation.receivers()[kind]
    for size in [72, 80, 100, len(data) // 2, len(data) - 1]:
        cut = bytearray(data[:size])
        cut[8:16] = struct.pack("<Q", size)
        with pytest.raises(hn.WireError):
            receive(_testing.reseal(bytes(cut)))


@pytest.mark.parametrize("kind", KINDS)
def test_extended(conversation, kind):
    data, receive = conversation.receivers()[kind]
    with pytest.raises(hn.WireError, match="announces"):
        receive(data + b"\0")
    longer = bytearray(data[:-FOOTER] + b"\0" * 9 + data[-FOOTER:])
    longer[8:16] = struct.pack("<Q", len(longer))
    with pytest.raises(hn.WireError, match="payload"):
        receive(_testing.reseal(bytes(longer)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_noticed(conversation, kind):
    data, receive = conversation.receivers()[kind]

    @settings(max_examples=60)
    @given(bit=st.integers(0, 8 * len(data) - 1))
    def check(bit):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(REFUSED):
            receive(bytes(flipped))

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_with_a_right_checksum_never_crash(conversation, kind):
    data, receive = conversation.receivers()[kind]

    @settings(max_examples=60)
    @given(
        at=st.integers(HEADER, min(len(data) - FOOTER - 1, HEADER + 120)),
        patch=st.binary(min_size=1, max_size=16),
    )
    def check(at, patch):
        # Payload damage that happens to be well-formed decrypts to noise; everything else is refused.
        with contextlib.suppress(hn.HESplitError):
            receive(resealed(data, at, patch[: len(data) - FOOTER - at]))

    check()
    conversation.request = conversation.client.encrypt(conversation.x)
    conversation.reply = conversation.server.forward(conversation.request)
    conversation.assert_alive()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("at", "patch", "message"), [
    (0, b"PICK", "other bytes"),
    (4, b"\x09", "version 9 is not supported"),
    (5, b"\x63", "got a message of unknown type"),
    (6, b"\x01", "announces"),
])  # fmt: skip
def test_wrong_header(conversation, kind, at, patch, message):
    data, receive = conversation.receivers()[kind]
    with pytest.raises(hn.WireError, match=message):
        receive(resealed(data, at, patch))


@pytest.mark.parametrize("kind", ["request", "reply"])
def test_other_parameters_and_other_keys(conversation, kind):
    data, receive = conversation.receivers()[kind]
    with pytest.raises(hn.KeyMismatchError, match="other parameters"):
        receive(resealed(data, 16, b"\xff" * 16))
    with pytest.raises(hn.KeyMismatchError, match="another key"):
        receive(resealed(data, 32, b"\xff" * 16))


def test_messages_of_another_type(conversation):
    with pytest.raises(hn.WireError, match="expected a request, got a reply"):
        conversation.server.forward(conversation.reply)
    with pytest.raises(hn.WireError, match="expected a reply, got a request"):
        conversation.client.decrypt(conversation.request)
    with pytest.raises(hn.WireError, match="expected a public material"):
        hn.LinearServer(conversation.request, conversation.w)


def test_reply_for_another_client(conversation):
    other = hn.LinearClient(hn.SecretKey.generate(conversation.params), 20, 3)
    with pytest.raises(hn.KeyMismatchError):
        other.decrypt(conversation.reply)
    with pytest.raises(hn.KeyMismatchError):
        conversation.server.forward(other.encrypt(conversation.x))


def test_reply_is_taken_once(conversation):
    reply = conversation.server.forward(conversation.client.encrypt(conversation.x))
    conversation.client.decrypt(reply)
    with pytest.raises(hn.KeyMismatchError, match="answered already"):
        conversation.client.decrypt(reply)


@pytest.mark.parametrize("size", [0, 65537, 2**31, 2**32 - 1])
def test_absurd_number_of_samples(conversation, size):
    with pytest.raises(hn.WireError):
        conversation.server.forward(resealed(conversation.request, HEADER, struct.pack("<I", size)))


@pytest.mark.parametrize("rows", [0, 3, 2**20, 2**32 - 1])
@pytest.mark.parametrize("width", [1, 2**20, 2**32 - 1])
def test_absurd_layouts(conversation, rows, width):
    with pytest.raises(hn.WireError):
        conversation.server.forward(resealed(conversation.request, HEADER + 4, struct.pack("<II", rows, width)))


def test_size_limit_of_the_server(conversation):
    server = hn.LinearServer(conversation.material, conversation.w, max_batch=3)
    with pytest.raises(hn.WireError, match="takes 1 to 3"):
        server.forward(conversation.request)


def test_residue_at_or_above_the_modulus(conversation):
    # All ones is above every prime, which lies below the power of two.
    first = HEADER + 12 + 32 + 32
    with pytest.raises(hn.WireError, match="not below its modulus"):
        conversation.server.forward(resealed(conversation.request, first, b"\xff" * 16))


@pytest.mark.parametrize("bits", [0, 63, 64, 255])
def test_reply_with_an_impossible_number_of_bits(conversation, bits):
    reply = conversation.server.forward(conversation.client.encrypt(conversation.x))
    with pytest.raises(hn.WireError):
        conversation.client.decrypt(resealed(reply, HEADER + 12, bytes([bits])))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 0.0, 1e-300, 1.0])
def test_reply_with_an_impossible_or_coarse_scale(conversation, scale):
    reply = conversation.server.forward(conversation.client.encrypt(conversation.x))
    with pytest.raises(hn.WireError, match=r"impossible|coarse"):
        conversation.client.decrypt(resealed(reply, HEADER + 13, struct.pack("<d", scale)))


def test_parameters_from_a_peer_are_checked_like_our_own():
    params = hn.Parameters(
        ring_degree=2048, modulus_bits=[18, 18, 18], scale=2.0**16, packing="slots", security="paper"
    )
    data = bytearray(params.to_bytes())
    data[2] = 1  # claims standard security
    with pytest.raises(hn.WireError, match="54 bits"):
        hn.Parameters.from_bytes(bytes(data))
    for damaged in (b"", bytes(data[:-1]), bytes(data) + b"\0", b"\xff" * len(data)):
        with pytest.raises(hn.WireError):
            hn.Parameters.from_bytes(damaged)
    assert hn.Parameters.from_bytes(params.to_bytes()) == params


@given(
    bits=st.integers(1, 62),
    values=st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=200),
)
def test_packed_runs_round_trip(bits, values):
    array = np.array([v % 2**bits for v in values], dtype=np.uint64)
    packed = _testing.pack_bits(array, bits)
    assert len(packed) == (len(values) * bits + 7) // 8
    np.testing.assert_array_equal(_testing.unpack_bits(packed, len(values), bits, 2**bits), array)
    limit = int(array.max())
    if limit > 0:
        with pytest.raises(hn.WireError, match="modulus"):
            _testing.unpack_bits(packed, len(values), bits, limit)
    spare = 8 * len(packed) - len(values) * bits
    if spare:
        dirty = packed[:-1] + bytes([packed[-1] | 1 << 7])
        with pytest.raises(hn.WireError, match="zero bits"):
            _testing.unpack_bits(dirty, len(values), bits, 2**bits)
