"""Encryption under public keys, and sums of what several parties have encrypted, against float64 numpy."""

from __future__ import annotations

import copy
import dataclasses
import math
import struct
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native.layer import public_key as module

BOUND = 64.0
PARAMETERS = hn.Parameters(ring_degree=4096, modulus_bits=(45, 45), scale=2.0**30, activation_bound=BOUND)
KEY = hn.SecretKey.generate(PARAMETERS)
PUBLIC = KEY.public_key()
# Other rings, moduli and bounds that arrays may be encrypted with.
SETS = {
    "4096": PARAMETERS,
    "80 bits": dataclasses.replace(PARAMETERS, modulus_bits=(40, 40), activation_bound=1e-3),
    "quantum": dataclasses.replace(PARAMETERS, modulus_bits=(40, 40), security="quantum", activation_bound=3e9, scale=2.0),
    "8192": dataclasses.replace(PARAMETERS, ring_degree=8192, modulus_bits=(50, 50, 50)),
    "32768": dataclasses.replace(PARAMETERS, ring_degree=32768, modulus_bits=(60, 60, 60, 60), activation_bound=1.0),
    "private": hn.Parameters.recommend(
        in_features=256, out_features=5, batch_size=4, weight_norm=4.0, private_weights=True, logit_noise=0.001
    ),
    "flooded": dataclasses.replace(PARAMETERS, releases=100),
}  # fmt: skip
KEYS = {name: hn.SecretKey.generate(parameters) for name, parameters in SETS.items()}
few = settings(derandomize=True, database=None, max_examples=40, deadline=None)


def sent(array: hn.EncryptedArray) -> hn.EncryptedArray:
    """The array as somebody finds it who only knows the parameters."""
    return hn.EncryptedArray.from_bytes(array.to_bytes(), array.parameters)


@few
@given(
    st.sampled_from(sorted(SETS)),
    st.lists(st.integers(1, 30), min_size=0, max_size=3).map(tuple)
    | st.integers(1, 40_000).map(lambda size: (size,)),
    st.integers(1, 9),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@example("4096", (4096,), 5, np.float64, 0)
@example("4096", (4097,), 5, np.float64, 0)
@example("32768", (1,), 2, np.float64, 0)
@example("private", (), 3, np.float32, 0)
def test_sums_of_several_parties_keep_the_error_bound(name, shape, parties, dtype, seed):
    parameters, key = SETS[name], KEYS[name]
    generator = np.random.default_rng(seed)
    public = hn.PublicKey.from_bytes(key.public_key().to_bytes())
    bound = parameters.activation_bound * (1 - 1e-7)  # which float32 does not round up beyond it
    values = [np.asarray(generator.uniform(-bound, bound, size=shape), dtype) for _ in range(parties)]
    arrays = [sent(public.encrypt(x)) for x in values]
    total = sent(hn.EncryptedArray.sum(arrays))
    assert (total.shape, total.summands, total.key_id) == (shape, parties, key.id)
    decrypted = key.decrypt(total)
    assert decrypted.dtype == np.float64
    assert decrypted.shape == shape
    exact = np.sum([x.astype(np.float64) for x in values], axis=0)
    assert np.abs(decrypted - exact).max() <= total.error_bound
    assert np.abs(key.decrypt(arrays[0]) - values[0]).max() <= arrays[0].error_bound == total.error_bound / parties
    # The bound is worth something: 27 bits of the range or more.
    assert arrays[0].error_bound <= parameters.activation_bound * 2.0**-27


@few
@given(st.integers(1, 10_000), st.sampled_from([-BOUND, BOUND, 0.0, -math.ldexp(BOUND, -31), math.nextafter(BOUND, 0)]))
def test_the_ends_of_the_range(size, value):
    array = sent(PUBLIC.encrypt(np.full(size, value)))
    assert np.abs(KEY.decrypt(array) - value).max() <= array.error_bound


@pytest.mark.parametrize("name", ["4096", "32768"])
def test_as_many_summands_as_there_may_be_do_not_wrap_around(name):
    public, key = KEYS[name].public_key(), KEYS[name]
    bound = SETS[name].activation_bound
    signs = np.where(np.arange(100) % 3 == 0, -1.0, 1.0)
    # Sums of sums count all that is in them.
    eight = hn.EncryptedArray.sum([public.encrypt(signs * bound) for _ in range(8)])
    most = hn.EncryptedArray.sum([eight] * 32)
    assert most.summands == module.MOST_SUMMANDS == 256
    assert np.abs(key.decrypt(sent(most)) - 256 * signs * bound).max() <= most.error_bound
    one = public.encrypt(signs * bound)
    for terms in ([most, one], [eight] * 33, [one] * 257):
        with pytest.raises(hn.ParameterError, match="256 are the most"):
            hn.EncryptedArray.sum(terms)


def test_what_is_decrypted_follows_from_the_numbers_alone():
    """The noise, which would tell of the key, is rounded off: equal numbers are found equal to the last bit."""
    values = np.random.default_rng(0).uniform(-BOUND, BOUND, size=5000)
    found = [KEY.decrypt(PUBLIC.encrypt(values)) for _ in range(3)]
    found += [
        KEY.decrypt(hn.EncryptedArray.sum([PUBLIC.encrypt(values), PUBLIC.encrypt(-values), PUBLIC.encrypt(values)]))
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    steps = found[0] / BOUND * 2.0**30
    np.testing.assert_array_equal(steps, np.rint(steps))


def test_the_noise_that_is_rounded_off_is_there_and_below_its_bound():
    ring = module._Grid.of(PARAMETERS).ring
    array = PUBLIC.encrypt(np.zeros(4096))
    noise = array._polynomials.decrypt(KEY._native)
    # Within a few percent of the deviation of 8192 products of noise and ternary numbers, and twice a fresh noise's.
    assert 150 < noise.std() < 300
    assert np.abs(noise).max() < ring.public_noise_bound == 21 * (1 + 2 * 4096)


def test_encryptions_and_keys_are_fresh():
    values = np.ones(3)
    assert len({PUBLIC.encrypt(values).to_bytes() for _ in range(5)}) == 5
    assert len({KEY.public_key().to_bytes() for _ in range(3)}) == 3
    assert {KEY.public_key().id for _ in range(3)} == {KEY.id}


def test_a_public_key_says_whose_it_is():
    public = hn.PublicKey.from_bytes(bytearray(PUBLIC.to_bytes()))
    assert (public.id, public.parameters) == (KEY.id, PARAMETERS)
    assert public.to_bytes() == PUBLIC.to_bytes()
    assert repr(public) == f"PublicKey(id={KEY.id}, parameters={PARAMETERS!r})"


def test_tensors_are_taken_and_representations_are_short():
    array = PUBLIC.encrypt(torch.arange(6.0, dtype=torch.float32, requires_grad=True).reshape(2, 3))
    np.testing.assert_allclose(KEY.decrypt(array), np.arange(6.0).reshape(2, 3), atol=array.error_bound)
    assert repr(array) == f"EncryptedArray(shape=[2, 3], summands=1, key_id={KEY.id})"


def test_several_threads_may_encrypt_and_add():
    values = np.linspace(-1, 1, 5000)
    total, wrong = PUBLIC.encrypt(values), []

    def work():
        for _ in range(5):
            both = hn.EncryptedArray.sum([total, PUBLIC.encrypt(values)])
            if not np.abs(KEY.decrypt(both) - 2 * values).max() <= both.error_bound:
                wrong.append(both)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class TestNumbersThatAreRefused:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 64.001, -1e300])
    def test_beyond_the_range(self, value):
        values = np.zeros((3, 2000))
        values[2, 1999] = value
        with pytest.raises(hn.RangeError, match="NaN" if not math.isfinite(value) else "activation_bound of 64"):
            PUBLIC.encrypt(values)

    @pytest.mark.parametrize(
        "values",
        [np.zeros(0), np.zeros((3, 0)), np.zeros(3, np.int64), np.zeros(3, np.complex128), [1.0, 2.0], 1.0, None],
    )
    def test_of_no_size_or_another_type(self, values):
        with pytest.raises(hn.ParameterError):
            PUBLIC.encrypt(values)


class TestParametersThatAreRefused:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"modulus_bits": (39, 40)}, "80 bits"),
            ({"modulus_bits": (40, 40, 20), "packing": "slots"}, "blocks"),
            ({"modulus_bits": (45, 45, 45), "security": "paper"}, "128 bits"),
            ({"security": "paper"}, "128 bits"),
        ],
    )
    def test_at_the_key_and_from_others(self, change, reason):
        key = hn.SecretKey.generate(dataclasses.replace(PARAMETERS, **change))
        with pytest.raises(hn.ParameterError, match=reason):
            key.public_key()
        with pytest.raises(hn.ParameterError, match=reason):
            hn.PublicKey.from_bytes(key._native.public_key().to_bytes())

    def test_recommended_ones_for_a_layer_say_so(self):
        key = hn.SecretKey.generate(hn.Parameters.recommend(in_features=12, out_features=2, batch_size=3))
        with pytest.raises(hn.ParameterError, match="80 bits"):
            key.public_key()


class TestKeysThatDoNotFit:
    other = hn.SecretKey.generate(PARAMETERS)

    def test_arrays_under_another_key_are_not_decrypted_or_added(self):
        ours, theirs = PUBLIC.encrypt(np.ones(3)), self.other.public_key().encrypt(np.ones(3))
        with pytest.raises(hn.KeyMismatchError, match="another key"):
            KEY.decrypt(theirs)
        with pytest.raises(hn.KeyMismatchError, match="different keys"):
            hn.EncryptedArray.sum([ours, theirs])

    def test_nor_under_other_parameters(self):
        for name in ("80 bits", "8192"):
            theirs = KEYS[name].public_key().encrypt(np.ones(3) * 1e-3)
            with pytest.raises(hn.KeyMismatchError, match="other parameters"):
                KEY.decrypt(theirs)
            with pytest.raises(hn.KeyMismatchError, match="different keys"):
                hn.EncryptedArray.sum([PUBLIC.encrypt(np.ones(3)), theirs])
            with pytest.raises(hn.KeyMismatchError):
                hn.EncryptedArray.from_bytes(theirs.to_bytes(), PARAMETERS)

    def test_shapes_must_be_alike(self):
        for shape in ((4,), (3, 1), (1, 3), ()):
            with pytest.raises(hn.ParameterError, match="one shape"):
                hn.EncryptedArray.sum([PUBLIC.encrypt(np.ones(3)), PUBLIC.encrypt(np.ones(shape))])
        with pytest.raises(hn.ParameterError):
            hn.EncryptedArray.sum([])

    @pytest.mark.parametrize("data", [b"", b"key", bytes(60_000), KEY._native.to_bytearray()])
    def test_bytes_that_are_no_public_key(self, data):
        with pytest.raises(hn.WireError):
            hn.PublicKey.from_bytes(bytes(data))

    def test_messages_of_another_kind_are_no_public_key_and_no_array(self):
        private = KEYS["private"]
        material = hn.LinearClient(private, 256, 5).public_material()
        for data in (material, PUBLIC.encrypt(np.ones(3)).to_bytes(), PARAMETERS.to_bytes()):
            with pytest.raises(hn.WireError):
                hn.PublicKey.from_bytes(data)
        for data in (material, PUBLIC.to_bytes(), b"", b"HESA", PUBLIC.encrypt(np.ones(3))._message):
            with pytest.raises(hn.WireError):
                hn.EncryptedArray.from_bytes(data, PARAMETERS)


class TestDamagedBytes:
    def test_of_a_public_key(self):
        data = PUBLIC.to_bytes()
        damaged = [data[:-1], data + b"\0", data[:100], data[1:]]
        for at in (*range(0, 200, 3), len(data) // 2, len(data) - 1):
            damaged.append(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        for changed in damaged:
            with pytest.raises((hn.WireError, hn.KeyMismatchError)):
                hn.PublicKey.from_bytes(changed)

    def test_of_an_array(self):
        data = PUBLIC.encrypt(np.ones((2, 3))).to_bytes()
        damaged = [data[:-1], data + b"\0", *(data[:end] for end in (0, 4, 9, 10, 30, 34, 50, 200)), data[1:]]
        for at in (*range(200), len(data) // 2, len(data) - 1):
            damaged.append(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        for changed in damaged:
            with pytest.raises((hn.WireError, hn.KeyMismatchError)):
                hn.EncryptedArray.from_bytes(changed, PARAMETERS)

    @staticmethod
    def forged(shape, summands, message=None, dimensions=None):
        """An array with another head, whose digest is right."""
        dimensions = len(shape) if dimensions is None else dimensions
        head = struct.pack(f"<4sBBI{len(shape)}Q", b"HESA", 1, dimensions, summands, *shape)
        return head + module._digest(head) + (message or PUBLIC.encrypt(np.ones(3))._message)

    @pytest.mark.parametrize(
        ("shape", "summands"),
        [((3,), 0), ((3,), 257), ((3,), 2**32 - 1), ((4097,), 1), ((0,), 1), ((2**63, 2**63), 1), ((2**64 - 1,), 1),
         ((4096, 65537), 1), ((1,) * 33, 1)],
    )  # fmt: skip
    def test_heads_that_no_sender_makes(self, shape, summands):
        with pytest.raises(hn.WireError):
            hn.EncryptedArray.from_bytes(self.forged(shape, summands), PARAMETERS)
        assert hn.EncryptedArray.from_bytes(self.forged((3,), 1), PARAMETERS).shape == (3,)

    def test_heads_with_another_number_of_dimensions(self):
        for dimensions in (0, 2, 32, 255):
            with pytest.raises(hn.WireError):
                hn.EncryptedArray.from_bytes(self.forged((3,), 1, dimensions=dimensions), PARAMETERS)

    def test_sums_of_more_than_were_counted_are_found_when_they_are_decrypted(self):
        four = hn.EncryptedArray.sum([PUBLIC.encrypt(np.full(3, BOUND))] * 4)
        lie = hn.EncryptedArray.from_bytes(self.forged((3,), 3, four._message), PARAMETERS)
        with pytest.raises(hn.RangeError, match="not a sum of 3"):
            KEY.decrypt(lie)

    def test_what_is_not_a_multiple_of_the_spacing_is_refused(self):
        from hesplit_native import _core

        grid = module._Grid.of(PARAMETERS)
        coefficients = np.zeros((1, 4096), np.int64)
        coefficients[0, 17] = 1 << (grid.spacing_bits - 1)
        message = _core.encrypt_polynomials(grid.ring, PUBLIC._native, coefficients)
        with pytest.raises(hn.RangeError, match="broke the rules"):
            KEY.decrypt(hn.EncryptedArray.from_bytes(self.forged((3,), 256, message), PARAMETERS))


def test_a_sum_does_not_change_its_terms():
    one, two = PUBLIC.encrypt(np.ones(3)), PUBLIC.encrypt(np.full(3, 2.0))
    before = one.to_bytes(), two.to_bytes()
    hn.EncryptedArray.sum([one, two, one])
    assert (one.to_bytes(), two.to_bytes()) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.summands = 0
    assert copy.copy(one).to_bytes() == one.to_bytes()
