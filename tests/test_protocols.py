"""The protocols against each other from the same state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.protocols import messages
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.local import LocalLayer
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.plain import PlainClient
from hesplit_native.protocols.remote import remote_linear
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.splitways import SplitWaysClient
from hesplit_native.protocols.terms import make_optimizer
from hesplit_native.training.models import architecture
from hesplit_native.transport import ClientInfo, InProcessChannel


@pytest.fixture
def open_layer(make_terms, open_session):
    """The client's layer, and the server's state that only a test may look into."""

    def start(protocol, packing="blocks", **changes):
        shape = {"in_features": 256, "out_features": 5, "batches": 0, "epochs": 0, "learning_rate": 1e-3} | changes
        if protocol == "plain":
            session, state, _ = open_session(make_terms(**shape))
            return PlainClient(session), state
        params = hn.Parameters.recommend(in_features=256, out_features=5, batch_size=4, packing=packing)
        client = hn.LinearClient(hn.SecretKey.generate(params), 256, 5)
        terms = make_terms(protocol="splitways", parameter_hash=params.hash, **shape)
        session, state, _ = open_session(terms, client.public_material())
        return SplitWaysClient(session, client), state

    return start


def step(model, layer, x, labels):
    """One client step without its update: loss, logits, dJ/da, and the gradients of the convolutions."""
    model.zero_grad()
    activations = model(x)
    activations.retain_grad()
    logits = remote_linear(activations, layer)
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    return loss.item(), logits.detach(), activations.grad, [p.grad.clone() for p in model.parameters()]


def copy_server(source, target):
    """Put one server into the state of another: weights and optimiser."""
    target.layer.linear.load_state_dict(source.layer.linear.state_dict())
    target.layer.optimizer.load_state_dict(copy.deepcopy(source.layer.optimizer.state_dict()))
    target.layer.version += 1


@pytest.mark.parametrize(("packing", "steps"), [("blocks", 200), ("slots", 200)])
def test_splitways_and_plain_agree_at_every_step_from_the_same_state(packing, steps, open_layer):
    torch.manual_seed(0)
    data = hn.data.synthetic_ecg(train=4 * steps, test=5)
    x_all, y_all = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    model = architecture("m1", 1, 128, 5).body(0)
    optimizer = make_optimizer("adam", model.parameters(), 1e-3)
    plain, plain_state = open_layer("plain")
    encrypted, encrypted_state = open_layer("splitways", packing)
    bound = encrypted.linear.parameters.error_bound
    for i in range(steps):
        x, labels = x_all[4 * i : 4 * i + 4], y_all[4 * i : 4 * i + 4]
        copy_server(plain_state, encrypted_state)
        weight = plain_state.layer.linear.weight.detach().clone()
        loss_e, logits_e, gradient_e, _ = step(model, encrypted, x, labels)
        loss_p, logits_p, gradient_p, gradients_p = step(model, plain, x, labels)
        assert (logits_e - logits_p).abs().max() <= bound * 1.01  # float32 roundings beside the bound
        assert abs(loss_e - loss_p) <= 1e-3
        # An error of at most `bound` in each logit changes an entry of softmax by at most bound / 2, and one of dJ/dy by bound / 2n.
        # dJ/dW sums n of those times an activation, dJ/da sums over the outputs times a weight.
        slack = 1e-6  # float32 roundings of both sides
        assert (gradient_e - gradient_p).abs().max() <= bound / 2 / len(x) * weight.abs().sum(0).max() + slack
        largest = float(model(x).detach().abs().max())
        servers = [state.layer.linear for state in (encrypted_state, plain_state)]
        assert (servers[0].weight.grad - servers[1].weight.grad).abs().max() <= bound / 2 * largest + slack
        assert (servers[0].bias.grad - servers[1].bias.grad).abs().max() <= bound / 2 + slack
        for parameter, gradient in zip(model.parameters(), gradients_p, strict=True):
            parameter.grad = gradient
        optimizer.step()


def test_plain_is_local_step_by_step(open_layer, make_terms):
    torch.manual_seed(0)
    data = hn.data.synthetic_ecg(train=200, test=5)
    losses = []
    local_terms = make_terms(in_features=256, out_features=5, learning_rate=1e-3)
    for protocol in ("local", "plain"):
        model = architecture("m1", 1, 128, 5).body(1)
        optimizer = make_optimizer("adam", model.parameters(), 1e-3)
        layer = LocalLayer(TrainedLayer(local_terms), Phases()) if protocol == "local" else open_layer("plain")[0]
        for x, labels in zip(
            torch.from_numpy(data.train_x).split(4), torch.from_numpy(data.train_y).split(4), strict=True
        ):
            losses.append(step(model, layer, x, labels)[0])
            optimizer.step()
    assert losses[:50] == losses[50:]


def test_input_gradient_uses_the_weights_before_the_update(open_layer):
    layer, state = open_layer("plain", server_optimizer="sgd", learning_rate=10.0)
    before = state.layer.linear.weight.detach().clone()
    x, gradient = torch.randn(4, 256), torch.randn(4, 5)
    layer.forward(x)
    torch.testing.assert_close(layer.backward(x, gradient), gradient @ before)
    torch.testing.assert_close(state.layer.linear.weight.detach(), before - 10.0 * gradient.T @ x)


def test_the_server_sees_no_activations_in_the_forward_pass(make_terms):
    seen = []

    def spy(conversation):
        reply = next(conversation)
        while True:
            message = yield reply
            seen.append(message)
            reply = conversation.send(message)

    params = hn.Parameters.recommend(in_features=256, out_features=5, batch_size=4)
    client = hn.LinearClient(hn.SecretKey.generate(params), 256, 5)
    channel = InProcessChannel(spy(Server().converse(ClientInfo("test"))))
    terms = make_terms(protocol="splitways", in_features=256, out_features=5, parameter_hash=params.hash)
    layer = SplitWaysClient(Session(channel, terms, client.public_material(), Phases()), client)
    x = torch.full((4, 256), 3.25)
    layer.forward(x)
    request = messages.unpack(seen[-1])
    assert request.type is MessageType.FORWARD
    assert np.float32(3.25).tobytes() * 2 not in seen[-1]
    with pytest.raises(hn.WireError):
        messages.take_matrix(request.body, "activations", rows=range(1, 5), columns=256)


@pytest.mark.parametrize("protocol", ["plain", "splitways"])
def test_short_batches_and_large_evaluations(protocol, open_layer):
    layer, state = open_layer(protocol)
    weight, bias = state.layer.linear.weight.detach(), state.layer.linear.bias.detach()
    for rows in (1, 3, 1000):
        x = torch.randn(rows, 256)
        torch.testing.assert_close(layer.evaluate(x), x @ weight.T + bias, atol=1.1e-3, rtol=1e-5)
    x = torch.randn(1, 256)
    layer.forward(x)
    assert layer.backward(x, torch.randn(1, 5)).shape == (1, 256)
