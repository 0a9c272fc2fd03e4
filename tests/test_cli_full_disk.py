"""A disk that is full, or can no longer be written, ends a run as anything else does: with its metrics, and one line that says why."""

from __future__ import annotations

import errno
import json
import os

import pytest
from typer.testing import CliRunner

from hesplit_native import files
from hesplit_native.cli import app

OPTIONS = ["--protocol", "plain", "--epochs", "1", "--limit-batches", "40", "--checkpoint-every", "10"]


@pytest.fixture
def refuse(monkeypatch):
    """From a file of that name on no file whose name begins so can be written."""

    def refusing(first, names, code):
        replace, seen = os.replace, []

        def refused(temporary, path):
            name = os.path.basename(path)
            if name == first or seen:
                seen.append(name)
                if name.startswith(names):
                    raise OSError(code, os.strerror(code))
            replace(temporary, path)

        monkeypatch.setattr(files.os, "replace", refused)
        return monkeypatch.undo

    return refusing


def train(folder, *more):
    return CliRunner().invoke(app, ["train", *OPTIONS, "--output", str(folder), *more])


def left_behind(folder):
    return list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_checkpoint_that_cannot_be_written_ends_a_run_with_its_metrics(tmp_path, refuse, code):
    undo = refuse("client-20.safetensors", ("client-",), code)
    result = train(tmp_path)
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert os.strerror(code) in lines[0]
    assert "client-20.safetensors" in lines[0]
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["batches"], metrics["interrupted"] is not None) == (20, True)
    assert left_behind(tmp_path) == []
    assert (tmp_path / "checkpoints" / "client-10.safetensors").exists()
    undo()
    assert train(tmp_path, "--resume").exit_code == 0
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["epochs"] == 1


def test_an_account_that_cannot_be_written_ends_a_run_before_anything_is_sent(tmp_path, refuse):
    refuse("client-20.safetensors", ("noised-",), errno.ENOSPC)
    result = train(tmp_path, "--mechanism", "gaussian", "--activation-epsilon", "3")
    assert result.exit_code == 1
    assert "noised-releases.safetensors" in result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["batches"] == 20
    assert metrics["epsilon"] == pytest.approx(3, rel=0.01)


def test_what_was_learnt_is_shown_where_nothing_can_be_written(tmp_path, refuse):
    refuse("client-20.safetensors", ("",), errno.ENOSPC)
    result = train(tmp_path)
    assert result.exit_code == 1
    assert "bytes up" in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "client-20.safetensors" in lines[0]
    assert "metrics.json" in lines[0]
    assert left_behind(tmp_path) == []


def test_results_that_cannot_be_written_are_named(tmp_path, refuse):
    refuse("model.safetensors", ("model",), errno.ENOSPC)
    result = train(tmp_path)
    assert result.exit_code == 1
    assert "model.safetensors" in result.stderr
    assert "metrics.json" in result.output


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".client-7.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    assert train(tmp_path).exit_code == 0
    assert left_behind(tmp_path) == []
