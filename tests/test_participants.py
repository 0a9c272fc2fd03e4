from __future__ import annotations

import dataclasses
import time
from functools import partial

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session
from hesplit_native.training import run as run_module
from hesplit_native.training.config import RunConfig as Config
from hesplit_native.training.division import divide
from hesplit_native.training.run import train, train_together, weighted_mean
from hesplit_native.transport import GrpcServer, Limits, connect

RunConfig = partial(Config, batch_size=4, accept_leak=True)  # the papers' setting


@pytest.fixture(scope="module")
def data():
    dataset = synthetic_ecg(train=240, test=60)
    patients = np.repeat(np.arange(12), [60, 50, 40, 20, 20, 10, 10, 10, 5, 5, 5, 5])
    return dataclasses.replace(dataset, train_patient=patients)


@pytest.mark.parametrize("participants", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("division", ["even", "patients"])
def test_every_row_is_someones_and_only_one_ones(data, participants, division):
    shares = divide(data, participants, division, seed=0)
    assert len(shares) == participants
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(240))
    if division == "even":
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        owners = [set(data.train_patient[share]) for share in shares]
        assert sum(map(len, owners)) == 12


def test_divisions_that_cannot_be(data):
    with pytest.raises(hn.ParameterError, match="as many patients"):
        divide(data, 13, "patients", 0)
    with pytest.raises(hn.ParameterError, match="which patient"):
        divide(synthetic_ecg(train=20, test=5), 2, "patients", 0)
    with pytest.raises(hn.ParameterError, match="between 1 and"):
        divide(data, 241, "even", 0)


@pytest.mark.parametrize("mode", ["turns", "parallel"])
@pytest.mark.parametrize("protocol", ["local", "vanilla", "splitways", "hesplit", "sealed"])
def test_encrypted_participants_learn_what_plain_ones_do(data, protocol, mode):
    def run(name):
        config = RunConfig(protocol=name, epochs=2, limit_batches=6, flooding="off")
        return train_together(config, data, participants=3, mode=mode, division="patients")

    plain, other = run("plain"), run(protocol)
    assert other.interrupted is None
    assert other.batches == plain.batches == 2 * 3 * 6
    assert other.participants == 3
    for a, b in zip(plain.history, other.history, strict=True):
        assert abs(a.train_loss - b.train_loss) < 3e-3
    for name, value in plain.client_state.items():
        torch.testing.assert_close(other.client_state[name], value, atol=2e-2, rtol=0)


def test_one_participant_in_turns_is_a_single_client(data):
    config = RunConfig(protocol="plain", epochs=1)
    alone = train_together(config, data, participants=1)
    assert alone.history[0].train_loss == pytest.approx(train(config, data).history[0].train_loss, rel=0.2)


def test_in_turns_the_next_one_goes_on_where_the_last_one_was(data):
    # As many steps on the same data in another order: far from what one participant alone reaches.
    together = train_together(RunConfig(protocol="plain", epochs=3), data, participants=5)
    part = divide(data, 5, "even", 0)[0]
    alone = dataclasses.replace(data, train_x=data.train_x[part], train_y=data.train_y[part], train_patient=None)
    single = train(RunConfig(protocol="plain", epochs=3), alone)
    assert together.history[-1].train_loss < single.history[-1].train_loss - 0.1


def test_averages_are_weighted():
    states = [{"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([8.0, 0.0])}]
    torch.testing.assert_close(weighted_mean(states, [0.75, 0.25])["w"], torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("participants", [2, 10])
def test_more_participants_and_their_keys(data, participants):
    result = train_together(RunConfig(epochs=1, limit_batches=2), data, participants=participants)
    assert result.interrupted is None
    assert result.batches == 2 * participants
    assert result.flooding == "step"


class StopAt:
    """An observer that interrupts a run after so many batches of an epoch."""

    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_start(self, batches_per_epoch, epochs):
        pass

    def on_batch(self, epoch, batch, loss, accuracy):
        if (epoch, batch) == self.at:
            raise KeyboardInterrupt

    def on_evaluate(self, epoch):
        pass

    def on_epoch(self, record):
        pass


def same_end(one, two):
    keys = ("epoch", "train_loss", "train_accuracy", "test_accuracy")
    assert [[getattr(r, k) for k in keys] for r in one.history] == [[getattr(r, k) for k in keys] for r in two.history]
    assert one.batches == two.batches
    assert all(torch.equal(value, two.client_state[name]) for name, value in one.client_state.items())


@pytest.mark.parametrize("batch", [3, 6, 10, 17])
@pytest.mark.parametrize("mode", ["turns", "parallel"])
@pytest.mark.parametrize("protocol", ["local", "vanilla", "plain"])
def test_a_group_that_was_interrupted_ends_bit_for_bit_as_undisturbed(
    data, tmp_path, monkeypatch, protocol, mode, batch
):
    monkeypatch.setattr(run_module, "_REPORT_SECONDS", 0.0)
    config = RunConfig(protocol=protocol, epochs=2, limit_batches=6, checkpoint_every=4)
    whole = train_together(config, data, participants=3, mode=mode)
    options = {"participants": 3, "mode": mode, "checkpoints": tmp_path}
    part = train_together(config, data, observer=StopAt(2, batch), **options)
    assert part.interrupted == "interrupted by the user"
    same_end(train_together(config, data, resume=True, **options), whole)


@pytest.mark.parametrize("mode", ["turns", "parallel"])
@pytest.mark.parametrize("protocol", ["splitways", "hesplit", "sealed"])
def test_an_encrypted_group_goes_on_after_an_interruption(data, tmp_path, monkeypatch, protocol, mode):
    monkeypatch.setattr(run_module, "_REPORT_SECONDS", 0.0)
    config = RunConfig(protocol=protocol, epochs=2, limit_batches=4, checkpoint_every=3, flooding="off")
    whole = train_together(RunConfig(protocol="plain", epochs=2, limit_batches=4), data, participants=2, mode=mode)
    options = {"participants": 2, "mode": mode, "checkpoints": tmp_path}
    train_together(config, data, observer=StopAt(2, 6), **options)
    resumed = train_together(config, data, resume=True, **options)
    assert resumed.interrupted is None
    assert resumed.batches == whole.batches
    for one, two in zip(resumed.history, whole.history, strict=True):
        assert abs(one.train_loss - two.train_loss) < 3e-3


class Crash(BaseException):
    """The process is killed: nothing of ours catches it."""


@pytest.mark.parametrize("stored", [False, True], ids=["before the server stores", "after"])
@pytest.mark.parametrize("mode", ["turns", "parallel"])
def test_a_crash_at_any_message_of_a_group_costs_nothing_but_time(data, tmp_path, monkeypatch, mode, stored):
    config = RunConfig(protocol="plain", epochs=2, limit_batches=3, checkpoint_every=2)
    whole = train_together(config, data, participants=2, mode=mode)
    original = Session.exchange
    rare = (MessageType.CHECKPOINT, MessageType.MERGE, MessageType.ADOPT)

    def crashing(self, kind, *rest):
        crashing.count += kind in rare
        fatal = kind in rare and crashing.count == crashing.at
        if fatal and not stored:
            raise Crash
        reply = original(self, kind, *rest)
        if fatal:
            raise Crash
        return reply

    monkeypatch.setattr(Session, "exchange", crashing)
    moment, done = 0, False
    while not done:
        moment += 1
        crashing.count, crashing.at = 0, moment
        folder = tmp_path / str(moment)
        options = {"participants": 2, "mode": mode, "checkpoints": folder}
        try:
            result = train_together(config, data, **options)
            done = True
        except Crash:
            crashing.at = 0
            if moment <= 2:  # the first checkpoint was not complete: there is nothing to go on from yet
                continue
            result = train_together(config, data, resume=True, **options)
        same_end(result, whole)
    assert moment > (20 if mode == "parallel" else 8)


@pytest.mark.parametrize("mode", ["turns", "parallel"])
def test_waiting_for_ones_turn_does_not_end_a_run(data, mode):
    """A participant whose connection is closed meanwhile makes another one."""

    class Slow(StopAt):
        def on_batch(self, epoch, batch, loss, accuracy):
            time.sleep(0.7)

    config = RunConfig(epochs=2, limit_batches=3)
    undisturbed = train_together(
        RunConfig(protocol="plain", epochs=2, limit_batches=3), data, participants=3, mode=mode
    )
    with GrpcServer("127.0.0.1:0", Server().converse, limits=Limits(idle_seconds=0.3)) as server:
        address = f"127.0.0.1:{server.port}"
        result = train_together(
            config, data, participants=3, mode=mode, observer=Slow(0, 0),
            connect=lambda index: connect(address, client_id=f"hospital-{index + 1}"),
        )  # fmt: skip
    assert result.interrupted is None
    assert result.batches == undisturbed.batches
    for one, two in zip(result.history, undisturbed.history, strict=True):
        assert abs(one.train_loss - two.train_loss) < 0.1


def test_a_group_resumes_only_as_what_it_was(data, tmp_path):
    config = RunConfig(protocol="plain", epochs=1, limit_batches=2)
    train_together(config, data, participants=2, checkpoints=tmp_path)
    for options in ({"participants": 3}, {"participants": 2, "mode": "parallel"}):
        with pytest.raises(hn.DataError, match="the checkpoint is of 2 participants"):
            train_together(config, data, checkpoints=tmp_path, resume=True, **options)
