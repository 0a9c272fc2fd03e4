"""What the package leaves on a machine: what pip knows of, what a user asked for, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import hesplit_native

PACKAGE = Path(hesplit_native.__file__).parent
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def written(package):
    """What is in the package's folder beside compiled Python, which pip removes with its source."""
    return {path for path in package.rglob("*") if path.is_file() and path.parent.name != "__pycache__"}


@pytest.fixture
def machine(tmp_path):
    """machine(arguments): run Python with a home, working folder and temporary files that are all empty; what it wrote, by place."""

    def run(*arguments):
        places = {name: tmp_path / name for name in ("home", "here", "temporary")}
        for place in places.values():
            place.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        environment |= {"HOME": str(places["home"]), "TMPDIR": str(places["temporary"]), "PYTHONDONTWRITEBYTECODE": "1"}
        before = written(PACKAGE)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=places["here"], env=environment, capture_output=True, text=True, timeout=600
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert written(PACKAGE) == before
        assert files(places["temporary"]) == []
        at_home = [
            name for name in files(places["home"]) if not name.startswith((".cache/matplotlib", ".config/matplotlib"))
        ]
        return at_home, files(places["here"])

    return run


@pytest.mark.parametrize("example", ["01_classifier_head.py", "02_resnet.py"])
def test_examples_write_nothing(machine, example):
    assert machine(str(EXAMPLES / example)) == ([], [])


def test_training_writes_its_output(machine):
    arguments = ["train", "--dataset", "synthetic", "--limit-batches", "4", "--epochs", "1", "--output", "out"]
    at_home, here = machine("-m", "hesplit_native", *arguments)
    assert at_home == []
    assert "out/metrics.json" in here
    assert all(name.startswith("out/") for name in here)


def test_asking_writes_nothing(machine):
    assert machine("-m", "hesplit_native", "plan", "256", "5", "--batch-size", "4") == ([], [])


def test_downloaded_and_processed_data_is_where_the_documentation_says(machine):
    script = "from hesplit_native.data.records import cache_directory; (cache_directory() / 'beats').write_text('')"
    assert machine("-c", script) == ([".cache/hesplit_native/beats"], [])


def test_pip_knows_every_file_of_the_package():
    """So that uninstalling removes it."""
    try:
        installed = distribution("hesplit_native")
    except PackageNotFoundError:
        pytest.skip("NOT INSTALLED: the package is imported from its source")
    known = {Path(str(installed.locate_file(file))).resolve() for file in installed.files or ()}
    if not any(PACKAGE.resolve() in path.parents for path in known):
        pytest.skip("NOT INSTALLED: the package is imported from its source")
    assert {path.resolve() for path in written(PACKAGE)} <= known
