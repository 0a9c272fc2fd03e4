from __future__ import annotations

import pytest

from hesplit_native.errors import ProtocolError
from hesplit_native.transport import InProcessChannel


def echo(replies):
    request = yield b""
    for _ in range(replies):
        request = yield request[::-1]


def test_replies_arrive_and_are_counted_with_their_prefixes():
    channel = InProcessChannel(echo(2))
    for message in (b"abc", b""):
        channel.send(message)
        assert channel.receive() == message[::-1]
    assert (channel.bytes_up, channel.bytes_down) == (5 + 3 + 5, 5 + 3 + 5)


def test_receiving_without_a_request_is_an_error():
    with pytest.raises(ProtocolError, match="only answers requests"):
        InProcessChannel(echo(1)).receive()


def test_sending_twice_is_an_error():
    channel = InProcessChannel(echo(1))
    channel.send(b"a")
    with pytest.raises(ProtocolError, match="before the reply"):
        channel.send(b"b")


def test_a_server_that_has_ended_is_an_error():
    channel = InProcessChannel(echo(1))
    channel.send(b"a")
    channel.receive()
    with pytest.raises(ProtocolError, match="has ended"):
        channel.send(b"b")


def test_close_ends_the_servers_side():
    ended = []

    def conversation():
        try:
            yield b""
            yield b""
        finally:
            ended.append(True)

    channel = InProcessChannel(conversation())
    channel.close()
    channel.close()
    assert ended == [True]
