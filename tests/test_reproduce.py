from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from hesplit_native.cli import app
from hesplit_native.reproduce import page, runner, tables
from hesplit_native.training import RunConfig


def run(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


@pytest.mark.parametrize("name", ["split-ways", "hesplit", "triad"])
@pytest.mark.parametrize("quick", [True, False])
def test_rows_have_ids_of_their_own_and_references_that_exist(name, quick):
    rows = tables.rows(name, quick=quick, data=("mitbih", "ptbxl"))
    ids = [row.id for row in rows]
    assert len(set(ids)) == len(ids)
    for row in rows:
        assert row.reference is None or row.reference in ids
        if isinstance(row.config, RunConfig) and row.reference is not None:
            reference = rows[ids.index(row.reference)].config
            # The plaintext row differs in nothing but the encryption.
            for key in ("recipe", "optimizer", "batch_size", "epochs", "seed", "limit_batches", "model"):
                assert getattr(reference, key) == getattr(row.config, key)
            assert reference.protocol == "plain"
    if name != "triad" and not quick:
        published = [row for row in rows if row.published is not None and row.published.parameter_set]
        assert {row.published.parameter_set for row in published} == (
            {"S1", "S2"} if name == "hesplit" else {"8192-60", "8192-40", "4096-20", "4096-40", "2048-18"}
        )


def test_paired_rows_share_their_seed():
    rows = tables.pairs("mitbih", 3)
    by_id = {row.id: row for row in rows}
    assert len(by_id) == len(rows)
    for row in rows:
        if row.reference:
            assert by_id[row.reference].config.seed == row.config.seed


def test_a_table_is_run_written_and_not_run_again(tmp_path):
    arguments = ["split-ways", "--quick", "--rows", "ours-sealed,plain", "--jobs", "2", "--output", tmp_path / "t"]
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    text = (tmp_path / "t" / "split-ways.md").read_text(encoding="utf-8")
    html = (tmp_path / "t" / "split-ways.html").read_text(encoding="utf-8")
    assert "the figures mean nothing" in text
    assert re.search(r"\| sealed \|  \| \d+\.\d+ \| \d+\.\d+ \| [+-]\d+\.\d+ \|", text)
    assert "not run" in text
    assert html.count("data:image/png;base64,") >= 2
    assert "<script" not in html
    assert "http" not in html
    result = json.loads((tmp_path / "t" / "mitbih-ours-sealed-step.json").read_text(encoding="utf-8"))
    assert result["bytes_per_epoch"] > 20 * 60_000
    assert result["versions"]["SEAL"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").glob("*.json")}
    again = run(*arguments)
    assert again.exit_code == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "t").glob("*.json")}


def test_results_of_another_configuration_do_not_count(tmp_path):
    rows = tables.rows("split-ways", quick=True)
    (tmp_path / f"{rows[0].id}.json").write_text(json.dumps({"config": {"seed": 1}}))
    assert runner.results(rows, tmp_path) == {}


def test_a_row_that_fails_does_not_stop_the_others(tmp_path):
    result = run("split-ways", "--rows", "default-local", "--mitdb", tmp_path / "nowhere", "--output", tmp_path / "t")
    assert result.exit_code == 1
    assert "failed" in result.output
    assert "not a directory" in " ".join(result.output.split())
    assert (tmp_path / "t" / "split-ways.md").is_file()


def test_unflooded_and_weak_rows_are_marked(tmp_path):
    rows = tables.rows("split-ways", quick=True)[:5]
    values = {
        "metric": 50.0, "seconds_per_epoch": 1.0, "bytes_per_epoch": 1e6, "curve": [40.0, 50.0], "flooding": "off",
        "parameters": {"security": "paper"}, "config": {"seed": 0}, "data": "d",
        "machine": {"platform": "p", "cpus": 2, "cpu_features": {}}, "versions": {},
    }  # fmt: skip
    html = page.page("T", rows, {row.id: values for row in rows}, quick=False)
    assert "<strong>Noise flooding: off</strong>" in html
    assert "strong{color:#b3261e}" in html
    assert "Below 128 bits" in html
    assert "50,318.0×" in html


def test_list_and_unknown_rows(tmp_path):
    listed = run("hesplit", "--rows", "list")
    assert "mitbih-default-S1-4" in listed.output
    assert run("hesplit", "--rows", "nothing", "--output", tmp_path).exit_code == 1


def test_paired_seeds_are_averaged():
    rows = [row for row in tables.pairs("mitbih", 2) if "plain" in row.id or "sealed" in row.id]
    values = {
        "seconds_per_epoch": 1.0, "bytes_per_epoch": 1e6, "curve": [1.0], "flooding": "not needed", "parameters": None,
        "data": "d", "machine": {"platform": "p", "cpus": 2, "cpu_features": {}}, "versions": {},
    }  # fmt: skip
    metrics = {"plain-seed0": 90.0, "plain-seed1": 92.0, "sealed-step-seed0": 90.5, "sealed-step-seed1": 91.9}
    results = {
        row.id: values | {"metric": metrics[row.id.split("ours-")[1]], "config": {"seed": row.config.seed}}
        for row in rows
    }
    text = page.markdown("T", rows, results, quick=False)
    assert "| sealed | 2 | 91.20 | +0.20 (-0.10 to +0.50) |" in text
    assert "<td>+0.20 (-0.10 to +0.50)</td>" in page.page("T", rows, results, quick=False)
