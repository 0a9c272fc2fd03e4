"""What server app and client apps tell each other beside weights and metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from hesplit_native.errors import DataError

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # of messages, as Flower's strategies name them
STORED = "stored"  # of a reply: the checkpoint of the site's layer at the server
EXAMPLES = "num-examples"
#: The message that ends a run.
END = "query.end"

_PREFIX = "hesplit-"


@dataclass(frozen=True)
class Plan:
    """What a site has to know of a run and its next round.

    Parameters
    ----------
    group
        Names the run at `hesplit-native serve`; only its members know it.
    rounds, epochs
        Rounds of the run, and epochs of a site in each.
    runs, steps, weights
        The checkpoints at the server whose layers, averaged with these weights, the sites go on from; none in the beginning.
    whole
        There is one of them at most, and its optimiser's moments are gone on from too: in turns the layer is one for all.
    """

    group: str
    rounds: int
    epochs: int
    whole: bool
    runs: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def shares(self) -> list[tuple[str, int, float]]:
        """Run, step and weight of each checkpoint."""
        return list(zip(self.runs, self.steps, self.weights, strict=True))

    def after(self, replies: list[RecordDict]) -> Plan:
        """For the sites that go on from what these replies' sites have learnt."""
        stored: list[tuple[Any, Any]] = [
            (reply.config_records[STORED], reply.metric_records[METRICS][EXAMPLES]) for reply in replies
        ]
        stored = [(where, rows) for where, rows in stored if where["run"]]
        return replace(
            self,
            runs=tuple(where["run"] for where, _ in stored),
            steps=tuple(where["step"] for where, _ in stored),
            weights=tuple(float(rows) for _, rows in stored),
        )

    def record(self) -> dict[str, Any]:
        """The entries of a round's configuration."""
        lists = {"runs": list(self.runs), "steps": list(self.steps), "weights": list(self.weights)}
        values = {"group": self.group, "rounds": self.rounds, "epochs": self.epochs, "whole": self.whole, **lists}
        return {_PREFIX + name: value for name, value in values.items()}

    @classmethod
    def of(cls, config: ConfigRecord) -> Plan:
        """The inverse of `record`; DataError where that server app is none of `hesplit_native.flower.server_app`."""
        try:
            values: dict[str, Any] = {name: config[_PREFIX + name] for name in cls.__dataclass_fields__}
        except KeyError as error:
            raise DataError(
                f"the round's configuration lacks {error}: the server app must be one of hesplit_native.flower.server_app, of the "
                "same version"
            ) from None
        changed: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**changed)
