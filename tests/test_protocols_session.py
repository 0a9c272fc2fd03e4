"""The client's end against servers that misbehave."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from hesplit_native.errors import ProtocolError, WireError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.session import Session
from hesplit_native.transport import InProcessChannel

NONCE = bytes(range(16))


def scripted(*replies):
    """A channel to a server that answers with these, whatever it is asked."""

    def conversation():
        queue = [b"", *replies]
        while queue:  # not "yield from": that would pass what is sent on to the list
            yield queue.pop(0)

    return InProcessChannel(conversation())


def welcome(terms, step=0):
    return messages.pack(MessageType.WELCOME, step, NONCE, body(terms))


def body(terms, **changes):
    return messages.text(json.dumps(asdict(terms) | {"run": "ab" * 16} | changes))


def test_agreement(make_terms):
    Session(scripted(welcome(make_terms())), make_terms(), b"", Phases())


def test_disagreement(make_terms):
    with pytest.raises(ProtocolError, match=r"learning_rate is 0\.01 here and 0\.5 at the peer"):
        Session(scripted(welcome(make_terms(learning_rate=0.5))), make_terms(), b"", Phases())


@pytest.mark.parametrize(
    ("kind", "step", "content", "error", "match"),
    [
        (MessageType.LOGITS, 0, b"", ProtocolError, "expected WELCOME for request 0, got LOGITS for request 0"),
        (MessageType.WELCOME, 1, b"", ProtocolError, "got WELCOME for request 1"),
        (MessageType.WELCOME, 0, b"", WireError, "welcome"),
        (MessageType.WELCOME, 0, messages.text("{}"), WireError, "names no run"),
        (MessageType.WELCOME, 0, messages.text('{"run": "x"}'), WireError, "expected the fields"),
        (MessageType.ERROR, 0, messages.text("no room"), ProtocolError, "server ended the session: no room"),
        (MessageType.ERROR, 9, messages.text("no room"), ProtocolError, "no room"),
        (MessageType.ERROR, 0, b"\xff", WireError, "error"),
    ],
)
def test_other_replies_to_the_handshake(make_terms, kind, step, content, error, match):
    with pytest.raises(error, match=match):
        Session(scripted(messages.pack(kind, step, NONCE, content)), make_terms(), b"", Phases())


def test_a_reply_is_not_accepted_twice(make_terms):
    summary = messages.pack(MessageType.SUMMARY, 1, NONCE, messages.text("{}"))
    session = Session(scripted(welcome(make_terms()), summary, summary), make_terms(), b"", Phases())
    session.exchange(MessageType.END, MessageType.SUMMARY)
    with pytest.raises(ProtocolError, match="for request 2, got SUMMARY for request 1"):
        session.exchange(MessageType.END, MessageType.SUMMARY)


def test_replies_of_another_session_are_refused(make_terms):
    foreign = messages.pack(MessageType.SUMMARY, 1, bytes(15) + b"x", messages.text("{}"))
    session = Session(scripted(welcome(make_terms()), foreign), make_terms(), b"", Phases())
    with pytest.raises(ProtocolError, match="of another session"):
        session.end()


def test_a_session_without_a_nonce_is_refused(make_terms):
    reply = messages.pack(MessageType.WELCOME, 0, messages.NO_SESSION, body(make_terms()))
    with pytest.raises(WireError, match="names no run"):
        Session(scripted(reply), make_terms(), b"", Phases())


def test_summary(make_terms):
    def session(seconds):
        reply = messages.pack(MessageType.SUMMARY, 1, NONCE, messages.text(json.dumps(seconds)))
        return Session(scripted(welcome(make_terms()), reply), make_terms(), b"", Phases())

    assert session({"forward": 1.5}).end() == {"forward": 1.5}
    for absurd in ([], {"forward": "long"}, {"forward": float("nan")}, {"forward": {}}):
        with pytest.raises(WireError, match="summary"):
            session(absurd).end()
