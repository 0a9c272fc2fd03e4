"""Mutated messages and files, at every door that Python opens to them: a typed error or an answer, and nothing else.

The doors of the core have fuzzers of their own (docs/fuzzing.md). Everything here is deterministic and takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.errors import DataError, HESplitError, KeyMismatchError, ProtocolError, RangeError, WireError
from hesplit_native.layer.keys import ReleaseLedger
from hesplit_native.protocols import PROTOCOLS, messages
from hesplit_native.protocols.halves import ClientSetup
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session, resumable
from hesplit_native.protocols.storage import CheckpointStore, read_tensors, write_tensors
from hesplit_native.protocols.terms import Terms
from hesplit_native.training.checkpoints import ClientCheckpoints, Progress, Snapshot
from hesplit_native.training.config import RunConfig
from hesplit_native.training.model_file import load_model
from hesplit_native.transport import ClientInfo, ClientTls, InProcessChannel, ServerTls

fuzz = settings(derandomize=True, database=None, max_examples=150)

HEADER = 32
CORE = b"HESN"
FEATURES, OUTPUTS, ROWS = 6, 3, 4

#: Edits of bytes: what, where (modulo the length), with what.
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "flip"]),
        st.integers(0, 2**20),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)

#: Any JSON, with the numbers, texts and depths that programs trip over.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 3, 4, 6, 10**6, 2**63, 10**300, 0.5, -0.0, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "plain", "0" * 32, "\ud800" * 16, "\x00\n\x1b", "../../x", "e" * 64]),
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
NESTED = '{"a":' * 9000 + "1" + "}" * 9000


def edited(data: bytes, edits) -> bytes:
    changed = bytearray(data)
    for what, at, value in edits:
        at %= len(changed) + 1
        if what == "set":
            changed[at : at + len(value)] = value
        elif what == "insert":
            changed[at:at] = value
        elif what == "delete":
            del changed[at : at + len(value)]
        elif what == "cut":
            del changed[at:]
        elif at < len(changed):
            changed[at] ^= value[0] or 1
    return bytes(changed)


def with_values(values: dict, changes: dict) -> dict:
    return values | {list(values)[index % len(values)]: value for index, value in changes.items()}


#: Changes of the values of an object: by the number of the key.
CHANGES = st.dictionaries(st.integers(0, 20), JSON, max_size=3)


class Talk:
    """The messages of one whole session, as its client sent them."""

    def __init__(self, protocol, folder):
        kind = PROTOCOLS[protocol]
        parameters = None
        if kind.encrypts:
            recommend = hn.Parameters.recommend_sealed if kind.seals_weights else hn.Parameters.recommend
            private = {"private_weights": True} if kind.private_weights else {}
            parameters = recommend(in_features=FEATURES, out_features=OUTPUTS, batch_size=ROWS, **private)
        self.terms = Terms(
            protocol, FEATURES, OUTPUTS, ROWS, 10, 2,
            0.0 if kind.client_holds_layer else 0.01, "client" if kind.client_holds_layer else "adam",
            0 if kind.client_holds_layer else 7, parameter_hash=parameters.hash if parameters else "",
            classes=OUTPUTS if kind.labels_at_server else 0,
        )  # fmt: skip
        local = Terms("local", FEATURES, OUTPUTS, ROWS, 10, 2, 0.01, "adam", 7)
        layer = TrainedLayer(local) if kind.client_holds_layer else None
        setup = ClientSetup(self.terms, Phases(), parameters=parameters, layer=layer)
        encryption, material = kind.halves.encryption(setup)
        self.server = Server(checkpoints=folder, labels=torch.tensor([2, 0, 1]))
        self.sent = []
        channel = InProcessChannel(self.server.converse(ClientInfo("test")))
        send = channel.send
        channel.send = lambda message: (self.sent.append(message), send(message))
        session = Session(channel, self.terms, material, setup.phases)
        self.run = session.run
        client = kind.halves.client(setup, session, encryption)
        x = torch.linspace(-1, 1, ROWS * FEATURES).reshape(ROWS, FEATURES)
        for _ in range(2):
            if kind.labels_at_server:
                client.learn(x, torch.tensor([0, 1, 2, 0]))
            else:
                rows = client.prepare(x)
                client.forward(rows)
                client.backward(rows, torch.full((ROWS, OUTPUTS), 0.25))
        client.evaluate(x)
        session.checkpoint(2)
        session.end()

    def replay(self, at, change):
        """The session again over another connection, with message `at` changed; the type of the last reply."""
        channel = InProcessChannel(self.server.converse(ClientInfo("test")))
        nonce = messages.NO_SESSION
        for index, message in enumerate(self.sent[: at + 1]):
            message = message[:16] + nonce + message[HEADER:]
            channel.send(change(message) if index == at else message)
            reply = messages.unpack(channel.receive())
            if index < at:
                assert reply.type is not MessageType.ERROR
            nonce = reply.session
        return reply


@pytest.fixture(scope="module", params=[name for name, protocol in PROTOCOLS.items() if protocol.is_split])
def talk(request, tmp_path_factory):
    return Talk(request.param, tmp_path_factory.mktemp("state"))


def resealed(message: bytes) -> bytes:
    """The message with right lengths and checksums in what it carries for the core."""
    at = message.find(CORE, HEADER)
    if at < 0 or len(message) - at < 72:
        return message
    core = bytearray(message[at:])
    core[8:16] = struct.pack("<Q", len(core))
    return message[:at] + _testing.reseal(bytes(core))


@settings(fuzz, max_examples=100)
@given(st.integers(0, 99), EDITS, st.booleans(), st.booleans())
def test_a_server_answers_damaged_messages_or_refuses_them(talk, at, edits, body_only, seal):
    def change(message):
        front = HEADER if body_only else 0
        changed = message[:front] + edited(message[front:], edits)
        return resealed(changed) if seal else changed

    talk.replay(at % len(talk.sent), change)


@settings(fuzz, max_examples=60)
@given(st.integers(0, 99), st.sampled_from(sorted(MessageType)), JSON)
def test_a_server_answers_messages_that_are_not_due_or_refuses_them(talk, at, kind, value):
    def change(message):
        body = messages.text(json.dumps(value)) if isinstance(value, dict) else message[HEADER:]
        return message[:6] + struct.pack("<H", kind) + message[8:HEADER] + body

    talk.replay(at % len(talk.sent), change)


def opened(server, kind, body):
    """The reply to the first message of a connection."""
    channel = InProcessChannel(server.converse(ClientInfo("test")))
    channel.send(messages.pack(kind, 0, messages.NO_SESSION, body))
    return messages.unpack(channel.receive())


@fuzz
@given(CHANGES)
def test_handshakes_with_other_values(talk, changes):
    body = messages.text(json.dumps(with_values(json.loads(talk.terms.to_json()), changes)))
    opened(talk.server, MessageType.HELLO, body)


@fuzz
@example({2: 10**300}, {}, None, None)  # a file's name that no file system takes
@example({}, {13: "\ud800" * 16}, None, None)  # a reason that UTF-8 cannot carry
@example({}, {}, NESTED, None)
@given(CHANGES, CHANGES, st.sampled_from([None, "[]", "5", '"x"', "{", NESTED, "null"]), JSON)
def test_restores_with_other_values(talk, changes, inner, text, session):
    terms = json.dumps(with_values(json.loads(talk.terms.to_json()), inner)) if text is None else text
    values = with_values({"terms": terms, "run": talk.run, "checkpoint": 2}, changes)
    opened(talk.server, MessageType.RESTORE, messages.text(json.dumps(values))[: 4 + 2**16])
    values = with_values({"run": talk.run, "session": session}, changes)
    opened(talk.server, MessageType.RESUME, messages.text(json.dumps(values)))


@fuzz
@given(st.sampled_from([MessageType.CHECKPOINT, MessageType.MERGE, MessageType.ADOPT]), JSON)
def test_requests_with_other_values(talk, kind, value):
    body = messages.text(json.dumps({"step": value, "weight": value, "of": value}))
    talk.replay(1, lambda message: message[:6] + struct.pack("<H", kind) + message[8:HEADER] + body)


def test_the_server_still_serves_after_all_that(talk):
    assert talk.replay(len(talk.sent) - 1, lambda message: message).type is MessageType.SUMMARY


# Messages, one part at a time


@fuzz
@given(st.one_of(st.binary(max_size=200), EDITS))
def test_parts_of_messages(data):
    parts = messages.matrix(np.ones((2, 3), np.float32), "m") + messages.text('{"a": [1]}')
    genuine = messages.pack(MessageType.FORWARD, 3, bytes(16), parts)
    data = data if isinstance(data, bytes) else edited(genuine, data)
    body = memoryview(data)
    with contextlib.suppress(WireError):
        body = messages.unpack(data).body
    for take in (
        lambda: messages.take_matrix(body, "m", rows=range(1, 9), columns=3),
        lambda: messages.take_text(body, "t"),
        lambda: messages.take_json(body, "j"),
        lambda: messages.take_json(messages.take_matrix(body, "m", rows=range(1, 9), columns=3)[1], "j"),
    ):
        with contextlib.suppress(WireError, RangeError):
            take()


@fuzz
@given(CHANGES, st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_terms_of_any_values(make_values, changes, others):
    for values in (with_values(make_values, changes), others, make_values | others):
        try:
            terms = Terms.from_json(values)
        except WireError:
            continue
        assert Terms.from_json(json.loads(terms.to_json())) == terms


@pytest.fixture(scope="module")
def make_values():
    return json.loads(Terms("plain", FEATURES, OUTPUTS, ROWS, 10, 2, 0.01, "adam", 7).to_json())


class Replies:
    """A server that answers as it is told."""

    bytes_up = bytes_down = 0

    def __init__(self, kind, body, nonce=bytes([1]) * 16):
        self.reply = messages.pack(kind, 0, nonce, body)

    def send(self, message):
        pass

    def receive(self):
        return self.reply

    def close(self):
        pass


@fuzz
@given(CHANGES, JSON)
def test_a_client_takes_or_refuses_what_servers_say(make_values, changes, value):
    terms = Terms(**make_values)
    welcome = with_values(make_values | {"run": "0" * 32}, changes)
    for body in (welcome, value):
        with contextlib.suppress(HESplitError):
            Session(Replies(MessageType.WELCOME, messages.text(json.dumps(body))), terms, b"", Phases())
    for answer in (with_values({"alive": False, "checkpoints": [1]}, changes), value):
        with contextlib.suppress(HESplitError):
            resumable(Replies(MessageType.RESUMED, messages.text(json.dumps(answer))), "0" * 32)


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@fuzz
@given(st.one_of(st.binary(max_size=100), EDITS), st.sampled_from([None, NESTED, "[1]", "5"]))
def test_checkpoints(folder, data, values):
    path = folder / "any.safetensors"
    write_tensors(path, {"w": torch.ones(2, 3)}, "form", {"a": 1})
    if values is not None:
        from safetensors.torch import save_file

        save_file({"w": torch.ones(2, 3)}, path, metadata={"format": "form", "values": values})
    path.write_bytes(data if isinstance(data, bytes) else edited(path.read_bytes(), data))
    for read in (lambda: read_tensors(path, "form"), lambda: load_model(path)):
        with contextlib.suppress(DataError):
            read()


@fuzz
@given(CHANGES, CHANGES)
def test_checkpoints_with_other_values(folder, changes, inner):
    config = RunConfig()
    checkpoints = ClientCheckpoints(folder, config)
    snapshot = Snapshot(Progress(steps=[3]), "", ["0" * 32], {}, {"w": torch.ones(2)})
    checkpoints.save(snapshot)
    path = folder / "client-3.safetensors"
    tensors, values = read_tensors(path, "hesplit_native-client-2")
    values["progress"] = with_values(values["progress"], inner)
    write_tensors(path, tensors, "hesplit_native-client-2", with_values(values, changes))
    with contextlib.suppress(DataError):
        checkpoints.load(3)


@fuzz
@given(CHANGES, CHANGES)
def test_stored_sessions_with_other_values(folder, make_values, changes, inner):
    run = "0" * 32
    (folder / run).mkdir(exist_ok=True)
    values = with_values({"client": "test", "terms": with_values(make_values, inner)}, changes)
    write_tensors(folder / run / "5.safetensors", {"w": torch.ones(2)}, "hesplit_native-server-1", values)
    store = CheckpointStore(folder)
    store.steps(run, "test")
    with contextlib.suppress(DataError, ProtocolError):
        store.load(run, 5)


@pytest.fixture(scope="module")
def key_files(folder):
    key = hn.SecretKey.generate(hn.Parameters(1024, [26], 1024.0))
    key.save(folder / "plain.key")
    key.save(folder / "sealed.key", passphrase="a passphrase")
    return key, (folder / "plain.key").read_bytes(), (folder / "sealed.key").read_bytes()


@fuzz
@given(EDITS)
def test_key_files(key_files, folder, edits):
    _, plain, _ = key_files
    path = folder / "edited.key"
    path.write_bytes(edited(plain, edits))
    with contextlib.suppress(WireError):
        hn.SecretKey.load(path)


@settings(fuzz, max_examples=25)  # scrypt is meant to take its time
@given(EDITS)
def test_encrypted_key_files(key_files, folder, edits):
    _, _, sealed = key_files
    path = folder / "edited.key"
    data = edited(sealed, edits)
    path.write_bytes(data)
    try:
        hn.SecretKey.load(path, passphrase="a passphrase")
        assert data == sealed
    except (WireError, KeyMismatchError):
        pass


@fuzz
@given(EDITS, CHANGES, JSON)
def test_counts_of_releases(key_files, folder, edits, changes, value):
    key, _, _ = key_files
    path = folder / "ledger.json"
    genuine = {"key": key.id, "released": 1024}
    texts = [json.dumps(with_values(genuine, changes)), json.dumps(value), NESTED]
    for data in (edited(json.dumps(genuine).encode(), edits), *(text.encode() for text in texts)):
        path.write_bytes(data)
        with contextlib.suppress(WireError, KeyMismatchError):
            assert ReleaseLedger(path, key).released >= 0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    from hesplit_native.transport.authority import make_authority, make_client, make_server

    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder)
    make_server(folder, ["localhost"])
    make_client(folder, "a")
    return folder


@settings(fuzz, max_examples=100)
@given(st.sampled_from(["ca.pem", "server.pem", "server.key", "client-a.pem", "client-a.key"]), EDITS)
def test_certificates(certificates: Path, name, edits):
    path = certificates / name
    genuine = path.read_bytes()
    path.write_bytes(edited(genuine, edits))
    try:
        for load in (lambda: ServerTls.load(certificates), lambda: ClientTls.load(certificates, "a")):
            with contextlib.suppress(DataError):
                load()
    finally:
        path.write_bytes(genuine)
