"""The server's side against clients that misbehave, over whole sessions and over resumed ones."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hesplit_native as hn
from hesplit_native.errors import ProtocolError, WireError
from hesplit_native.layer.weights import Weights
from hesplit_native.protocols import PROTOCOLS, messages, sessions
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms, initial_linear
from hesplit_native.transport import ClientInfo, InProcessChannel

CLIENT = ClientInfo("test")


class Conversation:
    """A raw client: numbers its requests like a good one, unless told otherwise."""

    def __init__(self, server=None, client=CLIENT):
        self.server = server or Server()
        self.channel = InProcessChannel(self.server.converse(client))
        self.nonce = messages.NO_SESSION
        self.step = 0
        self.last = b""

    def ask(self, kind, *parts, step=None, nonce=None):
        self.last = messages.pack(
            kind, self.step if step is None else step, self.nonce if nonce is None else nonce, *parts
        )
        return self.repeat()

    def repeat(self):
        self.channel.send(self.last)
        reply = messages.unpack(self.channel.receive())
        self.step += 1
        return reply

    def hello(self, terms, material=b""):
        reply = self.ask(MessageType.HELLO, messages.text(terms.to_json()), material)
        self.nonce = reply.session
        if reply.type is MessageType.WELCOME:
            self.run = messages.take_json(reply.body, "welcome")[0]["run"]
        return reply

    @property
    def state(self):
        return self.server.sessions[self.nonce]


def matrix(rows, columns, value=1.0):
    return messages.matrix(np.full((rows, columns), value, np.float32), "values")


def started(terms, material=b""):
    """A conversation after its handshake, and its state at the server."""
    talk = Conversation()
    assert talk.hello(terms, material).type is MessageType.WELCOME
    return talk, talk.state


def assert_refused(talk, reply, *match):
    assert reply.type is MessageType.ERROR
    assert not talk.server.sessions
    reason, _ = messages.take_text(reply.body, "error")
    for part in match:
        assert part in reason
    with pytest.raises(ProtocolError, match="has ended"):
        talk.channel.send(b"more")


def test_a_whole_session(make_terms):
    talk, state = started(make_terms())
    assert talk.ask(MessageType.EVALUATE, matrix(50, 6)).type is MessageType.LOGITS
    assert talk.ask(MessageType.FORWARD, matrix(4, 6)).type is MessageType.LOGITS
    assert talk.ask(MessageType.EVALUATE, matrix(1, 6)).type is MessageType.LOGITS
    assert talk.ask(MessageType.BACKWARD, matrix(4, 3)).type is MessageType.INPUT_GRADIENT
    assert talk.ask(MessageType.END).type is MessageType.SUMMARY
    assert set(state.seconds) == {"forward", "backward and update", "evaluation"}
    assert (state.steps, talk.server.ended, len(talk.server.sessions)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("kind", "step", "body", "match"),
    [
        (MessageType.FORWARD, 1, matrix(5, 6), "activations: expected [1 to 4, 6], got [5, 6]"),
        (MessageType.FORWARD, 1, matrix(4, 7), "activations: expected [1 to 4, 6], got [4, 7]"),
        (MessageType.FORWARD, 1, matrix(4, 6) + b"x", "1 bytes too many"),
        (MessageType.FORWARD, 1, b"", "ends before"),
        (MessageType.FORWARD, 0, matrix(4, 6), "request 0 came where 1 was due"),
        (MessageType.FORWARD, 2, matrix(4, 6), "request 2 came where 1 was due"),
        (MessageType.BACKWARD, 1, matrix(4, 3), "without the activations"),
        (MessageType.LOGITS, 1, matrix(4, 3), "LOGITS is not a request"),
        (MessageType.LEARN, 1, matrix(4, 6), "LEARN is not a request of plain"),
        (MessageType.HELLO, 1, b"", "HELLO is not a request"),
        (MessageType.END, 1, b"x", "end: 1 bytes too many"),
        (
            MessageType.CHECKPOINT,
            1,
            messages.text('{"step": 3}'),
            "a checkpoint of step 3, but this session is at step 0",
        ),
        (MessageType.CHECKPOINT, 1, messages.text('{"step": "0"}'), "expected step as int"),
        (MessageType.MERGE, 1, messages.text('{"weight": 1.0}'), "of a group with members"),
    ],
)
def test_requests_out_of_order_or_shape(make_terms, kind, step, body, match):
    talk, state = started(make_terms())
    before = [p.clone() for p in state.layer.linear.parameters()]
    assert_refused(talk, talk.ask(kind, body, step=step), match)
    assert all(torch.equal(a, b) for a, b in zip(before, state.layer.linear.parameters(), strict=True))


@pytest.mark.parametrize("body", [matrix(3, 3), matrix(4, 2), matrix(4, 3) + b"x"])
def test_gradients_that_do_not_fit_change_nothing(make_terms, body):
    talk, state = started(make_terms())
    before = state.layer.linear.weight.clone()
    talk.ask(MessageType.FORWARD, matrix(4, 6))
    assert_refused(talk, talk.ask(MessageType.BACKWARD, body), "gradient")
    assert torch.equal(state.layer.linear.weight, before)


def test_one_gradient_for_one_forward(make_terms):
    talk, _ = started(make_terms())
    talk.ask(MessageType.FORWARD, matrix(4, 6))
    talk.ask(MessageType.BACKWARD, matrix(4, 3))
    assert_refused(talk, talk.ask(MessageType.BACKWARD, matrix(4, 3)), "without the activations")


def test_no_more_steps_than_agreed(make_terms):
    talk, state = started(make_terms(batches=1, epochs=2))
    for _ in range(2):
        talk.ask(MessageType.FORWARD, matrix(4, 6))
        talk.ask(MessageType.BACKWARD, matrix(4, 3))
    talk.ask(MessageType.FORWARD, matrix(4, 6))
    before = state.layer.linear.weight.clone()
    assert_refused(talk, talk.ask(MessageType.BACKWARD, matrix(4, 3)), "agreed on 2 training steps")
    assert torch.equal(state.layer.linear.weight, before)


def test_a_replayed_message_is_refused(make_terms):
    talk, state = started(make_terms())
    talk.ask(MessageType.FORWARD, matrix(4, 6))
    talk.ask(MessageType.BACKWARD, matrix(4, 3))
    before = state.layer.linear.weight.clone()
    assert_refused(talk, talk.repeat(), "request 2 came where 3 was due")
    assert torch.equal(state.layer.linear.weight, before)


def test_a_message_of_another_session_is_refused(make_terms):
    server = Server()
    first, second = Conversation(server), Conversation(server)
    first.hello(make_terms())
    second.hello(make_terms())
    assert first.nonce != second.nonce
    reply = first.ask(MessageType.FORWARD, matrix(4, 6), nonce=second.nonce)
    assert reply.type is MessageType.ERROR
    assert "another session" in messages.take_text(reply.body, "error")[0]
    assert second.ask(MessageType.FORWARD, matrix(4, 6)).type is MessageType.LOGITS


def test_requests_before_the_handshake():
    talk = Conversation()
    assert_refused(talk, talk.ask(MessageType.FORWARD, matrix(4, 6)), "FORWARD came before the handshake")


def test_bytes_that_are_no_message():
    talk = Conversation()
    talk.last = b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n"
    assert_refused(talk, talk.repeat(), "no message of hesplit_native")


def resume(talk, run, nonce=b""):
    body = messages.text(json.dumps({"run": run, "session": nonce.hex()}))
    return talk.ask(MessageType.RESUME, body, step=0, nonce=messages.NO_SESSION)


def answer(reply):
    assert reply.type is MessageType.RESUMED, messages.take_text(reply.body, "error")[0]
    return messages.take_json(reply.body, "resumed")[0]


def test_a_retry_of_the_very_same_bytes_is_answered_without_being_worked_on_again(make_terms):
    talk, state = started(make_terms())
    talk.ask(MessageType.FORWARD, matrix(4, 6))
    lost = talk.ask(MessageType.BACKWARD, matrix(4, 3))
    weight = state.layer.linear.weight.clone()
    again = Conversation(talk.server)
    assert answer(resume(again, state.run, talk.nonce)) == {"alive": True}
    again.last = talk.last
    reply = again.repeat()
    assert bytes(reply.body) == bytes(lost.body)
    assert torch.equal(state.layer.linear.weight, weight)
    assert state.steps == 1
    # Once: the next one must be the next request.
    assert_refused(again, again.repeat(), "request 2 came where 3 was due")


def test_other_bytes_under_the_number_of_a_lost_request_are_refused(make_terms):
    talk, state = started(make_terms())
    talk.ask(MessageType.FORWARD, matrix(4, 6))
    again = Conversation(talk.server)
    answer(resume(again, state.run, talk.nonce))
    again.nonce = talk.nonce
    assert_refused(again, again.ask(MessageType.FORWARD, matrix(4, 6, 2.0), step=1), "request 1 came where 2 was due")


def test_the_old_connection_is_over_when_a_session_goes_on_over_another(make_terms):
    talk, state = started(make_terms())
    again = Conversation(talk.server)
    answer(resume(again, state.run, talk.nonce))
    reply = talk.ask(MessageType.FORWARD, matrix(4, 6))
    assert "over another connection" in messages.take_text(reply.body, "error")[0]
    again.nonce, again.step = talk.nonce, 1
    assert again.ask(MessageType.FORWARD, matrix(4, 6)).type is MessageType.LOGITS


def test_another_client_cannot_take_over_a_session_or_its_checkpoints(make_terms):
    talk, state = started(make_terms())
    talk.ask(MessageType.CHECKPOINT, messages.text('{"step": 0}'))
    thief = Conversation(talk.server, ClientInfo("thief"))
    reply = resume(thief, state.run, talk.nonce)
    assert "no such run of this client" in messages.take_text(reply.body, "error")[0]
    thief = Conversation(talk.server, ClientInfo("thief"))
    body = {"terms": make_terms().to_json(), "run": state.run, "checkpoint": 0}
    reply = thief.ask(MessageType.RESTORE, messages.text(json.dumps(body)))
    assert "belongs to another client" in messages.take_text(reply.body, "error")[0]
    assert talk.ask(MessageType.FORWARD, matrix(4, 6)).type is MessageType.LOGITS


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_restored_session_goes_on_from_the_checkpoint(make_terms, tmp_path, on_disk):
    folder = tmp_path if on_disk else None
    talk = Conversation(Server(checkpoints=folder))
    talk.hello(make_terms())
    for step in range(1, 5):
        talk.ask(MessageType.FORWARD, matrix(4, 6, step))
        talk.ask(MessageType.BACKWARD, matrix(4, 3, 0.1 * step))
        talk.ask(MessageType.CHECKPOINT, messages.text(json.dumps({"step": step})))
        if step == 3:
            expected = talk.state.layer.linear.weight.detach().clone()
    run = talk.state.run
    follow = [talk.ask(MessageType.FORWARD, matrix(4, 6)), talk.ask(MessageType.BACKWARD, matrix(4, 3))]
    server = Server(checkpoints=folder) if on_disk else talk.server
    again = Conversation(server)
    assert answer(resume(again, run)) == {"checkpoints": [3, 4]}
    again = Conversation(server)
    body = {"terms": make_terms().to_json(), "run": run, "checkpoint": 3}
    reply = again.ask(MessageType.RESTORE, messages.text(json.dumps(body)))
    assert reply.type is MessageType.WELCOME
    again.nonce = reply.session
    assert again.nonce != talk.nonce
    assert again.state.steps == 3
    assert torch.equal(again.state.layer.linear.weight, expected)
    again.ask(MessageType.FORWARD, matrix(4, 6, 4))
    again.ask(MessageType.BACKWARD, matrix(4, 3, 0.1 * 4))
    replies = [again.ask(MessageType.FORWARD, matrix(4, 6)), again.ask(MessageType.BACKWARD, matrix(4, 3))]
    assert [bytes(r.body) for r in replies] == [bytes(r.body) for r in follow]


def test_damaged_checkpoints_are_passed_over(make_terms, tmp_path):
    talk = Conversation(Server(checkpoints=tmp_path))
    talk.hello(make_terms())
    run = talk.state.run
    for step in (0, 1):
        if step:
            talk.ask(MessageType.FORWARD, matrix(4, 6))
            talk.ask(MessageType.BACKWARD, matrix(4, 3))
        talk.ask(MessageType.CHECKPOINT, messages.text(json.dumps({"step": step})))
    path = tmp_path / run / "1.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert answer(resume(Conversation(Server(checkpoints=tmp_path)), run)) == {"checkpoints": [0]}


@pytest.mark.parametrize("run", ["", "../../etc", "0" * 31, "Z" * 32, "ab" * 16])
def test_unknown_runs(run, tmp_path):
    talk = Conversation(Server(checkpoints=tmp_path))
    assert_refused(talk, resume(talk, run), "no such run")


@pytest.mark.parametrize("changes", [{"protocol": "magic"}, {"in_features": 0}, {"learning_rate": float("nan")}])
def test_terms_that_the_server_refuses(make_terms, changes):
    talk = Conversation()
    assert_refused(talk, talk.hello(make_terms(**changes)), "handshake", next(iter(changes)).split("_")[0])


def material(in_features=6, out_features=3, weight_gradients=False):
    parameters = hn.Parameters.recommend(in_features=6, out_features=3, batch_size=4, weight_norm=8.0)
    client = hn.LinearClient(
        hn.SecretKey.generate(parameters), in_features, out_features, weight_gradients=weight_gradients
    )
    return client.public_material(), parameters.hash


def test_public_material_and_terms_must_agree(make_terms):
    good, parameter_hash = material()
    terms = make_terms(protocol="splitways", parameter_hash=parameter_hash)
    started(terms, good)
    for other, sent, words in (
        (terms, material(out_features=2)[0], ("another shape", "[2, 6]", "[3, 6]")),
        (make_terms(protocol="splitways", parameter_hash="0" * 32), good, ("0" * 32, parameter_hash)),
        (terms, b"", ()),
        (terms, good[:-1], ()),
        (terms, good + b"x", ()),
        (make_terms(), good, ("no public material",)),
    ):
        talk = Conversation()
        assert_refused(talk, talk.hello(other, sent), *words)


def test_a_finished_session_leaves_its_layer(make_terms, tmp_path):
    talk = Conversation(Server(output=tmp_path))
    talk.hello(make_terms())
    talk.ask(MessageType.FORWARD, matrix(4, 6))
    talk.ask(MessageType.BACKWARD, matrix(4, 3))
    weight = talk.state.layer.linear.weight.clone()
    talk.ask(MessageType.END)
    run = talk.run[:8]
    assert torch.equal(load_file(tmp_path / f"test-{run}.safetensors")["weight"], weight)
    assert len(list(tmp_path.iterdir())) == 1


def model(**shapes):
    rng = np.random.default_rng(0)
    return [
        Weights(n, rng.normal(size=s).astype(t), rng.normal(size=s[0]) if b else None)
        for n, (s, t, b) in shapes.items()
    ]


@pytest.mark.parametrize("protocol", ["plain", "splitways", "hesplit", "vanilla"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_sessions_start_from_a_layer_of_the_servers_model(make_terms, protocol, dtype, bias):
    (start,) = model(head=((3, 6), dtype, bias))
    server = Server(layers=[start])
    terms, sent = make_terms(protocol=protocol, layer="head"), b""
    if PROTOCOLS[protocol].encrypts:
        sent, parameter_hash = material(weight_gradients=protocol == "hesplit")
        terms = dataclasses.replace(terms, parameter_hash=parameter_hash)
    first, second, other = (Conversation(server, ClientInfo(name)) for name in ("a", "b", "c"))
    for talk in (first, second):
        assert talk.hello(terms, sent).type is MessageType.WELCOME
        linear = talk.state.layer.linear
        np.testing.assert_array_equal(linear.weight.detach(), start.weight.astype(np.float32))
        np.testing.assert_array_equal(
            linear.bias.detach(), np.zeros(3) if start.bias is None else start.bias.astype(np.float32)
        )
    assert first.state.layer is not second.state.layer  # what one trains does not change the other's, nor the model
    with torch.no_grad():
        first.state.layer.linear.weight.zero_()
    assert second.state.layer.linear.weight.abs().min() > 0
    assert np.abs(start.weight).min() > 0
    other.hello(dataclasses.replace(terms, layer=""), sent)
    torch.testing.assert_close(other.state.layer.linear.weight, initial_linear(terms).weight)


def test_sessions_that_start_from_a_layer_resume_and_share_it(make_terms):
    server = Server(layers=model(head=((3, 6), "float32", True), other=((3, 6), "float32", True)))
    pair = [Conversation(server), Conversation(server, ClientInfo("other"))]
    for talk in pair:
        talk.hello(make_terms(group="g" * 16, layer="head"))
    assert pair[0].state.layer is pair[1].state.layer
    stranger = Conversation(server, ClientInfo("stranger"))
    refused = stranger.hello(make_terms(group="g" * 16, layer="other"))
    assert "agreed on another layer" in messages.take_text(refused.body, "error")[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": "haed"}, "no layer 'haed' (did you mean head?); it has head, wide"),
        ({"layer": "x" * 201}, "at most 200 characters"),
        ({"layer": "wide"}, "wide is 7 -> 3 at the server, and 6 -> 3 at the client"),
        ({"layer": "head", "protocol": "vanilla", "hidden": True, "classes": 4}, "where the server holds one layer"),
    ],
)
def test_layers_to_start_from_that_are_not_there(make_terms, changes, words):
    shapes = model(head=((3, 6), "float32", True), wide=((3, 7), "float32", True))
    talk = Conversation(Server(layers=shapes))
    assert_refused(talk, talk.hello(make_terms(**changes)), words)
    talk = Conversation()
    assert_refused(talk, talk.hello(make_terms(layer="head")), "no layer 'head'; it has none")
    with pytest.raises(WireError, match="where the server holds one layer"):
        Terms.from_json(
            asdict(make_terms(protocol="sealed", server_optimizer="client", parameter_hash="0", layer="head"))
        )


def test_the_learning_rate_follows_the_client(make_terms):
    talk, state = started(make_terms())
    for rate in (0.5, 1e-9):
        reply = talk.ask(MessageType.RATE, messages.text(json.dumps({"learning_rate": rate})))
        assert reply.type is MessageType.DONE
        assert [group["lr"] for group in state.layer.optimizer.param_groups] == [rate]


@pytest.mark.parametrize(
    "body",
    ['{"learning_rate": 0.0}', '{"learning_rate": 1e9}', '{"learning_rate": "1"}', "{}", '{"learning_rate": NaN}'],
)
def test_learning_rates_that_cannot_be_end_the_session(make_terms, body):
    talk, _ = started(make_terms())
    assert talk.ask(MessageType.RATE, messages.text(body)).type is MessageType.ERROR


def test_groups_share_one_layer_or_average_theirs(make_terms):
    server = Server()
    first, second = Conversation(server), Conversation(server, ClientInfo("other"))
    first.hello(make_terms(group="g" * 16))
    second.hello(make_terms(group="g" * 16))
    assert first.state.layer is second.state.layer
    stranger = Conversation(server)
    reply = stranger.hello(make_terms(group="g" * 16, in_features=7))
    assert "agreed on another in_features" in messages.take_text(reply.body, "error")[0]

    pair = [Conversation(server), Conversation(server, ClientInfo("other"))]
    for talk, value in zip(pair, (1.0, 2.0), strict=True):
        talk.hello(make_terms(group="h" * 16, members=2, server_optimizer="sgd"))
        talk.ask(MessageType.FORWARD, matrix(4, 6, value))
        talk.ask(MessageType.BACKWARD, matrix(4, 3, value))
    weights = [talk.state.layer.linear.weight.detach().clone() for talk in pair]
    assert not torch.equal(*weights)
    for talk, weight in zip(pair, (1.0, 3.0), strict=True):
        assert talk.ask(MessageType.MERGE, messages.text(json.dumps({"weight": weight}))).type is MessageType.DONE
    for talk in pair:
        assert talk.ask(MessageType.ADOPT).type is MessageType.DONE
        torch.testing.assert_close(talk.state.layer.linear.weight, 0.25 * weights[0] + 0.75 * weights[1])


def adopt(talk, of, **more):
    return talk.ask(MessageType.ADOPT, messages.text(json.dumps({"of": of} | more)))


def trained_alone(server, terms, clients):
    """A member each, which has trained one step of its own and stored it: conversations and the names of their checkpoints."""
    talks, names = [], []
    for number, client in enumerate(clients, start=1):
        talk = Conversation(server, ClientInfo(client))
        talk.hello(terms)
        if terms.protocol == "vanilla":
            talk.ask(MessageType.LEARN, matrix(4, 6, number) + matrix(4, 1))
        else:
            talk.ask(MessageType.FORWARD, matrix(4, 6, number))
            talk.ask(MessageType.BACKWARD, matrix(4, 3, number))
        assert talk.ask(MessageType.CHECKPOINT, messages.text('{"step": 1}')).type is MessageType.DONE
        talks.append(talk)
        names.append((talk.state.run, 1))
    return talks, names


def moments_of(layer):
    return {name: value.clone() for name, value in layer.tensors().items() if name.startswith("optimizer.")}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("protocol", ["plain", "vanilla"])
def test_an_average_names_its_members_whoever_else_is_there(make_terms, tmp_path, in_memory, protocol):
    server = Server(checkpoints=None if in_memory else tmp_path)
    terms = make_terms(group="h" * 16, members=1, protocol=protocol, classes=3)
    talks, names = trained_alone(server, terms, ["one", "two", "straggler"])
    weights = [talk.state.layer.linear.weight.detach().clone() for talk in talks]
    late = Conversation(server, ClientInfo("late"))
    late.hello(terms)
    for talk in (*talks, late):
        moments = moments_of(talk.state.layer)
        version, steps = talk.state.layer.version, talk.state.steps
        assert adopt(talk, [[*names[0], 1.0], [*names[1], 3.0]]).type is MessageType.DONE
        torch.testing.assert_close(talk.state.layer.linear.weight, 0.25 * weights[0] + 0.75 * weights[1])
        assert talk.state.layer.version > version  # the encrypted layer must not keep the weights before
        assert talk.state.steps == steps + 1
        assert len(moments) == (0 if talk is late else 6)
        assert all(torch.equal(value, moments[name]) for name, value in moments_of(talk.state.layer).items())


def test_a_checkpoint_is_taken_whole_with_its_moments(make_terms):
    server = Server()
    (first,), (name,) = trained_alone(server, make_terms(group="h" * 16, members=1), ["one"])
    next_one = Conversation(server, ClientInfo("two"))
    next_one.hello(make_terms(group="h" * 16, members=1))
    assert adopt(next_one, [[*name, 1.0]], whole=True).type is MessageType.DONE
    ours, theirs = next_one.state.layer.tensors(), first.state.layer.tensors()
    assert any(key.startswith("optimizer.") for key in theirs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("in_memory", [True, False])
def test_moments_of_another_optimiser_are_not_taken(make_terms, tmp_path, in_memory):
    """They would be lost or not understood; weights are the same for all."""
    server = Server(checkpoints=None if in_memory else tmp_path)
    _, (name,) = trained_alone(server, make_terms(group="h" * 16, members=1, server_optimizer="momentum"), ["one"])
    weight = server.stored(*name)["weight"]
    for whole in (True, False):
        talk = Conversation(server, ClientInfo("two"))
        talk.hello(make_terms(group="h" * 16, members=1, server_optimizer="adam"))
        reply = adopt(talk, [[*name, 1.0]], whole=whole)
        if whole:
            assert reply.type is MessageType.ERROR
            assert "another server_optimizer" in messages.take_text(reply.body, "error")[0]
        else:
            assert reply.type is MessageType.DONE
            torch.testing.assert_close(talk.state.layer.linear.weight, weight)
            talk.ask(MessageType.FORWARD, matrix(4, 6))
            assert talk.ask(MessageType.BACKWARD, matrix(4, 3)).type is MessageType.INPUT_GRADIENT


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_average_of_members_of_whom_one_has_ended(make_terms, tmp_path, in_memory, monkeypatch):
    server = Server(checkpoints=None if in_memory else tmp_path)
    talks, names = trained_alone(server, make_terms(group="h" * 16, members=1), ["one", "two"])
    weight = talks[0].state.layer.linear.weight.detach().clone()
    assert talks[0].ask(MessageType.END).type is MessageType.SUMMARY
    assert adopt(talks[1], [[*names[0], 1.0]]).type is MessageType.DONE
    torch.testing.assert_close(talks[1].state.layer.linear.weight, weight)
    talks[1].ask(MessageType.END)
    monkeypatch.setattr(sessions, "RESUME_SECONDS", -1.0)
    server.tidy()
    assert server.budget.held == 0  # they do not stay for ever


def test_members_are_of_a_group(make_terms):
    """Without one there is nobody to average with; it is said at once, and not when a message finds none."""
    talk = Conversation(Server())
    assert_refused(talk, talk.hello(make_terms(members=1)), "members", "group")


def test_averages_outlive_the_server(make_terms, tmp_path):
    terms = make_terms(group="h" * 16, members=1)
    talks, names = trained_alone(Server(checkpoints=tmp_path), terms, ["one", "two"])
    weights = [talk.state.layer.linear.weight.detach() for talk in talks]
    again = Conversation(Server(checkpoints=tmp_path), ClientInfo("one"))
    again.hello(terms)
    assert adopt(again, [[*name, 2.0] for name in names]).type is MessageType.DONE
    torch.testing.assert_close(again.state.layer.linear.weight, 0.5 * weights[0] + 0.5 * weights[1])


@pytest.mark.parametrize("changes", [{"group": "i" * 16}, {"group": "h" * 16, "weight_seed": 8}])
def test_no_one_takes_a_layer_of_a_group_that_is_not_its_own(make_terms, tmp_path, changes):
    _, (name,) = trained_alone(Server(checkpoints=tmp_path), make_terms(group="h" * 16, members=1), ["one"])
    stranger = Conversation(Server(checkpoints=tmp_path), ClientInfo("stranger"))
    stranger.hello(make_terms(members=1, **changes))
    before = stranger.state.layer.linear.weight.detach().clone()
    layer = stranger.state.layer
    reply = adopt(stranger, [[*name, 1.0]])
    expected = (
        "agreed on another weight_seed" if "weight_seed" in changes else "no member of the group has a checkpoint"
    )
    assert_refused(stranger, reply, expected)
    assert torch.equal(layer.linear.weight, before)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"of": []}, "expected 1 to"),
        ({"of": "x"}, "expected 1 to"),
        ({}, "expected 1 to"),
        ({"of": [["0" * 32, 1, 1.0]], "whole": 1}, "whole as bool"),
        ({"of": [["0" * 32, 1]]}, "a run, a step and a weight"),
        ({"of": [["0" * 32, True, 1.0]]}, "a run, a step and a weight"),
        ({"of": [[5, 1, 1.0]]}, "a run, a step and a weight"),
        ({"of": [["0" * 32, -1, 1.0]]}, "count from 0"),
        ({"of": [["0" * 32, 1, 0.0]]}, "weights are positive"),
        ({"of": [["0" * 32, 1, float("nan")]]}, "weights are positive"),
        ({"of": [["0" * 32, 1, 1.0], ["0" * 32, 2, 1.0]]}, "counts once"),
        ({"of": [["0" * 32, 1, 1.0], ["1" * 32, 1, 1.0]], "whole": True}, "only one checkpoint"),
        ({"of": [["0" * 32, 1, 1.0]]}, "no member of the group has a checkpoint of step 1 of run 00000000"),
        ({"of": [["../../secret", 1, 1.0]]}, "no member of the group"),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_averages_that_cannot_be(make_terms, tmp_path, in_memory, body, match):
    talk = Conversation(Server(checkpoints=None if in_memory else tmp_path))
    talk.hello(make_terms(group="h" * 16, members=1))
    layer = talk.state.layer
    before = layer.linear.weight.detach().clone()
    assert_refused(talk, talk.ask(MessageType.ADOPT, messages.text(json.dumps(body))), match)
    assert torch.equal(layer.linear.weight, before)


def test_one_client_cannot_crowd_out_the_others(make_terms):
    server = Server()
    good = Conversation(server, ClientInfo("good"))
    good.hello(make_terms())
    for _ in range(40):
        Conversation(server, ClientInfo("greedy")).hello(make_terms())
    assert len(server.sessions) <= 17
    assert good.ask(MessageType.FORWARD, matrix(4, 6)).type is MessageType.LOGITS


def test_small_steps_are_quick_and_nothing_else_is(make_terms, tmp_path):
    def begin(server, terms):
        client = ClientInfo("a", peer="ipv4:192.0.2.1:1")
        channel = InProcessChannel(server.converse(client))
        return Session(channel, terms, b"", Phases()), client.allowance.quick

    def message(session, kind, rows, columns, step=None):
        values = messages.matrix(np.ones((rows, columns), np.float32), "values")
        return messages.pack(kind, session._step if step is None else step, session.nonce, values)

    session, quick = begin(Server(), make_terms())
    forward = message(session, MessageType.FORWARD, 4, 6)
    assert quick(forward)
    assert not quick(message(session, MessageType.FORWARD, 4, 6, step=7))
    assert not quick(messages.pack(MessageType.END, session._step, session.nonce))
    assert not quick(b"no message")
    assert not quick(message(session, MessageType.EVALUATE, 40_000, 6))  # long
    # What was looked at is answered as anything else is.
    session.channel.send(forward)
    assert messages.unpack(session.channel.receive()).type is MessageType.LOGITS
    assert not quick(forward)  # it has been answered
    for server, terms in (
        (Server(), make_terms(group="g" * 16)),  # others may be at work on the layer
        (Server(queries=10, query_ledger=tmp_path), make_terms()),  # a disk is waited for
        (Server(), make_terms(in_features=4096, out_features=512)),  # long work
    ):
        session, quick = begin(server, terms)
        assert not quick(message(session, MessageType.FORWARD, 4, terms.in_features))
