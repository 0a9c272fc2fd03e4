"""What sessions cost is known before they are opened, and held within a budget as long as it is taken."""

from __future__ import annotations

import gc
import json
import platform
import threading
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.errors import BudgetError
from hesplit_native.protocols import messages, sessions
from hesplit_native.protocols.budget import Budget, default_memory
from hesplit_native.protocols.costs import session_costs
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.terms import MAX_FEATURES
from hesplit_native.transport import ClientInfo, InProcessChannel

MIB = 1 << 20


class Talk:
    """A raw client of a server in this process."""

    def __init__(self, server, client="a"):
        self.server = server
        self.channel = InProcessChannel(server.converse(ClientInfo(client, peer="ipv4:192.0.2.1:1")))
        self.nonce, self.step = messages.NO_SESSION, 0

    def ask(self, kind, *parts):
        self.channel.send(messages.pack(kind, self.step, self.nonce, *parts))
        reply = messages.unpack(self.channel.receive())
        self.step += 1
        if reply.type is MessageType.WELCOME:
            self.nonce = reply.session
        return reply

    def hello(self, terms, material=b""):
        return self.ask(MessageType.HELLO, messages.text(terms.to_json()), material)

    def learn(self, rows=4, value=1.0):
        self.ask(MessageType.FORWARD, matrix(rows, 6, value))
        return self.ask(MessageType.BACKWARD, matrix(rows, 3, value))

    def store(self, step):
        return self.ask(MessageType.CHECKPOINT, messages.text(json.dumps({"step": step})))

    def restore(self, terms, run, step):
        body = {"terms": terms.to_json(), "run": run, "checkpoint": step}
        return self.ask(MessageType.RESTORE, messages.text(json.dumps(body)))

    @property
    def state(self):
        return self.server.sessions[self.nonce]


def matrix(rows, columns, value=1.0):
    return messages.matrix(np.full((rows, columns), value, np.float32), "values")


def reason(reply):
    assert reply.type is MessageType.ERROR, reply.type
    return messages.take_text(reply.body, "error")[0]


LARGE = [
    {"protocol": "vanilla", "in_features": 8, "out_features": 65536, "hidden": True, "classes": 256},
    {"protocol": "vanilla", "in_features": 4096, "out_features": 4096, "hidden": True, "classes": 4096},
    {"protocol": "plain", "in_features": 65536, "out_features": 256},
    {"protocol": "plain", "in_features": 6, "out_features": 3, "batch_size": 65536},
    {"protocol": "plain", "in_features": 2048, "out_features": 4096, "group": "g" * 16, "members": 3},
]


@pytest.mark.parametrize("changes", LARGE)
def test_what_is_beyond_the_budget_is_refused_before_anything_is_allocated(make_terms, changes):
    server = Server(memory=MIB)
    tracemalloc.start()
    try:
        words = reason(Talk(server).hello(make_terms(**changes)))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    assert "MiB of memory at the server" in words
    assert "1.0 MiB" in words
    assert server.budget.held == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"out_features": MAX_FEATURES, "in_features": 256, "classes": MAX_FEATURES},
        {"out_features": 257, "in_features": 4, "classes": MAX_FEATURES},
        {"out_features": 8, "in_features": 4, "classes": 0},
    ],
)
def test_second_layers_are_bounded_like_first_ones(make_terms, changes):
    words = reason(Talk(Server()).hello(make_terms(protocol="vanilla", hidden=True, **changes)))
    assert "handshake" in words


@pytest.mark.parametrize("protocol", ["splitways", "hesplit", "sealed"])
@pytest.mark.parametrize(("width", "outputs"), [(6, 3), (300, 7), (64, 200)])
def test_encrypted_sessions_stay_within_what_was_reserved(make_terms, protocol, width, outputs):
    """Training steps of an honest client need no more than its handshake took."""
    terms = make_terms(protocol=protocol, in_features=width, out_features=outputs, batch_size=4)
    if protocol == "sealed":
        terms = replace(terms, server_optimizer="client")
        parameters = hn.Parameters.recommend_sealed(in_features=width, out_features=outputs, batch_size=4)
        client = hn.SealedClient(hn.SecretKey.generate(parameters), width, outputs)
        weight = np.zeros((outputs, width))
        material = client.seal(weight, weight[:, 0])
    else:
        parameters = hn.Parameters.recommend(in_features=width, out_features=outputs, batch_size=4)
        key = hn.SecretKey.generate(parameters)
        client = hn.LinearClient(key, width, outputs, weight_gradients=protocol == "hesplit")
        material = client.public_material()
    terms = replace(terms, parameter_hash=parameters.hash)
    costs = session_costs(terms, memoryview(material)[:400], len(material), checkpoints_in_memory=True)
    assert len(material) + 2000 < costs.opening
    talk = Talk(Server())
    assert talk.hello(terms, material).type is MessageType.WELCOME
    held = talk.server.budget.held
    assert held == costs.held + costs.checkpoints
    request = client.encrypt(np.ones((4, width), np.float32))
    assert len(request) + 32 < costs.request
    assert talk.ask(MessageType.FORWARD, request).type is MessageType.LOGITS
    assert talk.server.budget.held == held
    if protocol == "splitways":
        assert talk.ask(MessageType.BACKWARD, matrix(4, outputs)).type is MessageType.INPUT_GRADIENT
    elif protocol == "hesplit":
        assert talk.ask(MessageType.BACKWARD, matrix(4, outputs)).type is MessageType.MASKED_GRADIENT
    assert talk.server.budget.held == held
    assert talk.ask(MessageType.END).type is MessageType.SUMMARY
    assert talk.server.budget.held == 0


def test_messages_beyond_the_terms_are_refused_and_larger_ones_take_what_is_free(make_terms):
    terms = make_terms()
    roomy, narrow = Talk(Server()), Talk(Server(memory=4 * MIB))
    for talk in (roomy, narrow):
        assert talk.hello(terms).type is MessageType.WELCOME
    rows = 65536
    held = roomy.server.budget.held
    assert roomy.ask(MessageType.EVALUATE, matrix(rows, 6)).type is MessageType.LOGITS
    assert roomy.server.budget.held > held  # the reply is kept for a client that did not get it
    assert roomy.ask(MessageType.EVALUATE, matrix(1, 6)).type is MessageType.LOGITS
    assert roomy.server.budget.held == held
    assert "memory at the server" in reason(narrow.ask(MessageType.EVALUATE, matrix(rows, 6)))
    assert narrow.server.budget.held == 0
    assert "none is longer" in reason(roomy.ask(MessageType.EVALUATE, bytes(5 * MIB)))


def test_budgets_are_per_client_and_in_all():
    budget = Budget(100, 60)
    first, second = budget.hold("a", 50), budget.hold("b", 40)
    with pytest.raises(BudgetError, match="one client may have"):
        budget.hold("a", 11)
    with pytest.raises(BudgetError, match="try again later"):
        second.resize(51)
    assert (budget.held, budget.held_by("a"), second.amount) == (90, 50, 40)
    first.release()
    first.resize(60)  # too late
    second.resize(51)
    assert (budget.held, budget.held_by("a")) == (51, 0)
    assert default_memory() > 0


def test_large_clients_leave_room_for_small_ones():
    budget = Budget(64 * MIB, 16 * MIB, kept=32 * MIB)
    large = [budget.hold(f"large {index}", 16 * MIB) for index in range(2)]
    with pytest.raises(
        BudgetError, match=r"keeps 32\.0 MiB of 64\.0 MiB \(--memory\) for clients .* no more than 2\.0 MiB"
    ):
        budget.hold("large 2", 3 * MIB)
    small = [budget.hold(f"small {index}", 2 * MIB) for index in range(16)]
    with pytest.raises(BudgetError, match=r"has 0\.0 MiB of 64\.0 MiB"):
        budget.hold("small 16", 1)
    small[1].release()
    with pytest.raises(BudgetError, match=r"keeps 32\.0 MiB"):
        small[0].resize(3 * MIB)
    assert (small[0].amount, budget.held) == (2 * MIB, 62 * MIB)
    large[0].resize(1 * MIB)
    large[1].resize(0)
    small[0].resize(3 * MIB)
    assert budget.held_by("small 0") == 3 * MIB


def test_budgets_under_threads():
    budget = Budget(1000)

    def work(client):
        for amount in range(500):
            hold = budget.hold(client, amount % 7)
            hold.resize(amount % 3)
            hold.release()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.held == 0


def test_a_client_gives_up_its_own_oldest_sessions_and_nobody_elses(make_terms):
    terms = make_terms(in_features=1024, out_features=64)
    server = Server()
    first = Talk(server, "a")
    first.hello(terms)
    one = server.budget.held
    server = Server(memory=7 * one // 2, memory_per_client=5 * one // 2)
    other = Talk(server, "other")
    other.hello(terms)
    oldest, second = Talk(server), Talk(server)
    for talk in (oldest, second):
        assert talk.hello(terms).type is MessageType.WELCOME
    assert "one client may have" in reason(Talk(server).hello(terms))  # both are connected
    oldest.channel.close()
    third = Talk(server)
    assert third.hello(terms).type is MessageType.WELCOME
    assert oldest.nonce not in server.sessions
    # All memory is taken: another client's session that has just lost its connection stays.
    other.channel.close()
    assert "try again later" in reason(Talk(server, "late").hello(terms))
    assert other.nonce in server.sessions
    server.sessions[other.nonce].seen -= sessions.GRACE_SECONDS + 1
    assert Talk(server, "late").hello(terms).type is MessageType.WELCOME
    assert other.nonce not in server.sessions


def test_what_a_session_held_is_given_back_when_it_is_forgotten(make_terms, monkeypatch):
    server = Server()
    talk = Talk(server)
    talk.hello(make_terms(group="g" * 16))
    talk.store(0)
    talk.channel.close()
    assert server.budget.held > 0
    monkeypatch.setattr(sessions, "RESUME_SECONDS", -1.0)
    server.tidy()
    assert (server.budget.held, len(server.sessions)) == (0, 0)


def test_a_session_waits_with_what_it_has_not_with_what_was_on_its_way(make_terms):
    server = Server(memory=64 * MIB)
    client = ClientInfo("a")
    channel = InProcessChannel(server.converse(client))
    terms = make_terms()
    hello = messages.pack(MessageType.HELLO, 0, messages.NO_SESSION, messages.text(terms.to_json()))
    channel.send(hello)
    (session,) = server.sessions.values()
    before = server.budget.held
    request = messages.pack(MessageType.EVALUATE, 1, session.nonce)
    client.allowance.admit(memoryview(request), 2 * MIB)  # its first piece
    assert server.budget.held > before + 2 * MIB
    channel.close()
    assert server.sessions
    assert server.budget.held == before


def test_a_session_that_ended_repeats_its_last_reply_and_nothing_else(make_terms):
    server = Server()
    talk = Talk(server)
    talk.hello(make_terms())
    run = talk.state.run
    talk.store(0)
    last = talk.ask(MessageType.END)
    assert server.budget.held == 0
    again = Talk(server)
    body = messages.text(json.dumps({"run": run, "session": talk.nonce.hex()}))
    assert messages.take_json(again.ask(MessageType.RESUME, body).body, "r")[0] == {"alive": True}
    again.nonce, again.step = talk.nonce, talk.step - 1
    assert bytes(again.ask(MessageType.END).body) == bytes(last.body)
    again = Talk(server)
    again.ask(MessageType.RESUME, body)
    again.nonce, again.step = talk.nonce, talk.step
    assert "after the session's end" in reason(again.ask(MessageType.EVALUATE, matrix(1, 6)))


def test_one_members_restore_does_not_take_back_what_others_trained(make_terms):
    terms, server = make_terms(group="g" * 16), Server()
    first, second = Talk(server, "a"), Talk(server, "b")
    for talk in (first, second):
        talk.hello(terms)
    first.learn()
    first.store(1)
    run = first.state.run
    second.learn(value=2.0)
    common = second.state.layer
    before = common.linear.weight.detach().clone()
    again = Talk(server, "a")
    assert again.restore(terms, run, 1).type is MessageType.WELCOME
    assert again.state.layer is not common
    assert np.array_equal(common.linear.weight.detach(), before)
    assert second.learn().type is MessageType.INPUT_GRADIENT


def test_members_that_go_back_together_meet_on_one_layer(make_terms):
    terms, server = make_terms(group="g" * 16), Server()
    talks = {name: Talk(server, name) for name in "ab"}
    runs = {}
    for name, talk in talks.items():
        talk.hello(terms)
        runs[name] = talk.state.run
    for talk in talks.values():
        talk.learn()
        talk.store(1)
    stored = talks["b"].state.layer.linear.weight.detach().clone()
    for talk in talks.values():
        talk.learn(value=3.0)
    back = {name: Talk(server, name) for name in "ab"}
    for name, talk in back.items():
        assert talk.restore(terms, runs[name], 1).type is MessageType.WELCOME
    assert back["a"].state.layer is back["b"].state.layer
    assert np.array_equal(back["a"].state.layer.linear.weight.detach(), stored)


def test_members_may_work_at_once(make_terms):
    terms, server = make_terms(group="g" * 16, batches=0, epochs=0), Server()
    talks = [Talk(server, name) for name in "abcd"]
    for talk in talks:
        talk.hello(terms)
    kinds = []

    def work(talk):
        kinds.extend(talk.learn().type for _ in range(50))

    threads = [threading.Thread(target=work, args=(talk,)) for talk in talks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(kinds) == {MessageType.INPUT_GRADIENT}
    assert talks[0].state.layer.version == 200


def resident():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_freed_memory_goes_back_to_the_system():
    blocks = [b"x" * 100_000 for _ in range(2000)]  # too short for mappings of their own
    held = blocks[::100]  # between those that are freed, as sessions are that live on
    before = resident()
    del blocks
    Server().tidy()
    assert before - resident() > 100 * MIB
    assert len(held) == 20


@pytest.mark.parametrize("ending", ["hung up", "refused", "ended"])
def test_the_memory_of_a_session_goes_with_it(make_terms, ending):
    """At once, as its budget does, and not when the garbage collector comes by."""
    server, terms = Server(), make_terms()
    gc.collect()
    gc.disable()
    try:
        talk = Talk(server)
        talk.hello(terms)
        talk.learn()
        left = weakref.ref(talk.state), weakref.ref(talk.state.protocol), weakref.ref(talk.state.layer)
        if ending == "refused":
            talk.ask(MessageType.LOGITS)
        elif ending == "ended":
            talk.ask(MessageType.END)
        talk.channel.close()
        if ending == "hung up":
            server._sessions.forget(talk.state)
        server._last_layer = None
        server._sessions.ended.clear()
        assert server.budget.held == 0
        assert [each() for each in left] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("protocol", ["splitways", "hesplit"])
def test_sessions_on_merged_blocks_are_refused(make_terms, protocol):
    """Layouts are the client's choice, and of these the largest ones are kept."""
    params = hn.Parameters(ring_degree=4096, modulus_bits=[50, 50], scale=2.0**20, packing="merged")
    terms = make_terms(protocol=protocol, parameter_hash=params.hash)
    client = hn.LinearClient(hn.SecretKey.generate(params), terms.in_features, terms.out_features)
    material = client.public_material()
    with pytest.raises(hn.ParameterError, match="for merged"):
        session_costs(terms, memoryview(material), len(material), checkpoints_in_memory=False)
