"""Tables that a server holds, searched by encrypted queries: layers without hints."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.layer.keyed import KeyedAgreement, KeyedClient, KeyedServer, keyed_parameters
from hesplit_native.protocols import frozen_messages
from hesplit_native.protocols.frozen_client import Connection
from hesplit_native.protocols.served_layers import KeyedLayer
from hesplit_native.protocols.serving import make_service
from hesplit_native.transport import ClientInfo, InProcessChannel

MEMORY = 1 << 29


def table(rows, features, seed=0, *, unit=True):
    vectors = np.random.default_rng(seed).normal(size=(rows, features))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if unit else vectors


def connected(*layers, memory=MEMORY):
    served = make_service(layers, memory=memory)
    return Connection([("here", lambda: InProcessChannel(served.converse(ClientInfo("test"))))], 0.0)


def short(name, weight, bias=None, **options):
    return KeyedLayer(name, KeyedServer(weight, bias, private=False, **options))


@settings(max_examples=20)
@given(
    n=st.integers(1, 5),
    features=st.integers(1, 400),
    outputs=st.integers(1, 900),
    bias=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e9]),
    precision=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 99),
)
@example(n=1, features=128, outputs=4096, bias=False, scale=1.0, precision="float32", seed=0)
@example(n=1, features=4097, outputs=3, bias=True, scale=1.0, precision="float32", seed=0)
def test_products_are_as_exact_as_is_agreed(n, features, outputs, bias, scale, precision, seed):
    rng = np.random.default_rng(seed)
    w, x = scale * rng.normal(size=(outputs, features)), rng.normal(size=(n, features)) / scale
    b = scale * rng.normal(size=outputs) if bias else None
    server = KeyedServer(w, b, private=False, precision=precision)
    client = KeyedClient(server.agreement, bias=bias)
    request, norms = client.encrypt(x)
    products = server.for_client(client.material())
    cost = products.cost(products.rows_of(request))
    reply = products.multiply(request)
    assert len(request) == cost.request_bytes
    assert len(reply) <= cost.reply_bytes
    y = client.decrypt(reply, norms)
    rows = np.column_stack([x, np.ones(n)]) if bias else x
    bound = server.agreement.error_bound * np.linalg.norm(rows, axis=1)[:, None]
    assert np.all(np.abs(y - x @ w.T - (0 if b is None else b)) <= bound)


class TestSearch:
    def test_finds_what_a_search_in_the_clear_finds(self):
        vectors = table(3000, 64)
        queries = table(4, 64, seed=1)
        exact = queries @ vectors.T
        with connected(short("papers", vectors)) as connection:
            rows, products = hn.search(connection, queries, k=5)
            one, product = hn.search(connection, queries[2].astype(np.float32), k=5, table="papers")
        assert rows.shape == products.shape == (4, 5)
        np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1)[:, :5])
        np.testing.assert_allclose(products, np.take_along_axis(exact, rows, axis=1), atol=1e-5)
        np.testing.assert_array_equal(one, rows[2])
        assert product.shape == (5,)

    def test_sends_little_and_nothing_is_fetched(self):
        vectors = table(4096, 128)
        with connected(short("papers", vectors)) as connection:
            hn.search(connection, table(1, 128, seed=1))
            once, down = connection.bytes_up, connection.bytes_down
            hn.search(connection, table(1, 128, seed=2))
            request, reply = connection.bytes_up - once, connection.bytes_down - down
        assert once - request < 500_000  # the keys
        assert request + reply < 80_000

    @pytest.mark.parametrize("k", [0, 31])
    def test_impossible_numbers(self, k):
        with connected(short("papers", table(30, 8))) as connection, pytest.raises(hn.ParameterError, match="30 rows"):
            hn.search(connection, table(1, 8), k=k)

    def test_which_table(self):
        with connected(short("a", table(30, 8)), short("b", table(20, 8))) as connection:
            with pytest.raises(hn.ParameterError, match="say which table"):
                hn.search(connection, table(1, 8))
            with pytest.raises(hn.ParameterError, match="no layer"):
                hn.search(connection, table(1, 8), table="c")
            assert hn.search(connection, table(1, 8), k=20, table="b")[0].shape == (1, 20)

    @pytest.mark.parametrize("queries", [np.zeros((1, 7)), np.zeros((1, 2, 8)), np.zeros((1, 8), int)])
    def test_queries_that_do_not_fit(self, queries):
        with connected(short("papers", table(30, 8))) as connection, pytest.raises(hn.ParameterError):
            hn.search(connection, queries)

    def test_queries_without_numbers(self):
        with connected(short("papers", table(30, 8))) as connection, pytest.raises(hn.RangeError):
            hn.search(connection, np.full((1, 8), np.nan))


class TestServer:
    def test_gradients_and_hints_are_not_had(self):
        layer = short("fc", table(30, 8))
        with connected(layer) as connection, pytest.raises(hn.ParameterError, match="no backward requests"):
            connection.multiply("fc", np.zeros((1, 30)), "backward")
        for direction in ("forward", "backward"):
            with pytest.raises(hn.ParameterError, match=r"without hints|no backward"):
                layer.at(direction)
        with pytest.raises(hn.ParameterError, match="with hints only"):
            hn.serve({"weight": torch.ones(3, 2)}, hints=False, backward=True, port=0)
        with pytest.raises(hn.ParameterError, match="epoch"):
            hn.serve({"weight": torch.ones(3, 2)}, hints=False, epoch="2", port=0)

    def test_clients_hear_that_weights_are_not_private(self):
        with connected(short("fc", table(30, 8))) as connection:
            described = connection.layers["fc"]
        assert described.keyed is not None
        assert not described.private
        assert "without hints" in described.kind

    def test_a_key_costs_what_is_reserved_for_it(self):
        agreement = KeyedServer(table(500, 60), private=False).agreement
        assert len(KeyedClient(agreement, bias=False).material()) == agreement.material_bytes
        served = connected(short("fc", table(500, 60)), memory=agreement.client_bytes)
        with served as connection, pytest.raises(hn.errors.BudgetError):
            connection.multiply("fc", np.zeros((1, 60)))

    def test_parameters_for_something_else_are_refused(self):
        parameters = keyed_parameters(60, 500, private=False)
        KeyedAgreement(60, 500, parameters, 1.0)
        for other in (
            hn.Parameters(ring_degree=4096, modulus_bits=[50, 50], scale=2.0**20, packing="merged"),
            hn.Parameters(ring_degree=2048, modulus_bits=[50], scale=2.0**20, activation_norm=1, activation_bound=1),
        ):
            with pytest.raises(hn.ParameterError):
                KeyedAgreement(60, 500, other, 1.0)

    def test_over_the_network(self):
        weight = torch.from_numpy(table(700, 33))
        model = torch.nn.Linear(33, 700, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(weight)
        with hn.serve(model, hints=False, port=0) as server, hn.connect(server.address) as connection:
            x = torch.randn(5, 33, dtype=torch.float64)
            layer = hn.nn.encrypt(model, server=connection)
            assert torch.allclose(layer(x), model(x), atol=1e-4)


def test_from_the_command_line(tmp_path):
    vectors = table(900, 24)
    path = tmp_path / "table.safetensors"
    save_file({"papers.weight": torch.from_numpy(vectors)}, path)
    command = [sys.executable, "-m", "hesplit_native", "serve", "--model", str(path), "--no-hints", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        said = ""
        try:
            while (found := re.search(r"listening on \S+?:(\d+)", said)) is None:
                line = server.stdout.readline()
                assert line, said
                said += line
            assert "without hints" in said
            with hn.connect(f"127.0.0.1:{found[1]}") as connection:
                rows, _ = hn.search(connection, vectors[17], k=3)
            assert rows[0] == 17
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)


class Edge:
    """A server's answers, or a forged one, of which a number is at the edge of its range."""

    def __init__(self, products, forged):
        self._products, self.forged = products, forged

    def __getattr__(self, name):
        return getattr(self._products, name)

    def multiply(self, request):
        reply = bytearray(self._products.multiply(request))
        if self.forged:
            head = 64 + 12 + 1 + 8
            bits = reply[64 + 12]
            # The first number of c0; c1 is 0.
            reply[head:-8] = ((1 << (bits - 1)) - 1).to_bytes(len(reply) - head - 8, "little")
        return _testing.reseal(bytes(reply))


@pytest.mark.parametrize("private", [False, True])
def test_a_key_is_not_used_again_after_a_reply_out_of_range(private):
    layer = KeyedLayer("fc", KeyedServer(table(200, 16), private=private))
    served = make_service([layer], memory=MEMORY)
    with Connection([("here", lambda: InProcessChannel(served.converse(ClientInfo("test"))))], 0.0) as connection:
        x = table(1, 16, seed=1)
        connection.multiply("fc", x)
        before = connection._keys["fc"].client
        make = layer.server.for_client
        object.__setattr__(layer.server, "for_client", lambda material: Edge(make(material), True))
        connection._forget_key("fc", connection._keys["fc"])
        with pytest.raises(hn.RangeError):
            connection.multiply("fc", x)
        assert "fc" not in connection._keys
        object.__setattr__(layer.server, "for_client", make)
        exact = x @ table(200, 16).T
        np.testing.assert_allclose(connection.multiply("fc", x), exact, atol=1e-3)
        with pytest.raises(hn.KeyMismatchError):
            before.encrypt(x)


def test_requests_hold_no_memory_for_what_is_resident():
    server = KeyedServer(table(20_000, 64), private=False)
    assert server.resident_bytes > 20_000_000 > server.agreement.cost(1).working_bytes


def test_a_layer_that_no_request_could_use_is_refused_at_the_start():
    weight = np.zeros((2048, 65536), np.float32)
    with pytest.raises(hn.WireError, match="of memory"):
        KeyedServer(weight, private=False)


def test_offers_of_too_many_layers_without_hints_are_refused_before_they_are_checked():
    values = short("fc", table(30, 8)).description.to_json()
    body = json.dumps({"layers": [values | {"name": str(number)} for number in range(frozen_messages.MAX_KEYED + 1)]})
    with pytest.raises(hn.WireError, match="1024 layers"):
        frozen_messages.take_offer(memoryview(body.encode()))


@pytest.mark.parametrize("private", [False, True])
def test_vectors_that_were_normalised_in_float32_have_norm_1(private):
    vectors = table(3000, 40).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.linalg.norm(vectors.astype(np.float64), axis=1).max() > 1 + 1e-8
    for weight, norm in ((vectors, 1), (4 * vectors, 4), (1.0001 * vectors, 2)):
        assert KeyedServer(weight, private=private).agreement.weight_norm == norm
        KeyedServer(weight, private=private, weight_norm=float(norm))
