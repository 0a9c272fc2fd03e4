"""The client's end of a session: handshake, numbered requests, answers checked, and how it goes on after a disconnect."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hesplit_native.errors import ConnectionLost, HESplitError, ProtocolError, WireError
from hesplit_native.protocols import messages
from hesplit_native.protocols.frozen_messages import take_refusal
from hesplit_native.protocols.messages import Message, MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import Channel

#: Seconds for which a client tries to reach a server that went away.
PATIENCE = 120.0


class RolledBack(ProtocolError):
    """The server lost the session but has checkpoints of the run: the client must go back to one that both have."""

    def __init__(self, checkpoints: list[int]) -> None:
        super().__init__(f"the server has this run's checkpoints {checkpoints} and nothing later")
        self.checkpoints = checkpoints


@dataclass(frozen=True)
class Reconnection:
    """How a session that lost its connection gets another."""

    connect: Callable[[], Channel]
    patience: float = PATIENCE


class Session:
    """Agrees on `terms` over a channel, then exchanges requests for replies.

    A request whose connection is lost is sent again, the very same bytes, once the server is back; the server, which
    remembers its last reply, works on it at most once.

    Parameters
    ----------
    public_material
        What the server needs of an encrypted protocol; empty otherwise.
    resume
        The run and the checkpoint to go on from, agreed on by `resumable`; None: a new run.
    reconnection
        None: a lost connection ends the session.

    Raises
    ------
    ProtocolError
        When the server refuses, disagrees or goes away.
    WireError
        When its bytes are not messages of this protocol.
    """

    def __init__(
        self,
        channel: Channel,
        terms: Terms,
        public_material: bytes,
        phases: Phases,
        *,
        resume: tuple[str, int] | None = None,
        reconnection: Reconnection | None = None,
    ) -> None:
        self.channel = channel
        self.terms = terms
        self.phases = phases
        self.run = ""
        self._reconnection = reconnection
        self._nonce = messages.NO_SESSION
        self._step = 0
        self._ended = False
        self._counted = (0, 0)
        self._begin(public_material, resume)

    def _begin(self, public_material: bytes, resume: tuple[str, int] | None) -> None:
        self._nonce, self._step = messages.NO_SESSION, 0
        if resume is None:
            kind, text = MessageType.HELLO, self.terms.to_json()
        else:
            kind = MessageType.RESTORE
            text = json.dumps({"terms": self.terms.to_json(), "run": resume[0], "checkpoint": resume[1]})
        reply = self.exchange(kind, MessageType.WELCOME, messages.text(text), public_material)
        values, rest = messages.take_json(reply.body, "welcome")
        messages.take_nothing(rest, "welcome")
        run = values.pop("run", None)
        if not isinstance(run, str) or reply.session == messages.NO_SESSION:
            raise WireError("welcome: names no run")
        self.terms.check_agreement(Terms.from_json(values))
        self._nonce, self.run = reply.session, run

    def restore(self, public_material: bytes, checkpoint: int, connect: Callable[[], Channel]) -> None:
        """Go on, over another connection, from a checkpoint that the server has too."""
        self._replace_channel(connect)
        self._begin(public_material, (self.run, checkpoint))

    @property
    def bytes_up(self) -> int:
        """Bytes to the server so far, over all connections."""
        return self._counted[0] + self.channel.bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes from the server so far, over all connections."""
        return self._counted[1] + self.channel.bytes_down

    @property
    def nonce(self) -> bytes:
        """What the server drew for this session: 16 bytes that all its participants and no one else can know under TLS."""
        return self._nonce

    def exchange(self, kind: MessageType, expected: MessageType, *parts: bytes) -> Message:
        """Send a request and wait for its reply; the time counts as the server's.

        A request that the server refuses alone raises what it says (`QueryBudgetExceeded`), and the session goes on.
        """
        back = self.phases.enter("server and transport")
        reply = self._deliver(messages.pack(kind, self._step, self._nonce, *parts))
        self.phases.enter(back)
        if reply.type is MessageType.ERROR:
            self._ended = True
            reason, _ = messages.take_text(reply.body, "error")
            raise ProtocolError(f"the server ended the session: {reason}")
        known = self._nonce != messages.NO_SESSION
        if known and (reply.type, reply.step, reply.session) == (MessageType.REFUSED, self._step, self._nonce):
            self._step += 1
            raise take_refusal(reply.body)[0]
        if reply.type is not expected or reply.step != self._step or (known and reply.session != self._nonce):
            raise ProtocolError(
                f"expected {expected.name} for request {self._step}, got {reply.type.name} for request {reply.step}"
                + (" of another session" if known and reply.session != self._nonce else "")
            )
        self._step += 1
        return reply

    def _deliver(self, message: bytes) -> Message:
        while True:
            try:
                self.channel.send(message)
                return messages.unpack(self.channel.receive())
            except ConnectionLost:
                if self._reconnection is None or self._nonce == messages.NO_SESSION:
                    raise
                self._reconnect(self._reconnection)

    def _reconnect(self, reconnection: Reconnection) -> None:
        """Another connection on which the server knows this session; RolledBack if it only has checkpoints of it."""
        deadline = time.monotonic() + reconnection.patience
        pause = 0.05
        while True:
            try:
                self._replace_channel(reconnection.connect)
                found = resumable(self.channel, self.run, self._nonce)
                break
            except ConnectionLost:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
        if found is not None:
            raise RolledBack(found)

    def _replace_channel(self, connect: Callable[[], Channel]) -> None:
        self._counted = self.bytes_up, self.bytes_down
        self.channel.close()
        self.channel = connect()

    def checkpoint(self, step: int, *, keep: bool = False) -> None:
        """Let the server store its state as that of training step `step`; with `keep` it stays until another one is to be kept."""
        body = messages.text(json.dumps({"step": step} | ({"keep": True} if keep else {})))
        messages.take_nothing(self.exchange(MessageType.CHECKPOINT, MessageType.DONE, body).body, "done")

    def set_rate(self, learning_rate: float) -> None:
        """Let the server's optimiser go on with another learning rate. It is not part of checkpoints."""
        body = messages.text(json.dumps({"learning_rate": float(learning_rate)}))
        messages.take_nothing(self.exchange(MessageType.RATE, MessageType.DONE, body).body, "done")

    def merge(self, weight: float) -> None:
        """Offer the server's layer of this session to the average, with a weight."""
        body = messages.text(json.dumps({"weight": weight}))
        messages.take_nothing(self.exchange(MessageType.MERGE, MessageType.DONE, body).body, "done")

    def adopt(self, of: Sequence[tuple[str, int, float]] = (), *, whole: bool = False) -> None:
        """Continue with the average of all members' layers, each of which has called `merge`.

        With `of` the average is of these checkpoints of members of the group instead: run, step and weight. A single one can be
        taken `whole`, with the moments of its optimiser.
        """
        text = json.dumps({"of": [[run, step, float(weight)] for run, step, weight in of], "whole": whole})
        body = (messages.text(text),) if of else ()
        messages.take_nothing(self.exchange(MessageType.ADOPT, MessageType.DONE, *body).body, "done")

    def end(self) -> dict[str, float]:
        """End the session; returns the server's seconds by phase."""
        reply = self.exchange(MessageType.END, MessageType.SUMMARY)
        self._ended = True
        seconds, rest = messages.take_json(reply.body, "summary")
        messages.take_nothing(rest, "summary")
        for phase, value in seconds.items():
            if not isinstance(value, float) or not math.isfinite(value):
                raise WireError(f"summary: expected seconds for {phase!r}")
        return seconds

    def leave(self) -> None:
        """End the session whatever the server answers; for the server it is an end like any other."""
        if not self._ended:
            self._ended = True
            try:
                self.channel.send(messages.pack(MessageType.END, self._step, self._nonce))
                self.channel.receive()
            except HESplitError:
                pass  # it was the last message
        self.channel.close()


def resumable(channel: Channel, run: str, nonce: bytes | None = None) -> list[int] | None:
    """Ask a server, on a new connection, how a run can go on: None when the session with that nonce is still alive and goes on
    as it is, otherwise the checkpoints that the server has of the run.
    """  # noqa: D205
    question = {"run": run, "session": nonce.hex() if nonce else ""}
    channel.send(messages.pack(MessageType.RESUME, 0, messages.NO_SESSION, messages.text(json.dumps(question))))
    reply = messages.unpack(channel.receive())
    if reply.type is MessageType.ERROR:
        raise ProtocolError(f"the server cannot resume the run: {messages.take_text(reply.body, 'error')[0]}")
    if reply.type is not MessageType.RESUMED:
        raise ProtocolError(f"expected RESUMED, got {reply.type.name}")
    values: dict[str, Any]
    values, rest = messages.take_json(reply.body, "resumed")
    messages.take_nothing(rest, "resumed")
    if values.get("alive") is True:
        return None
    checkpoints = values.get("checkpoints")
    if not isinstance(checkpoints, list) or not all(isinstance(step, int) for step in checkpoints):
        raise WireError("resumed: expected a list of checkpoints")
    return checkpoints
