"""Error bounds hold for numbers that all round alike, which random ones never do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn

KINDS = ("equal columns", "alternating columns", "constant", "equal rows", "random")


def numbers(rng, kind, rows, columns, norm):
    """Rows of l2 norm `norm`."""
    values = {
        "equal columns": lambda: np.repeat(rng.normal(size=(rows, 1)), columns, 1),
        "alternating columns": lambda: np.resize(rng.normal(size=(2, rows)), (columns, rows)).T,
        "constant": lambda: np.ones((rows, columns)),
        "equal rows": lambda: np.repeat(rng.normal(size=(1, columns)), rows, 0),
        "random": lambda: rng.normal(size=(rows, columns)),
    }[kind]()
    return values * norm / np.linalg.norm(values, axis=1, keepdims=True)


def at_its_limit(params, d, o, n, *, weight_norm):
    """The parameters with the least error bound that they hold."""
    low, high = 1e-7, 100.0
    while high > 1.02 * low:
        middle = float(np.sqrt(low * high))
        try:
            replace(params, error_bound=middle).estimate(d, o, n, weight_norm=weight_norm)
            high = middle
        except hn.RangeError:
            low = middle
    return replace(params, error_bound=high)


def share_of_bound(params, x, w, b):
    client = hn.LinearClient(hn.SecretKey.generate(params), w.shape[1], w.shape[0])
    server = hn.LinearServer(client.public_material(), w, b)
    y = client.decrypt(server.forward(client.encrypt(x)))
    assert client.clipped == 0
    return np.abs(y - (x @ w.T + b)).max() / params.error_bound


# At this scale nearly all of the modulus is the activations', and the error is that of rounded weights.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 256, 5), (3, 700, 60), (1, 90, 90), (32, 40, 3)])
def test_weights_that_round_alike_on_slots(shape, kind):
    n, d, o = shape
    rng = np.random.default_rng(0)
    params = hn.Parameters(
        ring_degree=4096, modulus_bits=(40, 20, 20), scale=2.0**34, packing="slots", batch_size=n, activation_norm=64.0
    )
    params = at_its_limit(params, d, o, n, weight_norm=4.0)
    w = numbers(rng, kind, o, d, 3.99)
    for of_x in ("constant", "random"):
        assert share_of_bound(params, numbers(rng, of_x, n, d, 63.9), w, np.zeros(o)) <= 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(1, 30),
    d=st.integers(1, 600),
    o=st.integers(1, 90),
    scale_bits=st.integers(8, 36),
    of_w=st.sampled_from(KINDS),
    of_x=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)
@example(n=1, d=600, o=90, scale_bits=34, of_w="equal columns", of_x="constant", seed=0)
@example(n=1, d=600, o=90, scale_bits=8, of_w="constant", of_x="equal columns", seed=0)
def test_bounds_on_slots_hold_for_every_weight(n, d, o, scale_bits, of_w, of_x, seed):
    rng = np.random.default_rng(seed)
    params = hn.Parameters(
        ring_degree=4096, modulus_bits=(40, 20, 20), scale=2.0**scale_bits, packing="slots", batch_size=n,
        activation_norm=64.0,
    )  # fmt: skip
    params = at_its_limit(params, d, o, n, weight_norm=4.0)
    x, w = numbers(rng, of_x, n, d, 60.0), numbers(rng, of_w, o, d, 3.9)
    assert share_of_bound(params, x, w, rng.normal(size=o)) <= 1


# Of thousands of features that all round alike the errors add up to more than the noise of an encryption.
@pytest.mark.parametrize(
    ("packing", "n", "d", "o"), [("blocks", 1, 60000, 1), ("blocks", 3, 40000, 2), ("merged", 1, 4096, 300)]
)
def test_activations_that_round_alike_in_blocks(packing, n, d, o):
    params = hn.Parameters.recommend(in_features=d, out_features=o, batch_size=n, packing=packing, weight_norm=4.0)
    w = np.full((o, d), 3.99 / np.sqrt(d))
    for fraction in (0.25, 0.49, 0.5):
        x = np.full((n, d), (np.floor(params.scale) + fraction) / params.scale)
        assert share_of_bound(params, x, w, np.zeros(o)) <= 1
