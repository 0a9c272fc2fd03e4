"""Plain tensors, as operands and as what `decrypt` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hesplit_native.tenseal.layout import Floats


def as_array(values: Any) -> Floats:
    """A list, number, array, torch tensor or PlainTensor as float64.

    Raises
    ------
    TypeError
        For anything that is not numbers in a regular shape.
    """
    if isinstance(values, PlainTensor):
        return values._values
    if hasattr(values, "detach"):  # a torch tensor that is being trained does not become an array by itself
        values = values.detach()
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError("input isn't a well structured tensor") from error


class PlainTensor:
    """Numbers in a shape.

    Parameters
    ----------
    tensor
        A list, array or torch tensor.
    shape
        The shape, instead of the tensor's.
    dtype
        ``"float"``, or ``"int"``, which rounds towards zero.
    """

    def __init__(self, tensor: Any, shape: Sequence[int] | None = None, dtype: str = "float") -> None:
        if dtype not in ("float", "int"):
            raise ValueError("wrong dtype, must be either 'float' or 'int'")
        values = as_array(tensor)
        self._values = np.array(values if shape is None else values.reshape(tuple(shape)))
        self._dtype = dtype
        if dtype == "int":
            self._values = np.trunc(self._values)

    @property
    def shape(self) -> list[int]:
        """Its shape."""
        return list(self._values.shape)

    @property
    def dtype(self) -> str:
        """``"float"`` or ``"int"``."""
        return self._dtype

    @property
    def raw(self) -> list[Any]:
        """The numbers in row-major order."""
        return list(self._typed().ravel().tolist())

    def _typed(self) -> Any:
        return self._values.astype(np.int64) if self._dtype == "int" else self._values

    def tolist(self) -> Any:
        """Nested lists, as of numpy."""
        return self._typed().tolist()

    def size(self) -> int:
        """shape[0]."""
        return len(self._values) if self._values.ndim else 0

    def __len__(self) -> int:
        return self.size()

    def empty(self) -> bool:
        """Whether there is no number in it."""
        return self._values.size == 0

    def at(self, index: Sequence[int]) -> Any:
        """One number."""
        return self._typed()[tuple(index)].item()

    def reshape(self, shape: Sequence[int]) -> PlainTensor:
        """Another one of this shape."""
        return PlainTensor(self._values, shape, self._dtype)

    def reshape_(self, shape: Sequence[int]) -> PlainTensor:
        """Reshape in place."""
        self._values = self._values.reshape(tuple(shape))
        return self

    def transpose(self) -> PlainTensor:
        """The transposed tensor."""
        return PlainTensor(self._values.T, dtype=self._dtype)

    def transpose_(self) -> PlainTensor:
        """Transpose in place."""
        self._values = np.ascontiguousarray(self._values.T)
        return self

    def broadcast(self, shape: Sequence[int]) -> PlainTensor:
        """Repeated to this shape."""
        return PlainTensor(np.broadcast_to(self._values, tuple(shape)), dtype=self._dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self._typed(), dtype)

    def __repr__(self) -> str:
        return f"PlainTensor({self.tolist()})"
