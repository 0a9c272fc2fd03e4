from __future__ import annotations

import copy
from contextlib import closing

import numpy as np
import pytest
import torch
from torch import nn

import hesplit_native as hn
from hesplit_native.data import synthetic_ecg
from hesplit_native.errors import ConnectionLost
from hesplit_native.federation import LAYER, NETWORK_FORMAT, Plan
from hesplit_native.federation import site as site_module
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.storage import read_tensors
from hesplit_native.training.division import divide
from hesplit_native.training.fit import prepare
from hesplit_native.training.run import Run
from hesplit_native.transport import ClientInfo, InProcessChannel

pytest.importorskip("flwr", reason="NO FLOWER: install the extra `flower`")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.supercore.task_identity import TaskIdentity

from hesplit_native.flower import Site, client_app, server_app, site_of
from hesplit_native.flower import server as server_module

SITES, OUTPUTS, BATCH = 3, 5, 8
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
BITWISE = {"rtol": 0, "atol": 0}


def make_network():
    torch.manual_seed(7)
    # No bias before the normalisation: its gradient is zero but for rounding, which Adam makes steps of full length of.
    return nn.Sequential(nn.Conv1d(1, 4, 7, padding=3, bias=False), nn.BatchNorm1d(4), nn.LeakyReLU(), nn.MaxPool1d(4))


@pytest.fixture(scope="module")
def data():
    return synthetic_ecg(train=180, test=60, seed=1)


@pytest.fixture(scope="module")
def shares(data):
    """Of unequal size: 90, 45 and 45 rows, 12, 6 and 6 batches."""
    quarters = divide(data, 4, "even", 0)
    return [np.concatenate(quarters[:2]), *quarters[2:]]


class Killed(Exception):
    """The process of a site is no more."""


class Federation(Grid):
    """SuperLink and SuperNodes without processes: every message is answered by a client app that is made anew.

    `here` are the sites that are there. `lost(number, site)` says whose reply to the messages of that number is lost, and
    `before(grid, number)` is called before they are sent: 0 is the training of the first round, 1 its evaluation, 2 the training of
    the second. `began` is what every site had when its work began: number, network's weights, and the layer's at the server.
    """

    def __init__(self, make_app, here, lost, before):
        self.make_app, self.here, self.lost, self.before = make_app, here, lost, before
        self.sent, self.replies, self.errors, self.began = [], [], [], []

    def get_node_ids(self):
        return [site + 1 for site in self.here]

    def send_and_receive(self, messages, *, timeout=None):
        number = len(self.sent)
        self.before(self, number)
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        self.sent.append([(message.metadata.message_type, message.metadata.dst_node_id - 1) for message in messages])
        found = []
        for message in messages:
            site = message.metadata.dst_node_id - 1
            try:
                reply = self.make_app()(message, Context(1, site + 1, {"partition-id": site}, RecordDict(), {}))
            except hn.HESplitError as error:
                self.errors.append((number, site, error))
                reply = Message(Error(0, str(error)), reply_to=message)
            except Killed:
                continue
            if not self.lost(number, site):
                found.append(reply)
        self.replies.append(len(found))
        return found

    def _not_used(self, *arguments, **more):
        raise NotImplementedError

    set_run = create_message = get_nodes = push_messages = pull_messages = _not_used
    run = property(_not_used)


class Wire(InProcessChannel):
    """A connection that says when a request is sent, and when the server has answered it."""

    def __init__(self, conversation, on_request, on_reply):
        super().__init__(conversation)
        self._on_request, self._on_reply = on_request, on_reply

    def send(self, message):
        self._on_request()
        super().send(message)
        self._on_reply(message)


@pytest.fixture
def federate(data, shares, tmp_path, monkeypatch):
    """federate(protocol, …) is a whole run: what the strategy gave back, and the grid, whose `server` may be replaced on the way."""
    for name in ("run_id", "node_id", "task_id"):  # which a process of Flower's has
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)

    take = site_module.take

    def run(
        protocol="plain", *, folder="run", here=range(SITES), lost=lambda number, site: False, before=lambda grid, number: None,
        on_request=lambda grid, site: None, on_reply=lambda grid, site, message: None, app=None, in_memory=False, **options,
    ):  # fmt: skip
        where = tmp_path / folder

        def site(context):
            name = f"site-{context.node_config['partition-id']}"

            def connect():
                return Wire(
                    grid.server.converse(ClientInfo(name)),
                    lambda: on_request(grid, name),
                    lambda message: on_reply(grid, name, message),
                )

            return Site(name, connect if protocol != "local" else None, None, where / "state" / name)

        def data_of(context):
            rows = shares[context.node_config["partition-id"]]
            return data.train_x[rows], data.train_y[rows]

        def make_app():
            given = {
                "batch_size": BATCH,
                "seed": 3,
                "metrics": False,
                "make_validation": lambda _: (data.test_x, data.test_y),
            }
            given |= {"make_network": make_network, "make_data": data_of, "outputs": OUTPUTS} | (app or {})
            return client_app(site=site, protocol=protocol, **given)

        results = []
        grid = Federation(make_app, list(here), lost, before)

        def spied(run, plan, state):
            take(run, plan, state)
            client = run.participants[0].client
            if client.session is not None and client.own_layer is None:
                layer = grid.server.sessions[client.session.nonce].layer.linear.weight.detach().clone()
                grid.began.append((len(grid.sent) - 1, client.model[0].weight.detach().clone(), layer))

        monkeypatch.setattr(site_module, "take", spied)
        grid.server = Server(checkpoints=None if in_memory else where / "server", output=where / "layers")
        server_app(make_network, finished=results.append, **{"rounds": 3} | options)(
            grid, Context(1, 0, {}, RecordDict(), {})
        )
        return results[0], grid

    return run


def states(result):
    return result.arrays.to_torch_state_dict()


def weights(state):
    """All but how many batches a normalisation saw: no average of whole numbers is one."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].to(value.dtype), value, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def layers(folder):
    """What the server wrote when the sites' sessions ended."""
    from safetensors.torch import load_file

    return [load_file(path) for path in sorted((folder / "layers").glob("*.safetensors"))]


def networks(folder):
    """What the sites have in the end."""
    return [read_tensors(path, NETWORK_FORMAT)[0] for path in sorted(folder.glob("state/*/network.safetensors"))]


def newest(folder, site):
    """A site's newest checkpoint: tensors, and the states of the layer at the server so far."""
    paths = (folder / "state" / site).glob("client-*.safetensors")
    tensors, values = read_tensors(max(paths, key=lambda path: int(path.stem.split("-")[1])), "hesplit_native-client-2")
    return tensors, values["progress"]["steps"][0]


# The same as in one process


def by_the_packages_own_loop(data, shares, protocol, mode, epochs):
    """The run of these participants in one process, and the accuracy after every epoch."""
    _, config, task = prepare(
        make_network(), (data.train_x, data.train_y), (data.test_x, data.test_y), None, outputs=OUTPUTS, loss=None, classes=None,
        metrics=False, epochs=epochs, batch_size=BATCH, learning_rate=1e-3, protocol=protocol, seed=3, device="cpu", more={},
    )  # fmt: skip
    run = Run(config, task, shares, mode=mode)
    for participant in run.participants:
        client = participant.client
        client.model = copy.deepcopy(task.network.module)
        client.optimizer = client._optimizer(list(client.model.parameters()))
        participant.order = torch.Generator().manual_seed(config.seed)  # no site knows how many are before it
        participant.before = participant.order.get_state()
    run.begin()
    accuracies = []
    for _ in range(epochs):
        with closing(run.epoch()) as batches:
            for _ in batches:
                pass
        accuracies.append(run.evaluate())
        run.next_epoch()
    return run, accuracies


@pytest.mark.parametrize("mode", ["parallel", "turns"])
@pytest.mark.parametrize("protocol", ["plain", "vanilla"])
def test_rounds_are_epochs_of_participants_in_one_process(data, shares, federate, tmp_path, protocol, mode):
    per_epoch = SITES if mode == "turns" else 1
    result, grid = federate(protocol, mode=mode, rounds=3 * per_epoch)
    assert not grid.errors
    run, accuracies = by_the_packages_own_loop(data, shares, protocol, mode, 3)
    last = run.participants[-1]
    assert_same(weights(states(result)), weights(last.client.model.state_dict()), **CLOSE)
    layer = dict(run.server.sessions[last.session.nonce].layer.module.state_dict())
    assert len(layers(tmp_path / "run")) == SITES
    for found in layers(tmp_path / "run"):
        assert_same(found, layer, **CLOSE)
    found = [metrics["accuracy"] for _, metrics in sorted(result.evaluate_metrics_clientapp.items())]
    assert found[per_epoch - 1 :: per_epoch] == pytest.approx(accuracies, abs=1e-9)
    if mode == "turns":
        trained = [messages for messages in grid.sent if messages[0][0] == "train"]
        assert trained == [[("train", site)] for site in range(SITES)] * 3


@pytest.mark.parametrize("mode", ["parallel", "turns"])
@pytest.mark.parametrize("protocol", ["local", "splitways", "hesplit", "sealed"])
def test_encrypted_sites_learn_what_plain_ones_do(federate, tmp_path, protocol, mode):
    result, grid = federate(protocol, mode=mode)
    assert not grid.errors
    state = states(result)
    held = {name for name in state if name.startswith(LAYER)}
    assert bool(held) == (protocol in ("local", "sealed"))
    assert len(networks(tmp_path / "run")) == SITES
    for found in networks(tmp_path / "run"):
        common = found.keys() & state.keys()
        assert_same(weights({name: found[name] for name in common}), weights({name: state[name] for name in common}))
    plain, _ = federate("plain", mode=mode, folder="plain")
    assert_same(
        weights({name: value for name, value in state.items() if name not in held}), weights(states(plain)), rtol=0, atol=0.02
    )  # fmt: skip


def test_several_epochs_are_one_round(federate, tmp_path):
    kept = []
    result, grid = federate(
        epochs=2,
        rounds=2,
        before=lambda grid, number: number == 4 and kept.append(newest(tmp_path / "run", "site-0")[1]),
    )
    assert not grid.errors
    assert grid.replies == [SITES] * 5  # two times training and evaluation, and the end
    assert kept == [2 * 2 * 12 + 1]  # steps, and the average that the second round began with
    assert sorted(result.train_metrics_clientapp) == [1, 2]


# Sites that come and go


def one_state(began, number):
    """The weights that all sites began that work with, which are the same."""
    found = [state for when, *state in began if when == number]
    for state in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(state, found[0], strict=True))
    return found[0]


def test_a_late_joiner_begins_with_what_the_others_have_learnt(federate):
    def before(grid, number):
        if number == 3:
            grid.here.append(2)

    _, grid = federate(rounds=3, here=[0, 1], before=before)
    assert not grid.errors
    assert [[site for _, site in messages] for messages in grid.sent] == [[0, 1]] * 4 + [[0, 1, 2]] * 3
    began = [one_state(grid.began, number) for number in range(7)]
    for one, other in ((0, 2), (2, 4), (4, 6)):
        assert not any(torch.equal(*pair) for pair in zip(began[one], began[other], strict=True))


def test_a_straggler_is_left_out_and_comes_back(federate, tmp_path):
    _, grid = federate(rounds=3, lost=lambda number, site: (number, site) == (2, 1))
    assert not grid.errors
    assert grid.replies == [3, 3, 2, 3, 3, 3, 3]
    for number in range(7):
        one_state(grid.began, number)
    # What it did in vain counts for its own moments: 6 batches in each of three rounds.
    without = federate(rounds=3, folder="without", lost=lambda number, site: (number, site) in ((2, 1), (2, 2)))[1]
    assert not torch.equal(one_state(grid.began, 3)[1], one_state(without.began, 3)[1])


def test_a_round_of_which_all_replies_are_lost_is_done_again(federate):
    lost, grid = federate(rounds=4, lost=lambda number, site: number == 2)
    assert not grid.errors
    undisturbed, _ = federate(rounds=3, folder="undisturbed")
    assert_same(states(lost), states(undisturbed), **BITWISE)


@pytest.mark.parametrize("protocol", ["plain", "vanilla", "local"])
@pytest.mark.parametrize("number", [0, 2])
def test_so_is_the_first_and_that_of_any_protocol(federate, number, protocol):
    """With the layer that it began with, and the moments, also where the layer is the client's."""
    lost, grid = federate(protocol, rounds=4, lost=lambda n, site: n == number)
    assert not grid.errors
    undisturbed, _ = federate(protocol, rounds=3, folder="undisturbed")
    assert_same(states(lost), states(undisturbed), **BITWISE)


def test_turns_that_are_lost_before_anything_is_learnt(federate):
    """All sites had one, and nobody's layer is one that was trained in vain."""
    _, grid = federate(mode="turns", rounds=SITES + 1, lost=lambda n, site: n < 2 * SITES and n % 2 == 0)
    assert not grid.errors
    for when in range(2 * SITES + 1):
        assert all(torch.equal(*pair) for pair in zip(one_state(grid.began, when), grid.began[0][1:], strict=True))


def test_so_is_a_sealed_one(federate, tmp_path):
    """The optimiser's steps of the site tell: encryption's noise does not."""
    steps = []

    def before(grid, number):
        if number == 6:
            steps.append(int(newest(tmp_path / "run", "site-1")[0]["0.optimizer.0.step"]))

    federate("sealed", rounds=3, lost=lambda number, site: number == 2, before=before)
    assert steps == [12]


@pytest.mark.parametrize("rounds_lost", [2, 3])
def test_so_are_several(federate, rounds_lost):
    """Neither side keeps more than two checkpoints, and those that all go on from must be among them."""
    first = 2
    lost, grid = federate(
        rounds=3 + rounds_lost, lost=lambda number, site: first <= number < first + 2 * rounds_lost and number % 2 == 0
    )
    assert not grid.errors
    undisturbed, _ = federate(rounds=3, folder="undisturbed")
    assert_same(states(lost), states(undisturbed), **BITWISE)


@pytest.mark.parametrize("protocol", ["plain", "splitways", "sealed"])
@pytest.mark.parametrize("request_number", [0, 1, 2, 9])
def test_a_site_that_is_killed_comes_back(federate, tmp_path, protocol, request_number):
    """In the midst of round 2, at that request; in the next one it goes on from the end of the first."""
    requests = []

    def on_request(grid, site):
        if site == "site-1" and len(grid.sent) == 3 and grid.sent[-1][0][0] == "train":
            requests.append(site)
            if len(requests) == request_number + 1:
                raise Killed

    steps = []

    def before(grid, number):
        if number in (3, 6):
            steps.append(int(newest(tmp_path / "run", "site-1")[0]["0.optimizer.0.step"]))

    _, grid = federate(protocol, rounds=3, on_request=on_request, before=before)
    assert not grid.errors
    assert grid.replies == [3, 3, 2, 3, 3, 3, 3]
    assert steps == [6, 12]
    for number in range(7) if protocol == "plain" else ():
        one_state(grid.began, number)


@pytest.mark.parametrize("request_number", [1, 2, 3, 9, 14])
def test_a_server_that_is_restarted_in_a_round_costs_nothing_but_time(federate, tmp_path, request_number):
    requests = []

    def on_request(grid, site):
        if site == "site-1" and len(grid.sent) == 3 and grid.sent[-1][0][0] == "train":
            requests.append(site)
            if len(requests) == request_number:
                grid.server = Server(checkpoints=tmp_path / "run" / "server", output=tmp_path / "run" / "layers")
                raise ConnectionLost("the server went away")

    restarted, grid = federate(rounds=3, on_request=on_request)
    assert len(requests) > request_number
    assert not grid.errors
    assert grid.replies == [3] * 7
    undisturbed, _ = federate(rounds=3, folder="undisturbed")
    assert_same(states(restarted), states(undisturbed), **BITWISE)
    for ours, theirs in zip(layers(tmp_path / "run"), layers(tmp_path / "undisturbed"), strict=True):
        assert_same(ours, theirs, **BITWISE)


@pytest.mark.parametrize("number", [0, 2])
def test_a_server_that_is_restarted_when_it_has_stored_a_round_does_not_do_it_twice(federate, tmp_path, number):
    """In the first round, or after a reply of its own was lost, the site has no checkpoint that others go on from."""
    restarted = []

    def on_reply(grid, site, message):
        training = len(grid.sent) == number + 1 and grid.sent[-1][0][0] == "train"
        if training and site == "site-1" and messages.unpack(message).type is MessageType.CHECKPOINT:
            step = newest(tmp_path / "run", "site-1")[1]
            if not restarted and step > number * 3:
                restarted.append(step)
                grid.server = Server(checkpoints=tmp_path / "run" / "server", output=tmp_path / "run" / "layers")
                raise ConnectionLost("the server went away")

    trained = []

    def before(grid, at):
        if at == number + 1:
            trained.append(int(newest(tmp_path / "run", "site-1")[0]["0.optimizer.0.step"]))

    # In the second case site 1's reply to the first round was lost.
    _, grid = federate(
        rounds=3, on_reply=on_reply, before=before, lost=lambda at, site: number == 2 and (at, site) == (0, 1)
    )
    assert restarted
    assert not grid.errors
    assert trained == [6 * (number // 2 + 1)]


@pytest.mark.parametrize("mode", ["parallel", "turns"])
def test_a_server_without_a_folder_lets_all_sites_come_to_their_end(federate, tmp_path, mode):
    """The first that ends its session must not take the checkpoints away that the others go on from."""
    _, grid = federate(mode=mode, rounds=2, in_memory=True)
    assert not grid.errors
    assert len(networks(tmp_path / "run")) == len(layers(tmp_path / "run")) == SITES
    for found in layers(tmp_path / "run")[1:]:
        assert_same(found, layers(tmp_path / "run")[0], **BITWISE)


def test_a_site_that_did_not_come_to_its_end_is_said(federate, monkeypatch):
    said = []
    monkeypatch.setattr(
        server_module, "log", raising=False, value=lambda level, text, *values: said.append(text % values)
    )

    def before(grid, number):
        if number == 4:
            grid.server = Server()

    _, grid = federate(rounds=2, before=before)
    assert [number for number, _, _ in grid.errors] == [4] * SITES
    assert len(said) == SITES
    assert all("checkpoint" in line or "run" in line for line in said)


def test_a_server_that_forgot_everything_does_not_go_on_with_fresh_layers(federate):
    def before(grid, number):
        if number == 2:
            grid.server = Server()

    result, grid = federate(rounds=2, before=before)
    assert grid.replies[:2] == [3, 3]
    assert {type(error) for number, _, error in grid.errors} == {hn.errors.ProtocolError}
    assert {site for number, site, _ in grid.errors if number == 2} == {0, 1, 2}
    assert sorted(result.train_metrics_clientapp) == [1]


def test_a_server_that_forgot_everything_goes_on_where_the_layer_is_the_clients(federate, tmp_path):
    steps = []

    def before(grid, number):
        if number == 2:
            grid.server = Server()
        if number == 4:
            steps.append(int(newest(tmp_path / "run", "site-1")[0]["0.optimizer.0.step"]))

    result, grid = federate("sealed", rounds=2, before=before)
    assert not grid.errors
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert steps == [12]  # a site keeps its moments, too


def test_a_site_whose_folder_is_lost_is_a_late_joiner(federate, tmp_path):
    import shutil

    def before(grid, number):
        if number == 2:
            shutil.rmtree(tmp_path / "run" / "state" / "site-1")

    _, grid = federate(rounds=3, before=before)
    assert not grid.errors
    for number in range(7):
        one_state(grid.began, number)


def test_another_run_with_the_same_folders_begins_anew(federate, tmp_path):
    first, _ = federate(rounds=2)
    federate(
        rounds=2, folder="twice", before=lambda grid, number: number == 3 and grid.here.clear()
    )  # no one is left to end it
    assert list(tmp_path.glob("twice/state/*/client-*.safetensors"))
    again, grid = federate(rounds=2, folder="twice")
    assert not grid.errors
    assert_same(states(again), states(first), **BITWISE)


def test_what_was_released_with_noise_is_not_forgotten(federate, tmp_path):
    from hesplit_native.training import Defences

    def before(grid, number):
        if number == 2:
            for path in (tmp_path / "run" / "server").glob("*/*.safetensors"):
                path.unlink()

    noisy = {"defences": Defences("gaussian", activation_epsilon=1.0)}
    _, grid = federate(rounds=2, before=before, app=noisy)
    assert len([number for number, _, _ in grid.errors if number == 2]) == SITES


# Strategies


def test_other_strategies(federate):
    result, grid = federate(strategy=FedAdam(eta=0.01))
    assert not grid.errors
    assert grid.replies == [3] * 7
    averaged, _ = federate(folder="averaged")
    assert not torch.equal(states(result)["0.weight"], states(averaged)["0.weight"])


def test_without_evaluation(federate):
    _, grid = federate(strategy=FedAvg(fraction_evaluate=0.0), app={"make_validation": None})
    assert not grid.errors
    _, grid = federate(folder="asked", app={"make_validation": None})
    assert {str(error) for _, _, error in grid.errors} == {
        "this site has nothing to evaluate on: give make_validation, or a strategy with fraction_evaluate=0"
    }


# What cannot be


def test_a_site_says_who_it_is(tmp_path):
    def context(node, run=None):
        return Context(1, 1, node, RecordDict(), run or {})

    assert site_of(context({"site": "a", "state": str(tmp_path), "server": "h:1", "tls": "t"})) == Site(
        "a", "h:1", "t", tmp_path / "a"
    )
    everywhere = {"state": str(tmp_path), "server": "h:1"}
    assert site_of(context({"partition-id": 2}, everywhere)) == Site("site-2", "h:1", None, tmp_path / "site-2")
    for node in ({}, {"site": "a"}, {"state": "s"}):
        with pytest.raises(hn.ParameterError, match="a name and a folder"):
            site_of(context(node))


def test_arguments_that_cannot_be():
    for options in ({"rounds": 0}, {"epochs": 0}, {"mode": "sideways"}):
        with pytest.raises(hn.ParameterError, match="must be"):
            server_app(make_network, **options)


def test_another_server_app_is_not_understood():
    with pytest.raises(hn.DataError, match="lacks 'hesplit-group'"):
        Plan.of(ConfigRecord({"server-round": 1}))


def test_what_is_wrong_at_a_site_is_said(federate):
    _, grid = federate("splitways", rounds=1, app={"batch_size": 4})
    assert {type(error) for _, _, error in grid.errors} == {hn.ParameterError}
    assert all("recover" in str(error) for _, _, error in grid.errors)
    assert len([number for number, _, _ in grid.errors if number == 0]) == SITES


def test_a_site_with_another_network_is_told(federate, monkeypatch):
    wider = nn.Sequential(nn.Conv1d(1, 6, 7), nn.MaxPool1d(4))
    _, grid = federate(rounds=1, app={"make_network": lambda: wider})
    assert {type(error) for number, _, error in grid.errors if number == 0} == {hn.DataError}
    assert "different networks" in str(grid.errors[0][2])
