"""What a run learns: network, data, loss and what is measured. The papers' recipes are such tasks, and so is anybody's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

#: What a network takes: a tensor; several, as its arguments; or several by name.
Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


class Network(Protocol):
    """A network around one linear layer, which is a server's.

    `activations` is what the client sends per sample, `outputs` what the layer answers; `hidden` is whether one more fully connected
    layer follows, which maps these to `classes`. `draws` is whether it uses random numbers of torch when it trains (dropout).
    """

    @property
    def activations(self) -> int:
        """Inputs of the server's layer."""
        ...

    @property
    def outputs(self) -> int:
        """Outputs of the server's layer."""
        ...

    @property
    def classes(self) -> int:
        """Outputs of the whole network."""
        ...

    @property
    def hidden(self) -> bool:
        """Whether a layer follows after the server's."""
        ...

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        ...

    def body(self, seed: int) -> nn.Module:
        """What comes before the server's layer: inputs to activations [n, ...]."""
        ...

    def head(self, seed: int) -> nn.Module:
        """What follows the server's layer."""
        ...


class Examples(Protocol):
    """Inputs and labels by row."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and labels of each of these tensors of rows, int64 [n], one after the other."""
        ...

    def labels(self) -> Tensor:
        """Those of all rows."""
        ...

    def signals(self) -> Iterable[npt.NDArray[Any]]:
        """The inputs of each row as one array, by which releases of the same row are recognised."""
        ...


@dataclass(frozen=True)
class TensorExamples:
    """Rows of tensors in memory: x [n, ...], y [n, ...]. x may be several, as a tuple or by name."""

    x: Inputs
    y: Tensor

    def __len__(self) -> int:
        """Rows."""
        return len(self.y)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Inputs, Tensor]]:
        """As `Examples`."""
        for rows in parts:
            yield each(self.x, lambda tensor, rows=rows: tensor[rows]), self.y[rows]  # type: ignore[misc]

    def labels(self) -> Tensor:
        """As `Examples`."""
        return self.y

    def signals(self) -> Iterable[npt.NDArray[Any]]:
        """As `Examples`."""
        if isinstance(self.x, Tensor):
            return iter(self.x.numpy())
        columns = list(self.x.values() if isinstance(self.x, dict) else self.x)
        rows = zip(*(column.numpy() for column in columns), strict=True)
        return (np.concatenate([np.ravel(part).view(np.uint8) for part in row]) for row in rows)


def each(inputs: Inputs, change: Callable[[Any], Any]) -> Inputs:
    """Inputs with every tensor changed."""
    if isinstance(inputs, dict):
        return {name: change(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(change(value) for value in inputs)
    return change(inputs)  # type: ignore[no-any-return]


def call(network: nn.Module, inputs: Inputs) -> Any:
    """What a network makes of its inputs."""
    if isinstance(inputs, dict):
        return network(**inputs)
    if isinstance(inputs, tuple):
        return network(*inputs)
    return network(inputs)


Loss = Callable[[Tensor, Tensor], Tensor]
#: How many rows of outputs and labels are right, whole or in part.
Hits = Callable[[Tensor, Tensor], Tensor]


def right_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """How many rows are predicted correctly, of logits [n, classes] and labels [n]."""
    return (logits.argmax(1) == labels).sum()


def right_shares(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over rows of the share of labels that are right, of logits [n, k] and labels 0 or 1 [n, k]."""
    return ((logits > 0) == (labels > 0.5)).double().mean(1).sum()


@dataclass(frozen=True)
class Task:
    """What a run learns.

    Parameters
    ----------
    network, train
        What is trained on what.
    held_out
        Evaluated after every epoch; None: nothing is.
    test
        Evaluated once, in the end.
    loss
        Of the network's outputs [n, classes] and labels.
    hits
        How many rows of a batch are right, whole or in part; None: there is no right and wrong.
    measure
        What is said of the outputs [n, classes] and labels of a whole set, by name.
    optimizer
        Makes that of the client's parameters; None: Adam.
    schedule
        The factor of both sides' learning rates in epoch 1, 2, …; None: 1.
    monitor
        Which measure of `held_out` says which epoch is the best; empty: the last one is.
    minimise
        Whether less of it is better.
    patience
        The run ends when so many epochs in a row were no better; None: never.
    device
        Of the client's part of the network; everything after it is computed on the CPU.
    rows_at_once
        Rows that the client's part takes at once in evaluations; None: as many as are sent.
    drop_last
        Whether a short last batch of an epoch is left out, unless it is the only one.
    """

    network: Network
    train: Examples
    held_out: Examples | None
    loss: Loss
    measure: Callable[[Tensor, Tensor], dict[str, Any]]
    test: Examples | None = None
    hits: Hits | None = right_labels
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Callable[[int], float] | None = None
    monitor: str = ""
    minimise: bool = True
    patience: int | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    rows_at_once: int | None = None
    drop_last: bool = False

    def signals(self) -> Iterator[npt.NDArray[Any]]:
        """Of all rows that may be released."""
        for examples in (self.train, self.held_out, self.test):
            if examples is not None:
                yield from examples.signals()
