"""Models whose linear layers are encrypted in place, and back."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

import hesplit_native as hn
from hesplit_native.layer.normalised import normalised_parameters
from hesplit_native.nn import EncryptedLinear, decrypt, encrypt


def bound(x, weight):
    """What the layer's docstring says of |error|, for each row of x, in float64."""
    rows = x.detach().double().reshape(-1, x.shape[-1]).norm(dim=1)
    return 8e-6 * rows[:, None] * weight.detach().double().norm(dim=1).max()


def assert_near(y, x, layer):
    exact = x.double() @ layer.weight.double().T
    exact = exact + layer.bias.double() if layer.bias is not None else exact
    error = (y.double() - exact).reshape(-1, exact.shape[-1]).abs().detach()
    # The bias is added, and the sum rounded to the dtype.
    rounding = 8 * torch.finfo(y.dtype).eps * exact.abs().reshape(error.shape).detach()
    assert (error <= bound(x, layer.weight) + rounding).all()


@given(
    st.integers(1, 70), st.integers(1, 40), st.integers(0, 9), st.integers(-30, 30), st.integers(-12, 12), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_the_error_is_relative_to_rows_and_weights(d, o, n, x_power, w_power, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = EncryptedLinear(d, o, bias, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(o, d, generator=generator, dtype=torch.float64) * 2.0**w_power)
    # Rows of very different sizes, some of them zero.
    sizes = (
        2.0 ** torch.randint(-8, 8, (n, 1), generator=generator)
        * torch.randint(0, 5, (n, 1), generator=generator).sign()
    )
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * sizes * 2.0**x_power
    y = layer(x)
    assert y.shape == (n, o)
    assert_near(y, x, layer)
    assert layer.clipped == 0


@pytest.mark.parametrize(("d", "o"), [(1, 1), (8, 2), (256, 5), (768, 100), (768, 768), (3072, 768), (5, 50257)])
def test_one_set_of_parameters_serves_every_number_of_rows(d, o):
    params = normalised_parameters(d, o)
    assert params.error_bound <= 1e-5
    assert params.total_bits <= params.max_bits
    for rows in (1, 2, 3, 7, 50, 100, 2048):
        assert params.estimate(d, o, rows, weight_norm=1.0)["error"] <= params.error_bound


def test_unit_norm_embeddings_keep_their_argmax():
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.normalize(torch.randn(5000, 768, generator=generator), dim=1)
    head = nn.Linear(768, 100)
    layer = encrypt(copy.deepcopy(head))
    with torch.no_grad():
        same = layer(x).argmax(1) == head(x).argmax(1)
    assert same.sum() >= 4999
    # At no more bytes than the sets with absolute bounds took.
    new = normalised_parameters(768, 100).estimate(768, 100, 32, weight_norm=1.0)
    old = hn.Parameters.recommend(in_features=768, out_features=100, batch_size=32).estimate(
        768, 100, 32, weight_norm=0.6
    )
    assert new["request_bytes"] + new["reply_bytes"] <= 1.3 * (old["request_bytes"] + old["reply_bytes"])


def test_is_a_linear_layer_that_trains_like_one():
    torch.manual_seed(0)
    layer = EncryptedLinear(20, 3)
    plain = nn.Linear(20, 3)
    plain.load_state_dict(layer.state_dict())
    assert isinstance(layer, nn.Linear)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.05) for module in (layer, plain)]
    for _ in range(4):
        x = torch.randn(6, 20)
        for module, optimizer in zip((layer, plain), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer.weight, plain.weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    layer = EncryptedLinear(12, 5, dtype=dtype)
    x = torch.randn(2, 3, 12, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(
        y.double(), expected, atol=3 * torch.finfo(dtype).eps + 1e-5, rtol=torch.finfo(dtype).eps
    )
    y.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == dtype


def test_autocast():
    layer = EncryptedLinear(8, 2)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(nn.Linear(8, 8)(x))
        assert y.dtype == nn.functional.linear(x, layer.weight).dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 8), (8,), (2, 0, 8), (5000, 8), (3, 2, 2, 8)])
def test_shapes(shape):
    layer = EncryptedLinear(8, 2)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 2)
    assert_near(y, x, layer)
    y.sum().backward()
    assert layer.weight.grad is not None


def test_devices_and_copies():
    x = torch.zeros(4, 8, device="meta")
    assert EncryptedLinear(8, 2, device="meta")(x).shape == (4, 2)
    layer = EncryptedLinear(8, 2)
    x = torch.randn(3, 8)
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        torch.testing.assert_close(twin(x), layer(x), atol=1e-4, rtol=0)
        assert twin._engine.client is not layer._engine.client


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value):
    layer = EncryptedLinear(8, 2)
    x = torch.ones(3, 8)
    x[2, 5] = value
    with pytest.raises(hn.RangeError, match="x contains NaN or Inf"):
        layer(x)
    with torch.no_grad():
        layer.weight[1, 1] = value
    with pytest.raises(hn.RangeError, match="weight contains NaN or Inf"):
        layer(torch.ones(3, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by torch
def test_functional_transforms():
    torch.manual_seed(1)
    layer, plain, x = EncryptedLinear(6, 3), nn.Linear(6, 3), torch.randn(4, 6)
    plain.load_state_dict(layer.state_dict())
    parameters = dict(layer.named_parameters())

    def loss(module):
        return lambda p, row: functional_call(module, p, (row,)).square().sum()

    for transform in (
        lambda m: vmap(m)(x),
        lambda m: jacrev(m)(x[0]),
        lambda m: jvp(m, (x,), (x,))[1],
        lambda m: torch.func.hessian(lambda row: m(row).square().sum())(x[0]),
        lambda m: vmap(grad(loss(m)), in_dims=(None, 0))(parameters, x)["weight"],
        lambda m: vmap(lambda p: functional_call(m, p, (x,)))({k: torch.stack([v, -v]) for k, v in parameters.items()}),
    ):
        torch.testing.assert_close(transform(layer), transform(plain), atol=1e-4, rtol=1e-4)


def test_compiled():
    layer = EncryptedLinear(6, 3)
    x = torch.randn(4, 6)
    body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), layer)
    compiled = torch.compile(body, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), body(x), atol=1e-4, rtol=0)
    compiled(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    checks = torch.library.opcheck(
        torch.ops.hesplit_native.encrypted_linear.default, (x, layer.weight, layer.bias, layer._number)
    )
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    "leave",
    [
        torch.jit.script,
        lambda m: torch.jit.trace(m, torch.zeros(1, 6)),
        lambda m: torch.export.export(m, (torch.zeros(1, 6),)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_carry_keys_says_what_can(leave):
    with pytest.raises(Exception, match=r"hesplit_native\.nn\.decrypt"):
        leave(EncryptedLinear(6, 3))


def test_parametrised():
    layer = EncryptedLinear(6, 3)
    nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(2, 6)
    y = layer(x)
    torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias), atol=1e-4, rtol=0)
    y.sum().backward()
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)))
    with pytest.raises(hn.ParameterError, match=r"parametrised ones \(0\) are encrypted first"):
        encrypt(parametrised)


# Whole models


class Attention(nn.Module):
    """Queries, keys and values of one tensor."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ("*", (), ["0", "2.q", "2.k", "2.v", "2.out"]),
        ("2.?", (), ["2.q", "2.k", "2.v"]),
        (["0", "*.out"], (), ["0", "2.out"]),
        (nn.Linear, "2.*", ["0"]),
        (lambda name, module: getattr(module, "in_features", 0) == 6, (), ["0"]),
    ],
)
def test_layers_are_chosen(include, exclude, chosen):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Attention())
    before, plain = dict(model.named_modules()), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert encrypt(model, include, exclude=exclude) is model
    assert [name for name, module in model.named_modules() if isinstance(module, EncryptedLinear)] == chosen
    assert all(module is before[name] for name, module in model.named_modules())
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)
    model(x).sum().backward()
    optimizer.step()
    assert decrypt(model) is model
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert not any(name.startswith("_") and "upload" in name for module in model.modules() for name in vars(module))
    model(x)


def test_no_choice_names_what_there_is():
    with pytest.raises(hn.ParameterError, match=r"it has 0, 1\.q, 1\.k, 1\.v, 1\.out"):
        encrypt(nn.Sequential(nn.Linear(6, 8), Attention()), "encoder.*")
    with pytest.raises(hn.ParameterError, match="it has none"):
        encrypt(nn.Conv1d(1, 2, 3))


def test_layers_of_one_input_share_an_upload():
    torch.manual_seed(3)
    model = Attention()
    plain = copy.deepcopy(model)
    encrypt(model, calibrate=torch.randn(4, 8))
    uploads = model.q._uploads
    for rows in (4, 4, 7):
        before = uploads.requests
        x = torch.randn(rows, 8)
        torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)
        assert uploads.requests == before + 2  # q, k and v together, and out
    with torch.no_grad():
        model.k.weight.mul_(-2)
        plain.k.weight.mul_(-2)
    x = torch.randn(4, 8)
    torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)
    # Weights that change between the calls of one input.
    model.q(x)
    with torch.no_grad():
        model.v.weight.add_(1)
        plain.v.weight.add_(1)
    torch.testing.assert_close(model.v(x), plain.v(x), atol=1e-4, rtol=0)
    # A layer that stays away is not computed in vain for long; and no call sees another input's result.
    for _ in range(3):
        x = torch.randn(4, 8)
        torch.testing.assert_close(model.q(x), plain.q(x), atol=1e-4, rtol=0)
    assert not uploads._sharing._followers[model.q._number]
    twin = copy.deepcopy(model)
    assert twin.q._uploads is twin.out._uploads is not uploads
    torch.testing.assert_close(twin(x), plain(x), atol=1e-4, rtol=0)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(30, 8)
            self.head = nn.Linear(8, 30, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(self.table(tokens))

    model = encrypt(Tied())
    assert model.head.weight is model.table.weight
    model(torch.arange(5)).sum().backward()
    assert model.table.weight.grad is not None


def test_kernels_that_read_weights_are_not_taken():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    plain = copy.deepcopy(model)
    encrypt(model, "linear?")
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=0)
    assert model.linear1._uploads.requests == 2
    decrypt(model)
    assert model.activation_relu_or_gelu == plain.activation_relu_or_gelu


def test_a_layer_that_is_not_called_is_named():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x) @ self.read.weight

    with pytest.warns(UserWarning, match="did not call these encrypted layers .*: read"):
        encrypt(Reads(), calibrate=(torch.zeros(1, 4),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encrypt(Reads(), "used", calibrate={"x": torch.zeros(1, 4)})


def test_a_server_s_layer_in_eval_mode_is_not_trained():
    from hesplit_native.protocols.server import Server
    from hesplit_native.transport import ClientInfo, InProcessChannel

    server = Server()
    layer = EncryptedLinear(20, 3, channel=InProcessChannel(server.converse(ClientInfo("test"))))
    (state,) = server.sessions.values()
    before = state.layer.linear.weight.detach().clone()
    y = layer.eval()(torch.randn(4, 20, requires_grad=True))
    with pytest.raises(hn.ParameterError, match=r"call train\(\) first"):
        y.sum().backward()
    np.testing.assert_array_equal(state.layer.linear.weight.detach(), before)
    layer.train()(torch.randn(4, 20)).sum().backward()
    assert not torch.equal(state.layer.linear.weight, before)
