"""A client's network on a whole set, through the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hesplit_native.training.client import Client, evaluation_rows
from hesplit_native.training.task import Examples, Inputs


def evaluate(client: Client, examples: Examples) -> dict[str, Any]:
    """What a task measures, through the protocol, in large batches; not counted as a phase of training."""
    sent = torch.split(torch.arange(len(examples)), evaluation_rows(client.terms))
    outputs, labels = [], []
    with client.evaluating():
        for rows in sent:
            parts = torch.split(rows, client.task.rows_at_once or len(rows))
            wanted: list[Tensor] = []
            outputs.append(client.outputs(_inputs(examples, parts, wanted)))
            labels += wanted
    return client.task.measure(torch.cat(outputs), torch.cat(labels))


def _inputs(examples: Examples, parts: Sequence[Tensor], labels: list[Tensor]) -> Iterator[Inputs]:
    """The inputs of these rows; their labels are put aside on the way."""
    for x, y in examples.batches(parts):
        labels.append(y)
        yield x
