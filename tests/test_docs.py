"""The documentation: it builds without a warning, and says what the examples say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "api" / "nn.html").read_text(encoding="utf-8")
    assert "hesplit_native.nn.SplitLinear.forward" in reference
    for notebook in (REPOSITORY / "docs" / "notebooks").glob("*.ipynb"):
        page = (tmp_path / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        assert page.count('src="data:image/png;base64,') >= 3
        assert f'href="{notebook.name}"' in page
        assert (tmp_path / "notebooks" / notebook.name).exists()
    everything = "".join(page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html"))
    # The files that shall be shown are there, and no lines that say so.
    assert "--8" not in re.sub("<[^>]*>", "", everything)
    assert not re.findall(r'(?:src|href)="https?://(?!squidfunk|www\.mkdocs)[^"]*\.(?:js|css|woff2?|png)"', everything)


def test_every_example_is_in_the_course() -> None:
    course = (REPOSITORY / "docs" / "course.md").read_text(encoding="utf-8")
    examples = sorted(path.name for path in (REPOSITORY / "examples").glob("[0-9]*.py"))
    assert examples == re.findall(r'^--8<-- "examples/(.+)"$', course, re.MULTILINE)


def test_links_from_the_readme_lead_somewhere() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
