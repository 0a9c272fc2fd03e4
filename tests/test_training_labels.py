"""Several labels a row: the papers' networks on PTB-XL as it is."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from typer.testing import CliRunner

import hesplit_native as hn
from hesplit_native.cli import app
from hesplit_native.data import check_dataset, synthetic_ecg, synthetic_ptbxl
from hesplit_native.data.ptbxl import CLASSES, LEADS
from hesplit_native.training import Defences, RunConfig
from hesplit_native.training import train as train_papers
from hesplit_native.training.model_file import load_model
from hesplit_native.training.run import train_together


def several_labels(y):
    """Of its own class, and every third row also of the next."""
    labels = np.eye(5, dtype=np.int64)[y]
    labels[::3] |= np.eye(5, dtype=np.int64)[(y[::3] + 1) % 5]
    return labels


@pytest.fixture(scope="module")
def data():
    found = synthetic_ecg(train=200, test=60, seed=3)
    return replace(found, train_y=several_labels(found.train_y), test_y=several_labels(found.test_y))


def outputs(result, x):
    body = result.architecture.body(0)
    body.load_state_dict({k.removeprefix("body."): v for k, v in result.client_state.items() if k.startswith("body.")})
    with torch.no_grad():
        return result.linear(body(torch.from_numpy(x))).numpy()


def auroc(scores, truth):
    ranks = rankdata(scores)
    ones = int(truth.sum())
    return (ranks[truth == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(truth) - ones))


def test_scores_are_those_of_the_networks_outputs(data):
    result = train_papers(RunConfig(protocol="plain", epochs=2), data)
    y = outputs(result, data.test_x)
    expected = [auroc(y[:, k], data.test_y[:, k]) for k in range(5)]
    assert result.test["auroc"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert [scores["auroc"] for scores in result.test["per_class"].values()] == pytest.approx(expected, abs=1e-5)
    assert [scores["rows"] for scores in result.test["per_class"].values()] == data.test_y.sum(0).tolist()
    loss = np.logaddexp(0, y) - y * data.test_y
    assert result.test["loss"] == pytest.approx(loss.mean(), abs=1e-5)
    assert result.test_accuracy == ((y > 0) == (data.test_y == 1)).mean()
    last = result.history[-1]
    assert last.test["auroc"] == result.test["auroc"]
    assert "per_class" not in last.test  # of the last epoch only
    assert last.validation == {}
    assert last.train_loss < result.history[0].train_loss


@pytest.mark.parametrize("protocol", ["local", "splitways", "hesplit", "sealed"])
def test_other_protocols_learn_what_plain_learns(data, protocol):
    options = {"epochs": 1, "limit_batches": 12, "seed": 2, "flooding": "run"}
    plain = train_papers(RunConfig(protocol="plain", **options), data)
    other = train_papers(RunConfig(protocol=protocol, **options), data)
    assert not other.interrupted
    assert other.history[0].train_loss == pytest.approx(plain.history[0].train_loss, abs=0.02)
    assert other.test["auroc"] == pytest.approx(plain.test["auroc"], abs=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "vanilla"}, "server computes the loss"),
        ({"defences": Defences(label_epsilon=1.0)}, "label_epsilon"),
        ({"recipe": "paper"}, "softmax"),
    ],
)
def test_what_only_knows_classes_is_refused(data, options, words):
    with pytest.raises(hn.ParameterError, match=words):
        train_papers(RunConfig(**options), data)


def test_without_torchmetrics_there_is_loss_and_accuracy(data, monkeypatch):
    monkeypatch.setattr("hesplit_native.training.recipes.has_torchmetrics", lambda: False)
    result = train_papers(RunConfig(protocol="plain", epochs=1, limit_batches=3), data)
    assert set(result.test) == {"loss", "accuracy"}


def test_a_run_that_was_over_still_knows_its_scores(data, tmp_path):
    config = RunConfig(protocol="plain", epochs=1, limit_batches=5)
    first = train_papers(config, data, checkpoints=tmp_path)
    again = train_papers(config, data, checkpoints=tmp_path, resume=True)
    assert again.test == first.test
    assert "per_class" in again.test


def test_several_participants(data):
    result = train_together(RunConfig(protocol="plain", epochs=1), data, participants=2, mode="parallel")
    assert result.test["auroc"] == pytest.approx(result.history[0].test["auroc"])


def test_anybodys_network_on_such_a_data_set(data):
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 16), torch.nn.ReLU())
    result = hn.train(body, data, epochs=1, batch_size=20, protocol="plain", progress=False)
    assert list(result.test["per_class"]) == list(data.classes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: {"train_y": 2 * d.train_y}, "train_y: label 2 of row 0, column 0 is not in 0..1"),
        (lambda d: {"test_y": -d.test_y}, "test_y: label -1 of row 0, column 0"),
        (lambda d: {"train_y": d.train_y[:, :4]}, r"expected int64 \[200\].*or \[200, 5\]"),
        (lambda d: {"train_y": d.train_y.astype(bool)}, "expected int64"),
        (lambda d: {"test_y": d.test_y.argmax(1)}, "both"),
        (lambda d: {"train_patient": np.ones((200, 5), int)}, "train_patient"),
    ],
)
def test_other_labels_are_refused(data, change, words):
    data = replace(data, train_y=data.train_y.copy())
    data.train_y[0, 0] = data.test_y[0, 0] = 1
    check_dataset(data)
    with pytest.raises(hn.DataError, match=words):
        check_dataset(replace(data, **change(data)))


# The command line


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A file like the PTB-XL subset."""
    found = synthetic_ptbxl(train=60, test=30, seed=5)
    signal = np.concatenate([found.train_x, found.test_x])
    label = np.concatenate([found.train_y, found.test_y])
    path = tmp_path_factory.mktemp("data") / "recordings.npz"
    np.savez(
        path, signal_uV=(1000 * signal / np.abs(signal).max()).astype(np.int16), label=label.astype(np.int8),
        label_multi=several_labels(label).astype(np.int8), classes=np.array(CLASSES), leads=np.array(LEADS),
        strat_fold=np.array([1] * 60 + [10] * 30, np.int8),
    )  # fmt: skip
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_train_and_predict(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = ["--dataset", "ptbxl", "--data-dir", recordings]
    result = run("train", *source, "--labels", "multi", "--epochs", "2", "--batch-size", "10")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "ptbxl-multi-splitways-blocks-seed0"
    values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert values["labels"] == "multi"
    assert list(values["test"]["per_class"]) == list(CLASSES)
    for words in ("test auroc, macro mean", "test macro f1", "accuracy of labels", "test rows by class", *CLASSES):
        assert words in result.output
    assert (folder / "curves.png").stat().st_size > 5000
    model = folder / "model.safetensors"
    assert load_model(model).labels == "multi"
    result = run("predict", "--model", model, *source, "--plain", "--output", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    truth = np.load(recordings)["label_multi"][60:]
    for row, labels in zip(rows, truth, strict=True):
        assert row["annotated"] == "+".join(np.array(CLASSES)[labels == 1])
        likely = [name for name in CLASSES if float(row[f"probability_{name}"]) > 0.5]
        assert row["predicted"] == ("+".join(likely) or "none")
    assert f"accuracy {100 * values['test_accuracy']:.1f}"[:-1] in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "ptbxl", "--protocol", "vanilla"], "server computes the loss"),
        (["--dataset", "ptbxl", "--recipe", "paper"], "softmax"),
        (["--dataset", "synthetic12"], "every row of synthetic12 has one label"),
        ([], "every row of synthetic has one label"),
    ],
)
def test_what_cannot_be_is_one_line(recordings, tmp_path, arguments, words):
    result = run("train", "--labels", "multi", "--data-dir", recordings, "--output", tmp_path, *arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_model_of_several_labels_does_not_pass_on_single_ones(recordings, tmp_path):
    done = run(
        "train", "--dataset", "ptbxl", "--data-dir", recordings, "--labels", "multi", "--protocol", "local",
        "--epochs", "1", "--limit-batches", "1", "--output", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = run("predict", "--model", tmp_path / "model.safetensors", "--dataset", "synthetic12")
    assert "every row of synthetic12 has one label" in result.stderr


def test_macro_auroc_needs_its_package(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr("hesplit_native.training.metrics.has_torchmetrics", lambda: False)
    result = run("train", "--dataset", "ptbxl", "--data-dir", recordings, "--labels", "multi", "--output", tmp_path)
    assert result.exit_code == 1
    assert "torchmetrics" in result.stderr
