"""What torch tests of `nn.Linear` holds of the encrypted layer: its own inputs and references, and what its generic tests check.

What cannot hold: values agree to the layer's error bound and not to rounding; `torch.jit.script`, `trace` and `export` are refused,
because keys cannot be exported (tests/test_nn_encrypt.py); CUDA and MPS are not tested here.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from hesplit_native.nn import EncryptedLinear

common_modules = pytest.importorskip("torch.testing._internal.common_modules")


def samples(dtype=torch.float32, requires_grad=False, training=True):
    info = next(info for info in common_modules.module_db if info.module_cls is nn.Linear)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = list(info.module_inputs_func(info, "cpu", dtype, requires_grad, training))
    return [sample for sample in found if sample.forward_input is not None and _input(sample) is not None]


def _input(sample):
    given = sample.forward_input
    return given.args[0] if given.args else given.kwargs.get("input")


COUNT = len(samples())


@pytest.fixture(params=range(COUNT), ids=lambda index: samples()[index].desc or "default")
def index(request):
    return request.param


def made(sample, dtype=torch.float32, **more):
    options = sample.constructor_input
    torch.manual_seed(1)
    return EncryptedLinear(*options.args, **options.kwargs, dtype=dtype, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_forward(index, dtype, training):
    sample = samples(dtype)[index]
    module = made(sample, dtype).train(training)
    args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
    with torch.no_grad():
        expected = sample.reference_fn(module, *args, **kwargs)
        torch.testing.assert_close(module(*args, **kwargs), expected, atol=1e-3, rtol=1e-5)


def test_the_tests_have_inputs():
    assert COUNT >= 3


def test_factory_arguments(index):
    sample = samples()[index]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert all(p.dtype == dtype for p in made(sample, dtype, device="cpu").parameters())
    uninitialised = made(sample, device="meta")
    assert all(p.is_meta for p in uninitialised.parameters())
    uninitialised.to_empty(device="cpu").reset_parameters()


def test_copies_and_pickles(index):
    sample = samples()[index]
    module = made(sample)
    x = _input(sample)
    with torch.no_grad():
        y = module(x)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301
            torch.testing.assert_close(twin(x), y, atol=1e-4, rtol=0)
            assert list(twin.state_dict()) == list(module.state_dict())


def test_state_dicts_are_those_of_linear(index):
    options = samples()[index].constructor_input
    module, plain = made(samples()[index]), nn.Linear(*options.args, **options.kwargs)
    plain.load_state_dict(module.state_dict(), strict=True)
    module.load_state_dict(plain.state_dict(), strict=True)
    assert module.extra_repr().startswith(f"{plain.in_features}, {plain.out_features}")


def test_gradients_of_every_layout(index):
    """Transposed, sliced and expanded inputs and gradients."""
    sample = samples(requires_grad=True)[index]
    module = made(sample)
    x = _input(sample).detach()
    layouts = [x, x.transpose(0, -1).contiguous().transpose(0, -1), torch.stack([x, x], -1)[..., 0]]
    for layout in layouts:
        layout = layout.detach().requires_grad_()
        gradient = torch.ones((), dtype=x.dtype).expand(*x.shape[:-1], module.out_features)
        module.zero_grad()
        module(layout).backward(gradient)
        expected = nn.functional.linear(layout, module.weight, module.bias)
        wanted = torch.autograd.grad(expected, [layout, *module.parameters()], gradient)
        for found, exact in zip([layout.grad, *(p.grad for p in module.parameters())], wanted, strict=True):
            torch.testing.assert_close(found, exact)


def test_gradcheck_and_gradgradcheck(index):
    sample = samples(torch.float64, requires_grad=True)[index]
    module = made(sample, torch.float64)
    x = _input(sample)
    parameters = list(module.parameters())

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(dict(module.named_parameters()), values, strict=True)), (x,))

    # Values carry noise; steps of a linear function may be large.
    inputs = (x, *parameters)
    assert torch.autograd.gradcheck(call, inputs, eps=0.5, atol=2e-3, rtol=0, nondet_tol=1e-3)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_memory_formats_and_modes(index):
    module = made(samples()[index])
    assert module.train().training
    assert not module.eval().training
    assert module.requires_grad_(False)(_input(samples()[index])).requires_grad is False
    assert all(p.dtype == torch.float64 for p in module.double().parameters())
