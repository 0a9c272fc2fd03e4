from __future__ import annotations

import copy
import hashlib
import io
import pickle

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native.triad import PretrainedLocal, RandomVector, RandomVectorReLU, shared_vector

NONCE = bytes(range(16))
OTHER = bytes(range(1, 17))


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_vector_of_a_nonce_never_changes():
    # Two releases must agree on it; the numbers are from hashlib and the definition alone.
    fields = (b"hesplit-native triad v1", b"random vector", b"4", NONCE)
    stream = hashlib.shake_256(b"".join(len(f).to_bytes(8, "little") + f for f in fields)).digest(16)
    words = [int.from_bytes(stream[i : i + 4], "little") for i in range(0, 16, 4)]
    expected = [(-1 if word % 2 else 1) * (0.5 + (word // 512) / 2**23) for word in words]
    assert shared_vector(NONCE, 4).tolist() == expected


def test_participants_with_one_nonce_share_the_vector():
    assert torch.equal(shared_vector(NONCE, 6), shared_vector(bytes(NONCE), (6,)))
    x = rows(5, 3, 8, 8)
    assert torch.equal(RandomVector((3, 8, 8), NONCE)(x), RandomVector((3, 8, 8), NONCE)(x))


def test_other_nonces_labels_and_shapes_give_unrelated_vectors():
    vectors = [
        shared_vector(NONCE, 4000),
        shared_vector(OTHER, 4000),
        shared_vector(NONCE + b"\0", 4000),
        shared_vector(NONCE, 4000, "other"),
        shared_vector(NONCE, (4, 1000)).flatten(),
    ]
    correlation = np.corrcoef(torch.stack(vectors).numpy())
    assert np.abs(correlation - np.eye(len(vectors))).max() < 0.08  # five standard deviations of chance


def test_entries_are_signed_uniform_and_never_near_zero():
    vector = shared_vector(NONCE, 100_000).double()
    magnitude = vector.abs()
    assert vector.numel() == 100_000
    assert magnitude.min() >= 0.5
    assert magnitude.max() < 1.5
    assert vector.sign().mean().abs() < 0.02
    assert magnitude.mean().item() == pytest.approx(1.0, abs=0.01)
    assert magnitude.std().item() == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.parametrize("nonce", [b"", bytes(15), "0123456789abcdef", bytearray(16), None])
def test_a_short_or_mistyped_nonce_is_refused_without_showing_it(nonce):
    with pytest.raises(hn.ParameterError, match="at least 16 bytes") as caught:
        shared_vector(nonce, 4)
    assert not nonce or repr(nonce) not in str(caught.value)


@pytest.mark.parametrize("shape", [0, (), (3, 0), -1])
def test_empty_shapes_are_refused(shape):
    with pytest.raises(hn.ParameterError, match="at least one feature"):
        shared_vector(NONCE, shape)


def test_case_1_multiplies_and_case_2_cuts():
    x = rows(50, 6)
    vector = shared_vector(NONCE, 6)
    sent = RandomVector(6, NONCE)(x)
    assert torch.equal(sent, x * vector)
    cut = RandomVectorReLU(6, NONCE)(x)
    assert torch.equal(cut, (x * vector).clamp_min(0))
    assert 0.3 < (cut == 0).float().mean() < 0.7


@pytest.mark.parametrize("layer", [RandomVector, RandomVectorReLU])
def test_the_vector_leaks_through_no_repr_state_or_pickle(layer):
    module = torch.nn.Sequential(layer(6, NONCE), torch.nn.Linear(6, 1))
    secrets = [f"{abs(entry):.4f}"[:5] for entry in shared_vector(NONCE, 6).tolist()]
    text = repr(module)
    assert "shape=(6,)" in text
    assert not [secret for secret in [*secrets, NONCE.hex(), repr(NONCE)] if secret in text]
    assert set(module.state_dict()) == {"1.weight", "1.bias"}
    assert not list(module[0].parameters())
    for leak in (pickle.dumps, copy.deepcopy, lambda m: torch.save(m, io.BytesIO())):
        with pytest.raises(TypeError, match="secret"):
            leak(module)


def test_no_layer_keeps_the_nonce():
    nonce = bytes(range(100, 132))
    modules = [RandomVector(6, nonce), RandomVectorReLU(6, nonce), PretrainedLocal(6, nonce)]
    for module in modules:
        assert not [value for value in vars(module).values() if value is nonce or value == nonce]


@pytest.mark.parametrize("layer", [RandomVector, RandomVectorReLU])
@pytest.mark.parametrize("shape", [(6,), (5, 7), (5, 6, 6)])
def test_rows_of_another_shape_are_refused(layer, shape):
    # [5, 6, 6] would broadcast.
    with pytest.raises(hn.ParameterError, match="expected rows"):
        layer(6, NONCE)(torch.zeros(shape))


def trained(nonce=NONCE, *, seed=1, data=0, epochs=8):
    x = rows(200, 6, seed=data)
    y = x[:, 0] - 2 * x[:, 3].abs() + 100
    layer = PretrainedLocal(6, nonce)
    loss = layer.pretrain(x, y, classes=None, epochs=epochs, seed=seed)
    return layer, loss


def weights(layer):
    return torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])


def test_pretrained_layers_start_alike_and_end_apart():
    starts = [weights(PretrainedLocal(6, nonce)) for nonce in (NONCE, NONCE, OTHER)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    one, again, other = (weights(trained(data=data)[0]) for data in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, starts[0])
    assert not torch.equal(one, other)


def test_pretraining_learns_and_freezes():
    _, early = trained(epochs=1)
    layer, late = trained(epochs=30)
    assert late < 0.5 * early
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer(rows(3, 6)).shape == (3, *layer.out_shape) == (3, 32)
    assert not layer(rows(3, 6)).requires_grad


def test_pretraining_on_images():
    x, y = rows(40, 3, 12, 12), torch.arange(40) % 4
    x[:, 0] += y[:, None, None]
    layer = PretrainedLocal((3, 12, 12), NONCE)
    first = layer.pretrain(x, y, classes=4, epochs=1, seed=0)
    again = PretrainedLocal((3, 12, 12), NONCE)
    assert again.pretrain(x, y, classes=4, epochs=20, seed=0) < 0.5 * first
    assert layer(x).shape == (40, *layer.out_shape) == (40, 16, 6, 6)
    kinds = [type(part).__name__ for part in layer.layers]
    assert kinds == ["Conv2d", "ReLU", "Conv2d"]
    assert layer.layers[2].kernel_size == (1, 1)


def test_pretraining_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trained()
    assert torch.equal(torch.rand(4), expected)


def test_a_layer_that_was_not_pretrained_lets_nothing_through():
    layer = PretrainedLocal(6, NONCE)
    with pytest.raises(hn.ParameterError, match="pretrain"):
        layer(rows(3, 6))
    for x in (rows(1, 6), rows(5, 7)):
        with pytest.raises(hn.ParameterError):
            layer.pretrain(x, torch.zeros(len(x)), classes=None, epochs=1, seed=0)
    with pytest.raises(hn.ParameterError, match="not \\[2, 3\\]"):
        PretrainedLocal((2, 3), NONCE)
