"""The papers' recipes: their networks, single labels, and softmax once or, as in the papers' code, twice; and several labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.data.dataset import Dataset, check_dataset
from hesplit_native.training.config import RunConfig
from hesplit_native.training.metrics import Kind, has_torchmetrics, measure
from hesplit_native.training.models import Architecture, architecture
from hesplit_native.training.objectives import HITS, LOSSES, check_objective
from hesplit_native.training.task import Loss, Task, TensorExamples, right_labels


def paper_task(config: RunConfig, dataset: Dataset) -> Task:
    """A network of the papers on a data set, evaluated on its test rows after every epoch.

    Of several labels a row each is learnt by binary cross-entropy, and with torchmetrics macro AUROC, macro F1 and values per class
    are measured.

    Raises
    ------
    DataError
        When the data set is of no use (`data.check_dataset`).
    ParameterError
        When several labels a row cannot be learnt this way.
    """
    check_dataset(dataset)
    several = dataset.labels == "multi"
    kind: Kind = "labels" if several else "classes"
    check_objective(config, kind)
    loss = LOSSES[kind] if several else _loss(config)
    return Task(
        network=dataset_architecture(config, dataset),
        train=_examples(dataset.train_x, dataset.train_y),
        held_out=_examples(dataset.test_x, dataset.test_y),
        loss=loss,
        measure=measure(kind, loss, dataset.classes, more=has_torchmetrics()) if several else _accuracy,
        hits=HITS[kind],
    )


def _examples(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> TensorExamples:
    labels = torch.from_numpy(y)
    return TensorExamples(torch.from_numpy(x), labels.float() if labels.ndim == 2 else labels)


def dataset_architecture(config: RunConfig, dataset: Dataset) -> Architecture:
    """The network for a data set's signals."""
    _, channels, samples = dataset.train_x.shape
    return architecture(config.model, channels, samples, len(dataset.classes), config.convolutions)


def _loss(config: RunConfig) -> Loss:
    criterion = nn.CrossEntropyLoss()
    if config.recipe != "paper":
        return criterion
    # The papers' code applies softmax twice: once here, once inside the criterion.
    return lambda logits, labels: criterion(logits.softmax(1), labels)


def _accuracy(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    return {"accuracy": int(right_labels(logits, labels)) / len(labels)}
