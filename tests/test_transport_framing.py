"""Long messages in pieces: they arrive whole or not at all."""

from __future__ import annotations

import pytest

from hesplit_native.errors import WireError
from hesplit_native.transport.channel import SHORT_MESSAGE
from hesplit_native.transport.framing import MAX_PIECE, messages, pieces


def nothing(beginning, length):
    pass


@pytest.mark.parametrize("size", [0, 1, SHORT_MESSAGE, SHORT_MESSAGE + 1, 3 * SHORT_MESSAGE, 3 * SHORT_MESSAGE + 7])
@pytest.mark.parametrize("first", [b"", b"HESC"])
def test_messages_arrive_whole(size, first):
    message = (first + bytes(size))[: max(size, len(first))]
    sent = [*pieces(message), *pieces(b"next")]
    assert max(map(len, sent)) <= MAX_PIECE
    assert list(messages(sent, nothing)) == [message, b"next"]


def test_short_messages_travel_as_they_are():
    assert list(pieces(b"HESL and more")) == [b"HESL and more"]


def test_admission_is_asked_before_more_is_read():
    asked = []

    def source():
        yield next(iter(pieces(bytes(5 * SHORT_MESSAGE))))
        raise AssertionError("read on")

    def admit(beginning, length):
        asked.append((len(beginning), length))
        raise WireError("no")

    with pytest.raises(WireError, match="no"):
        list(messages(source(), admit))
    assert asked == [(SHORT_MESSAGE, 5 * SHORT_MESSAGE)]


def test_of_a_message_that_is_not_wanted_only_the_beginning_is_kept():
    long, other = bytes(3 * SHORT_MESSAGE), bytes(2 * SHORT_MESSAGE)
    sent = [*pieces(long), *pieces(b"short"), *pieces(other)]
    unwanted = iter([True, True, False])
    assert [len(m) for m in messages(sent, lambda beginning, length: next(unwanted))] == [
        SHORT_MESSAGE, 5, 2 * SHORT_MESSAGE,
    ]  # fmt: skip
    parts = list(pieces(long))
    with pytest.raises(WireError):
        list(messages([parts[0], parts[2]], lambda beginning, length: True))


def test_pieces_that_do_not_follow_are_refused():
    parts = list(pieces(bytes(3 * SHORT_MESSAGE)))
    other = list(pieces(bytes(4 * SHORT_MESSAGE)))
    for wrong in (parts[1:], [parts[0], parts[2]], [parts[0], parts[0]], [parts[0], other[1]], [parts[0], b"HESL"],
                  [parts[0][:10]], [parts[0][:-1]], [parts[0] + b"x"]):  # fmt: skip
        with pytest.raises(WireError):
            list(messages(wrong, nothing))
    assert list(messages(parts[:2], nothing)) == []  # the peer has gone
