"""Several processes behind one port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hesplit_native.cli.serve import Frozen, Holding, Listening, Model, Training, _check_options
from hesplit_native.cli.workers import check_workers
from hesplit_native.errors import ParameterError, ProtocolError, QueryBudgetExceeded
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Reconnection, RolledBack, Session, resumable
from hesplit_native.transport import ClientInfo, InProcessChannel, connect

linux = pytest.mark.skipif(sys.platform != "linux", reason="SO_REUSEPORT shares connections out on Linux alone")
COMMAND = [sys.executable, "-c", "from hesplit_native.cli import app; app()", "serve", "--port", "0", "--workers", "2"]


class Workers:
    """`serve --workers 2` on a port of its own."""

    def __init__(self, folder, *options):
        self.process = subprocess.Popen(
            [*COMMAND, "--checkpoints", str(folder / "checkpoints"), *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines = []
        while not (self.lines and "listening on" in self.lines[-1]):
            line = self.process.stdout.readline()
            assert line, self.lines
            self.lines.append(line)
        self.port = int(re.search(r":(\d+) ", self.lines[-1])[1])
        self.pids = self.workers()
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self.reader.start()

    def workers(self):
        """Process ids, in the order of their places."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return [int(pid) for pid in children.split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def connect(self):
        return connect(f"127.0.0.1:{self.port}", client_id="alice")

    def session(self, terms, **more):
        return Session(self.connect(), terms, b"", Phases(), **more)

    def session_at(self, place, terms, **more):
        """A session of that process."""
        for _ in range(60):
            session = self.session(terms, **more)
            if session.nonce[0] == place:
                return session
            session.leave()
        raise AssertionError(f"no connection came to process {place}")

    def end(self):
        self.process.kill()
        self.process.wait(30)
        self.reader.join(30)
        self.process.stdout.close()
        assert eventually(lambda: not any(map(alive, self.pids))), "processes without a parent"


@pytest.fixture
def serving(tmp_path):
    started = []

    def start(*options):
        started.append(Workers(tmp_path, *options))
        return started[-1]

    yield start
    for workers in started:
        workers.end()


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False


def eventually(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def matrix(rows, columns):
    return messages.matrix(np.ones((rows, columns), np.float32), "values")


def learn(session):
    session.exchange(MessageType.FORWARD, MessageType.LOGITS, matrix(4, 6))
    session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, matrix(4, 3))


@linux
def test_a_process_that_is_killed_is_replaced_and_its_sessions_go_on_from_their_checkpoints(serving, make_terms):
    workers = serving()
    reconnection = Reconnection(workers.connect)
    first, second = (workers.session_at(place, make_terms(), reconnection=reconnection) for place in (0, 1))
    for session in (first, second):
        learn(session)
        session.checkpoint(1)
    os.kill(workers.pids[0], signal.SIGKILL)
    learn(second)  # the other process has heard of nothing
    with pytest.raises(RolledBack) as rolled:
        learn(first)
    assert rolled.value.checkpoints == [1]
    first.restore(b"", 1, workers.connect)
    learn(first)
    assert eventually(lambda: any("another takes its place" in line for line in workers.lines))
    assert eventually(lambda: len(workers.workers()) == 2)
    again = workers.session_at(0, make_terms())
    learn(again)
    for session in (first, second, again):
        session.leave()


@linux
def test_a_client_that_reconnects_comes_back_to_its_session(serving, make_terms):
    workers = serving()
    for place in (0, 1):
        session = workers.session_at(place, make_terms(), reconnection=Reconnection(workers.connect))
        nonce = session.nonce
        for _ in range(4):
            learn(session)
            session.channel.close()  # the next request goes over another connection, to whichever process
        learn(session)
        assert session.nonce == nonce
        session.leave()
    assert any("its session is with another process" in line for line in workers.lines)


@linux
def test_sigterm_ends_all_of_them(serving, make_terms):
    workers = serving()
    session = workers.session(make_terms())
    learn(session)
    workers.process.terminate()
    assert workers.process.wait(30) == 128 + signal.SIGTERM
    assert not any(map(alive, workers.pids))
    workers.reader.join(30)
    assert not any("Traceback" in line for line in workers.lines)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", workers.port))
    session.channel.close()


@linux
def test_none_outlives_the_one_that_started_them(serving):
    workers = serving()
    assert len(workers.pids) == 2
    workers.process.kill()
    assert eventually(lambda: not any(map(alive, workers.pids)))


@linux
def test_they_count_queries_together(serving, make_terms, tmp_path):
    workers = serving("--queries", "5", "--query-ledger", str(tmp_path / "queries"))
    sessions = [workers.session_at(place, make_terms()) for place in (0, 1)]
    for turn in range(5):
        sessions[turn % 2].exchange(MessageType.EVALUATE, MessageType.LOGITS, matrix(1, 6))
    for session in sessions:
        with pytest.raises(QueryBudgetExceeded):
            session.exchange(MessageType.EVALUATE, MessageType.LOGITS, matrix(1, 6))
        session.leave()


@linux
def test_they_end_after_so_many_sessions_of_all_together(serving, make_terms):
    workers = serving("--sessions", "2")
    for _ in range(2):
        session = workers.session(make_terms())
        learn(session)
        session.leave()
    assert workers.process.wait(60) == 0
    assert not any(map(alive, workers.pids))


@linux
def test_a_taken_port_is_an_error(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--port", port, "--checkpoints", str(tmp_path)], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 1
    assert "cannot listen" in done.stderr


@linux
def test_what_several_processes_cannot_do_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="--checkpoints"):
        check_workers(Listening(workers=2), Training())
    with pytest.raises(ParameterError, match="--metrics"):
        check_workers(Listening(workers=2, metrics=":0"), Training(checkpoints=tmp_path))
    with pytest.raises(ParameterError, match="--workers goes with layers that are trained"):
        _check_options(Listening(workers=2), Holding(served=Model(model=tmp_path, frozen=Frozen())))
    check_workers(Listening(workers=2), Training(checkpoints=tmp_path))


def test_groups_that_must_meet_in_one_process_are_refused(make_terms):
    alone, one_of_two = Server(), Server(place=1)
    for members in (0, 2):
        terms = make_terms(group=f"group of {members} of ours", members=members)
        Session(InProcessChannel(alone.converse(ClientInfo("a"))), terms, b"", Phases())
        with pytest.raises(ProtocolError, match="several processes"):
            Session(InProcessChannel(one_of_two.converse(ClientInfo("a"))), terms, b"", Phases())
    # Where averages name checkpoints nobody has to be there.
    session = Session(
        InProcessChannel(one_of_two.converse(ClientInfo("a"))), make_terms(group="g" * 16, members=1), b"", Phases()
    )
    assert session.nonce[0] == 1


def test_a_session_of_another_process_is_not_answered_for(make_terms):
    server, other = Server(place=0), Server(place=1)
    session = Session(InProcessChannel(server.converse(ClientInfo("a"))), make_terms(), b"", Phases())
    session.checkpoint(0)
    with pytest.raises(ProtocolError, match="the server has ended this session"):
        resumable(InProcessChannel(other.converse(ClientInfo("a"))), session.run, session.nonce)
    assert resumable(InProcessChannel(server.converse(ClientInfo("a"))), session.run, session.nonce) is None
