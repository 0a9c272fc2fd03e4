from __future__ import annotations

import dataclasses
import socket
import threading
import time

import pytest
import torch

from hesplit_native.errors import ConnectionLost, DataError, HESplitError, ParameterError, ProtocolError, WireError
from hesplit_native.transport import (
    ClientTls,
    GrpcServer,
    Limits,
    ServerTls,
    connect,
    make_authority,
    make_client,
    make_server,
)
from hesplit_native.transport.grpc import parse_address


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A CA with a server and two clients, and another CA with a client of the same name."""
    ours, theirs = tmp_path_factory.mktemp("ca"), tmp_path_factory.mktemp("other")
    for folder in (ours, theirs):
        make_authority(folder)
        make_server(folder, ["localhost", "127.0.0.1"])
        make_client(folder, "alice")
    make_client(ours, "bob")
    return ours, theirs


class Echo:
    """Conversations that answer with who asks and what; they record how they end."""

    def __init__(self):
        self.closed = []
        self.events = []

    def open(self, client):
        try:
            message = yield b""
            while True:
                if message == b"fail":
                    raise RuntimeError("planned")
                if message == b"end":
                    return
                message = yield client.id.encode() + b":" + message
        finally:
            self.closed.append(client)

    def serve(self, **options):
        return GrpcServer("127.0.0.1:0", self.open, on_event=self.events.append, **options)


@pytest.fixture
def echo():
    return Echo()


def ask(channel, message=b"hello"):
    channel.send(message)
    return channel.receive()


def eventually(condition):
    for _ in range(400):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_messages_arrive_whole_in_order_and_are_counted(echo):
    with echo.serve() as server:
        channel = connect(f"127.0.0.1:{server.port}", client_id="alice")
        for size in (0, 1, 1000, 3_000_000, (1 << 20) + 24):
            assert ask(channel, b"x" * size) == b"alice:" + b"x" * size
        total = 3_001_001 + (1 << 20) + 24
        assert (channel.bytes_up, channel.bytes_down) == (total + 5 * 5, total + 5 * (5 + 6))
        channel.close()
        channel.close()
        assert eventually(lambda: len(echo.closed) == 1)
        with pytest.raises(ConnectionLost):
            channel.send(b"more")


def test_the_conversation_ends_the_connection(echo):
    with echo.serve() as server:
        channel = connect(f"127.0.0.1:{server.port}")
        channel.send(b"end")
        with pytest.raises(ConnectionLost, match="ended the connection"):
            channel.receive()
        channel.close()


def test_the_id_is_that_of_the_certificate(echo, tls):
    with echo.serve(tls=ServerTls.load(tls[0])) as server:
        address = f"localhost:{server.port}"
        bob = connect(address, tls=ClientTls.load(tls[0], "bob"), client_id="alice")
        assert ask(bob) == b"bob:hello"
        bob.close()
    assert echo.closed[0].authenticated
    with echo.serve() as server:
        channel = connect(f"localhost:{server.port}", client_id="carol")
        assert ask(channel) == b"carol:hello"
        channel.close()
        assert eventually(lambda: len(echo.closed) == 2)
    assert not echo.closed[1].authenticated


def test_unknown_certificates_are_refused_and_others_still_served(echo, tls, capfd):
    ours, theirs = tls
    with echo.serve(tls=ServerTls.load(ours)) as server:
        address = f"127.0.0.1:{server.port}"
        alice = connect(address, tls=ClientTls.load(ours, "alice"))
        assert ask(alice) == b"alice:hello"
        # A client of another CA that trusts this server: the server refuses it.
        stranger = dataclasses.replace(
            ClientTls.load(theirs, "alice"), authority=ClientTls.load(ours, "alice").authority
        )
        with pytest.raises(ConnectionLost, match="certificate"):
            ask(connect(address, tls=stranger))
        # A client that does not trust this server.
        with pytest.raises(ConnectionLost, match=r"certificate is not of this CA"):
            connect(address, tls=ClientTls.load(theirs, "alice"))
        # No TLS at all.
        with pytest.raises(ConnectionLost, match="may want TLS"):
            connect(address)
        assert ask(alice, b"still here") == b"alice:still here"
        alice.close()
    # The server's own log: gRPC writes why a handshake failed.
    assert "CERTIFICATE_VERIFY_FAILED" in capfd.readouterr().err


def test_a_certificate_for_another_host_is_refused(echo, tmp_path):
    make_authority(tmp_path)
    make_server(tmp_path, ["elsewhere.example"])
    make_client(tmp_path, "alice")
    with (
        echo.serve(tls=ServerTls.load(tmp_path)) as server,
        pytest.raises(ConnectionLost, match="for another name"),
    ):
        connect(f"127.0.0.1:{server.port}", tls=ClientTls.load(tmp_path, "alice"))


def test_several_clients_at_once(echo):
    with echo.serve() as server:
        answers = {}

        def work(name):
            channel = connect(f"127.0.0.1:{server.port}", client_id=name)
            answers[name] = [ask(channel, str(i).encode()) for i in range(50)]
            channel.close()

        threads = [threading.Thread(target=work, args=(f"c{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert answers == {f"c{i}": [f"c{i}:{k}".encode() for k in range(50)] for i in range(6)}


def test_conversations_compute_with_the_threads_of_whoever_makes_the_server():
    def count(client):
        yield b""
        yield str(torch.get_num_threads()).encode()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 2)
        server = GrpcServer("127.0.0.1:0", count)
        torch.set_num_threads(before)
        with server:
            channel = connect(f"127.0.0.1:{server.port}")
            assert ask(channel) == str(before + 2).encode()
            channel.close()
    finally:
        torch.set_num_threads(before)


def test_a_failing_conversation_does_not_disturb_the_others(echo):
    with echo.serve() as server:
        address = f"127.0.0.1:{server.port}"
        good, bad = connect(address, client_id="good"), connect(address, client_id="bad")
        ask(good)
        bad.send(b"fail")
        with pytest.raises(ProtocolError, match="internal error at the server") as raised:
            bad.receive()
        assert "planned" not in str(raised.value)
        assert any("planned" in event and event.startswith("bad") for event in echo.events)
        assert ask(good) == b"good:hello"
        good.close()
        bad.close()


def test_oversized_messages_are_refused_at_both_ends(echo):
    with echo.serve(limits=Limits(max_message=10_000)) as server:
        address = f"127.0.0.1:{server.port}"
        small = connect(address, max_message=1000)
        with pytest.raises(WireError, match="1001 bytes exceeds the limit of 1000"):
            small.send(bytes(1001))
        large = connect(address)
        ask(large)  # gRPC may end a call with an oversized first message before the server hears of it
        large.send(bytes(20_000))
        with pytest.raises(HESplitError, match=r"size limit|larger than max"):
            large.receive()
        assert eventually(lambda: any("size limit" in event for event in echo.events))
        assert ask(small) == b"client:hello"
        small.close()
        large.close()


def test_limits_on_connections(echo):
    with echo.serve(limits=Limits(max_clients=2)) as server:
        address = f"127.0.0.1:{server.port}"
        channels = [connect(address, client_id=f"c{i}") for i in range(3)]
        for channel in channels[:2]:
            ask(channel)
        with pytest.raises(ProtocolError, match="as many connections as it takes"):
            ask(channels[2])
        channels[0].close()
        assert eventually(lambda: len(echo.closed) == 1)
        again = connect(address, client_id="c3")
        assert ask(again) == b"c3:hello"
        for channel in (*channels, again):
            channel.close()


def test_limits_on_one_client(echo):
    with echo.serve(limits=Limits(max_connections_per_client=1)) as server:
        address = f"127.0.0.1:{server.port}"
        first = connect(address, client_id="a")
        ask(first)  # connections count from the moment at which the server hears of them
        second = connect(address, client_id="a")
        with pytest.raises(ProtocolError, match="as many connections"):
            ask(second)
        first.close()
        second.close()


def test_fast_clients_are_slowed_down(echo):
    with echo.serve(limits=Limits(messages_per_second=20)) as server:
        channel = connect(f"127.0.0.1:{server.port}")
        start = time.monotonic()
        for _ in range(5 * 20 + 10):  # five seconds' worth at once, and ten more
            ask(channel)
        assert time.monotonic() - start > 0.3
        channel.close()


def test_idle_clients_are_disconnected(echo):
    with echo.serve(limits=Limits(idle_seconds=0.3)) as server:
        channel = connect(f"127.0.0.1:{server.port}", client_id="sleepy")
        ask(channel)
        assert eventually(lambda: len(echo.closed) == 1)
        with pytest.raises(ConnectionLost):
            ask(channel)
        assert any("sleepy" in event and "nothing for 0.3 seconds" in event for event in echo.events)
        channel.close()


def test_a_server_that_stops_answering(echo):
    def silent(client):
        yield b""
        time.sleep(3)
        yield b"late"

    with GrpcServer("127.0.0.1:0", silent) as server:
        channel = connect(f"127.0.0.1:{server.port}", timeout=0.4)
        channel.send(b"hello")
        with pytest.raises(ConnectionLost, match=r"nothing for 0\.4 seconds"):
            channel.receive()
        channel.close()


def test_a_server_that_goes_away(echo):
    server = echo.serve()
    server.start()
    channel = connect(f"127.0.0.1:{server.port}")
    ask(channel)
    server.stop()
    with pytest.raises(ConnectionLost):
        ask(channel)
    channel.close()
    with pytest.raises(ConnectionLost, match="start the server there first"):
        connect(f"127.0.0.1:{server.port}")


def test_a_taken_port_is_an_error(echo):
    with echo.serve() as server, pytest.raises(ProtocolError, match="cannot listen"):
        GrpcServer(f"127.0.0.1:{server.port}", echo.open)


def test_bytes_that_are_no_grpc_do_no_harm(echo):
    with echo.serve() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100))
        channel = connect(f"127.0.0.1:{server.port}")
        assert ask(channel) == b"client:hello"
        channel.close()


@pytest.mark.parametrize("host", ["198.51.100.1", "example.com", "0.0.0.0"])
def test_other_machines_need_tls(echo, host):
    with pytest.raises(ParameterError, match="--insecure"):
        connect(f"{host}:7000")
    with pytest.raises(ParameterError, match="--insecure"):
        GrpcServer(f"{host}:0", echo.open)


@pytest.mark.parametrize("address", ["", "host", "host:", ":7000", "host:x", "host:70000", "host:٣"])
def test_addresses(address):
    with pytest.raises(ParameterError, match="host:port"):
        parse_address(address)
    assert parse_address("[::1]:7000") == ("::1", 7000)


# Certificates


def test_private_keys_are_their_owners_and_never_shown(tls):
    for path in tls[0].glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    loaded = ClientTls.load(tls[0], "alice")
    assert "PRIVATE KEY" in loaded.private_key.decode()
    assert "PRIVATE" not in repr(loaded)
    assert "PRIVATE" not in repr(ServerTls.load(tls[0]))


def test_nothing_is_replaced_unasked(tmp_path):
    make_authority(tmp_path)
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(ParameterError, match="exists already"):
        make_authority(tmp_path)
    assert (tmp_path / "ca.key").read_bytes() == before
    make_authority(tmp_path, overwrite=True)
    assert (tmp_path / "ca.key").read_bytes() != before


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 65, "-a", "ä"])
def test_client_ids(tls, name):
    with pytest.raises(ParameterError, match="client id"):
        make_client(tls[0], name)
    with pytest.raises(ParameterError, match="client id"):
        ClientTls.load(tls[0], name)


def test_missing_and_damaged_files_are_named(tls, tmp_path):
    with pytest.raises(DataError, match=r"client-nobody\.pem"):
        ClientTls.load(tls[0], "nobody")
    with pytest.raises(DataError, match=r"server\.pem"):
        ServerTls.load(tmp_path)
    for path in tls[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "server.pem").write_text("nonsense")
    with pytest.raises(DataError, match=r"server\.pem is no certificate"):
        ServerTls.load(tmp_path)


def test_expired_certificates_say_when(tls, tmp_path, monkeypatch):
    import hesplit_native.transport.authority as authority

    monkeypatch.setattr(authority, "_DAYS", -0.001)
    make_authority(tmp_path)
    make_server(tmp_path, ["localhost"])
    with pytest.raises(DataError, match=r"was valid until \d{4}-\d\d-\d\d"):
        ServerTls.load(tmp_path)


# Strangers


def managed(limit, admitted):
    """A conversation that lets in messages up to a limit, and whose handshake is its first message."""

    def converse(client):
        def admit(beginning, length):
            admitted.append(length)
            if length > limit:
                raise WireError(f"{length} bytes are too many")

        client.allowance.admit, client.allowance.settled = admit, False
        try:
            reply = b""
            while True:
                message = yield reply
                client.allowance.settled = True
                reply = message[:1]
        except HESplitError as error:
            yield b"refused: " + str(error).encode()

    return converse


def test_long_messages_are_let_in_by_their_first_piece():
    admitted = []
    with GrpcServer("127.0.0.1:0", managed(3 << 20, admitted)) as server:
        channel = connect(f"127.0.0.1:{server.port}")
        assert ask(channel, b"x" * (3 << 20)) == b"x"
        assert ask(channel, b"y" * (200 << 20)) == b"refused: 209715200 bytes are too many"
        assert admitted == [3 << 20, 200 << 20]
        channel.close()


def test_mute_connections_end_with_their_handshake(echo):
    with echo.serve(limits=Limits(handshake_seconds=0.3)) as server:
        address = f"127.0.0.1:{server.port}"
        mute, honest = connect(address, client_id="mute"), connect(address, client_id="honest")
        ask(honest)
        assert eventually(lambda: any("mute" in event and "no handshake" in event for event in echo.events))
        assert ask(honest) == b"honest:hello"
        mute.close()
        honest.close()


def test_mute_connections_make_room_oldest_first(echo, monkeypatch):
    from hesplit_native.transport import limits

    monkeypatch.setattr(limits, "_HASTE_SECONDS", 0.0)
    with echo.serve(limits=Limits(max_clients=3)) as server:
        address = f"127.0.0.1:{server.port}"
        honest = connect(address, client_id="honest")
        ask(honest)
        mute = [connect(address, client_id=f"m{i}") for i in range(5)]
        late = connect(address, client_id="late")
        assert ask(late) == b"late:hello"
        assert ask(honest) == b"honest:hello"
        assert any(event.startswith("m0") and "others waited" in event for event in echo.events)
        for channel in (honest, late, *mute):
            channel.close()


def test_work_is_not_begun_for_clients_that_are_gone():
    begun, go = [], threading.Event()

    def slow(client):
        message = yield b""
        while True:
            begun.append(message)
            go.wait(30)
            message = yield b"done"

    with GrpcServer("127.0.0.1:0", slow) as server:
        channel = connect(f"127.0.0.1:{server.port}")
        channel.send(b"first")
        assert eventually(lambda: begun == [b"first"])
        channel.send(b"second")
        channel.close()
        (stream,) = server._roster.streams
        assert eventually(stream.cancel.__self__.done)  # the server has heard of it
        go.set()
        assert eventually(lambda: not server._roster.streams)
    assert begun == [b"first"]


def test_clients_that_vanish_at_any_moment_are_no_internal_error(capfd):
    closed, events = [], []

    def open_conversation(client):
        def admit(beginning, length):
            time.sleep(0.01)
            if bytes(beginning) == b"long":
                raise WireError("too long")

        client.allowance.admit = admit
        message = b""
        try:
            while True:
                try:
                    message = yield message
                except WireError as error:
                    yield str(error).encode()
                    return
        finally:
            time.sleep(0.03)  # time enough to be closed from two threads
            closed.append(client.id)

    def vanish(index):
        for turn in range(24):
            channel = connect(address, client_id=f"c{index}-{turn}")
            if turn % 4:
                channel.send(b"long" if turn % 4 == 3 else b"hello")
            if turn % 4 == 2:
                channel.receive()
            time.sleep(0.004 * (turn % 7))
            channel._call.cancel()
            channel.close()

    limits = Limits(max_clients=64)
    with GrpcServer("127.0.0.1:0", open_conversation, on_event=events.append, limits=limits) as server:
        address = f"127.0.0.1:{server.port}"
        threads = [threading.Thread(target=vanish, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert eventually(lambda: not server._roster.streams)
    assert len(closed) == len(set(closed)) > 0
    assert not [event for event in events if "internal error" in event]
    assert "generator already executing" not in capfd.readouterr().err


def test_what_is_quick_is_answered_at_once_and_the_rest_in_threads_of_its_own():
    go = threading.Event()

    def converse(client):
        client.allowance.quick = lambda message: message == b"quick"
        reply = b""
        while True:
            message = yield reply
            if message == b"slow":
                go.wait(30)
            reply = threading.current_thread().name.encode()

    with GrpcServer("127.0.0.1:0", converse) as server:
        address = f"127.0.0.1:{server.port}"
        waiting, other = connect(address, client_id="a"), connect(address, client_id="b")
        waiting.send(b"slow")
        for _ in range(3):
            assert ask(other, b"quick") == b"hesplit-serve"
            assert ask(other, b"another").startswith(b"hesplit-client")
        go.set()
        assert waiting.receive().startswith(b"hesplit-client")
        waiting.close()
        other.close()


def test_a_client_that_does_not_listen_is_not_waited_for(echo):
    with echo.serve(limits=Limits(idle_seconds=0.3)) as server:
        address = f"127.0.0.1:{server.port}"
        deaf = connect(address, client_id="deaf")
        deaf.send(b"x" * 50_000_000)  # the answer is more than connections hold on their way
        assert eventually(lambda: any("deaf" in event and "nothing for" in event for event in echo.events))
        assert eventually(lambda: not server._roster.streams and len(echo.closed) == 1)
        other = connect(address, client_id="other")
        assert ask(other) == b"other:hello"
        with pytest.raises(ConnectionLost):
            deaf.receive()
        deaf.close()
        other.close()
