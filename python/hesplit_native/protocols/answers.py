"""What the server's halves have in common: their interface, and bodies of messages that are one matrix."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from hesplit_native.errors import ProtocolError
from hesplit_native.protocols import messages
from hesplit_native.protocols.costs import Work, matrix_work
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.terms import Terms

Answer = tuple[MessageType, bytes]


class Answers(Protocol):
    """One protocol at the server: replies to requests."""

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """What `answer` would take for a request, before anything is done for it; errors as for `answer`."""
        ...

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """The reply; None if the request is none of this protocol."""
        ...


class Stored(Protocol):
    """What a checkpoint can be made of."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs."""
        ...


class ServerLayer(Stored, Protocol):
    """Layers that a server holds in the clear, with their optimiser. `version` counts the changes of the weights."""

    version: int
    optimizer: torch.optim.Optimizer

    @property
    def module(self) -> nn.Module:
        """All of them."""
        ...

    @property
    def linear(self) -> nn.Linear:
        """The one that takes the client's activations."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; DataError if they belong to other layers."""
        ...


def take_activations(body: memoryview, terms: Terms, *, training: bool) -> Tensor:
    """A body that is one matrix of activations, of as many rows as were agreed."""
    rows = range(1, (terms.batch_size if training else terms.max_rows) + 1)
    values, rest = messages.take_matrix(body, "activations", rows=rows, columns=terms.in_features)
    messages.take_nothing(rest, "activations")
    return torch.from_numpy(values.copy())


def take_tensor(body: memoryview, name: str, rows: int, columns: int) -> Tensor:
    """A body that is one float32 matrix of exactly this shape."""
    values, rest = messages.take_matrix(body, name, rows=range(rows, rows + 1), columns=columns)
    messages.take_nothing(rest, name)
    return torch.from_numpy(values.copy())


def values_work(terms: Terms, kind: MessageType, body: memoryview) -> Work:
    """Of a request whose body is values in the clear."""
    evaluated = kind is MessageType.EVALUATE
    rows = len(body) // (4 * terms.in_features) + 1 if evaluated else terms.batch_size
    return matrix_work(terms, len(body), rows)


def check_rows(rows: int, terms: Terms) -> None:
    """A training request holds no more samples than the batch size that was agreed on."""
    if rows > terms.batch_size:
        raise ProtocolError(f"a training step of {rows} samples; the handshake agreed on {terms.batch_size}")
