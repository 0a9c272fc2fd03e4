"""A server's layer in other people's loops, under every protocol."""

from __future__ import annotations

import copy
import io
import re
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.layer.weights import weights_of
from hesplit_native.nn import SplitLinear
from hesplit_native.protocols.server import Server
from hesplit_native.transport import ClientInfo, GrpcServer, InProcessChannel, connect

FEATURES, CLASSES, ROWS = 12, 3, 8
SPLIT = ["plain", "splitways", "hesplit", "sealed"]
EVERY = ["local", *SPLIT]
#: Of one training step from the same state: float32 sums, the error bound, and noise that floods.
BOUND = {"local": 1e-5, "plain": 1e-5, "splitways": 1e-2, "hesplit": 1e-2, "sealed": 1e-2}
FLOODED = 6e-2


def layer_of(protocol, **options):
    defaults = {"batch_size": ROWS, "learning_rate": 0.05, "server_optimizer": "sgd"}
    return SplitLinear(FEATURES, CLASSES, protocol, **defaults | options)


def batch(seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=generator)
    return x, x[:, :CLASSES].argmax(1)


def network(layer):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), layer)


def steps(net, count, first=0, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for index in range(first, first + count):
        x, y = batch(index)
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("protocol", ["plain", "splitways", "hesplit"])
def test_training_starts_from_a_layer_of_the_servers_model(protocol, tmp_path):
    torch.manual_seed(7)
    held, x = nn.Linear(FEATURES, CLASSES, bias=False), batch()[0]
    server = Server(layers=weights_of({"body.head.weight": held.weight}), output=tmp_path)
    opened = partial(InProcessChannel, server.converse(ClientInfo("test")))
    layer = layer_of(protocol, server=opened, layer="body.head", flooding="off")
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), held(x), atol=BOUND[protocol], rtol=0)
    steps(network(layer.train()), 3)
    layer.close()
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"test-[0-9a-f]{8}\.safetensors", left.name)
    (trained,) = weights_of(left)
    assert 0 < abs(trained.weight - held.weight.detach().numpy()).max() < 0.2
    # And training goes on from what it left behind.
    server = Server(layers=[trained])
    again = layer_of(
        protocol, server=partial(InProcessChannel, server.converse(ClientInfo("test"))), layer="linear", flooding="off"
    )
    with torch.no_grad():
        expected = x @ torch.from_numpy(trained.weight).T + torch.from_numpy(trained.bias)
        torch.testing.assert_close(again.eval()(x), expected, atol=BOUND[protocol], rtol=0)


def test_a_layer_to_start_from_that_cannot_be():
    server = Server(layers=weights_of({"head.weight": torch.zeros(CLASSES, FEATURES + 1)}))
    for name, words in (
        ("heat", r"no layer 'heat' \(did you mean head\?\)"),
        ("head", "head is 13 -> 3 at the server, and 12 -> 3"),
    ):
        opened = partial(InProcessChannel, server.converse(ClientInfo("test")))
        with pytest.raises(hn.errors.ProtocolError, match=words):
            layer_of("plain", server=opened, layer=name).open()
    for protocol in ("sealed", "local"):
        with pytest.raises(hn.ParameterError, match="the client holds the layer"):
            layer_of(protocol, layer="head")


@pytest.mark.parametrize("protocol", [*EVERY, "flooded splitways", "flooded hesplit"])
def test_a_loop_of_ones_own_learns_as_with_a_layer_of_torch(protocol):
    bound = FLOODED if "flooded" in protocol else BOUND[protocol]
    protocol = protocol.removeprefix("flooded ")
    net = network(layer_of(protocol, flooding="step" if bound == FLOODED else "off"))
    plain = network(nn.Linear(FEATURES, CLASSES))
    plain[2].load_state_dict(SplitLinear(FEATURES, CLASSES, "local").linear().state_dict())
    for ours, theirs in zip(steps(net, 6), steps(plain, 6), strict=True):
        assert ours == pytest.approx(theirs, abs=bound)
    torch.testing.assert_close(net[0].weight, plain[0].weight, atol=bound, rtol=0)
    torch.testing.assert_close(net[2].linear().weight, plain[2].weight, atol=bound, rtol=0)
    assert net[2].steps == 6


@pytest.mark.parametrize("protocol", EVERY)
def test_nothing_is_learnt_where_nothing_shall_be(protocol):
    layer = layer_of(protocol)
    x, _ = batch()

    def frozen_passes():
        layer.eval()
        yield layer(x.clone().requires_grad_())
        layer.train()
        with torch.no_grad():
            yield layer(x)
        layer.requires_grad_(False)
        yield layer(x)
        layer.requires_grad_(True)

    first = layer.eval()(x)
    for y in frozen_passes():
        torch.testing.assert_close(y, first, atol=1e-2, rtol=0)
    assert layer.steps == 0
    layer.train()(x).mean().backward()
    assert layer.steps == 1
    assert not torch.equal(layer.linear().weight, SplitLinear(FEATURES, CLASSES, "local").linear().weight)


@pytest.mark.parametrize("protocol", EVERY)
def test_a_frozen_layer_passes_gradients_on_only_where_the_client_holds_it(protocol):
    layer = layer_of(protocol).eval()
    x = batch()[0].requires_grad_()
    y = layer(x)
    if protocol in ("local", "sealed"):
        y.mean().backward()
        torch.testing.assert_close(x.grad, layer.linear().weight.sum(0).expand(ROWS, -1) / (ROWS * CLASSES))
    else:
        with pytest.raises(hn.ParameterError, match=r"call train\(\) first"):
            y.mean().backward()
    assert layer.steps == 0


@pytest.mark.parametrize("protocol", EVERY)
def test_errors_cost_the_call_and_not_the_session(protocol):
    layer = layer_of(protocol)
    x, _ = batch()

    def works():
        before = layer.steps
        layer(x).mean().backward()
        assert layer.steps == before + 1

    works()
    first, second = layer(x), layer(x)
    with pytest.raises(hn.ParameterError, match="newest call only"):
        first.mean().backward()
    second.mean().backward()
    works()
    y = layer(x)
    y.sum().backward(retain_graph=True)
    with pytest.raises(hn.ParameterError, match="twice"):
        y.mean().backward()
    works()
    with pytest.raises(hn.RangeError, match="not finite"):
        (layer(x) * float("nan")).mean().backward()
    works()
    with pytest.raises(hn.RangeError):
        layer(x * float("inf"))
    with pytest.raises(hn.ParameterError, match=rf"batch_size={ROWS + 1}"):
        layer(batch(rows=ROWS + 1)[0])
    with pytest.raises(hn.ParameterError, match=r"\[\.\.\., 12\]"):
        layer(x[:, 1:])
    with pytest.raises(hn.ParameterError, match="dtype"):
        layer(x.long())
    y = layer(x)
    with torch.no_grad():
        layer(x)  # an evaluation in between does no harm
    y.mean().backward()
    works()
    inside = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(layer(inside).square().mean(), inside, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.mean().backward()
    works()


@pytest.mark.parametrize("protocol", ["splitways", "hesplit"])
def test_batches_that_would_leak_are_refused(protocol):
    layer = layer_of(protocol)
    with pytest.raises(hn.ParameterError, match="recovers the activations"):
        layer(batch(rows=CLASSES - 1)[0])
    layer(batch(rows=CLASSES)[0]).mean().backward()
    with torch.no_grad():
        assert layer(batch(rows=1)[0]).shape == (1, CLASSES)
    open_one = layer_of(protocol, accept_leak=True)
    open_one(batch(rows=1)[0]).mean().backward()
    assert open_one.steps == 1


@pytest.mark.parametrize("protocol", EVERY)
def test_shapes_dtypes_and_ragged_batches(protocol):
    layer = layer_of(protocol)
    plain = SplitLinear(FEATURES, CLASSES, "local").linear()
    for shape in ([ROWS, FEATURES], [5, FEATURES], [2, 3, FEATURES], [0, FEATURES], [3000, FEATURES]):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(layer(x), plain(x), atol=2e-2, rtol=0)
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.ones(4, FEATURES, dtype=dtype, requires_grad=True)
        y = layer(x)
        assert y.dtype is dtype
        y.mean().backward()
        assert x.grad.dtype is dtype
    layer(torch.ones(2, 3, FEATURES)).mean().backward()
    assert layer.steps == 3


@pytest.mark.parametrize("protocol", EVERY)
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_state_dicts_resume(protocol, optimizer, tmp_path):
    def fresh():
        return network(layer_of(protocol, server_optimizer=optimizer, flooding="off"))

    whole = fresh()
    expected = steps(whole, 6)
    begun = fresh()
    assert steps(begun, 3) == pytest.approx(expected[:3], abs=BOUND[protocol])
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed = fresh()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed[2].steps == 3
    assert resumed[2].releases == 3 * {"splitways": 1, "hesplit": 2}.get(protocol, 0)
    rest = steps(resumed, 3, first=3)
    if protocol in ("local", "plain"):
        assert rest == expected[3:]
    assert rest == pytest.approx(expected[3:], abs=BOUND[protocol])
    # Back to an earlier state of its own.
    resumed.load_state_dict(begun.state_dict())
    assert steps(resumed, 3, first=3) == pytest.approx(expected[3:], abs=BOUND[protocol])
    assert resumed[2].steps == 6


def test_states_of_other_layers_and_damaged_ones_are_refused():
    layer = layer_of("plain")
    layer(batch()[0]).mean().backward()
    state = layer.state_dict()
    with pytest.raises(hn.DataError, match="protocol='plain'"):
        layer_of("splitways").load_state_dict(state)
    with pytest.raises(hn.DataError, match=r"learning_rate=0\.05"):
        layer_of("plain", learning_rate=0.1).load_state_dict(state)
    for damaged in (torch.zeros(4, dtype=torch.uint8), torch.zeros(3), {"run": ""}, state["_extra_state"][:-9]):
        with pytest.raises(hn.DataError):
            layer.load_state_dict(state | {"_extra_state": damaged})
    layer(batch()[0]).mean().backward()
    assert layer.steps == 2


def test_a_state_holds_no_key_and_of_a_server_elsewhere_no_weights():
    server = Server()
    layer = layer_of("splitways", server=server, flooding="run")
    layer(batch()[0]).mean().backward()
    (session,) = server.sessions.values()
    size = len(layer.state_dict()["_extra_state"])
    assert size < 1000
    restored = layer_of("splitways", server=server, flooding="run")
    restored.load_state_dict(layer.state_dict())
    assert restored.session.run == session.run
    x = batch()[0]
    torch.testing.assert_close(restored.eval()(x), session.layer.linear(x).detach(), atol=1e-2, rtol=0)
    assert restored._encryption.public_material() != layer._encryption.public_material()


def test_a_server_that_stores_its_half_lets_a_killed_client_go_on(tmp_path):
    def fresh(server):
        return network(layer_of("plain", server=server))

    expected = steps(fresh(Server()), 6)
    net = fresh(Server(checkpoints=tmp_path))
    begun = steps(net, 3)
    state = copy.deepcopy(net.state_dict())
    again = fresh(Server(checkpoints=tmp_path))
    again.load_state_dict(state)
    assert begun + steps(again, 3, first=3) == expected
    lost = fresh(Server())
    with pytest.raises(hn.ProtocolError, match="no such checkpoint"):
        lost.load_state_dict(state)


@pytest.mark.parametrize("protocol", ["plain", "splitways", "local"])
def test_the_learning_rate_can_be_changed(protocol):
    layer, plain = layer_of(protocol, flooding="off"), SplitLinear(FEATURES, CLASSES, "local").linear()
    x = batch()[0]
    for rate in (0.05, 0.01, 0.2):
        layer.learning_rate = rate
        optimizer = torch.optim.SGD(plain.parameters(), lr=rate)
        layer(x).square().mean().backward()
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
        torch.testing.assert_close(layer.linear().weight, plain.weight, atol=1e-2, rtol=0)
        resumed = layer_of(protocol, flooding="off")
        resumed.load_state_dict(layer.state_dict())
        assert resumed.learning_rate == rate
    with pytest.raises(hn.ParameterError, match="learning_rate"):
        layer.learning_rate = 0.0


def test_over_grpc_and_over_connections_of_ones_own():
    with GrpcServer("127.0.0.1:0", Server().converse) as server:
        address = f"127.0.0.1:{server.port}"
        one = network(layer_of("splitways", server=address))
        other = network(layer_of("splitways", server=lambda: connect(address, client_id="other")))
        third = network(layer_of("splitways", server=connect(address, client_id="third")))
        for net in (one, other, third):
            losses = steps(net, 3)
            assert losses[-1] < 2.0
        state = one.state_dict()
        one.load_state_dict(state)
        with pytest.raises(hn.ParameterError, match="cannot be made again"):
            third.load_state_dict(third.state_dict())
        steps(third, 1)
        with pytest.raises(hn.ParameterError, match="weights are at its server"):
            one[2].linear()
        for net in (one, other, third):
            net[2].close()
        with pytest.raises(hn.ProtocolError, match="ended"):
            one(batch()[0])
        one[2].close()
    with pytest.raises(hn.ConnectionLost):
        layer_of("plain", server=address)(batch()[0])


@pytest.mark.parametrize("protocol", ["plain", "splitways", "hesplit", "sealed"])
def test_a_server_that_was_restarted_goes_on_from_the_last_state(protocol, tmp_path):
    state_of_server = Server(checkpoints=tmp_path)
    with GrpcServer("127.0.0.1:0", state_of_server.converse) as server:
        port = server.port
        net = network(layer_of(protocol, server=f"127.0.0.1:{port}", flooding="off"))
        steps(net, 2)
        state = copy.deepcopy(net.state_dict())
        expected = steps(net, 2, first=2)
    with GrpcServer(f"127.0.0.1:{port}", Server(checkpoints=tmp_path).converse):
        with pytest.raises(hn.ProtocolError, match=r"checkpoints|no such run"):
            net(batch()[0])
        net.load_state_dict(state)
        assert steps(net, 2, first=2) == pytest.approx(expected, abs=BOUND[protocol])


def test_what_cannot_be():
    with pytest.raises(hn.ParameterError, match="labels and the loss"):
        SplitLinear(4, 2, "vanilla")
    with pytest.raises(hn.ParameterError, match="unknown protocol"):
        SplitLinear(4, 2, "none")
    with pytest.raises(hn.ParameterError, match="has no server"):
        SplitLinear(4, 2, "local", "localhost:7000")
    with pytest.raises(hn.ParameterError, match="expected a server"):
        SplitLinear(4, 2, "plain", 7000)
    with pytest.raises(hn.ParameterError, match="tls is for"):
        SplitLinear(4, 2, "plain", Server(), tls="certificates")
    for shape in ((0, 2), (4, 0), ((1 << 20) + 1, 2), (65536, 1024)):
        with pytest.raises(hn.ParameterError, match=r"between 1 and|more than"):
            SplitLinear(*shape, "plain")
    layer = layer_of("splitways")
    assert "splitways, in process" in repr(layer)
    copy.deepcopy(layer)(batch()[0])
    layer(batch()[0])
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(layer)


def test_rows_beyond_the_ranges_are_clipped_and_said_once():
    layer = layer_of("splitways")
    x = batch()[0]
    x[0] *= 1e4
    with pytest.warns(UserWarning, match="1 of 8 rows are beyond the ranges"):
        layer(x).mean().backward()
    layer(x).mean().backward()
    assert layer.clipped == 2
    with pytest.raises(hn.RangeError):
        layer_of("splitways", on_overflow="raise")(x)


def test_the_only_layer_of_a_network_learns_and_its_optimiser_has_something_to_hold():
    layer = layer_of("plain")
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    before = layer.linear().weight
    for _ in range(3):
        x, y = batch()
        nn.functional.cross_entropy(layer(x), y).backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
    assert not torch.equal(layer.linear().weight, before)
    assert layer.anchor.grad is None


@pytest.mark.parametrize("protocol", ["plain", "splitways", "sealed"])
def test_compiled_networks_inference_mode_and_autocast(protocol):
    layer = layer_of(protocol)
    plain = SplitLinear(FEATURES, CLASSES, "local").linear()
    x, _ = batch()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(x), atol=2e-2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.bfloat16
    y.float().mean().backward()
    compiled = torch.compile(nn.Sequential(nn.ReLU(), layer), backend="eager")
    compiled(x).mean().backward()
    assert layer.steps == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(hn.ParameterError, match="cannot be exported or traced"):
            torch.jit.trace(layer, (x,))
