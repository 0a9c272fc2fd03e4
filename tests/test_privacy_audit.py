"""The audit as a user runs it, and recordings that are attacked later."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import hesplit_native as hn
from hesplit_native.cli import app
from hesplit_native.data import synthetic_ecg
from hesplit_native.privacy import audit, page
from hesplit_native.privacy.transcript import Recording, record
from hesplit_native.training.config import RunConfig


@pytest.fixture(scope="module")
def data():
    return synthetic_ecg(train=400, test=300)


@pytest.mark.parametrize("protocol", ["plain", "hesplit", "sealed"])
def test_recordings_survive_a_file(data, tmp_path, protocol):
    config = RunConfig(protocol=protocol, flooding="off", batch_size=4, accept_leak=True)
    recording = record(config, data, steps=6, keep=4)
    recording.save(tmp_path / "r.safetensors")
    again = Recording.load(tmp_path / "r.safetensors")
    assert len(again.transcript.steps) == 4
    for one, two in zip(recording.transcript.steps, again.transcript.steps, strict=True):
        assert (one.forward, one.backward, one.masked, one.opened) == (
            two.forward,
            two.backward,
            two.masked,
            two.opened,
        )
        assert (one.weight is None) == (two.weight is None) == (protocol == "sealed")
    np.testing.assert_array_equal(again.truth.inputs[3], recording.truth.inputs[3])
    setting = audit.Setting("again", config)
    row = audit.audit(setting, data, steps=0, recording=again)
    assert row.findings["activations"].value == pytest.approx(1.0, abs=1e-3) or protocol == "sealed"


def test_a_frozen_layer_gives_nothing_away(data):
    row = next(row for row in audit.settings() if row.frozen)
    found = audit.audit(row, data, steps=60, keep=60)
    for name in ("activations", "closest channel", "signals"):
        assert abs(found.findings[name].value - found.findings[name].chance) < 0.3
    assert abs(found.findings["labels"].value - found.findings["labels"].chance) < 0.3
    assert found.findings["key"].text == "nothing is released"
    # One size up and one down, whatever the rows are.
    assert " to " not in found.findings["traffic"].text


def test_other_files_are_no_recordings(tmp_path):
    (tmp_path / "r.safetensors").write_bytes(b"no")
    with pytest.raises(hn.DataError):
        Recording.load(tmp_path / "r.safetensors")


def test_noise_lowers_what_is_found(data):
    rows = [row for row in audit.defended() if row.title in ("plain, activations eps=1 a value", "plain, dJ/dy eps=10")]
    noisy, gradient = (audit.audit(row, data, steps=60, keep=60) for row in rows)
    assert abs(noisy.findings["activations"].value) < 0.2
    assert gradient.findings["labels"].value < 0.9
    assert noisy.epsilon > 100


def test_the_command_writes_table_page_and_numbers(tmp_path):
    done = CliRunner().invoke(
        app,
        [
            "audit",
            "--quick",
            "--steps",
            "40",
            "--rows",
            "vanilla,sealed,splitways, flooded, n=8",
            "--output",
            str(tmp_path),
        ],
    )
    assert done.exit_code == 0, done.output
    values = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    found = {row["title"]: row["findings"] for row in values["rows"]}
    assert found["vanilla"]["activations"]["value"] == pytest.approx(1)
    assert abs(found["sealed"]["activations"]["value"]) < 0.3
    assert "What an honest-but-curious server recovers" in (tmp_path / "audit.md").read_text(encoding="utf-8")
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") >= 2
    assert 'src="http' not in text


def test_what_was_found_before_an_interruption_is_kept(tmp_path, monkeypatch):
    from hesplit_native.privacy import audit

    whole, rows = audit.audit, []

    def interrupted(*arguments, **options):
        if rows:
            raise KeyboardInterrupt
        rows.append(whole(*arguments, **options))
        return rows[0]

    monkeypatch.setattr(audit, "audit", interrupted)
    done = CliRunner().invoke(
        app, ["audit", "--quick", "--steps", "40", "--rows", "vanilla,sealed", "--output", str(tmp_path)]
    )
    assert done.exit_code == 130
    assert re.search(r"^vanilla: accuracy .* %, activations 1\.00 \(.*\), labels 1\.00", done.output, re.MULTILINE)
    values = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert [row["title"] for row in values["rows"]] == ["vanilla"]
    assert "after 1 of 2 rows" in (tmp_path / "audit.md").read_text(encoding="utf-8")


def test_rows_can_be_listed_and_must_exist(tmp_path):
    listed = CliRunner().invoke(app, ["audit", "--rows", "list"])
    assert "hesplit, flooding off" in listed.output
    wrong = CliRunner().invoke(app, ["audit", "--rows", "nothing", "--output", str(tmp_path)])
    assert wrong.exit_code == 1
    assert "--rows list" in wrong.output
    table = CliRunner().invoke(app, ["audit", "--csv", "x.csv"])
    assert "--private" in table.output


def test_a_report_without_pictures_is_a_report():
    report = page.Report("title", "here")
    assert "title" in page.page(report)
    assert page.markdown(report).startswith("# title")
