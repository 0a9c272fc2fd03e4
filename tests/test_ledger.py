"""Releases are counted by key, whoever makes them: clients, threads, processes, and processes that are killed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native import files
from hesplit_native.layer.keys import ReleaseLedger

#: Takes from a ledger until it is refused, and prints how often it was not; argv: key file, ledger.
TAKE_ALL = """
import sys
import hesplit_native as hn
ledger = hn.ReleaseLedger(sys.argv[2], hn.SecretKey.load(sys.argv[1]))
count = 0
try:
    while True:
        ledger.take()
        count += 1
except hn.ParameterError:
    print(count)
"""

#: Ends in the middle of the write of its first reservation.
KILLED = """
import os, sys
import hesplit_native as hn
ledger = hn.ReleaseLedger(sys.argv[2], hn.SecretKey.load(sys.argv[1]))
setattr(os, sys.argv[3], lambda *a, **k: os._exit(9))
ledger.take()
"""


def new_key(releases):
    return hn.SecretKey.generate(
        hn.Parameters.recommend(in_features=16, out_features=3, batch_size=2, releases=releases)
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "releases.json"


def in_file(path):
    return json.loads(path.read_text(encoding="utf-8"))["released"]


def release(client, server=None):
    """One release by this client."""
    server = server or hn.LinearServer(client.public_material(), np.zeros((3, 16)))
    return client.decrypt_for_release(server.forward(client.encrypt(np.ones((2, 16)))))


def take_all(ledger):
    """How often a ledger can be taken from."""
    count = 0
    while True:
        try:
            ledger.take()
        except hn.ParameterError:
            return count
        count += 1


def together(works):
    """What each of these returns, called at once."""
    found = {}
    start = threading.Barrier(len(works))

    def run(index, work):
        start.wait()
        found[index] = work()

    threads = [threading.Thread(target=run, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[index] for index in range(len(works))]


class TestInMemory:
    def test_clients_of_one_key_share_its_releases(self):
        key = new_key(2)
        clients = [hn.LinearClient(key, 16, 3) for _ in range(3)]
        for client in clients[:2]:
            release(client)
        for client in clients:
            with pytest.raises(hn.ParameterError, match="allow 2 flooded releases under one key"):
                release(client)

    def test_layers_of_other_shapes_share_them_too(self):
        key = new_key(1)
        release(hn.LinearClient(key, 16, 3))
        small = hn.LinearClient(key, 4, 2)
        reply = hn.LinearServer(small.public_material(), np.zeros((2, 4))).forward(small.encrypt(np.ones((1, 4))))
        with pytest.raises(hn.ParameterError, match="allow 1 flooded"):
            small.decrypt_for_release(reply)

    def test_a_key_that_is_read_again_is_the_same_key(self, tmp_path):
        key = new_key(3)
        release(hn.LinearClient(key, 16, 3))
        key.save(tmp_path / "key")
        name = key.id
        release(hn.LinearClient(hn.SecretKey.load(tmp_path / "key"), 16, 3))
        del key  # nobody holds it
        again = hn.SecretKey.load(tmp_path / "key")
        assert (again.id, again._native.released) == (name, 2)
        release(hn.LinearClient(again, 16, 3))
        with pytest.raises(hn.ParameterError, match="allow 3"):
            release(hn.LinearClient(again, 16, 3))

    def test_other_keys_count_for_themselves(self):
        for _ in range(2):
            key = new_key(1)
            assert key._native.released == 0
            release(hn.LinearClient(key, 16, 3))
            assert key._native.released == 1

    def test_clients_in_threads_release_no_more_than_is_allowed(self):
        key = new_key(20)
        done = []

        def work():
            client = hn.LinearClient(key, 16, 3)
            server = hn.LinearServer(client.public_material(), np.zeros((3, 16)))
            for _ in range(10):
                try:
                    release(client, server)
                except hn.ParameterError:
                    continue
                done.append(1)

        together([work] * 4)
        assert len(done) == key._native.released == 20


class TestInAFile:
    def test_two_ledgers_share_what_is_allowed(self, path):
        key = new_key(10)
        ledgers = [ReleaseLedger(path, key) for _ in range(2)]
        for _ in range(5):
            for ledger in ledgers:
                ledger.take()
        for ledger in [*ledgers, ReleaseLedger(path, key)]:
            with pytest.raises(hn.ParameterError, match="allow 10 flooded releases"):
                ledger.take()
        assert in_file(path) == 10

    @pytest.mark.parametrize("releases", [1, 65, 5000])
    def test_none_is_lost_between_ledgers_that_are_used_up(self, path, releases):
        key = new_key(releases)
        one, two = (ReleaseLedger(path, key) for _ in range(2))
        one.take()
        assert 1 + take_all(two) + take_all(one) == releases
        assert in_file(path) == releases

    def test_the_file_never_counts_backwards(self, path):
        key = new_key(100_000)
        ledgers = [ReleaseLedger(path, key) for _ in range(3)]
        before = 0
        for made in range(1, 9001):
            ledgers[made % 3].take()
            counted = in_file(path)
            assert counted >= max(before, made)
            before = counted

    def test_a_file_that_was_removed_is_written_with_what_is_known(self, path):
        ledger = ReleaseLedger(path, new_key(100))
        ledger.take()
        before = in_file(path)
        path.unlink()
        while not path.exists():
            ledger.take()
        assert in_file(path) > before

    def test_threads_take_from_one_ledger(self, path):
        ledger = ReleaseLedger(path, new_key(3000))
        assert sum(together([lambda: take_all(ledger)] * 6)) == 3000

    def test_threads_take_from_ledgers_of_their_own(self, path):
        key = new_key(700)
        assert sum(together([lambda: take_all(ReleaseLedger(path, key))] * 6)) == 700
        assert in_file(path) == 700

    def test_processes_share_a_file(self, tmp_path, path):
        new_key(900).save(tmp_path / "key")
        command = [sys.executable, "-c", TAKE_ALL, str(tmp_path / "key"), str(path)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        counts = [int(process.communicate()[0]) for process in processes]
        assert sum(counts) == 900
        assert in_file(path) == 900

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads
    def test_a_forked_child_reserves_for_itself(self, path):
        ledger = ReleaseLedger(path, new_key(640))
        ledger.take()
        context = multiprocessing.get_context("fork")
        counts = context.SimpleQueue()
        child = context.Process(target=lambda: counts.put(take_all(ledger)))
        child.start()
        child.join()
        assert counts.get() + 1 + take_all(ledger) == 640

    @pytest.mark.parametrize("call", ["replace", "fsync"])
    def test_a_process_that_is_killed_in_a_write_leaves_the_count_and_no_lock(self, tmp_path, path, call):
        key = new_key(200)
        key.save(tmp_path / "key")
        ledger = ReleaseLedger(path, key)
        ledger.take()
        before = in_file(path)
        command = [sys.executable, "-c", KILLED, str(tmp_path / "key"), str(path), call]
        assert subprocess.run(command, check=False).returncode == 9
        assert in_file(path) == before
        assert 1 + take_all(ledger) + take_all(ReleaseLedger(path, key)) == 200

    def test_nothing_is_released_that_cannot_be_counted(self, path, monkeypatch):
        key = new_key(5)
        client = hn.LinearClient(key, 16, 3, ledger=ReleaseLedger(path, key))

        def full(_descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(OSError, match="space"):
                release(client)
        assert key._native.released == 0
        release(client)

    def test_releases_without_a_ledger_are_in_the_next_reservation(self, path):
        key = new_key(3)
        release(hn.LinearClient(key, 16, 3))
        ledger = ReleaseLedger(path, key)
        release(hn.LinearClient(key, 16, 3, ledger=ledger))
        assert in_file(path) == 2
        release(hn.LinearClient(key, 16, 3))
        with pytest.raises(hn.ParameterError):
            ledger.take()

    def test_a_client_knows_what_other_processes_released(self, path):
        key = new_key(4)
        path.write_text(json.dumps({"key": key.id, "released": 3}))
        ReleaseLedger(path, key)
        release(hn.LinearClient(key, 16, 3))
        with pytest.raises(hn.ParameterError, match="allow 4"):
            release(hn.LinearClient(key, 16, 3))

    def test_only_the_owner_can_read_it(self, path):
        ReleaseLedger(path, new_key(1)).take()
        assert path.stat().st_mode & 0o077 == 0
