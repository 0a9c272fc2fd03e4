"""The server's side against clients that misbehave, and over TCP in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hesplit_native as hn
from hesplit_native.errors import ProtocolError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.plain import PlainClient
from hesplit_native.protocols.server import ServerState, converse, serve
from hesplit_native.protocols.session import Session
from hesplit_native.training import RunConfig, train
from hesplit_native.transport import InProcessChannel, connect

SERVER = """
import functools, pathlib, sys, torch
from hesplit_native.protocols.server import serve
torch.set_num_threads(1)
show = functools.partial(print, flush=True)
serve("127.0.0.1", 0, on_listen=show, output=pathlib.Path(sys.argv[1]), sessions=1)
"""


def ask(channel, kind, step, *parts):
    channel.send(messages.pack(kind, step, *parts))
    return messages.unpack(channel.receive())


def matrix(rows, columns, value=1.0):
    return messages.matrix(np.full((rows, columns), value, np.float32), "values")


def started(terms, material=b""):
    """A session after its handshake: its channel and state."""
    state = ServerState()
    channel = InProcessChannel(converse(state))
    reply = ask(channel, MessageType.HELLO, 0, messages.text(terms.to_json()), material)
    return channel, state, reply


def assert_refused(channel, reply, *match):
    assert reply.type is MessageType.ERROR
    reason, _ = messages.take_text(reply.body, "error")
    for part in match:
        assert part in reason
    with pytest.raises(ProtocolError, match="has ended"):
        channel.send(b"more")


def test_a_whole_session(make_terms):
    channel, state, reply = started(make_terms())
    assert reply.type is MessageType.WELCOME
    assert ask(channel, MessageType.EVALUATE, 1, matrix(50, 6)).type is MessageType.LOGITS
    assert ask(channel, MessageType.FORWARD, 2, matrix(4, 6)).type is MessageType.LOGITS
    assert ask(channel, MessageType.EVALUATE, 3, matrix(1, 6)).type is MessageType.LOGITS
    assert ask(channel, MessageType.BACKWARD, 4, matrix(4, 3)).type is MessageType.INPUT_GRADIENT
    summary = ask(channel, MessageType.END, 5)
    assert summary.type is MessageType.SUMMARY
    assert set(state.seconds) == {"forward", "backward and update", "evaluation"}
    assert state.steps == 1


@pytest.mark.parametrize(
    ("kind", "step", "body", "match"),
    [
        (MessageType.FORWARD, 1, matrix(5, 6), "activations: expected [1 to 4, 6], got [5, 6]"),
        (MessageType.FORWARD, 1, matrix(4, 7), "activations: expected [1 to 4, 6], got [4, 7]"),
        (MessageType.FORWARD, 1, matrix(4, 6) + b"x", "1 bytes too many"),
        (MessageType.FORWARD, 1, b"", "ends before"),
        (MessageType.FORWARD, 0, matrix(4, 6), "request 0 came where 1 was due"),
        (MessageType.FORWARD, 2, matrix(4, 6), "request 2 came where 1 was due"),
        (MessageType.BACKWARD, 1, matrix(4, 3), "without the activations"),
        (MessageType.LOGITS, 1, matrix(4, 3), "LOGITS is not a request"),
        (MessageType.HELLO, 1, b"", "HELLO is not a request"),
        (MessageType.END, 1, b"x", "end: 1 bytes too many"),
    ],
)
def test_requests_out_of_order_or_shape(make_terms, kind, step, body, match):
    channel, state, _ = started(make_terms())
    before = [p.clone() for p in state.layer.linear.parameters()]
    assert_refused(channel, ask(channel, kind, step, body), match)
    assert all(torch.equal(a, b) for a, b in zip(before, state.layer.linear.parameters(), strict=True))


@pytest.mark.parametrize("body", [matrix(3, 3), matrix(4, 2), matrix(4, 3) + b"x"])
def test_gradients_that_do_not_fit_change_nothing(make_terms, body):
    channel, state, _ = started(make_terms())
    before = state.layer.linear.weight.clone()
    ask(channel, MessageType.FORWARD, 1, matrix(4, 6))
    assert_refused(channel, ask(channel, MessageType.BACKWARD, 2, body), "gradient")
    assert torch.equal(state.layer.linear.weight, before)


def test_one_gradient_for_one_forward(make_terms):
    channel, _, _ = started(make_terms())
    ask(channel, MessageType.FORWARD, 1, matrix(4, 6))
    ask(channel, MessageType.BACKWARD, 2, matrix(4, 3))
    assert_refused(channel, ask(channel, MessageType.BACKWARD, 3, matrix(4, 3)), "without the activations")


def test_no_more_steps_than_agreed(make_terms):
    channel, state, _ = started(make_terms(batches=1, epochs=2))
    for step in (1, 3):
        ask(channel, MessageType.FORWARD, step, matrix(4, 6))
        ask(channel, MessageType.BACKWARD, step + 1, matrix(4, 3))
    ask(channel, MessageType.FORWARD, 5, matrix(4, 6))
    before = state.layer.linear.weight.clone()
    assert_refused(channel, ask(channel, MessageType.BACKWARD, 6, matrix(4, 3)), "agreed on 2 training steps")
    assert torch.equal(state.layer.linear.weight, before)


def test_requests_before_the_handshake():
    channel = InProcessChannel(converse(ServerState()))
    assert_refused(channel, ask(channel, MessageType.FORWARD, 0, matrix(4, 6)), "FORWARD came before the handshake")


def test_bytes_that_are_no_message():
    channel = InProcessChannel(converse(ServerState()))
    channel.send(b"GET / HTTP/1.1\r\n\r\n")
    assert_refused(channel, messages.unpack(channel.receive()), "no message of hesplit_native")


@pytest.mark.parametrize("changes", [{"protocol": "vanilla"}, {"in_features": 0}, {"learning_rate": float("nan")}])
def test_terms_that_the_server_refuses(make_terms, changes):
    channel, state, reply = started(make_terms(**changes))
    assert_refused(channel, reply, "handshake", next(iter(changes)))
    assert state.layer is None


def material(in_features=6, out_features=3):
    parameters = hn.Parameters.recommend(in_features=6, out_features=3, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(parameters), in_features, out_features)
    return client.public_material(), parameters.hash


def test_public_material_and_terms_must_agree(make_terms):
    good, parameter_hash = material()
    terms = make_terms(protocol="splitways", parameter_hash=parameter_hash)
    assert started(terms, good)[2].type is MessageType.WELCOME
    channel, _, reply = started(terms, material(out_features=2)[0])
    assert_refused(channel, reply, "another shape", "[2, 6]", "[3, 6]")
    other = make_terms(protocol="splitways", parameter_hash="0" * 32)
    channel, _, reply = started(other, good)
    assert_refused(channel, reply, "0" * 32, parameter_hash)
    for damaged in (b"", good[:-1], good + b"x"):
        channel, _, reply = started(terms, damaged)
        assert_refused(channel, reply)
    channel, _, reply = started(make_terms(), good)
    assert_refused(channel, reply, "too many")


@pytest.fixture
def server(tmp_path):
    """`serve` in a thread: start(sessions) gives the address; events and the folder of results."""
    events, ports, threads = [], [], []
    ready = threading.Event()

    def listening(port):
        ports.append(port)
        ready.set()

    def start(sessions):
        options = {"on_event": events.append, "on_listen": listening, "output": tmp_path, "sessions": sessions}
        threads.append(threading.Thread(target=serve, args=("127.0.0.1", 0), kwargs=options, daemon=True))
        threads[-1].start()
        assert ready.wait(10)
        return f"127.0.0.1:{ports[0]}"

    def finished():
        threads[0].join(10)
        return not threads[0].is_alive()

    yield start, events, tmp_path, finished
    for thread in threads:
        thread.join(10)


def test_broken_clients_do_not_stop_the_server(server, make_terms, tiny):
    start, events, output, finished = server
    address = start(4)
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"\xff\xff\xff\xff")
    with connect(address) as channel:
        channel.send(b"nonsense")
        reason, _ = messages.take_text(messages.unpack(channel.receive()).body, "error")
        assert "8 bytes is shorter than its header" in reason
    with connect(address) as channel:
        client = PlainClient(Session(channel, make_terms(), b"", Phases()))
        client.forward(torch.ones(4, 6))
    with connect(address) as channel:
        result = train(RunConfig(protocol="plain", epochs=1), tiny, channel=channel)
    assert finished()
    assert result.interrupted is None
    failures = [event for event in events if "failed" in event]
    assert len(failures) == 3
    assert "limit" in failures[0]
    assert "closed the connection" in failures[2]
    assert [path.name for path in output.iterdir()] == ["server-1.safetensors"]


@pytest.mark.parametrize("protocol", ["plain", "splitways"])
def test_tcp_in_a_second_process_equals_in_process(protocol, tiny, tmp_path):
    config = RunConfig(protocol=protocol, epochs=2, seed=3)
    here = train(config, tiny)
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            with connect(f"127.0.0.1:{process.stdout.readline().strip()}") as channel:
                there = train(config, tiny, channel=channel)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert here.interrupted is None
    assert there.interrupted is None
    assert there.server_weight is None
    for name in ("bytes_up", "evaluation_bytes_up", "setup_bytes_up", "setup_bytes_down", "batches"):
        assert getattr(here, name) == getattr(there, name), name
    weights = load_file(tmp_path / "server-1.safetensors")
    if protocol == "plain":  # encryption is randomised: only plain repeats itself bit for bit
        assert (here.bytes_down, here.evaluation_bytes_down) == (there.bytes_down, there.evaluation_bytes_down)
        assert [r.train_loss for r in here.history] == [r.train_loss for r in there.history]
        assert all(torch.equal(here.client_state[k], there.client_state[k]) for k in here.client_state)
        assert torch.equal(here.server_weight, weights["weight"])
        assert torch.equal(here.server_bias, weights["bias"])
    else:
        torch.testing.assert_close(weights["weight"], here.server_weight, atol=1e-2, rtol=0)
