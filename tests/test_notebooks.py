"""The notebooks run as they are, and find what their text says; what is stored of them is what they give, and small."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NUMBER = r"(-?\d+\.\d+)"


def code(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cells):
    return "".join(
        "".join(output["text"]) for cell in cells for output in cell["outputs"] if output["output_type"] == "stream"
    )


def kinds(cells):
    """What every cell gives: text, or a picture."""
    return [
        [output.get("name") or sorted(output.get("data", [output["output_type"]])) for output in cell["outputs"]]
        for cell in cells
    ]


@pytest.fixture
def run(tmp_path):
    """run(name): the code of a notebook after running it in a folder of its own, where nobody is at home."""
    pytest.importorskip("nbconvert", reason="NO NBCONVERT: install the extra `test`")
    pytest.importorskip("ipykernel", reason="NO IPYKERNEL: install the extra `test`")

    def execute(name):
        folder = tmp_path / "run"
        folder.mkdir()
        path = Path(shutil.copy(NOTEBOOKS / name, folder))
        set_by_others = re.compile("JUPYTER|IPYTHON|XDG_|MPL")
        environment = {key: value for key, value in os.environ.items() if not set_by_others.match(key)}
        environment |= {"HOME": str(tmp_path / "home"), "JUPYTER_PREFER_ENV_PATH": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(path)],
            capture_output=True, text=True, timeout=600, cwd=folder, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert os.listdir(folder) == [name]
        cells = code(path)
        assert kinds(cells) == kinds(code(NOTEBOOKS / name)), "make notebooks"
        return cells

    return execute


def test_your_data(run):
    cells = run("your_data.ipynb")
    training = next(cell for cell in cells if "hn.train(" in "".join(cell["source"]))
    assert len(training["source"]) <= 20
    text = printed(cells)
    accuracy = {
        protocol: float(re.search(rf"^{protocol} +\d+ +{NUMBER}", text, re.MULTILINE)[1])
        for protocol in ("local", "splitways", "sealed")
    }
    assert accuracy["local"] > 0.8
    assert accuracy["splitways"] == pytest.approx(accuracy["local"], abs=0.05)
    assert accuracy["sealed"] == pytest.approx(accuracy["local"], abs=0.05)
    assert float(re.search(rf"{NUMBER} right of 500", text)[1]) > 0.8


def test_what_the_server_sees(run):
    text = printed(run("what_the_server_sees.ipynb"))
    found = {
        name: tuple(map(float, scores))
        for name, *scores in re.findall(rf"^(\w+(?:, \d+ rows)?) +{NUMBER} +{NUMBER} +{NUMBER}$", text, re.MULTILINE)
    }
    assert len(found) == 4
    for name in ("vanilla", "splitways, 4 rows"):
        activations, heartbeats, labels = found[name]
        assert activations > 0.99
        assert heartbeats > 0.7
        assert labels == 1
    activations, heartbeats, labels = found["splitways, 16 rows"]
    assert 0.3 < activations < 0.9
    assert heartbeats < 0.7
    assert labels == 1
    assert max(map(abs, found["sealed"][:2])) < 0.4
    assert found["sealed"][2] < 0.5


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_in_order(path):
    assert f'run("{path.name}")' in Path(__file__).read_text(encoding="utf-8")
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any("error" in kind or "stderr" in kind for cell in kinds(cells) for kind in cell)
    assert sum("image/png" in kind for cell in kinds(cells) for kind in cell) >= 3
    assert path.stat().st_size < 250_000
