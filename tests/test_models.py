from __future__ import annotations

import pytest
import torch

import hesplit_native as hn
from hesplit_native.training.models import architecture


@pytest.mark.parametrize(
    ("model", "channels", "samples", "activations", "outputs"),
    [("m1", 1, 128, 256, 5), ("m2", 1, 128, 512, 5), ("m1", 12, 1000, 2000, 5), ("base", 1, 128, 256, 128)],
)
def test_shapes_of_the_papers_models(model, channels, samples, activations, outputs):
    shape = architecture(model, channels, samples, 5)
    assert (shape.activations, shape.outputs) == (activations, outputs)
    x = torch.zeros(3, channels, samples)
    assert shape.body(0)(x).shape == (3, activations)
    assert shape.head(0)(torch.zeros(3, outputs)).shape == (3, 5)


@pytest.mark.parametrize("convolutions", range(2, 9))
def test_number_of_convolutions(convolutions):
    body = architecture("m1", 1, 128, 5, convolutions).body(0)
    assert sum(isinstance(module, torch.nn.Conv1d) for module in body) == convolutions
    assert body(torch.zeros(1, 1, 128)).shape == (1, 256)


def test_seeds_decide_the_weights_and_the_global_generator_is_left_alone():
    shape = architecture("base", 1, 128, 5)
    state = torch.random.get_rng_state()
    first, again, other = shape.body(1), shape.body(1), shape.body(2)
    shape.head(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("convolutions", [1, 9])
def test_impossible_models(convolutions):
    with pytest.raises(hn.ParameterError, match="2 to 8"):
        architecture("m1", 1, 128, 5, convolutions)


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_small_batches_are_convolved_as_by_torch(rows):
    ours = architecture("m1", 2, 40, 5).body(3)
    theirs = torch.nn.Sequential(
        *(
            torch.nn.Conv1d(m.in_channels, m.out_channels, m.kernel_size, padding=m.padding)
            if isinstance(m, torch.nn.Conv1d)
            else m
            for m in ours
        )
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(rows, 2, 40)
    for network in (ours, theirs):
        network.zero_grad()
        network(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
