"""CIFAR-10 as people download it: Python version, archives, parent folders; and files that only look like it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native.triad import cifar10, load_cifar10
from hesplit_native.triad.cifar10_batches import read_batch

ROWS = 20
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(cifar10, "_ROWS_PER_FILE", ROWS)


def batch(seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (ROWS, 3072), np.uint8), generator.integers(0, 10, ROWS).tolist()


def binary(seed):
    pixels, labels = batch(seed)
    return np.c_[np.array(labels, np.uint8), pixels].tobytes()


def python2(seed):
    """As Python 2 pickled the official files with protocol 2: strings of bytes, numpy.core."""
    pixels, labels = batch(seed)

    def text(value):
        value = value.encode("latin-1") if isinstance(value, str) else value
        return (
            b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value
        )

    short = b"".join(b"K" + bytes([label]) for label in labels)
    shape = b"M" + ROWS.to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    dtype = (
        b"cnumpy\ndtype\nq\x05"
        + text("u1")
        + b"K\x00K\x01\x87Rq\x06(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + text("b") + b"\x87Rq\x09"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    names = b"]q\x0a(" + b"".join(text(f"image_{i}.png") for i in range(ROWS)) + b"e"
    return (
        b"\x80\x02}q\x01(" + text("batch_label") + text("training batch 1 of 5") + text("labels") + b"]q\x02(" + short + b"e"
        + text("data") + array + text("filenames") + names + b"u."
    )  # fmt: skip


def python3(protocol):
    def dump(seed):
        pixels, labels = batch(seed)
        return pickle.dumps(
            {b"batch_label": b"x", b"labels": labels, b"data": pixels, b"filenames": [b"a"] * ROWS}, protocol
        )

    return dump


def array_labels(seed):
    pixels, labels = batch(seed)
    return pickle.dumps({"data": np.asfortranarray(pixels), "labels": np.array(labels, np.int64)}, 4)


WRITERS = [python2, *[python3(protocol) for protocol in (2, 3, 4, 5)], array_labels]


def write(folder, writer, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(BATCHES):
        (folder / f"{name}{suffix}").write_bytes(writer(seed))
    return folder


def pack(path, folder, top, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, top)
    return path


@pytest.fixture
def expected(tmp_path):
    return load_cifar10(write(tmp_path / "expected", binary, ".bin"))


def same(found, expected):
    for name in ("train_x", "train_y", "test_x", "test_y"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).flags.writeable
    assert found.classes == expected.classes


@pytest.mark.parametrize("writer", WRITERS)
def test_the_python_version_says_the_same_as_the_binary_one(tmp_path, expected, writer):
    same(load_cifar10(write(tmp_path / "py", writer)), expected)


def test_what_python_2_wrote_is_a_pickle_of_the_official_form():
    pixels, labels = batch(3)
    official = pickle.loads(python2(3), encoding="bytes")  # noqa: S301, it was made here
    np.testing.assert_array_equal(official[b"data"], pixels)
    assert official[b"labels"] == labels


@pytest.mark.parametrize(("writer", "suffix", "folder"), [(binary, ".bin", "bin"), (python2, "", "py")])
def test_parent_folders_and_archives(tmp_path, expected, writer, suffix, folder):
    name = f"cifar-10-batches-{folder}"
    write(tmp_path / "parent" / name, writer, suffix)
    same(load_cifar10(tmp_path / "parent"), expected)
    (tmp_path / "downloads").mkdir()
    archive = pack(tmp_path / "downloads" / "cifar-10-x.tar.gz", tmp_path / "parent" / name, name)
    same(load_cifar10(archive), expected)
    same(load_cifar10(tmp_path / "downloads"), expected)
    same(load_cifar10(pack(tmp_path / "plain.tar", tmp_path / "parent" / name, ".", "w:")), expected)


# Files that only look like it


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("where", ["whole", "labels", "data", "name"])
def test_nothing_that_a_pickle_names_is_run(tmp_path, protocol, where):
    target = tmp_path / "was-here"
    attack = Attack(os.mkdir, str(target))
    pixels, labels = batch(0)
    content = {"data": pixels, "labels": labels, "filenames": []}
    content["filenames" if where == "name" else where] = attack
    data = pickle.dumps(attack if where == "whole" else content, protocol)
    with pytest.raises(hn.DataError, match=r"first.*(asks for|uses the opcode)"):
        read_batch(data, "first")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [0] * ROWS}, "'data'"),
        ({"data": np.zeros((ROWS, 3072), np.uint8)}, "'labels'"),
        ({"data": np.zeros((ROWS, 3072), np.float32), "labels": [0] * ROWS}, "type 'f4'"),
        ({"data": np.zeros((ROWS, 3072), object), "labels": [0] * ROWS}, "type 'O8'"),
        ({"data": np.zeros((ROWS, 3072), np.int8), "labels": [0] * ROWS}, "expected uint8"),
        ({"data": np.zeros((ROWS, 3071), np.uint8), "labels": [0] * ROWS}, "expected uint8"),
        ({"data": np.zeros((ROWS, 3072), np.uint8), "labels": [0] * 19}, "19"),
        ({"data": np.zeros((ROWS, 3072), np.uint8), "labels": [0.5] * ROWS}, "opcode BINFLOAT"),
        ({"data": np.zeros((ROWS, 3072), np.uint8), "labels": ["0"] * ROWS}, "no integers"),
        ({"data": np.zeros((ROWS, 3072), np.uint8), "labels": [10] * ROWS}, "label 10 of row 0"),
        ({"data": np.zeros((ROWS, 3072), np.uint8), "labels": np.zeros(ROWS, ">i4")}, "byte order"),
        ([1, 2], "a list where a dict belongs"),
        ({"fine_labels": [0], "coarse_labels": [0], "data": np.zeros((1, 3072), np.uint8)}, "'labels'"),  # CIFAR-100
    ],
)
def test_other_content_is_refused(tmp_path, content, words):
    write(tmp_path, python3(4))
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(hn.DataError, match="data_batch_3") as caught:
        load_cifar10(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("writer", WRITERS)
def test_damaged_pickles_are_refused_or_of_the_right_form(writer):
    generator = np.random.default_rng(0)
    whole = writer(0)
    for keep in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        with pytest.raises(hn.DataError):
            read_batch(whole[:keep], "short")
    for at in [*range(200), *range(len(whole) - 200, len(whole))]:
        broken = bytearray(whole)
        broken[at] ^= 1 << int(generator.integers(8))
        try:
            pixels, labels = read_batch(bytes(broken), "broken")
        except hn.DataError:
            continue
        assert pixels.dtype.kind in "iu"
        assert labels.dtype.kind in "iu"


@given(st.binary(max_size=100))
def test_no_bytes_raise_anything_else(data):
    for lead in (b"", b"\x80\x04}(", b"\x80\x02cnumpy\ndtype\n"):
        with pytest.raises(hn.DataError):
            read_batch(lead + data, "any")


def test_a_pickle_of_a_huge_memo_or_length_takes_no_memory():
    for data in (
        b"\x80\x04}r\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"x.",
        b"\x80\x04" + b"N" * 1_100_000,
    ):
        with pytest.raises(hn.DataError):
            read_batch(data, "huge")


def member(name, data=b"", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, io.BytesIO(data)


def archive(path, members):
    with tarfile.open(path, "w:gz") as file:
        for info, data in members:
            file.addfile(info, data)
    return path


def test_members_are_neither_unpacked_nor_followed(tmp_path, expected):
    good = [member(f"top/{name}.bin", binary(seed)) for seed, name in enumerate(BATCHES)]
    odd = [
        member("../../outside", b"x"),
        member("/absolute", b"x"),
        member("data_batch_1.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("data_batch_2.bin", type=tarfile.LNKTYPE, linkname="top/test_batch.bin"),
        member("data_batch_3.bin", type=tarfile.FIFOTYPE),
    ]
    folder = tmp_path / "a"
    folder.mkdir()
    same(load_cifar10(archive(folder / "a.tar.gz", [*odd, *good])), expected)
    assert [path.name for path in folder.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda good: good[:3], "no file data_batch_4.bin"),
        (lambda good: [*good, good[0]], "twice"),
        (lambda good: [], "no file data_batch_1"),
        (lambda good: [*good[:5], member("test_batch.bin", b"short")], "5 bytes instead of"),
    ],
)
def test_incomplete_archives_are_named(tmp_path, change, words):
    good = [member(f"{name}.bin", binary(seed)) for seed, name in enumerate(BATCHES)]
    path = archive(tmp_path / "c.tar.gz", [(info, io.BytesIO(data.getvalue())) for info, data in change(good)])
    with pytest.raises(hn.DataError, match=r"c\.tar\.gz") as caught:
        load_cifar10(path)
    assert words in str(caught.value)


def test_bombs_and_damage(tmp_path, monkeypatch):
    path = pack(tmp_path / "c.tar.gz", write(tmp_path / "b", binary, ".bin"), "b")
    whole = path.read_bytes()
    for data in (b"", b"\x1f\x8b", whole[: len(whole) // 2], b"text", whole[:1000] + bytes(100) + whole[1100:]):
        path.write_bytes(data)
        with pytest.raises(hn.DataError, match=r"c\.tar\.gz"):
            load_cifar10(path)
    monkeypatch.setattr(cifar10, "_MAX_TAR_BYTES", 1 << 20)
    path.write_bytes(gzip.compress(bytes((1 << 20) + 1)))
    with pytest.raises(hn.DataError, match="would unpack to more"):
        load_cifar10(path)
    monkeypatch.setattr(cifar10, "_MAX_BATCH_BYTES", 1000)
    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "data_batch_1").write_bytes(bytes(1001))
    with pytest.raises(hn.DataError, match="1001 bytes, more than"):
        load_cifar10(tmp_path / "py")
