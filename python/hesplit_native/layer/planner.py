"""Which parameters and layout take the least time for a layer, a batch and a link, by a measured cost model."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import chain

from hesplit_native.choices import Attacker, Flooding, Packing
from hesplit_native.errors import ParameterError
from hesplit_native.layer.parameters import (
    ACTIVATION_BOUND,
    ERROR_BOUND,
    FLOODED_ERROR_BOUND,
    GIGABIT,
    PRIVATE_BITS,
    STATISTICAL_BITS,
    WEIGHT_NORM,
    Parameters,
    feasible,
)

#: Releases under one key that each way of flooding is planned for.
RELEASES = {"off": 0, "step": 1, "run": 1 << 20}
_MERGED_TASKS = 8  # parts of one reply (cpp/linear/merged/merging.cpp)
_THREAD_SECONDS = 15e-6  # what it takes to hand a loop to other threads and to collect it


@dataclass(frozen=True)
class Plan:
    """One way to run a layer: seconds of one training step, predicted, for one core at each side and the link between them."""

    parameters: Parameters
    inputs: int
    products: int
    width: int
    reply_bits: int
    error: float
    flooding_deviation: float
    logit_noise: float
    spread_bits: int
    key_bytes: int
    request_bytes: int
    reply_bytes: int
    client_seconds: float
    server_seconds: float
    link_seconds: float
    threads: int

    @property
    def seconds(self) -> float:
        """Of a whole step, with `threads` at each side."""
        return _with_threads(self.client_seconds + self.server_seconds, self.tasks, self.threads) + self.link_seconds

    @property
    def tasks(self) -> int:
        """Ciphertexts, products or parts of a merge that threads can share."""
        return _tasks(self.parameters, self.inputs, self.products)


def plans(
    in_features: int,
    out_features: int,
    batch_size: int,
    *,
    link: float = GIGABIT,
    flooding: Flooding = "off",
    error_bound: float | None = None,
    activation_bound: float = ACTIVATION_BOUND,
    weight_norm: float = WEIGHT_NORM,
    security: Attacker = "standard",
    statistical_bits: int = STATISTICAL_BITS,
    private_weights: bool = False,
    cpus: int | None = None,
) -> list[Plan]:
    """The best plan for every ring degree that can hold the layer on coefficient blocks, and for the least on merged ones.

    Fastest first. Merged blocks are not planned with flooding or private weights, which they do not have.

    Parameters
    ----------
    link
        Bits per second.
    flooding
        Whether decryptions are released, flooded with noise: under a fresh key per step or one key per run.
    error_bound, activation_bound, weight_norm, security, statistical_bits, private_weights
        As in `Parameters.recommend`.
    cpus
        How many threads a side may use; None: as many as this machine has CPUs.

    Raises
    ------
    ParameterError
        When no set of 128 bits holds the layer at this precision.
    """
    releases = RELEASES[flooding]
    if error_bound is None:
        error_bound = FLOODED_ERROR_BOUND if releases else ERROR_BOUND
    packings: list[Packing] = ["blocks"] if releases or private_weights else ["blocks", "merged"]
    candidates = (
        feasible(
            in_features,
            out_features,
            batch_size,
            packing=packing,
            activation_bound=activation_bound,
            activation_norm=max(activation_bound, activation_bound / 8 * math.sqrt(in_features)),
            weight_norm=weight_norm,
            error_bound=error_bound,
            releases=releases,
            link=link,
            security=security,
            statistical_bits=statistical_bits,
            private_bits=PRIVATE_BITS if private_weights else 0,
        )
        for packing in packings
    )
    best: dict[tuple[Packing, int], Plan] = {}
    for parameters, step in chain.from_iterable(candidates):
        kind = (parameters.packing, parameters.ring_degree)
        if any(packing == "merged" == kind[0] and degree < kind[1] for packing, degree in best):
            continue  # longer keys for nothing
        layout = step.pop("layout")
        tasks = _tasks(parameters, layout["inputs"], layout["products"])
        compute = step["client_seconds"] + step["server_seconds"]
        threads = min(
            range(1, (cpus or os.cpu_count() or 1) + 1), key=lambda count: _with_threads(compute, tasks, count)
        )
        found = Plan(parameters, layout["inputs"], layout["products"], layout["width"], **step, threads=threads)
        other = best.get(kind)
        if other is None or (found.seconds, found.error) < (other.seconds, other.error):
            best[kind] = found
    if not best:
        raise ParameterError(
            f"no parameter set of 128 bits ({security}) keeps an error bound of {error_bound:g} for "
            f"{in_features} -> {out_features}; raise "
            "error_bound, or lower activation_bound or weight_norm"
        )
    return sorted(best.values(), key=lambda plan: plan.seconds)


def _tasks(parameters: Parameters, inputs: int, products: int) -> int:
    return max(inputs, products, _MERGED_TASKS if parameters.packing == "merged" else 1)


def _with_threads(seconds: float, tasks: int, threads: int) -> float:
    return seconds if threads == 1 else seconds / min(threads, tasks) + _THREAD_SECONDS
