"""What dishonest clients do to a server, one thing each: for `benchmarks.load`.

Every function makes one attempt, over connections that `open` gives, and comes down to what the server lets in, which costs it most.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Lock
from time import sleep

import numpy as np
import torch

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.errors import HESplitError
from hesplit_native.layer.costs import serving_cost
from hesplit_native.protocols import PROTOCOLS, messages
from hesplit_native.protocols.halves import ClientSetup
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import HEADER_BYTES, NO_SESSION, MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session, resumable
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport import ClientInfo, InProcessChannel, framing
from hesplit_native.transport.channel import SHORT_MESSAGE
from hesplit_native.transport.grpc import GrpcChannel

FEATURES, OUTPUTS, ROWS = 256, 5, 4
# Of the core's messages: framing, and what is before a request's ciphertexts.
_CORE, _FOOTER, _HEAD = 64, 8, 12 + 32 + 32
BLOCKS = hn.Parameters(ring_degree=2048, modulus_bits=[50], scale=2.0**16, error_bound=0.5)
LARGE = hn.Parameters(ring_degree=32768, modulus_bits=[50] * 16, scale=2.0**16, error_bound=0.5)
SLOTS = hn.Parameters(
    ring_degree=4096, modulus_bits=[35, 35, 36], scale=2.0**30, packing="slots", batch_size=8, error_bound=0.5
)
_runs: list[tuple[str, bytes]] = []  # sessions that were left, of all clients, and their nonces
_making = Lock()
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
    for message in (random.randbytes(random.randrange(1, 5000)), damaged(hello), damaged(hello)):
        channel = open()
        channel.send(message)
        channel.receive()
    channel = open()
    session = Session(channel, terms(), b"", Phases())
    kind = random.choice(list(MessageType))
    channel.send(damaged(messages.pack(kind, 1, session.nonce, matrix(ROWS, FEATURES))))
    channel.receive()


def secret(open: Open) -> None:
    """Handshakes of encrypted layers under the largest ring, which imply gigabytes, or terms to the end of what is admitted."""
    for features, outputs, rows in ((1, 65536, 1024), (65536, 256, 4), (4096, 4096, 16384)):
        for protocol in ("splitways", "hesplit"):
            _, public = laid(LARGE, features, outputs)
            implied = terms(features, outputs, protocol=protocol, batch_size=rows, parameter_hash=LARGE.hash)
            with suppress(HESplitError):
                Session(open(), implied, public, Phases())


def strangers(open: Open) -> None:
    """Leaves a session, and goes on with those that others left."""
    session = Session(open(), terms(), b"", Phases())
    session.exchange(MessageType.FORWARD, MessageType.LOGITS, matrix(ROWS, FEATURES))
    session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, matrix(ROWS, OUTPUTS))
    session.checkpoint(1)
    _runs.append((session.run, session.nonce))
    del _runs[:-64]
    run, nonce = random.choice(_runs)
    with suppress(HESplitError):
        resumable(open(), run, nonce)
    Session(open(), terms(), b"", Phases(), resume=(run, 1))


def layouts(open: Open) -> None:
    """Requests laid out by hand: one feature a ciphertext, a ring full of rows, so that products and pairs are as many as can be."""
    for features, outputs, rows in ((1, 16384, 2048), (1, 4096, 512), (512, 64, 2048), (64, 64, 2048), (64, 16, 1024)):
        client, public = laid(BLOCKS, features, outputs)
        agreed = terms(features, outputs, protocol="hesplit", batch_size=rows, parameter_hash=BLOCKS.hash)
        request = laid_out(client.encrypt(np.zeros((1, features))), rows, rows, 1, features)
        with suppress(HESplitError):
            session = Session(open(), agreed, public, Phases())
            session.exchange(MessageType.EVALUATE, MessageType.LOGITS, request)
            request = laid_out(client.encrypt(np.zeros((1, features))), rows, rows, 1, features)
            session.exchange(MessageType.FORWARD, MessageType.LOGITS, request)
            session.exchange(MessageType.BACKWARD, MessageType.MASKED_GRADIENT, matrix(rows, outputs))


def rotations(open: Open) -> None:
    """Weight gradients on slots of more samples than there are rotation keys for."""
    features = 16  # few: samples of one group are more than the keys are for
    rows = random.choice([9, 64, 256])
    client, public = laid(SLOTS, features, OUTPUTS)
    agreed = terms(features, protocol="hesplit", batch_size=rows, parameter_hash=SLOTS.hash)
    session = Session(open(), agreed, public, Phases())
    session.exchange(MessageType.FORWARD, MessageType.LOGITS, client.encrypt(np.ones((rows, features)) / features))
    session.exchange(MessageType.BACKWARD, MessageType.MASKED_GRADIENT, matrix(rows, OUTPUTS))


def stages(open: Open) -> None:
    """A whole session of any protocol in which one message is damaged, half of the time with a good checksum."""
    name = random.choice([name for name, protocol in PROTOCOLS.items() if protocol.is_split])
    with _making:
        sent = recorded(name)
    at = random.randrange(len(sent))
    channel, nonce = open(), NO_SESSION
    for index, message in enumerate(sent[: at + 1]):
        present = message[:16] + nonce + message[HEADER_BYTES:]
        channel.send(damaged(present) if index == at else present)
        nonce = messages.unpack(channel.receive()).session


def laid(parameters: hn.Parameters, features: int, outputs: int) -> tuple[hn.LinearClient, bytes]:
    """A client that may ask for weight gradients, made once, and its public material."""
    with _making:
        return _laid(parameters, features, outputs)


@cache
def _laid(parameters: hn.Parameters, features: int, outputs: int) -> tuple[hn.LinearClient, bytes]:
    client = hn.LinearClient(hn.SecretKey.generate(parameters), features, outputs, weight_gradients=True)
    return client, client.public_material()


def laid_out(request: bytes, rows: int, group: int, width: int, ciphertexts: int) -> bytes:
    """A request of BLOCKS in another layout, all of whose ciphertexts are (0, c1): as long as it has to be."""
    size = serving_cost(BLOCKS, 1, 1, 1, "forward").request_bytes - _CORE - _FOOTER - _HEAD
    head = bytearray(request[: _CORE + _HEAD])
    head[8:16] = struct.pack("<Q", _CORE + _HEAD + ciphertexts * size + _FOOTER)
    head[_CORE : _CORE + 12] = struct.pack("<III", rows, group, width)
    return _testing.reseal(bytes(head) + bytes(ciphertexts * size + _FOOTER))


def damaged(message: bytes) -> bytes:
    """The message after some edits, half of the time with the core's checksum made good; now and then nothing but noise."""
    if random.random() < 0.1:
        return random.randbytes(random.choice([0, 1, 31, 32, 100, 10_000]))
    changed = bytearray(message)
    front = random.choice([0, HEADER_BYTES])
    for _ in range(random.randint(1, 4)):
        at, some = random.randint(front, max(front, len(changed) - 1)), random.randbytes(random.randint(1, 8))
        length = random.choice([0, len(some)])
        changed[at : at + length] = random.choice([some, b"", bytes(len(some)), b"\xff" * len(some)])
    if random.random() < 0.1:
        del changed[random.randrange(len(changed)) :]
    core = bytes(changed).find(b"HESN", HEADER_BYTES)
    if random.random() < 0.5 and core >= 0 and len(changed) - core >= _CORE + _FOOTER:
        inner = changed[core:]
        inner[8:16] = struct.pack("<Q", len(inner))
        changed[core:] = _testing.reseal(bytes(inner))
    return bytes(changed)


@cache
def recorded(name: str) -> list[bytes]:
    """The messages of a short session of an honest client."""
    protocol, parameters = PROTOCOLS[name], None
    if protocol.encrypts:
        recommend = hn.Parameters.recommend_sealed if protocol.seals_weights else hn.Parameters.recommend
        parameters = recommend(in_features=6, out_features=3, batch_size=ROWS)
    others = {"parameter_hash": parameters.hash if parameters else "", "classes": 3 * protocol.labels_at_server}
    if protocol.client_holds_layer:
        others |= {"learning_rate": 0.0, "server_optimizer": "client", "weight_seed": 0}
    agreed, sent = terms(6, 3, protocol=name, **others), []
    layer = TrainedLayer(terms(6, 3, protocol="local")) if protocol.client_holds_layer else None
    setup = ClientSetup(agreed, Phases(), parameters=parameters, layer=layer)
    encryption, material = protocol.halves.encryption(setup)
    channel = InProcessChannel(Server().converse(ClientInfo("recorded")))
    send = channel.send
    channel.send = lambda message: (sent.append(message), send(message))[1]  # type: ignore[method-assign]
    session = Session(channel, agreed, material, setup.phases)
    client = protocol.halves.client(setup, session, encryption)
    x = torch.linspace(-1, 1, 6 * ROWS).reshape(ROWS, 6)
    if protocol.labels_at_server:
        client.learn(x, torch.tensor([0, 1, 2, 0]))
    else:
        rows = client.prepare(x)
        client.forward(rows)
        client.backward(rows, torch.full((ROWS, 3), 0.25))
    client.evaluate(x)
    session.checkpoint(1)
    session.end()
    return sent


ATTACKS: dict[str, Callable[[Open], None]] = {
    attack.__name__: attack
    for attack in (
        mute,
        slow,
        greedy,
        hello,
        secret,
        early,
        hangup,
        strangers,
        amplify,
        pairs,
        layouts,
        rotations,
        garbage,
        stages,
    )
}
