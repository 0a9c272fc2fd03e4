from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.training.config import RunConfig as Config
from hesplit_native.training.division import divide
from hesplit_native.training.run import train, train_together, weighted_mean

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
