"""Client and server in one thread: the server's conversation is resumed by every message."""

from __future__ import annotations

from collections.abc import Generator

from hesplit_native.errors import ProtocolError
from hesplit_native.transport.channel import PREFIX_BYTES

#: A server's side of a conversation: yields replies, is sent requests. Its first `next` yields nothing of use.
Conversation = Generator[bytes, bytes, None]


class InProcessChannel:
    """The client's `Channel` to a server that is a generator in the same thread.

    Bytes are counted as gRPC would count them.

    Parameters
    ----------
    conversation : Conversation
        The server's side, not started yet, for example `protocols.server.converse(state)`.
    """

    def __init__(self, conversation: Conversation) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self._conversation = conversation
        self._reply: bytes | None = None
        next(conversation)

    def send(self, message: bytes) -> None:
        """Let the server work on `message`; its reply waits for `receive`."""
        if self._reply is not None:
            raise ProtocolError("a message was sent before the reply to the last one was received")
        self.bytes_up += len(message) + PREFIX_BYTES
        try:
            self._reply = self._conversation.send(message)
        except StopIteration:
            raise ProtocolError("the server has ended this session") from None

    def receive(self) -> bytes:
        """The server's reply to the last message."""
        if self._reply is None:
            raise ProtocolError("there is no message to receive: the server only answers requests")
        reply, self._reply = self._reply, None
        self.bytes_down += len(reply) + PREFIX_BYTES
        return reply

    def close(self) -> None:
        """End the server's side."""
        self._conversation.close()
        self._reply = None
