"""Tensors of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hesplit_native.tenseal.enc_context import SecretKey
from hesplit_native.tenseal.tensors.encrypted import Encrypted
from hesplit_native.tenseal.tensors.plaintensor import PlainTensor, as_array


class CKKSTensor(Encrypted):
    """A tensor of ciphertexts.

    Parameters
    ----------
    context
        Whose key it is encrypted under.
    tensor
        A list, array, torch tensor or PlainTensor of numbers between -65536 and 65536.
    scale
        Instead of the context's global scale.
    batch
        Whether its first axis is that of a batch: then `shape` has it not, operations are done to each of the batch, and
        `decrypt` gives it back as the first. `sum` counts it, as in TenSEAL: axis 0 is the batch.

    Raises
    ------
    RangeError
        For NaN, infinities and numbers beyond 65536.
    """

    _kind = "tensor"

    def __init__(
        self, context: Any = None, tensor: Any = None, scale: float | None = None, batch: bool = False
    ) -> None:
        super().__init__(context, as_array(tensor), scale, batch)

    def decrypt(self, secret_key: SecretKey | None = None) -> PlainTensor:
        """The numbers."""
        return PlainTensor(self._decrypted(secret_key))

    def mm(self, other: Any) -> CKKSTensor:
        """A matrix ``[p, q]`` of ciphertexts, or a vector ``[q]`` (in TenSEAL an error), times a plain matrix ``[q, c]``."""
        return self._new(self._product(other))

    def mm_(self, other: Any) -> CKKSTensor:
        """The product in place."""
        return self._set(self._product(other))

    __matmul__ = mm
    __imatmul__ = mm_

    def dot(self, other: Any) -> CKKSTensor:
        """Of two vectors the sum of products, of a matrix and a vector the products of its rows, of two matrices `mm`."""
        values = self._plain(other)
        if values.ndim == 1 and len(self.shape) == 1:
            if self._sum.batch is not None or list(values.shape) != self.shape:
                return self._new(self._multiplied(values).summed(0))  # in a batch over that, as in TenSEAL
            return self._new(self._product(values[:, None]).reshaped(()))
        if values.ndim == 1 and len(self.shape) == 2 and self._sum.batch is None:
            return self._new(self._product(values[:, None]).reshaped(self.shape[:1]))
        return self.mm(values)

    def dot_(self, other: Any) -> CKKSTensor:
        """`dot` in place."""
        return self._set(self.dot(other)._sum)

    def sum_batch(self) -> CKKSTensor:
        """The sum over the batch."""
        return self._new(self._sum.summed_batch())

    def sum_batch_(self) -> CKKSTensor:
        """The sum over the batch in place."""
        return self._set(self._sum.summed_batch())

    def reshape(self, shape: Sequence[int]) -> CKKSTensor:
        """The same numbers in another shape."""
        return self._new(self._sum.reshaped(shape))

    def reshape_(self, shape: Sequence[int]) -> CKKSTensor:
        """Reshape in place."""
        return self._set(self._sum.reshaped(shape))

    def broadcast(self, shape: Sequence[int]) -> CKKSTensor:
        """Repeated to a larger shape."""
        return self._new(self._sum.broadcast(tuple(int(n) for n in shape)))

    def broadcast_(self, shape: Sequence[int]) -> CKKSTensor:
        """Broadcast in place."""
        return self._set(self.broadcast(shape)._sum)

    def transpose(self) -> CKKSTensor:
        """With the axes in the opposite order."""
        index = np.arange(self._sum.size).reshape(self._sum.shape)
        return self._new(self._sum.taken(index.T, "a transposition"))

    def transpose_(self) -> CKKSTensor:
        """Transpose in place."""
        return self._set(self.transpose()._sum)

    def __getitem__(self, item: Any) -> CKKSTensor:
        index = np.arange(self._sum.size).reshape(self._sum.shape)
        # As in TenSEAL an index keeps its axis, with one number.
        items = item if isinstance(item, tuple) else (item,)
        items = tuple(slice(int(n), int(n) + 1 or None) if isinstance(n, int | np.integer) else n for n in items)
        chosen = index[items]
        if chosen.size == 0:
            raise IndexError(f"no number of a tensor of shape {self.shape} is at {item}")
        return self._new(self._sum.taken(np.asarray(chosen), "a slice"))
