"""`predict --record`: recordings with and without annotations, their CSV and their picture."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import hesplit_native as hn
from hesplit_native.cli import app
from hesplit_native.data.ptbxl import CLASSES as SUPERCLASSES
from hesplit_native.data.ptbxl import LEADS
from hesplit_native.data.recording_rows import rows_of
from hesplit_native.data.recordings import read_recording
from hesplit_native.training.model_file import activations, load_model, save_model
from hesplit_native.training.models import architecture
from hesplit_native.training.predictions import Predictions, accuracy, prediction_table, write_predictions

CLASSES = ("N", "L", "R", "A", "V")
PEAKS = np.arange(0.7, 29.5, 0.8)
RATE = 250


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def lead(rate=RATE):
    time = np.arange(30 * rate) / rate
    offset = time[:, None] - PEAKS
    waves = ((0.0, 0.012, 1.0), (0.03, 0.011, -0.25), (0.26, 0.05, 0.3))
    clean = sum(height * np.exp(-0.5 * ((offset - at) / width) ** 2).sum(1) for at, width, height in waves)
    return clean + 0.01 * np.random.default_rng(0).normal(size=len(time))


def model(path, channels, samples, classes, labels="single", linear=True):
    shape = architecture("m1", channels, samples, len(classes))
    layer = torch.nn.Linear(shape.activations, len(classes))
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(layer.weight.shape, generator=generator) / 16
    state = {f"body.{name}": value for name, value in shape.body(3).state_dict().items()}
    bias = torch.zeros(len(classes))
    save_model(path, shape, state, weight if linear else None, bias if linear else None, classes, {}, labels)
    return path, weight, bias


@pytest.fixture
def beats(tmp_path):
    return model(tmp_path / "beats.safetensors", 1, 128, CLASSES)[0]


@pytest.fixture
def record(tmp_path):
    np.save(tmp_path / "r.npy", lead())
    return tmp_path / "r.npy"


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected(path, recording):
    rows = rows_of(recording)
    found = load_model(path)
    with torch.no_grad():
        return rows, found.linear(activations(found, torch.from_numpy(rows.x))).numpy()


def test_a_recording_without_annotations(tmp_path, beats, record):
    table, picture = tmp_path / "p.csv", tmp_path / "p.png"
    result = run(
        "predict", "--model", beats, "--record", record, "--rate", RATE, "--output", table, "--picture", picture
    )
    assert result.exit_code == 0, result.output
    assert "resampled from 250 Hz to the model's 360 Hz" in result.output
    assert f"{len(PEAKS)} found in MLII by gqrs" in result.output
    assert "annotated" not in result.output
    assert "accuracy" not in result.output
    rows = read(table)
    assert list(rows[0]) == [
        "beat", "sample", "predicted", *(f"logit_{name}" for name in CLASSES),
        *(f"probability_{name}" for name in CLASSES), "seconds",
    ]  # fmt: skip
    _, y = expected(beats, read_recording(record, ["MLII"], sampling_rate=RATE))
    assert len(rows) == len(PEAKS) == len(y)
    for row, values, peak in zip(rows, y, PEAKS, strict=True):
        assert float(row["seconds"]) == pytest.approx(peak, abs=0.02)
        assert abs(int(row["sample"]) - RATE * float(row["seconds"])) <= 0.51
        np.testing.assert_allclose([float(row[f"logit_{name}"]) for name in CLASSES], values, atol=2e-3)
        assert row["predicted"] == max(CLASSES, key=lambda name, row=row: float(row[f"probability_{name}"]))
        assert sum(float(row[f"probability_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def test_annotations_stay_a_column(tmp_path, beats):
    import wfdb

    wfdb.wrsamp(
        "r",
        fs=RATE,
        units=["uV"],
        sig_name=["II"],
        p_signal=1000 * lead()[:, None],
        fmt=["16"],
        write_dir=str(tmp_path),
    )
    symbols = ["V" if k % 5 == 0 else "N" for k in range(len(PEAKS))]
    wfdb.wrann("r", "atr", np.round(PEAKS * RATE).astype(int), symbol=symbols, write_dir=str(tmp_path))
    missing = run("predict", "--model", beats, "--record", tmp_path / "r")
    assert missing.exit_code == 1
    assert "no lead MLII, its leads are II" in missing.stderr
    table = tmp_path / "p.csv"
    result = run("predict", "--model", beats, "--record", tmp_path / "r", "--lead", "ii", "--output", table)
    assert result.exit_code == 0, result.output
    rows = read(table)
    assert list(rows[0])[:4] == ["beat", "sample", "predicted", "annotated"]
    assert [row["annotated"] for row in rows] == symbols[2:-2]
    np.testing.assert_allclose([int(row["sample"]) for row in rows], (PEAKS * RATE)[2:-2], atol=1)
    assert "accuracy" in result.output
    assert f"{len(PEAKS) - 4} beats" in result.output


@pytest.mark.parametrize("kind", ["wfdb", "edf", "csv", "npy"])
def test_with_the_layer_at_a_server(tmp_path, kind):
    """The same logits from a server as here, whatever the recording came in."""
    path, weight, bias = model(tmp_path / "mine.safetensors", 1, 128, CLASSES, linear=False)
    here = model(tmp_path / "whole.safetensors", 1, 128, CLASSES)[0]
    signal, arguments = lead(), []
    record = tmp_path / f"r.{kind}"
    if kind == "wfdb":
        import wfdb

        record = tmp_path / "r"
        wfdb.wrsamp(
            "r", fs=RATE, units=["mV"], sig_name=["MLII"], p_signal=signal[:, None], fmt=["16"], write_dir=str(tmp_path)
        )
    elif kind == "edf":
        edfio = pytest.importorskip("edfio")
        ranged = {"physical_dimension": "mV", "physical_range": (-5, 5)}
        edfio.Edf([edfio.EdfSignal(signal, RATE, label="ECG MLII", **ranged)]).write(record)
    elif kind == "csv":
        record.write_text("MLII\n" + "".join(f"{value:.5f}\n" for value in signal))
        arguments = ["--rate", RATE]
    else:
        np.save(record, signal)
        arguments = ["--rate", RATE]
    arguments = ["--record", record, *arguments]
    assert run("predict", "--model", here, "--plain", *arguments, "--output", tmp_path / "here.csv").exit_code == 0
    with hn.serve({"linear.weight": weight, "linear.bias": bias}, port=0) as server:
        result = run(
            "predict", "--model", path, "--server", server.address, *arguments, "--output", tmp_path / "there.csv",
            "--picture", tmp_path / "p.svg",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    ours, theirs = read(tmp_path / "here.csv"), read(tmp_path / "there.csv")
    assert len(ours) == len(theirs) == len(PEAKS)
    for a, b in zip(ours, theirs, strict=True):
        assert (a["sample"], a["seconds"]) == (b["sample"], b["seconds"])
        for name in CLASSES:
            assert float(a[f"logit_{name}"]) == pytest.approx(float(b[f"logit_{name}"]), abs=1e-4)
    assert "<svg" in (tmp_path / "p.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_windows_of_twelve_leads(tmp_path, labels):
    path, *_ = model(tmp_path / "m.safetensors", 12, 1000, SUPERCLASSES, labels)
    signal = lead(500)
    np.save(tmp_path / "r.npy", np.stack([signal * (k + 1) / 6 for k in range(12)]))
    record = ["--record", tmp_path / "r.npy", "--rate", 500]
    table = tmp_path / "p.csv"
    result = run("predict", "--model", path, *record, "--output", table, "--picture", tmp_path / "p.pdf")
    assert result.exit_code == 0, result.output
    assert "3 windows of 10 s" in result.output
    rows = read(table)
    assert [int(row["sample"]) for row in rows] == [0, 5000, 10000]
    assert [float(row["seconds"]) for row in rows] == [0, 10, 20]
    for row in rows:
        if labels == "multi":
            likely = [name for name in SUPERCLASSES if float(row[f"logit_{name}"]) > 0]
            assert row["predicted"] == ("+".join(likely) or "none")
        else:
            assert row["predicted"] == max(SUPERCLASSES, key=lambda name, row=row: float(row[f"logit_{name}"]))
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    assert "leave --lead out" in run("predict", "--model", path, *record, "--lead", "II").stderr
    short = tmp_path / "s.npy"
    np.save(short, np.stack([signal[:4900]] * 12))
    assert "the model takes 10 s" in run("predict", "--model", path, "--record", short, "--rate", 500).stderr
    assert LEADS[1] == "II"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--record", "{record}"], "--rate"),
        (["--record", "{record}", "--rate", "0"], "must be positive"),
        (["--record", "{record}", "--rate", "250", "--picture", "x.gif"], ".png, .svg, .pdf"),
        (["--record", "{record}", "--rate", "250", "--picture", "{record}/x.png"], "nothing can be written"),
        (["--record", "/nowhere/r.npy", "--rate", "250"], "does not exist"),
        (["--record", "/nowhere/r"], "missing"),
        (["--lead", "II"], "go with --record"),
        (["--picture", "x.png"], "go with --record"),
        (["--rate", "250"], "go with --record"),
    ],
)
def test_errors_are_one_readable_line(tmp_path, monkeypatch, beats, record, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run("predict", "--model", beats, *(a.format(record=record) for a in arguments))
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_model_of_other_signals_takes_no_recordings(tmp_path, record):
    path, *_ = model(tmp_path / "m.safetensors", 2, 64, CLASSES)
    result = run("predict", "--model", path, "--record", record, "--rate", RATE)
    assert "takes no recordings" in result.stderr


def test_real_record_with_and_without_its_annotations(tmp_path, mitdb, beats):
    for suffix in (".hea", ".dat"):
        (tmp_path / f"100{suffix}").write_bytes((mitdb / f"100{suffix}").read_bytes())
    tables = []
    for folder in (mitdb, tmp_path):
        tables.append(tmp_path / f"{len(tables)}.csv")
        result = run("predict", "--model", beats, "--plain", "--record", folder / "100", "--output", tables[-1])
        assert result.exit_code == 0, result.output
    annotated, found = map(read, tables)
    assert "annotated" in annotated[0]
    assert "annotated" not in found[0]
    near = {int(row["sample"]): row["predicted"] for row in found}
    alike = [
        any(near.get(int(row["sample"]) + shift) == row["predicted"] for shift in range(-2, 3)) for row in annotated
    ]
    assert np.mean(alike) > 0.98


def test_tables_of_predictions(tmp_path):
    logits = torch.tensor([[3.0, -1.0], [-2.0, -1.0], [1.0, 2.0]])
    several = Predictions(("a", "b"), logits, "multi", torch.tensor([[1, 0], [0, 1], [1, 1]]))
    assert several.names(several.predicted) == ["a", "none", "a+b"]
    assert accuracy(several) == pytest.approx(5 / 6)
    assert prediction_table(several, "rows").row_count == 2
    alone = Predictions(("a", "b"), logits, "multi")
    assert accuracy(alone) is None
    assert prediction_table(alone, "rows").row_count == 3
    single = Predictions(("a", "b"), logits, "single", torch.tensor([0, 0, 1]))
    assert single.names(single.predicted) == ["a", "b", "b"]
    assert accuracy(single) == pytest.approx(2 / 3)
    write_predictions(tmp_path / "p.csv", alone)
    assert [row["predicted"] for row in read(tmp_path / "p.csv")] == ["a", "none", "a+b"]
    assert read(tmp_path / "p.csv")[0]["seconds"] == ""
