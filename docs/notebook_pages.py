"""Makes a page of the site of every notebook, as it is stored; a hook of MkDocs, so that links are checked like any page's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add a page beside every notebook, which stays there to be downloaded."""
    for file in list(files):
        path = Path(file.src_uri)
        if path.suffix == ".ipynb":
            page = markdown(json.loads(Path(file.abs_src_path or "").read_text(encoding="utf-8")), path.name)
            files.append(File.generated(config, str(path.with_suffix(".md")), content=page))
    return files


def markdown(notebook: dict[str, Any], name: str) -> str:
    """Text, code and outputs of a notebook, as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source.removesuffix(';')}\n```")
            parts += [_output(output) for output in cell["outputs"]]
    title, *rest = parts
    return "\n\n".join([title, f'*This page is a notebook: <a href="{name}">download it</a>.*', *rest])


def on_page_markdown(text: str, **_: Any) -> str:
    """Links to notebooks, which GitHub shows, lead to their pages here."""
    return re.sub(r"(\]\([\w/.-]+)\.ipynb\)", r"\1.md)", text)


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    if "image/png" in output.get("data", {}):
        return f"![what the code above draws](data:image/png;base64,{''.join(output['data']['image/png']).strip()})"
    raise ValueError(f"a notebook's output is neither text nor a picture: {output['output_type']}")
