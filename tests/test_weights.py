"""Weights that a server reads: from modules, tensors and files, and those that are none."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hesplit_native as hn
from hesplit_native.errors import DataError
from hesplit_native.layer.weights import weights_of


def saved(path, **tensors):
    save_file({name.replace("__", "."): value for name, value in tensors.items()}, path)
    return path


def shapes(source, *patterns, **options):
    return {
        w.name: (*w.weight.shape, w.bias is not None) for w in weights_of(source, patterns or "*", **options)
    }  # fmt: skip


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.body = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Linear(6, 4), nn.Linear(4, 2, bias=False))


def test_of_a_module_linear_layers_are_taken():
    net = Net()
    assert shapes(net) == {"body.1": (4, 6, True), "body.2": (2, 4, False)}
    assert shapes(net, "*.1") == {"body.1": (4, 6, True)}
    assert shapes(nn.Linear(3, 2)) == {"linear": (2, 3, True)}
    found = {w.name: w for w in weights_of(net)}
    np.testing.assert_array_equal(found["body.1"].weight, net.body[1].weight.detach())
    np.testing.assert_array_equal(found["body.1"].bias, net.body[1].bias.detach())


def test_transformers_conv1d_lies_the_other_way_round():
    Conv1D = pytest.importorskip("transformers").pytorch_utils.Conv1D
    layer = nn.Sequential(Conv1D(5, 3))  # 3 in, 5 out
    (found,) = weights_of(layer)
    np.testing.assert_array_equal(found.weight, layer[0].weight.detach().T)
    (same,) = weights_of(dict(layer.state_dict()), transposed="0")
    np.testing.assert_array_equal(found.weight, same.weight)
    with pytest.raises(DataError, match=r"0.bias: of shape \[5\], where 0.weight gives 3 outputs .* transposed='0'"):
        list(weights_of(dict(layer.state_dict())))


def test_of_tensors_and_files_matrices_called_weight_are_taken(tmp_path):
    net = Net()
    state = net.state_dict()
    expected = {"embedding": (9, 6, False), "body.1": (4, 6, True), "body.2": (2, 4, False)}
    assert shapes(state) == expected
    save_file(state, tmp_path / "model.safetensors")
    assert shapes(tmp_path / "model.safetensors") == shapes(str(tmp_path / "model.safetensors")) == expected
    assert shapes(tmp_path) == expected
    assert shapes(tmp_path, "body.*", transposed="body.2") == {"body.1": (4, 6, True), "body.2": (4, 2, False)}
    saved(tmp_path / "more.safetensors", head__weight=torch.ones(2, 2))
    assert shapes(tmp_path) == expected | {"head": (2, 2, False)}
    saved(tmp_path / "again.safetensors", head__weight=torch.ones(2, 2))
    with pytest.raises(DataError, match=r"head.weight is in more.safetensors and in another file"):
        list(weights_of(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floating_numbers_of_any_width(tmp_path, dtype):
    value = torch.tensor([[0.5, -3.0]], dtype=dtype)
    for source in ({"a.weight": value}, saved(tmp_path / "w.safetensors", a__weight=value)):
        (found,) = weights_of(source)
        assert found.weight.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        assert found.weight.tolist() == [[0.5, -3.0]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(2, 2, dtype=torch.int8), r"a.weight: (int8|I8) is not served"),
        (torch.ones(2, 2, dtype=torch.uint8), r"a.weight: (uint8|U8) is not served \(convert quantised"),
        (torch.ones(2, 2, dtype=torch.int64), r"a.weight: (int64|I64) is not served"),
        (torch.ones(2, 2, dtype=torch.bool), r"a.weight: (bool|BOOL) is not served"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), r"a.weight: (float8_e4m3fn|F8_E4M3) is not served"),
        (torch.tensor([[1.0, 2.0], [3.0, float("nan")]]), r"a.weight: it holds nan at \[1, 1\]"),
        (torch.tensor([[1.0, -float("inf")]]), r"a.weight: it holds -inf at \[0, 1\]"),
        (torch.tensor([[1.0, float("inf")]], dtype=torch.float16), r"a.weight: it holds inf at \[0, 1\]"),
        (torch.ones(0, 3), r"a.weight: it is empty, \[0, 3\]"),
    ],
)
def test_tensors_that_cannot_be_served_are_named(tmp_path, value, words):
    for source in ({"a.weight": value}, saved(tmp_path / "w.safetensors", a__weight=value)):
        with pytest.raises(DataError, match=words):
            list(weights_of(source))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(2, 2).to_sparse(), "a.weight: a sparse tensor is not served"),
        (torch.ones(2, 2, dtype=torch.complex64), "a.weight: complex64 is not served"),
        (torch.ones(2, 2, device="meta"), "a.weight: its values are not here"),
        ([[1.0]], "a.weight: expected a tensor, got list"),
    ],
)
def test_tensors_that_no_file_holds(value, words):
    with pytest.raises(DataError, match=words):
        list(weights_of({"a.weight": value}))


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")  # torch gives these tensors up
def test_quantised_tensors():
    quantised = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    with pytest.raises(DataError, match="a quantised tensor is not served"):
        list(weights_of({"a.weight": quantised}))


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (torch.ones(3), r"a.bias: of shape \[3\], where a.weight gives 2 outputs for 4 inputs"),
        (torch.ones(2, 1), r"a.bias: of shape \[2, 1\]"),
        (torch.full((2,), float("nan")), r"a.bias: it holds nan at \[0\]"),
        (torch.ones(2, dtype=torch.int32), r"a.bias: I32 is not served"),
    ],
)
def test_biases_that_do_not_fit(tmp_path, bias, words):
    path = saved(tmp_path / "w.safetensors", a__weight=torch.ones(2, 4), a__bias=bias)
    with pytest.raises(DataError, match=words):
        list(weights_of(path))


def test_all_that_stands_in_the_way_is_said_at_once(tmp_path):
    bad = {f"l{n}__weight": torch.ones(2, 2, dtype=torch.int8) for n in range(10)}
    path = saved(tmp_path / "w.safetensors", a__weight=torch.ones(2, 4), a__bias=torch.ones(4), **bad)
    with pytest.raises(DataError, match=r"a.bias: of shape .*l0.weight: I8.*; and 3 more$"):
        list(weights_of(path))


def test_no_choice_says_what_there_is(tmp_path):
    with pytest.raises(hn.ParameterError, match=r"no layer is chosen; there are body.1, body.2"):
        list(weights_of(Net(), "encoder.*"))
    path = saved(tmp_path / "w.safetensors", sealed=torch.ones(5, dtype=torch.uint8))
    with pytest.raises(hn.ParameterError, match="there is no linear layer, only sealed"):
        list(weights_of(path))
    # What is not chosen may be whatever it is.
    path = saved(tmp_path / "w.safetensors", a__weight=torch.ones(2, 2, dtype=torch.int8), b__weight=torch.ones(2, 2))
    assert shapes(path, "b") == {"b": (2, 2, False)}


def test_files_that_are_damaged_or_something_else(tmp_path):
    path = saved(tmp_path / "w.safetensors", a__weight=torch.ones(20, 20))
    good = path.read_bytes()
    header = json.loads(good[8 : 8 + struct.unpack("<Q", good[:8])[0]])
    header["a.weight"]["shape"] = [20, 21]
    text = json.dumps(header).encode()
    for damaged in (b"", b"x", good[:5], good[:60], good[:-1], good + b"x", bytes(200), b"\xff" * 200,
                    struct.pack("<Q", len(text)) + text + good[-1600:], b"{}", b"\x93NUMPY" + bytes(100)):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"w.safetensors is damaged or no safetensors file"):
            list(weights_of(path))
    with pytest.raises(DataError, match=r"nowhere: No such file"):
        list(weights_of(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no .safetensors file in this folder"):
        list(weights_of(tmp_path / "empty"))


class Trap:
    def __reduce__(self):
        return (print, ("THE PICKLE WAS OPENED",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_opened(tmp_path, capfd, zipped):
    path = tmp_path / "model.pt"
    torch.save({"a.weight": Trap()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"model.pt is a pickle .* safetensors.torch.save_file\(torch.load"):
        list(weights_of(path))
    assert "OPENED" not in capfd.readouterr().out


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    # 128 bytes of header: the file begins with what pickles begin with.
    for pad in range(200):
        path = saved(tmp_path / "w.safetensors", **{"a" * pad + "__weight": torch.ones(2, 2)})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert len(shapes(path)) == 1


def test_what_training_left_behind(tmp_path):
    from hesplit_native.data import synthetic_ecg
    from hesplit_native.protocols.server import Server
    from hesplit_native.training.config import RunConfig
    from hesplit_native.training.run import train
    from hesplit_native.transport import ClientInfo, InProcessChannel

    server = Server(output=tmp_path)
    config = RunConfig(protocol="plain", epochs=1)
    data = synthetic_ecg(train=40, test=20)
    train(config, data, connect=lambda: InProcessChannel(server.converse(ClientInfo("test"))))
    (path,) = tmp_path.iterdir()
    assert shapes(path) == {"linear": (5, 256, True)}
