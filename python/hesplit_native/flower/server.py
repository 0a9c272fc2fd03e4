"""The federation's side: which checkpoints of the server's layer make the next round's, around any of Flower's strategies."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import nn

from hesplit_native.choices import Mode
from hesplit_native.errors import ParameterError
from hesplit_native.federation import Plan
from hesplit_native.flower.records import ARRAYS, CONFIG, END, stored_of


class WithLayer(Strategy):
    """A strategy, and the server's layers of the sites whose replies it took.

    The layer at the server is averaged there, weighted by rows, whatever the strategy does with the networks. In turns one site
    after the other trains, a round each, in the order of their node ids.
    """

    def __init__(self, inner: Strategy, plan: Plan) -> None:
        self.inner = inner
        self.plan = plan
        self._last = -1  # the node whose turn it was

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does; in turns for one site."""
        config.update(self.plan.record())
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        if not self.plan.whole or not messages:
            return messages
        messages.sort(key=lambda message: message.metadata.dst_node_id)
        after = [message for message in messages if message.metadata.dst_node_id > self._last]
        self._last = (after or messages)[0].metadata.dst_node_id
        return (after or messages)[:1]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As the strategy does; what it made of the networks goes with the layers of the same sites."""
        replies = list(replies)
        arrays, metrics = self.inner.aggregate_train(server_round, replies)
        if arrays is not None:
            self.plan = self.plan.after(stored_of(reply.content) for reply in replies if not reply.has_error())
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does."""
        config.update(self.plan.record())
        return list(self.inner.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the strategy does."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As the strategy does."""
        self.inner.summary()


def server_app(
    make_network: Callable[[], nn.Module],
    *,
    rounds: int = 10,
    epochs: int = 1,
    mode: Mode = "parallel",
    strategy: Strategy | None = None,
    timeout: float = 3600.0,
    finished: Callable[[Result], None] | None = None,
) -> ServerApp:
    """The ServerApp of a federation whose sites run a `client_app`.

    Parameters
    ----------
    make_network
        As `client_app`'s. Its weights are those that all sites begin with.
    rounds
        Unless the run's configuration has ``num-server-rounds``. In turns a round is one site's.
    epochs
        Of a site in a round, unless the run's configuration has ``local-epochs``.
    mode
        ``"parallel"``: every site has a copy of the server's layer, and after a round all are averaged. ``"turns"``: there is one,
        which one site after the other trains.
    strategy
        Who takes part in a round, and how networks become one; None: `FedAvg`, of all sites that are there, two at least.
    timeout
        Seconds after which a round goes on without those that have not replied.
    finished
        Called with what the strategy gives back.

    Raises
    ------
    ParameterError
        Fewer than one round or epoch; an unknown mode.
    """
    _check_counts(rounds, epochs)
    if mode not in ("parallel", "turns"):
        raise ParameterError(f"mode must be parallel or turns, got {mode!r}")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        count = int(context.run_config.get("num-server-rounds", rounds))
        local = int(context.run_config.get("local-epochs", epochs))
        _check_counts(count, local)
        plan = Plan(secrets.token_hex(16), count, local, whole=mode == "turns")
        chosen = WithLayer(strategy if strategy is not None else FedAvg(), plan)
        first = ArrayRecord(make_network().state_dict())
        result = chosen.start(grid, first, num_rounds=count, timeout=timeout)
        _end(grid, chosen.plan, result.arrays or first, timeout)
        if finished is not None:
            finished(result)

    return app


def _check_counts(rounds: int, epochs: int) -> None:
    if rounds < 1 or epochs < 1:
        raise ParameterError(f"rounds and epochs must be at least 1, got {rounds} and {epochs}")


def _end(grid: Grid, plan: Plan, arrays: ArrayRecord, timeout: float) -> None:
    """Let all sites that are there take the last average and end their sessions."""
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(plan.record())})
    messages = [Message(content, dst_node_id=node, message_type=END) for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    for reply in replies:
        if reply.has_error():
            log(WARNING, "site %s could not end its run: %s", reply.metadata.src_node_id, reply.error.reason)
    if len(replies) < len(messages):
        log(
            WARNING, "%s of %s sites did not say that they ended their run", len(messages) - len(replies), len(messages)
        )
