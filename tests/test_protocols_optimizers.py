"""Steps that are taken without torch's surroundings are torch's steps."""

from __future__ import annotations

import copy

import pytest
import torch

from hesplit_native.protocols.optimizers import take_step
from hesplit_native.protocols.terms import make_optimizer, set_rate


def learn(name, step, *, steps=6, state=None):
    """A layer after some steps, one of them without a gradient of the bias, and its optimiser."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 3)
    optimizer = make_optimizer(name, layer.parameters(), 0.01)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))  # or both would go on with the same moments
    generator = torch.Generator().manual_seed(1)
    for index in range(steps):
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if index == 3:
            layer.bias.grad = None
        if index == 4:
            set_rate(optimizer, 0.003)
        step(optimizer)
    return layer, optimizer


def assert_equal(one, two):
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True))
    mine, theirs = one[1].state_dict(), two[1].state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    for index, moments in theirs["state"].items():
        for key, value in moments.items():
            assert value is None or torch.equal(value, mine["state"][index][key])


@pytest.mark.parametrize("name", ["adam", "sgd", "momentum"])
def test_number_for_number(name):
    ours, theirs = learn(name, take_step), learn(name, lambda optimizer: optimizer.step())
    assert_equal(ours, theirs)
    # And on from there, as a restored checkpoint goes on.
    state = theirs[1].state_dict()
    assert_equal(learn(name, take_step, state=state), learn(name, lambda optimizer: optimizer.step(), state=state))


def test_hooks_are_called():
    layer, optimizer = learn("adam", take_step)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    before = layer.weight.detach().clone()
    take_step(optimizer)
    assert called == ["after"]
    assert not torch.equal(before, layer.weight)
