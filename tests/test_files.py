"""Files are there whole or not at all, whoever else writes and whenever the process ends."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from itertools import count

import pytest

from hesplit_native import files
from hesplit_native.files import make_folder, reserve, write_atomically

ENDS = """
import os, pathlib, sys
from hesplit_native import files
setattr(os, sys.argv[1], lambda *a, **k: os._exit(9))
files.write_atomically(pathlib.Path(sys.argv[2]), b"new" * 1000)
"""


@pytest.fixture
def synced(monkeypatch):
    """What was brought to disk, in order: folders by name, files as the names that they had."""
    found, fsync = [], os.fsync

    def record(descriptor):
        found.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", record)
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"bytes", lambda file: file.write(b"bytes")])
def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(b"old and longer")
    write_atomically(path, content)
    assert path.read_bytes() == b"bytes"
    assert names(tmp_path) == ["a"]


def test_only_the_owner_can_read_it_unless_it_is_shared(tmp_path):
    old = os.umask(0o022)
    try:
        path = tmp_path / "a"
        path.write_bytes(b"")
        path.chmod(0o644)
        write_atomically(path, b"secret")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        write_atomically(path, b"shared", mode=files.SHARED)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    finally:
        os.umask(old)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are read from /proc")
def test_the_file_is_on_disk_before_it_has_its_name_and_the_name_before_the_call_returns(tmp_path, synced):
    write_atomically(tmp_path / "a", b"x")
    assert len(synced) == 2
    assert os.path.basename(synced[0]).startswith(".a.")
    assert synced[1] == str(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are read from /proc")
def test_new_folders_are_on_disk(tmp_path, synced):
    make_folder(tmp_path / "a" / "b")
    assert set(synced) == {str(tmp_path), str(tmp_path / "a")}
    synced.clear()
    make_folder(tmp_path / "a" / "b")
    assert synced == []


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_process_that_ends_before_the_file_has_its_name_leaves_the_old_one(tmp_path, call):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    ended = subprocess.run([sys.executable, "-c", ENDS, call, str(path)], check=False)
    assert ended.returncode == 9
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")  # what the other one left is in nobody's way
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match="space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_folders_that_cannot_be_synced_are_no_failure_but_broken_disks_are(tmp_path, monkeypatch):
    fsync = os.fsync

    def fails_with(code):
        def sync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        return sync

    monkeypatch.setattr(files.os, "fsync", fails_with(errno.EINVAL))
    write_atomically(tmp_path / "a", b"x")
    monkeypatch.setattr(files.os, "fsync", fails_with(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_atomically(tmp_path / "a", b"x")


def together(work, threads=8):
    errors = []

    def run(index):
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []


def test_threads_may_write_one_file(tmp_path):
    path = tmp_path / "a"
    whole = {bytes([index]) * 10_000 for index in range(8)}
    path.write_bytes(bytes(10_000))

    def work(index):
        for _ in range(10):
            write_atomically(path, bytes([index]) * 10_000)
            assert path.read_bytes() in whole

    together(work)
    assert names(tmp_path) == ["a"]


def test_a_name_is_given_once(tmp_path):
    taken = []
    together(lambda _: taken.extend(reserve(tmp_path / str(number) for number in count(1)) for _ in range(10)))
    assert sorted(int(path.name) for path in taken) == list(range(1, 81))
    with pytest.raises(FileExistsError):
        reserve([tmp_path / "1"])
