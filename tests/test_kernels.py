"""Every variant of the kernels computes the same integers as the portable one and as Python."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _core, _testing

SCALAR = _testing.Kernels("scalar")
VARIANTS = [name for name in _core.usable_kernels() if name != "scalar"]
# The edges of what the variants distinguish: 26, 27, 31, 46 and 50 bits, and primes that only the portable code takes.
SIZES = [20, 26, 27, 28, 30, 31, 32, 40, 46, 47, 49, 50, 51, 60]
DEGREE = 1024

variants = pytest.mark.parametrize("name", VARIANTS or [pytest.param("none", marks=pytest.mark.skip("scalar only"))])
seeds = st.integers(0, 2**32 - 1)


def prime_of(bits, degree=8192):
    return hn.Parameters(
        ring_degree=degree, modulus_bits=[bits], scale=4.0, activation_bound=1.0, activation_norm=1.0
    )._native.primes[0]


PRIMES = {bits: prime_of(bits) for bits in SIZES}
primes = st.sampled_from(list(PRIMES.values()))


def residues(rng, prime, *shape):
    """Uniform ones, with many at the ends of the range."""
    values = rng.integers(0, prime, shape, dtype=np.uint64)
    edge = rng.random(shape)
    values[edge < 0.2] = prime - 1
    values[edge > 0.9] = 0
    return values


def exact(values):
    return values.astype(object)


@variants
@pytest.mark.parametrize("degree", [1024, 2048, 4096, 8192, 16384, 32768])
@pytest.mark.parametrize("bits", [26, 27, 28, 36, 40, 46, 47, 49, 50, 55])
def test_transforms_are_those_of_the_portable_code(name, degree, bits):
    kernels = _testing.Kernels(name)
    prime = prime_of(bits, 32768)
    rng = np.random.default_rng(bits)
    for a in (residues(rng, prime, degree), np.full(degree, prime - 1, dtype=np.uint64)):
        forward = SCALAR.transform(prime, a, False)
        np.testing.assert_array_equal(kernels.transform(prime, a, False), forward)
        np.testing.assert_array_equal(kernels.transform(prime, a, True), SCALAR.transform(prime, a, True))
        np.testing.assert_array_equal(kernels.transform(prime, forward, True), a)


@pytest.mark.parametrize("name", ["scalar", *VARIANTS])
@pytest.mark.parametrize("bits", [26, 27, 28, 46, 47, 50, 55])
@settings(max_examples=15, deadline=None)
@given(degree=st.sampled_from([1024, 2048, 4096]), most=st.integers(0, 4), used=st.integers(5, 12), seed=seeds)
def test_transforms_of_polynomials_that_are_mostly_zeros(name, bits, degree, most, used, seed):
    prime, rng = prime_of(bits, 32768), np.random.default_rng(seed)
    period = degree >> most
    used = min(2**used, period)
    a = residues(rng, prime, degree)
    zeros = np.arange(degree) % period >= used
    whole = np.where(zeros, 0, a).astype(np.uint64)
    a[zeros] = 2**64 - 1  # is not looked at
    found = _testing.Kernels(name).transform(prime, a, False, period, used)
    np.testing.assert_array_equal(found, SCALAR.transform(prime, whole, False))


@pytest.mark.parametrize("name", ["scalar", *VARIANTS])
def test_transform_evaluates_at_odd_powers_of_a_root(name):
    degree, prime = 1024, prime_of(26, 1024)
    kernels = _testing.Kernels(name)
    x = np.zeros(degree, dtype=np.uint64)
    x[1] = 1
    points = [int(v) for v in kernels.transform(prime, x, False)]
    assert len(set(points)) == degree
    assert all(pow(point, degree, prime) == prime - 1 for point in points)
    square = np.zeros(degree, dtype=np.uint64)
    square[2] = 1
    assert [int(v) for v in kernels.transform(prime, square, False)] == [p * p % prime for p in points]


@variants
@settings(max_examples=40, deadline=None)
@given(prime=primes, seed=seeds)
def test_products_and_sums(name, prime, seed):
    kernels = _testing.Kernels(name)
    rng = np.random.default_rng(seed)
    a, b = residues(rng, prime, 64), residues(rng, prime, 64)
    for one in (SCALAR, kernels):
        np.testing.assert_array_equal(exact(one.multiply(prime, a, b)), exact(a) * exact(b) % prime)
        np.testing.assert_array_equal(exact(one.add(prime, a, b)), (exact(a) + exact(b)) % prime)
        np.testing.assert_array_equal(exact(one.subtract_from(prime, a, b)), (exact(b) - exact(a)) % prime)
        np.testing.assert_array_equal(exact(one.negate(prime, a)), -exact(a) % prime)
        small = rng.integers(-127, 128, 64).astype(np.int8)
        np.testing.assert_array_equal(exact(one.add_small(prime, a, small)), (exact(a) + exact(small)) % prime)


@variants
@settings(max_examples=40, deadline=None)
@given(prime=primes, terms=st.sampled_from([0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1023, 1025, 2500]), seed=seeds)
def test_sums_of_many_products(name, prime, terms, seed):
    kernels = _testing.Kernels(name)
    rng = np.random.default_rng(seed)
    a, b = residues(rng, prime, terms, 16), residues(rng, prime, terms, 16)
    scalars = residues(rng, prime, 13, terms)
    dot = (exact(a) * exact(b)).sum(0) % prime if terms else np.zeros(16, dtype=object)
    product = scalars.astype(object) @ exact(a) % prime if terms else np.zeros((13, 16), dtype=object)
    for one in (SCALAR, kernels):
        np.testing.assert_array_equal(exact(one.dot(prime, a, b)), dot)
        assert one.inner(prime, a, b) == int(dot.sum()) % prime
        np.testing.assert_array_equal(exact(one.combine(prime, a, scalars)), product)


@variants
@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([18, 20, 24, 29, 30]), terms=st.sampled_from([1, 2, 15, 16]), largest=st.booleans(), seed=seeds
)
def test_sums_of_products_of_halves_of_words(name, bits, terms, largest, seed):
    kernels = _testing.Kernels(name)
    rng, prime = np.random.default_rng(seed), prime_of(bits)
    a, b = (np.full((terms, 24), prime - 1, np.uint64) if largest else residues(rng, prime, terms, 24) for _ in "ab")
    expected = (exact(a) * exact(b)).sum(0) % prime
    in_turns = [np.ascontiguousarray(x.reshape(terms, 3, 8).swapaxes(0, 1)).reshape(terms, 24) for x in (a, b)]
    for one in (SCALAR, kernels):
        np.testing.assert_array_equal(exact(one.dot_short(prime, in_turns[0].astype(np.uint32), in_turns[1])), expected)


def integer_weights(rng, outputs, terms, norm):
    """Rows of integers of at most that l2 norm: random ones, and one whose whole norm is in 64 neighbours."""
    weights = rng.normal(size=(outputs, terms))
    weights[0] = 0
    weights[0, : min(terms, 64)] = 1
    weights *= (norm - np.sqrt(terms) / 2) / np.linalg.norm(weights, axis=1, keepdims=True)
    return np.trunc(np.clip(weights, 1 - 2**24, 2**24 - 1)).astype(np.float32)


@pytest.mark.parametrize("name", _core.usable_kernels())
@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([(25, 26), (26, 26), (35,), (20,)]),
    shape=st.tuples(st.integers(1, 19), st.integers(1, 300), st.integers(1, 60)),
    seed=seeds,
)
def test_products_with_integer_matrices_are_exact(name, bits, shape, seed):
    rows, terms, outputs = shape
    both = hn.Parameters(
        ring_degree=2048, modulus_bits=list(bits), scale=4.0, activation_bound=1.0, activation_norm=1.0
    )._native.primes
    rng = np.random.default_rng(seed)
    q = int(np.prod([int(prime) for prime in both], dtype=object))
    numbers = rng.integers(0, q, (rows, terms), dtype=np.uint64)
    # What is largest when centred modulo each prime, and what is largest.
    numbers[rng.random((rows, terms)) < 0.3] = q // 2
    numbers[rng.random((rows, terms)) < 0.3] = q - 1
    # About the largest norm with which sums of 64 terms are exact: cpp/linear/frozen/matrix.h.
    norm = min((1.996 * 2.0**53 / max(both) - 2) / 8, 2.0**24)
    weights = integer_weights(rng, outputs, terms, norm)
    expected = [numbers.astype(object) @ weights.astype(np.int64).astype(object).T % int(prime) for prime in both]
    np.testing.assert_array_equal(exact(_testing.Kernels(name).integer_product(both, numbers, weights)), expected)


def test_integer_matrices_whose_sums_are_not_exact_are_refused():
    prime = prime_of(40)
    with pytest.raises(hn.ParameterError, match="too large"):
        SCALAR.integer_product([prime], np.ones((1, 64), np.uint64), np.full((1, 64), 2.0**23, np.float32))


@variants
@settings(max_examples=40, deadline=None)
@given(prime=primes, seed=seeds)
def test_lifting_and_fractions(name, prime, seed):
    kernels = _testing.Kernels(name)
    rng = np.random.default_rng(seed)
    values = rng.integers(-(2**63) + 1, 2**63, 64)
    values[:8] = [0, -1, 1, 2**63 - 1, 1 - 2**63, prime, -prime, 2**52]
    a, fractions = residues(rng, prime, 64), rng.integers(0, 2**64, 64, dtype=np.uint64)
    factor = int(rng.integers(1, prime))
    for one in (SCALAR, kernels):
        np.testing.assert_array_equal(exact(one.lift(prime, values)), exact(values) % prime)
    added, shift = int(rng.integers(0, 2**63)), int(rng.integers(0, 64))
    for before in (None, fractions):
        ours = kernels.add_fraction(prime, factor, a, before, added, 0)
        for at in (0, shift):
            portable = SCALAR.add_fraction(prime, factor, a, before, added, at)
            np.testing.assert_array_equal(kernels.add_fraction(prime, factor, a, before, added, at), portable)
            np.testing.assert_array_equal(portable, ours >> np.uint64(at))
        starts = [0] * 64 if before is None else before.tolist()
        for value, start, after in zip(a.tolist(), starts, ours.tolist(), strict=True):
            whole = (value * factor % prime << 64) // prime
            assert 0 <= (whole - (after - start - added)) % 2**64 <= 2


@variants
@settings(max_examples=30, deadline=None)
@given(seed=seeds, windows=st.integers(1, 9))
def test_sums_of_words(name, seed, windows):
    rng = np.random.default_rng(seed)
    secret = rng.integers(-1, 2, 256).astype(np.int8)
    values = rng.integers(0, 2**64, (windows, 256), dtype=np.uint64)
    for one in (SCALAR, _testing.Kernels(name)):
        with_secret = exact(one.ternary_dot(secret, values))
        np.testing.assert_array_equal(with_secret, (exact(values) @ exact(secret)) % 2**64)


@variants
@settings(max_examples=30, deadline=None)
@given(seed=seeds, blocks=st.integers(1, 70))
def test_chacha20(name, seed, blocks):
    state = np.random.default_rng(seed).integers(0, 2**32, 16, dtype=np.uint32).tolist()
    state[12] = 2**32 - 3  # the counter wraps around
    assert _testing.Kernels(name).chacha20(state, blocks) == SCALAR.chacha20(state, blocks)


@variants
@settings(max_examples=30, deadline=None)
@given(seed=seeds, count=st.integers(1, 30))
def test_noise(name, seed, count):
    coins = np.random.default_rng(seed).bytes(48 * count)
    words = [int.from_bytes(coins[i : i + 6], "little") for i in range(0, len(coins), 6)]
    expected = [(w & 0x1FFFFF).bit_count() - (w >> 21 & 0x1FFFFF).bit_count() for w in words]
    for one in (SCALAR, _testing.Kernels(name)):
        assert one.noise(coins).tolist() == expected


@variants
@settings(max_examples=30, deadline=None)
@given(seed=seeds, count=st.integers(1, 50), narrow=st.booleans(), share=st.floats(0.05, 1.0))
def test_rejection(name, seed, count, narrow, share):
    bits = 27 if narrow else 50
    mask, limit = 2**bits - 1, max(1, int(share * 2**bits))
    size = 4 if narrow else 8
    words = np.random.default_rng(seed).bytes(size * count)
    drawn = [int.from_bytes(words[i : i + size], "little") & mask for i in range(0, len(words), size)]
    for one in (SCALAR, _testing.Kernels(name)):
        assert one.accept(words, narrow, mask, limit).tolist() == [w for w in drawn if w < limit]


@variants
@pytest.mark.parametrize("bits", range(8, 63))
@settings(max_examples=5, deadline=None)
@given(seed=seeds, count=st.integers(1, 20))
def test_packing(name, bits, seed, count):
    values = np.random.default_rng(seed).integers(0, 2**bits, 8 * count, dtype=np.uint64)
    values[-1] = 2**bits - 1
    whole = sum(int(v) << bits * i for i, v in enumerate(values))
    packed = whole.to_bytes(bits * count, "little")
    for one in (SCALAR, _testing.Kernels(name)):
        assert one.pack(values, bits) == packed
        back, largest = one.unpack(packed, bits, 8 * count)
        np.testing.assert_array_equal(back, values)
        assert largest == int(values.max())


def run_with(name, code):
    environment = os.environ | {"HESPLIT_CPU": name}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["scalar", *VARIANTS])
def test_the_environment_chooses(name):
    found = run_with(name, "from hesplit_native import _core; print(_core.kernels())")
    assert found.stdout.strip() == name, found.stderr


def test_an_unknown_choice_is_an_error():
    found = run_with(
        "sse2", "import hesplit_native as hn; hn.Parameters.recommend(in_features=4, out_features=2, batch_size=1)"
    )
    assert "no kernels called 'sse2'" in found.stderr
    assert "scalar" in found.stderr
    assert found.returncode == 1


LAYER = """
import numpy as np, hashlib, hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.layer.frozen import FrozenServer
hn.set_num_threads({threads})
digest = hashlib.sha256()
for primes in ([26, 27], [50], [33, 40], [60, 60]):
    q = hn.Parameters(ring_degree=8192, modulus_bits=primes, scale=4.0)._native.primes
    rng = np.random.default_rng(1)
    a, b = (np.stack([rng.integers(0, p, 2048, dtype=np.uint64) for p in q]) for _ in range(2))
    product = _testing.multiply(q, a, b)
    digest.update(product.tobytes() + _testing.switch_to_bits(q, product, 30).tobytes())
digest.update(_testing.uniform(3, q[0], 5000).tobytes() + _testing.noise(3, 5000).tobytes())
for precision in ("float32", "bfloat16"):
    digest.update(FrozenServer(np.cos(np.arange(780.0)).reshape(13, 60), precision=precision).hint())
print(digest.hexdigest())
"""


def test_results_are_the_same_for_all_variants_and_numbers_of_threads():
    digests = {run_with(name, LAYER.format(threads=t)).stdout for name in _core.usable_kernels() for t in (1, 2)}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64
