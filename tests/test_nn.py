from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.protocols.server import Server
from hesplit_native.transport import ClientInfo, InProcessChannel


def pair(in_features=20, out_features=3, bias=True, **options):
    torch.manual_seed(0)
    layer = hn.nn.EncryptedLinear(in_features, out_features, bias, **options)
    plain = nn.Linear(in_features, out_features, bias)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_linear(bias, packing, dtype):
    params = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4, packing=packing)
    layer, plain = pair(bias=bias, parameters=params)
    layer, plain = layer.to(dtype), plain.to(dtype)
    x = torch.randn(4, 20, dtype=dtype, requires_grad=True)
    x_plain = x.detach().clone().requires_grad_()
    gradient = torch.randn(4, 3, dtype=dtype)
    y, expected = layer(x), plain(x_plain)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, atol=params.error_bound, rtol=0)
    y.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(x.grad, x_plain.grad)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(layer.get_parameter(name).grad, parameter.grad)


def test_gradcheck():
    layer, _ = pair(6, 3)
    layer = layer.double()
    # The forward value carries noise of up to the error bound: a step of 0.5 on a linear function keeps the quotient exact enough.
    inputs = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True),)
    assert torch.autograd.gradcheck(layer, inputs, eps=0.5, atol=4e-3, rtol=0, nondet_tol=0.0)


def test_training_steps_use_the_new_weights():
    layer, plain = pair()
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.1) for module in (layer, plain)]
    for _ in range(5):
        x, labels = torch.randn(4, 20), torch.randint(3, (4,))
        losses = []
        for module, optimizer in zip((layer, plain), optimizers, strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) < 5e-3
    torch.testing.assert_close(layer.weight, plain.weight, atol=5e-2, rtol=0)


def test_shapes_like_linear():
    layer, plain = pair()
    with torch.no_grad():
        for shape in [(20,), (1, 20), (2, 3, 20)]:
            x = torch.randn(shape)
            torch.testing.assert_close(layer(x), plain(x), atol=1e-3, rtol=0)
    assert "20, 3, blocks" in repr(layer)


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(2, 7), r"\[\.\.\., 20\], got \[2, 7\]"), (torch.zeros(2, 20, dtype=torch.int32), "got torch.int32")],
)
def test_wrong_input_names_expected_and_given(x, message):
    layer, _ = pair()
    with pytest.raises(hn.ParameterError, match=message):
        layer(x)


def test_nan_is_a_range_error():
    layer, _ = pair()
    with pytest.raises(hn.RangeError, match="NaN"):
        layer(torch.full((2, 20), float("nan")))


def test_clipped_rows_have_the_derivative_of_the_clip():
    ranges = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)
    layer, plain = pair(parameters=ranges)
    x = torch.randn(4, 20)
    x[1, 0] = 1000.0
    x.requires_grad_()
    with pytest.warns(UserWarning, match="1 of 4 rows are beyond the ranges"):
        y = layer(x)
    y.sum().backward()
    assert layer.clipped == 1
    inside, _ = layer._engine.client.clip(x.detach())
    assert inside[1].abs().max() <= layer.parameters_ckks.activation_bound
    torch.testing.assert_close(y, plain(inside), atol=1e-3, rtol=1e-5)
    assert x.grad[1, 0].abs() < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)  # once is enough
    strict, _ = pair(on_overflow="raise", parameters=ranges)
    with pytest.raises(hn.RangeError, match="1 of 4 samples"):
        strict(x.detach())


def test_state_dict_round_trips_with_linear():
    layer, plain = pair()
    assert list(layer.state_dict()) == list(plain.state_dict()) == ["weight", "bias"]
    other = nn.Linear(20, 3)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(4, 20)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), other(x), atol=1e-3, rtol=0)


def test_a_copy_has_its_own_key():
    layer, plain = pair()
    x = torch.randn(4, 20)
    with torch.no_grad():
        layer(x)
        twin = copy.deepcopy(layer)
        assert twin._engine is None
        torch.testing.assert_close(twin(x), plain(x), atol=1e-3, rtol=0)
    assert twin._engine.client is not layer._engine.client


def test_with_a_channel_the_server_holds_and_trains_the_weights():
    server = Server()
    channel = InProcessChannel(server.converse(ClientInfo("test")))
    exact = hn.Parameters.recommend(in_features=20, out_features=3, batch_size=4)  # without flooding
    layer = hn.nn.EncryptedLinear(20, 3, channel=channel, parameters=exact, learning_rate=0.1, server_optimizer="sgd")
    (state,) = server.sessions.values()
    assert not layer.state_dict()
    plain = nn.Linear(20, 3)
    plain.load_state_dict(state.layer.linear.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(4, 20, requires_grad=True)
        x_plain = x.detach().clone().requires_grad_()
        (layer(x) ** 2).mean().backward()
        optimizer.zero_grad()
        (plain(x_plain) ** 2).mean().backward()
        optimizer.step()
        torch.testing.assert_close(x.grad, x_plain.grad, atol=1e-3, rtol=0)
    torch.testing.assert_close(state.layer.linear.weight, plain.weight, atol=1e-3, rtol=0)
    assert channel.bytes_up > 0
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(layer)
    layer.close()
    with pytest.raises(hn.ProtocolError, match="ended"):
        layer(torch.zeros(4, 20))


def test_weights_changed_behind_the_version_counter_are_used():
    layer, plain = pair()
    x = torch.randn(4, 20)
    optimizers = [torch.optim.SGD(module.parameters(), lr=1.0, fused=True) for module in (layer, plain)]
    for module, optimizer in zip((layer, plain), optimizers, strict=True):
        module(x).sum().backward()
        optimizer.step()  # fused optimisers do not count their writes
        module.weight.data.mul_(0.5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x), atol=1.1e-3, rtol=0)


def test_behind_a_channel_the_first_layer_of_a_network_learns_too():
    server = Server()
    layer = hn.nn.EncryptedLinear(20, 3, channel=InProcessChannel(server.converse(ClientInfo("test"))))
    assert layer.parameters_ckks.releases == 1
    (state,) = server.sessions.values()
    before = state.layer.linear.weight.detach().clone()
    x = torch.randn(4, 20)
    layer.eval()
    assert not layer(x).requires_grad
    assert torch.equal(state.layer.linear.weight, before)
    layer.train()
    layer(x).sum().backward()
    assert not torch.equal(state.layer.linear.weight, before)
