"""The ClientApp of every site; its rounds are those of `hesplit_native.federation`, each in a process that Flower may start anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from hesplit_native.choices import ProtocolName
from hesplit_native.errors import ParameterError
from hesplit_native.federation import Plan, Site, SiteRun
from hesplit_native.flower.records import ARRAYS, CONFIG, EXAMPLES, METRICS, STORED
from hesplit_native.training.task import Loss


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
    metrics: bool | None
    options: dict[str, Any]

    def run(self, message: Message, context: Context, *, measures: bool = False) -> SiteRun:
        """The part of this site in the round that a message asks for, not yet begun."""
        return SiteRun(
            self.site(context),
            Plan.of(message.content.config_records[CONFIG]),
            self.make_network(),
            self.make_data(context),
            self.make_validation(context) if self.make_validation is not None else None,
            metrics=self.metrics if measures else False,
            **self.options,
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
        metrics,
        {
            "outputs": outputs, "loss": loss, "batch_size": batch_size, "learning_rate": learning_rate, "optimizer": optimizer,
            "protocol": protocol, "seed": seed, "device": device, **more,
        },
    )  # fmt: skip
    app = ClientApp()
    app.train()(partial(_train, recipe))
    app.evaluate()(partial(_evaluate, recipe))
    app.query("end")(partial(_end, recipe))
    return app


def _train(recipe: _Recipe, message: Message, context: Context) -> Message:
    run = recipe.run(message, context)
    found = run.train(_state(message))
    metrics: dict[str, Any] = {EXAMPLES: found.stored.rows, "loss": found.loss, "seconds": found.seconds}
    if found.accuracy is not None:
        metrics["accuracy"] = found.accuracy
    stored = ConfigRecord({"run": found.stored.run, "step": found.stored.step})
    content = RecordDict({ARRAYS: ArrayRecord(found.state), METRICS: MetricRecord(metrics), STORED: stored})
    return Message(content, reply_to=message)


def _evaluate(recipe: _Recipe, message: Message, context: Context) -> Message:
    rows, scores = recipe.run(message, context, measures=True).evaluate(_state(message))
    metrics: dict[str, Any] = {EXAMPLES: rows, **scores}
    return Message(RecordDict({METRICS: MetricRecord(metrics)}), reply_to=message)


def _end(recipe: _Recipe, message: Message, context: Context) -> Message:
    """The site has what all have learnt, its network in its folder, and its session is over."""
    recipe.run(message, context).end(_state(message))
    return Message(RecordDict(), reply_to=message)


def _state(message: Message) -> dict[str, torch.Tensor]:
    return dict(message.content.array_records[ARRAYS].to_torch_state_dict())
