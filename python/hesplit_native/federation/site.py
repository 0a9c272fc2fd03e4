"""A site of a federation: one round of training, of evaluation, and the end of a run, each in a process that may be a new one.

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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hesplit_native.choices import ProtocolName
from hesplit_native.errors import ConnectionLost, DataError, ParameterError, ProtocolError
from hesplit_native.federation.plan import Plan, Stored
from hesplit_native.protocols.session import PATIENCE, RolledBack
from hesplit_native.protocols.storage import write_tensors
from hesplit_native.training.fit import prepare
from hesplit_native.training.run import Run
from hesplit_native.training.task import Loss
from hesplit_native.transport.opening import ServerAddress, Tls, opener

#: What a client holds of the linear layer, in `sealed` and `local`, travels beside the network's own weights under this prefix.
LAYER = "server_layer."

NETWORK_FORMAT = "hesplit_native-network-1"
#: Every round is one checkpoint. More of them would push out those that the other sites go on from.
_NEVER = 1 << 40
_PAUSE = 0.5  # seconds between two attempts to reach the server

State = dict[str, Tensor]
_Result = TypeVar("_Result")


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


@dataclass(frozen=True)
class Trained:
    """What a round gave: what is averaged with the other sites', where the layer is, and how the last epoch went.

    `accuracy` is None where nothing is right or wrong; `seconds` are those of training.
    """

    state: State
    stored: Stored
    loss: float
    accuracy: float | None
    seconds: float


class SiteRun:
    """A site's part in one round of a run.

    Parameters
    ----------
    site, plan
        Who this is, and what the federation's side says of the round.
    network
        All that comes before the server's layer, the same at all sites.
    data, validation
        This site's, in any form that `hesplit_native.train` takes; without the latter nothing can be evaluated.
    outputs
        Of the server's layer, the same at all sites, like `seed`: they decide its first weights.
    metrics
        False: nothing but the loss and hits are known. What computes the others takes seconds to load, in every process.
    loss, batch_size, learning_rate, optimizer, protocol, seed, device, more
        As in `hesplit_native.train`. `checkpoint_every` is a round.

    Raises
    ------
    DataError, ParameterError
        As `hesplit_native.train`; ParameterError also where a protocol needs a server and the site has none.
    """

    def __init__(
        self,
        site: Site,
        plan: Plan,
        network: nn.Module,
        data: Any,
        validation: Any = None,
        *,
        outputs: int,
        loss: Loss | None = None,
        metrics: bool | None = False,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        protocol: ProtocolName = "splitways",
        seed: int = 0,
        device: torch.device | str = "cpu",
        **more: Any,
    ) -> None:
        found, config, task = prepare(
            network, data, validation, None, outputs=outputs, loss=loss, classes=None, metrics=metrics,
            epochs=plan.rounds * plan.epochs, batch_size=batch_size, learning_rate=learning_rate, protocol=protocol, seed=seed,
            device=device, more=more,
        )  # fmt: skip
        if config.traits.is_split and site.server is None:
            raise ParameterError(
                f"{config.protocol} needs a server, such as lab.example:7000; site {site.name} has none"
            )
        opened = opener(site.server, tls=site.tls, client_id=site.name) if site.server is not None else None
        self.site = site
        self.plan = plan
        self.run = Run(
            replace(config, checkpoint_every=_NEVER // config.accumulate * config.accumulate),
            replace(task, optimizer=optimizer),
            found.shares,
            connect=(lambda index: opened.open()) if opened is not None else None,
            checkpoints=site.state,
            group=plan.group,
        )

    @property
    def rows(self) -> int:
        """Of this site's training data."""
        return len(self.run.task.train)

    def train(self, state: State) -> Trained:
        """Go on from `state`, the average of all sites, and train the plan's epochs."""
        return self._from_common_state(state, self._train)

    def evaluate(self, state: State) -> tuple[int, dict[str, float]]:
        """Rows held out here, and what was measured on them; ParameterError where there are none."""
        held_out = self.run.task.held_out
        if held_out is None:
            raise ParameterError(
                "this site has nothing to evaluate on: give make_validation, or a strategy with fraction_evaluate=0"
            )
        scores = self._from_common_state(state, self.run.evaluate_held_out)
        return len(held_out), {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}

    def end(self, state: State) -> None:
        """Take what all have learnt, write the network into the site's folder, and end its session. Nothing if it never took part."""
        assert self.run.checkpoints is not None
        if self._newest() is None:
            return

        def work() -> None:
            write_tensors(self.site.state / "network.safetensors", _weights(self.run, whole=False), NETWORK_FORMAT, {})
            self.run.finish()

        self._from_common_state(state, work)
        self.run.checkpoints.clear()

    def _from_common_state(self, state: State, work: Callable[[], _Result]) -> _Result:
        """Connect, take what all have learnt, and do some work; from the start again where the server was restarted meanwhile."""
        with closing(self.run):
            at = self._begin()
            while True:
                try:
                    take(self.run, self.plan, state)
                    return work()
                except RolledBack:
                    self.run.roll_back(at=at)

    def _train(self) -> Trained:
        loss, accuracy, seconds = _epochs(self.run, self.plan.epochs)
        session = self.run.participants[0].client.session
        return Trained(
            _weights(self.run, whole=self.plan.whole),
            Stored(session.run if session is not None else self.site.name, self.run.progress.steps[0], self.rows),
            loss,
            accuracy if self.run.task.hits is not None else None,
            seconds,
        )

    def _newest(self) -> str | None:
        """The name of this site's newest checkpoint's run, as in `Plan.runs`; None if there is none of this federation's run."""
        assert self.run.checkpoints is not None
        for number in reversed(self.run.checkpoints.numbers()):
            with contextlib.suppress(DataError):  # of another run, or damaged
                snapshot = self.run.checkpoints.load(number)
                return (snapshot.sessions[0] or self.site.name) if snapshot.group == self.plan.group else None
        return None

    def _begin(self) -> int:
        """Connect, and go on from this site's checkpoint if it has one; its number.

        That one which others go on from, too, is taken even where there is a newer one: its reply was lost, and the round is done
        again. Where nobody has learnt anything that others go on from it is the one of the beginning.
        """
        run, plan = self.run, self.plan
        assert run.checkpoints is not None
        found, at = self._newest(), None
        if found is not None:
            at = dict(zip(plan.runs, plan.steps, strict=True)).get(found) if plan.runs else 0
            if found == self.site.name and at not in run.checkpoints.numbers():
                at = None  # without a server a folder that was lost and another one have the same name
        try:
            _reach(partial(run.begin, resume=found is not None, at=at))
        except (DataError, ProtocolError):
            needed = at is not None and plan.runs and not run.config.traits.client_holds_layer
            if found is None or needed or run.config.defences.private:  # what was released would be forgotten
                raise
            # The server forgot a site, but nothing that others go on from: what this one has goes on in another session.
            run.progress.steps, run.progress.stored = [0], [0]
            _reach(run.begin)
        return sum(run.progress.steps)


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


def take(run: Run, plan: Plan, state: State) -> None:
    """Go on from what all have learnt: the network's weights as the engine brings them, and the server's layer there."""
    client = run.participants[0].client
    state = dict(state)
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


def _weights(run: Run, *, whole: bool) -> State:
    """What travels: the network's weights, and the layer's where the client holds it; with `whole` its optimiser's moments too."""
    client = run.participants[0].client
    state = dict(client.model.state_dict())
    if client.own_layer is not None:
        held = client.own_layer
        layer = held.tensors() if whole else held.linear.state_dict()
        state |= {LAYER + name: value for name, value in layer.items()}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
