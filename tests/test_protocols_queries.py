"""The budget of queries: who asks, over which connection and of which server, nobody gets more answers than allowed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native import files
from hesplit_native.errors import ParameterError, ProtocolError, QueryBudgetExceeded
from hesplit_native.layer.frozen import FrozenServer
from hesplit_native.layer.weights import Weights
from hesplit_native.privacy.attacks import weights as attack
from hesplit_native.protocols import PROTOCOLS, messages
from hesplit_native.protocols.frozen import FrozenLayer, FrozenService
from hesplit_native.protocols.halves import ClientSetup
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.queries import QueryLedger, default_queries, rows_that_solve
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Reconnection, Session
from hesplit_native.transport import ClientInfo, GrpcServer, InProcessChannel, make_authority, make_client, make_server

ALICE, BOB = (ClientInfo(name, authenticated=True) for name in ("alice", "bob"))
SHAPE = {"fc": (9, 14), "head": (4, 14)}

#: Serves a layer and asks it for three rows, in a process that ends when it is to multiply; argv: the ledger's folder.
KILLED = """
import os, sys
import numpy as np
import torch
import hesplit_native as hn
from hesplit_native.layer.frozen import FrozenServer
FrozenServer.multiply = lambda self, request: os._exit(9)
with hn.serve(torch.nn.ModuleDict({"fc": torch.nn.Linear(14, 9)}), port=0, queries=10, query_ledger=sys.argv[1]) as server:
    hn.connect(server).multiply("fc", np.ones((3, 14)))
"""

#: Takes 2 rows at a time until it is refused, and prints how many it got; argv: the ledger's folder.
TAKE_ALL = """
import sys
from pathlib import Path
from hesplit_native.errors import QueryBudgetExceeded
from hesplit_native.protocols.queries import QueryLedger
from hesplit_native.transport import ClientInfo
ledger, count = QueryLedger(Path(sys.argv[1]), 61), 0
try:
    while True:
        ledger.take(ClientInfo("alice", authenticated=True), ("fc",), 2)
        count += 2
except QueryBudgetExceeded:
    print(count)
"""


def in_file(folder, client="alice"):
    return json.loads((folder / f"{client}.json").read_text(encoding="utf-8"))["answered"]


def model_server(ledger):
    layers = [
        FrozenLayer(name, FrozenServer(np.ones(shape)), FrozenServer(np.ones(shape[::-1])))
        for name, shape in SHAPE.items()
    ]
    return FrozenService(layers, memory=1 << 27, queries=ledger)


class Known:
    """A server, as it is reached by somebody with a certificate."""

    def __init__(self, server, client):
        self.server, self.client = server, client

    def converse(self, _anybody):
        return self.server.converse(self.client)


def connect(server, client=ALICE):
    return hn.connect(Known(server, client))


def ask(connection, rows, layer="fc"):
    return connection.multiply(layer, np.ones((rows, 14)))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "queries"


class TestDefault:
    def test_is_half_of_what_solves_the_layer(self):
        assert default_queries(256, 5) == 128
        assert default_queries(255, 5, bias=False) == 127
        assert default_queries(1, 5) == 1

    def test_backward_answers_are_columns_of_the_weights(self):
        assert rows_that_solve(256, 5, backward=True) == 5
        assert default_queries(256, 5, backward=True) == 2

    @pytest.mark.parametrize("layer", [{"in_features": 1, "out_features": 3, "bias": False},
                                       {"in_features": 30, "out_features": 1, "backward": True}])  # fmt: skip
    def test_layers_that_one_answer_gives_away_have_none(self, layer):
        with pytest.raises(ParameterError, match="one answer"):
            default_queries(**layer)

    @pytest.mark.parametrize("bias", [True, False])
    def test_rows_that_solve_do_and_one_less_does_not(self, bias):
        rng = np.random.default_rng(0)
        weight = rng.normal(size=(3, 12))
        offset = rng.normal(size=3) if bias else np.zeros(3)
        count = rows_that_solve(12, 3, bias=bias)
        errors = []
        for rows in (count, count - 1):
            x = rng.normal(size=(rows, 12))
            y = x @ weight.T + offset
            found = attack.from_answers(x, y)[0] if bias else np.linalg.lstsq(x, y, rcond=None)[0].T
            errors.append(np.abs(found - weight).max())
        assert errors[0] < 1e-8
        assert errors[1] > 1e-2


class TestLedger:
    def test_a_client_gets_so_many_rows_of_each_layer(self, folder):
        ledger = QueryLedger(folder, 10)
        ledger.take(ALICE, ("fc",), 6)
        ledger.take(ALICE, ("head",), 10)
        ledger.take(BOB, ("fc",), 10)
        ledger.take(ALICE, ("fc",), 4)
        with pytest.raises(QueryBudgetExceeded, match=r"10 .* 0 are left: no more"):
            ledger.take(ALICE, ("fc",), 1)
        assert (in_file(folder), in_file(folder, "bob")) == ({"fc": 10, "head": 10}, {"fc": 10})

    def test_what_is_too_much_is_refused_whole_with_what_would_do(self, folder):
        ledger = QueryLedger(folder, 10)
        ledger.take(ALICE, ("fc",), 3)
        with pytest.raises(QueryBudgetExceeded, match=r"8 rows take 8 answers about fc.* 7 are left: ask with 7 rows"):
            ledger.take(ALICE, ("head", "fc"), 8)
        with pytest.raises(QueryBudgetExceeded, match=r"4 rows of training take 8 answers .* ask with 3 rows"):
            ledger.take(ALICE, ("fc",), 4, answers=2)
        assert in_file(folder) == {"fc": 3}
        ledger.take(ALICE, ("fc",), 7)

    def test_without_a_certificate_all_are_one(self, folder):
        ledger = QueryLedger(folder, 10)
        ledger.take(ClientInfo("one"), ("fc",), 6)
        ledger.take(ClientInfo("one", authenticated=True), ("fc",), 10)
        with pytest.raises(QueryBudgetExceeded, match=r"all clients without a certificate together 10 .* 4 are left"):
            ledger.take(ClientInfo("another"), ("fc",), 5)

    def test_no_budget_is_below_one(self, folder):
        with pytest.raises(ParameterError, match="1 answer or more"):
            QueryLedger(folder, 0)

    def test_it_goes_on_from_its_file_and_never_backwards(self, folder):
        ledger = QueryLedger(folder, 10)
        ledger.take(ALICE, ("fc",), 4)
        old = (folder / "alice.json").read_bytes()
        ledger.take(ALICE, ("fc",), 5)
        for backup in (old, None):
            (folder / "alice.json").unlink()
            if backup is not None:
                (folder / "alice.json").write_bytes(backup)
            with pytest.raises(QueryBudgetExceeded, match="1 are left"):
                ledger.take(ALICE, ("fc",), 2)
        ledger.take(ALICE, ("fc",), 1)
        assert in_file(folder) == {"fc": 10}
        with pytest.raises(QueryBudgetExceeded):
            QueryLedger(folder, 10).take(ALICE, ("fc",), 1)
        QueryLedger(folder, 11).take(ALICE, ("fc",), 1)

    def test_threads_with_one_ledger_or_several_get_no_more_in_all(self, folder):
        shared = QueryLedger(folder, 100)
        got, start = [], threading.Barrier(6)

        def work(ledger, rows):
            start.wait()
            while True:
                try:
                    ledger.take(ALICE, ("fc",), rows)
                except QueryBudgetExceeded:
                    if rows == 1:
                        return
                    rows = 1
                else:
                    got.append(rows)

        ledgers = [shared, shared, shared, QueryLedger(folder, 100), QueryLedger(folder, 100), shared]
        threads = [threading.Thread(target=work, args=(ledger, 1 + n)) for n, ledger in enumerate(ledgers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(got) == in_file(folder)["fc"] == 100

    def test_processes_share_a_folder(self, folder):
        command = [sys.executable, "-c", TAKE_ALL, str(folder)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        assert sum(int(process.communicate()[0]) for process in processes) == in_file(folder)["fc"] == 60

    @pytest.mark.parametrize("limit", [65, 5000, 100_000])
    def test_a_large_budget_is_counted_ahead_and_none_of_it_is_lost(self, folder, limit, monkeypatch):
        from hesplit_native.protocols import queries

        writes = []
        monkeypatch.setattr(queries, "write_atomically", lambda *a: (writes.append(a), files.write_atomically(*a)))
        ledgers = [QueryLedger(folder, limit) for _ in range(2)]
        got = 0
        for rows in (max(1, limit // 500), 1):
            for ledger in ledgers:
                while True:
                    before = in_file(folder).get("fc", 0) if (folder / "alice.json").exists() else 0
                    try:
                        ledger.take(ALICE, ("fc",), rows)
                    except QueryBudgetExceeded:
                        break
                    got += rows
                    assert in_file(folder)["fc"] >= max(got, before)
        assert got == in_file(folder)["fc"] == limit
        assert len(writes) < max(66, limit // 4)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads
    def test_a_forked_child_counts_for_itself(self, folder):
        ledger = QueryLedger(folder, 6400)
        ledger.take(ALICE, ("fc",), 1)
        counted = in_file(folder)["fc"]
        assert counted > 1
        child = os.fork()
        if child == 0:
            ledger.take(ALICE, ("fc",), 1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert in_file(folder)["fc"] > counted

    def test_what_cannot_be_counted_is_refused_without_saying_where(self, folder, monkeypatch):
        said = []
        ledger = QueryLedger(folder, 10, on_event=said.append)

        def full(_descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(ProtocolError, match="could not count") as refusal:
                ledger.take(ALICE, ("fc",), 1)
        assert not isinstance(refusal.value, QueryBudgetExceeded)
        assert str(folder) not in str(refusal.value)
        assert str(folder) in said[0]
        ledger.take(ALICE, ("fc",), 10)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff", b"{}", b'{"answered": []}', b'{"answered": {"fc": -1}}', b'{"answered": {"fc": true}}'],
    )
    def test_a_damaged_file_is_no_new_budget(self, folder, content):
        ledger = QueryLedger(folder, 10)
        (folder / "alice.json").write_bytes(content)
        with pytest.raises(ProtocolError, match="could not count"):
            ledger.take(ALICE, ("fc",), 1)
        assert (folder / "alice.json").read_bytes() == content
        ledger.take(BOB, ("fc",), 1)

    def test_only_the_owner_can_read_it(self, folder):
        QueryLedger(folder, 10).take(ALICE, ("fc",), 1)
        assert (folder / "alice.json").stat().st_mode & 0o077 == 0


class TestModelServer:
    def test_connections_and_starts_share_one_budget(self, folder):
        server = model_server(QueryLedger(folder, 10))
        for _ in range(2):
            ask(connect(server), 3)
        again = connect(model_server(QueryLedger(folder, 10)))
        with pytest.raises(QueryBudgetExceeded, match=r"5 rows take 5 answers about fc; .* 10 .* 4 are left"):
            ask(again, 5)
        ask(again, 4)  # the refusal took nothing, and the connection goes on
        with pytest.raises(QueryBudgetExceeded, match="0 are left"):
            ask(again, 1)
        assert ask(connect(server, BOB), 10).shape == (10, 9)

    def test_backward_rows_count_as_forward_ones(self, folder):
        connection = connect(model_server(QueryLedger(folder, 10)))
        ask(connection, 6)
        connection.multiply("fc", np.ones((4, 9)), "backward")
        with pytest.raises(QueryBudgetExceeded):
            connection.multiply("fc", np.ones((1, 9)), "backward")

    def test_layers_that_are_asked_together_are_answered_all_or_none(self, folder):
        connection = connect(model_server(QueryLedger(folder, 10)))
        ask(connection, 7, "head")
        with pytest.raises(QueryBudgetExceeded, match="about head"):
            connection.multiply_together(["fc", "head"], np.ones((4, 14)))
        connection.multiply_together(["fc", "head"], np.ones((3, 14)))
        assert in_file(folder) == {"fc": 3, "head": 10}

    def test_hints_and_offers_are_no_answers(self, folder):
        ask(connect(model_server(QueryLedger(folder, 10))), 1)
        assert in_file(folder) == {"fc": 1}

    def test_nothing_is_computed_for_what_is_refused(self, folder, monkeypatch):
        connection = connect(model_server(QueryLedger(folder, 2)))
        ask(connection, 2)
        monkeypatch.setattr(FrozenServer, "multiply", lambda self, request: pytest.fail("multiplied"))
        with pytest.raises(QueryBudgetExceeded):
            ask(connection, 1)

    def test_two_servers_share_a_folder_over_the_network(self, folder):
        model = torch.nn.ModuleDict({"fc": torch.nn.Linear(14, 9)})
        one, two = (hn.serve(model, port=0, queries=10, query_ledger=folder) for _ in range(2))
        with one, two, hn.connect(one.address) as first, hn.connect(two.address, client_id="other") as second:
            ask(first, 6)
            with pytest.raises(hn.QueryBudgetExceeded, match=r"together 10 .* 4 are left: ask with 4 rows"):
                ask(second, 5)
            ask(second, 4)
        assert in_file(folder, "without a certificate") == {"fc": 10}

    def test_under_tls_each_certificate_has_its_own(self, folder, tmp_path):
        authority = tmp_path / "tls"
        authority.mkdir()
        make_authority(authority)
        make_server(authority, ["localhost", "127.0.0.1"])
        for name in ("alice", "bob"):
            make_client(authority, name)
        model = torch.nn.ModuleDict({"fc": torch.nn.Linear(14, 9)})
        with hn.serve(model, port=0, tls=authority, queries=3, query_ledger=folder) as server:
            for name in ("alice", "bob"):
                with hn.connect(f"localhost:{server.port}", tls=authority, client_id=name) as connection:
                    ask(connection, 3)
                    with pytest.raises(QueryBudgetExceeded, match="one client 3 "):
                        ask(connection, 1)
        assert in_file(folder) == in_file(folder, "bob") == {"fc": 3}

    def test_what_was_counted_before_a_kill_stays_counted(self, folder):
        assert subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False).returncode == 9
        assert in_file(folder, "without a certificate") == {"fc": 3}
        with pytest.raises(QueryBudgetExceeded, match="7 are left"):
            ask(connect(model_server(QueryLedger(folder, 10)), ClientInfo("test")), 8)

    def test_concurrent_requests_get_no_more_in_all(self, folder):
        server = model_server(QueryLedger(folder, 40))
        rows = []

        def work(number):
            connection = connect(server)
            try:
                while True:
                    rows.append(len(ask(connection, 1 + number)))
            except QueryBudgetExceeded:
                pass

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(rows) == in_file(folder)["fc"]
        assert 37 <= sum(rows) <= 40

    @pytest.mark.parametrize("options", [{"queries": 3}, {"query_ledger": "here"}])
    def test_a_budget_needs_a_place(self, options):
        with pytest.raises(ParameterError, match="--query-ledger"):
            hn.serve(torch.nn.ModuleDict({"fc": torch.nn.Linear(14, 9)}), port=0, **options)


class Lossy:
    """A channel that loses the next reply when it is told to."""

    def __init__(self, channel):
        self.channel, self.lose = channel, False

    def __getattr__(self, name):
        return getattr(self.channel, name)

    def receive(self):
        reply = self.channel.receive()
        if self.lose:
            self.lose = False
            raise hn.ConnectionLost("lost")
        return reply


class Trainer:
    """The client of a protocol, in a session."""

    def __init__(self, server, make_terms, protocol, client=ALICE, **changes):
        self.server, self.client = server, client
        about = PROTOCOLS[protocol]
        parameters = None
        shape = {"in_features": 6, "out_features": 3, "batch_size": 4}
        if about.seals_weights:
            parameters = hn.Parameters.recommend_sealed(**shape)
        elif about.encrypts:
            parameters = hn.Parameters.recommend(
                **shape, releases=8 * about.releases, private_weights=about.private_weights
            )
        values = {
            "protocol": protocol,
            "parameter_hash": parameters.hash if parameters else "",
            "batches": 0,
            "epochs": 0,
        }
        classes = {"classes": 3} if about.labels_at_server else {}
        setup = ClientSetup.of(make_terms(**(values | classes | changes)), Phases(), parameters)
        encryption, material = about.halves.encryption(setup)
        self.channels = []
        self.session = Session(
            self.open(), setup.terms, material, Phases(), reconnection=Reconnection(self.open, patience=5.0)
        )
        self.half = about.halves.client(setup, self.session, encryption)
        self.labels = about.labels_at_server

    def open(self):
        self.channels.append(Lossy(InProcessChannel(self.server.converse(self.client))))
        return self.channels[-1]

    def step(self, rows=4):
        x = torch.ones(rows, 6)
        if self.labels:
            self.half.learn(x, torch.zeros(rows, dtype=torch.long))
        else:
            self.half.forward(x)
            self.half.backward(x, torch.ones(rows, 3))

    def evaluate(self, rows):
        return self.half.evaluate(torch.ones(rows, 6))


EVERY = [name for name, protocol in PROTOCOLS.items() if protocol.is_split]


class TestTrainingServer:
    @pytest.mark.parametrize("protocol", EVERY)
    def test_every_protocol_counts_and_its_session_goes_on(self, folder, make_terms, protocol):
        server = Server(queries=20, query_ledger=folder, labels=torch.zeros(3, dtype=torch.long))
        trainer = Trainer(server, make_terms, protocol)
        trainer.step()
        assert in_file(folder) == {"": 8}
        assert len(trainer.evaluate(7)) == 7
        with pytest.raises(
            QueryBudgetExceeded, match=r"4 rows of training take 8 answers .* 5 are left: ask with 2 rows"
        ):
            trainer.step()
        with pytest.raises(QueryBudgetExceeded, match=r"6 rows take 6 answers .* ask with 5 rows"):
            trainer.evaluate(6)
        assert in_file(folder) == {"": 15}
        trainer.step(2)
        assert len(trainer.evaluate(1)) == 1
        with pytest.raises(QueryBudgetExceeded, match="0 are left: no more"):
            trainer.evaluate(1)
        trainer.session.end()
        assert server.ended == 1

    def test_sessions_and_starts_share_one_budget(self, folder, make_terms):
        for _ in range(2):
            Trainer(Server(queries=10, query_ledger=folder), make_terms, "plain").step(2)
        with pytest.raises(QueryBudgetExceeded, match="2 are left"):
            Trainer(Server(queries=10, query_ledger=folder), make_terms, "splitways").evaluate(3)
        Trainer(Server(queries=10, query_ledger=folder), make_terms, "plain", BOB).evaluate(10)

    def test_layers_of_the_servers_model_count_for_themselves(self, folder, make_terms):
        rng = np.random.default_rng(0)
        start = [Weights(name, rng.normal(size=(3, 6)).astype(np.float32), None) for name in ("a", "b")]
        server = Server(layers=start, queries=5, query_ledger=folder)
        for name in ("a", "b"):
            Trainer(server, make_terms, "splitways", layer=name).evaluate(5)
        with pytest.raises(QueryBudgetExceeded, match="about a;"):
            Trainer(server, make_terms, "plain", layer="a").evaluate(1)
        assert in_file(folder) == {"a": 5, "b": 5}

    @pytest.mark.parametrize("protocol", ["plain", "splitways"])
    def test_a_request_that_is_sent_again_counts_once(self, folder, make_terms, protocol):
        trainer = Trainer(Server(queries=10, query_ledger=folder), make_terms, protocol)
        trainer.channels[-1].lose = True
        assert len(trainer.evaluate(6)) == 6
        assert len(trainer.channels) == 2
        assert in_file(folder) == {"": 6}
        trainer.channels[-1].lose = True  # a refusal, too
        with pytest.raises(QueryBudgetExceeded, match="4 are left"):
            trainer.evaluate(5)
        assert len(trainer.evaluate(4)) == 4

    def test_malformed_requests_count_nothing(self, folder, make_terms):
        trainer = Trainer(Server(queries=10, query_ledger=folder), make_terms, "plain")
        for body in (
            b"",
            messages.matrix(np.ones((5, 7), np.float32), "x"),
            messages.matrix(np.ones((5, 6), np.float32), "x"),
        ):
            with pytest.raises(ProtocolError, match="ended the session"):
                trainer.session.exchange(MessageType.FORWARD, MessageType.LOGITS, body)
            trainer = Trainer(trainer.server, make_terms, "plain")
        assert not (folder / "alice.json").exists()

    def test_a_refused_step_changes_no_weights(self, folder, make_terms):
        server = Server(queries=9, query_ledger=folder)
        trainer = Trainer(server, make_terms, "splitways")
        trainer.step()
        (state,) = server.sessions.values()
        before = state.layer.linear.weight.clone()
        with pytest.raises(QueryBudgetExceeded):
            trainer.step()
        assert torch.equal(state.layer.linear.weight, before)
        assert state.steps == 1

    def test_the_refusal_travels_typed_over_grpc(self, folder, make_terms):
        from hesplit_native.transport import connect as open_channel

        server = Server(queries=4, query_ledger=folder)
        with GrpcServer("127.0.0.1:0", server.converse) as bound:
            channel = open_channel(f"127.0.0.1:{bound.port}")
            session = Session(channel, make_terms(), b"", Phases())
            half = PROTOCOLS["plain"].halves.client(ClientSetup(session.terms, Phases()), session, None)
            with pytest.raises(hn.QueryBudgetExceeded, match=r"together 4 .* 4 are left: ask with 4 rows"):
                half.evaluate(torch.ones(5, 6))
            assert len(half.evaluate(torch.ones(4, 6))) == 4
            session.end()
            channel.close()

    def test_refusals_do_not_fill_the_log(self, folder, make_terms):
        said = []
        trainer = Trainer(Server(queries=1, query_ledger=folder, on_event=said.append), make_terms, "plain")
        for _ in range(30):
            with pytest.raises(QueryBudgetExceeded):
                trainer.evaluate(2)
        assert 1 <= sum("refused" in line for line in said) <= 10


def test_weights_of_few_levels_are_told_several_at_once():
    assert default_queries(768, 8) == 384
    assert default_queries(768, 8, levels=256) == 128  # three of eight bits in an answer of 25
    assert default_queries(768, 8, levels=16) == 64
    assert default_queries(768, 8, levels=3) == 32
    assert default_queries(768, 8, levels=1) == 768 // 50
    assert default_queries(4, 1, levels=2) == 1
