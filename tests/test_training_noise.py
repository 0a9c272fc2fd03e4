"""Discrete noise has its distribution, its last bits say nothing, and what it is accounted for is what it is.

Statistical tests run under fixed seeds, so that they pass always or never; under a random one each would fail with probability 1e-6.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

import hesplit_native as hn
from hesplit_native import _core, _testing
from hesplit_native.training.config import Defences
from hesplit_native.training.defences import Defender
from hesplit_native.training.noise import GridNoise, laplace_divergences

ALARM = 1e-6
ORDERS = np.array([1.1, 1.5, 2.0, 5.0, 32.0, 300.0])
STEPS = 2**24


def pmf(kind, scale, z):
    """Probabilities of integers z."""
    everything = np.arange(-60 * scale, 60 * scale + 1)
    weights = [
        np.exp(-(k**2) / (2.0 * scale**2)) if kind == "gaussian" else np.exp(-np.abs(k) / scale)
        for k in (z, everything)
    ]
    return weights[0] / weights[1].sum()


def sample(kind, seed, scale, count):
    return getattr(_testing, f"discrete_{kind}")(seed, scale, count)


def goodness(kind, scale, values):
    """The p-value of a chi-square test of samples against the distribution; outcomes of fewer than 20 are taken together."""
    reach = 60 * scale
    z = np.arange(-reach, reach + 1)
    expected = len(values) * pmf(kind, scale, z)
    often = expected >= 20
    observed = np.bincount(values[np.abs(values) <= reach] + reach, minlength=len(z))
    counts = np.append(observed[often], len(values) - observed[often].sum())
    wanted = np.append(expected[often], len(values) - expected[often].sum())
    return stats.chisquare(counts, wanted).pvalue


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
class TestSamples:
    @pytest.mark.parametrize("scale", [1, 2, 3, 10, 100])
    def test_have_their_distribution(self, kind, scale):
        values = sample(kind, 11, scale, 300_000)
        assert goodness(kind, scale, values) > ALARM
        assert goodness(kind, scale + max(1, scale // 10), values) < ALARM  # the test sees another scale

    def test_of_the_largest_scale_are_those_of_the_continuous_distribution(self, kind):
        scale = 2**18
        values = sample(kind, 12, scale, 300_000)
        continuous = stats.norm if kind == "gaussian" else stats.laplace
        assert stats.kstest(values / scale, continuous.cdf).pvalue > ALARM
        assert stats.kstest(values / scale, continuous(scale=1.02).cdf).pvalue < ALARM

    def test_do_not_depend_on_each_other(self, kind):
        values = sample(kind, 13, 1000, 200_000) / 1000.0
        for lag in (1, 2, 256):
            assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4.9 / math.sqrt(len(values))

    @pytest.mark.parametrize("scale", [0, 2**18 + 1, 2**63])
    def test_of_other_scales_are_refused(self, kind, scale):
        with pytest.raises(hn.ParameterError, match="scale"):
            sample(kind, 1, scale, 1)


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


class TestSteps:
    @settings(deadline=None)
    @given(
        arrays(np.float32, (3, 7), elements=floats | st.floats(-3, 3, width=32)), st.booleans(), st.integers(1, 2**23)
    )
    def test_never_exceed_the_bound(self, rows, gaussian, bound):
        for steps in _testing.steps_of(rows, gaussian, bound).tolist():
            assert (sum(s * s for s in steps) <= bound**2) if gaussian else (sum(map(abs, steps)) <= bound)

    @settings(deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, 4000), st.sampled_from([1, 1000, 2**23]), st.booleans())
    def test_of_rows_at_the_bound_never_exceed_it(self, seed, columns, bound, gaussian):
        rows = np.random.default_rng(seed).normal(size=(1, columns))
        norm = np.linalg.norm(rows) if gaussian else np.abs(rows).sum()
        steps = _testing.steps_of((rows * (bound / norm)).astype(np.float32), gaussian, bound).tolist()[0]
        assert (sum(s * s for s in steps) <= bound**2) if gaussian else (sum(map(abs, steps)) <= bound)

    def test_are_the_values_rounded_towards_zero(self):
        rows = np.array([[2.9, -2.9, 0.99, -0.5, 7.0]], np.float32)
        assert _testing.steps_of(rows, True, 1000).tolist() == [[2, -2, 0, 0, 7]]
        assert _testing.steps_of(rows * 1000, False, 100).tolist() == [
            [20, -20, 6, -3, 48]
        ]  # scaled down to a norm of 100

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_there_are_none_of_no_number(self, value):
        for mechanism in ("gaussian", "laplace", "values"):
            with pytest.raises(hn.RangeError, match="diverged"):
                GridNoise(mechanism, 1.0, 5, 5).add(torch.tensor([[1.0, value]]))


class TestGrid:
    @pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "values"])
    @pytest.mark.parametrize("grid", [2.0**-100, 2.0**-7, 2.0**99])
    @pytest.mark.parametrize(("bound", "scale"), [(1, 1), (2**23, 1), (1, 2**18), (2**23, 2**18)])
    def test_whatever_comes_out_is_a_step_that_floats_have(self, mechanism, grid, bound, scale):
        values = torch.tensor([[3e38, -3e38, 1e-45, 0.0, -0.0, 1.0, 0.3] * 40] * 8)
        steps = GridNoise(mechanism, grid, bound, scale).add(values).double() / grid
        assert torch.equal(steps, steps.round())
        assert steps.abs().max() <= STEPS
        assert not (steps == 0).logical_and(steps.signbit()).any()
        assert len(steps.unique()) > 1

    @pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 77.0, 1e6, 1e12])
    @pytest.mark.parametrize("clip", [1e-12, 0.003, 1.0, 1e9])
    def test_noise_is_at_least_what_was_asked_for_and_hardly_more(self, epsilon, clip):
        noise = GridNoise.of("laplace", clip, 1 / epsilon)
        assert noise.bound * noise.grid <= clip
        assert 1 <= noise.bound <= 2**23
        assert 1 <= noise.scale <= 2**18
        assert noise.scale / (2 * noise.bound) >= 1 / epsilon
        if epsilon < 1e5:
            assert noise.scale * noise.grid == pytest.approx(2 * clip / epsilon, rel=1e-3)

    @pytest.mark.parametrize(
        ("clip", "epsilon"), [(1.0, 1e-6), (1.0, 1e-310), (1e-36, 1.0), (1e36, 1.0), (1e300, 1e-300)]
    )
    def test_what_floats_do_not_hold_is_refused(self, clip, epsilon):
        with pytest.raises(hn.ParameterError, match="choose another clip or epsilon"):
            Defender(Defences(mechanism="laplace", activation_epsilon=epsilon, activation_clip=clip), 4)

    @pytest.mark.parametrize(
        ("grid", "bound", "scale", "mechanism"),
        [(3.0, 1, 1, "laplace"), (0.0, 1, 1, "laplace"), (math.nan, 1, 1, "laplace"), (2.0**-101, 1, 1, "values"),
         (1.0, 0, 1, "laplace"), (1.0, 2**23 + 1, 1, "gaussian"), (1.0, 1, 0, "gaussian"), (1.0, 1, 2**18 + 1, "values"),
         (1.0, 1, 1, "magic")],
    )  # fmt: skip
    def test_the_core_refuses_other_noise(self, grid, bound, scale, mechanism):
        with pytest.raises(hn.ParameterError):
            _core.add_noise(np.zeros((1, 2), np.float32), mechanism, grid, bound, scale)

    def test_mechanisms_clip_and_noise_as_they_say(self):
        rows = torch.full((20_000, 4), 8.0)
        for mechanism, centre in (("gaussian", 10 / 2), ("laplace", 10 / 4), ("values", 8.0)):
            noise = GridNoise(mechanism, 2.0**-10, 10 * 2**10, 3 * 2**10)
            found = noise.add(rows).double() - centre
            deviation = 3 * (1 if mechanism == "gaussian" else math.sqrt(2))
            assert abs(float(found.mean())) < 6 * deviation / math.sqrt(found.numel())
            assert float(found.std()) == pytest.approx(deviation, rel=0.02)


class TestLastBits:
    """Mironov 2012: a float of two inputs' noised outputs is often one that only one of the inputs can lead to."""

    #: The two inputs that an attacker tells apart.
    ONE, OTHER = 0.0, 1.0

    @staticmethod
    def naive(value, count, generator):
        """Laplace noise of scale 1 as textbooks draw it, in double precision, added in single precision."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64) - 0.5
        noise = (-uniform.sign() * torch.log1p(-2 * uniform.abs().clamp_max(0.5 - 1e-12))).float()
        return (torch.tensor(value) + noise).numpy()

    @staticmethod
    def naively_possible(output, value):
        """Whether some float32 of noise leads from the value to each output."""
        value, near = np.float32(value), (output - np.float32(value)).astype(np.float32)
        below, above = np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))
        return (value + near == output) | (value + below == output) | (value + above == output)

    def test_of_naive_noise_tell_inputs_apart(self):
        outputs = self.naive(self.ONE, 10_000, torch.Generator().manual_seed(1))
        assert self.naively_possible(outputs, self.ONE).all()
        certain = ~self.naively_possible(outputs, self.OTHER)
        assert certain.mean() > 0.3  # of all outputs give their input away for certain, however large the noise

    @pytest.mark.parametrize("mechanism", ["laplace", "gaussian", "values"])
    @pytest.mark.parametrize("other", [1.0, 0.3, 1e-7])
    def test_of_ours_do_not(self, mechanism, other):
        noise = GridNoise(mechanism, 2.0**-3, 2**3, 2**3)  # values within 1, noise of scale 1
        found = [np.unique(noise.add(torch.full((20_000, 1), value)).numpy()) for value in (self.ONE, other)]
        for outputs in found:
            assert np.array_equal(
                outputs / noise.grid, np.round(outputs / noise.grid)
            )  # all floats are possible from everywhere
        # and in the middle, where that many draws see all of them, they are seen from both.
        middle = [outputs[np.abs(outputs) <= 2.5] for outputs in found]
        assert len(middle[0]) == 2 * 20 + 1
        assert np.array_equal(*middle)

    def test_of_a_defenders_activations_and_gradients_do_not(self):
        defender = Defender(Defences(mechanism="laplace", activation_epsilon=1.0, gradient_epsilon=1.0), 4)
        for release in (defender.activations, lambda rows: 8 * defender.gradient(rows / 8)):
            steps = [
                release(torch.full((8, 4), value)).double() / defender._activation_noise.grid
                for value in (0.0, 0.1, 1 / 3)
            ]
            for found in steps:
                assert torch.equal(found, found.round())


def divergences(kind, scale, shift):
    """By the definition, summed."""
    z = np.arange(-60 * scale - shift, 60 * scale + shift + 1)
    if kind == "laplace":
        p, q = -np.abs(z) / scale, -np.abs(z - shift) / scale
    else:
        p, q = -(z**2) / (2 * scale**2), -((z - shift) ** 2) / (2 * scale**2)
    normal = np.logaddexp.reduce(p)
    return np.array([(np.logaddexp.reduce(a * p + (1 - a) * q) - normal) / (a - 1) for a in ORDERS])


class TestDivergences:
    @pytest.mark.parametrize(("scale", "shift"), [(1, 1), (1, 7), (3, 1), (5, 40), (100, 30), (100, 1)])
    def test_of_laplace_noise_are_those_of_the_definition(self, scale, shift):
        assert laplace_divergences(ORDERS, shift, scale) == pytest.approx(
            divergences("laplace", scale, shift), rel=1e-7, abs=1e-12
        )

    @pytest.mark.parametrize(("scale", "shift"), [(1, 1), (1, 5), (3, 1), (40, 13)])
    def test_of_gaussian_noise_are_never_above_what_is_accounted(self, scale, shift):
        noise = GridNoise("gaussian", 1.0, 1, scale)
        assert (
            divergences("gaussian", scale, shift) <= noise.divergences(ORDERS, 1) * (shift / 2) ** 2 * (1 + 1e-9)
        ).all()

    def test_of_rows_are_largest_when_one_value_has_all_of_the_difference(self):
        for scale in (1, 4, 50):
            whole = laplace_divergences(ORDERS, 12, scale)
            assert (
                whole >= laplace_divergences(ORDERS, 5, scale) + laplace_divergences(ORDERS, 7, scale) - 1e-12
            ).all()
            assert (whole <= 12 / scale + 1e-12).all()  # 12 / scale is what pure differential privacy says

    def test_of_values_are_those_of_every_value(self):
        row, value = (GridNoise(mechanism, 1.0, 5, 9) for mechanism in ("laplace", "values"))
        assert np.allclose(value.divergences(ORDERS, 256), 256 * row.divergences(ORDERS, 256))


class TestRandomness:
    def test_comes_from_the_operating_system(self):
        defender = Defender(Defences(activation_epsilon=1.0, label_epsilon=0.1), 64)
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            np.random.default_rng(0)
            found.append(
                (defender.activations(torch.zeros(4, 64)), defender.labels(torch.zeros(64, dtype=torch.int64), 5))
            )
        for one, two in zip(*found, strict=True):
            assert not torch.equal(one, two)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads
    def test_is_not_shared_with_a_forked_child(self):
        def noise():
            return _core.add_noise(np.zeros((1, 64), np.float32), "laplace", 1.0, 5, 2**17).tobytes()

        noise()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, noise())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 256) != noise()
        os.close(reader)
        os.close(writer)

    def test_gradients_flow_through_the_clip(self):
        defender = Defender(Defences(activation_epsilon=1.0, activation_clip=1.0), 2)
        values = torch.tensor([[0.5, 3.0]], requires_grad=True)
        defender.activations(values).sum().backward()
        assert values.grad.tolist() == [[1.0, 0.0]]


class TestLabels:
    @pytest.mark.parametrize("epsilon", [0.5, 3.0])
    def test_change_with_the_probability_of_randomised_response(self, epsilon):
        noisy = Defender(Defences(label_epsilon=epsilon), 1).labels(torch.full((40_000,), 2), 5)
        wanted = np.full(5, 1 / (math.exp(epsilon) + 4))
        wanted[2] *= math.exp(epsilon)
        assert (
            stats.chisquare(np.bincount(noisy, minlength=5), 40_000 * wanted).pvalue > 1e-9
        )  # drawn anew in every run

    def test_stay_under_any_large_epsilon(self):
        truth = torch.arange(5).repeat(50)
        assert torch.equal(Defender(Defences(label_epsilon=1e4), 1).labels(truth, 5), truth)
