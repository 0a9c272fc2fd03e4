from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native.transport import (
    ClientInfo,
    ClientTls,
    GrpcServer,
    InProcessChannel,
    ServerTls,
    connect,
    make_authority,
    make_client,
    make_server,
)
from hesplit_native.triad import Cohort, TriadConfig, load_csv, run, shared_vector, synthetic_cohort, synthetic_images
from hesplit_native.triad import training as triad_training
from hesplit_native.triad.service import Parcel, TriadServer, join, submit
from hesplit_native.triad.training import deal, fit_scaling, merge, pack

LAYERS = ("random-vector", "random-vector-relu", "pretrained")
NONCE = bytes(range(16))


@pytest.fixture(scope="module")
def cohort():
    return synthetic_cohort(4000, seed=1)


@pytest.fixture(scope="module")
def small():
    return synthetic_cohort(203, seed=1)


@pytest.fixture(scope="module")
def images():
    return synthetic_images(1500, 300, seed=1)


class Recorder:
    def __init__(self):
        self.participants, self.epochs = [], []

    def on_participant(self, participant, participants, rows, sent):
        self.participants.append((participant, participants, rows, sent))

    def on_epoch(self, record):
        self.epochs.append(record)


def numbers(result):
    return [(r.train_loss, r.validation_loss, r.metric) for r in result.history]


@pytest.fixture(scope="module")
def unsplit(cohort):
    return run(TriadConfig(epochs=8), cohort)


def test_the_unsplit_network_comes_close_to_the_noise(unsplit):
    assert unsplit.metric_name == "mean deviation"
    assert 20 < unsplit.baseline < 32
    assert unsplit.metric < 9.5  # the error of measurement alone is about 8
    assert (unsplit.bytes_sent, unsplit.validation_bytes, unsplit.scaling_bytes) == (0, 0, 0)
    assert (unsplit.train_rows, unsplit.validation_rows) == (3200, 800)


@pytest.mark.parametrize("participants", [2, 5, 10])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_case_learns_ldl_with_any_number_of_participants(cohort, unsplit, layer, participants):
    result = run(TriadConfig(layer=layer, participants=participants, epochs=8), cohort)
    assert result.baseline == pytest.approx(unsplit.baseline)
    if layer == "random-vector-relu":
        # Half of every feature is gone; which half is up to the nonce.
        assert unsplit.metric + 2 < result.metric < 0.7 * result.baseline
    else:
        assert result.metric < unsplit.metric + 1.5 < 0.45 * result.baseline
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss


def test_losses_are_in_the_unit_of_the_target(unsplit):
    # A root mean square is at least the mean deviation, and not by much, even with outliers.
    for record in unsplit.history[2:]:
        assert record.metric < record.validation_loss**0.5 < 2 * record.metric
        assert 0.5 < record.train_loss / record.validation_loss < 2


@pytest.mark.parametrize("layer", ["none", *LAYERS])
def test_every_case_learns_images(images, layer):
    participants = 1 if layer == "none" else 2
    result = run(TriadConfig("cifar10", layer, participants, epochs=6, batch_size=32), images)
    assert result.metric_name == "accuracy"
    assert result.baseline == pytest.approx(0.1)
    floors = {"none": 0.4, "random-vector": 0.3, "random-vector-relu": 0.2, "pretrained": 0.5}
    assert result.metric > floors[layer]
    assert result.history[-1].validation_loss < result.history[0].validation_loss


def test_a_participant_alone_learns_less_than_all_together(cohort):
    alone = run(TriadConfig(epochs=8, limit=len(cohort.train_y) // 10), cohort)
    together = run(TriadConfig(layer="pretrained", participants=10, epochs=8), cohort)
    assert alone.train_rows == 320
    assert alone.metric > together.metric + 1


@pytest.mark.parametrize(("layer", "features"), [("random-vector", 6), ("random-vector-relu", 6), ("pretrained", 32)])
def test_bytes_are_those_of_the_rows_that_are_sent_once(small, layer, features):
    recorder = Recorder()
    result = run(TriadConfig(layer=layer, participants=5, epochs=3), small, recorder)
    assert (result.train_rows, result.validation_rows) == (162, 41)
    assert result.bytes_sent == 162 * 4 * (features + 1)
    assert result.validation_bytes == 41 * 4 * (features + 1)
    assert result.scaling_bytes == 5 * 8 * (1 + 2 * 6)
    rows = [33, 33, 32, 32, 32]
    assert recorder.participants == [(i + 1, 5, n, n * 4 * (features + 1)) for i, n in enumerate(rows)]
    assert recorder.epochs == list(result.history)
    assert [record.epoch for record in result.history] == [1, 2, 3]
    assert result.metric == result.history[-1].metric
    assert 0 < sum(record.seconds for record in result.history) == result.train_seconds


def test_bytes_of_images_carry_one_byte_of_label():
    images = synthetic_images(40, 20)
    for layer, values in (("random-vector", 3 * 32 * 32), ("pretrained", 16 * 16 * 16)):
        result = run(TriadConfig("cifar10", layer, 2, epochs=1), images)
        assert result.bytes_sent == 40 * (4 * values + 1)
        assert result.validation_bytes == 20 * (4 * values + 1)
        assert result.scaling_bytes == 2 * 8 * (1 + 2 * 3)


@pytest.mark.parametrize("layer", LAYERS)
def test_seeds_and_nonces_decide_the_run(small, layer):
    config = TriadConfig(layer=layer, participants=2, epochs=2)
    first = run(config, small)
    torch.rand(3)
    assert numbers(run(config, small)) == numbers(first)
    assert numbers(run(replace(config, seed=1), small)) != numbers(first)
    session = run(config, small, server=TriadServer(NONCE))
    assert numbers(session) == numbers(run(config, small, server=TriadServer(NONCE)))
    assert numbers(session) != numbers(first)
    with pytest.raises(hn.WireError, match="at least 16"):
        run(config, small, server=TriadServer(b"short"))


def test_runs_leave_the_callers_random_numbers_alone(small):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run(TriadConfig(layer="pretrained", participants=2, epochs=1), small)
    assert torch.equal(torch.rand(4), expected)


def test_dealing_is_even_and_loses_no_row(small):
    shares = deal(small, TriadConfig(layer="random-vector", participants=10))
    for side in ("train", "test"):
        sizes = [len(getattr(share, f"{side}_y")) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        merged = np.concatenate([getattr(share, f"{side}_x") for share in shares])
        original = getattr(small, f"{side}_x")
        assert sorted(map(tuple, merged.tolist())) == sorted(map(tuple, original.tolist()))
        assert not np.array_equal(merged, original)
    rows = {tuple(row): y for row, y in zip(small.train_x.tolist(), small.train_y.tolist(), strict=True)}
    for share in shares:
        assert [rows[tuple(row)] for row in share.train_x.tolist()] == share.train_y.tolist()


def test_a_limit_draws_from_all_rows():
    images = synthetic_images(200, 50)
    order = np.argsort(images.train_y, kind="stable")  # as in files that are sorted by class
    images = replace(images, train_x=images.train_x[order], train_y=images.train_y[order])
    (share,) = deal(images, TriadConfig("cifar10", limit=100))
    assert len(share.train_y) == 100
    assert len(set(share.train_y.tolist())) == 10
    assert len(share.test_y) == 50


@pytest.mark.parametrize("participants", [1, 7])
def test_scaling_is_that_of_all_training_rows_and_of_no_test_row(small, participants):
    layer = "none" if participants == 1 else "random-vector"
    odd = replace(small, test_x=small.test_x + 1e4)
    scaling, _ = fit_scaling(deal(odd, TriadConfig(layer=layer, participants=participants)))
    np.testing.assert_allclose(scaling.mean.numpy(), small.train_x.astype(float).mean(0), rtol=1e-5)
    np.testing.assert_allclose(scaling.deviation.numpy(), small.train_x.astype(float).std(0), rtol=1e-4)
    x = scaling(small.train_x)
    assert x.mean(0).abs().max() < 1e-4


def test_scaling_of_images_is_by_channel_and_spares_constants():
    images = synthetic_images(300, 20)
    images.train_x[:, 2] = 77
    scaling, _ = fit_scaling(deal(images, TriadConfig("cifar10")))
    assert scaling.mean.shape == (3, 1, 1)
    x = scaling(images.train_x)
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(x.std((0, 2, 3)), [1, 1, 0], atol=1e-3)


def test_the_server_gets_what_the_layer_made(small, monkeypatch):
    received = []

    def spy(parcels, *arguments):
        received.append(parcels)
        return merge(parcels, *arguments)

    monkeypatch.setattr(triad_training, "merge", spy)
    config = TriadConfig(layer="random-vector-relu", participants=3, epochs=1)
    run(config, small, server=TriadServer(NONCE))
    shares = deal(small, config)
    scaling, _ = fit_scaling(shares)
    for parcel, share in zip(received[0], shares, strict=True):
        sent = np.frombuffer(parcel.activations, "<f4").reshape(-1, 6)
        expected = torch.relu(scaling(share.train_x) * shared_vector(NONCE, 6))
        assert np.array_equal(sent, expected.numpy())
        assert np.array_equal(np.frombuffer(parcel.labels, "<f4"), share.train_y)


def test_participants_of_case_3_send_by_layers_of_their_own(small, monkeypatch):
    # The same rows for both: what differs is how each was trained.
    share = deal(small, TriadConfig())[0]
    monkeypatch.setattr(triad_training, "deal", lambda dataset, config: (share, share))
    received = []
    monkeypatch.setattr(triad_training, "merge", lambda *a: received.append(a[0]) or merge(*a))
    run(TriadConfig(layer="pretrained", participants=2, epochs=1), small)
    one, two = (np.frombuffer(parcel.activations, "<f4") for parcel in received[0])
    assert not np.array_equal(one, two)
    assert np.corrcoef(one, two)[0, 1] > 0.8  # from one start


def parcel(rows=3, features=2, kind="<f4"):
    return pack(torch.arange(rows * features, dtype=torch.float32).view(rows, features), np.arange(rows).astype(kind))


def test_parcels_survive_the_wire():
    x, y = merge([parcel(3), parcel(1)], (2,), None)
    assert x.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert y.tolist() == [0, 1, 2, 0]
    assert y.dtype == torch.float32
    _, y = merge([parcel(3, kind="<i8")], (2,), 3)
    assert y.tolist() == [0, 1, 2]
    assert y.dtype == torch.int64


@pytest.mark.parametrize(
    ("bad", "classes", "message"),
    [
        (Parcel(parcel().activations[:-1], parcel().labels), None, "parcel 2 holds no whole number"),
        (Parcel(parcel().activations[:-4], parcel().labels), None, "parcel 2 holds no whole number"),
        (Parcel(parcel().activations, parcel().labels[:-4]), None, "with a label each"),
        (Parcel(parcel().activations, parcel().labels + bytes(4)), None, "with a label each"),
        (Parcel(np.full(6, np.nan, "<f4").tobytes(), parcel().labels), None, "not finite"),
        (Parcel(parcel().activations, np.full(3, np.inf, "<f4").tobytes()), None, "not finite"),
        (Parcel(parcel().activations, bytes([0, 1, 3])), 3, "not below 3"),
    ],
)
def test_malformed_parcels_are_refused(bad, classes, message):
    good = parcel(kind="<i8" if classes else "<f4")
    with pytest.raises(hn.WireError, match=message):
        merge([good, bad], (2,), classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mnist"}, "task must be one of ldl, cifar10"),
        ({"layer": "relu"}, "layer must be one of"),
        ({"layer": "pretrained", "participants": 0}, "participants must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"participants": 2}, "nothing is split"),
    ],
)
def test_configurations_that_cannot_work(changes, message):
    with pytest.raises(hn.ParameterError, match=message):
        TriadConfig(**changes)


def test_data_that_do_not_fit_the_configuration(small):
    with pytest.raises(hn.ParameterError, match="does not go with the Cohort"):
        run(TriadConfig("cifar10"), small)
    with pytest.raises(hn.ParameterError, match="does not go with the Images"):
        run(TriadConfig("ldl"), synthetic_images(10, 10))
    with pytest.raises(hn.ParameterError, match="too few for 10 participants"):
        run(TriadConfig(layer="random-vector", participants=10, limit=19), small)


@pytest.fixture(scope="module")
def lipids() -> Cohort:
    """A real, untidy table."""
    named = os.environ.get("HESPLIT_LIPIDS")
    path = Path(named) if named else Path(__file__).parents[1] / ".." / "shared" / "data" / "lipids.csv"
    if not path.is_file():
        pytest.skip(f"NO REAL TABLE: looked for {path}; set HESPLIT_LIPIDS to test on it")
    columns = {"sex": "Gender", "age": "AGE", "tc": "Chol", "hdl": "HDL", "tg": "TG", "bmi": "BMI", "ldl": "LDL"}
    return load_csv(path, columns, unit="mmol/L")


@pytest.mark.parametrize("layer", ["none", *LAYERS])
def test_every_case_learns_from_a_real_table(lipids, layer):
    participants = 1 if layer == "none" else 5
    result = run(TriadConfig(layer=layer, participants=participants, epochs=40, batch_size=32), lipids)
    share = 0.85 if layer == "random-vector-relu" else 0.75
    assert result.metric < share * result.baseline


def test_participants_over_mutual_tls_get_the_servers_nonce_and_train_the_same(small, tmp_path):
    make_authority(tmp_path)
    make_server(tmp_path, ["localhost"])
    for i in range(3):
        make_client(tmp_path, f"hospital-{i}")
    config = TriadConfig(layer="random-vector", participants=3, epochs=1)
    server = TriadServer(NONCE)
    with GrpcServer("localhost:0", server.converse, tls=ServerTls.load(tmp_path)) as transport:

        def open_channel(i):
            return connect(f"localhost:{transport.port}", tls=ClientTls.load(tmp_path, f"hospital-{i}"))

        result = run(config, small, server=server, connect=open_channel)
        assert set(server.received) == {"hospital-0", "hospital-1", "hospital-2"}
        again = open_channel(0)
        assert join(again) == NONCE
        with pytest.raises(hn.ProtocolError, match="already"):
            submit(again, Parcel(b"", b""), Parcel(b"", b""))
        again.close()
    assert numbers(result) == numbers(run(config, small, server=TriadServer(NONCE)))


def test_nonces_are_fresh_and_messages_out_of_order_are_refused():
    def channel(server):
        return InProcessChannel(server.converse(ClientInfo("a")))

    assert join(channel(TriadServer())) != join(channel(TriadServer()))
    with pytest.raises(hn.ProtocolError, match="came where 0 was due"):
        submit(channel(TriadServer()), Parcel(b"", b""), Parcel(b"", b""))
    talk = channel(TriadServer())
    join(talk)
    talk.send(b"HESL")
    assert b"shorter than its header" in talk.receive()
