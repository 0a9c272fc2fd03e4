"""A site of a federation: one round of training, of evaluation, and the end of a run, each in a process that Flower may start anew.

What a site keeps from round to round is a checkpoint, in a folder of its own and at the server. A round begins with connecting under
new keys and restoring it, so it does not matter whether the process is the same, was killed, or is that of a site that comes late
and has none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from hesplit_native.choices import ProtocolName
from hesplit_native.errors import ConnectionLost, DataError, ParameterError
from hesplit_native.flower.plan import ARRAYS, CONFIG, EXAMPLES, METRICS, STORED, Plan
from hesplit_native.protocols.session import PATIENCE, RolledBack
from hesplit_native.protocols.storage import write_tensors
from hesplit_native.training.fit import prepare
from hesplit_native.training.run import Run
from hesplit_native.training.task import Loss
from hesplit_native.transport.opening import ServerAddress, Tls, opener

#: What a client holds of the linear layer, in `sealed` and `local`, travels beside the network's own weights under this prefix.
LAYER = "server_layer."

_FORMAT = "hesplit_native-network-1"
#: Every round is one checkpoint. More of them would push out those that the other sites go on from.
_NEVER = 1 << 40
_PAUSE = 0.5  # seconds between two attempts to reach the server


@dataclass(frozen=True)
class Site:
    """Who a site is.

    Parameters
    ----------
    name
        Under TLS the name in its certificate; different for every site.
    server, tls
        As in `hesplit_native.train`; None for `local`.
    state
        A folder of this site's own, which outlives its processes.
    """

    name: str
    server: ServerAddress | None
    tls: Tls | None
    state: Path


def site_of(context: Context) -> Site:
    """The site that ``--node-config 'site="hospital-a" server="lab.example:7000" tls="tls" state="state"'`` describes.

    What is the same everywhere can be in the run's configuration instead. Without ``site``, as in a simulation, the name is made of
    ``partition-id``. The state is kept in a folder of that name in ``state``.

    Raises
    ------
    ParameterError
        Something is missing.
    """
    given = {**context.run_config, **context.node_config}
    name = given.get("site") or (f"site-{given['partition-id']}" if "partition-id" in given else None)
    if not name or not given.get("state"):
        raise ParameterError(
            """a site needs a name and a folder for its state: flower-supernode --node-config 'site="hospital-a" state="state"'"""
        )
    server, tls = (str(given[key]) if given.get(key) else None for key in ("server", "tls"))
    return Site(str(name), server, tls, Path(str(given["state"])) / str(name))


@dataclass(frozen=True)
class _Recipe:
    """The arguments of `client_app`."""

    make_network: Callable[[], nn.Module]
    make_data: Callable[[Context], Any]
    make_validation: Callable[[Context], Any] | None
    site: Callable[[Context], Site]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None
    metrics: bool | None
    prepared: dict[str, Any]

    def run(self, plan: Plan, context: Context, *, measures: bool = False) -> Run:
        """The run of this site, not yet begun.

        Without `measures` nothing but the loss and hits are known of it: what computes the others takes seconds to load, in every
        process.
        """
        site = self.site(context)
        validation = self.make_validation(context) if self.make_validation is not None else None
        found, config, task = prepare(
            self.make_network(), self.make_data(context), validation, None, classes=None,
            metrics=self.metrics if measures else False, epochs=plan.rounds * plan.epochs, **self.prepared,
        )  # fmt: skip
        if config.traits.is_split and site.server is None:
            raise ParameterError(
                f"{config.protocol} needs a server: flower-supernode --node-config 'server=\"lab.example:7000\"'"
            )
        opened = opener(site.server, tls=site.tls, client_id=site.name) if site.server is not None else None
        return Run(
            replace(config, checkpoint_every=_NEVER // config.accumulate * config.accumulate),
            replace(task, optimizer=self.optimizer),
            [np.arange(len(found.train))],
            connect=(lambda index: opened.open()) if opened is not None else None,
            checkpoints=site.state,
            group=plan.group,
        )


def client_app(
    make_network: Callable[[], nn.Module],
    make_data: Callable[[Context], Any],
    *,
    outputs: int,
    make_validation: Callable[[Context], Any] | None = None,
    site: Callable[[Context], Site] = site_of,
    loss: Loss | None = None,
    metrics: bool | None = None,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    protocol: ProtocolName = "splitways",
    seed: int = 0,
    device: torch.device | str = "cpu",
    **more: Any,
) -> ClientApp:
    """The ClientApp of every site, for a `server_app`.

    In a round a site trains its network and its copy of the server's layer (in turns: the one layer) on its own data, and gives
    Flower the network. Its optimisers' moments and the order of its data stay its own.

    Parameters
    ----------
    make_network
        As `server_app`'s: all that comes before the server's layer.
    make_data, make_validation
        This site's data, in any form that `hesplit_native.train` takes; without the latter nothing can be evaluated, and the strategy
        should not ask for it (``fraction_evaluate=0``).
    outputs
        Of the server's layer: the same at every site, whatever labels it has.
    site
        Who this site is; by default its SuperNode's configuration says so.
    loss, metrics, batch_size, learning_rate, optimizer, protocol, seed, device, more
        As in `hesplit_native.train`. The seed decides the first weights of the server's layer, so it is one for all sites.
        `checkpoint_every` is a round.

    Returns
    -------
    ClientApp
        Its replies to training have ``loss``, ``accuracy`` where something is right or wrong, and ``seconds`` of training, those to
        evaluations what `metrics` says; both weigh ``num-examples``, the rows. `hesplit_native.errors` become error replies, which
        strategies leave out.
    """
    recipe = _Recipe(
        make_network,
        make_data,
        make_validation,
        site,
        optimizer,
        metrics,
        {
            "outputs": outputs, "loss": loss, "batch_size": batch_size, "learning_rate": learning_rate,
            "protocol": protocol, "seed": seed, "device": device, "more": more,
        },
    )  # fmt: skip
    app = ClientApp()
    app.train()(partial(_train, recipe))
    app.evaluate()(partial(_evaluate, recipe))
    app.query("end")(partial(_end, recipe))
    return app


def _train(recipe: _Recipe, message: Message, context: Context) -> Message:
    plan = Plan.of(message.content.config_records[CONFIG])

    def work(run: Run) -> RecordDict:
        loss, accuracy, seconds = _epochs(run, plan.epochs)
        metrics: dict[str, Any] = {EXAMPLES: len(run.task.train), "loss": loss, "seconds": seconds}
        if run.task.hits is not None:
            metrics["accuracy"] = accuracy
        stored = ConfigRecord({"run": _run_at_server(run), "step": run.progress.steps[0]})
        arrays = ArrayRecord(_weights(run, whole=plan.whole))
        return RecordDict({ARRAYS: arrays, METRICS: MetricRecord(metrics), STORED: stored})

    run = recipe.run(plan, context)
    return Message(_from_common_state(run, plan, message, work), reply_to=message)


def _evaluate(recipe: _Recipe, message: Message, context: Context) -> Message:
    plan = Plan.of(message.content.config_records[CONFIG])
    run = recipe.run(plan, context, measures=True)
    held_out = run.task.held_out
    if held_out is None:
        raise ParameterError(
            "this site has nothing to evaluate on: give make_validation, or a strategy with fraction_evaluate=0"
        )

    def work(run: Run) -> RecordDict:
        scores = run.evaluate_held_out()
        numbers: dict[str, Any] = {
            name: float(value) for name, value in scores.items() if isinstance(value, int | float)
        }
        return RecordDict({METRICS: MetricRecord({EXAMPLES: len(held_out)} | numbers)})

    return Message(_from_common_state(run, plan, message, work), reply_to=message)


def _end(recipe: _Recipe, message: Message, context: Context) -> Message:
    """The site has what all have learnt, its network in its folder, and its session is over."""
    plan = Plan.of(message.content.config_records[CONFIG])
    run = recipe.run(plan, context)
    assert run.checkpoints is not None
    if _newest(run, plan) is None:
        return Message(RecordDict(), reply_to=message)  # it never took part

    def work(run: Run) -> RecordDict:
        path = recipe.site(context).state / "network.safetensors"
        write_tensors(path, _weights(run, whole=False), _FORMAT, {})
        run.finish()
        return RecordDict()

    reply = Message(_from_common_state(run, plan, message, work), reply_to=message)
    run.checkpoints.clear()
    return reply


# A round


def _from_common_state(run: Run, plan: Plan, message: Message, work: Callable[[Run], RecordDict]) -> RecordDict:
    """Connect, take what all have learnt, and do some work; from the start again where the server was restarted meanwhile."""
    with closing(run):
        at = _begin(run, plan)
        while True:
            try:
                _take(run, plan, message.content.array_records[ARRAYS])
                return work(run)
            except RolledBack:
                run.roll_back(at=at)


def _newest(run: Run, plan: Plan) -> str | None:
    """The name at the server of this site's newest checkpoint's run; None if there is no checkpoint of this federation's run."""
    assert run.checkpoints is not None
    for number in reversed(run.checkpoints.numbers()):
        with contextlib.suppress(DataError):  # of another run, or damaged
            snapshot = run.checkpoints.load(number)
            return snapshot.sessions[0] if snapshot.group == plan.group else None
    return None


def _begin(run: Run, plan: Plan) -> int | None:
    """Connect, and go on from this site's checkpoint if it has one; the number of the one that others go on from, too.

    That one is taken even where there is a newer one: its reply was lost, and the round is done again.
    """
    name = _newest(run, plan)
    at = dict(zip(plan.runs, plan.steps, strict=True)).get(name) if name is not None else None
    try:
        _reach(partial(run.begin, resume=name is not None, at=at))
    except DataError:
        if at is not None or run.config.defences.private:  # what was released would be forgotten
            raise
        _reach(run.begin)  # the server forgot a site that has learnt nothing that others go on from
    return at


def _reach(begin: Callable[[], None]) -> None:
    """Begin as soon as the server can be reached: every round connects anew, and a server that is restarted shall not cost one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return begin()
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)


def _take(run: Run, plan: Plan, arrays: ArrayRecord) -> None:
    """Go on from what all have learnt: the network's weights as Flower brings them, and the server's layer there."""
    client = run.participants[0].client
    state = arrays.to_torch_state_dict()
    layer = {name.removeprefix(LAYER): state.pop(name) for name in list(state) if name.startswith(LAYER)}
    try:
        client.model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"server app and site have different networks: {error}") from error
    if client.own_layer is not None:
        if plan.whole and layer:
            client.own_layer.load(layer)
        elif layer:
            client.own_layer.assign(layer["weight"], layer["bias"])
        client.refresh()
    elif plan.runs:
        run.adopt(plan.shares, whole=plan.whole)


def _epochs(run: Run, epochs: int) -> tuple[float, float, float]:
    """Train so many epochs and store the state; mean loss and accuracy of the last one, and seconds of training."""
    seconds = 0.0
    for _ in range(epochs):
        with closing(run.epoch()) as batches:
            for _ in batches:
                pass
        loss, accuracy = run.means()
        seconds += run.progress.seconds
        run.next_epoch()
    run.store()
    return loss, accuracy, seconds


def _weights(run: Run, *, whole: bool) -> dict[str, Tensor]:
    """What travels: the network's weights, and the layer's where the client holds it; with `whole` its optimiser's moments too."""
    client = run.participants[0].client
    state = dict(client.model.state_dict())
    if client.own_layer is not None:
        held = client.own_layer
        layer = held.tensors() if whole else held.linear.state_dict()
        state |= {LAYER + name: value for name, value in layer.items()}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _run_at_server(run: Run) -> str:
    """The run whose layer others go on from; empty where the layer travels with the network."""
    client = run.participants[0].client
    return client.session.run if client.session is not None and client.own_layer is None else ""
