"""What dishonest clients do to a server, one thing each: for `benchmarks.load`.

Every function makes one attempt, over connections that `open` gives, and comes down to what the server lets in, which costs it most.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from time import sleep

import numpy as np

import hesplit_native as hn
from hesplit_native.errors import HESplitError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import NO_SESSION, MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport import framing
from hesplit_native.transport.channel import SHORT_MESSAGE
from hesplit_native.transport.grpc import GrpcChannel

FEATURES, OUTPUTS, ROWS = 256, 5, 4
#: Gives a connection in place of the client's last one, which ends without a word.
Open = Callable[[], GrpcChannel]


def terms(features: int = FEATURES, outputs: int = OUTPUTS, **other: object) -> Terms:
    values = {"protocol": "plain", "batch_size": ROWS, "batches": 0, "epochs": 0, "learning_rate": 0.01,
              "server_optimizer": "adam", "weight_seed": 7} | other  # fmt: skip
    return Terms(in_features=features, out_features=outputs, **values)


def matrix(rows: int, columns: int) -> bytes:
    return messages.matrix(np.ones((rows, columns), np.float32), "values")


def put(channel: GrpcChannel, message: bytes, *, pause: float = 0.0, share: float = 1.0) -> None:
    """A part of a message, piece by piece, without waiting for an answer."""
    pieces = list(framing.pieces(message))
    for piece in pieces[: max(1, int(share * len(pieces)))]:
        channel._outgoing.put(piece)
        sleep(pause)


def mute(open: Open) -> None:
    """Says nothing."""
    open()
    sleep(1.0)


def slow(open: Open) -> None:
    """A large message a piece at a time, up to its middle."""
    channel = open()
    session = Session(channel, terms(), b"", Phases())
    whole = messages.pack(MessageType.EVALUATE, 1, session.nonce, matrix(16384, FEATURES))
    put(channel, whole, pause=0.5, share=0.5)


def greedy(open: Open) -> None:
    """As much as it is given."""
    for size in [(4096, 4096), (2048, 2048), (1024, 4096), (512, 512)]:
        session = Session(open(), terms(*size), b"", Phases())
        for _ in range(5):
            session.exchange(MessageType.EVALUATE, MessageType.LOGITS, matrix(512, size[0]))


def hello(open: Open) -> None:
    """Handshakes of some hundred bytes that imply gigabytes."""
    vanilla = {"protocol": "vanilla", "hidden": True}
    for implied in (
        terms(256, 65536, **vanilla, classes=65536),
        terms(256, 65536, **vanilla, classes=256),
        terms(65536, 65536),
        terms(4096, 4096, batch_size=16384),
        terms(256, 5, batch_size=65536, members=1024, group="x" * 32),
        terms(65536, 256, batch_size=1024, group="y" * 32),
    ):
        with suppress(HESplitError):  # the next one may be let in
            Session(open(), implied, b"", Phases())


def early(open: Open) -> None:
    """A message of 120 MB before any handshake, and one whose first piece says so."""
    whole = messages.pack(MessageType.FORWARD, 0, NO_SESSION, bytes(120 << 20))
    put(open(), whole)
    put(open(), whole, pause=0.2, share=3 * SHORT_MESSAGE / len(whole))


def hangup(open: Open) -> None:
    """Sessions that take memory and checkpoints and vanish; and runs that are not there, or somebody else's."""
    for width in (2048, 1024, 512):
        with suppress(HESplitError):
            session = Session(open(), terms(width, width), b"", Phases())
            session.exchange(MessageType.FORWARD, MessageType.LOGITS, matrix(ROWS, width))
            session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, matrix(ROWS, width))
            session.checkpoint(1)
    open()
    Session(open(), terms(), b"", Phases(), resume=(random.randbytes(16).hex(), 1))


@cache
def material(features: int, outputs: int, protocol: str) -> tuple[hn.LinearClient, bytes, Terms]:
    parameters = hn.Parameters.recommend(in_features=features, out_features=outputs, batch_size=64)
    # A link that costs nothing: the layout with the most ciphertexts.
    key, weight_gradients = hn.SecretKey.generate(parameters), protocol == "hesplit"
    client = hn.LinearClient(key, features, outputs, weight_gradients=weight_gradients, link=1e15)
    agreed = terms(features, outputs, protocol=protocol, batch_size=64, parameter_hash=parameters.hash)
    return client, client.public_material(), agreed


def amplify(open: Open) -> None:
    """Requests of some kilobytes whose replies are megabytes: as many outputs as are let in."""
    for outputs in (16384, 4096, 2048, 512):
        client, public, agreed = material(1, outputs, "splitways")
        with suppress(HESplitError):
            session = Session(open(), agreed, public, Phases())
            request = client.encrypt(np.ones((2048, 1), np.float32))
            for _ in range(3):
                session.exchange(MessageType.EVALUATE, MessageType.LOGITS, request)


def pairs(open: Open) -> None:
    """Encrypted weight gradients of as many products and inputs as are let in."""
    for features, outputs in ((2000, 1000), (1000, 200), (500, 50), (256, 20)):
        client, public, agreed = material(features, outputs, "hesplit")
        with suppress(HESplitError):
            session = Session(open(), agreed, public, Phases())
            request = client.encrypt(np.ones((64, features), np.float32))
            session.exchange(MessageType.FORWARD, MessageType.LOGITS, request)
            session.exchange(MessageType.BACKWARD, MessageType.MASKED_GRADIENT, matrix(64, outputs))


def garbage(open: Open) -> None:
    """Bytes that are no messages, and messages that are nearly right, before and within a session."""
    hello = messages.pack(MessageType.HELLO, 0, NO_SESSION, messages.text(terms().to_json()))
    for message in (random.randbytes(random.randrange(1, 5000)), _mutated(hello), _mutated(hello)):
        channel = open()
        channel.send(message)
        channel.receive()
    channel = open()
    session = Session(channel, terms(), b"", Phases())
    kind = random.choice(list(MessageType))
    channel.send(_mutated(messages.pack(kind, 1, session.nonce, matrix(ROWS, FEATURES))))
    channel.receive()


def _mutated(message: bytes) -> bytes:
    changed = bytearray(message)
    for _ in range(random.randrange(1, 4)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed[: random.randrange(1, len(changed) + 1)] if random.random() < 0.3 else changed)


ATTACKS: dict[str, Callable[[Open], None]] = {
    attack.__name__: attack for attack in (mute, slow, greedy, hello, early, hangup, amplify, pairs, garbage)
}
