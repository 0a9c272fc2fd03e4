"""A server whose replies hide its weights: products, keys, budgets, and requests that would tell what is hidden."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import hesplit_native as hn
from hesplit_native import _core, _testing
from hesplit_native.errors import BudgetError, ConnectionLost, KeyMismatchError, ProtocolError, QueryBudgetExceeded
from hesplit_native.layer.frozen import FrozenServer
from hesplit_native.layer.keyed import MAX_ROWS, KeyedAgreement, KeyedClient, KeyedServer, keyed_parameters
from hesplit_native.protocols import frozen_messages, messages, serving
from hesplit_native.protocols.frozen import FrozenService
from hesplit_native.protocols.frozen_client import Connection
from hesplit_native.protocols.frozen_messages import Description
from hesplit_native.protocols.messages import NO_SESSION, MessageType
from hesplit_native.protocols.queries import QueryLedger
from hesplit_native.protocols.served_layers import FrozenLayer, KeyedLayer
from hesplit_native.protocols.server import Server
from hesplit_native.transport import ClientInfo, InProcessChannel, make_authority, make_client, make_server

MEMORY = 1 << 29


def weights(seed=0, out=9, inner=14):
    return np.random.default_rng(seed).normal(size=(out, inner))


def layer(name="fc", seed=0, bias=None, **options):
    return KeyedLayer(name, KeyedServer(weights(seed), bias, **options))


def service(*layers, memory=MEMORY, **options):
    return FrozenService(layers or [layer()], memory=memory, **options)


def bound(served, x, bias):
    """What errors of the products of x may be, [n, 1]."""
    rows = np.column_stack([x, np.ones(len(x))]) if bias else x
    return served.agreement.error_bound * np.linalg.norm(rows, axis=1)[:, None]


def channel_to(served, name="test"):
    return InProcessChannel(served.converse(ClientInfo(name)))


class Raw:
    """A client that sends what it likes; it has a key of its own for ``fc``."""

    def __init__(self, to, introduced=True):
        self.layer = to.layers["fc"].description
        self.channel = channel_to(to)
        self.client = KeyedClient(self.layer.keyed, bias=self.layer.bias)
        if introduced:
            assert self.introduce().type is MessageType.DONE

    def ask(self, kind, *parts, step=0):
        self.channel.send(messages.pack(kind, step, NO_SESSION, *parts))
        return messages.unpack(self.channel.receive())

    def introduce(self):
        return self.ask(MessageType.KEY, *frozen_messages.key_for(self.layer, self.client.material()))

    def product(self, rows=3):
        request, norms = self.client.encrypt(np.ones((rows, 14)))
        reply = self.ask(MessageType.PRODUCT, address(), request)
        return reply if reply.type is MessageType.REFUSED else self.client.decrypt(reply.body, norms)

    def works(self):
        return np.abs(self.product() - weights().sum(1)).max() < 1e-3


def refused(reply):
    assert reply.type is MessageType.REFUSED
    return frozen_messages.take_refusal(reply.body)[0]


def address(**changes):
    return messages.text(json.dumps({"layers": ["fc"], "direction": "forward"} | changes))


# Products


@settings(max_examples=25)
@given(
    rows=st.integers(0, 40),
    inner=st.integers(1, 60),
    out=st.integers(1, 40),
    bias=st.booleans(),
    precision=st.sampled_from(["float32", "bfloat16"]),
    single=st.booleans(),
    weight_scale=st.integers(-6, 6),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=300, inner=257, out=5, bias=True, precision="float32", single=False, weight_scale=0, seed=0)
@example(rows=3, inner=5000, out=2, bias=False, precision="float32", single=False, weight_scale=-6, seed=1)
@example(rows=2, inner=3, out=700, bias=True, precision="bfloat16", single=True, weight_scale=6, seed=2)
def test_products_are_within_the_bound_that_is_stated(rows, inner, out, bias, precision, single, weight_scale, seed):
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(out, inner)) * 10.0**weight_scale
    offset = generator.normal(size=out) * 10.0 ** generator.integers(-6, 7) if bias else None
    x = generator.normal(size=(rows, inner)) * 10.0 ** generator.integers(-6, 7, size=(rows, 1))
    if single:
        x = x.astype(np.float32)
    served = KeyedServer(weight, offset, precision=precision)
    connection = hn.connect(service(KeyedLayer("fc", served)))
    y = connection.multiply("fc", x)
    exact = x.astype(np.float64) @ weight.T + (0 if offset is None else offset)
    assert y.shape == exact.shape
    assert (np.abs(y - exact) <= bound(served, x, bias)).all()
    assert connection.requests == -(-rows // MAX_ROWS)
    assert connection.layers["fc"].keyed == served.agreement


def test_the_error_is_about_the_noise_that_is_stated():
    """The bound is not loose by orders of magnitude, nor is the flood left out; larger batches are flooded less."""
    served = KeyedServer(weights(inner=200), np.ones(9))
    agreed, connection = served.agreement, hn.connect(service(KeyedLayer("fc", served)))
    x = np.random.default_rng(1).normal(size=(120, 200))
    exact = x @ weights(inner=200).T + 1
    norms = np.linalg.norm(np.column_stack([x, np.ones(120)]), axis=1)[:, None]
    alone = np.concatenate([connection.multiply("fc", row[None]) for row in x])
    together = connection.multiply("fc", x)
    deviations = [((y - exact) / norms).std() for y in (alone, together)]
    assert deviations[0] == pytest.approx(agreed.noise, rel=0.15)  # 1080 uniform numbers, and the rest of the error
    assert agreed.noise / 100 < deviations[1] < deviations[0]
    assert agreed.noise > agreed.error_bound / 10


@pytest.mark.parametrize(
    "x", [np.zeros((2, 14)), np.full((1, 14), 1e300), np.full((1, 14), 1e-300), np.eye(14)[:3] * 1e-320]
)
def test_rows_of_zeros_and_of_any_exponent(x):
    with np.errstate(over="ignore"):
        y = hn.connect(service()).multiply("fc", x)
        np.testing.assert_allclose(y, x @ weights().T, rtol=0, atol=1e-3 * np.abs(x).max())


def test_rows_that_are_no_numbers_are_refused():
    connection = hn.connect(service())
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(hn.RangeError, match="NaN or Inf"):
            connection.multiply("fc", np.full((2, 14), value))
    with pytest.raises(hn.RangeError, match="beyond float64"):
        connection.multiply("fc", np.full((1, 14), 1.7e308))
    for x in (np.ones((2, 14), int), np.ones((2, 13)), np.ones(14)):
        with pytest.raises(hn.ParameterError):
            connection.multiply("fc", x)
    assert connection.requests == 0
    assert connection.multiply("fc", np.ones((1, 14))).shape == (1, 9)


def test_several_layers_of_one_input():
    connection = hn.connect(service(layer("a"), layer("b", 1), FrozenLayer("open", FrozenServer(weights()), None)))
    x = np.random.default_rng(0).normal(size=(4, 14))
    for y, seed in zip(connection.multiply_together(["a", "b", "a"], x), (0, 1, 0), strict=True):
        np.testing.assert_allclose(y, x @ weights(seed).T, atol=1e-3)
    assert connection.requests == 2
    with pytest.raises(hn.ParameterError, match=r"rows for open .* cannot serve a"):
        connection.multiply_together(["open", "a"], x)
    np.testing.assert_allclose(connection.multiply("open", x), x @ weights().T, atol=1e-3)


# What is agreed


class TestAgreement:
    def test_says_a_power_of_two_of_the_weights_and_nothing_else(self):
        one, other = (w * norm / np.linalg.norm(w, axis=1).max() for w, norm in ((weights(), 4.1), (weights(1), 7.9)))
        offers = [frozen_messages.offer([KeyedLayer("fc", KeyedServer(w)).description]) for w in (one, other)]
        assert offers[0] == offers[1]
        assert KeyedServer(one).agreement.weight_norm == 8

    @pytest.mark.parametrize(
        ("weight", "norm"),
        [(np.eye(3), 1.0), (np.eye(3) * 2**-30, 2**-30), (np.zeros((2, 3)), 1.0), (np.full((1, 4), 0.51), 2.0)],
    )
    def test_norms_are_rounded_up(self, weight, norm):
        assert KeyedServer(weight).agreement.weight_norm == norm

    def test_a_bias_counts(self):
        assert KeyedServer(np.eye(3), np.array([0.0, 40.0, 0.0])).agreement.weight_norm == 64

    def test_a_stated_norm_is_kept_to(self):
        assert KeyedServer(np.eye(3), weight_norm=1).agreement.weight_norm == 1
        assert KeyedServer(np.eye(3), weight_norm=5.5).agreement.error_bound == pytest.approx(11e-6)
        with pytest.raises(hn.RangeError, match=r"norm of 3, and what is agreed for it is 2\.5") as refusal:
            KeyedServer(3 * np.eye(3), weight_norm=2.5)
        assert "--weight-norm" in str(refusal.value)
        for norm in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(hn.ParameterError, match="positive and finite"):
                KeyedServer(np.eye(3), weight_norm=norm)

    def test_weights_that_are_no_numbers_are_refused(self):
        with pytest.raises(hn.RangeError, match="NaN or Inf"):
            KeyedServer(np.full((2, 3), np.nan))
        with pytest.raises(hn.ParameterError, match=r"bias of shape \[2\]"):
            KeyedServer(np.ones((2, 3)), np.ones(3))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"parameters": "zz"}, "hexadecimal"),
            ({"parameters": 3}, "has parameters"),
            ({"parameters": ""}, "cannot be asked under keys"),
            ({"weight_norm": 1}, "has parameters and a weight_norm"),
            ({"weight_norm": math.nan}, "positive and finite"),
            ({"weight_norm": math.inf}, "positive and finite"),
            ({"weight_norm": -1.0}, "positive and finite"),
            ({"parameters": lambda p: dataclasses.replace(p, activation_norm=0.5)}, "rows of l2 norm 1"),
            ({"parameters": lambda p: dataclasses.replace(p, weight_norm=0.5)}, "rows of l2 norm 1"),
            ({"parameters": lambda p: dataclasses.replace(p, releases=4)}, "rows of l2 norm 1"),
            ({"parameters": lambda p: hn.Parameters(2048, (50,), 2.0**20)}, "with private_bits"),
            ({"parameters": lambda p: dataclasses.replace(p, error_bound=1e-12)}, "cannot hold"),
            ({"parameters": lambda p: dataclasses.replace(p, security="paper", modulus_bits=(60, 60))}, "of 128 bits"),
        ],
    )
    def test_what_a_client_does_not_agree_to(self, change, words):
        described = layer().description
        values = described.to_json()
        for name, value in change.items():
            agreed = values["keyed"]
            agreed[name] = value(described.keyed.parameters).to_bytes().hex() if callable(value) else value
        with pytest.raises(hn.WireError, match=words):
            frozen_messages.take_offer(memoryview(json.dumps({"layers": [values]}).encode()))

    @pytest.mark.parametrize("change", [{"in_features": 1 << 70}, {"in_features": 10**9}, {"out_features": 1 << 40},
                                        {"backward": True}, {"keyed": 3}, {"keyed": []}])  # fmt: skip
    def test_layers_that_are_none(self, change):
        values = layer().description.to_json() | change
        with pytest.raises(hn.WireError, match="offer"):
            frozen_messages.take_offer(memoryview(json.dumps({"layers": [values]}).encode()))

    @given(st.binary(max_size=80), st.integers(0, 150))
    def test_damaged_offers_are_refused_or_agreed_to_as_they_are(self, noise, at):
        good = frozen_messages.offer([layer().description])
        damaged = good[:at] + noise + good[at + len(noise) :]
        try:
            found = frozen_messages.take_offer(memoryview(damaged))
        except hn.WireError:
            return
        assert all(one.keyed is None or isinstance(one.keyed, KeyedAgreement) for one in found.values())


# Keys, and requests that are not as they must be


class TestKeys:
    def test_a_request_before_a_key(self):
        talk = Raw(service(), introduced=False)
        with pytest.raises(KeyMismatchError, match="no key for it came over this connection"):
            raise refused(talk.product())
        assert talk.introduce().type is MessageType.DONE
        assert talk.works()

    def test_a_key_of_another_connection(self):
        served = service()
        talk, other = Raw(served), Raw(served, introduced=False)
        assert talk.works()
        other.client = talk.client
        with pytest.raises(KeyMismatchError, match="no key"):
            raise refused(other.product())

    def test_requests_under_another_key(self):
        talk = Raw(service())
        honest = talk.client
        talk.client = KeyedClient(talk.layer.keyed, bias=False)
        with pytest.raises(KeyMismatchError, match="another key"):
            raise refused(talk.product())
        assert talk.introduce().type is MessageType.DONE  # which replaces the first
        assert talk.works()
        talk.client = honest
        assert isinstance(refused(talk.product()), KeyMismatchError)

    @pytest.mark.parametrize("at", [0, 5, 30, 100, 5000, 30000, -20, -3])
    def test_damaged_material(self, at):
        talk = Raw(service(), introduced=False)
        material = bytearray(talk.client.material())
        material[at] ^= 1
        reply = talk.ask(MessageType.KEY, *frozen_messages.key_for(talk.layer, bytes(material)))
        assert isinstance(refused(reply), hn.WireError | KeyMismatchError)
        assert isinstance(refused(talk.product()), KeyMismatchError)
        assert talk.introduce().type is MessageType.DONE
        assert talk.works()

    @pytest.mark.parametrize("change", [lambda m: m[:-1], lambda m: m + b"x", lambda m: b"", lambda m: m * 4])
    def test_material_of_another_length(self, change):
        talk = Raw(service(), introduced=False)
        reply = talk.ask(MessageType.KEY, *frozen_messages.key_for(talk.layer, change(talk.client.material())))
        with pytest.raises(hn.WireError, match="the public material for fc takes"):
            raise refused(reply)
        assert talk.introduce().type is MessageType.DONE

    def test_material_of_other_parameters_or_another_shape(self):
        talk = Raw(service(), introduced=False)
        agreed = talk.layer.keyed
        others = [
            dataclasses.replace(agreed, parameters=dataclasses.replace(agreed.parameters, private_bits=39)),
            dataclasses.replace(agreed, outputs=8),
            dataclasses.replace(agreed, features=13),
        ]
        for other in others:
            foreign = KeyedClient(other, bias=False).material()
            reply = talk.ask(MessageType.KEY, *frozen_messages.key_for(talk.layer, foreign))
            assert isinstance(refused(reply), hn.WireError | KeyMismatchError)
        assert talk.introduce().type is MessageType.DONE
        assert talk.works()

    def test_a_layer_that_the_client_sees_otherwise(self):
        talk = Raw(service(), introduced=False)
        agreed = dataclasses.replace(talk.layer.keyed, weight_norm=16.0)
        for other in (dataclasses.replace(talk.layer, keyed=agreed), dataclasses.replace(talk.layer, bias=True)):
            reply = talk.ask(MessageType.KEY, *frozen_messages.key_for(other, talk.client.material()))
            with pytest.raises(KeyMismatchError, match="another layer here"):
                raise refused(reply)


def test_servers_that_train_take_no_keys():
    channel = channel_to(Server())
    described = layer().description
    material = KeyedClient(described.keyed, bias=False).material()
    channel.send(messages.pack(MessageType.KEY, 0, NO_SESSION, *frozen_messages.key_for(described, material)))
    reply = messages.unpack(channel.receive())
    assert reply.type is MessageType.ERROR
    assert "started with --model" in messages.take_text(reply.body, "error")[0]


def lifted(residues, primes):
    """The number between -q/2 and q/2 with these residues."""
    q = math.prod(primes)
    value = sum(int(r) * pow(q // p, -1, p) * (q // p) for r, p in zip(residues, primes, strict=True)) % q
    return value - q if value > q // 2 else value


@pytest.mark.parametrize("spread", [False, True])
def test_a_made_up_key_reads_all_of_a_ternary_u_and_little_of_a_wide_one(spread):
    """Half a key that is made up reads the other side's u from the numbers that are sent, in a narrow layout all: so u is wide."""
    rows, inner, out = 128, 769, 768
    parameters = keyed_parameters(inner, out)
    key, degree = hn.SecretKey.generate(parameters), parameters.ring_degree
    client = hn.LinearClient(key, inner, out)
    weight = weights(inner=inner, out=out) / 100
    server = hn.LinearServer(client.public_material(), weight, private=True)
    request = client.encrypt(np.full((rows, inner), 1 / inner))
    seen = _core.inspect_products(server._native, request, weight, np.zeros(0))
    primes, q, positions = seen["primes"], math.prod(seen["primes"]), seen["ciphertexts"][0]["positions"]
    scale = seen["scale"] * q / 2.0 ** seen["bits"]
    flood = round(math.log2(parameters.estimate(inner, out, rows)["logit_noise"] * math.sqrt(3) * scale))
    step, digits = 2 << flood, int((math.log2(q) - flood - 2) / math.log2(3))

    made_up = np.zeros((len(primes), degree), np.uint64)
    for j in range(digits):
        made_up[:, j] = [step * 3**j % p for p in primes]
    packed = [_testing.pack_bits(row, p.bit_length()) for row, p in zip(made_up, primes, strict=True)]
    honest, ends = key._native.public_key().to_bytes(), -8 - sum(map(len, packed))
    forged = _testing.reseal(honest[:ends] + b"".join(packed) + honest[-8:])
    planned = parameters.estimate(inner, out, rows)["spread_bits"]
    sent, c1 = _testing.hide_product(forged, positions, flood, np.zeros_like(made_up), planned if spread else 0)

    u = np.full(degree, 9)
    for position, residues in zip(positions, sent.T, strict=True):
        number = (lifted(residues, primes) + step // 2) // step
        for j in range(digits):
            digit = (number + 1) % 3 - 1
            number = (number - digit) // 3
            u[position - j] = digit if position >= j else -digit
    assert (np.abs(u) <= 1).all()
    # With the honest half b it makes an encryption of zero of c1: b u + c1 s is small.
    at, b = len(honest) + ends, []
    for row, p in zip(packed, primes, strict=True):
        b.append(_testing.unpack_bits(honest[at : at + len(row)], degree, p.bit_length(), p))
        at += len(row)
    secret = (
        _testing.unpack_bits(bytes(key._native.to_bytearray())[-8 - degree // 4 : -8], degree, 2, 3).astype(int) - 1
    )
    halves = [
        _testing.multiply(primes, one, np.stack([(small % p).astype(np.uint64) for p in primes]))
        for one, small in ((np.stack(b), u), (c1, secret))
    ]
    phase = [
        lifted(residues, primes) for residues in ((halves[0] + halves[1]) % np.array(primes, np.uint64)[:, None]).T
    ]
    assert (max(map(abs, phase)) < 1 << 20) is not spread
    if spread:  # whatever the attack is: a number says no more than what the flood leaves of q
        said = len(positions) * (math.log2(q) - flood - 1)
        assert said < 0.4 * degree * (planned + 1)


def good(rows=3, client=None):
    client = client or KeyedClient(layer().description.keyed, bias=False)
    return client.encrypt(np.ones((rows, 14)))[0]


def with_shape(*shape):
    request = bytearray(good())
    request[64:76] = np.array(shape, "<u4").tobytes()
    return bytes(request)


KEY_BODY = frozen_messages.key_for(layer().description, b"")[0]


@pytest.mark.parametrize(
    ("kind", "body", "error", "words"),
    [
        (MessageType.HINT, address(have=0), hn.ParameterError, "are private: there is no hint"),
        (MessageType.HINT, address(have=0, direction="backward"), hn.ParameterError, "backward requests, which would tell"),
        (MessageType.PRODUCT, address(direction="backward") + good(), hn.ParameterError, "backward requests, which would tell"),
        (MessageType.PRODUCT, address(layers=["fc", "more"]) + good(), KeyMismatchError, "no key"),
        (MessageType.PRODUCT, address(layers=["fc", "open"]) + good(), hn.ParameterError, "rows for fc cannot serve open"),
        (MessageType.PRODUCT, address(layers=["open", "fc"]) + good(), hn.ParameterError, "rows for open cannot serve fc"),
        (MessageType.PRODUCT, address() + good()[:70], hn.WireError, "shorter than its head"),
        (MessageType.PRODUCT, address() + good()[:-1], hn.WireError, "announces"),
        (MessageType.PRODUCT, address() + good() + b"x", hn.WireError, "no more than"),
        (MessageType.PRODUCT, address() + with_shape(0, 1, 14), hn.WireError, "1 to 128 rows for this layer, this one 0"),
        (MessageType.PRODUCT, address() + with_shape(129, 1, 14), hn.WireError, "this one 129"),
        (MessageType.PRODUCT, address() + with_shape(3, 1, 1), hn.WireError, "another layout"),
        (MessageType.PRODUCT, address() + with_shape(1, 3, 14), hn.WireError, "another layout"),
        (MessageType.PRODUCT, address(layers=["open"]) + good(), hn.WireError, "a request of"),
        (MessageType.KEY, b"", hn.WireError, "ends before"),
        (MessageType.KEY, messages.text("{}"), hn.WireError, "description of a layer"),
        (MessageType.KEY, messages.text('{"name": 3}'), hn.WireError, "description of a layer"),
        (MessageType.KEY, messages.text('{"name": "fcc"}'), hn.ParameterError, r"no layer 'fcc' \(did you mean fc"),
        (MessageType.KEY, messages.text('{"name": "open"}'), hn.ParameterError, "has hints"),
        (MessageType.KEY, KEY_BODY + bytes(1 << 21), hn.WireError, "a KEY is no longer than"),
    ],
)  # fmt: skip
def test_a_bad_request_costs_that_request(kind, body, error, words):
    talk = Raw(service(layer(), layer("more", 1), FrozenLayer("open", FrozenServer(weights()), None)))
    reply = talk.ask(kind, body, step=7)
    assert reply.step == 7
    with pytest.raises(error, match=words):
        raise refused(reply)
    assert talk.works()


@settings(max_examples=40)
@given(
    st.binary(max_size=200), st.integers(0, 700), st.sampled_from([MessageType.KEY, MessageType.PRODUCT]), st.booleans()
)
def test_whatever_a_client_sends_is_answered(noise, at, kind, whole):
    """Noise written into a good message."""
    talk = Raw(TestKeys.served)
    bodies = {
        MessageType.KEY: b"".join(frozen_messages.key_for(talk.layer, talk.client.material())),
        MessageType.PRODUCT: address() + good(client=talk.client),
    }
    body = bodies[kind]
    damaged = body[:at] + noise + (body[at + len(noise) :] if whole else b"")
    reply = talk.ask(kind, damaged)
    if reply.type is MessageType.REFUSED:
        assert refused(reply).args
    else:
        assert (kind, reply.type) in {(MessageType.KEY, MessageType.DONE), (MessageType.PRODUCT, MessageType.RESULT)}
        assert damaged == body
    assert talk.works()


TestKeys.served = service()


# Memory


class TestMemory:
    def test_of_a_key_is_held_as_long_as_the_connection(self):
        served = service(layer(), layer("more", 1))
        talk = Raw(served)
        held = talk.layer.keyed.client_bytes
        assert held > 1 << 18
        assert held <= served.budget.held < held + (1 << 16)
        assert talk.introduce().type is MessageType.DONE  # again: nothing more
        assert talk.works()
        assert held <= served.budget.held < held + (1 << 16)
        more = served.layers["more"].description
        material = KeyedClient(more.keyed, bias=False).material()
        assert talk.ask(MessageType.KEY, *frozen_messages.key_for(more, material)).type is MessageType.DONE
        assert 2 * held <= served.budget.held < 2 * held + (1 << 16)
        talk.channel.close()
        assert served.budget.held == 0

    def test_is_there_before_a_key_is_taken_in(self):
        needed = layer().description.keyed.client_bytes
        talk = Raw(service(memory=needed), introduced=False)
        reply = talk.introduce()
        error, later = frozen_messages.take_refusal(reply.body)
        assert isinstance(error, BudgetError)
        assert not later
        talk = Raw(service(memory=needed + (1 << 20)), introduced=False)
        assert talk.introduce().type is MessageType.DONE

    def test_of_a_request_is_held_beside_that_of_the_key(self):
        wide = KeyedLayer("fc", KeyedServer(weights(inner=400)))
        agreed = wide.description.keyed
        for rows in (128, 1):
            cost, length = agreed.cost(rows), messages.HEADER_BYTES + len(address()) + agreed.cost(rows).request_bytes
            needed = agreed.client_bytes + length + cost.working_bytes + 2 * cost.reply_bytes
            for spare in (-1, 0):
                talk = Raw(service(wide, memory=needed + spare))
                request, _ = talk.client.encrypt(np.ones((rows, 400)))
                reply = talk.ask(MessageType.PRODUCT, address(), request)
                assert reply.type is (MessageType.RESULT if spare == 0 else MessageType.REFUSED)
                if spare < 0:
                    assert isinstance(refused(reply), BudgetError)

    def test_clients_wait_while_others_take_it(self):
        served = service(memory=8 << 20)
        others = served.budget.hold("others", (8 << 20) - 1000)
        timer = threading.Timer(0.3, others.release)
        timer.start()
        assert hn.connect(served).multiply("fc", np.ones((1, 14))).shape == (1, 9)
        timer.join()


# Connections: keys are introduced on each, and are never used again after a reply that is not genuine


class Tapped:
    """A server whose conversations can be watched, answered otherwise, and broken."""

    def __init__(self, *servers):
        self.servers = list(servers)
        self.sent, self.change, self.lose = [], lambda message: message, 0

    def connect(self, patience=5.0):
        return Connection(
            [(f"server {n}", lambda n=n: self.Channel(self, self.servers[n])) for n in range(len(self.servers))],
            patience,
        )

    def count(self, kind):
        return sum(messages.unpack(message).type is kind for message in self.sent)

    class Channel:
        def __init__(self, tap, server):
            if server is None:
                raise ConnectionLost("nobody is there")
            self.tap, self.inner = tap, channel_to(server)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def send(self, message):
            self.tap.sent.append(message)
            self.inner.send(message)

        def receive(self):
            message = self.inner.receive()
            if self.tap.lose and messages.unpack(message).type is MessageType.RESULT:
                self.tap.lose -= 1
                raise ConnectionLost("lost")
            return self.tap.change(message)


def damaged(message):
    """A reply with one bit of its ciphertexts turned."""
    if messages.unpack(message).type is not MessageType.RESULT:
        return message
    return message[:-1] + bytes([message[-1] ^ 1])


X = np.random.default_rng(5).normal(size=(3, 14))


def right(y, seed=0):
    return np.abs(y - X @ weights(seed).T).max() < 1e-3


class TestConnections:
    def test_a_key_is_sent_once_for_each_channel(self):
        tap = Tapped(service())
        connection = tap.connect()
        for _ in range(3):
            assert right(connection.multiply("fc", X))
        assert tap.count(MessageType.KEY) == 1
        tap.lose = 1
        assert right(connection.multiply("fc", X))
        assert tap.count(MessageType.KEY) == 2
        assert tap.count(MessageType.HINT) == 0

    def test_replicas_are_introduced_too(self):
        tap = Tapped(service(), service())
        connection = tap.connect()
        assert right(connection.multiply("fc", X))
        connection._replicas._replicas[0].idle.clear()
        tap.servers[0] = None
        assert right(connection.multiply("fc", X))
        assert connection.address == "server 1"
        keys = [m for m in tap.sent if messages.unpack(m).type is MessageType.KEY]
        assert len(keys) == 2
        assert keys[0][messages.HEADER_BYTES :] == keys[1][messages.HEADER_BYTES :]

    def test_a_key_whose_reply_was_not_genuine_is_not_used_again(self):
        tap = Tapped(service())
        connection = tap.connect()
        assert right(connection.multiply("fc", X))
        spoilt = connection._keys["fc"].client
        changes = iter([damaged])
        tap.change = lambda message: (
            next(changes, lambda m: m)(message) if messages.unpack(message).type is MessageType.RESULT else message
        )
        assert right(connection.multiply("fc", X))
        with pytest.raises(KeyMismatchError, match="destroyed"):
            spoilt.encrypt(X)
        materials = [m[messages.HEADER_BYTES :] for m in tap.sent if messages.unpack(m).type is MessageType.KEY]
        assert len(set(materials)) == len(materials) == 2
        tap.change = damaged
        with pytest.raises(hn.WireError):
            connection.multiply("fc", X)
        tap.change = lambda message: message
        assert right(connection.multiply("fc", X))

    def test_a_server_that_comes_back_with_other_weights(self):
        tap = Tapped(service())
        connection = tap.connect()
        assert right(connection.multiply("fc", X))
        for other, seed in (
            (layer(seed=1), 1),
            (layer(seed=2, weight_norm=100.0), 2),
            (layer(precision="bfloat16"), 0),
        ):
            tap.servers[0] = service(other)
            connection._replicas._replicas[0].idle.clear()
            y = connection.multiply("fc", X)
            assert np.abs(y - X @ weights(seed).T).max() < 0.1
        assert connection.layers["fc"].precision == "bfloat16"

    @pytest.mark.parametrize(
        "other", [FrozenLayer("fc", FrozenServer(weights()), None), layer(bias=np.ones(9)), layer("fd")]
    )
    def test_a_server_that_comes_back_with_another_layer(self, other):
        tap = Tapped(service())
        connection = tap.connect()
        connection.multiply("fc", X)
        tap.servers[0] = service(other)
        connection._replicas._replicas[0].idle.clear()
        with pytest.raises(hn.ParameterError, match=r"connect again|no layer 'fc'"):
            connection.multiply("fc", X)

    def test_a_layer_that_becomes_private(self):
        tap = Tapped(service(FrozenLayer("fc", FrozenServer(weights()), None)))
        connection = tap.connect()
        connection.multiply("fc", X)
        tap.servers[0] = service()
        connection._replicas._replicas[0].idle.clear()
        with pytest.raises(hn.ParameterError, match="without bias, private: connect again"):
            connection.multiply("fc", X)

    def test_keys_are_zeroed_when_it_is_closed(self):
        with hn.connect(service()) as connection:
            connection.multiply("fc", X)
            client = connection._keys["fc"].client
        with pytest.raises(KeyMismatchError, match="destroyed"):
            client.encrypt(X)
        with pytest.raises(ProtocolError, match="closed"):
            connection.multiply("fc", X)

    def test_many_threads_and_clients_at_once(self, tmp_path):
        make_authority(tmp_path)
        make_server(tmp_path, ["localhost"])
        names = ["alice", "bob", "carol"]
        for name in names:
            make_client(tmp_path, name)
        model = nn.ModuleDict({"a": nn.Linear(30, 7), "b": nn.Linear(30, 4, bias=False)}).double()
        failures = []

        def ask(connection, seed):
            try:
                for number in range(5):
                    x = np.random.default_rng(100 * seed + number).normal(size=(1 + number, 30))
                    for name, module in model.items():
                        exact = module(torch.from_numpy(x)).detach().numpy()
                        if np.abs(connection.multiply(name, x) - exact).max() > 1e-3:
                            failures.append((seed, number, name))
            except Exception as error:
                failures.append(error)

        with hn.serve(model, port=0, tls=tmp_path, private_weights=True, queries=0, memory=MEMORY) as server:
            connections = [hn.connect(f"localhost:{server.port}", tls=tmp_path, client_id=name) for name in names]
            threads = [
                threading.Thread(target=ask, args=(connection, 2 * n + k))
                for n, connection in enumerate(connections)
                for k in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for connection in connections:
                connection.close()
        assert not failures


# The budget


class Known:
    """A server, as it is reached by somebody with a certificate."""

    def __init__(self, server, name="alice"):
        self.server, self.name = server, name

    def converse(self, _anybody):
        return self.server.converse(ClientInfo(self.name, authenticated=True))


def two_layers():
    torch.manual_seed(0)
    return nn.ModuleDict({"fc": nn.Linear(14, 9), "head": nn.Linear(40, 3, bias=False)})


class TestBudget:
    def test_is_half_of_what_solves_each_layer(self, tmp_path):
        with hn.serve(two_layers(), port=0, private_weights=True, query_ledger=tmp_path / "q", memory=MEMORY) as server:
            assert {name: server.service.query_limit(name) for name in server.layers} == {"fc": 7, "head": 20}
            connection = hn.connect(Known(server))
            connection.multiply("fc", np.ones((5, 14)))
            with pytest.raises(
                QueryBudgetExceeded, match=r"gives one client 7 .* 2 are left: ask with 2 rows or fewer"
            ):
                connection.multiply("fc", np.ones((3, 14)))
            assert connection.multiply("fc", np.ones((2, 14))).shape == (2, 9)  # the connection goes on
            again = hn.connect(Known(server))
            with pytest.raises(QueryBudgetExceeded, match="no more of these"):
                again.multiply("fc", np.ones((1, 14)))
            assert again.multiply("head", np.ones((20, 40))).shape == (20, 3)
            assert hn.connect(Known(server, "bob")).multiply("fc", np.ones((7, 14))).shape == (7, 9)
        with (
            hn.serve(two_layers(), port=0, private_weights=True, query_ledger=tmp_path / "q", memory=MEMORY) as server,
            pytest.raises(QueryBudgetExceeded),
        ):
            hn.connect(Known(server)).multiply("fc", np.ones((1, 14)))

    def test_of_ones_own(self, tmp_path):
        with hn.serve(
            two_layers(), port=0, private_weights=True, queries=3, query_ledger=tmp_path, memory=MEMORY
        ) as server:
            connection = hn.connect(server.address)
            for name, inner in (("fc", 14), ("head", 40)):
                connection.multiply(name, np.ones((3, inner)))
                with pytest.raises(QueryBudgetExceeded, match="gives all clients without a certificate together 3"):
                    connection.multiply(name, np.ones((1, inner)))

    def test_none_when_told_so(self):
        with hn.serve(two_layers(), port=0, private_weights=True, queries=0, memory=MEMORY) as server:
            assert hn.connect(server).multiply("fc", np.ones((500, 14))).shape == (500, 9)

    def test_what_is_refused_is_not_counted(self, tmp_path):
        served = service(queries=QueryLedger(tmp_path, {"fc": 6}))
        talk = Raw(served)
        refused(talk.ask(MessageType.PRODUCT, address() + with_shape(3, 1, 1)))
        refused(talk.ask(MessageType.HINT, address(have=0)))
        assert talk.product(6).shape == (6, 9)
        assert isinstance(refused(talk.product(1)), QueryBudgetExceeded)

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({}, hn.ParameterError, r"--query-ledger\); or serve without a budget .*--queries 0"),
            ({"queries": 5}, hn.ParameterError, "--query-ledger"),
            ({"queries": 0, "query_ledger": "q"}, hn.ParameterError, "leave --query-ledger out"),
            ({"queries": -1, "query_ledger": "q"}, hn.ParameterError, "1 answer or more"),
            ({"queries": 0, "backward": True}, hn.ParameterError, "a row of W"),
            ({"queries": 0, "epoch": "2"}, hn.ParameterError, "public matrix"),
            ({"queries": 0, "precision": "float8"}, hn.ParameterError, "float32, bfloat16"),
            ({"queries": 0, "weight_norm": 0.01}, hn.RangeError, r"fc: a row of these weights.*--weight-norm"),
            ({"private_weights": False, "weight_norm": 1.0}, hn.ParameterError, "goes with private weights"),
            ({"private_weights": False, "queries": 0, "query_ledger": "q"}, hn.ParameterError, "1 answer or more"),
            ({"private_weights": False, "queries": 0}, hn.ParameterError, "go together"),
        ],
    )
    def test_servers_that_would_tell_or_go_without_are_refused(self, tmp_path, monkeypatch, options, error, words):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(error, match=words):
            hn.serve(two_layers(), port=0, **({"private_weights": True} | options))

    def test_layers_for_which_there_is_no_memory(self, monkeypatch):
        monkeypatch.setattr(serving, "default_memory", lambda: 1000)
        with pytest.raises(
            hn.ParameterError, match=r"no memory is left for requests: the layers take [0-9.]+ MiB, of 0.0 MiB"
        ):
            hn.serve(two_layers(), port=0, private_weights=True, queries=0)

    def test_a_layer_that_one_answer_gives_away(self, tmp_path):
        model = nn.Linear(1, 3, bias=False)
        with pytest.raises(hn.ParameterError, match="one answer"):
            hn.serve(model, port=0, private_weights=True, query_ledger=tmp_path, memory=MEMORY)


# Layers of torch


class TestServedLinear:
    def network(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 7, bias=False))

    @pytest.fixture
    def connection(self):
        with (
            hn.serve(self.network(), port=0, private_weights=True, queries=0, memory=MEMORY) as server,
            hn.connect(server.address) as found,
        ):
            yield found

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_forward(self, connection, dtype):
        with torch.device("meta"):
            model = self.network()
        hn.nn.encrypt(model, server=connection)
        x = torch.randn(2, 3, 12, dtype=dtype)
        y = model(x)
        assert (y.dtype, y.shape, y.requires_grad) == (dtype, (2, 3, 7), False)
        tolerance = 1e-4 if dtype is not torch.bfloat16 else 0.05
        torch.testing.assert_close(y, self.network().to(dtype)(x), atol=tolerance, rtol=tolerance)
        assert connection.requests == 2

    def test_a_head_behind_it_trains(self, connection):
        model = hn.nn.encrypt(self.network(), server=connection)
        head = nn.Linear(7, 2)
        nn.functional.cross_entropy(head(model(torch.randn(4, 12))), torch.zeros(4, dtype=torch.long)).backward()
        assert head.weight.grad.abs().max() > 0

    def test_a_backward_pass_through_it_is_refused(self, connection):
        model = hn.nn.encrypt(self.network(), server=connection)
        x = torch.randn(4, 12, requires_grad=True)
        y = model(x)  # that alone is not
        with pytest.raises(hn.ParameterError, match="no backward requests for 2: its weights are private"):
            y.sum().backward()
        with torch.no_grad():
            assert model(x).shape == (4, 7)

    def test_layers_of_one_input_are_asked_for_themselves_alone(self, tmp_path):
        """An answer that nobody wanted would be one of the budget."""
        torch.manual_seed(1)
        plain = nn.ModuleDict({name: nn.Linear(12, 12) for name in "qkv"})
        with hn.serve(plain, port=0, private_weights=True, query_ledger=tmp_path, memory=MEMORY) as server:
            connection = hn.connect(server.address)
            model = hn.nn.encrypt(nn.ModuleDict({name: nn.Linear(12, 12) for name in "qkv"}), server=connection)
            for names in ("qkv", "q"):
                x = torch.randn(2, 12)
                for name in names:
                    torch.testing.assert_close(model[name](x), plain[name](x), atol=1e-4, rtol=0)
            assert connection.requests == 4
            counts = json.loads((tmp_path / "without a certificate.json").read_text(encoding="utf-8"))["answered"]
            assert counts == {"q": 4, "k": 2, "v": 2}


# From the command line


def wait_for(process, pattern):
    seen = []
    for line in process.stdout:
        seen.append(line)
        found = re.search(pattern, line)
        if found:
            return found, "".join(seen)
    raise AssertionError(f"{pattern} never appeared in {seen}")


@pytest.fixture
def heartbeats(tmp_path):
    """Convolutions for the client, their linear layer for the server, and the test set's logits."""
    from safetensors.torch import save_file

    from hesplit_native.data import synthetic_ecg
    from hesplit_native.training.model_file import activations, load_model, save_model
    from hesplit_native.training.models import architecture

    data = synthetic_ecg()
    shape = architecture("m1", 1, 128, 5)
    torch.manual_seed(3)
    linear = nn.Linear(shape.activations, 5)
    state = {f"body.{name}": value for name, value in shape.body(3).state_dict().items()}
    save_model(tmp_path / "mine.safetensors", shape, state, None, None, data.classes, {}, "single")
    save_file({f"linear.{name}": value for name, value in linear.state_dict().items()}, tmp_path / "theirs.safetensors")
    with torch.no_grad():
        return linear(activations(load_model(tmp_path / "mine.safetensors"), torch.from_numpy(data.test_x))).numpy()


def test_two_processes_under_tls(tmp_path, heartbeats):
    """A model is served by one and asked by the other, until its budget is used up, also after the server was killed."""
    make_authority(tmp_path / "tls")
    make_server(tmp_path / "tls", ["localhost"])
    make_client(tmp_path / "tls", "ward-7")
    rows = len(heartbeats)
    serve = [
        "serve", "--model", tmp_path / "theirs.safetensors", "--port", 0, "--tls", tmp_path / "tls", "--private-weights",
        "--query-ledger", tmp_path / "queries", "--queries", rows + 1, "--memory", 256,
    ]  # fmt: skip

    def predict(port):
        return subprocess.run(
            [
                *(sys.executable, "-m", "hesplit_native", "predict", "--model", tmp_path / "mine.safetensors", "--server"),
                *(f"localhost:{port}", "--tls", tmp_path / "tls", "--client-id", "ward-7", "--output", tmp_path / "p.csv"),
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    for expected in (0, 1):
        server = subprocess.Popen(
            [sys.executable, "-m", "hesplit_native", *map(str, serve)], stdout=subprocess.PIPE, text=True
        )
        try:
            found, said = wait_for(server, r"listening on .*:(\d+) \(mutual TLS\)")
            assert "private weights, forward only" in said
            assert str(rows + 1) in said
            done = predict(found.group(1))
            assert done.returncode == expected, done.stderr
        finally:
            server.kill()
            server.communicate()
    assert f"{rows} rows take {rows} answers about linear" in done.stderr or "are left" in done.stderr
    assert "Traceback" not in done.stderr
    table = np.genfromtxt(tmp_path / "p.csv", delimiter=",", names=True)
    logits = np.column_stack([table[name] for name in table.dtype.names if name.startswith("logit_")])
    np.testing.assert_allclose(logits, heartbeats, atol=1e-3)
    counts = json.loads((tmp_path / "queries" / "ward-7.json").read_text(encoding="utf-8"))["answered"]
    assert rows <= counts["linear"] <= rows + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "private weights need a budget of queries"),
        (["--queries", "0", "--epoch", "b"], "an epoch (--epoch) is of the public matrix"),
        (["--queries", "0", "--weight-norm", "1e-9"], "linear: a row of these weights"),
        (["--queries", "0", "--train"], "--private-weights goes with layers that are used as they are"),
        (["--sessions", "2"], "--sessions goes with layers that are trained"),
    ],
)
def test_commands_that_are_refused(tmp_path, heartbeats, options, words):
    from typer.testing import CliRunner

    from hesplit_native.cli import app

    arguments = ["serve", "--model", str(tmp_path / "theirs.safetensors"), "--port", "0", "--private-weights", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_private_weights_are_of_models(tmp_path):
    from typer.testing import CliRunner

    from hesplit_native.cli import app

    result = CliRunner().invoke(app, ["serve", "--private-weights", "--weight-norm", "3"])
    assert result.exit_code == 1
    assert "--private-weights, --weight-norm go with --model" in result.stderr


def test_parameters_serve_any_number_of_rows():
    """They are laid out for one row; more are no worse."""
    for shape in ((257, 5), (40, 300), (5000, 1)):
        parameters = keyed_parameters(*shape)
        assert all(
            parameters.estimate(*shape, rows)["error"] <= parameters.error_bound
            for rows in (1, 2, 3, 7, 31, 64, 127, 128)
        )


def test_descriptions_survive_the_wire():
    served = [layer().description, Description("open", 3, 4, True, "float32", "x", True)]
    found = frozen_messages.take_offer(memoryview(frozen_messages.offer(served)))
    assert list(found.values()) == served
