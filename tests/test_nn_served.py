"""Models whose linear layers a server holds: used, differentiated and adapted like plain ones."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.layer.frozen import error_bound
from hesplit_native.nn import EncryptedLinear, ServedLinear, decrypt, encrypt
from hesplit_native.nn.served_linear import served_name
from hesplit_native.protocols.frozen_client import Connection

MEMORY = 1 << 27


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 7, bias=False))


@pytest.fixture
def plain():
    return network()


@pytest.fixture
def connection(plain):
    with hn.serve(plain, port=0, memory=MEMORY) as server, hn.connect(server) as found:
        yield found


def bound(x, weight, bias=None):
    """|error| of ``x W^T + b`` by row and output: E |(x, 1)| |(W, b)|."""
    x, weight = x.detach().double().reshape(-1, x.shape[-1]), weight.detach().double()
    if bias is not None:
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        weight = torch.cat([weight, bias.detach().double()[:, None]], 1)
    return error_bound(x.shape[1]) * x.norm(dim=1)[:, None] * weight.norm(dim=1)


@pytest.mark.parametrize("bias", [True, False])
def test_both_directions_are_within_the_bound(bias):
    torch.manual_seed(1)
    plain = nn.Linear(70, 33, bias=bias, dtype=torch.float64)
    with hn.serve(plain, port=0, memory=MEMORY) as server, hn.connect(server.address) as connection:
        layer = encrypt(copy.deepcopy(plain), server=connection)
        for scale in (1e-20, 1.0, 1e20):
            x = (scale * torch.randn(3, 5, 70, dtype=torch.float64)).requires_grad_()
            y = layer(x)
            exact = x @ plain.weight.T + (plain.bias if bias else 0)
            assert ((y - exact).reshape(-1, 33).abs() <= bound(x, plain.weight, plain.bias)).all()
            g = scale * torch.randn_like(y)
            y.backward(g)
            assert ((x.grad - g @ plain.weight).reshape(-1, 70).abs() <= bound(g, plain.weight.T)).all()
        assert connection.requests == 6


def test_a_model_without_weights_is_used_and_differentiated(plain, connection):
    with torch.device("meta"):
        model = network()
    assert encrypt(model, server=connection) is model
    assert not list(model.parameters())
    assert not model.state_dict()
    assert isinstance(model[0], nn.Linear)
    assert (model[0].bias, model[0].in_features, model[0].out_features) == (None, 12, 20)
    assert model[0].weight.shape == (20, 12)
    assert model[0].weight.isnan().all()
    assert model.to(torch.bfloat16)[0].weight.dtype == torch.bfloat16
    x = torch.randn(4, 12, requires_grad=True)
    y = model(x)
    y.square().sum().backward()
    (gradient,) = torch.autograd.grad(plain(x).square().sum(), x)
    torch.testing.assert_close(y, plain(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.grad, gradient, atol=1e-4, rtol=0)


def test_only_layers_that_the_server_has_are_replaced(plain):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = network(), nn.Linear(7, 3)

        def forward(self, x):
            return self.head(self.body(x))

    with hn.serve(plain, port=0, memory=MEMORY) as server, hn.connect(server) as connection:
        with pytest.raises(hn.ParameterError, match=r"none of the chosen layers, body.0, body.2, head; it has 0, 2"):
            encrypt(Net(), server=connection)
        net = Net()
        encrypt(net.body, server=connection)
        names = set(net.state_dict())
        assert names == {"head.weight", "head.bias"}
        net(torch.randn(3, 12)).sum().backward()
        assert net.head.weight.grad is not None
        chosen = encrypt(network(), include="2", server=connection)
        assert (type(chosen[0]), type(chosen[2])) == (nn.Linear, ServedLinear)
        left = encrypt(network(), exclude="2", server=connection)
        assert (type(left[0]), type(left[2])) == (ServedLinear, nn.Linear)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Linear(13, 20), "0 is 13 -> 20 with bias here and 12 -> 20 with bias at the server"),
        (nn.Linear(12, 20, bias=False), "0 is 12 -> 20 without bias here and 12 -> 20 with bias at the server"),
    ],
)
def test_layers_of_another_shape_are_named_with_both(connection, layer, words):
    model = network()
    model[0] = layer
    with pytest.raises(hn.ParameterError, match=words):
        encrypt(model, server=connection)
    assert type(model[2]) is nn.Linear  # all or nothing


def test_gradients_are_asked_for_only_where_they_are_needed(connection):
    model = encrypt(network(), server=connection)
    x = torch.randn(4, 12)
    y = model(x)
    assert connection.requests == 2
    assert not y.requires_grad
    with torch.no_grad():
        assert not model(x.requires_grad_()).requires_grad
    model.eval().requires_grad_(False)
    y = model(x)
    assert connection.requests == 6
    y.sum().backward()
    assert connection.requests == 8
    # Trainable in the middle: what is before it needs no gradient.
    model = encrypt(nn.Sequential(nn.Linear(12, 20), nn.PReLU(), nn.Linear(20, 7, bias=False)), server=connection)
    before = connection.requests
    model(torch.randn(4, 12)).sum().backward()
    assert connection.requests == before + 3
    assert model[1].weight.grad is not None


def test_graphs_may_be_kept_and_forward_passes_may_come_before_backward_passes(plain, connection):
    model = encrypt(network(), server=connection)
    inputs = [torch.randn(n, 12, requires_grad=True) for n in (1, 3, 2)]
    outputs = [model(x) for x in inputs]
    for x, y in reversed(list(zip(inputs, outputs, strict=True))):
        (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
        for _ in range(2):
            (found,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 0, 12), (2, 3, 4, 12)])
def test_inputs_of_any_number_of_dimensions(plain, connection, shape):
    model = encrypt(network(), server=connection)
    x = torch.randn(*shape, requires_grad=True)
    y = model(x)
    torch.testing.assert_close(y, plain(x), atol=1e-4, rtol=0)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_more_rows_than_one_request_holds(plain, connection):
    model = encrypt(network(), server=connection)
    x = torch.randn(5000, 12)
    torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)
    assert connection.requests == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_outputs_and_gradients_have_the_dtype_of_the_input(connection, dtype):
    model = encrypt(network(), server=connection)
    x = torch.randn(3, 12).to(dtype).requires_grad_()
    y = model(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == dtype


def test_autocast_decides_as_for_plain_layers(plain, connection):
    model = encrypt(network(), server=connection)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(3, 12, requires_grad=True)
        y = model(x)
        assert y.dtype == plain(x).dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of the torch release itself
def test_the_compiler_and_torch_func(plain, connection, monkeypatch, tmp_path):
    # What other processes compiled, for other processors perhaps, is not ours.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch.manual_seed(2)
    model = encrypt(network(), server=connection)
    x = torch.randn(4, 12)
    torch.testing.assert_close(torch.vmap(model)(x), plain(x), atol=1e-4, rtol=0)

    def both(f):
        torch.testing.assert_close(f(model), f(plain), atol=2e-4, rtol=0)

    both(lambda net: torch.func.grad(lambda v: net(v).square().sum())(x))
    both(lambda net: torch.func.jvp(net, (x,), (x.cos(),))[1])
    both(lambda net: torch.func.hessian(lambda v: net(v).tanh().sum())(x[0]))
    compiled = torch.compile(model, fullgraph=True)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, exact = compiled(one), plain(other)
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=0)
    ours.square().sum().backward()
    exact.square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=0)


def test_copies_share_the_connection_and_pickles_are_refused(plain, connection):
    model = encrypt(network(), server=connection)
    twin = copy.deepcopy(model)
    del model
    x = torch.randn(2, 12)
    torch.testing.assert_close(twin(x), plain(x), atol=1e-4, rtol=0)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(twin)


def test_what_cannot_be_is_said(connection):
    model = encrypt(network(), server=connection)
    with pytest.raises(hn.ParameterError, match="weights of 0, 2 are at a server"):
        decrypt(model)
    with pytest.raises(hn.ParameterError, match=r"\[\.\.\., 12\], got \[3, 11\]"):
        model(torch.randn(3, 11))
    with pytest.raises(hn.ParameterError, match="dtype"):
        model(torch.zeros(3, 12, dtype=torch.int64))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(hn.RangeError):
            model(torch.full((2, 12), bad))
    with pytest.raises(hn.ParameterError, match="exported or traced"), pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.trace(model, torch.zeros(1, 12))
    assert model(torch.zeros(1, 12)).shape == (1, 7)


def test_a_server_without_gradients_says_so_in_the_backward_pass(plain):
    with hn.serve(plain, port=0, backward=False, memory=MEMORY) as server, hn.connect(server) as connection:
        model = encrypt(network(), server=connection)
        y = model(torch.randn(2, 12, requires_grad=True))
        with pytest.raises(hn.ParameterError, match="no backward requests"):
            y.sum().backward()


def test_encrypted_layers_here_beside_served_ones(plain, connection):
    model = encrypt(network(), "2", server=connection)
    encrypt(model, "0")
    assert (type(model[0]), type(model[2])) == (EncryptedLinear, ServedLinear)
    x = torch.randn(2, 12)
    torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)


class Attention(nn.Module):
    """Queries, keys and values of one input, on heads of their own widths."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.q, self.k, self.v, self.out = (nn.Linear(8, width) for width in (6, 6, 5, 5))

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).mT).softmax(-1)
        return self.out(torch.cat([weights @ self.v(x), x], -1)[..., :8])


def test_layers_of_one_input_share_an_upload():
    plain = Attention()
    with hn.serve(plain, port=0, memory=MEMORY) as server, hn.connect(server) as connection:
        model = encrypt(copy.deepcopy(plain), server=connection)

        def requests_of(model, rows):
            x = torch.randn(2, rows, 8)
            before = connection.requests, connection.bytes_up
            torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)
            return connection.requests - before[0], connection.bytes_up - before[1]

        requests_of(model, 5)  # fetches hints, and sees who is fed by the same tensor
        assert requests_of(model, 5)[0] == 2  # q, k and v together, and out
        assert requests_of(model, 7)[0] == 2
        alone = encrypt(copy.deepcopy(plain), "?", server=connection)
        requests_of(alone, 50)
        together = requests_of(alone, 50)[1]
        alone.q._inputs = type(alone.q._inputs)()
        alone.k._inputs = type(alone.q._inputs)()
        assert requests_of(alone, 50)[1] > 1.5 * together
        # Gradients go through each layer of its own.
        x, y = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 5)
        gradients = [torch.autograd.grad((net(x) * y).sum(), x)[0] for net in (model, plain)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=0)
        # A layer that stays away is not computed in vain for long; copies and threads have inputs of their own.
        for _ in range(3):
            model.q(torch.randn(4, 8))
        down = connection.bytes_down
        model.q(torch.randn(4, 8))
        assert connection.bytes_down - down < 1000
        twin = copy.deepcopy(model)
        assert twin.q._inputs is twin.v._inputs is not model.q._inputs
        requests_of(twin, 5)
        assert requests_of(twin, 5)[0] == 2
        failures = []

        def repeatedly(seed):
            x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(seed))
            for _ in range(5):
                if not torch.allclose(model(x), plain(x), atol=1e-4):
                    failures.append(seed)

        threads = [threading.Thread(target=repeatedly, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("0", "0"),
        ("module.0", "0"),
        ("_orig_mod.module.2", "2"),
        ("base_model.model.2.base_layer", "2"),
        ("module.base_model.model.0", "0"),
        ("0.base_layer", "0"),
        ("module", None),
        ("model.0", None),
    ],
)
def test_names_inside_wrappers(connection, name, served):
    assert served_name(name, connection) == served


def test_kernels_that_read_weights_are_not_taken():
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    with hn.serve(plain, layers="linear?", port=0, memory=MEMORY) as server, hn.connect(server) as connection:
        model = encrypt(copy.deepcopy(plain), server=connection)
        x = torch.randn(2, 3, 8)
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)
        assert connection.requests == 2


@pytest.fixture
def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture
def gpt2_connection(gpt2):
    with hn.serve(gpt2, layers="transformer.h.*", port=0, memory=MEMORY) as server, hn.connect(server) as found:
        yield found


def test_transformers_generate_with_the_weights_at_a_server(gpt2, gpt2_connection: Connection):
    model = encrypt(copy.deepcopy(gpt2), server=gpt2_connection)
    assert sum(isinstance(module, ServedLinear) for module in model.modules()) == 8
    tokens = torch.tensor([[5, 7, 11]])
    torch.testing.assert_close(model(tokens).logits, gpt2(tokens).logits, atol=1e-4, rtol=0)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(tokens, **options), gpt2.generate(tokens, **options))


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # peft and transformers of each other
@pytest.mark.parametrize("first", ["encrypt", "adapt"])
def test_lora_trains_around_served_layers_as_on_the_plain_model(gpt2, gpt2_connection, first):
    peft = pytest.importorskip("peft")

    def adapted(model, **options):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], lora_dropout=0.0, **options)
        return peft.get_peft_model(model, config)

    served = (
        adapted(encrypt(copy.deepcopy(gpt2), server=gpt2_connection))
        if first == "encrypt"
        else encrypt(adapted(copy.deepcopy(gpt2), fan_in_fan_out=True), server=gpt2_connection)
    )
    assert sum(isinstance(module, ServedLinear) for module in served.modules()) == 8
    plain = adapted(gpt2, fan_in_fan_out=True)
    names = {name for name, value in plain.named_parameters() if value.requires_grad}
    assert {name for name, value in served.named_parameters() if value.requires_grad} == names
    served.load_state_dict({n: v for n, v in plain.state_dict().items() if "lora_" in n}, strict=False)
    tokens = torch.randint(1, 50, (4, 10), generator=torch.Generator().manual_seed(1))
    losses = []
    for model in (served, plain):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-2)
        losses.append([])
        for _ in range(8):
            optimizer.zero_grad()
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1][-1] < losses[1][0] - 0.05
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
