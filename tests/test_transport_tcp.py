from __future__ import annotations

import socket
import threading

import pytest

from hesplit_native.errors import ParameterError, ProtocolError, WireError
from hesplit_native.transport import TcpChannel, accept, connect, listen
from hesplit_native.transport.tcp import parse_address


@pytest.fixture
def pair():
    """A raw peer and the client's channel to it."""
    with listen("127.0.0.1", 0) as listener:
        raw = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
    with raw, TcpChannel(connection, server_side=False, timeout=0.3, max_frame=1000) as channel:
        yield raw, channel


def test_messages_cross_and_both_ends_count_the_same():
    with listen("127.0.0.1", 0) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with connect(address) as client, accept(listener) as server:
            client.send(b"up" * 50)
            assert server.receive() == b"up" * 50
            for message in (b"", b"d" * 7):
                server.send(message)
                assert client.receive() == message
            assert client.bytes_up == server.bytes_up == 4 + 100
            assert client.bytes_down == server.bytes_down == 4 + 4 + 7


def test_a_large_message_arrives_whole():
    message = bytes(range(256)) * 40_000
    with listen("127.0.0.1", 0) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with connect(address) as client, accept(listener) as server:
            sender = threading.Thread(target=client.send, args=(message,))
            sender.start()
            assert server.receive() == message
            sender.join()


def test_small_messages_are_not_held_back(pair):
    _, channel = pair
    assert channel._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_oversized_frame_is_refused_before_it_arrives(pair):
    raw, channel = pair
    raw.sendall((2**32 - 1).to_bytes(4, "little"))
    with pytest.raises(WireError, match=r"4294967295 bytes; the limit is 1000"):
        channel.receive()


def test_oversized_message_is_not_sent(pair):
    raw, channel = pair
    with pytest.raises(WireError, match="1001 bytes exceeds the limit of 1000"):
        channel.send(bytes(1001))
    raw.setblocking(False)
    with pytest.raises(BlockingIOError):
        raw.recv(1)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "between two messages"),
        (b"\x05\x00", "between two messages"),
        (b"\x05\x00\x00\x00abc", "in the middle of a message"),
    ],
)
def test_peer_gone(pair, data, where):
    raw, channel = pair
    raw.sendall(data)
    raw.close()
    with pytest.raises(ProtocolError, match=f"server closed the connection {where}"):
        channel.receive()


def test_peer_that_resets_the_connection(pair):
    raw, channel = pair
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    raw.close()
    with pytest.raises(ProtocolError, match="connection to the server was lost"):
        channel.receive()
    with pytest.raises(ProtocolError, match="was lost"):
        channel.send(b"x")


def test_silent_peer_times_out(pair):
    raw, channel = pair
    raw.sendall(b"\x05\x00\x00\x00ab")
    with pytest.raises(ProtocolError, match=r"sent nothing for 0\.3 seconds"):
        channel.receive()


def test_nobody_listens():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ProtocolError, match=f"cannot connect to 127.0.0.1:{port}.*start the server"):
        connect(f"127.0.0.1:{port}")


def test_port_in_use():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ProtocolError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("localhost:7000", ("localhost", 7000)), ("[::1]:80", ("::1", 80)), ("10.0.0.1:0", ("10.0.0.1", 0))],
)
def test_addresses(address, expected):
    assert parse_address(address) == expected


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:65536", "host:-1", "host:8x", "host:٣"])
def test_bad_addresses(address):
    with pytest.raises(ParameterError, match="host:port"):
        parse_address(address)
