"""Where results go, looked at before the work that makes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn


def output_folder(path: Path) -> Path:
    """The folder, made where it is missing; ParameterError where nothing can be written into it."""
    from tempfile import TemporaryFile

    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        _refuse(path, error)
    return path


def output_file(path: Path) -> Path:
    """The file, in a folder that is made where it is missing; ParameterError where it cannot be written. It is left as it is."""
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder; name a file in it", str(path))
        if path.exists():
            with path.open("ab"):
                pass
    except OSError as error:
        _refuse(path, error)
    if not path.exists():
        output_folder(path.parent)
    return path


def _refuse(path: Path, error: OSError) -> NoReturn:
    from hesplit_native.errors import ParameterError

    where = f" ({error.filename})" if error.filename and os.fspath(path) != error.filename else ""
    reason = "a file has that name" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
    raise ParameterError(f"nothing can be written to {path}: {reason or error}{where}; give another path") from error
