"""The papers' recipes: their networks, single labels, and softmax once or, as in the papers' code, twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hesplit_native.data.dataset import Dataset, check_dataset
from hesplit_native.training.config import RunConfig
from hesplit_native.training.models import Architecture, architecture
from hesplit_native.training.task import Loss, Task, TensorExamples, right_labels


def paper_task(config: RunConfig, dataset: Dataset) -> Task:
    """A network of the papers on a data set, evaluated on its test rows after every epoch; DataError for unusable data."""
    check_dataset(dataset)
    return Task(
        network=dataset_architecture(config, dataset),
        train=TensorExamples(torch.from_numpy(dataset.train_x), torch.from_numpy(dataset.train_y)),
        held_out=TensorExamples(torch.from_numpy(dataset.test_x), torch.from_numpy(dataset.test_y)),
        loss=_loss(config),
        measure=_accuracy,
    )


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
