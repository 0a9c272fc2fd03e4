"""What a federation's sites have to know beside weights, and what they tell of theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hesplit_native.errors import DataError

_PREFIX = "hesplit-"


@dataclass(frozen=True)
class Stored:
    """A checkpoint of a site: its run at the server, or the site's name where there is none; step; rows trained on."""

    run: str
    step: int
    rows: int


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
        The sites' checkpoints that all go on from; none in the beginning. Those at the server are averaged there with these weights;
        where the client holds the layer it travels with the network, and they say only which of its own a site goes on from. Where
        there is no server, a site's name stands for its run.
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

    def after(self, stored: Iterable[Stored]) -> Plan:
        """For the sites that go on from what these sites have learnt."""
        found = list(stored)
        return replace(
            self,
            runs=tuple(where.run for where in found),
            steps=tuple(where.step for where in found),
            weights=tuple(float(where.rows) for where in found),
        )

    def record(self) -> dict[str, Any]:
        """Numbers, strings and lists of them by name, which any engine can carry."""
        lists = {"runs": list(self.runs), "steps": list(self.steps), "weights": list(self.weights)}
        values = {"group": self.group, "rounds": self.rounds, "epochs": self.epochs, "whole": self.whole, **lists}
        return {_PREFIX + name: value for name, value in values.items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Plan:
        """The inverse of `record`; DataError where the federation's side is none of this package."""
        try:
            values: dict[str, Any] = {name: record[_PREFIX + name] for name in cls.__dataclass_fields__}
        except KeyError as error:
            raise DataError(
                f"the round's configuration lacks {error}: its server app must be one of hesplit_native, of the same version"
            ) from None
        changed: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**changed)
