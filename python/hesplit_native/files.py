"""Files that are there whole or not at all, and stay there when the machine stops."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: What the user's umask makes of it, for files that hold no secrets.
SHARED = 0o666


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object], *, mode: int = 0o600) -> None:
    """Write a file, or replace it, in one step that survives a crash of the machine.

    Whoever reads it meanwhile sees the old file or the new one; several may write at once, and the last one stays. What a killed
    process leaves is a file ``.<name>.<random>.tmp`` beside it.

    Parameters
    ----------
    content
        Bytes, or a function that writes them to an open file.
    mode
        Permissions of the file; without others only its owner can read it.

    Raises
    ------
    OSError
        When it cannot be written. Then the old file is as it was, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)  # a full disk does not say for which file
        raise
    _sync(path.parent)


def reserve(paths: Iterable[Path]) -> Path:
    """The first of these paths that is free, now an empty file: nobody else can take it."""
    for path in paths:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            continue
        return path
    raise FileExistsError("every name is taken")


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Alone with a file, among all threads and processes that ask: its folder is made, and ``.<name>.lock`` stays beside it.

    Raises
    ------
    OSError
        When others keep it for so many seconds, or the folder cannot be made.
    """
    from filelock import FileLock

    make_folder(path.parent)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=seconds):
        yield


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Bring a folder's names to disk, where the system lets one."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # this file system has no such thing
            raise
    finally:
        os.close(descriptor)
