"""What we encrypt and compute, checked with SEAL alone: our keys and ciphertexts as its objects, and its as ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _core, _testing


def secret_of(key):
    """Its ternary coefficients, from the bytes of a key file."""
    n = key.parameters.ring_degree
    packed = bytes(key._native.to_bytearray())[-8 - n // 4 : -8]
    return _testing.unpack_bits(packed, n, 2, 3).astype(np.int8) - 1


def whole(ciphertext, primes, degree):
    """c0 with zeros where there is nothing of it."""
    c0 = np.zeros((len(primes), degree), np.uint64)
    c0[:, ciphertext["positions"]] = ciphertext["c0"]
    return c0


def centred(residues, primes):
    """Integers between -q/2 and q/2, as float64."""
    q = math.prod(primes)
    total = (
        sum(row.astype(object) * (pow(q // p, -1, p) * (q // p)) for row, p in zip(residues, primes, strict=True)) % q
    )
    return np.where(total > q // 2, total - q, total).astype(float)


def residues_of(integers, primes):
    return np.stack([np.array([int(v) % p for v in integers], np.uint64) for p in primes])


class Layer:
    """A layer of ours, its key as SEAL's, and a request."""

    def __init__(self, features, outputs, samples, seed, **options):
        rng = np.random.default_rng(seed)
        self.params = hn.Parameters.recommend(in_features=features, out_features=outputs, batch_size=samples, **options)
        self.key = hn.SecretKey.generate(self.params)
        self.client = hn.LinearClient(self.key, features, outputs)
        self.weight, self.bias = rng.normal(size=(outputs, features)) / math.sqrt(features), rng.normal(size=outputs)
        self.server = hn.LinearServer(self.client.public_material(), self.weight, self.bias)
        self.x = rng.normal(size=(samples, features))
        self.request = self.client.encrypt(self.x)
        self.primes, self.degree = list(self.params._native.primes), self.params.ring_degree
        self.seal = _testing.seal_parameters(self.degree, self.primes)
        self.seal_key = _testing.seal_secret_key(self.seal, secret_of(self.key))

    def by_seal(self, ciphertext, scale):
        """What SEAL's decryptor reads, divided by the scale."""
        stock = _testing.seal_ciphertext(
            self.seal, whole(ciphertext, self.primes, self.degree), ciphertext["c1"], scale
        )
        return centred(_testing.seal_decrypt(self.seal, self.seal_key, stock), self.primes) / scale


shapes = given(
    features=st.integers(1, 300), outputs=st.integers(1, 20), samples=st.integers(1, 16), seed=st.integers(0, 1000),
    releases=st.sampled_from([0, 1, 1 << 20]),
)  # fmt: skip


@shapes
@settings(max_examples=15, deadline=None)
def test_seal_decrypts_requests_and_products(features, outputs, samples, seed, releases):
    layer = Layer(features, outputs, samples, seed, releases=releases)
    seen = _core.inspect_request(layer.server._native, layer.request)
    found = np.zeros((samples, seen["width"] * len(seen["ciphertexts"])))
    for j, ciphertext in enumerate(seen["ciphertexts"]):
        values = layer.by_seal(ciphertext, seen["scale"])[: samples * seen["width"]]
        found[:, j * seen["width"] : (j + 1) * seen["width"]] = values.reshape(samples, -1)
    np.testing.assert_allclose(found[:, :features], layer.x, atol=2e-3)
    products = _core.inspect_products(layer.server._native, layer.request, layer.weight, layer.bias)
    scale = products["scale"] * math.prod(layer.primes) / 2.0 ** products["bits"]
    logits = np.concatenate([
        layer.by_seal(ciphertext, scale)[ciphertext["positions"]].reshape(-1, samples)
        for ciphertext in products["ciphertexts"]
    ])  # fmt: skip
    exact = layer.x @ layer.weight.T + layer.bias
    assert np.abs(logits[:outputs].T - exact).max() <= layer.params.error_bound


@shapes
@settings(max_examples=15, deadline=None)
def test_we_decrypt_what_seal_encrypted(features, outputs, samples, seed, releases):
    layer = Layer(features, outputs, samples, seed, releases=releases)
    products = _core.inspect_products(layer.server._native, layer.request, layer.weight, layer.bias)
    bits, q = products["bits"], math.prod(layer.primes)
    scale = products["scale"] * q / 2.0**bits
    y = np.random.default_rng(seed + 1).normal(size=(samples, outputs))
    columns, ciphertexts = iter(y.T), []
    for product in products["ciphertexts"]:
        values = np.concatenate([next(columns, np.zeros(samples)) for _ in range(len(product["positions"]) // samples)])
        message = np.zeros(layer.degree, object)
        message[product["positions"]] = [round(v * scale) for v in values]
        stock = _testing.seal_encrypt(layer.seal, layer.seal_key, residues_of(message, layer.primes), scale)
        c0, c1 = _testing.from_seal_ciphertext(layer.seal, stock)
        switched = [_testing.switch_to_bits(layer.primes, part, bits) for part in (c0, c1)]
        ciphertexts.append((switched[0][product["positions"]], switched[1]))
    reply = _core.forge_reply(layer.server._native, layer.request, bits, products["scale"], ciphertexts)
    assert np.abs(layer.client.decrypt(reply) - y).max() <= layer.params.error_bound


@pytest.mark.parametrize("options", [{}, {"releases": 1 << 20}])
def test_keys_there_and_back(options):
    layer = Layer(20, 3, 4, 0, **options)
    secret = secret_of(layer.key)
    assert set(np.unique(secret)) == {-1, 0, 1}
    np.testing.assert_array_equal(_testing.from_seal_secret_key(layer.seal, layer.seal_key), secret)
    # Another key reads nothing.
    other = _testing.seal_secret_key(layer.seal, np.roll(secret, 1))
    seen = _core.inspect_request(layer.server._native, layer.request)
    first = seen["ciphertexts"][0]
    stock = _testing.seal_ciphertext(layer.seal, whole(first, layer.primes, layer.degree), first["c1"], seen["scale"])
    values = centred(_testing.seal_decrypt(layer.seal, other, stock), layer.primes) / seen["scale"]
    assert np.abs(values).max() > 1e3


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 3), seed=st.integers(0, 1000))
def test_seal_decrypts_what_a_public_key_encrypted(count, seed):
    from hesplit_native.tenseal import sources

    secret = _core.SecretKey.generate(sources.PARAMETERS._native)
    key = _core.PublicKey.from_bytes(secret.public_key().to_bytes())
    primes, degree, scale = list(sources.PARAMETERS._native.primes), 4096, 2.0**30
    values = np.random.default_rng(seed).integers(-(2**40), 2**40, size=(count, degree))
    message = _core.encrypt_polynomials(sources.ring(), key, values)
    # Behind header, kind and count: c0 and c1 of each, a run of 45 bits a prime.
    run = degree * 45 // 8
    parts = [message[at : at + run] for at in range(64 + 5, len(message) - 8, run)]
    rows = np.array([_testing.unpack_bits(part, degree, 45, 1 << 45) for part in parts]).reshape(count, 2, 2, degree)
    context = _testing.seal_parameters(degree, primes)
    packed = bytes(secret.to_bytearray())[-8 - degree // 4 : -8]
    ternary = _testing.unpack_bits(packed, degree, 2, 3).astype(np.int8) - 1
    seal_key = _testing.seal_secret_key(context, ternary)
    for (c0, c1), exact in zip(rows, values, strict=True):
        stock = _testing.seal_ciphertext(context, np.ascontiguousarray(c0), np.ascontiguousarray(c1), scale)
        assert np.abs(centred(_testing.seal_decrypt(context, seal_key, stock), primes) - exact).max() < 8 * 250
