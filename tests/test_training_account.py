"""Epsilon counts what was released: by beat, however many rows are copies of it, and however often a run is ended and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import RolledBack
from hesplit_native.training import account as account_module
from hesplit_native.training import run as run_module
from hesplit_native.training.account import PrivacyAccount
from hesplit_native.training.client import Client
from hesplit_native.training.config import Defences, RunConfig
from hesplit_native.training.defences import Defender
from hesplit_native.training.run import in_process, train, train_together

GAUSSIAN = Defences(mechanism="gaussian", activation_epsilon=1.0)
BOTH = replace(GAUSSIAN, gradient_epsilon=5.0)

#: A run that kills itself before it learns from its nth batch, having said which rows it sent; argv: folder, log, n, resume,
#: participants, checkpoint_every.
KILLED = """
import os, signal, sys
from dataclasses import replace
from hesplit_native.training import run
from hesplit_native.training.client import Client
from tests.test_training_account import GAUSSIAN, RunConfig, small
folder, log, at, resume, participants, every = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
names = {row.tobytes(): str(index) for index, row in enumerate(small().train_x)}
learn = Client.learn
def last(client, x, labels):
    global at
    if at == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    at -= 1
    os.write(log, (" ".join(names[row.numpy().tobytes()] for row in x) + "\\n").encode())
    return learn(client, x, labels)
Client.learn = last
config = RunConfig(protocol="plain", epochs=1, checkpoint_every=every, defences=GAUSSIAN)
options = {"checkpoints": __import__("pathlib").Path(folder), "resume": bool(resume)}
if participants > 1:
    run.train_together(config, small(), participants=participants, **options)
else:
    run.train(config, small(), **options)
"""


def small(train_rows=80, test_rows=16):
    found = synthetic_ecg()
    return replace(
        found, train_x=found.train_x[:train_rows], train_y=found.train_y[:train_rows],
        test_x=found.test_x[:test_rows], test_y=found.test_y[:test_rows],
    )  # fmt: skip


def epsilon(defences, activations, gradients=None):
    return Defender(defences, 256).epsilon(activations, gradients)


@pytest.fixture
def sent(monkeypatch):
    """How often every signal was sent: for training, and for evaluation."""
    found = Counter(), Counter()

    def counting(original, counter):
        def counted(client, x, *labels):
            parts = [x] if labels else list(x)  # what is evaluated together comes in parts
            counter.update(row.numpy().tobytes() for part in parts for row in part)
            return original(client, x if labels else parts, *labels)

        return counted

    for name, counter in zip(("learn", "outputs"), found, strict=True):
        monkeypatch.setattr(Client, name, counting(getattr(Client, name), counter))
    return found


def owed(defences, sent):
    """The epsilon of what was sent."""
    learnt, tested = sent
    return max(epsilon(defences, learnt[beat] + tested[beat], learnt[beat]) for beat in learnt | tested)


class StopAt:
    """Interrupts a run at a batch of an epoch."""

    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_batch(self, epoch, batch, loss, accuracy):
        if (epoch, batch) == self.at:
            raise KeyboardInterrupt

    def on_start(self, *_):
        pass

    on_evaluate = on_epoch = on_start


@pytest.fixture
def attentive(monkeypatch):
    """Observers see every batch."""
    monkeypatch.setattr(run_module, "_REPORT_SECONDS", 0.0)


class TestBeats:
    def account(self, signals, defences=BOTH, path=None):
        return PrivacyAccount(Defender(defences, 256), np.asarray(signals, np.float32), path)

    def test_copies_are_one_beat_and_near_copies_are_not(self):
        near = np.nextafter(np.float32(0.1), np.float32(1))
        account = self.account([[0.1, 0.0], [near, 0.0], [0.1, -0.0], [0.1, 0.0]])
        account.add(np.array([1]))
        assert account.epsilon() == epsilon(BOTH, 1)
        account.add(np.array([0, 2]))
        assert account.epsilon() == epsilon(BOTH, 2)
        account.add(torch.tensor([3]))
        assert account.epsilon() == epsilon(BOTH, 3)
        assert any("1 beats are in the data more than once, one of them 3 times" in note for note in account.notes)

    def test_without_copies_there_is_nothing_to_note(self):
        assert self.account([[0.1], [0.2]]).notes == ()

    def test_activations_and_gradients_count_for_themselves(self):
        account = self.account([[1.0], [2.0]])
        account.add(np.array([0]))
        account.add(np.array([0, 1, 1, 1, 1, 1]), gradients=False)
        assert account.epsilon() == max(epsilon(BOTH, 2, 1), epsilon(BOTH, 5, 0))

    def test_labels_of_copies_are_answered_for_once(self):
        defences = Defences(label_epsilon=0.1)
        signals = np.repeat(np.arange(200, dtype=np.float32)[:, None], 5, axis=0)
        truth = torch.arange(200).repeat_interleave(5) % 4
        account = self.account(signals, defences)
        answers = account.labels(truth, 4).reshape(200, 5)
        assert (answers == answers[:, :1]).all()
        assert 20 < int((answers[:, 0] != truth.reshape(200, 5)[:, 0]).sum()) < 200  # about 72 % of 200
        assert account.epsilon() == pytest.approx(0.1)

    def test_different_labels_of_one_beat_are_answers_of_their_own(self):
        account = self.account([[1.0], [1.0], [2.0]], Defences(label_epsilon=0.5))
        account.labels(torch.tensor([0, 1, 1]), 4)
        assert account.epsilon() == pytest.approx(1.0)

    def test_without_noise_nothing_is_counted(self, tmp_path):
        account = PrivacyAccount(None, np.zeros((3, 2), np.float32), tmp_path / "a")
        account.ahead(np.array([0]))
        account.add(np.array([0]))
        account.settle()
        assert account.epsilon() is None
        assert list(tmp_path.iterdir()) == []


class TestFile:
    SIGNALS = ((1.0,), (2.0,), (3.0,))

    def account(self, path, signals=SIGNALS):
        return PrivacyAccount(Defender(GAUSSIAN, 256), np.asarray(signals, np.float32), path)

    def resumed(self, path):
        account = self.account(path)
        account.resume()
        return account

    def test_counts_what_may_be_sent_before_it_is_sent_and_what_was_sent_after(self, tmp_path):
        path = tmp_path / "account"
        account = self.account(path)
        account.ahead(np.array([0, 1, 1]))
        assert self.resumed(path).epsilon() == epsilon(GAUSSIAN, 2)  # as after a kill
        account.add(np.array([0]))
        account.settle()
        assert self.resumed(path).epsilon() == epsilon(GAUSSIAN, 1)
        again = self.resumed(path)
        again.ahead(np.array([0]))
        assert self.resumed(path).epsilon() == epsilon(GAUSSIAN, 2)
        assert path.stat().st_mode & 0o077 == 0

    def test_that_cannot_be_settled_counts_too_much(self, tmp_path, monkeypatch):
        path = tmp_path / "account"
        account = self.account(path)
        account.ahead(np.array([0, 0]))

        def full(*_args):
            raise OSError("full")

        monkeypatch.setattr(account_module, "write_tensors", full)
        account.settle()
        assert self.resumed(path).epsilon() == epsilon(GAUSSIAN, 2)
        with pytest.raises(OSError, match="full"):
            account.ahead(np.array([0]))

    def test_of_other_data_or_damaged_or_gone_is_no_account(self, tmp_path):
        path = tmp_path / "account"
        with pytest.raises(hn.DataError, match="does not exist"):
            self.account(path).resume()
        self.account(path).ahead(np.array([0]))
        for other in ([[1.0], [2.0]], [[1.0], [2.0], [3.1]], [[2.0], [1.0], [3.0]]):
            with pytest.raises(hn.DataError, match="other data"):
                self.account(path, other).resume()
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(hn.DataError, match="damaged"):
            self.account(path).resume()


class TestRuns:
    @pytest.mark.parametrize("protocol", ["plain", "vanilla", "local"])
    def test_undisturbed_release_every_beat_once_an_epoch(self, protocol, sent):
        defences = GAUSSIAN if protocol == "vanilla" else BOTH
        result = train(RunConfig(protocol=protocol, epochs=3, defences=defences), small())
        assert result.epsilon == owed(defences, sent) == epsilon(defences, 3)
        assert [record.epsilon for record in result.history] == [epsilon(defences, n) for n in (1, 2, 3)]

    def test_of_repeated_rows_count_every_copy(self, sent):
        data = small()
        rows = np.r_[0:40, 0:10, 5:10, 5:10, [7] * 12]
        data = replace(data, train_x=data.train_x[rows], train_y=data.train_y[rows])
        result = train(RunConfig(protocol="plain", epochs=2, defences=BOTH), data)
        assert result.epsilon == owed(BOTH, sent) == epsilon(BOTH, 2 * 16)
        assert any("one of them 16 times" in note for note in result.notes)

    def test_count_beats_that_are_tested_as_well(self, sent):
        data = small()
        data = replace(data, test_x=data.train_x[:16], test_y=data.train_y[:16])
        result = train(RunConfig(protocol="plain", epochs=2, defences=BOTH), data)
        assert result.epsilon == owed(BOTH, sent) == epsilon(BOTH, 4, 2)

    def test_participants_with_the_same_beat_add_up(self, sent):
        data = small()
        data = replace(data, train_x=np.repeat(data.train_x[:1], 80, axis=0), train_y=np.repeat(data.train_y[:1], 80))
        defences = replace(GAUSSIAN, label_epsilon=0.5)
        result = train_together(RunConfig(protocol="plain", epochs=1, defences=defences), data, participants=3)
        assert sum(sent[0].values()) == 80
        assert result.epsilon == pytest.approx(epsilon(GAUSSIAN, 80) + 0.5)

    @pytest.mark.parametrize("every", [1000, 3])
    def test_that_are_interrupted_and_resumed_count_what_is_sent_again(self, tmp_path, sent, attentive, every):
        config = RunConfig(protocol="plain", epochs=2, checkpoint_every=every, defences=BOTH)
        first = train(config, small(), checkpoints=tmp_path, observer=StopAt(1, 8))
        assert first.interrupted
        assert first.history == ()
        assert first.epsilon == owed(BOTH, sent) == epsilon(BOTH, 1)  # though no epoch was finished
        for stop in ((1, 9), (1, 8), (2, 5), (2, 4), None):
            observer = StopAt(*stop) if stop else None
            result = train(config, small(), checkpoints=tmp_path, resume=True, observer=observer)
            assert result.epsilon == owed(BOTH, sent)
        assert result.interrupted is None
        assert result.epsilon > epsilon(BOTH, 2)

    @pytest.mark.parametrize("mode", ["turns", "parallel"])
    def test_of_groups_count_what_is_sent_again(self, tmp_path, sent, attentive, mode):
        config = RunConfig(protocol="plain", epochs=1, defences=BOTH)
        options = {"participants": 2, "mode": mode, "checkpoints": tmp_path}
        train_together(config, small(), observer=StopAt(1, 4), **options)
        train_together(config, small(), observer=StopAt(1, 8), resume=True, **options)
        result = train_together(config, small(), resume=True, **options)
        assert result.interrupted is None
        assert result.epsilon == owed(BOTH, sent) == epsilon(BOTH, 2)

    def test_that_are_rolled_back_count_what_is_sent_again(self, tmp_path, sent, monkeypatch):
        learn, calls = Client.learn, []

        def lost(client, x, labels):
            found = learn(client, x, labels)
            calls.append(1)
            if len(calls) in (5, 9):
                raise RolledBack([])
            return found

        monkeypatch.setattr(Client, "learn", lost)
        config, connect = RunConfig(protocol="plain", epochs=1, defences=BOTH), in_process(Server())
        result = train(config, small(), checkpoints=tmp_path, connect=connect)
        assert result.interrupted is None
        assert len(calls) == 5 + 4 + 10
        assert result.epsilon == owed(BOTH, sent) == epsilon(BOTH, 3)

    def test_begin_at_nothing_when_they_begin_anew(self, tmp_path, attentive):
        config = RunConfig(protocol="plain", epochs=1, defences=GAUSSIAN)
        train(config, small(), checkpoints=tmp_path, observer=StopAt(1, 8))
        assert train(config, small(), checkpoints=tmp_path).epsilon == epsilon(GAUSSIAN, 1)

    def test_without_their_account_are_not_resumed(self, tmp_path, attentive):
        config = RunConfig(protocol="plain", epochs=1, defences=GAUSSIAN)
        train(config, small(), checkpoints=tmp_path, observer=StopAt(1, 8))
        (tmp_path / "noised-releases.safetensors").unlink()
        with pytest.raises(hn.DataError, match=r"noised-releases\.safetensors does not exist"):
            train(config, small(), checkpoints=tmp_path, resume=True)

    @pytest.mark.parametrize(("participants", "every", "kills"), [(1, 1000, (6, 8)), (1, 3, (5, 4)), (2, 1000, (3, 8))])
    def test_that_are_killed_count_what_they_sent(self, tmp_path, participants, every, kills, sent):
        folder, log = tmp_path / "run", tmp_path / "log"
        for resume, at in enumerate(kills):
            command = [sys.executable, "-c", KILLED, *map(str, (folder, log, at, resume, participants, every))]
            assert subprocess.run(command, check=False).returncode == -9
        before = Counter(int(row) for row in log.read_text().split())
        config = RunConfig(protocol="plain", epochs=1, checkpoint_every=every, defences=GAUSSIAN)
        options = {"checkpoints": folder, "resume": True}
        together = {"participants": participants} if participants > 1 else {}
        result = (train_together if together else train)(config, small(), **options, **together)
        assert result.interrupted is None
        data = small()
        sent[0].update({data.train_x[row].tobytes(): count for row, count in before.items()})
        most = max(sent[0].values())
        assert most >= 2
        assert epsilon(GAUSSIAN, most) <= result.epsilon <= epsilon(GAUSSIAN, 3)

    def test_write_their_epsilon_into_their_metrics(self, attentive):
        from hesplit_native.training.report import metrics

        data = small()
        config = RunConfig(protocol="plain", epochs=1, defences=GAUSSIAN)
        result = train(config, data, observer=StopAt(1, 3))
        written = json.loads(json.dumps(metrics(result, data)))
        assert written["epsilon"] == epsilon(GAUSSIAN, 1)
