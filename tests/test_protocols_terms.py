from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesplit_native.errors import ProtocolError, WireError
from hesplit_native.protocols.terms import Terms, initial_linear, make_optimizer


def test_round_trip(make_terms):
    terms = make_terms(protocol="splitways", parameter_hash="ab" * 16, learning_rate=1 / 3)
    assert Terms.from_json(json.loads(terms.to_json())) == terms


@pytest.mark.parametrize("name", [f.name for f in fields(Terms)])
def test_disagreement_names_the_field_and_both_values(make_terms, name):
    ours = make_terms()
    value = getattr(ours, name)
    other = not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else value * 2 + 1
    theirs = replace(ours, **{name: other})
    with pytest.raises(ProtocolError) as raised:
        ours.check_agreement(theirs)
    for part in (name, str(value), str(getattr(theirs, name))):
        assert part in str(raised.value)
    ours.check_agreement(make_terms())


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("in_features", 0, "in_features must be between 1 and"),
        ("in_features", 10**400, "in_features must be between"),
        ("in_features", 1.0, "in_features has the wrong type"),
        ("in_features", True, "in_features has the wrong type"),
        ("out_features", -1, "out_features must be between"),
        ("batch_size", 0, "batch_size must be between"),
        ("batches", -1, "batches must be between"),
        ("epochs", 2**40, "epochs must be between"),
        ("learning_rate", math.nan, "learning_rate must be between"),
        ("learning_rate", math.inf, "learning_rate must be between"),
        ("learning_rate", "0.1", "learning_rate has the wrong type"),
        ("weight_seed", 2**62 + 1, "weight_seed must be between"),
        ("protocol", "local", "speaks the protocols vanilla, plain, splitways, hesplit, sealed"),
        ("protocol", None, "protocol has the wrong type"),
        ("server_optimizer", "lion", "adam or sgd or momentum"),
        ("server_optimizer", "client", "adam or sgd or momentum"),
        ("parameter_hash", "ab" * 16, "parameter_hash is for splitways, hesplit, sealed"),
        ("group", "short", "16 to 64 characters"),
        ("hidden", 1, "hidden has the wrong type"),
        ("members", -1, "members must be between"),
        ("parameter_hash", [1], "parameter_hash has the wrong type"),
    ],
)
def test_absurd_values(make_terms, name, value, match):
    with pytest.raises(WireError, match=match):
        Terms.from_json(asdict(make_terms()) | {name: value})


def test_layers_too_large_for_memory(make_terms):
    with pytest.raises(WireError, match="65536 -> 65536 has more than"):
        Terms.from_json(asdict(make_terms(in_features=65536, out_features=65536)))
    with pytest.raises(WireError, match="batch_size 65536 is above 1024"):
        Terms.from_json(asdict(make_terms(in_features=1, out_features=65536, batch_size=65536)))


def test_missing_and_unknown_fields(make_terms):
    values = asdict(make_terms())
    for wrong in (values | {"extra": 1}, {k: v for k, v in values.items() if k != "epochs"}, {}):
        with pytest.raises(WireError, match="expected the fields"):
            Terms.from_json(wrong)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = scalars | st.lists(scalars) | st.dictionaries(st.text(max_size=5), scalars)


@given(st.fixed_dictionaries({f.name: anything for f in fields(Terms)}))
def test_arbitrary_values_are_refused_or_agreed(values):
    with contextlib.suppress(WireError):
        assert asdict(Terms.from_json(values)) == values


def test_initial_layer_is_that_of_torch_under_the_seed(make_terms):
    state = torch.random.get_rng_state()
    layer = initial_linear(make_terms())
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = torch.nn.Linear(6, 3)
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, expected.bias)
    assert not torch.equal(layer.weight, initial_linear(make_terms(weight_seed=8)).weight)


def test_optimizers_are_those_of_torch():
    for name, reference in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
        steps = (make_optimizer(name, [ours], 0.05), reference([theirs], lr=0.05))
        for k in range(1, 5):
            for parameter, optimizer in zip((ours, theirs), steps, strict=True):
                parameter.grad = torch.sin(k * torch.arange(7.0))
                optimizer.step()
        torch.testing.assert_close(ours, theirs)
