"""How participants and server of a Triad session talk, over any transport (section III-A and III-B).

    participant                      server
                   -- JOIN -->         draws one nonce for the session
      builds its layer from it  <-- NONCE --
                   -- SUBMIT -->       keeps the sanitised rows and labels: to train on, then to validate on
                   <-- DONE --

The nonce is a secret of server and participants: it must travel over mutual TLS, or not leave the machine.
"""

from __future__ import annotations

import secrets
import struct
import threading
from dataclasses import dataclass

from hesplit_native.errors import HESplitError, ProtocolError, WireError
from hesplit_native.protocols import messages
from hesplit_native.protocols.budget import Budget, default_memory
from hesplit_native.protocols.messages import NO_SESSION, MessageType
from hesplit_native.transport.channel import SHORT_MESSAGE, Channel, ClientInfo
from hesplit_native.transport.in_process import Conversation

_LENGTHS = struct.Struct("<4Q")


@dataclass(frozen=True)
class Parcel:
    """What a participant sends: float32 activations and labels, float32 or one byte each, in little-endian C order."""

    activations: bytes
    labels: bytes

    def __len__(self) -> int:
        return len(self.activations) + len(self.labels)


class TriadServer:
    """One session: its nonce, and what each participant has sent. Safe to use from several threads.

    Parameters
    ----------
    nonce
        None: drawn from the operating system. Only measurements that must repeat give one.
    memory
        Bytes that all participants' rows may take, those on their way included; None: half of this machine's memory.
    """

    def __init__(self, nonce: bytes | None = None, *, memory: int | None = None) -> None:
        self._nonce = nonce if nonce is not None else secrets.token_bytes(32)
        self._budget = Budget(default_memory() if memory is None else memory)
        self._lock = threading.Lock()
        self.received: dict[str, tuple[Parcel, Parcel]] = {}

    def converse(self, client: ClientInfo) -> Conversation:
        """Answer one participant; its id is that of its certificate."""
        hold, step = self._budget.hold(client.id), 0

        def admit(beginning: memoryview, length: int) -> None:
            if step == 0 and length > SHORT_MESSAGE:
                raise WireError(f"a message of {length} bytes; to join takes {messages.HEADER_BYTES}")
            hold.resize(3 * length)  # as it comes, whole, and taken apart

        client.allowance.admit, client.allowance.settled = admit, False
        reply = b""
        try:
            while True:
                message = yield reply
                request = messages.unpack(message)
                if request.step != step or request.session != NO_SESSION:
                    raise ProtocolError(f"request {request.step} came where {step} was due")
                if request.type is MessageType.JOIN and step == 0:
                    messages.take_nothing(request.body, "join")
                    reply = messages.pack(MessageType.NONCE, step, NO_SESSION, self._nonce)
                    client.allowance.settled = True
                elif request.type is MessageType.SUBMIT and step == 1:
                    hold.resize(3 * len(message))
                    parcels = _take_parcels(request.body)
                    with self._lock:
                        if client.id in self.received:
                            raise ProtocolError("this participant has sent its rows already")
                        self.received[client.id] = parcels
                    hold.resize(len(message))
                    hold = self._budget.hold(client.id)  # the rows stay
                    reply = messages.pack(MessageType.DONE, step, NO_SESSION)
                else:
                    raise ProtocolError(f"{request.type.name} is not what comes at step {step}")
                step += 1
        except HESplitError as error:
            yield messages.pack(MessageType.ERROR, step, NO_SESSION, messages.text(str(error)))
        finally:
            hold.release()


def join(channel: Channel) -> bytes:
    """The session's nonce."""
    channel.send(messages.pack(MessageType.JOIN, 0, NO_SESSION))
    nonce = bytes(_expect(channel, MessageType.NONCE))
    if len(nonce) < 16:
        raise WireError(f"a nonce of {len(nonce)} bytes; at least 16 are needed")
    return nonce


def submit(channel: Channel, train: Parcel, validation: Parcel) -> None:
    """Send the sanitised rows: those to train on, and those to validate on."""
    parts = (train.activations, train.labels, validation.activations, validation.labels)
    channel.send(messages.pack(MessageType.SUBMIT, 1, NO_SESSION, _LENGTHS.pack(*map(len, parts)), *parts))
    messages.take_nothing(_expect(channel, MessageType.DONE), "done")


def _expect(channel: Channel, kind: MessageType) -> memoryview:
    reply = messages.unpack(channel.receive())
    if reply.type is MessageType.ERROR:
        raise ProtocolError(f"the server refused: {messages.take_text(reply.body, 'error')[0]}")
    if reply.type is not kind:
        raise ProtocolError(f"expected {kind.name}, got {reply.type.name}")
    return reply.body


def _take_parcels(body: memoryview) -> tuple[Parcel, Parcel]:
    if len(body) < _LENGTHS.size:
        raise WireError("submit: the message ends before its lengths")
    lengths = _LENGTHS.unpack_from(body)
    if sum(lengths) != len(body) - _LENGTHS.size:
        raise WireError("submit: the lengths do not add up to the message")
    parts, at = [], _LENGTHS.size
    for length in lengths:
        parts.append(bytes(body[at : at + length]))
        at += length
    return Parcel(parts[0], parts[1]), Parcel(parts[2], parts[3])
