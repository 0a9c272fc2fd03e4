"""What a server reads from messages agrees with what the key decrypts; what it is not made for is refused."""

from __future__ import annotations

import contextlib
import math
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _core, _testing

HEADER, SHAPE = 64, 12
REFUSED = (hn.WireError, hn.KeyMismatchError, hn.ParameterError)

# Features, outputs, samples: one input and one product; several products; several of both, the last ones short.
SHAPES = [(20, 3, 4), (256, 5, 4), (300, 41, 16)]
# One modulus that is sent as an integer, and a larger one that is sent prime by prime.
RANGES = {"small": {}, "large": {"releases": 1 << 20}}


def converse(features, outputs, samples, seed=0, **options):
    """All messages of a training step, and what both sides know."""
    generator = np.random.default_rng(seed)
    params = hn.Parameters.recommend(in_features=features, out_features=outputs, batch_size=samples, **options)
    key = hn.SecretKey.generate(params)
    client = hn.LinearClient(key, features, outputs, weight_gradients=True)
    weight, bias = generator.normal(size=(outputs, features)) / math.sqrt(features), generator.normal(size=outputs)
    server = hn.LinearServer(client.public_material(), weight, bias)
    x, gradient = generator.normal(size=(samples, features)), generator.normal(size=(samples, outputs)) / samples
    request = client.encrypt(x)
    reply, _, kept = server.forward_training(request, keep=True)
    logits = client.decrypt(reply, weight_gradient_follows=True)
    masked, _ = server.weight_gradient(kept, gradient)
    opened = client.open_weight_gradient(masked, gradient)
    n = params.ring_degree
    packed = bytes(key._native.to_bytearray())[-8 - n // 4 : -8]  # before the checksum
    return SimpleNamespace(
        params=params, client=client, server=server._native, weight=weight, bias=bias, x=x, logits=logits,
        request=request, reply=reply, masked=masked, opened=opened,
        secret=_testing.unpack_bits(packed, n, 2, 3).astype(np.int64) - 1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def step():
    return converse(300, 41, 16)


def centred_phase(ciphertext, primes, secret):
    """c0 + c1 s at the positions, as integers between -q/2 and q/2."""
    q = math.prod(primes)
    key = np.stack([(secret % p).astype(np.uint64) for p in primes])
    product = _testing.multiply(primes, ciphertext["c1"], key)[:, ciphertext["positions"]]
    phase = 0
    for a, b, p in zip(ciphertext["c0"], product, primes, strict=True):
        residue = (a.astype(object) + b.astype(object)) % p
        phase += residue * pow(q // p, -1, p) * (q // p)
    phase %= q
    return np.where(phase > q // 2, phase - q, phase)


def phase_modulo_bits(ciphertext, bits, secret):
    """The same modulo 2^bits, from 0."""
    c1, n = ciphertext["c1"].astype(np.int64), len(secret)
    rows = (
        np.concatenate([c1[at::-1], -c1[: at - n : -1]]) if at < n - 1 else c1[::-1] for at in ciphertext["positions"]
    )
    products = np.array([row @ secret for row in rows])  # sums wrap around 2^64, which is harmless
    return (ciphertext["c0"].astype(np.int64) + products) & ((1 << bits) - 1)


@pytest.mark.parametrize("options", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("shape", SHAPES)
class TestAgreesWithTheKey:
    def test_a_request_holds_the_activations(self, shape, options):
        step = converse(*shape, **options)
        seen = _core.inspect_request(step.server, step.request)
        assert seen["samples"] == len(step.x)
        assert seen["scale"] == step.params.scale
        found = np.zeros_like(step.x)
        for j, ciphertext in enumerate(seen["ciphertexts"]):
            values = centred_phase(ciphertext, seen["primes"], step.secret).astype(float) / seen["scale"]
            used = values[: len(step.x) * seen["width"]].reshape(len(step.x), -1)
            columns = found[:, j * seen["width"] : (j + 1) * seen["width"]]
            columns[:] = used[:, : columns.shape[1]]
            assert np.abs(values[len(step.x) * seen["width"] :]).max(initial=0) < 1e-3  # nothing else is in it
        np.testing.assert_allclose(found, step.x, atol=1e-3)

    def test_products_hold_the_logits_and_become_the_reply(self, shape, options):
        step = converse(*shape, **options)
        exact = _core.inspect_products(step.server, step.request, step.weight, step.bias)
        reply = _core.inspect_reply(step.server, step.reply)
        bits, primes = reply["bits"], exact["primes"]
        assert (exact["bits"], exact["scale"]) == (bits, reply["scale"])
        scale = reply["scale"] * math.prod(primes) / 2.0**bits
        logits = []
        for before, after in zip(exact["ciphertexts"], reply["ciphertexts"], strict=True):
            np.testing.assert_array_equal(before["positions"], after["positions"])
            np.testing.assert_array_equal(_testing.switch_to_bits(primes, before["c1"], bits), after["c1"])
            phase = centred_phase(before, primes, step.secret).astype(float)
            logits.append(phase.reshape(-1, len(step.x)) / scale)
            # Of few coefficients the rounding is not available alone: that of the residues as a whole is.
            padded = np.zeros_like(before["c1"])
            padded[:, : before["c0"].shape[1]] = before["c0"]
            switched = _testing.switch_to_bits(primes, padded, bits)
            np.testing.assert_array_equal(switched[: len(after["c0"])], after["c0"])
        expected = step.x @ step.weight.T + step.bias
        np.testing.assert_allclose(np.concatenate(logits).T, expected, atol=step.params.error_bound)

    def test_a_reply_decrypts_to_what_the_client_decrypted(self, shape, options):
        step = converse(*shape, **options)
        seen = _core.inspect_reply(step.server, step.reply)
        found = []
        for ciphertext in seen["ciphertexts"]:
            phase = phase_modulo_bits(ciphertext, seen["bits"], step.secret)
            centred = np.where(phase >> (seen["bits"] - 1), phase - (1 << seen["bits"]), phase)
            found.append(centred.reshape(-1, len(step.x)) / seen["scale"])
        np.testing.assert_array_equal(np.concatenate(found).T, step.logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_masked_gradient_decrypts_to_what_was_opened(shape):
    step = converse(*shape)
    seen = _core.inspect_masked_gradient(step.server, step.masked)
    opened = _core.inspect_opened_gradient(step.server, step.masked, step.opened)
    assert sum(map(len, opened)) == step.weight.size
    for ciphertext, values in zip(seen["ciphertexts"], opened, strict=True):
        np.testing.assert_array_equal(phase_modulo_bits(ciphertext, seen["bits"], step.secret), values)


class TestForgedReplies:
    def test_genuine_ciphertexts_make_the_genuine_reply(self, step):
        seen = _core.inspect_reply(step.server, step.reply)
        ciphertexts = [(c["c0"], c["c1"]) for c in seen["ciphertexts"]]
        again = _core.forge_reply(step.server, step.request, seen["bits"], seen["scale"], ciphertexts)
        assert again == step.reply

    def test_a_client_decrypts_what_was_chosen(self):
        step = converse(256, 5, 4)
        request = step.client.encrypt(step.x)
        genuine = _core.inspect_products(step.server, request, step.weight, step.bias)
        unit = 1 << (genuine["bits"] - 6)
        chosen = []
        for ciphertext in genuine["ciphertexts"]:
            c1 = np.zeros(step.params.ring_degree, np.uint64)
            c1[0] = unit
            chosen.append((np.zeros(len(ciphertext["positions"]), np.uint64), c1))
        forged = _core.forge_reply(step.server, request, genuine["bits"], genuine["scale"], chosen)
        found = step.client.decrypt(forged) * genuine["scale"] / unit
        expected = [step.secret[c["positions"]].reshape(-1, 4) for c in genuine["ciphertexts"]]
        np.testing.assert_allclose(found, np.concatenate(expected).T, rtol=1e-12)

    def test_what_is_no_reply_is_refused(self, step):
        seen = _core.inspect_reply(step.server, step.reply)
        bits, good = seen["bits"], [(c["c0"], c["c1"]) for c in seen["ciphertexts"]]
        large = good[0][1].copy()
        large[3] = 1 << bits
        for wrong_bits, ciphertexts in (
            (bits, good[:-1]), (bits, [*good, good[0]]), (0, good), (63, good), (-1, good),
            (bits, [(good[0][0][:-1], good[0][1]), *good[1:]]), (bits, [(good[0][0], good[0][1][:-1]), *good[1:]]),
            (bits, [(good[0][0], large), *good[1:]]),
        ):  # fmt: skip
            with pytest.raises(hn.ParameterError, match="this re"):
                _core.forge_reply(step.server, step.request, wrong_bits, 1.0, ciphertexts)


READERS = {
    "request": lambda step, data: _core.inspect_request(step.server, data),
    "products": lambda step, data: _core.inspect_products(step.server, data, step.weight, step.bias),
    "forged": lambda step, data: _core.forge_reply(step.server, data, 20, 1.0, []),
    "reply": lambda step, data: _core.inspect_reply(step.server, data),
    "masked": lambda step, data: _core.inspect_masked_gradient(step.server, data),
    "opened": lambda step, data: _core.inspect_opened_gradient(step.server, step.masked, data),
    "opened, masked": lambda step, data: _core.inspect_opened_gradient(step.server, data, step.opened),
}
MESSAGES = {"products": "request", "forged": "request", "opened, masked": "masked"}


@pytest.mark.parametrize("kind", READERS)
class TestMalformedBytes:
    def message(self, step, kind):
        return getattr(step, MESSAGES.get(kind, kind))

    def test_truncated(self, step, kind):
        data = self.message(step, kind)
        for size in (0, 7, HEADER, HEADER + 8, HEADER + SHAPE, len(data) // 2, len(data) - 1):
            with pytest.raises(hn.WireError):
                READERS[kind](step, data[:size])

    def test_damaged(self, step, kind):
        data = bytearray(self.message(step, kind))
        data[len(data) // 2] ^= 1
        with pytest.raises(hn.WireError, match="checksum"):
            READERS[kind](step, bytes(data))

    def test_of_another_type(self, step, kind):
        for other in ("request", "reply", "masked", "opened"):
            if other != MESSAGES.get(kind, kind):
                with pytest.raises(hn.WireError, match=r"expected an? "):
                    READERS[kind](step, getattr(step, other))

    def test_longer_or_shorter_than_the_layout(self, step, kind):
        data = self.message(step, kind)
        for body in (data[HEADER:-8] + bytes(16), data[HEADER:-24]):
            message = bytearray(data[:HEADER] + body + bytes(8))
            message[8:16] = struct.pack("<Q", len(message))
            with pytest.raises(hn.WireError):
                READERS[kind](step, _testing.reseal(bytes(message)))

    @settings(max_examples=150)
    @given(st.data())
    def test_any_other_bytes_with_a_right_checksum(self, step, kind, data):
        message = bytearray(self.message(step, kind))
        at = data.draw(st.integers(16, min(len(message) - 12, HEADER + 120)))
        patch = data.draw(st.binary(min_size=1, max_size=8))[: len(message) - 8 - at]
        message[at : at + len(patch)] = patch
        with contextlib.suppress(*REFUSED):
            READERS[kind](step, _testing.reseal(bytes(message)))

    def test_under_other_parameters(self, step, kind):
        other = converse(300, 41, 16, error_bound=0.01)
        with pytest.raises(hn.KeyMismatchError, match="other parameters"):
            READERS[kind](step, self.message(other, kind))


def test_impossible_layouts_and_heads(step):
    for rows, width in ((0, 1), (17, 1), (2**32 - 1, 2**32 - 1), (16, 0), (16, 301), (16, 2048)):
        for kind in ("request", "reply", "masked"):
            message = bytearray(getattr(step, kind))
            message[HEADER + 4 : HEADER + 12] = struct.pack("<II", rows, width)
            with pytest.raises(hn.WireError):
                READERS[kind](step, _testing.reseal(bytes(message)))
    for bits, scale in ((0, 1.0), (63, 1.0), (255, 1.0), (20, math.nan), (20, 0.0), (20, -1.0)):
        for kind in ("reply", "masked"):
            message = bytearray(getattr(step, kind))
            message[HEADER + SHAPE : HEADER + SHAPE + 9] = struct.pack("<Bd", bits, scale)
            with pytest.raises(hn.WireError, match="impossible number of bits or scale"):
                READERS[kind](step, _testing.reseal(bytes(message)))


def test_an_opened_gradient_of_another_request(step):
    other = converse(300, 41, 16)
    with pytest.raises(hn.KeyMismatchError):
        _core.inspect_opened_gradient(step.server, step.masked, other.opened)
    gradient = np.ones((16, 41))
    client, weights = step.client, (step.weight, step.bias)
    server = hn.LinearServer(client.public_material(), *weights)
    reply, _, kept = server.forward_training(client.encrypt(step.x), keep=True)
    client.decrypt(reply, weight_gradient_follows=True)
    opened = client.open_weight_gradient(server.weight_gradient(kept, gradient)[0], gradient)
    with pytest.raises(hn.KeyMismatchError, match="belongs to another request"):
        _core.inspect_opened_gradient(step.server, step.masked, opened)


def test_weights_of_another_shape_or_without_a_value(step):
    with pytest.raises(hn.ParameterError, match=r"expected weight \[41, 300\]"):
        _core.inspect_products(step.server, step.request, step.weight[:, 1:].copy(), step.bias)
    with pytest.raises(hn.ParameterError, match=r"and bias \[41\]"):
        _core.inspect_products(step.server, step.request, step.weight, step.bias[1:])
    with pytest.raises(hn.RangeError, match="NaN or infinity"):
        _core.inspect_products(step.server, step.request, step.weight, np.full(41, np.nan))


def test_slots_and_several_groups_are_not_inspected():
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4, packing="slots")
    client = hn.LinearClient(hn.SecretKey.generate(params), 20, 3)
    server = hn.LinearServer(client.public_material(), np.ones((3, 20)))
    request = client.encrypt(np.ones((4, 20)))
    for call in (
        lambda: _core.inspect_request(server._native, request),
        lambda: _core.inspect_reply(server._native, server.forward(request)),
        lambda: _core.forge_reply(server._native, request, 20, 1.0, []),
    ):
        with pytest.raises(hn.ParameterError, match="only messages on coefficient blocks"):
            call()
    params = hn.Parameters.recommend(in_features=2, out_features=2, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(params), 2, 2)
    server = hn.LinearServer(client.public_material(), np.ones((2, 2)))
    request = client.encrypt(np.ones((params.ring_degree + 1, 2)))
    for call in (
        lambda: _core.inspect_request(server._native, request),
        lambda: _core.inspect_reply(server._native, server.forward(request)),
    ):
        with pytest.raises(hn.ParameterError, match="one group of samples"):
            call()
