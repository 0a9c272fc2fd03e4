"""The client's end of a session: handshake, numbered requests, answers checked."""

from __future__ import annotations

import math

from hesplit_native.errors import ProtocolError, WireError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import Message, MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import Channel


class Session:
    """Agrees on `terms` over a channel, then exchanges requests for replies.

    Raises
    ------
    ProtocolError
        When the server refuses, disagrees or goes away.
    WireError
        When its bytes are not messages of this protocol.
    """

    def __init__(self, channel: Channel, terms: Terms, public_material: bytes, phases: Phases) -> None:
        self.channel = channel
        self.terms = terms
        self.phases = phases
        self._step = 0
        hello = (messages.text(terms.to_json()), public_material)
        reply = self.exchange(MessageType.HELLO, MessageType.WELCOME, *hello)
        values, rest = messages.take_json(reply.body, "welcome")
        messages.take_nothing(rest, "welcome")
        terms.check_agreement(Terms.from_json(values))

    def exchange(self, kind: MessageType, expected: MessageType, *parts: bytes) -> Message:
        """Send a request and wait for its reply; the time counts as the server's."""
        back = self.phases.enter("server and transport")
        self.channel.send(messages.pack(kind, self._step, *parts))
        reply = messages.unpack(self.channel.receive())
        self.phases.enter(back)
        if reply.type is MessageType.ERROR:
            reason, _ = messages.take_text(reply.body, "error")
            raise ProtocolError(f"the server ended the session: {reason}")
        if reply.type is not expected or reply.step != self._step:
            raise ProtocolError(
                f"expected {expected.name} for request {self._step}, got {reply.type.name} for request {reply.step}"
            )
        self._step += 1
        return reply

    def end(self) -> dict[str, float]:
        """End the session; returns the server's seconds by phase."""
        reply = self.exchange(MessageType.END, MessageType.SUMMARY)
        seconds, rest = messages.take_json(reply.body, "summary")
        messages.take_nothing(rest, "summary")
        for phase, value in seconds.items():
            if not isinstance(value, float) or not math.isfinite(value):
                raise WireError(f"summary: expected seconds for {phase!r}")
        return seconds
