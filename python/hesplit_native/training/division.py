"""How training rows are divided among participants, and into batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import Division
from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ParameterError
from hesplit_native.protocols.guards import leaks
from hesplit_native.training.config import RunConfig


def divide(dataset: Dataset, participants: int, division: Division, seed: int) -> list[npt.NDArray[np.int64]]:
    """The training rows of each participant: at random in equal parts, or whole patients, the largest first to whoever has least."""
    even = even_shares(len(dataset.train_y), participants, seed)
    if division == "even":
        return even
    if dataset.train_patient is None:
        raise ParameterError(f"the data set {dataset.name} does not say which patient a row is of; divide it evenly")
    patients, counts = np.unique(dataset.train_patient, return_counts=True)
    if len(patients) < participants:
        raise ParameterError(f"{participants} participants need as many patients; the training set has {len(patients)}")
    shares: list[list[int]] = [[] for _ in range(participants)]
    sizes = np.zeros(participants, np.int64)
    for index in np.argsort(-counts, kind="stable"):
        least = int(sizes.argmin())
        shares[least].append(int(patients[index]))
        sizes[least] += counts[index]
    return [np.flatnonzero(np.isin(dataset.train_patient, share)) for share in shares]


def even_shares(rows: int, participants: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Rows divided at random in equal parts."""
    if not 1 <= participants <= rows:
        raise ParameterError(f"participants must be between 1 and the {rows} training rows, got {participants}")
    order = np.random.default_rng(seed).permutation(rows)
    return [np.sort(part) for part in np.array_split(order, participants)]


def epoch_batches(config: RunConfig, rows: int, outputs: int, *, drop_last: bool = False) -> int:
    """Batches of an epoch over so many rows.

    A short last one is left out with `drop_last`, and where the server would recover its activations; with `accumulate` there are
    only whole sums.
    """
    whole = -(-rows // config.batch_size)
    rest = rows % config.batch_size
    together = rest + (config.accumulate - 1) * config.batch_size
    leaking = not config.accept_leak and leaks(config.protocol, together, outputs)
    if rest and whole > 1 and (drop_last or leaking):
        whole -= 1
    count = min(whole, config.limit_batches or whole) // config.accumulate * config.accumulate
    if count == 0:
        raise ParameterError(f"{rows} rows do not make the {config.accumulate} batches that accumulate takes together")
    return count
