"""`vertical`: labels and the layer at the server, features at the client; right, and refused where it cannot be."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hesplit_native as hn
from hesplit_native.data.labels import load_labels
from hesplit_native.errors import ProtocolError
from hesplit_native.layer.weights import Weights
from hesplit_native.protocols import PROTOCOLS, messages
from hesplit_native.protocols.halves import ClientSetup
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import initial_linear, make_optimizer
from hesplit_native.protocols.vertical import check_labels, objective
from hesplit_native.training.config import Defences, RunConfig
from hesplit_native.transport import ClientInfo, GrpcServer, InProcessChannel

FEATURES, OUTPUTS, ROWS = 6, 3, 4
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1])


class Talk:
    """A client's half with its session, and the messages of both directions."""

    def __init__(self, server, make_terms, *, private=True, **changes):
        parameters = hn.Parameters.recommend(
            in_features=FEATURES, out_features=OUTPUTS, batch_size=ROWS, private_weights=private, error_bound=0.01
        )
        terms = make_terms(protocol="vertical", parameter_hash=parameters.hash, classes=OUTPUTS, **changes)
        setup = ClientSetup.of(terms, Phases(), parameters)
        halves = PROTOCOLS["vertical"].halves
        encryption, material = halves.encryption(setup)
        self.terms, self.parameters, self.linear = terms, parameters, encryption
        self.sent, self.got = [], []
        channel = InProcessChannel(server.converse(ClientInfo("test")))
        send, receive = channel.send, channel.receive
        channel.send = lambda message: (self.sent.append(message), send(message))
        channel.receive = lambda: self.got.append(receive()) or self.got[-1]
        self.session = Session(channel, terms, material, setup.phases)
        self.half = halves.client(setup, self.session, encryption)


def activations(rows, seed=0):
    return torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_learns_what_a_network_in_one_place_learns(make_terms, kind, optimizer):
    labels = LABELS if kind == "classes" else functional.one_hot(LABELS, OUTPUTS).float()
    server = Server(labels=labels, told_seeds=True)
    talk = Talk(server, make_terms, learning_rate=0.05, server_optimizer=optimizer, batches=0, epochs=0)
    layer = initial_linear(talk.terms)
    own = make_optimizer(optimizer, layer.parameters(), 0.05)
    for step in range(12):
        rows = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(step))[: ROWS - step % 3]
        x = activations(len(rows), step).requires_grad_()
        loss, right = objective(layer(x), labels[rows])
        own.zero_grad()
        loss.backward()
        own.step()
        found, hits, gradient = talk.half.learn(x.detach(), rows)
        assert found == pytest.approx(loss.item(), abs=0.01)
        assert abs(hits - right) <= 1
        assert (gradient - x.grad).abs().max() < 5e-3
    assert (server.last_linear().weight - layer.weight).abs().max() < 0.02
    x = activations(50)
    assert (talk.half.evaluate(x) - layer(x)).abs().max() < 0.1
    talk.session.end()


def test_the_server_draws_its_own_weights(make_terms):
    """Under the client's seed it could compute them, with dJ/da dJ/dy, and all weights that follow."""
    found = []
    for _ in range(2):
        server = Server(labels=LABELS)
        talk = Talk(server, make_terms)
        weight = server.last_linear().weight.detach().clone()
        assert (weight - initial_linear(talk.terms).weight).abs().max() > 0.05
        found.append(weight)
        x = activations(ROWS)
        _, _, gradient = talk.half.learn(x, torch.arange(ROWS))
        guessed = gradient @ torch.linalg.pinv(initial_linear(talk.terms).weight.detach())
        true = gradient @ torch.linalg.pinv(weight)
        assert (guessed - true).abs().max() > 0.01
        assert (true.argmin(1) == LABELS[:ROWS]).all()  # what a client that knew W would read
    assert not torch.equal(*found)


def test_the_client_sees_the_same_messages_whatever_the_labels_and_weights_are(make_terms):
    """But for dJ/da, loss and hits, which are its own to learn: types, lengths and heads."""
    heads = set()
    for labels, rate in ((LABELS, 0.01), (LABELS * 0, 1.0)):
        talk = Talk(Server(labels=labels), make_terms, learning_rate=rate)
        for step in range(3):
            talk.half.learn(activations(ROWS), torch.arange(ROWS) + step)
        seen = []
        for message in talk.got[1:]:
            kind = messages.unpack(message).type
            body = bytes(messages.unpack(message).body)
            # Shape, bits and scale follow the core's header of 64 bytes.
            seen.append((kind, len(message), body[64:85] if kind is not MessageType.INPUT_GRADIENT else b""))
        heads.add(tuple(seen))
    assert len(heads) == 1


def test_what_the_client_decrypts_is_uniform(make_terms, monkeypatch):
    talk = Talk(Server(labels=LABELS), make_terms, batches=0, epochs=0)
    opened = []
    decrypt = talk.linear.open_share

    def open_share(message, **options):
        opened.append(decrypt(message, **options))
        return opened[-1]

    monkeypatch.setattr(talk.linear, "open_share", open_share)
    for step in range(40):
        talk.half.learn(activations(ROWS, 1), torch.arange(ROWS))
        assert step < 1 or opened[-1][72:] != opened[-2][72:]
    values = np.concatenate([np.frombuffer(message[72:-8], np.uint8) for message in opened])
    counts = np.bincount(values >> 5, minlength=8)
    assert abs(counts - len(values) / 8).max() < 6 * np.sqrt(len(values) / 8)


class TestRefusals:
    @pytest.mark.parametrize(
        ("labels", "match"),
        [
            (None, "no labels of its own"),
            (torch.tensor([0, 3]), "do not fit a layer of 3 outputs"),
            (torch.tensor([-1, 1]), "do not fit"),
            (torch.tensor([0.5, 1.0]), "do not fit"),
            (torch.full((2, 3), 0.5), "do not fit"),
            (torch.zeros(2, 2), "do not fit"),
            (torch.zeros(0, dtype=torch.int64), "do not fit"),
        ],
    )
    def test_labels(self, make_terms, labels, match):
        log = []
        with pytest.raises(ProtocolError, match=match) as refused:
            Talk(Server(labels=labels, on_event=log.append), make_terms)
        if labels is not None:  # what they are is for the server's log
            assert str(list(labels.shape)) in log[-1]
            assert str(list(labels.shape)) not in str(refused.value)

    def test_labels_of_both_kinds_are_taken(self):
        assert check_labels(LABELS.int(), 3).dtype is torch.int64
        assert check_labels(torch.ones(2, 3, dtype=torch.int64), 3).dtype is torch.float32

    def test_parameters_that_show_the_weights(self, make_terms):
        with pytest.raises(ProtocolError, match="private_bits"):
            Talk(Server(labels=LABELS), make_terms, private=False)

    @pytest.mark.parametrize("rows", [[0, 1, 2, 8], [], [0, 1], [0, 1, 2, 3, 4]])
    def test_rows(self, make_terms, rows):
        talk = Talk(Server(labels=LABELS), make_terms)
        body = messages.rows(np.array(rows, np.int64))
        with pytest.raises(ProtocolError, match="rows"):
            talk.session.exchange(MessageType.LEARN, MessageType.SHARE, body, talk.linear.encrypt(activations(ROWS)))

    @pytest.mark.parametrize("body", [b"", b"\x04\0\0\0", b"\xff\xff\xff\xff" + bytes(64), b"\x01\0\0\0" + b"\xff" * 8])
    def test_damaged_rows(self, make_terms, body):
        talk = Talk(Server(labels=LABELS), make_terms)
        with pytest.raises(ProtocolError, match="rows"):
            talk.session.exchange(MessageType.LEARN, MessageType.SHARE, body)

    @pytest.mark.parametrize("kind", [MessageType.OPENED_SHARE, MessageType.OPENED_GRADIENT])
    def test_answers_that_nothing_was_asked_for(self, make_terms, kind):
        talk = Talk(Server(labels=LABELS), make_terms)
        with pytest.raises(ProtocolError, match="came without"):
            talk.session.exchange(kind, MessageType.MASKED_GRADIENT, bytes(100))

    def test_a_share_of_the_step_before(self, make_terms):
        talk = Talk(Server(labels=LABELS), make_terms)
        talk.half.learn(activations(ROWS), torch.arange(ROWS))
        old = next(m for m in talk.sent if messages.unpack(m).type is MessageType.OPENED_SHARE)
        named = messages.rows(np.arange(ROWS))
        talk.session.exchange(MessageType.LEARN, MessageType.SHARE, named, talk.linear.encrypt(activations(ROWS)))
        with pytest.raises(ProtocolError, match="another request"):
            talk.session.exchange(
                MessageType.OPENED_SHARE, MessageType.MASKED_GRADIENT, bytes(messages.unpack(old).body)
            )

    def test_weights_that_outgrow_the_agreed_norm(self, make_terms):
        log = []
        server = Server(labels=LABELS, on_event=log.append)
        talk = Talk(server, make_terms, learning_rate=500.0, server_optimizer="sgd")

        def learn():
            for step in range(10):
                talk.half.learn(8 * activations(ROWS, step), torch.arange(ROWS))

        with pytest.raises(ProtocolError, match="outgrew the weight_norm that was agreed on") as refused:
            learn()
        # What would do is the norm of W: for the server's log alone.
        assert "need an agreed weight_norm of" in log[-1]
        assert "need" not in str(refused.value)

    def test_weights_that_are_too_large_to_begin_with(self, make_terms):
        log = []
        start = Weights("large", np.full((OUTPUTS, FEATURES), 20.0, np.float32), None)
        server = Server(labels=LABELS, layers=[start], on_event=log.append)
        with pytest.raises(ProtocolError, match="outgrew the weight_norm") as refused:
            Talk(server, make_terms, layer="large")
        assert "need an agreed weight_norm of" in log[-1]
        assert "need" not in str(refused.value)

    def test_noise_on_labels_that_the_client_has_not(self):
        with pytest.raises(hn.ParameterError, match="labels are the server's"):
            RunConfig(protocol="vertical", defences=Defences(label_epsilon=1.0))
        with pytest.raises(hn.ParameterError, match="packing"):
            RunConfig(protocol="vertical", packing="slots", flooding="off")
        assert RunConfig(protocol="vertical").flooding == "run"


def table(rows, seed=0):
    """What a bank has of its customers, and which of them a partner was not paid by."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 10, generator=generator)
    score = 2 * x[:, 0] - x[:, 1] * x[:, 2] + 0.3 * torch.randn(rows, generator=generator)
    return x, (score > 0).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU())


def test_train_on_a_table_with_the_server_in_this_process():
    results = {
        protocol: hn.train(
            network(), table(400), validation=table(200, 1), protocol=protocol, epochs=4, learning_rate=0.01,
            progress=False, metrics=False,
        )
        for protocol in ("plain", "vertical")
    }  # fmt: skip
    found, expected = results["vertical"], results["plain"]
    assert found.interrupted is None
    assert found.validation["accuracy"] > 0.7
    assert found.validation["loss"] == pytest.approx(expected.validation["loss"], abs=0.03)
    assert found.parameters["private_bits"] == 40


def test_train_without_labels_against_a_server_that_has_them():
    x, y = table(200)
    server = Server(labels=y)
    transport = GrpcServer("127.0.0.1:0", server.converse)
    transport.start()
    try:
        result = hn.train(
            network(), x.numpy(), outputs=2, protocol="vertical", epochs=3, learning_rate=0.01, progress=False,
            metrics=False, server=f"127.0.0.1:{transport.port}",
        )  # fmt: skip
    finally:
        transport.stop()
    assert result.interrupted is None
    assert result.history[-1].train_accuracy > 0.6
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_train_says_what_is_missing():
    x, _ = table(50)
    with pytest.raises(hn.ParameterError, match="labels are the server's"):
        hn.train(network(), x, outputs=2, protocol="vertical", progress=False)
    with pytest.raises(hn.ParameterError, match="outputs="):
        hn.train(network(), x, protocol="vertical", server="localhost:1", progress=False)


def test_terms_say_whose_labels_they_are(make_terms):
    protocol = PROTOCOLS["vertical"]
    assert protocol.labels_at_server
    assert protocol.own_labels
    assert not protocol.client_holds_layer
    assert dataclasses.asdict(make_terms(protocol="vertical", parameter_hash="x"))["protocol"] == "vertical"


class TestLabelsOfAServer:
    def test_files(self, tmp_path):
        classes = np.array([0, 2, 1])
        np.save(tmp_path / "a.npy", classes)
        (tmp_path / "b.csv").write_text("0\n2\n1\n", encoding="utf-8")
        for name in ("a.npy", "b.csv"):
            found = load_labels(tmp_path / name)
            assert (found.dtype, found.tolist()) == (torch.int64, [0, 2, 1])
        (tmp_path / "c.csv").write_text("0,1\n1,1\n", encoding="utf-8")
        assert load_labels(tmp_path / "c.csv").tolist() == [[0, 1], [1, 1]]

    @pytest.mark.parametrize("text", ["", "a\n", "0\n1,2\n", "0.5\n", "-1\n", "nan\n", "0,2\n", "1e10\n"])
    def test_others_are_refused(self, tmp_path, text):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        with pytest.raises(hn.DataError, match=r"labels\.csv"):
            load_labels(tmp_path / "labels.csv")

    def test_objects_and_missing_files_are_refused(self, tmp_path):
        np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
        for name in ("o.npy", "missing.npy", "missing.csv"):
            with pytest.raises(hn.DataError, match=name.replace(".", r"\.")):
                load_labels(tmp_path / name)

    def test_a_server_of_its_own_process_has_them(self, tmp_path):
        x, y = table(120)
        np.save(tmp_path / "labels.npy", y.numpy())
        command = [
            sys.executable,
            "-m",
            "hesplit_native",
            "serve",
            "--port",
            "0",
            "--labels",
            str(tmp_path / "labels.npy"),
            "--sessions",
            "1",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                port = next(found[1] for line in server.stdout if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
                result = hn.train(
                    network(), x.numpy(), outputs=2, protocol="vertical", epochs=2, learning_rate=0.01, progress=False,
                    metrics=False, server=f"127.0.0.1:{port}",
                )  # fmt: skip
                assert result.interrupted is None
                assert server.wait(60) == 0
            finally:
                server.kill()

    def test_labels_go_with_training(self, tmp_path):
        from typer.testing import CliRunner

        from hesplit_native.cli import app

        refused = CliRunner().invoke(app, ["serve", "--model", str(tmp_path), "--labels", str(tmp_path / "l.npy")])
        assert refused.exit_code == 1
        assert "--labels" in str(refused.output) + str(refused.exception)
