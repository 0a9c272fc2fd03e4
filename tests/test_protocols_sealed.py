"""`sealed`: what the server receives and holds in a whole run, and what a client does with replies that are not genuine."""

from __future__ import annotations

import os
import zlib
from functools import partial

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.data import synthetic_ecg
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.sealed import SealedProtocolClient, SealedProtocolServer
from hesplit_native.protocols.server import Server
from hesplit_native.training.client import Client
from hesplit_native.training.config import RunConfig as Config
from hesplit_native.training.recipes import paper_task
from hesplit_native.training.run import train
from hesplit_native.transport import ClientInfo, InProcessChannel

RunConfig = partial(Config, batch_size=4, accept_leak=True)  # the papers' setting

#: What may cross the channel: text with shapes and numbers of the session, and ciphertexts.
TEXT = {MessageType.HELLO, MessageType.WELCOME, MessageType.SUMMARY, MessageType.CHECKPOINT}
CIPHERTEXT = {MessageType.FORWARD, MessageType.EVALUATE, MessageType.LOGITS, MessageType.BACKWARD,
              MessageType.INPUT_GRADIENT, MessageType.REFRESH}  # fmt: skip
EMPTY = {MessageType.END, MessageType.DONE}
CORE = b"HESN"


class Tap:
    """A channel that keeps what passes."""

    def __init__(self, channel, log, change=lambda message: message):
        self.channel, self.log, self.change = channel, log, change

    def send(self, message):
        self.log.append(("up", message))
        self.channel.send(message)

    def receive(self):
        message = self.change(self.channel.receive())
        self.log.append(("down", message))
        return message

    def close(self):
        self.log.append(("closed", b""))
        self.channel.close()

    bytes_up = property(lambda self: self.channel.bytes_up)
    bytes_down = property(lambda self: self.channel.bytes_down)


@pytest.fixture(scope="module")
def data():
    return synthetic_ecg(train=82, test=40)


def test_a_whole_run_gives_the_server_nothing_but_ciphertexts_and_shapes(data, tmp_path):
    log, server = [], Server(checkpoints=tmp_path)
    tap = Tap(InProcessChannel(server.converse(ClientInfo("hospital"))), log)
    config = RunConfig(protocol="sealed", epochs=2, seed=5)
    result = train(config, data, connect=lambda: tap, checkpoints=tmp_path / "client")
    assert result.interrupted is None
    assert result.epochs == 2
    weight = result.server_weight.numpy()

    bodies = []
    for direction, raw in log:
        if direction == "closed":
            continue
        message = messages.unpack(raw)
        body = bytes(message.body)
        if message.type in TEXT:
            values, rest = messages.take_json(message.body, "text")
            assert set(values) <= {"run", "step", *vars(config), *server_fields()}
            if message.type is MessageType.HELLO:
                # The server is told no seed, no learning rate, no optimiser.
                assert (values["weight_seed"], values["learning_rate"], values["server_optimizer"]) == (
                    0,
                    0.0,
                    "client",
                )
                bodies.append(bytes(rest))
            else:
                assert not len(rest)
        elif message.type in EMPTY:
            assert not body
        else:
            # No matrix crosses: the one plaintext type that this wire has begins with another code.
            assert message.type in CIPHERTEXT
            bodies.append(body)
    types = {messages.unpack(raw).type for direction, raw in log if direction == "up"}
    assert types == {MessageType.HELLO, MessageType.FORWARD, MessageType.EVALUATE, MessageType.BACKWARD,
                     MessageType.CHECKPOINT, MessageType.REFRESH, MessageType.END}  # fmt: skip

    up = bodies
    assert all(body.startswith(CORE) for body in up)
    for body in up:
        # Uniform residues do not compress; packed to the bit they have no gaps either.
        payload = body[64 + 44 + 120 : -8]
        assert len(zlib.compress(payload, 9)) > 0.99 * len(payload)
        assert data.train_x[0].tobytes()[:64] not in body
        assert weight[0].tobytes()[:64] not in body
    # Fresh randomness in every message: no two share a public seed.
    seeds = [body[64 + 12 : 64 + 44] for body in up if body[5] in (21, 23)]
    assert len(set(seeds)) == len(seeds) > 80

    # What it holds at the end is ciphertexts too: in memory, and on disk.
    checkpoints = list(tmp_path.glob("*/*.safetensors"))
    assert checkpoints
    from safetensors.torch import load_file

    for path in checkpoints:
        if path.parent.name != "client":
            tensors = load_file(path)
            assert set(tensors) == {"sealed"}
            assert tensors["sealed"].dtype == torch.uint8
            raw = tensors["sealed"].numpy().tobytes()
            assert weight[0].tobytes()[:64] not in raw
            assert len(zlib.compress(raw, 9)) > 0.99 * len(raw)


def server_fields():
    from dataclasses import fields

    from hesplit_native.protocols.terms import Terms

    # Summaries name phases.
    return {f.name for f in fields(Terms)} | {"forward", "evaluation", "backward and update", "refresh"}


def test_the_same_activations_look_different_every_time(data):
    client = open_client(data, [])
    x = torch.from_numpy(data.train_x[:4])
    activations = client.model(x).detach()
    assert isinstance(client.layer, SealedProtocolClient)
    requests = [client.layer.linear.encrypt(activations) for _ in range(2)]
    different = np.mean(np.frombuffer(requests[0][120:-8], np.uint8) != np.frombuffer(requests[1][120:-8], np.uint8))
    assert different > 0.98


def open_client(data, log, change=lambda message: message, protocol="sealed", flooding="step"):
    server = Server()
    config = RunConfig(protocol=protocol, flooding=flooding, epochs=1)
    client = Client(
        config,
        paper_task(config, data),
        batches=0,
        connect=lambda: Tap(InProcessChannel(server.converse(ClientInfo("hospital"))), log, change),
    )
    client.begin()
    return client


def forged(kind, how):
    """Change the n-th reply of a kind on its way to the client."""

    def change(raw):
        message = messages.unpack(raw)
        if message.type is not kind:
            return raw
        body = bytearray(message.body)
        if how == "truncated":
            body = body[:-1]
        elif how == "damaged":
            body[len(body) // 2] ^= 1
        elif how == "out of range":
            # Random c0: phases are then anywhere, in a message that is well-formed in every other way.
            first = 64 + (28 if body[5] == 22 else 21)
            body[first : first + 60] = os.urandom(60)
            body = bytearray(_testing.reseal(bytes(body)))
        elif how == "other":
            body = bytearray(b"HESN" + bytes(200))
        return messages.pack(message.type, message.step, message.session, bytes(body))

    return change


@pytest.mark.parametrize("protocol", ["sealed", "splitways", "hesplit"])
@pytest.mark.parametrize("how", ["truncated", "damaged", "other"])
def test_a_reply_that_is_not_genuine_destroys_the_key_and_ends_like_any_session(data, protocol, how):
    x, labels = torch.from_numpy(data.train_x[:4]), torch.from_numpy(data.train_y[:4])
    log = []
    client = open_client(data, log, forged(MessageType.LOGITS, how), protocol)
    request_count = len(log)
    with pytest.raises(hn.ProtocolError, match="the key was destroyed"):
        client.learn(x, labels)
    # Destroyed: nothing works with it any more.
    with pytest.raises(hn.HESplitError):
        client.linear.encrypt(np.zeros((4, 256)))
    # From outside: the request, its reply, then the end of a session as after any last batch.
    seen = [messages.unpack(raw).type for direction, raw in log[request_count:] if direction == "up"]
    assert seen == [MessageType.FORWARD, MessageType.END]
    assert log[-1][0] == "closed"

    ordinary = []
    client = open_client(data, ordinary, protocol=protocol)
    client.end()
    client.close()
    (_, end), (_, other) = ([entry for entry in entries if entry[0] == "up"][-1] for entries in (log, ordinary))
    assert len(end) == len(other)
    assert messages.unpack(end).type is messages.unpack(other).type is MessageType.END


@pytest.mark.parametrize("protocol", ["sealed", "splitways"])
def test_a_reply_out_of_range_destroys_the_key(data, protocol):
    client = open_client(data, [], forged(MessageType.LOGITS, "out of range"), protocol)
    x = torch.from_numpy(data.train_x[:4])

    # A random phase is at the edge of the range with probability 1/1000 for each of the 20 logits.
    def many():
        for _ in range(3000):
            client.outputs([x])

    with pytest.raises(hn.ProtocolError, match=r"edge of its range.*the key was destroyed"):
        many()


def test_a_forged_input_gradient_ends_the_session_too(data):
    log = []
    client = open_client(data, log, forged(MessageType.INPUT_GRADIENT, "damaged"))
    x, labels = torch.from_numpy(data.train_x[:4]), torch.from_numpy(data.train_y[:4])
    with pytest.raises(hn.ProtocolError, match="the key was destroyed"):
        client.learn(x, labels)


def test_weights_are_refreshed_when_the_parameters_say_so(data, make_terms, open_session):
    params = hn.Parameters.recommend_sealed(
        in_features=6, out_features=3, batch_size=4, activation_bound=8.0, updates=5, error_bound=0.2
    )
    from hesplit_native.layer.linear import SealedClient as SealedLinear
    from hesplit_native.protocols.layer import TrainedLayer

    layer = TrainedLayer(make_terms(learning_rate=0.05))
    linear = SealedLinear(hn.SecretKey.generate(params), 6, 3)
    terms = make_terms(protocol="sealed", parameter_hash=params.hash, server_optimizer="client", learning_rate=0.0)
    session, state, _ = open_session(terms, linear.seal(layer.linear.weight, layer.linear.bias))
    client = SealedProtocolClient(session, linear, layer)
    assert isinstance(state.protocol, SealedProtocolServer)
    assert state.layer is None
    generator = torch.Generator().manual_seed(0)
    for _ in range(17):
        x = torch.randn(4, 6, generator=generator)
        gradient = torch.randn(4, 3, generator=generator) / 4
        before = layer.linear.weight.detach().clone()
        torch.testing.assert_close(client.forward(x), layer.forward(x), atol=0.2, rtol=0)
        torch.testing.assert_close(client.backward(x, gradient), gradient @ before, atol=1e-2, rtol=0)
    assert state.steps == 17
    # What the server would store lacks two steps, until it is sent.
    assert linear.behind == 2
    before = state.protocol.tensors()["sealed"]
    client.settle()
    assert linear.behind == 0
    settled = state.protocol.tensors()["sealed"]
    assert not torch.equal(before, settled)
    client.settle()
    assert torch.equal(state.protocol.tensors()["sealed"], settled)
    torch.testing.assert_close(client.evaluate(x), layer.forward(x), atol=0.2, rtol=0)


def test_weights_that_grow_are_sealed_anew_with_the_gradient_of_the_old_ones(make_terms, open_session):
    params = hn.Parameters.recommend_sealed(
        in_features=6, out_features=3, batch_size=4, activation_bound=8.0, weight_norm=1.0, error_bound=0.2, updates=2
    )
    from hesplit_native.layer.linear import SealedClient as SealedLinear
    from hesplit_native.protocols.layer import TrainedLayer

    layer = TrainedLayer(make_terms(learning_rate=0.1, server_optimizer="sgd"))
    linear = SealedLinear(hn.SecretKey.generate(params), 6, 3, weight_norm=1.0)
    terms = make_terms(protocol="sealed", parameter_hash=params.hash, server_optimizer="client", learning_rate=0.0)
    session, _, _ = open_session(terms, linear.seal(layer.linear.weight, layer.linear.bias))
    client = SealedProtocolClient(session, linear, layer)
    scale = linear._native.weight_scale
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        x, gradient = torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)
        before = layer.linear.weight.detach().clone()
        client.forward(x)
        torch.testing.assert_close(client.backward(x, gradient), gradient @ before, atol=5e-2, rtol=0)
        torch.testing.assert_close(client.evaluate(x), layer.forward(x), atol=0.2, rtol=0)
    assert linear._native.weight_scale < scale
