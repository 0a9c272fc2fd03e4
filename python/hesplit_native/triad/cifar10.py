"""CIFAR-10, the classification task of the paper (section IV-B), and a synthetic stand-in.

The format of the binary files is that of Krizhevsky 2009: rows of one byte of label and 3,072 of pixels, channel by channel. The
files of the Python version hold the same rows in pickles, which are read without unpickling.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.data.npz import read_npz
from hesplit_native.errors import DataError, ParameterError
from hesplit_native.triad.cifar10_batches import read_batch

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)

_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_FOLDERS = {
    ".bin": "cifar-10-batches-bin",
    "": "cifar-10-batches-py",
}  # of the binary and the Python version, by suffix
_ROWS_PER_FILE = 10_000
_ROW_BYTES = 1 + 3 * 32 * 32
_MAX_BATCH_BYTES = 1 << 26  # of a file of the Python version; the official ones have 31 MB
_MAX_ARCHIVE_BYTES = 1 << 30  # of what an archive says it unpacks to; the whole of CIFAR-10 has 0.18 GB
_MAX_TAR_BYTES = 1 << 28  # it is unpacked in memory
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Images:
    """Images, split into train and test.

    `train_x` and `test_x` are uint8 [n, 3, 32, 32], red, green and blue in 0..255; `train_y` and `test_y` int64 [n], indices into
    the ten `classes`.
    """

    name: str
    train_x: npt.NDArray[np.uint8]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.uint8]
    test_y: npt.NDArray[np.int64]
    classes: tuple[str, ...]


def load_cifar10(path: str | os.PathLike[str]) -> Images:
    """CIFAR-10, or a part of it.

    Parameters
    ----------
    path
        The directory of the official files, ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` or those of the
        Python version without suffix, or the directory that it is in; the official ``.tar.gz`` of either; or one ``.npz`` file with
        ``x_train`` and ``x_test`` (uint8 [n, 3, 32, 32]), ``y_train`` and ``y_test`` (integers [n], 0..9) and, if it likes,
        ``classes`` (ten names).

    Raises
    ------
    DataError
        Naming the missing, damaged or unusable file.
    """
    path = Path(path)
    if path.is_dir():
        return _load_directory(path)
    if not path.is_file():
        raise DataError(f"{path} is missing; name a directory of CIFAR-10's files, their .tar.gz or an .npz file")
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _load_archive(path)
    return _load_npz(path)


Rows = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def _load_directory(path: Path) -> Images:
    """From the version that the directory, or the folder of a version in it, has a file of; from an archive where there is none."""
    for suffix, folder in _FOLDERS.items():
        for directory in (path, path / folder):
            if any((directory / f"{name}{suffix}").exists() for name in _BATCHES):
                read = _read_binary if suffix else _read_pickled
                return _assemble([read(directory / f"{name}{suffix}") for name in _BATCHES])
    for archive in sorted(path.glob("cifar-10-*.tar.gz")):
        return _load_archive(archive)
    raise DataError(f"{path / _BATCHES[0]}.bin is missing, and so is every other file of CIFAR-10")


def _assemble(parts: list[Rows]) -> Images:
    *train, (test_x, test_y) = parts
    train_x, train_y = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return Images("cifar10", train_x, train_y, test_x, test_y, CLASSES)


def _read_binary(path: Path) -> Rows:
    expected = _ROWS_PER_FILE * _ROW_BYTES
    try:
        size = path.stat().st_size
        # Before reading: what has another size is not read at all.
        if size != expected:
            raise DataError(f"{path} has {size} bytes instead of {expected}: not a CIFAR-10 binary file, or damaged")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _binary_rows(data, str(path))


def _binary_rows(data: bytes, where: str) -> Rows:
    expected = _ROWS_PER_FILE * _ROW_BYTES
    if len(data) != expected:
        raise DataError(f"{where} has {len(data)} bytes instead of {expected}: not a CIFAR-10 binary file, or damaged")
    rows = np.frombuffer(data, np.uint8).reshape(_ROWS_PER_FILE, _ROW_BYTES)
    return rows[:, 1:].reshape(-1, *SHAPE).copy(), _labels(rows[:, 0], where)


def _read_pickled(path: Path) -> Rows:
    try:
        size = path.stat().st_size
        if size > _MAX_BATCH_BYTES:
            raise DataError(f"{path} has {size} bytes, more than a CIFAR-10 file of the Python version has")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _pickled_rows(data, str(path))


def _pickled_rows(data: bytes, where: str) -> Rows:
    pixels, labels = read_batch(data, where)
    shape = (_ROWS_PER_FILE, _ROW_BYTES - 1)
    if pixels.dtype != np.uint8 or pixels.shape != shape or labels.shape != shape[:1]:
        raise DataError(
            f"{where}: expected uint8 {list(shape)} and {shape[0]} labels, got {pixels.dtype} {list(pixels.shape)} and "
            f"{list(labels.shape)}"
        )
    return pixels.reshape(-1, *SHAPE).copy(), _labels(labels, where)


def _load_archive(path: Path) -> Images:
    """The batches of one version from its archive; nothing is unpacked to disk, and members of other names are not looked at."""
    found: dict[str, bytes] = {}
    wanted = {f"{name}{suffix}" for name in _BATCHES for suffix in _FOLDERS}
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(_MAX_TAR_BYTES + 1)
        if len(data) > _MAX_TAR_BYTES:
            raise DataError(f"{path} would unpack to more than the {_MAX_TAR_BYTES} bytes that are expected")
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in wanted or not member.isreg():
                    continue
                content = archive.extractfile(member) if member.size <= _MAX_BATCH_BYTES else None
                if content is None or name in found:
                    raise DataError(f"{path}: {member.name} is there twice or too large")
                found[name] = content.read()
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    suffix = ".bin" if any(name.endswith(".bin") for name in found) else ""
    missing = [f"{name}{suffix}" for name in _BATCHES if f"{name}{suffix}" not in found]
    if missing:
        raise DataError(f"{path} has no file {missing[0]}")
    rows = _binary_rows if suffix else _pickled_rows
    return _assemble([rows(found[f"{name}{suffix}"], f"{path}, {name}{suffix}") for name in _BATCHES])


def _load_npz(path: Path) -> Images:
    arrays = read_npz(path, _ARRAYS, optional=("classes",), max_bytes=_MAX_ARCHIVE_BYTES)
    sides: list[Any] = []
    for side in ("train", "test"):
        x, y = arrays[f"x_{side}"], arrays[f"y_{side}"]
        if x.dtype != np.uint8 or x.shape[1:] != SHAPE or len(x) == 0:
            raise DataError(f"{path}, x_{side}: expected uint8 [n, 3, 32, 32], got {x.dtype} {list(x.shape)}")
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
            raise DataError(f"{path}, y_{side}: expected {len(x)} integers, got {y.dtype} {list(y.shape)}")
        sides += [x, _labels(y, f"{path}, y_{side}")]
    names = arrays.get("classes", np.array(CLASSES))
    if names.dtype.kind != "U" or names.shape != (len(CLASSES),):
        raise DataError(f"{path}, classes: expected ten names, got {names.dtype} {list(names.shape)}")
    train_x, train_y, test_x, test_y = sides
    return Images(path.stem, train_x, train_y, test_x, test_y, tuple(names.tolist()))


def _labels(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    bad = np.flatnonzero((values < 0) | (values >= len(CLASSES)))
    if len(bad):
        raise DataError(f"{where}: label {values[bad[0]]} of row {bad[0]} is not in 0..{len(CLASSES) - 1}")
    return values.astype(np.int64)


Plane = npt.NDArray[np.float64]

# Ten figures, as masks over coordinates u and v that are within ±1 inside the figure.
_FIGURES: dict[str, Callable[[Plane, Plane], npt.NDArray[np.bool_]]] = {
    "disc": lambda u, v: np.hypot(u, v) < 0.9,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) < 0.2,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
    "frame": lambda u, v: np.abs(np.maximum(abs(u), abs(v)) - 0.7) < 0.18,
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 0.95),
    "cross": lambda u, v: (np.abs(abs(u) - abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.85),
    "triangle": lambda u, v: (abs(v) < 0.85) & (abs(u) < (v + 0.85) * 0.6),
    "rows": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.85) & (np.sin(7.5 * v) > 0),
    "columns": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.85) & (np.sin(7.5 * u) > 0),
    "checks": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.85) & (np.sin(5 * u) * np.sin(5 * v) > 0),
}


def synthetic_images(train: int = 5000, test: int = 1000, seed: int = 0) -> Images:
    """Balanced classes of ten figures; the same pixels for the same seed.

    Every image has its own position, size, turn, colours, background and noise. Colours hint at the class without giving it away,
    as in photographs; position and size keep a linear model from reading the figure off the pixels.
    """
    if train < 1 or test < 1:
        raise ParameterError(f"both sides take at least one image, got {train} and {test}")
    generator = np.random.default_rng(seed)
    train_x, train_y = _draw(generator, train)
    test_x, test_y = _draw(generator, test)
    return Images("synthetic", train_x, train_y, test_x, test_y, tuple(_FIGURES))


def _draw(generator: np.random.Generator, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    labels = generator.permutation(np.arange(count, dtype=np.int64) % len(_FIGURES))
    images = np.empty((count, *SHAPE), np.uint8)
    axis = np.linspace(-1, 1, SHAPE[-1])
    for row, (label, figure) in enumerate((label, list(_FIGURES.values())[label]) for label in labels):
        x, y = np.meshgrid(axis - generator.uniform(-0.3, 0.3), axis - generator.uniform(-0.3, 0.3))
        turn, size = generator.normal(0, 0.15), generator.uniform(0.45, 0.75)
        u, v = (np.cos(turn) * x + np.sin(turn) * y) / size, (np.cos(turn) * y - np.sin(turn) * x) / size
        hue = label / len(_FIGURES) + generator.normal(0, 0.1)
        color = 0.5 + 0.35 * np.cos(2 * np.pi * (hue - np.arange(3) / 3))
        ground = generator.uniform(0.2, 0.8, 3)[:, None, None] + generator.uniform(-0.2, 0.2) * x
        image = np.where(figure(u, v), color[:, None, None], ground) + generator.normal(0, 0.08, SHAPE)
        images[row] = (255 * image.clip(0, 1)).astype(np.uint8)
    return images, labels
