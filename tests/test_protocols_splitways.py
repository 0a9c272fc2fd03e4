"""`splitways` against exact arithmetic: what the error bound on the logits means for every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.protocols.remote import remote_linear
from hesplit_native.protocols.splitways import SplitWaysClient


@pytest.fixture
def make_layer(make_terms, open_session):
    def make(on_overflow="clip"):
        parameters = hn.Parameters.recommend(in_features=6, out_features=3, batch_size=4)
        client = hn.LinearClient(hn.SecretKey.generate(parameters), 6, 3, on_overflow=on_overflow)
        terms = make_terms(protocol="splitways", parameter_hash=parameters.hash, batches=200, epochs=1)
        session, state, _ = open_session(terms, client.public_material())
        return SplitWaysClient(session, client), state

    return make


def test_every_gradient_of_200_steps_is_within_what_the_error_bound_implies(make_layer):
    layer, state = make_layer()
    bound = layer.linear.parameters.error_bound
    generator = torch.Generator().manual_seed(0)
    n = 4
    for _ in range(200):
        x = (3 * torch.randn(n, 6, generator=generator)).requires_grad_()
        labels = torch.randint(3, (n,), generator=generator)
        weight, bias = (p.detach().clone().double() for p in state.layer.linear.parameters())
        logits = remote_linear(x, layer)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()

        exact_x = x.detach().double()
        exact_y = (exact_x @ weight.T + bias).requires_grad_()
        exact_loss = nn.functional.cross_entropy(exact_y, labels)
        (g,) = torch.autograd.grad(exact_loss, exact_y)
        # |dp_i| <= sum_j |p_i (1[i=j] - p_j)| e = 2 p_i (1 - p_i) e <= e / 2, and the loss is a mean over n rows.
        g_limit = bound / (2 * n)
        tiny = 1e-5  # float32
        assert (logits - exact_y).abs().max() <= bound + tiny
        assert abs(loss.item() - exact_loss.item()) <= 1e-3
        linear = state.layer.linear
        assert torch.all((linear.bias.grad - g.sum(0)).abs() <= n * g_limit + tiny)
        assert torch.all((linear.weight.grad - g.T @ exact_x).abs() <= exact_x.abs().sum(0) * g_limit + tiny)
        assert torch.all((x.grad - g @ weight).abs() <= weight.abs().sum(0) * g_limit + tiny)
    assert state.steps == 200


def test_gradients_pass_through_the_clip(make_layer):
    layer, state = make_layer()
    bound = layer.linear.parameters.activation_bound
    x = torch.ones(4, 6)
    x[2, 1] = 2 * bound
    x.requires_grad_()
    weight = state.layer.linear.weight.detach().clone()
    remote_linear(x, layer).sum().backward()
    assert layer.linear.clipped == 1
    assert x.grad[2, 1].abs() < 1e-6
    torch.testing.assert_close(x.grad[0], weight.sum(0))
    inside, _ = layer.linear.clip(x.detach())
    torch.testing.assert_close(state.layer.linear.weight.grad[0], inside.sum(0))


def test_overflow_is_raised_before_anything_is_sent(make_layer):
    layer, _ = make_layer(on_overflow="raise")
    sent = layer.session.channel.bytes_up
    with pytest.raises(hn.RangeError, match="1 of 2"):
        layer.evaluate(torch.tensor([[0.0] * 6, [1e6] * 6]))
    assert layer.session.channel.bytes_up == sent


def test_logits_made_under_another_key_are_refused(make_layer, monkeypatch):
    layer, _ = make_layer()
    monkeypatch.setattr(layer.linear, "encrypt", make_layer()[0].linear.encrypt)
    with pytest.raises(hn.ProtocolError, match=r"server ended the session.*key"):
        layer.evaluate(torch.ones(2, 6))
