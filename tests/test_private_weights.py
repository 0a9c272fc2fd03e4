"""Replies that hide the weights: right, refused where they cannot be kept private, and alike for different weights."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _core, _testing
from hesplit_native.privacy.attacks import weights as attacks


def recommend(d, o, n, **options):
    options.setdefault("weight_norm", 4.0)
    return hn.Parameters.recommend(in_features=d, out_features=o, batch_size=n, private_weights=True, **options)


def rows_of_norm(generator, rows, columns, norm):
    values = generator.normal(size=(rows, columns))
    return values * norm / np.linalg.norm(values, axis=1, keepdims=True)


def converse(params, d, o, n, seed=0, **client_options):
    """A client, its server, and activations that reach the agreed ranges."""
    generator = np.random.default_rng(seed)
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o, **client_options)
    weight = rows_of_norm(generator, o, d, params.weight_norm * 0.99)
    bias = generator.normal(size=o) * 0.001
    x = generator.normal(size=(n, d))
    x *= (
        min(params.activation_norm / np.linalg.norm(x, axis=1).max(), params.activation_bound / np.abs(x).max()) * 0.999
    )
    return client, hn.LinearServer(client.public_material(), weight, bias, private=params.private_bits), x, weight, bias


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 400), st.integers(1, 60),
    st.sampled_from([{}, {"logit_noise": 0.3}, {"private_bits": 24}, {"private_bits": 60}, {"security": "quantum"}]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(4, 256, 5, {}, 0)
@example(3, 5000, 2, {}, 0)
@example(1, 1, 1, {}, 0)
def test_replies_keep_the_error_bound_that_includes_the_flood(n, d, o, options, seed):
    params = recommend(d, o, n, **options)
    client, server, x, weight, bias = converse(params, d, o, n, seed)
    for rows in {n, 1, (n + 1) // 2}:  # smaller batches than the planned one have other layouts
        y = client.decrypt(server.forward(client.encrypt(x[:rows])))
        assert np.abs(y - (x[:rows] @ weight.T + bias)).max() <= params.error_bound


def test_the_flood_is_as_large_as_the_estimate_says_and_fresh_in_every_reply():
    params = recommend(64, 6, 8, logit_noise=0.2)
    said = params.estimate(64, 6, 8)
    assert 0.2 >= said["logit_noise"] > 0.2 / 8
    client, server, x, weight, bias = converse(params, 64, 6, 8)
    request = client.encrypt(x)
    replies = [server.forward(request) for _ in range(40)]
    assert len(set(replies)) == 40
    errors = []
    for _ in range(40):
        errors.append(client.decrypt(server.forward(client.encrypt(x))) - (x @ weight.T + bias))
    assert np.std(errors) == pytest.approx(said["logit_noise"], rel=0.1)  # 1920 uniform numbers and a little rounding
    assert abs(np.mean(errors)) < 5 * said["logit_noise"] / math.sqrt(1920)


class TestAgreement:
    def test_parameters_travel_with_what_was_agreed(self):
        params = recommend(12, 2, 3, private_bits=33)
        again = hn.Parameters.from_bytes(params.to_bytes())
        assert (again, again.private_bits, again.weight_norm) == (params, 33, 4.0)
        others = [dataclasses.replace(params, weight_norm=4.5), dataclasses.replace(params, private_bits=34)]
        assert len({p.hash for p in (params, *others)}) == 3

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"private_bits": 19}, "private_bits"),
            ({"private_bits": 61}, "private_bits"),
            ({"weight_norm": 0.0}, "weight_norm"),
            ({"weight_norm": -1.0}, "weight_norm"),
            ({"weight_norm": math.inf}, "weight_norm"),
            ({"private_bits": 0}, "weight_norm"),
            ({"updates": 5}, "private weights"),
            ({"packing": "slots", "modulus_bits": (40, 40, 20), "scale": 3.0 * 2.0**40}, "power of two"),
        ],
    )
    def test_impossible_ones_are_refused(self, change, reason):
        with pytest.raises(hn.ParameterError, match=reason):
            dataclasses.replace(recommend(12, 2, 3), **change)

    def test_large_scales_are_for_private_weights_only(self):
        params = recommend(12, 2, 3)
        assert params.scale > 2**60
        with pytest.raises(hn.ParameterError, match="scale"):
            dataclasses.replace(params, private_bits=0, weight_norm=0.0)

    def test_damaged_descriptions_are_refused(self):
        data = bytearray(recommend(12, 2, 3).to_bytes())
        for at, value in ((0, 2), (0, 3), (0, 5), (-16, 0), (-16, 61), (-16, 255), (-9, 1)):
            changed = bytearray(data)
            changed[at] = value
            with pytest.raises(hn.WireError):
                hn.Parameters.from_bytes(bytes(changed))
        with pytest.raises(hn.WireError):
            hn.Parameters.from_bytes(bytes(data[:-8]))

    def test_a_private_server_takes_no_parameters_that_show_its_weights(self):
        params = hn.Parameters.recommend(in_features=12, out_features=2, batch_size=3)
        client = hn.LinearClient(hn.SecretKey.generate(params), 12, 2)
        with pytest.raises(hn.ParameterError, match="private_weights=True"):
            hn.LinearServer(client.public_material(), np.ones((2, 12)), private=True)

    def test_a_private_server_takes_no_parameters_that_are_too_weak(self):
        weak = [
            recommend(12, 2, 3, private_bits=39),
            dataclasses.replace(recommend(12, 2, 3), modulus_bits=(54, 54), security="paper"),
        ]
        for params in weak:
            client = hn.LinearClient(hn.SecretKey.generate(params), 12, 2)
            with pytest.raises(hn.ParameterError, match="could be read from replies"):
                hn.LinearServer(client.public_material(), np.ones((2, 12)) / 8, private=True)

    @pytest.mark.parametrize("name", ["weight_norm", "activation_norm", "error_bound"])
    def test_ranges_that_overflow_are_refused(self, name):
        for value in (1e308, 1e-308):
            with pytest.raises(hn.ParameterError, match=r"2\^-200 and 2\^200"):
                dataclasses.replace(recommend(12, 2, 3), **{name: value})

    def test_one_key_for_all_requests(self):
        with pytest.raises(hn.ParameterError, match="one key"):
            hn.LinearClient(hn.SecretKey.generate(recommend(12, 2, 3)), 12, 2, fresh_keys=True)

    def test_logit_noise_is_of_private_weights(self):
        for options in (
            {"logit_noise": 0.1},
            {"private_weights": True, "logit_noise": 0.0},
            {"private_weights": True, "logit_noise": -1.0},
        ):
            with pytest.raises(hn.ParameterError, match="logit_noise"):
                hn.Parameters.recommend(in_features=12, out_features=2, batch_size=3, **options)


class TestWeightsThatOutgrowTheNorm:
    @pytest.mark.parametrize("grown", ["rows", "bias"])
    def test_are_refused_with_the_norm_that_would_do(self, grown):
        params = recommend(30, 3, 4)
        client, server, x, weight, bias = converse(params, 30, 3, 4)
        before = client.decrypt(server.forward(client.encrypt(x)))
        larger, offset = (weight * 1.3, bias) if grown == "rows" else (weight, bias + 0.3 * 4 * params.activation_norm)
        with pytest.raises(hn.RangeError, match="weight_norm of") as refused:
            server.set_weight(larger, offset)
        np.testing.assert_allclose(
            client.decrypt(server.forward(client.encrypt(x))), before, atol=2 * params.error_bound
        )
        norm = float(str(refused.value).split("weight_norm of ")[1].split()[0])
        assert norm < 1.4 * params.weight_norm
        would_do = recommend(30, 3, 4, weight_norm=norm)
        client = hn.LinearClient(hn.SecretKey.generate(would_do), 30, 3)
        hn.LinearServer(client.public_material(), larger, offset, private=True)


class TestPublicMaterial:
    def test_damage_is_refused(self):
        params = recommend(12, 2, 3)
        material = hn.LinearClient(hn.SecretKey.generate(params), 12, 2).public_material()
        weight = np.ones((2, 12)) / 8
        for at in (100, 200, len(material) // 2, len(material) - 20):
            changed = bytearray(material)
            changed[at] ^= 1
            with pytest.raises(hn.WireError):
                hn.LinearServer(bytes(changed), weight)
        for size in (len(material) - 1, len(material) - 20000, 70):
            with pytest.raises(hn.WireError):
                hn.LinearServer(material[:size], weight)

    def test_a_key_whose_residues_are_too_large_is_refused(self):
        params = recommend(12, 2, 3)
        material = bytearray(hn.LinearClient(hn.SecretKey.generate(params), 12, 2).public_material())
        material[-3000:-8] = b"\xff" * 2992
        with pytest.raises(hn.WireError):
            hn.LinearServer(_testing.reseal(bytes(material)), np.ones((2, 12)) / 8)

    def test_one_without_a_key_is_refused(self):
        """As a client with a key for every request would send it."""
        params = recommend(12, 2, 3)
        material = bytearray(hn.LinearClient(hn.SecretKey.generate(params), 12, 2).public_material())
        material[32:48] = bytes(16)
        with pytest.raises(hn.WireError, match="without a key"):
            hn.LinearServer(_testing.reseal(bytes(material)), np.ones((2, 12)) / 8)

    def test_requests_under_another_key_are_refused(self):
        params = recommend(12, 2, 3)
        _, server, x, *_ = converse(params, 12, 2, 3)
        other = hn.LinearClient(hn.SecretKey.generate(params), 12, 2)
        with pytest.raises(hn.KeyMismatchError):
            server.forward(other.encrypt(x))


class TestManyClientsOfOneLayer:
    def test_share_its_weights_and_get_replies_under_their_own_keys(self):
        params = recommend(50, 7, 4)
        first, server, x, weight, bias = converse(params, 50, 7, 4)
        clients = [first, *(hn.LinearClient(hn.SecretKey.generate(params), 50, 7) for _ in range(3))]
        servers = [server, *(server.for_client(client.public_material()) for client in clients[1:])]
        failures = []

        def ask(client, served):
            for _ in range(20):
                y = client.decrypt(served.forward(client.encrypt(x)))
                if np.abs(y - (x @ weight.T + bias)).max() > params.error_bound:
                    failures.append(client)

        threads = [threading.Thread(target=ask, args=pair) for pair in zip(clients, servers, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        with pytest.raises(hn.KeyMismatchError):
            servers[1].forward(first.encrypt(x))

    def test_only_of_the_same_parameters_and_shape(self):
        params = recommend(50, 7, 4)
        _, server, *_ = converse(params, 50, 7, 4)
        other = dataclasses.replace(params, private_bits=41)
        with pytest.raises(hn.KeyMismatchError):
            server.for_client(hn.LinearClient(hn.SecretKey.generate(other), 50, 7).public_material())
        with pytest.raises(hn.WireError, match="another shape"):
            server.for_client(hn.LinearClient(hn.SecretKey.generate(params), 50, 6).public_material())


class TestConstantShapes:
    def test_nothing_in_a_replys_head_or_length_follows_the_weights(self):
        params = recommend(64, 6, 8)
        client, server, x, weight, bias = converse(params, 64, 6, 8)
        heads = set()
        for factor in (1.0, 1e-3, 0.0):
            server.set_weight(weight * factor, bias * factor)
            reply = server.forward(client.encrypt(x))
            seen = _core.inspect_reply(server._native, reply)
            heads.add((len(reply), seen["bits"], seen["scale"]))
        assert len(heads) == 1

    def test_it_does_without_private_weights(self):
        """The test above can fail."""
        params = hn.Parameters.recommend(in_features=64, out_features=6, batch_size=8)
        generator = np.random.default_rng(0)
        client = hn.LinearClient(hn.SecretKey.generate(params), 64, 6)
        x, weight = generator.normal(size=(8, 64)), generator.normal(size=(6, 64))
        scales = set()
        server = hn.LinearServer(client.public_material(), weight)
        for factor in (1.0, 1e-3):
            server.set_weight(weight * factor)
            scales.add(_core.inspect_reply(server._native, server.forward(client.encrypt(x)))["scale"])
        assert len(scales) == 2


@pytest.mark.parametrize(("features", "outputs", "samples"), [(12, 1, 1), (20, 1, 4), (12, 3, 4)])
def test_lattice_reduction_of_a_reply_finds_nothing(features, outputs, samples):
    """As it does in test_privacy_weights.py where replies are not private."""
    pytest.importorskip("fpylll")
    params = recommend(features, outputs, samples)
    client, server, x, weight, _ = converse(params, features, outputs, samples)
    request = client.encrypt(x)
    found = attacks.from_reply(client, request, server.forward(request))
    assert np.isnan(found.weights).all() or np.abs(found.weights - weight).max() > 0.1


class TestRepliesOfTwoWeightsWithTheSameLogits:
    """A client that knows everything but which of two W it was: its key, the noise that it drew, its activations, both W.

    It looks at products before their modulus is switched, of which replies are roundings. Of private ones it learns nothing; where the
    flood or the encryption of zero is left out it is right every time.
    """

    TRIALS = 40

    def trials(self, make):
        """How often the client is right by the noise of c0, and by c1."""
        generator = np.random.default_rng(7)
        params = recommend(12, 1, 1)
        key = hn.SecretKey.generate(params)
        client = hn.LinearClient(key, 12, 1)
        first = rows_of_norm(generator, 1, 12, 1.0)
        second = first + np.array([[1.0, -1.0] + [0.0] * 10]) / 8
        x = np.ones((1, 12))
        server = hn.LinearServer(client.public_material(), first, private=True)
        public, n = key._native.public_key().to_bytes(), params.ring_degree
        secret = _testing.unpack_bits(bytes(key._native.to_bytearray())[-8 - n // 4 : -8], n, 2, 3).astype(np.int64) - 1
        right = np.zeros(2, int)
        for _ in range(self.TRIALS):
            truth = int(generator.integers(2))
            request = client.encrypt(x)
            view = View(server, request, secret, public, [first, second])
            product = view.products[truth]
            added, c1 = _testing.hide_product(public, product["positions"], view.flood_bits, product["c1"])
            found = make(view, product, added, c1, generator)
            right += [view.guess_by_noise(*found) == truth, view.guess_by_c1(found[1]) == truth]
        return right

    def is_chance(self, right):
        return abs(right - self.TRIALS / 2) < 20 * math.sqrt(self.TRIALS) / 6.4  # beyond: below 1e-9

    def test_are_alike(self):
        by_noise, by_c1 = self.trials(lambda view, product, added, c1, _: (view.sum(product["c0"], added), c1))
        assert self.is_chance(by_noise)
        assert self.is_chance(by_c1)

    def test_differ_without_the_flood(self):
        def without_flood(view, product, added, c1, _):
            added, c1 = _testing.hide_product(view.public, product["positions"], 0, product["c1"])
            return view.sum(product["c0"], added), c1

        by_noise, by_c1 = self.trials(without_flood)
        assert by_noise == self.TRIALS
        assert self.is_chance(by_c1)

    def test_differ_without_the_encryption_of_zero(self):
        def flood_alone(view, product, added, c1, generator):
            flood = int(generator.integers(-(2**40), 2**40)) << (view.flood_bits - 40)
            residues = np.array([[flood % prime] for prime in view.primes], np.uint64)
            return view.sum(product["c0"], residues), product["c1"]

        by_noise, by_c1 = self.trials(flood_alone)
        assert self.is_chance(by_noise)
        assert by_c1 == self.TRIALS


class View:
    """What that client computes from one request, for each of the weights it might be."""

    def __init__(self, server, request, secret, public, candidates):
        self.secret, self.public = secret, public
        self.products = [
            _core.inspect_products(server._native, request, w, np.zeros(0))["ciphertexts"][0] for w in candidates
        ]
        seen = _core.inspect_products(server._native, request, candidates[0], np.zeros(0))
        self.primes, self.q = seen["primes"], math.prod(seen["primes"])
        product_scale = seen["scale"] * self.q / 2.0 ** seen["bits"]
        noise = server.parameters.estimate(12, 1, 1)["logit_noise"]
        self.flood_bits = round(math.log2(noise * math.sqrt(3) * product_scale))
        self.phases = [self.phase(p["c0"], p["c1"], p["positions"]) for p in self.products]

    def sum(self, a, b):
        return np.stack([(x + y) % p for x, y, p in zip(a, b, self.primes, strict=True)])

    def phase(self, c0, c1, positions):
        """c0 + c1 s at one position, between -q/2 and q/2."""
        key = np.stack([(self.secret % p).astype(np.uint64) for p in self.primes])
        product = _testing.multiply(self.primes, c1, key)[:, positions]
        value = sum(
            (int(a[0]) + int(b[0])) % p * pow(self.q // p, -1, p) * (self.q // p)
            for a, b, p in zip(c0, product, self.primes, strict=True)
        )
        return (value + self.q // 2) % self.q - self.q // 2

    def guess_by_noise(self, c0, c1):
        found = self.phase(c0, c1, self.products[0]["positions"])
        distance = [abs(found - phase) for phase in self.phases]
        return int(distance[1] < distance[0])

    def guess_by_c1(self, c1):
        def size(product):
            rows = [
                np.minimum((a - b) % p, (b - a) % p).astype(float) / p
                for a, b, p in zip(c1.astype(object), product["c1"].astype(object), self.primes, strict=True)
            ]
            return np.mean(rows)

        return int(size(self.products[1]) < size(self.products[0]))


@pytest.mark.parametrize("flood_bits", [1, 59, 60, 61, 119, 120, 129, 179])
def test_floods_of_any_length_are_uniform(flood_bits):
    params = hn.Parameters(8192, [50, 50, 50, 50], 2.0**40, activation_bound=1.0, activation_norm=1.0, error_bound=1.0)
    public, primes = hn.SecretKey.generate(params)._native.public_key().to_bytes(), params._native.primes
    q = math.prod(primes)
    positions = list(range(4000))
    # Under a key whose b is zero all that c0 takes is the flood and the noise.
    zero = _testing.reseal(_zero_key(public, params))
    c0, _ = _testing.hide_product(zero, positions, flood_bits, np.zeros((4, 8192), np.uint64))
    values = np.array(
        [
            sum(int(r) * pow(q // p, -1, p) * (q // p) for r, p in zip(column, primes, strict=True)) % q
            for column in c0.T
        ],
        object,
    )
    signed = np.where(values > q // 2, values - q, values)
    assert max(abs(signed)) <= 2**flood_bits + 21  # and the noise e0
    part = np.array([float(v) / 2.0**flood_bits for v in signed])
    if flood_bits > 10:
        assert np.histogram(part, 8, (-1, 1))[0].min() > 400
        low = np.array([int(v) % 2**8 for v in signed if abs(v) > 0])
        assert abs(low.mean() - 127.5) < 6 * 74 / math.sqrt(len(low))


def _zero_key(public, params):
    """The bytes of a public key with b = 0."""
    length = sum((8192 * p.bit_length() + 7) // 8 for p in params._native.primes)
    return public[: -8 - length] + bytes(length) + public[-8:]


def test_a_forked_child_hides_with_randomness_of_its_own():
    script = """
import os, sys, numpy as np, hesplit_native as hn
hn.set_num_threads(2)
hn.set_work_ahead(True)
params = hn.Parameters.recommend(in_features=20, out_features=2, batch_size=2, private_weights=True, weight_norm=4.0)
client = hn.LinearClient(hn.SecretKey.generate(params), 20, 2)
weight = np.ones((2, 20)) / 8
server = hn.LinearServer(client.public_material(), weight, private=True)
server.forward(client.encrypt(np.ones((2, 20))))
request = client.encrypt(np.ones((2, 20)))
server.set_weight(weight)  # works ahead on the reply to it
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, server.forward(request)[-64:])
    os._exit(0)
theirs = os.read(read, 64)
os.waitpid(child, 0)
assert theirs != server.forward(request)[-64:]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class TestShares:
    @settings(max_examples=15, deadline=None)
    @given(
        st.integers(1, 12),
        st.integers(1, 60),
        st.integers(1, 9),
        st.sampled_from([0, 1 << 16]),
        st.integers(0, 2**32 - 1),
    )
    def test_of_both_sides_add_up_to_the_logits(self, n, d, o, releases, seed):
        params = recommend(d, o, n, releases=releases)
        client, server, x, weight, bias = converse(params, d, o, n, seed)
        exact = x @ weight.T + bias
        message, share, rows, kept = server.forward_share(client.encrypt(x))
        assert (rows, kept) == (n, None)
        joined = server.join(share, client.open_share(message))
        flooded = 8 * client.flooding_deviation
        assert (flooded > 0) == (releases > 0)
        assert np.abs(joined - exact).max() <= params.error_bound + flooded
        # For a protocol that goes on with shares.
        message, share, *_ = server.forward_share(client.encrypt(x))
        theirs, ours = client.decrypt_share(message), server.own_share(share)
        assert (theirs.bits, theirs.scale) == (ours.bits, ours.scale)
        total = (theirs.values + ours.values) & np.uint64((1 << ours.bits) - 1)
        signed = np.where(
            total >> np.uint64(ours.bits - 1), total.astype(np.int64) - (1 << ours.bits), total.astype(np.int64)
        )
        assert np.abs(signed / ours.scale - exact).max() <= params.error_bound

    def test_say_nothing_alone(self):
        params = recommend(20, 4, 64)
        client, server, x, *_ = converse(params, 20, 4, 64)
        message, share, *_ = server.forward_share(client.encrypt(x))
        theirs, ours = client.decrypt_share(message), server.own_share(share)
        for values in (theirs.values, ours.values):
            part = values / 2.0**ours.bits
            assert abs(part.mean() - 0.5) < 6 / math.sqrt(12 * part.size)
            assert np.histogram(part, 4, (0, 1))[0].min() > 30

    def test_of_another_request_are_refused(self):
        params = recommend(20, 4, 8)
        client, server, x, *_ = converse(params, 20, 4, 8)
        (first, share, *_), (second, other, *_) = (server.forward_share(client.encrypt(x)) for _ in range(2))
        opened = client.open_share(first)
        with pytest.raises(hn.KeyMismatchError, match="another request"):
            server.join(other, opened)
        with pytest.raises(hn.KeyMismatchError):
            client.open_share(first)  # answered already
        for changed in (opened[:-1], opened + b"\0", opened[:80] + bytes([opened[80] ^ 1]) + opened[81:]):
            with pytest.raises(hn.WireError):
                server.join(share, changed)
        with pytest.raises(hn.WireError):
            client.decrypt(second)  # a share is no reply
        assert server.join(share, opened).shape == (8, 4)

    def test_are_of_private_weights(self):
        params = hn.Parameters.recommend(in_features=20, out_features=4, batch_size=8)
        client = hn.LinearClient(hn.SecretKey.generate(params), 20, 4)
        server = hn.LinearServer(client.public_material(), np.ones((4, 20)))
        with pytest.raises(hn.ParameterError, match="private"):
            server.forward_share(client.encrypt(np.ones((8, 20))))

    def test_are_counted_as_releases(self):
        params = recommend(20, 4, 8, releases=2)
        client, server, x, *_ = converse(params, 20, 4, 8)
        for _ in range(2):
            message, share, *_ = server.forward_share(client.encrypt(x))
            server.join(share, client.open_share(message))
        message, *_ = server.forward_share(client.encrypt(x))
        with pytest.raises(hn.ParameterError, match="2 flooded releases"):
            client.open_share(message)


class TestWeightGradient:
    def step(self, params, gradient, seed=0):
        n, o = gradient.shape
        client, server, x, *_ = converse(params, 40, o, n, seed, weight_gradients=True)
        message, share, _, kept = server.forward_share(client.encrypt(x), keep=True)
        server.join(share, client.open_share(message, weight_gradient_follows=True))
        masked_message, masked = server.weight_gradient(kept, gradient)
        return client, server, x, masked_message, masked

    @pytest.mark.parametrize(("releases", "bound"), [(0, 1e-3), (1 << 16, 0.2)])  # flooded: 8 deviations
    def test_is_right(self, releases, bound):
        params = recommend(40, 5, 8, releases=releases)
        gradient = np.random.default_rng(1).normal(size=(8, 5)) / 16
        client, server, x, message, masked = self.step(params, gradient)
        found = server.unmask(masked, client.open_weight_gradient(message))
        assert np.abs(found - gradient.T @ x).max() < bound

    def test_its_message_is_the_same_for_every_gradient(self):
        params = recommend(40, 5, 8)
        heads = set()
        for size in (1 / 16, 1e-6, 0.0):
            gradient = size * np.random.default_rng(1).normal(size=(8, 5))
            client, server, _, message, _ = self.step(params, gradient)
            seen = _core.inspect_masked_gradient(server._native, message)
            heads.add((len(message), seen["bits"], seen["scale"]))
            with pytest.raises(hn.ParameterError, match="server's alone"):
                client.open_weight_gradient(message, gradient)
        assert len(heads) == 1

    def test_one_that_would_show_is_refused(self):
        with pytest.raises(hn.RangeError, match="divide dJ/dY"):
            self.step(recommend(40, 5, 8), np.full((8, 5), 0.2))
