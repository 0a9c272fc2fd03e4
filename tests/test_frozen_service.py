"""A server that holds a model: requests that are not as they must be, its memory, replicas, and what it gets to see."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import urllib.request
import zlib

import grpc
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hesplit_native as hn
from hesplit_native.errors import BudgetError, ConnectionLost, ProtocolError
from hesplit_native.layer.frozen import FrozenClient, FrozenServer, error_bound
from hesplit_native.protocols import frozen, frozen_client, frozen_messages, messages
from hesplit_native.protocols.frozen import FrozenLayer, FrozenService, HintCache
from hesplit_native.protocols.frozen_client import Connection
from hesplit_native.protocols.messages import NO_SESSION, MessageType
from hesplit_native.protocols.server import Server
from hesplit_native.transport import ClientInfo, InProcessChannel, make_authority, make_client, make_server

MEMORY = 1 << 27


def weights(seed=0, out=9, inner=14):
    return np.random.default_rng(seed).normal(size=(out, inner))


def layer(name="fc", seed=0, backward=True, **shape):
    weight = weights(seed, **shape)
    return FrozenLayer(name, FrozenServer(weight), FrozenServer(weight.T) if backward else None)


def service(*layers, memory=MEMORY, **options):
    return FrozenService(layers or [layer()], memory=memory, **options)


class Conversation:
    """A raw client."""

    def __init__(self, to):
        self.service = to
        self.channel = InProcessChannel(to.converse(ClientInfo("test")))

    def ask(self, kind, *parts, step=0):
        return self.send(messages.pack(kind, step, NO_SESSION, *parts))

    def send(self, message):
        self.channel.send(message)
        return messages.unpack(self.channel.receive())

    def product(self, body, name="fc", direction="forward"):
        return self.ask(MessageType.PRODUCT, frozen_messages.address([name], direction), body)

    def works(self):
        """Whether it still answers."""
        request, _ = FrozenClient(14, 9).encrypt(np.ones((2, 14)))
        return self.product(request).type is MessageType.RESULT


def refused(reply):
    assert reply.type is MessageType.REFUSED
    return frozen_messages.take_refusal(reply.body)[0]


# Products


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("rows", [0, 1, 3, 130, 2049])
def test_products_of_any_number_of_rows(direction, rows):
    weight = weights()
    matrix = weight.T if direction == "forward" else weight
    x = np.random.default_rng(1).normal(size=(rows, len(matrix)))
    connection = hn.connect(service())
    y = connection.multiply("fc", x, direction)
    limit = error_bound(len(matrix)) * np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(matrix, axis=0)
    assert y.shape == (rows, matrix.shape[1])
    assert (np.abs(y - x @ matrix) <= limit).all()
    assert connection.requests == -(-rows // 2048)


@given(
    rows=st.sampled_from([0, 1, 5, 129, 2050]),
    inner=st.integers(1, 60),
    outs=st.lists(st.integers(1, 40), min_size=1, max_size=10),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_several_layers_of_the_same_rows(rows, inner, outs, bias, seed):
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(size=(out, inner)) for out in outs]
    biases = [rng.normal(size=out) if bias else np.zeros(out) for out in outs]
    served = [
        FrozenLayer(str(k), FrozenServer(w, b if bias else None), None)
        for k, (w, b) in enumerate(zip(matrices, biases, strict=True))
    ]
    answered = []
    connection = hn.connect(service(*served, on_request=answered.append))
    x = rng.normal(size=(rows, inner))
    names = [str(k) for k in range(len(outs))]
    products = connection.multiply_together([*names, names[0]], x)  # the same one twice costs nothing
    assert len(products) == len(outs) + 1
    np.testing.assert_array_equal(products[0], products[-1])
    for y, w, b in zip(products, matrices, biases, strict=False):
        norms = [
            np.linalg.norm(np.column_stack([m, c])[:, : inner + bias], axis=1) for m, c in ((x, np.ones(rows)), (w, b))
        ]
        assert y.shape == (rows, len(w))
        assert (np.abs(y - (x @ w.T + b)) <= error_bound(inner + bias) * np.outer(*norms)).all()
    requests = -(-rows // 2048) * -(-len(outs) // 8)
    assert connection.requests == requests
    assert sum(one.rows for one in answered if one.request == "forward") == rows * len(outs)


def test_layers_of_other_rows_are_not_asked_together():
    connection = hn.connect(
        service(layer("a"), layer("b", inner=15), FrozenLayer("c", FrozenServer(weights(), np.ones(9)), None))
    )
    for other, words in (
        ("b", r"a \(14 -> 9 without bias\) cannot serve b \(15 -> 9 without bias\)"),
        ("c", "with bias"),
    ):
        with pytest.raises(hn.ParameterError, match=words):
            connection.multiply_together(["a", other], np.ones((1, 14)))
    with pytest.raises(hn.ParameterError, match="no layer 'd'"):
        connection.multiply_together(["a", "d"], np.ones((1, 14)))
    assert connection.requests == 0


def test_new_weights_of_layers_that_are_asked_together():
    old, new = (service(layer("a", seed=seed), layer("b", seed=seed + 1, out=4)) for seed in (0, 10))
    present = [old]
    connection = Connection([("here", lambda: InProcessChannel(present[0].converse(ClientInfo("test"))))], patience=0.0)
    x = np.ones((3, 14))
    for seed, server in ((0, old), (10, new)):
        if server is not present[0]:
            present[0] = server
            connection._replicas._replicas[0].idle.clear()  # the next request opens a channel
        products = connection.multiply_together(["a", "b"], x)
        for y, w in zip(products, (weights(seed), weights(seed + 1, out=4)), strict=True):
            np.testing.assert_allclose(y, x @ w.T, atol=1e-4)


def test_a_hint_that_was_dropped_while_its_request_was_under_way(monkeypatch):
    weight = weights()
    old = service(layer("a"))
    new = service(FrozenLayer("a", FrozenServer(weight, precision="bfloat16"), None))
    present = [old]
    connection = Connection([("here", lambda: InProcessChannel(present[0].converse(ClientInfo("test"))))], patience=0.0)
    x = np.ones((3, 14))
    connection.multiply("a", x)
    present[0] = new
    connection._replicas._replicas[0].idle.clear()
    exchange, dropped = connection._replicas.exchange, []

    def dropping(kind, *arguments, **options):
        if kind is MessageType.PRODUCT and not dropped:
            dropped.append(kind)
            connection._matrices.clear()  # as another thread does that needs the memory
        return exchange(kind, *arguments, **options)

    monkeypatch.setattr(connection._replicas, "exchange", dropping)
    np.testing.assert_allclose(connection.multiply("a", x), x @ weight.T, atol=1e-1)
    assert connection.layers["a"].precision == "bfloat16"


def test_what_a_server_has(tmp_path):
    connection = hn.connect(service(layer("a"), layer("b", out=3, inner=5, backward=False)))
    assert {name: (d.in_features, d.out_features, d.bias, d.backward) for name, d in connection.layers.items()} == {
        "a": (14, 9, False, True), "b": (5, 3, False, False),
    }  # fmt: skip
    with pytest.raises(hn.ParameterError, match="no backward requests"):
        connection.multiply("b", np.ones((1, 3)), "backward")
    with pytest.raises(hn.ParameterError, match=r"a: expected \[n, 14\], got \[1, 5\]"):
        connection.multiply("a", np.ones((1, 5)))
    with pytest.raises(hn.ParameterError, match=r"no layer 'aa' \(did you mean a\?\); it has a, b"):
        connection.multiply("aa", np.ones((1, 5)))


# Requests that are not as they must be


def good_request(rows=3, **client):
    return FrozenClient(client.get("inner", 14), 9).encrypt(np.ones((rows, client.get("inner", 14))))[0]


def address(**changes):
    return messages.text(json.dumps({"layers": ["fc"], "direction": "forward"} | changes))


@pytest.mark.parametrize(
    ("kind", "body", "error", "words"),
    [
        (MessageType.PRODUCT, address(layers=["fcc"]) + good_request(), hn.ParameterError, r"no layer 'fcc' \(did you mean fc"),
        (MessageType.PRODUCT, address(layers=["x" * 5000]), hn.ParameterError, "no layer 'xxx"),
        (MessageType.PRODUCT, address(layers=3), hn.WireError, "layers and a direction"),
        (MessageType.PRODUCT, address(layers=["fc", 3]), hn.WireError, "layers and a direction"),
        (MessageType.PRODUCT, address(direction="up"), hn.WireError, "layers and a direction"),
        (MessageType.PRODUCT, b"", hn.WireError, "ends before"),
        (MessageType.PRODUCT, messages.text("[1]"), hn.WireError, "JSON object"),
        (MessageType.PRODUCT, address(), hn.WireError, "shorter than its head"),
        (MessageType.PRODUCT, address() + bytes(500), hn.WireError, "1 to 2048 rows, this one 0"),
        (MessageType.PRODUCT, address() + good_request()[:-1], hn.WireError, "announces 328"),
        (MessageType.PRODUCT, address() + good_request() + b"x", hn.WireError, "no more than"),
        (MessageType.PRODUCT, address() + good_request()[:-1] + b"x", hn.WireError, "checksum of a frozen request is wrong"),
        (MessageType.PRODUCT, address() + good_request(inner=13), hn.KeyMismatchError, "made under other parameters"),
        (MessageType.PRODUCT, address(direction="backward") + good_request(), hn.WireError, "no more than 238"),
        (MessageType.PRODUCT, address(layers=[]) + good_request(), hn.WireError, "1 to 8 different layers, got 0"),
        (MessageType.PRODUCT, address(layers=["fc", "fc"]) + good_request(), hn.WireError, "1 to 8 different layers, got 2"),
        (MessageType.PRODUCT, address(layers=list("abcdefghi")) + good_request(), hn.WireError, "different layers, got 9"),
        (MessageType.PRODUCT, address(layers=["fc", "no"]) + good_request(), hn.ParameterError, "no layer 'no'"),
        (MessageType.PRODUCT, address(layers=["fc", "more"]) + good_request(), hn.ParameterError, "rows for fc cannot serve more"),
        (MessageType.PRODUCT, address(layers=["fc", "bias"]) + good_request(), hn.ParameterError, "rows for fc cannot serve bias"),
        (MessageType.PRODUCT, address(layers=["fc", "half"]) + good_request(), hn.ParameterError, "rows for fc cannot serve half"),
        (MessageType.PRODUCT, address(layers=["fc", "like"], direction="backward") + good_request(), hn.ParameterError,
         r"rows for fc cannot serve like \(backward\)"),
        (MessageType.HINT, address(layers=["fc", "like"], have=0), hn.WireError, "1 to 1 different layers, got 2"),
        (MessageType.HINT, address(have=-1), hn.WireError, "`have` a number from 0 to"),
        (MessageType.HINT, address(have=1 << 40), hn.WireError, "`have` a number from 0 to"),
        (MessageType.HINT, address(have="0"), hn.WireError, "`have` a number from 0 to"),
        (MessageType.HINT, address(have=0) + b"x", hn.WireError, "too many"),
        (MessageType.HINT, address(layers=["fd"], have=0), hn.ParameterError, "no layer 'fd'"),
        (MessageType.LAYERS, b"x", hn.WireError, "too many"),
        (MessageType.END, b"x", hn.WireError, "too many"),
        (MessageType.HELLO, messages.text("{}"), hn.ProtocolError, "holds a model to be used"),
        (MessageType.RESUME, messages.text("{}"), hn.ProtocolError, "holds a model to be used"),
        (MessageType.LOGITS, b"", hn.ProtocolError, "LOGITS is not a request of a model server"),
    ],
)  # fmt: skip
def test_a_bad_request_costs_that_request(kind, body, error, words):
    others = [
        layer("like", seed=1),
        layer("more", inner=15),
        FrozenLayer("bias", FrozenServer(weights(inner=13), np.ones(9)), None),
        FrozenLayer("half", FrozenServer(weights(), precision="bfloat16"), None),
    ]
    talk = Conversation(service(layer(), *others))
    reply = talk.ask(kind, body, step=7)
    assert reply.step == 7
    with pytest.raises(error, match=words):
        raise refused(reply)
    assert len(str(refused(reply))) < 600
    assert talk.works()


@pytest.mark.parametrize(
    "message", [b"", b"GET / HTTP/1.1\r\n\r\n" * 4, messages.pack(MessageType.LAYERS, 0, NO_SESSION)[:20]]
)
def test_bytes_that_are_no_message(message):
    talk = Conversation(service())
    assert isinstance(refused(talk.send(message)), hn.WireError)
    assert talk.works()


@given(st.binary(max_size=200), st.integers(0, 350), st.sampled_from([None, *MessageType]), st.booleans())
def test_whatever_a_client_sends_is_answered(noise, at, kind, whole):
    """Noise written into a good request, or as the body of any message."""
    talk = Conversation(service())
    good = messages.pack(MessageType.PRODUCT, 0, NO_SESSION, address() + good_request())
    if kind is None:
        message = good[:at] + noise + (good[at + len(noise) :] if whole else b"")
    else:
        message = messages.pack(kind, 0, NO_SESSION, noise)
    reply = talk.send(message)
    if reply.type is MessageType.REFUSED:
        assert refused(reply).args
        assert talk.works()
    elif reply.type is MessageType.RESULT:
        assert message[messages.HEADER_BYTES :] == good[messages.HEADER_BYTES :]
    else:
        assert (kind, reply.type) in {
            (MessageType.LAYERS, MessageType.OFFER), (MessageType.END, MessageType.SUMMARY), (MessageType.HINT, MessageType.HINT_PART),
        }  # fmt: skip


def test_requests_for_other_kinds_of_servers():
    talk = Conversation(Server())
    for kind in (MessageType.LAYERS, MessageType.HINT, MessageType.PRODUCT):
        talk = Conversation(Server())
        reply = talk.ask(kind, address(have=0))
        assert reply.type is MessageType.ERROR
        assert "started with --model" in messages.take_text(reply.body, "error")[0]
    with pytest.raises(ProtocolError, match="started with --model"):
        hn.connect(Server())


def test_layers_without_gradients_refuse_them():
    talk = Conversation(service(layer(backward=False)))
    with pytest.raises(hn.ParameterError, match="no backward requests"):
        raise refused(talk.product(good_request(), direction="backward"))


@pytest.mark.parametrize(
    "body",
    [
        b"\xff", b"[]", b"{}", b'{"layers": 3}', b'{"layers": [3]}', b'{"layers": [{"name": "a"}]}',
        frozen_messages.offer([frozen_messages.Description("a", 0, 1, True, "float32", "", True)]),
        frozen_messages.offer([frozen_messages.Description("a", 1, True, True, "float32", "", True)]),
        frozen_messages.offer([frozen_messages.Description("a", 1, 1, True, "float8", "", True)]),
    ],
)  # fmt: skip
def test_lists_of_layers_that_are_none(body):
    with pytest.raises(hn.WireError, match="offer"):
        frozen_messages.take_offer(memoryview(body))


# Memory


def test_memory_is_held_before_it_is_spent_and_given_back():
    wide = service(layer(out=2000, inner=1000), memory=1 << 30)
    matrix = wide.layers["fc"].forward
    request, _ = FrozenClient(1000, 2000).encrypt(np.ones((500, 1000)))
    body = address() + request
    message = messages.pack(MessageType.PRODUCT, 0, NO_SESSION, body)
    cost = matrix.cost(500)
    needed = len(message) + cost.working_bytes + 2 * cost.reply_bytes
    for spare in (-1, 0):
        small = service(wide.layers["fc"], memory=needed + spare)
        talk = Conversation(small)
        reply = talk.send(message)
        if spare < 0:
            error, later = frozen_messages.take_refusal(reply.body)
            assert isinstance(error, BudgetError)
            assert not later  # it never fits
            assert small.budget.held <= 1000
        else:
            assert reply.type is MessageType.RESULT
            assert small.budget.held == messages.HEADER_BYTES + len(reply.body)
        one, _ = FrozenClient(1000, 2000).encrypt(np.ones((1, 1000)))
        assert talk.product(one).type is MessageType.RESULT
        talk.channel.close()
        assert small.budget.held == 0


def test_a_client_waits_while_others_take_the_memory():
    busy = service(memory=2 << 20)
    others = busy.budget.hold("others", busy.budget.total - 1000)
    timer = threading.Timer(0.3, others.release)
    timer.start()
    connection = hn.connect(busy)
    assert connection.multiply("fc", np.ones((1, 14))).shape == (1, 9)
    timer.join()
    others = busy.budget.hold("others", busy.budget.total - busy.budget.held - 1000)
    impatient = hn.connect(busy, patience=0.2)
    with pytest.raises(BudgetError, match="try again later"):
        impatient.multiply("fc", np.ones((1, 14)))
    others.release()
    assert impatient.multiply("fc", np.ones((1, 14))).shape == (1, 9)


def test_what_leaves_no_memory_or_cannot_listen_is_said(tmp_path):
    model = nn.Linear(14, 9)
    with pytest.raises(
        hn.ParameterError, match=r"no memory is left for requests: the layers take .* of 0.0 MiB.*--memory"
    ):
        hn.serve(model, port=0, memory=1000)
    with pytest.raises(hn.ParameterError, match="another machine"):
        hn.serve(model, host="198.51.100.1", port=0)
    with pytest.raises(hn.DataError, match=r"ca\.pem|server\.pem"):
        hn.serve(model, port=0, tls=tmp_path)
    with serve() as server, pytest.raises(ProtocolError, match="cannot listen"):
        serve(port=server.port)
    with pytest.raises(hn.ParameterError, match="expected the address of a server"):
        hn.connect([])


def test_long_messages_that_are_refused_are_not_taken_in():
    wide = layer(inner=3000)
    with grpc_server(service(wide, memory=30 << 20)) as address_of:
        connection = hn.connect(address_of)
        with pytest.raises(BudgetError, match="--memory"):
            connection.multiply("fc", np.ones((1500, 3000)))
        assert len(connection._replicas._replicas[0].idle) == 1  # the same connection goes on
        assert connection.bytes_up > 1 << 20
        assert connection.multiply("fc", np.ones((2, 3000))).shape == (2, 9)
        connection.close()


def test_hints_are_computed_once_and_kept_as_far_as_memory_goes():
    cache, computed = HintCache(25), []

    def compute(key, size=10):
        def work():
            time.sleep(0.01)
            computed.append(key)
            return key.encode() * size

        return cache.get((key, "forward"), work)

    threads = [threading.Thread(target=compute, args=("a",)) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert computed == ["a"]
    assert compute("b") == b"b" * 10
    assert compute("a") == b"a" * 10
    compute("c")  # b, which was used longest ago, makes room
    assert cache.held == 20
    compute("a")
    compute("b")
    assert computed == ["a", "b", "c", "b"]
    assert compute("d", 100) == b"d" * 100  # too long to be kept
    assert cache.held == 0


def test_long_hints_come_in_parts(monkeypatch):
    for module in (frozen, frozen_client):
        monkeypatch.setattr(module, "HINT_PART", 1000)
    log = []
    connection = tapped(service(), log)
    connection.multiply("fc", np.ones((1, 14)))
    parts = [m for up, m in log if not up and m.type is MessageType.HINT_PART]
    assert len(parts) == -(-FrozenServer(weights()).hint_bytes // 1000) > 3


def test_a_client_keeps_hints_as_far_as_its_memory_goes():
    served = service(layer("a"), layer("b", 1), layer("c", 2))
    x = np.random.default_rng(0).normal(size=(2, 14))
    one = FrozenServer(weights())
    client = FrozenClient(14, 9)
    for room, fetched in ((10 * client.resident_bytes, 3), (2 * client.resident_bytes, 5), (1, 6)):
        log = []
        connection = tapped(served, log, hint_memory=room)
        for seed, name in ((0, "a"), (0, "a"), (1, "b"), (2, "c"), (0, "a"), (2, "c"), (1, "b"), (1, "b")):
            np.testing.assert_allclose(connection.multiply(name, x), x @ weights(seed).T, atol=1e-3)
        assert len([m for up, m in log if up and m.type is MessageType.HINT]) == fetched, room
    assert client.hint_bytes == one.hint_bytes == len(one.hint())


def test_hints_of_another_length_are_not_taken_in():
    """A server that announces gigabytes is not believed."""
    served = service()
    described = served.layers["fc"]
    other = layer("fc", out=90)
    log = []
    connection = tapped(served, log)
    served.layers["fc"] = dataclasses.replace(described, forward=other.forward)
    with pytest.raises(hn.HESplitError):
        connection.multiply("fc", np.ones((1, 14)))
    assert len([m for up, m in log if not up and m.type is MessageType.HINT_PART]) <= 2


# Connections that are lost, replicas, other weights


def grpc_server(of):
    """A port for a service; the address in a `with` block."""
    from contextlib import contextmanager

    from hesplit_native.transport import GrpcServer

    @contextmanager
    def run():
        with GrpcServer("127.0.0.1:0", of.converse) as server:
            yield f"127.0.0.1:{server.port}"

    return run()


def serve(seed=0, port=0, **options):
    torch.manual_seed(seed)
    return hn.serve(nn.Sequential(nn.Linear(14, 9)), port=port, memory=MEMORY, **options)


def test_a_server_that_comes_back_is_asked_again():
    x = np.ones((2, 14))
    first = serve()
    connection = hn.connect(first.address, patience=20)
    y = connection.multiply("0", x)
    first.close()
    found = []
    thread = threading.Thread(target=lambda: found.append(connection.multiply("0", x)))
    thread.start()
    time.sleep(0.3)
    with serve(port=first.port):
        thread.join()
        np.testing.assert_allclose(found[0], y, atol=1e-4)
        connection.close()


def test_a_server_that_stays_away_is_named():
    server = serve()
    connection = hn.connect(server.address, patience=0.3)
    server.close()
    with pytest.raises(ConnectionLost, match=f"no answer from {server.address}"):
        connection.multiply("0", np.ones((1, 14)))
    with pytest.raises(ConnectionLost, match=f"no answer from {server.address}"):
        hn.connect(server.address)
    connection.close()
    with pytest.raises(ProtocolError, match="was closed"):
        connection.multiply("0", np.ones((1, 14)))


def test_another_replica_answers_when_one_is_gone():
    one, two = serve(), serve()
    connection = hn.connect([one.address, two.address])
    x = np.random.default_rng(0).normal(size=(4, 14))
    y = connection.multiply("0", x)
    assert connection.address == one.address
    failures, done, enough = [], [], threading.Event()

    def work():
        while not enough.is_set():
            try:
                np.testing.assert_allclose(connection.multiply("0", x), y, atol=1e-4)
                done.append(connection.address)
            except BaseException as error:
                failures.append(error)
                return

    def wait_for(count, address):
        deadline = time.monotonic() + 20
        while done.count(address) < count and not failures and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not failures
        assert done.count(address) >= count

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    wait_for(20, one.address)
    one.close()
    wait_for(20, two.address)
    enough.set()
    [thread.join() for thread in threads]
    assert not failures
    two.close()


def test_a_replica_that_is_not_there_is_passed_over():
    gone = serve()
    gone.close()
    with serve() as server, hn.connect([gone.address, server.address]) as connection:
        assert connection.address == server.address


def test_other_weights_make_the_client_fetch_the_hint_again():
    x = np.ones((2, 14))
    first = serve(seed=0)
    connection = hn.connect(first.address)
    y = connection.multiply("0", x)
    gradient = connection.multiply("0", np.ones((1, 9)), "backward")
    first.close()
    with serve(seed=1, port=first.port, epoch="2027") as second:
        threads = [threading.Thread(target=connection.multiply, args=("0", x)) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        fresh = hn.connect(second).multiply("0", x)
        np.testing.assert_allclose(connection.multiply("0", x), fresh, atol=1e-4)
        assert np.abs(fresh - y).max() > 0.1
        assert np.abs(connection.multiply("0", np.ones((1, 9)), "backward") - gradient).max() > 0.1
        connection.close()


def test_longer_hints_of_a_server_that_came_back_count_as_well():
    x = np.ones((2, 14))
    half, single = FrozenClient(14, 9, precision="bfloat16"), FrozenClient(14, 9)
    half.load_hint(FrozenServer(weights(), precision="bfloat16").hint())
    single.load_hint(FrozenServer(weights()).hint())
    first, second = (
        service(
            *(
                FrozenLayer(name, FrozenServer(weights(seed), precision=precision), None)
                for seed, name in enumerate("ab")
            )
        )
        for precision in ("bfloat16", "float32")
    )
    log = []
    tap = Tap(InProcessChannel(first.converse(ClientInfo("test"))), log)
    room = half.resident_bytes + single.resident_bytes  # both layers of the first server, one of the second
    connection = Connection([("tap", lambda: tap)], 1.0, hint_memory=room - 1)
    connection.multiply("a", x), connection.multiply("b", x)
    tap.channel = InProcessChannel(second.converse(ClientInfo("test")))
    for seed, name in ((0, "a"), (1, "b"), (0, "a")):
        log.clear()
        np.testing.assert_allclose(connection.multiply(name, x), x @ weights(seed).T, atol=1e-3)
        assert any(up and message.type is MessageType.HINT for up, message in log), name


def test_replicas_of_different_weights_are_an_error():
    one, two = service(layer(seed=0)), service(layer(seed=1))
    turn = iter(range(1000))

    def either():
        return Alternating([InProcessChannel(s.converse(ClientInfo("test"))) for s in (one, two)], turn)

    connection = Connection([("both", either)], 1.0)
    with pytest.raises(hn.KeyMismatchError, match="must hold the same weights"):
        connection.multiply("fc", np.ones((1, 14)))


class Alternating:
    """A channel whose hints come from one server and whose products from another."""

    def __init__(self, channels, turn):
        self.channels, self.bytes_up, self.bytes_down = channels, 0, 0

    def send(self, message):
        self.present = self.channels[messages.unpack(message).type is MessageType.PRODUCT]
        self.present.send(message)

    def receive(self):
        return self.present.receive()

    def close(self):
        pass


def test_a_layer_that_changes_its_shape_is_named_with_both():
    first = serve()
    connection = hn.connect(first.address)
    connection.multiply("0", np.ones((1, 14)))
    first.close()
    with hn.serve(nn.Sequential(nn.Linear(13, 9)), port=first.port, memory=MEMORY):
        with pytest.raises(
            hn.ParameterError, match="was 14 -> 9 with bias at the server, and now is 13 -> 9 with bias"
        ):
            connection.multiply("0", np.ones((1, 14)))
        connection.close()


def test_eight_clients_at_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    exact = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in model]
    counted = []
    failures = []
    with hn.serve(model, port=0, memory=MEMORY, on_request=counted.append) as server:

        def work(number):
            try:
                with hn.connect(server.address, client_id=f"client-{number}") as connection:
                    rng = np.random.default_rng(number)
                    for _ in range(10):
                        x = rng.normal(size=(1 + number, 40))
                        y = connection.multiply("0", x)
                        assert np.abs(y - x @ exact[0][0].T - exact[0][1]).max() < 1e-3
                        g = rng.normal(size=(1 + number, 20))
                        assert np.abs(connection.multiply("1", g, "backward") - g @ exact[1][0]).max() < 1e-3
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not failures
        assert sum(answer.request == "forward" for answer in counted) == 80
        assert sum(answer.rows for answer in counted if answer.request == "backward") == 10 * sum(range(1, 9))
        assert all(answer.outcome == "ok" for answer in counted)
        deadline = time.monotonic() + 10
        while server.service.budget.held and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.service.budget.held == 0


def test_mutual_tls(tmp_path):
    make_authority(tmp_path)
    make_server(tmp_path, ["localhost"])
    make_client(tmp_path, "alice")
    with serve(tls=tmp_path, host="localhost") as server:
        with hn.connect(server.address, tls=tmp_path, client_id="alice") as connection:
            assert connection.multiply("0", np.ones((1, 14))).shape == (1, 9)
        with pytest.raises(ConnectionLost):
            hn.connect(server.address)


# What the server gets to see


class Tap:
    """A channel that keeps what passes."""

    def __init__(self, channel, log):
        self.channel, self.log = channel, log

    def send(self, message):
        self.log.append((True, messages.unpack(message)))
        self.channel.send(message)

    def receive(self):
        message = self.channel.receive()
        self.log.append((False, messages.unpack(message)))
        return message

    def close(self):
        self.channel.close()

    bytes_up = property(lambda self: self.channel.bytes_up)
    bytes_down = property(lambda self: self.channel.bytes_down)


def tapped(to, log, **options):
    return Connection([("tap", lambda: Tap(InProcessChannel(to.converse(ClientInfo("test"))), log))], 1.0, **options)


def test_the_server_sees_nothing_but_ciphertexts_and_shapes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    log = []
    with hn.serve(model, port=0, memory=MEMORY) as server:
        net = hn.nn.encrypt(model, server=tapped(server, log))
        x, labels = torch.randn(32, 64), torch.randint(0, 10, (32,))
        scales = (1.0, 1.0, 1e-6)  # the same rows twice, and small ones
        for scale in scales:
            inputs = (scale * x).requires_grad_()
            nn.functional.cross_entropy(net(inputs), labels).backward()
        net[0]._connection.close()

    up = [message for is_up, message in log if is_up]
    assert {message.type for message in up} == {
        MessageType.LAYERS, MessageType.HINT, MessageType.PRODUCT, MessageType.END,
    }  # fmt: skip
    requests = {"forward": [], "backward": []}
    for message in up:
        if message.type in (MessageType.LAYERS, MessageType.END):
            assert not len(message.body)
            continue
        (name,), direction, said, body = frozen_messages.take_address(message.body, "request")
        assert name in ("0", "2")
        assert set(said) <= {"layers", "direction", "have"}
        if message.type is MessageType.HINT:
            assert not len(body)
        else:
            requests[direction].append((name, bytes(body)))
    for direction, found in requests.items():
        assert len(found) == 6
        for name, body in found:
            assert body.startswith(b"HESN")
            payload = body[68:-8]
            # Uniform residues, packed to the bit, do not compress; neither rows nor their norms are anywhere.
            assert len(zlib.compress(payload, 9)) > 0.99 * len(payload)
            assert x[0].numpy().tobytes()[:16] not in body
            assert np.float32(x[0].norm()).tobytes() not in body
            assert {len(other) for also, other in found if also == name} == {len(body)}, direction
    # Fresh secrets: the same rows are other bytes, nothing of which agrees but by chance.
    first, again = [np.frombuffer(body[68:-8], np.uint8) for name, body in requests["forward"] if name == "0"][:2]
    assert (first == again).mean() < 0.02
    assert server.service.budget.held == 0


# Metrics and health


def test_metrics_count_requests_rows_bytes_and_refusals():
    pytest.importorskip("prometheus_client")
    from hesplit_native.protocols.metrics import Metrics

    with Metrics("127.0.0.1:0") as metrics, serve(on_request=metrics.count) as server:
        metrics.show("hesplit_memory_held_bytes", "held", lambda: server.service.budget.held)
        connection = hn.connect(server.address)
        connection.multiply("0", np.ones((5, 14)))
        connection.multiply("0", np.ones((2, 9)), "backward")
        talk = Conversation(server)
        talk.product(good_request(), name="nothing")
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10).read().decode()
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(lines['hesplit_requests_total{outcome="ok",request="forward"}']) == 1
        assert float(lines['hesplit_requests_total{outcome="ParameterError",request="forward"}']) == 1
        assert float(lines['hesplit_rows_total{request="forward"}']) == 5
        assert float(lines['hesplit_rows_total{request="backward"}']) == 2
        assert float(lines['hesplit_received_bytes_total{request="hint"}']) > 0
        assert float(lines['hesplit_sent_bytes_total{request="hint"}']) > 10_000
        assert float(lines['hesplit_request_seconds_count{request="layers"}']) == 1
        assert float(lines["hesplit_memory_held_bytes"]) > 0
        assert "client" not in text.replace("clients", "")
        connection.close()
        with pytest.raises(ProtocolError, match="for metrics"):
            Metrics(f"127.0.0.1:{metrics.port}")


def test_the_standard_health_service_answers():
    with serve() as server, grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for request in (b"", b"\x0a\x14hesplit_native.Split"):
            assert check(request) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as error:
            check(b"\x0a\x05other")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
