"""Anybody's network on anybody's data: `hesplit_native.train`."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import initial_linear
from hesplit_native.training import CsvLog, Defences, StopTraining, TensorBoardLog, metrics, run
from hesplit_native.training.client import weight_seed
from hesplit_native.transport import ClientInfo, GrpcServer, InProcessChannel

ROWS, CLASSES, BATCH = 90, 3, 16


def pictures(rows=ROWS, seed=0):
    """Rows whose brightest third is their class."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, rows)
    x = random.normal(size=(rows, 1, 9, 9))
    for row, label in enumerate(y):
        x[row, 0, 3 * label : 3 * label + 3] += 0.7
    return x, y


def cnn(dropout=0.0):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(3)
    )


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens, mask):
        return self.layer(self.embedding(tokens), src_key_padding_mask=mask)[:, 0]


def train(network, data, **options):
    defaults = {"batch_size": BATCH, "epochs": 2, "protocol": "plain", "progress": False, "learning_rate": 5e-3}
    result = hn.train(network, data, **defaults | options)
    assert result.interrupted is None, result.interrupted
    return result


def by_hand(network, x, y, loss, outputs, *, epochs=2, seed=0, rate=lambda epoch: 5e-3, batch=BATCH):
    """The same in torch alone: the whole network, and its mean loss by epoch."""

    class Shape:
        weight_seed, in_features, out_features = weight_seed(seed), 0, outputs

    with torch.no_grad():
        network.eval()
        Shape.in_features = network(x[:2]).flatten(1).shape[1]
        network.train()
    whole = nn.Sequential(network, nn.Flatten(), initial_linear(Shape))
    optimizer = torch.optim.Adam(whole.parameters(), lr=rate(1))
    order = torch.Generator().manual_seed(seed)
    losses = []
    for epoch in range(1, epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch)
        parts = torch.randperm(len(x), generator=order).split(batch)
        total = 0.0
        for rows in parts:
            value = loss(whole(x[rows]), y[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item()
        losses.append(total / len(parts))
    return whole, losses


def same_network(result, network, whole, atol=2e-4):
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, whole[0].state_dict()[name], atol=atol, rtol=0)
    torch.testing.assert_close(result.linear.weight, whole[2].weight, atol=atol, rtol=0)


def losses_of(result):
    return [record.train_loss for record in result.history]


SIGNAL = nn.Conv1d(2, 4, 5)


def multi_label():
    random = np.random.default_rng(1)
    x = random.normal(size=(ROWS, 2, 20)).astype(np.float32)
    return x, np.stack([x[:, 0].mean(1) > 0, x[:, 1].mean(1) > 0, x.mean((1, 2)) > 0], 1).astype(np.float64)


@pytest.mark.parametrize(
    ("network", "data", "loss", "outputs"),
    [
        (cnn, pictures, functional.cross_entropy, 3),
        (lambda: nn.Conv1d(2, 4, 5), multi_label, functional.binary_cross_entropy_with_logits, 3),
        (lambda: nn.Sequential(nn.Linear(20, 7), nn.Tanh()), lambda: (multi_label()[0], np.random.default_rng(2).normal(size=ROWS)),
         functional.mse_loss, 1),
        (nn.Flatten, pictures, functional.cross_entropy, 3),
    ],
    ids=["cnn", "several labels", "numbers", "nothing before the layer"],
)  # fmt: skip
def test_plain_learns_what_torch_does(network, data, loss, outputs):
    x, y = data()
    torch.manual_seed(7)
    ours, theirs = network(), network()
    theirs.load_state_dict(ours.state_dict())
    labels = torch.from_numpy(y) if outputs > 1 and y.ndim == 1 else torch.from_numpy(y).float().reshape(ROWS, -1)
    whole, losses = by_hand(theirs, torch.from_numpy(x).float(), labels, loss, outputs)
    result = train(ours, (x, y))
    assert losses_of(result) == pytest.approx(losses, abs=1e-5)
    same_network(result, ours, whole)


@pytest.mark.parametrize("protocol", ["splitways", "hesplit", "sealed", "local", "vanilla"])
def test_other_protocols_learn_what_plain_does(protocol):
    # Of BatchNorm and the softmax; in the logits the error is below 1e-3.
    data = pictures(80)
    plain = train(cnn(), data)
    network = cnn()
    other = train(network, data, protocol=protocol, flooding="off")
    assert losses_of(other) == pytest.approx(losses_of(plain), abs=5e-3)
    flooded = train(cnn(), data, protocol=protocol)
    assert losses_of(flooded) == pytest.approx(losses_of(plain), abs=5e-2)
    # Four to eight of 80 samples: the noise alone moves three.
    assert flooded.history[-1].train_accuracy == pytest.approx(plain.history[-1].train_accuracy, abs=0.1)


def test_schedules_hold_at_both_sides():
    x, y = pictures()
    factors = {1: 1.0, 2: 0.1, 3: 2.0}
    theirs = cnn()
    whole, losses = by_hand(
        theirs,
        torch.from_numpy(x).float(),
        torch.from_numpy(y),
        functional.cross_entropy,
        3,
        epochs=3,
        rate=lambda epoch: 5e-3 * factors[epoch],
    )
    for protocol in ("plain", "local"):
        ours = cnn()
        result = train(ours, (x, y), epochs=3, schedule=factors.get, protocol=protocol)
        assert losses_of(result) == pytest.approx(losses, abs=1e-4)
        same_network(result, ours, whole, atol=1e-3)


def test_an_optimiser_of_ones_own_and_frozen_parameters():
    x, y = pictures()
    network = cnn()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    result = train(network, (x, y), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), epochs=3)
    assert torch.equal(network[0].weight, before)
    assert losses_of(result)[-1] < losses_of(result)[0]


class Rows(Dataset):
    def __init__(self, x, y, as_dict=False):
        self.x, self.y, self.as_dict = x, y, as_dict

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return {"input": self.x[index], "labels": self.y[index]} if self.as_dict else (self.x[index], self.y[index])


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x.astype(np.float32), y.astype(np.int64)),
        lambda x, y: [torch.from_numpy(x), torch.from_numpy(y).int()],
        lambda x, y: (x.astype(">f8"), y.astype(np.uint16)),
        lambda x, y: ((x,), y),
        lambda x, y: ({"input": x}, y),
        lambda x, y: Rows(x, y.astype(np.int32)),
        lambda x, y: Rows(x, y, as_dict=True),
        lambda x, y: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        lambda x, y: DataLoader(Rows(x, y), batch_size=BATCH, shuffle=True),
        lambda x, y: DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=BATCH),
        lambda x, y: list(zip(x, y, strict=True)),
    ],
    ids=["arrays", "tensors", "other byte order", "tuple", "dict", "data set", "data set of dicts", "TensorDataset", "loader",
         "loader of tensors", "list of pairs"],
)  # fmt: skip
def test_data_in_every_form_are_the_same_data(form):
    x, y = pictures()
    network = cnn()
    expected = train(network, (x, y), validation=pictures(30, 1))
    again = cnn()
    batch_size = None if isinstance(form(x, y), DataLoader) else BATCH
    result = train(again, form(x, y), validation=form(*pictures(30, 1)), batch_size=batch_size)
    assert losses_of(result) == losses_of(expected)
    assert result.validation == expected.validation
    assert torch.equal(network[0].weight, again[0].weight)


def test_loaders_that_drop_the_last_batch():
    loader = DataLoader(Rows(*pictures()), batch_size=BATCH, drop_last=True)
    assert train(cnn(), loader, batch_size=None).batches == 2 * (ROWS // BATCH)
    longer = train(cnn(), loader, batch_size=None, limit_batches=ROWS)  # a limit is not a wish for the short batch
    assert longer.batches == 2 * (ROWS // BATCH)
    few = DataLoader(Rows(*pictures(10)), batch_size=BATCH, drop_last=True)
    assert train(cnn(), few, batch_size=None).batches == 2  # where there is no other it stays


@pytest.mark.parametrize(
    ("participants", "batches"),
    [([range(17), range(17, 90)], 1 + 4), ([range(33), range(33, 65), range(65, 90)], 2 + 2 + 1), (2, 2 + 2), (6, 6)],
)
def test_loaders_that_drop_the_last_batch_of_every_participant(participants, batches, tmp_path):
    loader = DataLoader(Rows(*pictures()), batch_size=BATCH, drop_last=True)
    result = train(cnn(), loader, batch_size=None, participants=participants, output=tmp_path)
    assert (result.batches, result.batches_per_epoch) == (2 * batches, batches)
    assert json.loads((tmp_path / "metrics.json").read_text())["batches_per_epoch"] == batches


def test_a_data_set_of_the_package_with_its_test_rows():
    data = synthetic_ecg(train=120, test=40)
    result = train(nn.Sequential(nn.Conv1d(1, 4, 7, stride=4), nn.ReLU()), data, validation=0.25, epochs=10)
    assert set(result.test["per_class"]) == set(data.classes)
    assert result.test["accuracy"] > 0.25  # of five classes


def test_transformers_take_several_inputs():
    random = np.random.default_rng(0)
    tokens = random.integers(1, 11, (64, 6))
    y = (tokens[:, 1] > 5).astype(np.int64)
    mask = np.zeros((64, 6), bool)
    results = [
        train(Transformer(), (x, y), protocol="splitways", epochs=1)
        for x in ({"tokens": tokens, "mask": mask}, (tokens, mask))
    ]
    assert losses_of(results[0]) == pytest.approx(losses_of(results[1]), abs=1e-2)


def validation_of(network, result, x, y):
    with torch.no_grad():
        outputs = nn.Sequential(network.eval(), nn.Flatten(), result.linear)(torch.from_numpy(x).float())
    return float(functional.cross_entropy(outputs, torch.from_numpy(y)))


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("protocol", ["plain", "splitways", "hesplit", "sealed", "local"])
def test_both_sides_end_with_the_best_epoch(protocol, stored, tmp_path):
    held_out = pictures(40, seed=9)
    network = cnn()
    result = train(
        network, misleading(), validation=held_out, patience=3, epochs=6, protocol=protocol, flooding="off",
        checkpoints=tmp_path / "c" if stored else None,
    )  # fmt: skip
    losses = [record.validation["loss"] for record in result.history]
    assert losses == sorted(losses)
    assert (result.best_epoch, result.epochs) == (1, 4)
    assert result.validation["loss"] == losses[0]
    assert validation_of(network, result, *held_out) == pytest.approx(losses[0], abs=5e-3)


def misleading():
    """What is learnt from these makes validation worse with every epoch."""
    x, y = pictures(80)
    return x, (y + 1) % CLASSES


def test_a_server_elsewhere_keeps_the_layer_of_the_best_epoch(tmp_path):
    held_out = pictures(40, seed=9)
    with GrpcServer("127.0.0.1:0", Server(checkpoints=tmp_path / "c", output=tmp_path / "o").converse) as server:
        network = cnn()
        result = train(
            network, misleading(), validation=held_out, epochs=5, server=f"127.0.0.1:{server.port}",
        )  # fmt: skip
    assert (result.best_epoch, result.epochs) == (1, 5)
    assert result.server_weight is None
    with pytest.raises(hn.ParameterError, match="at the server"):
        _ = result.linear
    layer = nn.Linear(54, CLASSES)
    (left,) = (tmp_path / "o").iterdir()
    layer.load_state_dict(load_file(left))

    class Ours:
        linear = layer

    assert validation_of(network, Ours, *held_out) == pytest.approx(result.validation["loss"], abs=1e-5)


@pytest.mark.parametrize("stored", [True, False])
def test_the_server_of_sealed_does_not_learn_which_epoch_is_best(stored, tmp_path, monkeypatch):
    asked = []
    original = Session.checkpoint

    def checkpoint(session, step, *, keep=False):
        asked.append(keep)
        return original(session, step, keep=keep)

    monkeypatch.setattr(Session, "checkpoint", checkpoint)
    options = {"validation": pictures(40, 9), "checkpoints": tmp_path if stored else None}
    train(cnn(), pictures(80), protocol="plain", **options)
    assert any(asked)
    asked.clear()
    train(cnn(), pictures(80), protocol="sealed", **options)
    assert asked == ([False] * 3 if stored else [])


def test_a_run_resumes_only_as_what_it_was(tmp_path):
    train(cnn(), pictures(), checkpoints=tmp_path, epochs=1)
    with pytest.raises(hn.DataError, match=r"learning_rate=0\.005, this one has 0\.1"):
        train(cnn(), pictures(), checkpoints=tmp_path, epochs=2, resume=True, learning_rate=0.1)
    with pytest.raises(hn.DataError, match="another network"):
        train(nn.Linear(9, 6), pictures(), checkpoints=tmp_path, epochs=2, resume=True)


def test_an_open_connection_is_not_enough():
    with pytest.raises(hn.ParameterError, match="a function that opens one"):
        train(cnn(), pictures(), server=InProcessChannel(Server().converse(ClientInfo("test"))))


class StopAt:
    """Interrupts a run at a batch of an epoch."""

    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_batch(self, epoch, batch, loss, accuracy):
        if (epoch, batch) == self.at:
            raise KeyboardInterrupt

    def on_start(self, *_):
        pass

    on_evaluate = on_epoch = on_start


class StopsAfter:
    def __init__(self, batch):
        self.batch = batch

    def on_batch(self, epoch, batch, loss, accuracy):
        if epoch == 2 and batch == self.batch:
            raise StopTraining

    def on_start(self, *_):
        pass

    on_evaluate = on_epoch = on_start


@pytest.mark.parametrize("protocol", ["plain", "splitways"])
def test_an_observer_may_end_a_run_and_the_best_is_kept(protocol, monkeypatch):
    monkeypatch.setattr(run, "_REPORT_SECONDS", 0.0)
    held_out = pictures(40, 9)
    network = cnn()
    result = train(
        network, misleading(), validation=held_out, observers=[StopsAfter(3)], epochs=4, protocol=protocol, flooding="off"
    )  # fmt: skip
    assert (result.epochs, result.best_epoch, result.batches) == (1, 1, 5 + 3)
    assert result.server_seconds_by_phase  # the session was ended
    assert validation_of(network, result, *held_out) == pytest.approx(result.validation["loss"], abs=5e-3)


@pytest.mark.parametrize("at", [(1, 3), (2, 1), (3, 5)])
@pytest.mark.parametrize("form", [lambda x, y: (x, y), Rows], ids=["arrays", "data set"])
def test_an_interrupted_run_ends_bit_for_bit_as_undisturbed(at, form, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_REPORT_SECONDS", 0.0)
    options = {
        "validation": pictures(40, 3), "epochs": 3, "schedule": lambda epoch: 1 / epoch, "checkpoint_every": 2, "patience": 2,
    }  # fmt: skip
    networks = [cnn(0.3), cnn(0.3)]
    whole = train(networks[0], form(*pictures()), checkpoints=tmp_path / "whole", **options)
    folder = tmp_path / "stopped"
    state = torch.get_rng_state()
    stopped = hn.train(
        cnn(0.3), form(*pictures()), checkpoints=folder, observers=[StopAt(*at), CsvLog(tmp_path / "log.csv")], batch_size=BATCH,
        protocol="plain", progress=False, learning_rate=5e-3, **options,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert stopped.interrupted == "interrupted by the user"
    torch.rand(3)  # whatever else this process draws
    resumed = train(
        networks[1],
        form(*pictures()),
        checkpoints=folder,
        resume=True,
        observers=[CsvLog(tmp_path / "log.csv")],
        **options,
    )
    assert losses_of(resumed) == losses_of(whole)
    assert [record.validation for record in resumed.history] == [record.validation for record in whole.history]
    assert torch.equal(resumed.server_weight, whole.server_weight)
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name])
    with (tmp_path / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"][: resumed.epochs]


def test_what_is_refused_for_leaking_and_what_noise_adds_up_to():
    with pytest.raises(hn.ParameterError, match="recovers the"):
        train(cnn(), pictures(), protocol="splitways", batch_size=2)
    # 82 rows: the last batch of two is left out.
    result = train(cnn(), pictures(82), protocol="splitways", epochs=1)
    assert result.batches == 5
    noised = train(
        cnn(), pictures(), epochs=1, defences=Defences(activation_epsilon=1.0, label_epsilon=2.0), validation=pictures(20, 4)
    )  # fmt: skip
    assert noised.epsilon > 2.0


# Measures


def ranks_auroc(scores, positive):
    above = (scores[positive][:, None] > scores[~positive][None, :]).mean()
    return above + 0.5 * (scores[positive][:, None] == scores[~positive][None, :]).mean()


def f1(predicted, positive):
    hits = (predicted & positive).sum()
    return 2 * hits / max(predicted.sum() + positive.sum(), 1)


@pytest.mark.parametrize(
    "noise",
    [{"activation_epsilon": 5.0}, {"gradient_epsilon": 5.0}, {"activation_epsilon": 5.0, "mechanism": "laplace"}],
)
def test_what_accounts_for_noise_is_missed_before_a_run(noise, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.setattr(run.Run, "begin", lambda *_, **__: pytest.fail("the run has begun"))
    with pytest.raises(hn.ParameterError, match=r"'\.\[privacy\]'"):
        train(cnn(), pictures(), defences=Defences(**noise))


def test_measures_of_classes_are_what_they_say():
    random = np.random.default_rng(0)
    outputs, labels = random.normal(size=(60, 5)).astype(np.float32), random.integers(0, 3, 60)
    outputs[:, 4] = -9  # neither there nor predicted
    names = list("abcde")
    scores = metrics.measure("classes", functional.cross_entropy, names, more=True)(
        torch.from_numpy(outputs), torch.from_numpy(labels)
    )
    predicted = outputs.argmax(1)
    assert scores["accuracy"] == (predicted == labels).mean()
    probabilities = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    aurocs = [ranks_auroc(probabilities[:, k], labels == k) for k in range(3)]
    assert scores["auroc"] == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert scores["macro_f1"] == pytest.approx(np.mean([f1(predicted == k, labels == k) for k in range(4)]), abs=1e-6)
    assert [scores["per_class"][name]["auroc"] for name in names[3:]] == [None, None]
    assert [scores["per_class"][name]["rows"] for name in names] == np.bincount(labels, minlength=5).tolist()
    confusion = np.zeros((5, 5), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert scores["confusion"] == confusion.tolist()


def test_measures_of_several_labels_and_of_numbers():
    random = np.random.default_rng(0)
    outputs, labels = random.normal(size=(60, 3)).astype(np.float32), random.integers(0, 2, (60, 3)).astype(np.float32)
    labels[:, 2] = 0
    scores = metrics.measure("labels", functional.binary_cross_entropy_with_logits, "abc", more=True)(
        torch.from_numpy(outputs), torch.from_numpy(labels)
    )
    truth = labels > 0.5
    assert scores["accuracy"] == pytest.approx(((outputs > 0) == truth).mean())
    assert scores["auroc"] == pytest.approx(
        np.mean([ranks_auroc(outputs[:, k], truth[:, k]) for k in range(2)]), abs=1e-6
    )
    assert scores["macro_f1"] == pytest.approx(
        np.mean([f1(outputs[:, k] > 0, truth[:, k]) for k in range(3)]), abs=1e-6
    )
    assert np.array(scores["confusion"]).shape == (3, 2, 2)
    numbers = metrics.measure("numbers", functional.mse_loss, "abc", more=True)(
        torch.from_numpy(outputs), torch.from_numpy(labels)
    )
    assert numbers["mae"] == pytest.approx(np.abs(outputs - labels).mean(), rel=1e-5)
    assert numbers["loss"] == pytest.approx(np.square(outputs - labels).mean(), rel=1e-5)
    assert "auroc" not in numbers


def test_without_torchmetrics_there_are_loss_and_accuracy(monkeypatch):
    from hesplit_native.training import fit

    for module in (metrics, fit):
        monkeypatch.setattr(module, "has_torchmetrics", lambda: False)
    result = train(cnn(), pictures(), validation=0.2, epochs=1)
    assert set(result.validation) == {"loss", "accuracy"}
    for options in ({"metrics": True}, {"monitor": "auroc", "validation": 0.2}):
        with pytest.raises(hn.ParameterError, match="needs torchmetrics, which is missing"):
            train(cnn(), pictures(), **options)


def test_what_a_run_leaves_behind(tmp_path, capsys):
    result = train(
        cnn(), pictures(), validation=0.2, test=pictures(20, 8), classes=["top", "middle", "bottom"], monitor="auroc",
        output=tmp_path / "run", observers=[TensorBoardLog(tmp_path / "tb")], progress=True,
    )  # fmt: skip
    values = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert values["test"]["auroc"] == result.test["auroc"]
    assert values["validation"]["confusion"] == result.validation["confusion"]
    assert (values["train_rows"], values["validation_rows"], values["test_rows"]) == (72, 18, 20)
    assert values["best_epoch"] == result.best_epoch
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation_auroc"]) for row in rows] == [r.validation["auroc"] for r in result.history]
    said = capsys.readouterr().out
    assert "epoch 2: loss" in said
    assert "test auroc" in said
    assert "middle" in said
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/auroc")] == [1, 2]
    assert events.Scalars("train/loss")[0].value == pytest.approx(result.history[0].train_loss)


def test_regression_has_no_accuracy(capsys):
    x, _ = pictures()
    result = train(cnn(), (x, x.mean((1, 2, 3))), validation=0.2, progress=True)
    assert result.history[0].train_accuracy is None
    assert math.isfinite(result.validation["mae"])
    assert "accuracy" not in capsys.readouterr().out


def test_a_loss_of_ones_own():
    x, y = pictures()
    weighted = train(cnn(), (x, y), loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])))
    assert losses_of(weighted) != losses_of(train(cnn(), (x, y)))
    whole_numbers = train(cnn(), (x, y.astype(float)), loss=nn.MSELoss(), validation=0.2)
    assert "mae" in whole_numbers.validation
    binary = train(
        cnn(), (x, (y > 0).astype(int)), outputs=1, validation=0.2,
        loss=lambda outputs, labels: functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.float()),
    )  # fmt: skip
    assert set(binary.validation) == {"loss"}


# What is refused


def changed(**changes):
    x, y = pictures()
    return changes.get("x", lambda v: v)(x), changes.get("y", lambda v: v)(y)


def spoilt(value, at):
    def spoil(array):
        array = array.astype(float) if isinstance(value, float) else array.copy()
        array[at] = value
        return array

    return spoil


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda: changed(x=spoilt(np.nan, (7, 0, 1, 2))), r"1 of 90 rows hold .* not finite, the first nan in row 7, at \[0, 1, 2\]"),
        (lambda: DataLoader(Rows(*pictures()), batch_size=None), "batch_sampler, or none, is not followed"),
        (lambda: changed(x=lambda x: x[:-1]), "x has 89 rows and y 90"),
        (lambda: changed(x=lambda x: x[:0], y=lambda y: y[:0]), "is empty"),
        (lambda: changed(x=lambda x: x.astype(str)), "expected numbers, got"),
        (lambda: changed(x=lambda x: x.astype(complex)), "expected numbers"),
        (lambda: changed(x=lambda x: torch.from_numpy(x.astype(complex))), "complex numbers"),
        (lambda: changed(y=spoilt(-1, 4)), r"label -1 of row 4 is not in 0\.\.2"),
        (lambda: changed(y=lambda y: y.astype(float)), "floats .* that are all whole numbers"),
        (lambda: changed(y=lambda y: y[:, None] + 1), "an integer matrix"),
        (lambda: changed(y=spoilt(np.nan, 4)), "y: 1 of 90 rows hold values that are not finite, the first nan in row 4"),
        (lambda: changed(y=lambda y: y[:, None, None].astype(float)), r"expected \[n\] or \[n, k\], got"),
        (lambda: changed(y=lambda y: y.astype(str)), "y: expected numbers"),
        (lambda: 3, "expected .* got int"),
        (list, "is empty"),
        (lambda: pictures()[0], "expected pairs of inputs and labels"),
        (lambda: iter([]), "expected"),
        (lambda: Rows(np.zeros((4, 1)), []), "is empty"),
        (
            lambda: DataLoader(Rows(*pictures()), sampler=WeightedRandomSampler([1.0] * ROWS, ROWS)),
            "WeightedRandomSampler is not followed",
        ),
    ],
)  # fmt: skip
def test_data_of_no_use_are_refused_in_words(data, match):
    with pytest.raises(hn.DataError, match=match) as raised:
        train(cnn(), data())
    assert str(raised.value).startswith("the training data")


def test_rows_that_come_one_by_one_are_checked_when_they_come():
    x, y = pictures()
    result = hn.train(
        cnn(), Rows(x, spoilt(5, 80)(y)), outputs=3, batch_size=BATCH, protocol="plain", progress=False, epochs=1
    )
    assert "label 5 of row" in result.interrupted


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"validation": changed(x=lambda x: x[:, :, :6])}, hn.DataError, "the validation data, x: rows are"),
        ({"validation": changed(y=lambda y: y + 1)}, hn.DataError, r"the validation data, y: label 3 of row \d+ is not in 0\.\.2"),
        ({"test": changed(y=lambda y: y / 2)}, hn.DataError, "the test data, y: expected classes as integers"),
        ({"validation": 0.0}, hn.DataError, "leaves one side empty"),
        ({"validation": 1.5}, hn.DataError, "leaves one side empty"),
        ({"patience": 2}, hn.ParameterError, "patience needs validation"),
        ({"patience": 0, "validation": 0.2}, hn.ParameterError, "at least 1"),
        ({"monitor": "r2", "validation": 0.2}, hn.ParameterError, "there are loss, accuracy, macro_f1, auroc"),
        ({"classes": ["a", "b"]}, hn.ParameterError, "expected 3 different names"),
        ({"outputs": 2}, hn.DataError, r"is not in 0\.\.1"),
        ({"loss": lambda outputs, labels: outputs}, hn.ParameterError, "expected one number"),
        ({"loss": functional.mse_loss}, hn.ParameterError, "the loss cannot take outputs .* and labels"),
        ({"schedule": lambda epoch: epoch - 1}, hn.ParameterError, "the factor of epoch 1 is 0"),
        ({"device": "cuda:99"}, hn.ParameterError, "cannot be used here"),
        ({"device": "toaster"}, hn.ParameterError, "cannot be used here"),
        ({"momentum": 0.9}, hn.ParameterError, "no option 'momentum'; the further ones are accept_leak"),
        ({"protocol": "none"}, hn.ParameterError, "unknown protocol"),
        ({"protocol": "local", "server": "localhost:7000"}, hn.ParameterError, "has no server"),
        ({"batch_size": 89}, hn.ParameterError, "end with a batch of one row, which batch normalisation cannot take"),
        ({"resume": True}, hn.DataError, "no checkpoint"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be(options, error, match):
    with pytest.raises(error, match=match):
        train(cnn(), pictures(), **options)


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (nn.Conv2d(3, 4, 3), r"cannot take a batch of float32 \[2, 1, 9, 9\]: "),
        (Returns(lambda x: x.flatten()), r"gives \[162\] for a batch of 2 rows"),
        (Returns(lambda x: x.mean()), r"gives \[\] for a batch of 2 rows"),
        (Returns(lambda x: (x, x)), "gives tuple for a batch"),
        (Returns(lambda x: x.long()), r"gives torch\.int64"),
        (Returns(lambda x: x.repeat(1, 1, 120, 120)), "gives 1166400 features a row"),
        (functional.relu, "expected a torch.nn.Module"),
    ],
)
def test_networks_that_do_not_fit(network, match):
    with pytest.raises(hn.ParameterError, match=match):
        train(network, pictures())


@pytest.mark.parametrize(
    ("rows", "participants", "options"),
    [
        (81, [np.arange(40), np.arange(40, 81)], {}),  # 81 rows of one client would end with one row
        (81, 3, {}),
        (97, [range(48), range(48, 97)], {"protocol": "splitways", "flooding": "off"}),  # a rest that leaks is left out
        (80, [range(16), range(16, 80)], {"batch_size": 16}),
        (81, [range(17), range(17, 81)], {"limit_batches": 1}),
    ],
)
def test_rows_of_each_participant_suit_batch_normalisation(rows, participants, options):
    train(cnn(), pictures(rows), participants=participants, epochs=1, **options)


@pytest.mark.parametrize(
    ("rows", "participants", "client"),
    [
        (80, [range(17), range(17, 80)], 17),  # 80 rows of one client would do
        (80, [range(47), range(47, 80)], 33),
        (66, 2, 33),
        (48, [range(32), range(32, 47), [47]], 1),
    ],
)
def test_rows_of_a_participant_that_end_with_one_row(rows, participants, client):
    with pytest.raises(
        hn.ParameterError, match=rf"a client's {client} rows in batches of 16 end with a batch of one row"
    ):
        train(cnn(), pictures(rows), participants=participants)
    train(
        nn.Flatten(), pictures(rows), participants=participants, epochs=1
    )  # without batch normalisation they are fine


SITES = [list(range(40)), np.arange(40, 70), np.arange(70, 80)]


@pytest.mark.parametrize("mode", ["turns", "parallel"])
@pytest.mark.parametrize("protocol", ["splitways", "sealed", "local", "vanilla"])
def test_participants_learn_what_they_do_in_the_clear(mode, protocol):
    data = pictures(80)
    plain = train(cnn(), data, participants=SITES, mode=mode)
    network = cnn()
    result = train(
        network, data, participants=SITES, mode=mode, protocol=protocol, flooding="off", test=pictures(40, seed=3)
    )
    assert losses_of(result) == pytest.approx(losses_of(plain), abs=5e-3)
    assert result.participants == 3
    if result.linear is None:
        return
    # What comes out is what was tested: network and layer of the last participant, or of their average.
    x, y = pictures(40, seed=3)
    network.eval()
    with torch.no_grad():
        outputs = result.linear(network(torch.from_numpy(x).float()).flatten(1))
    assert functional.cross_entropy(outputs, torch.from_numpy(y)).item() == pytest.approx(result.test["loss"], abs=1e-2)


def test_in_turns_participants_are_one_loop_over_their_rows():
    x, y = pictures(80)
    ours, theirs = cnn(), cnn()
    result = train(ours, (x, y), participants=SITES, epochs=1)
    optimizers = []  # each has moments of its own; the server's are everybody's
    whole = nn.Sequential(theirs, nn.Flatten(), initial_linear(type("Shape", (), {
        "weight_seed": weight_seed(0), "in_features": 54, "out_features": 3})))  # fmt: skip
    server = torch.optim.Adam(whole[2].parameters(), lr=5e-3)
    for index, site in enumerate(SITES):
        optimizers = [torch.optim.Adam(theirs.parameters(), lr=5e-3), server]
        order = torch.Generator().manual_seed(7919 * index)
        rows_of_site = torch.as_tensor(site)
        for rows in torch.randperm(len(site), generator=order).split(BATCH):
            at = rows_of_site[rows]
            loss = functional.cross_entropy(whole(torch.from_numpy(x).float()[at]), torch.from_numpy(y)[at])
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    same_network(result, ours, whole)


@pytest.mark.parametrize("mode", ["turns", "parallel"])
def test_participants_resume(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_REPORT_SECONDS", 0.0)
    data = pictures(80)
    options = {"participants": 3, "mode": mode, "protocol": "plain"}
    undisturbed = cnn(0.3)
    whole = train(undisturbed, data, epochs=3, **options)
    stopped = hn.train(
        cnn(0.3), data, epochs=3, checkpoints=tmp_path, observers=[StopAt(2, 3)], checkpoint_every=2, batch_size=BATCH,
        learning_rate=5e-3, progress=False, **options,
    )  # fmt: skip
    assert stopped.interrupted == "interrupted by the user"
    network = cnn(0.3)
    resumed = train(network, data, epochs=3, checkpoints=tmp_path, resume=True, checkpoint_every=2, **options)
    assert losses_of(resumed) == losses_of(whole)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, undisturbed.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "participants",
    [0, 91, [], [[]], [[0, 1], [1, 2]], [[-1, 2]], [[90]], [[0.5]], [[[1]]]],
)
def test_participants_that_cannot_be(participants):
    with pytest.raises(hn.ParameterError, match="participants"):
        train(cnn(), pictures(), participants=participants)


def test_in_vanilla_the_server_has_the_loss():
    for data, options in ((multi_label(), {}), (pictures(), {"loss": nn.CrossEntropyLoss()})):
        with pytest.raises(hn.ParameterError, match="the server computes the loss"):
            train(nn.Flatten(), data, protocol="vanilla", **options)
