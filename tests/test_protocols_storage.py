"""Checkpoints on disks that are full, and those that nobody needs any more."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest
import torch

from hesplit_native.errors import DataError, ProtocolError
from hesplit_native.protocols import messages, server, storage
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.storage import CheckpointStore
from hesplit_native.transport import ClientInfo, InProcessChannel

DAY = 86400


def run_of(number):
    return f"{number:032x}"


def weight(value=1.0):
    return {"weight": torch.full((2, 2), value)}


def age(folder, days):
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - days * DAY,) * 2)


@pytest.fixture
def log():
    return []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_checkpoint_that_cannot_be_written_is_an_error_without_paths(make_terms, tmp_path, monkeypatch, log, number):
    store = CheckpointStore(tmp_path, on_event=log.append)
    store.save(run_of(1), 1, "a", make_terms(), weight())

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    for run in (run_of(1), run_of(2)):
        with pytest.raises(ProtocolError, match="could not store the checkpoint") as raised:
            store.save(run, 2, "a", make_terms(), weight())
        assert os.strerror(number) in str(raised.value)
        assert str(tmp_path) not in str(raised.value)
    assert any("was not stored" in line for line in log)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.safetensors"]
    assert store.steps(run_of(1), "a") == [1]


def test_a_client_hears_of_a_full_disk_and_the_log_does_not_lie(make_terms, tmp_path, monkeypatch, log):
    served = Server(checkpoints=tmp_path / "c", output=tmp_path / "o", on_event=log.append)

    def talk():
        channel = InProcessChannel(served.converse(ClientInfo("a")))
        channel.send(messages.pack(MessageType.HELLO, 0, messages.NO_SESSION, messages.text(make_terms().to_json())))
        return channel, messages.unpack(channel.receive()).session

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "write_atomically", fail)
    monkeypatch.setattr(server, "write_atomically", fail)
    channel, nonce = talk()
    channel.send(messages.pack(MessageType.CHECKPOINT, 1, nonce, messages.text('{"step": 0}')))
    reply = messages.unpack(channel.receive())
    assert "the server could not store the checkpoint (No space left" in messages.take_text(reply.body, "error")[0]
    channel, nonce = talk()
    served.sessions[nonce].steps = 1
    channel.send(messages.pack(MessageType.END, 1, nonce))
    assert messages.unpack(channel.receive()).type is MessageType.SUMMARY
    assert any("could NOT be written" in line for line in log)
    assert list((tmp_path / "o").iterdir()) == []


@pytest.mark.parametrize("step", [7, -1, 10**300])
def test_a_client_never_hears_where_checkpoints_are(make_terms, tmp_path, step):
    store = CheckpointStore(tmp_path)
    store.save(run_of(1), 3, "a", make_terms(), weight())
    with pytest.raises(ProtocolError) as raised:
        store.load(run_of(1), step)
    assert str(tmp_path) not in str(raised.value)
    (tmp_path / run_of(1) / "3.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError) as raised:
        store.load(run_of(1), 3)
    assert str(tmp_path) not in str(raised.value)


def test_runs_on_disk_expire(make_terms, tmp_path, log):
    store = CheckpointStore(tmp_path, keep_days=5, on_event=log.append)
    for number in range(4):
        store.save(run_of(number), 1, "a", make_terms(), weight())
    store.finish(run_of(0))
    store.finish(run_of(1))
    age(tmp_path / run_of(1), 2)
    age(tmp_path / run_of(2), 6)
    age(tmp_path / run_of(3), 4)
    (tmp_path / "somebody's").mkdir()
    store.expire()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([run_of(0), run_of(3), "somebody's"])
    assert len(log) == 2
    store.save(run_of(0), 2, "a", make_terms(), weight())  # it goes on after all
    age(tmp_path / run_of(0), 2)
    store.expire()
    assert store.steps(run_of(0), "a") == [1, 2]


def test_a_client_has_so_many_runs_on_disk_and_others_keep_theirs(make_terms, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_RUNS_PER_CLIENT", 3)
    store = CheckpointStore(tmp_path)
    store.save(run_of(100), 1, "b", make_terms(), weight())
    age(tmp_path / run_of(100), 10)
    for number in range(5):
        store.save(run_of(number), 1, "a", make_terms(), weight())
        age(tmp_path / run_of(number), 5 - number)
    assert sorted(path.name for path in tmp_path.iterdir()) == [run_of(number) for number in (2, 3, 4, 100)]


def test_the_values_of_a_checkpoint_come_back(make_terms, tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(run_of(1), 3, "a", make_terms(), weight(2.0))
    client, terms, tensors = store.load(run_of(1), 3)
    assert (client, json.loads(terms.to_json())) == ("a", json.loads(make_terms().to_json()))
    assert torch.equal(tensors["weight"], weight(2.0)["weight"])


@pytest.mark.parametrize("on_disk", [True, False])
def test_one_checkpoint_stays_as_long_as_it_is_to_be_kept(make_terms, tmp_path, on_disk):
    store = CheckpointStore(tmp_path if on_disk else None)
    run = run_of(1)
    store.reserve(run, Server().budget.hold("a"))

    def save(step, **options):
        store.save(run, step, "a", make_terms(), weight(step), **options)
        return store.steps(run, "a")

    save(1)
    save(2, keep=True)
    save(3)
    save(4)
    assert save(5) == [2, 4, 5]
    assert torch.equal(store.load(run, 2)[2]["weight"], weight(2)["weight"])
    save(6, keep=True)
    save(7)
    assert save(8) == [6, 7, 8]
    if on_disk:
        assert CheckpointStore(tmp_path).steps(run, "a") == [6, 7, 8]
        (tmp_path / run / "kept").write_bytes(b"\xff")
        assert save(9) == [8, 9]
