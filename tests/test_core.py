"""The rooms below the layer: randomness, ring, threads."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _core, _testing
from hesplit_native.tenseal import sources


def test_chacha20_known_answer():
    # RFC 8439, section 2.3.2.
    key = bytes(range(32))
    block = _testing.chacha20(key, [0x09000000, 0x4A000000, 0x00000000], 1, 1)
    assert block.hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


def test_chacha20_zero_key_known_answer():
    # RFC 8439, appendix A.1, test vectors 1 and 2.
    stream = _testing.chacha20(bytes(32), [0, 0, 0], 0, 2)
    assert stream[:16].hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert stream[64:80].hex() == "9f07e7be5551387a98ba977c732d080d"


@given(blocks=st.integers(1, 40), counter=st.integers(0, 2**20))
def test_chacha20_blocks_do_not_depend_on_how_many_are_drawn(blocks, counter):
    key = bytes(range(32))
    long = _testing.chacha20(key, [1, 2, 3], counter, blocks)
    single = b"".join(_testing.chacha20(key, [1, 2, 3], counter + i, 1) for i in range(blocks))
    assert long == single


@pytest.mark.parametrize("modulus", [2, 3, 17, 2**20 - 3, 1125899906826241, 2**60 + 33])
def test_uniform_residues_are_below_the_modulus_and_uniform(modulus):
    values = _testing.uniform(7, modulus, 20000)
    assert int(values.max()) < modulus
    mean = float((values / modulus).mean())
    expected = 0.5 * (1 - 1 / modulus)
    assert abs(mean - expected) < 5 * np.sqrt(1 / 12 / 20000)


def test_noise_is_centred_binomial():
    noise = _testing.noise(3, 200_000).astype(np.float64)
    assert np.abs(noise).max() <= 21
    assert abs(noise.mean()) < 5 * np.sqrt(10.5 / 200_000)
    assert abs(noise.var() / 10.5 - 1) < 0.03
    # The share of zeros of Binomial(42, 1/2) at its centre.
    assert abs((noise == 0).mean() - 0.12239) < 0.005


def test_secrets_are_uniform_ternary():
    values, counts = np.unique(_testing.ternary(5, 90_000), return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    assert (np.abs(counts / 30_000 - 1) < 0.03).all()


def negacyclic(a, b, q):
    n = len(a)
    full = np.zeros(2 * n, dtype=object)
    for i, value in enumerate(a):
        full[i : i + n] += int(value) * b.astype(object)
    return (full[:n] - full[n:]) % q


@pytest.mark.parametrize("bits", [[30], [53], [60], [40, 40], [60, 50, 40]])
def test_multiplication_is_negacyclic_convolution(bits):
    n = 1024
    primes = hn.Parameters(ring_degree=8192, modulus_bits=bits, scale=4.0)._native.primes
    rng = np.random.default_rng(1)
    a, b = (np.stack([rng.integers(0, q, n, dtype=np.uint64) for q in primes]) for _ in range(2))
    a[:, 0], b[:, -1] = 0, [q - 1 for q in primes]
    product = _testing.multiply(primes, a, b)
    for row, q in enumerate(primes):
        np.testing.assert_array_equal(product[row].astype(object), negacyclic(a[row], b[row], q))


@settings(max_examples=40)
@given(
    primes=st.sampled_from([[53], [40, 41], [60, 50, 40]]),
    bits=st.integers(1, 62),
    seed=st.integers(0, 2**32 - 1),
)
def test_switching_to_a_power_of_two_rounds(primes, bits, seed):
    q_rows = hn.Parameters(ring_degree=8192, modulus_bits=primes, scale=4.0)._native.primes
    modulus = int(np.prod(np.array(q_rows, dtype=object)))
    rng = np.random.default_rng(seed)
    values = [int.from_bytes(rng.bytes(24), "little") % modulus for _ in range(1020)]
    values += [0, 1, modulus - 1, modulus // 2]
    a = np.array([[v % q for v in values] for q in q_rows], dtype=np.uint64)
    switched = _testing.switch_to_bits(q_rows, a, bits)
    for value, got in zip(values, switched.tolist(), strict=True):
        exact = value * 2**bits
        distance = (got * modulus - exact) % (modulus * 2**bits)
        distance = min(distance, modulus * 2**bits - distance)
        # Half a unit, and one more in the last place of 64 bits per prime.
        assert distance <= modulus // 2 + (len(q_rows) * 2 * modulus >> (64 - bits)) + 1


def slots_by_definition(coefficients):
    """The values at exp(i pi / N)^(3^i), i < N / 2."""
    n = len(coefficients)
    k = np.arange(n)
    odd_powers = np.fft.ifft(coefficients * np.exp(1j * np.pi * k / n)) * n
    exponents = [pow(3, i, 2 * n) for i in range(n // 2)]
    return odd_powers[(np.array(exponents) - 1) // 2]


@given(log_degree=st.integers(4, 14), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_embedding(log_degree, seed):
    n = 2**log_degree
    rng = np.random.default_rng(seed)
    slots = rng.normal(size=n // 2) * 10.0 ** rng.integers(-30, 30)
    coefficients = _testing.embed(slots)
    bound = 1e-15 * n**0.5 * np.abs(slots).max()
    by_definition = slots_by_definition(coefficients)
    assert np.abs(by_definition.real - slots).max() <= bound
    assert np.abs(by_definition.imag).max() <= bound
    assert np.abs(_testing.slots_of(coefficients) - slots).max() <= bound
    # Slots that are not real: their real parts are read.
    coefficients = rng.normal(size=n)
    assert np.abs(_testing.slots_of(coefficients) - slots_by_definition(coefficients).real).max() <= 1e-14 * n**0.5


@pytest.mark.parametrize("n", [1024, 8192, 32768])
def test_slots_are_those_of_seal(n):
    coefficients = np.random.default_rng(n).integers(-(2**40), 2**40, size=n)
    assert np.abs(_testing.slots_of(coefficients) - _testing.seal_slots_of(coefficients)).max() <= 1e-9 * 2**40


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_loops_visit_every_index_once(threads):
    try:
        hn.set_num_threads(threads)
        for count in (0, 1, 2, 7, 1000):
            assert _testing.parallel_for(count, count, threads) == [1] * count
        with pytest.raises(hn.RangeError, match="planned"):
            _testing.parallel_for(100, 50, threads)
        assert _testing.parallel_for(100, 100, threads) == [1] * 100
    finally:
        hn.set_num_threads(1)


@pytest.mark.parametrize("count", [0, 1025])
def test_absurd_numbers_of_threads(count):
    with pytest.raises(hn.ParameterError):
        hn.set_num_threads(count)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_threads_and_fresh_randomness_after_a_fork():
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(params), 20, 3)
    x = np.ones((4, 20))
    hn.set_num_threads(2)
    try:
        _testing.parallel_for(100, 100, 2)
        client.encrypt(x)  # what is prepared for the next request must not be used on both sides of the fork
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            hits = _testing.parallel_for(1000, 1000, 2)
            seed = client.encrypt(x)[76:108]
            os.write(write, seed if hits == [1] * 1000 else b"loop")
            os._exit(0)
        os.waitpid(child, 0)
        from_child = os.read(read, 100)
        assert len(from_child) == 32
        assert from_child != client.encrypt(x)[76:108]
    finally:
        hn.set_num_threads(1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: _core.LinearClient(None, 4, 2, False, False, 8.0),
        lambda: _core.SealedLayerClient(None, 4, 2, 1.0),
        lambda: _core.FrozenServer(None, np.zeros((2, 4))),
        lambda: _core.FrozenClient(None, 4, False),
        lambda: _core.inspect_reply(None, b""),
        lambda: _core.EncryptedPolynomials(None, b""),
        lambda: _core.encrypt_polynomials(sources.ring(), None, np.zeros((1, 4096), np.int64)),
        lambda: _core.decrypt_products(sources.ring(), None, b""),
        lambda: _core.sum_polynomials([None]),
        lambda: _core.multiply_polynomials(
            sources.ring(), [(None, np.zeros((1, 1, 4096), np.int64))], [(np.zeros(1, np.uint32), np.zeros(1))], 30, 1.0
        ),
    ],
)
def test_none_is_refused(call):
    with pytest.raises((TypeError, hn.ParameterError)):
        call()
