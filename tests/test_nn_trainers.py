"""Other people's training loops on encrypted and on served layers: Lightning's and transformers'."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.nn import ServedLinear, encrypt

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers about each other's versions, devices and workers

FEATURES, CLASSES = 12, 3


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(64, FEATURES, generator=generator)
    return x, (x[:, :CLASSES]).argmax(1)


def parameters_close(one, other):
    other = dict(other.named_parameters())
    for name, value in one.named_parameters():
        torch.testing.assert_close(value, other[name], atol=2e-3, rtol=0)


@pytest.fixture
def served():
    """The model with its middle layer at a server, and as it is."""
    plain = model()
    with hn.serve({"2.weight": plain[2].weight, "2.bias": plain[2].bias}, port=0) as server:
        yield encrypt(model(), server=hn.connect(server)), plain


def lightning_fit(net):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), lr=1e-2)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    return net


def test_lightning_trains_encrypted_layers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = lightning_fit(model())
    ours = lightning_fit(encrypt(model()))
    parameters_close(ours, plain)
    assert not torch.equal(plain[0].weight, model()[0].weight)


def test_lightning_trains_around_served_layers(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, plain = served
    for parameter in plain[2].parameters():
        parameter.requires_grad_(False)
    before = plain[2].weight.clone()
    lightning_fit(net)
    lightning_fit(plain)
    assert type(net[2]) is ServedLinear
    parameters_close(net, plain)
    assert torch.equal(plain[2].weight, before)


def trainer_fit(net, tmp_path, **more):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    x, y = data()
    rows = [{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=16, learning_rate=1e-2, use_cpu=True,
        report_to=[], disable_tqdm=True, seed=1, **({"save_strategy": "no"} | more),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = transformers.Trainer(model=Wrapped(), args=options, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        return trainer.evaluate()["eval_loss"]


def test_transformers_trainer(served, tmp_path):
    net, plain = served
    for parameter in plain[2].parameters():
        parameter.requires_grad_(False)
    expected = trainer_fit(plain, tmp_path)
    assert trainer_fit(net, tmp_path) == pytest.approx(expected, abs=5e-3)
    parameters_close(net, plain)
    assert trainer_fit(encrypt(model()), tmp_path) == pytest.approx(trainer_fit(model(), tmp_path), abs=5e-3)
    assert np.isfinite(expected)


@pytest.mark.parametrize("protocol", ["plain", "splitways", "sealed"])
def test_lightning_trains_a_layer_at_a_server(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nets = []
    for layer in (split(protocol), split("local").linear()):
        net = model()
        net[4] = layer
        nets.append(lightning_fit(net))
    ours, plain = nets
    assert ours[4].steps == 8
    torch.testing.assert_close(ours[4].linear().weight, plain[4].weight, atol=0.1, rtol=0)
    torch.testing.assert_close(ours[0].weight, plain[0].weight, atol=0.1, rtol=0)
    assert not torch.equal(ours[0].weight, model()[0].weight)


def split(protocol):
    return hn.nn.SplitLinear(16, CLASSES, protocol, batch_size=16, learning_rate=1e-2)


def test_transformers_trainer_trains_and_saves_a_layer_at_a_server(tmp_path):
    net = model()
    net[4] = split("splitways")
    loss = trainer_fit(net, tmp_path, save_strategy="epoch")
    assert net[4].steps == 8
    assert loss == pytest.approx(trainer_fit_plain(tmp_path), abs=0.05)
    from safetensors.torch import load_file

    (last,) = tmp_path.glob("checkpoint-8/model.safetensors")
    state = {name.removeprefix("net."): value for name, value in load_file(last).items()}
    again = model()
    again[4] = split("splitways")
    again.load_state_dict(state)
    x = data()[0]
    torch.testing.assert_close(again.eval()(x), net.eval()(x), atol=1e-2, rtol=0)


def trainer_fit_plain(tmp_path):
    net = model()
    net[4] = split("local")
    return trainer_fit(net, tmp_path)
