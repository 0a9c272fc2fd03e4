"""Private weights on slots: logits are traces, right within the bound, and all that a reply says of the weights."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.test_private_weights import View, converse, rows_of_norm

import hesplit_native as hn
from hesplit_native import _core, _testing


def recommend(d, o, n, **options):
    options.setdefault("weight_norm", 4.0)
    return hn.Parameters.recommend(
        in_features=d, out_features=o, batch_size=n, packing="slots", private_weights=True, **options
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 400), st.integers(1, 60),
    st.sampled_from([
        {}, {"logit_noise": 0.3}, {"private_bits": 24}, {"private_bits": 60, "error_bound": 0.1}, {"security": "quantum"},
    ]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(4, 256, 5, {}, 0)
@example(3, 5000, 2, {}, 0)
@example(1, 1, 1, {}, 0)
@example(600, 30, 70, {}, 0)
def test_replies_keep_the_error_bound_that_includes_the_flood(n, d, o, options, seed):
    params = recommend(d, o, n, **options)
    assert params.packing == "slots"
    assert params.total_bits <= params.max_bits
    client, server, x, weight, bias = converse(params, d, o, n, seed)
    for rows in {n, 1, (n + 1) // 2}:
        y = client.decrypt(server.forward(client.encrypt(x[:rows])))
        assert np.abs(y - (x[:rows] @ weight.T + bias)).max() <= params.error_bound


def test_more_rows_than_planned_take_more_groups():
    params = recommend(30, 3, 4)
    client, server, *_, weight, bias = converse(params, 30, 3, 4)
    x = np.random.default_rng(3).normal(size=(33, 30)).astype(np.float32)
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert np.abs(y - (x @ weight.T + bias)).max() <= params.error_bound


def test_the_flood_is_as_large_as_the_estimate_says_and_fresh_in_every_reply():
    params = recommend(64, 6, 8, logit_noise=0.2)
    said = params.estimate(64, 6, 8)
    assert 0.2 >= said["logit_noise"] > 0.2 / 16
    client, server, x, weight, bias = converse(params, 64, 6, 8)
    request = client.encrypt(x)
    assert len({server.forward(request) for _ in range(20)}) == 20
    errors = [client.decrypt(server.forward(client.encrypt(x))) - (x @ weight.T + bias) for _ in range(40)]
    assert np.std(errors) == pytest.approx(said["logit_noise"], rel=0.1)
    assert abs(np.mean(errors)) < 5 * said["logit_noise"] / math.sqrt(1920)


class TestAgreement:
    def test_one_prime_is_enough_since_nothing_is_rotated(self):
        params = recommend(12, 2, 3)
        changed = dataclasses.replace(params, modulus_bits=(60,), error_bound=1e9)
        assert len(hn.Parameters.from_bytes(changed.to_bytes())._native.primes) == 1
        material = len(hn.LinearClient(hn.SecretKey.generate(params), 12, 2).public_material())
        assert material < params.ring_degree * params.total_bits // 8 + 1024  # one polynomial: no rotation keys

    def test_scales_that_make_rounded_products_are_refused(self):
        params = recommend(12, 2, 3)
        with pytest.raises(hn.ParameterError, match="power of two"):
            dataclasses.replace(params, scale=params.scale * 1.5)

    def test_weights_beyond_the_norm_are_refused_before_anything_is_sent(self):
        params = recommend(30, 3, 4)
        client, server, x, weight, bias = converse(params, 30, 3, 4)
        before = client.decrypt(server.forward(client.encrypt(x)))
        for larger, offset in ((weight * 1.3, bias), (weight, bias + 0.3 * 4 * params.activation_norm)):
            with pytest.raises(hn.RangeError, match="weight_norm of"):
                server.set_weight(larger, offset)
            with pytest.raises(hn.RangeError, match="weight_norm of"):
                hn.LinearServer(client.public_material(), larger, offset, private=True)
        after = client.decrypt(server.forward(client.encrypt(x)))
        np.testing.assert_allclose(after, before, atol=2 * params.error_bound)

    def test_ranges_too_small_for_double_double_arithmetic_are_refused(self):
        params = hn.Parameters(
            32768, [54] * 16, 2.0**10, packing="slots", activation_bound=1.0, activation_norm=1.0, error_bound=2.0**-150,
            private_bits=40, weight_norm=2.0**-200,
        )  # fmt: skip
        client = hn.LinearClient(hn.SecretKey.generate(params), 3, 2)
        with pytest.raises(hn.RangeError, match="2\\^900"):
            hn.LinearServer(client.public_material(), np.zeros((2, 3)), private=True)

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


class TestWhatSlotsDoNotHave:
    def test_weight_gradients(self):
        params = recommend(12, 2, 3)
        key = hn.SecretKey.generate(params)
        with pytest.raises(hn.ParameterError, match="weight gradients"):
            hn.LinearClient(key, 12, 2, weight_gradients=True)
        material = bytearray(hn.LinearClient(key, 12, 2).public_material())
        features = bytes(material).index((12).to_bytes(4, "little") + (2).to_bytes(4, "little") + b"\0")
        material[features + 8] = 1
        with pytest.raises(hn.WireError, match="weight gradients"):
            hn.LinearServer(_testing.reseal(bytes(material)), np.ones((2, 12)) / 8)
        client, server, x, *_ = converse(params, 12, 2, 3)
        *_, kept = server.forward_training(client.encrypt(x), keep=True)
        with pytest.raises(hn.ParameterError, match="weight gradients"):
            server.weight_gradient(kept, np.ones((3, 2)) / 8)

    def test_shares_of_logits(self):
        params = recommend(12, 2, 3)
        client, server, x, *_ = converse(params, 12, 2, 3)
        request = client.encrypt(x)
        with pytest.raises(hn.ParameterError, match="shares of logits"):
            server.forward_share(request)
        reply = bytearray(server.forward(request))
        share, *_ = _blocks_share()
        reply[:8] = share[:8]  # magic, version and type
        for opened in (client.open_share, client.decrypt_share):
            with pytest.raises(hn.ParameterError, match="shares of logits"):
                opened(_testing.reseal(bytes(reply)))

    def test_a_key_for_every_request(self):
        with pytest.raises(hn.ParameterError, match="one key"):
            hn.LinearClient(hn.SecretKey.generate(recommend(12, 2, 3)), 12, 2, fresh_keys=True)


def _blocks_share():
    params = hn.Parameters.recommend(in_features=12, out_features=2, batch_size=3, private_weights=True)
    client = hn.LinearClient(hn.SecretKey.generate(params), 12, 2)
    server = hn.LinearServer(client.public_material(), np.ones((2, 12)) / 8, private=True)
    return server.forward_share(client.encrypt(np.ones((3, 12))))


def test_damaged_messages_are_refused_or_harmless():
    params = recommend(40, 5, 4)
    generator = np.random.default_rng(5)
    client, server, x, *_ = converse(params, 40, 5, 4)
    for _ in range(60):
        request, outcome = client.encrypt(x), []
        reply = server.forward(request)
        for message, read in ((request, server.forward), (reply, client.decrypt)):
            changed = bytearray(message)
            at = int(generator.integers(64, 120 if generator.integers(2) else len(message) - 8))
            changed[at] ^= 1 << int(generator.integers(8))
            with pytest.raises(hn.WireError, match="checksum"):
                read(bytes(changed))
            resealed = _testing.reseal(bytes(changed[: len(changed) - int(generator.integers(2)) * 8]))
            try:
                outcome.append(read(resealed))
            except (hn.WireError, hn.KeyMismatchError, hn.RangeError) as error:
                outcome.append(error)
        assert len(outcome) == 2


def test_clients_of_one_layer_share_its_weights():
    params = recommend(50, 7, 4)
    first, server, x, weight, bias = converse(params, 50, 7, 4)
    second = hn.LinearClient(hn.SecretKey.generate(params), 50, 7)
    y = second.decrypt(server.for_client(second.public_material()).forward(second.encrypt(x)))
    assert np.abs(y - (x @ weight.T + bias)).max() <= params.error_bound
    with pytest.raises(hn.KeyMismatchError):
        server.for_client(second.public_material()).forward(first.encrypt(x))


class TestTraces:
    """What a product says at the coefficients that are sent, before it is hidden: logits, and less than the flood hides."""

    def products(self, params, d, o, x, weights, bias=()):
        key = hn.SecretKey.generate(params)
        client = hn.LinearClient(key, d, o)
        server = hn.LinearServer(client.public_material(), weights[0], private=True)
        return TraceView(server, client.encrypt(x), secret_of(key), key, weights, bias)

    @pytest.mark.parametrize(("n", "d", "o", "used"), [(1, 12, 1, 1), (3, 40, 2, 3), (8, 300, 5, 8), (5, 2000, 3, 2)])
    def test_of_two_weights_with_the_same_logits_they_are_the_same_but_for_what_the_flood_hides(self, n, d, o, used):
        generator = np.random.default_rng(n + d)
        params = recommend(d, o, n)
        # Numbers with few digits, so that logits are the same to the last bit.
        x = generator.integers(-8, 9, (used, d)) / 4.0
        change = np.zeros((o, d))
        x[:, 0] = x[:, 1]
        change[:, 0], change[:, 1] = 0.25, -0.25
        first = np.round(rows_of_norm(generator, o, d, 2.0) * 2**20) / 2**20
        view = self.products(params, d, o, x, [first, first + change])
        for phases in zip(*view.phases, strict=True):
            sizes = [abs(a - b) for a, b in zip(*phases, strict=True)]
            assert max(sizes) <= 2 * view.bound
            assert max(sizes) > view.bound / 2**16  # of noise there is some
        # Elsewhere in a product they are not: it has the terms of the logits one by one.
        a, b = (view.phases_at(0, i, range(params.ring_degree)) for i in (0, 1))
        assert max(abs(a - b)) > 2**30 * view.bound

    @pytest.mark.parametrize(("n", "d", "o", "used"), [(1, 12, 1, 1), (5, 40, 3, 5), (8, 300, 5, 2), (2, 700, 12, 1)])
    @pytest.mark.parametrize("aligned", [False, True])
    def test_they_follow_from_the_logits_but_for_what_the_flood_hides(self, n, d, o, used, aligned):
        """Computed exactly from y alone, which is zero for samples and outputs that are not there."""
        generator = np.random.default_rng(n)
        params = recommend(d, o, n)
        x, weight = generator.normal(size=(used, d)), rows_of_norm(generator, o, d, 3.0)
        bias = generator.normal(size=o)
        if aligned:  # as large as was agreed, and all terms of one sign
            largest = min(params.activation_bound, params.activation_norm / math.sqrt(d))
            x[:], weight[:], bias[:] = 0.999 * largest, 0.99 * params.weight_norm / math.sqrt(d), 0.001
        view = self.products(params, d, o, x, [weight], bias)
        logits = [
            [sum(Fraction(a) * Fraction(b) for a, b in zip(row, w, strict=True)) + Fraction(b0)
             for w, b0 in zip(weight.tolist(), bias.tolist(), strict=True)]
            for row in x.tolist()
        ]  # fmt: skip
        count = len(view.sent)
        period, per_product = count // view.samples, -(-o // len(view.phases[0]))
        exponents, means, found = [pow(3, c, 4 * count) for c in range(count)], [], []
        for p, phases in enumerate(view.phases[0]):
            traces = {
                s * period + t: Decimal(y.numerator) / Decimal(y.denominator)
                for s, row in enumerate(logits)
                for t, y in enumerate(row[p * per_product : (p + 1) * per_product])
            }
            for j in (0, 1, count // 2, count - 1):
                cosines = cosines_of([Decimal(exponents[c] * j) / (2 * count) for c in traces])
                means.append(sum(y * c for y, c in zip(traces.values(), cosines, strict=True)) / view.degree * 2)
                found.append(Decimal(int(phases[j])))
        # One of the doubles next to it is the scale, from which a reply's was computed and rounded.
        scales = [Decimal(view.product_scale * (1 + k * 2.0**-53)) for k in range(-16, 17)]
        worst = [max(abs(f - m * scale) for f, m in zip(found, means, strict=True)) for scale in scales]
        assert view.bound / 2**20 < min(worst) <= view.bound

    def test_weights_of_zero_say_zero(self):
        params = recommend(12, 1, 1)
        view = self.products(params, 12, 1, np.ones((1, 12)), [np.zeros((1, 12))])
        assert not any(view.phases[0][0])


class TestRepliesOfTwoWeightsWithTheSameLogits:
    """As in test_private_weights.py, with all that a client may know: of private replies it learns nothing.

    Where the flood, the encryption of zero or the choice of coefficients is left out it is right every time.
    """

    TRIALS = 40

    def trials(self, make):
        """How often the client is right by the coefficients of c0 that it gets, and by c1."""
        generator = np.random.default_rng(7)
        params = recommend(12, 1, 1)
        key = hn.SecretKey.generate(params)
        client = hn.LinearClient(key, 12, 1)
        first = rows_of_norm(generator, 1, 12, 1.0)
        second = first + np.array([[1.0, -1.0] + [0.0] * 10]) / 8
        server = hn.LinearServer(client.public_material(), first, private=True)
        secret, right = secret_of(key), np.zeros(2, int)
        for _ in range(self.TRIALS):
            truth = int(generator.integers(2))
            view = TraceView(server, client.encrypt(np.ones((1, 12))), secret, key, [first, second])
            product = view.products[truth][0]
            positions, c0, c1 = make(view, product, generator)
            found = view.phase(c0, c1, positions)
            distance = [sum(abs(found - view.phases_at(0, i, positions))) for i in (0, 1)]
            right += [int(distance[1] < distance[0]) == truth, view.guess_by_c1(c1) == truth]
        return right

    def is_chance(self, right):
        return abs(right - self.TRIALS / 2) < 20 * math.sqrt(self.TRIALS) / 6.4  # beyond: below 1e-9

    def test_are_alike(self):
        by_c0, by_c1 = self.trials(lambda view, product, _: view.hidden(product, view.sent, view.flood_bits))
        assert self.is_chance(by_c0)
        assert self.is_chance(by_c1)

    def test_differ_without_the_flood(self):
        by_c0, by_c1 = self.trials(lambda view, product, _: view.hidden(product, view.sent, 0))
        assert by_c0 == self.TRIALS
        assert self.is_chance(by_c1)

    def test_differ_without_the_encryption_of_zero(self):
        def flood_alone(view, product, generator):
            floods = [int(f) << (view.flood_bits - 40) for f in generator.integers(-(2**40), 2**40, len(view.sent))]
            residues = np.array([[f % prime for f in floods] for prime in view.primes], np.uint64)
            return view.sent, view.sum(product["c0"][:, view.sent], residues), product["c1"]

        by_c0, by_c1 = self.trials(flood_alone)
        assert self.is_chance(by_c0)
        assert by_c1 == self.TRIALS

    def test_differ_where_partial_sums_are_sent(self):
        """All coefficients of c0, as replies on slots have them that hide nothing; flooded and re-randomised all the same."""
        by_c0, by_c1 = self.trials(lambda view, product, _: view.hidden(product, view.everything, view.flood_bits))
        assert by_c0 == self.TRIALS
        assert self.is_chance(by_c1)


def secret_of(key):
    n = key.parameters.ring_degree
    return _testing.unpack_bits(bytes(key._native.to_bytearray())[-8 - n // 4 : -8], n, 2, 3).astype(np.int64) - 1


class TraceView(View):
    """What the client of a request can compute of its products with each of the weights that it might have been."""

    def __init__(self, server, request, secret, key, candidates, bias=()):
        self.secret, self.public = secret, key._native.public_key().to_bytes()
        seen = [_core.inspect_products(server._native, request, w, np.array(bias, float)) for w in candidates]
        self.products = [s["ciphertexts"] for s in seen]
        self.primes, self.q = seen[0]["primes"], math.prod(seen[0]["primes"])
        self.product_scale = seen[0]["scale"] * self.q / 2.0 ** seen[0]["bits"]
        params, self.samples = server.parameters, seen[0]["rows"]
        self.degree = params.ring_degree
        reply = _core.inspect_reply(server._native, server.forward(request))
        self.sent = [int(at) for at in reply["ciphertexts"][0]["positions"]]
        self.everything = list(range(0, params.ring_degree, 64))
        count, width = len(self.sent), params.ring_degree / 2 / len(self.sent)
        noise = params.estimate(server.in_features, server.out_features, params.batch_size)["logit_noise"]
        unit = noise * math.sqrt(3) / width / math.sqrt(2 * count - 1) * self.product_scale
        self.flood_bits = round(math.log2(unit))
        self.bound = 2.0 ** (self.flood_bits - params.private_bits)
        self.phases = [
            [self.phases_at(p, i, self.sent) for p in range(len(seen[0]["ciphertexts"]))] for i in range(len(seen))
        ]

    def phases_at(self, p, candidate, positions):
        product = self.products[candidate][p]
        positions = list(positions)
        return self.phase(product["c0"][:, positions], product["c1"], positions)

    def phase(self, c0, c1, positions):
        """C0 + c1 s at these positions, between -q/2 and q/2."""
        key = np.stack([(self.secret % p).astype(np.uint64) for p in self.primes])
        product = _testing.multiply(self.primes, c1, key)[:, list(positions)]
        total = np.zeros(product.shape[1], object)
        for a, b, p in zip(c0, product, self.primes, strict=True):
            total += (a.astype(object) + b.astype(object)) % p * pow(self.q // p, -1, p) * (self.q // p)
        return (total + self.q // 2) % self.q - self.q // 2

    def hidden(self, product, positions, flood_bits):
        added, c1 = _testing.hide_product(self.public, positions, flood_bits, product["c1"])
        return positions, self.sum(product["c0"][:, positions], added), c1

    def guess_by_c1(self, c1):
        def size(candidate):
            rows = [
                np.minimum((a - b) % p, (b - a) % p).astype(float) / p
                for a, b, p in zip(
                    c1.astype(object), self.products[candidate][0]["c1"].astype(object), self.primes, strict=True
                )
            ]
            return np.mean(rows)

        return int(size(1) < size(0))


getcontext().prec = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def cosines_of(fractions):
    """The cosines of pi times these numbers, to some 55 digits."""
    found = []
    for fraction in fractions:
        angle = PI * (fraction % 2)
        value = term = Decimal(1)
        for k in range(1, 50):
            term *= -angle * angle / ((2 * k - 1) * 2 * k)
            value += term
        found.append(value)
    return found


class TestPreciseEmbedding:
    """Against decimals of 60 digits."""

    def check(self, n, slots, at, scale):
        primes = hn.Parameters(8192, [50] * 4, 2.0**40, activation_norm=1.0, error_bound=1.0)._native.primes
        q = math.prod(primes)
        bound = np.abs(slots).max() * 1.5
        residues = _testing.precise_embed(slots, bound, scale, primes, n)
        used = np.flatnonzero(slots)
        for k in at:
            value = sum(int(residues[row, k]) * pow(q // p, -1, p) * (q // p) for row, p in enumerate(primes)) % q
            value = value - q if value > q // 2 else value
            terms = cosines_of([Decimal(pow(3, int(i), 2 * n) * k % (2 * n)) / n for i in used])
            exact = sum(Decimal(float(slots[i])) * c for i, c in zip(used, terms, strict=True)) * 2 / n
            off = abs(Decimal(value) - exact * Decimal(scale))
            assert off <= Decimal("0.5") + Decimal(bound * scale) * Decimal(2) ** -95

    @pytest.mark.parametrize("n", [16, 32, 64])
    @pytest.mark.parametrize("scale", [1.0, 2.0**30, 1.37 * 2.0**61, 2.0**78, 1.1 * 2.0**93, 2.0**140])
    def test_is_as_exact_as_it_says(self, n, scale):
        slots = np.random.default_rng(n).normal(size=n // 2)
        self.check(n, slots, range(n), scale)

    # Words of 60 bits from the top: from 2^117 on the lower half of a double-double is longer than a word.
    @pytest.mark.parametrize("bits", [*range(110, 124), 150, 173, 177, 178, 190])
    def test_is_where_words_end(self, bits):
        # Nearly equal slots, so that a coefficient is as large as they are.
        slots = 1 + 1e-3 * np.random.default_rng(bits).normal(size=16)
        self.check(32, slots, range(32), 1.3 * 2.0**bits)

    @pytest.mark.parametrize("n", [1024, 8192, 32768])
    def test_is_in_large_rings(self, n):
        generator = np.random.default_rng(n)
        slots = np.zeros(n // 2)
        slots[generator.integers(0, n // 2, 8)] = generator.normal(size=8)
        self.check(n, slots, [0, 1, n // 2 - 1, n // 2, n - 1, *generator.integers(0, n, 8).tolist()], 2.0**90)

    @pytest.mark.parametrize("n", [64, 1024])
    def test_slots_are_those_of_the_other_embedding(self, n):
        slots = np.random.default_rng(1).normal(size=n // 2)
        prime = hn.Parameters(8192, [50], 2.0**20, activation_norm=1.0)._native.primes[0]
        residues = _testing.precise_embed(slots, 8.0, 2.0**40, [prime], n)[0].astype(np.int64)
        centred = np.where(residues > prime // 2, residues - prime, residues)
        np.testing.assert_allclose(_testing.slots_of(centred / 2.0**40), slots, atol=1e-9)
