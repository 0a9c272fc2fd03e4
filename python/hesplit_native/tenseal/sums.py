"""What a tensor of ciphertexts is: a sum of encrypted tensors, each under a linear map, and a constant.

Additions, products with plain numbers and matrices, slices and transpositions change maps and constants, in the clear and at no
cost; ciphertexts are multiplied once, when the result is decrypted or serialized (`Sum.evaluated`). So scales never grow and
nothing is rescaled, and any number of operations is one product: what TenSEAL calls depth is not used up by plain operands.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hesplit_native import _core
from hesplit_native.tenseal.evaluation import added_up, multiplied, with_constant
from hesplit_native.tenseal.layout import Floats
from hesplit_native.tenseal.sources import Fresh, Key
from hesplit_native.tenseal.terms import Indices, Term, check_map, checked_factor


@dataclass(frozen=True)
class Sum:
    """A tensor of `shape`; with `batch` there are so many of it, of which each number is one ciphertext to TenSEAL.

    Immutable: operations give another one. `precision` is the scale that was asked for: decrypted values are within about
    its reciprocal.
    """

    shape: tuple[int, ...]
    batch: int | None
    precision: float
    terms: tuple[Term, ...]
    constant: Floats  # [size], added to every one of a batch

    @classmethod
    def encrypt(cls, key: Key, values: Floats, batch: bool, precision: float) -> Sum:
        """Encrypt an array; with `batch` its first axis is that of the batch."""
        if values.size == 0 or (batch and values.ndim == 0):
            raise ValueError("cannot encrypt an empty tensor, or a number as a batch")
        shape = values.shape[1:] if batch else values.shape
        size = math.prod(shape)
        columns = size if batch or not shape else shape[-1]
        source = Fresh.encrypt(key, values.reshape(-1, columns))
        return cls(shape, values.shape[0] if batch else None, precision, (Term(source),), np.zeros(size))

    @property
    def size(self) -> int:
        """Numbers of one tensor of a batch."""
        return math.prod(self.shape)

    def _matrix(self, term: Term, what: str, numbers: Indices | None = None) -> Floats:
        """A term's map to the numbers of this tensor, or to these of them: of rows in a batch, else of all numbers."""
        layout = term.layout(what)
        return term.of_all(layout, numbers) if self.batch is None else term.written_out(layout, numbers)

    def reshaped(self, shape: Sequence[int]) -> Sum:
        """The same numbers in another shape."""
        shape = tuple(int(n) for n in shape)
        if any(n < 1 for n in shape) or math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape a tensor of shape {list(self.shape)} into {list(shape)}")
        return replace(self, shape=shape)

    def taken(self, index: Indices, what: str) -> Sum:
        """The numbers at these places of the flattened tensor, in the shape of `index`."""
        flat = index.ravel()
        if index.shape == self.shape and np.array_equal(flat, np.arange(self.size)):
            return self
        terms = tuple(replace(term, matrix=self._matrix(term, what, flat)) for term in self.terms)
        return replace(self, shape=index.shape, terms=terms, constant=self.constant[flat])

    def broadcast(self, shape: tuple[int, ...]) -> Sum:
        """As numpy.broadcast_to."""
        if shape == self.shape:
            return self
        if 0 in shape:
            raise ValueError(
                f"a tensor of shape {_named(self)} cannot become one of shape {list(shape)}, which is empty"
            )
        return self.taken(np.broadcast_to(np.arange(self.size).reshape(self.shape), shape), "broadcasting")

    def plus(self, values: Floats) -> Sum:
        """With plain numbers added, both broadcast."""
        wide = self.broadcast(np.broadcast_shapes(self.shape, values.shape))
        return replace(wide, constant=wide.constant + np.broadcast_to(values, wide.shape).ravel())

    def times(self, values: Floats) -> Sum:
        """Times plain numbers, both broadcast."""
        wide = self.broadcast(np.broadcast_shapes(self.shape, values.shape))
        factors = np.broadcast_to(values, wide.shape).ravel()
        first = float(factors[0])
        if np.all(factors == first):
            terms = tuple(replace(term, factor=checked_factor(term.factor * first)) for term in wide.terms)
        else:
            terms = tuple(wide._times(term, factors) for term in wide.terms)
        return replace(wide, terms=terms, constant=wide.constant * factors)

    def _times(self, term: Term, factors: Floats) -> Term:
        layout = term.layout("a product with different numbers")
        if term.maps_rows:
            # Where every row meets the same numbers, the map stays one of rows.
            by_row = factors.reshape(1 if self.batch is not None else layout.rows, -1)
            if np.all(by_row == by_row[0]):
                return replace(term, matrix=term.written_out(layout) * by_row[0])
        return replace(term, matrix=term.of_all(layout) * factors)

    def matmul(self, right: Floats) -> Sum:
        """``[p, q] @ [q, c]``."""
        if len(self.shape) != 2:
            raise ValueError("this tensor isn't a matrix")
        if right.ndim != 2 or right.shape[0] != self.shape[1] or right.size == 0:
            raise ValueError(f"can't multiply matrices of shapes {list(self.shape)} and {list(right.shape)}")
        p, q = self.shape
        c = right.shape[1]
        terms = tuple(self._matmul(term, right) for term in self.terms)
        return replace(self, shape=(p, c), terms=terms, constant=(self.constant.reshape(p, q) @ right).ravel())

    def _matmul(self, term: Term, right: Floats) -> Term:
        layout = term.layout("a product with a matrix")
        p, q = self.shape
        if term.maps_rows and term.outputs(layout) == q:  # a batch of one row each, or the rows of one matrix
            return replace(term, matrix=right if term.matrix is None else term.matrix @ right)
        matrix = self._matrix(term, "a product with a matrix")
        lead = matrix.shape[:-1]
        check_map(math.prod(lead) * p * right.shape[1])
        return replace(term, matrix=(matrix.reshape(*lead, p, q) @ right).reshape(*lead, -1))

    def summed(self, axis: int) -> Sum:
        """Summed over one axis, of which that of a batch, if there is one, is the first."""
        if self.batch is not None and axis == 0:
            return self.summed_batch()
        axis -= self.batch is not None
        if not 0 <= axis < len(self.shape):
            raise ValueError(f"a tensor of shape {_named(self)} has no such axis")
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        if axis == len(self.shape) - 1:  # a product with ones, which stays a map of rows where it can
            last = self.shape[-1]
            return self.reshaped((self.size // last, last)).matmul(np.ones((last, 1))).reshaped(shape)
        index = np.moveaxis(np.arange(self.size).reshape(self.shape), axis, 0)
        terms = []
        for term in self.terms:
            parts = (self._matrix(term, "a sum", part.ravel()) for part in index)
            terms.append(replace(term, matrix=functools.reduce(np.add, parts)))
        constant = self.constant.reshape(self.shape).sum(axis).ravel()
        return replace(self, shape=shape, terms=tuple(terms), constant=constant)

    def summed_batch(self) -> Sum:
        """The sum of all tensors of a batch, as one without batch."""
        if self.batch is None:
            raise ValueError("this tensor was not encrypted as a batch")
        terms = []
        for term in self.terms:
            matrix = self._matrix(term, "a sum")
            check_map(self.batch * matrix.size)
            terms.append(replace(term, matrix=np.broadcast_to(matrix, (self.batch, *matrix.shape))))
        return replace(self, batch=None, terms=tuple(terms), constant=self.constant * self.batch)

    def plus_sum(self, other: Sum) -> Sum:
        """Two tensors of ciphertexts added, both broadcast; a batch only to one of as many."""
        try:
            shape = np.broadcast_shapes(self.shape, other.shape) if other.batch == self.batch else None
        except ValueError:
            shape = None
        if shape is None:
            raise ValueError(f"can't add tensors of shapes {_named(self)} and {_named(other)}")
        left, right = self.broadcast(shape), other.broadcast(shape)
        return replace(
            left,
            precision=max(left.precision, right.precision),
            terms=_collected(left.terms + right.terms),
            constant=left.constant + right.constant,
        )

    def decrypt(self, key: _core.SecretKey) -> Floats:
        """The numbers, with the batch's axis first if there is one."""
        held = self if self._has_no_maps else self.evaluated()
        rows = self.batch or 1
        values = np.tile(held.constant, (rows, 1))
        for term in held.terms:
            values += term.factor * term.source.decrypt(key).reshape(rows, self.size)
        return values.reshape(self.shape if self.batch is None else (self.batch, *self.shape))

    @property
    def _has_no_maps(self) -> bool:
        return all(term.matrix is None for term in self.terms)

    def evaluated(self) -> Sum:
        """The sum without maps and constant: added up or multiplied, so that it can be sent.

        One fresh tensor that was only scaled stays one.
        """
        constant = np.tile(self.constant, (self.batch or 1, 1))
        done = replace(self, constant=np.zeros_like(self.constant))
        whole = added_up(self.terms, constant)
        if whole is not None:
            return replace(done, terms=(whole,))
        fresh = [term for term in self.terms if isinstance(term.source, Fresh)]
        products = tuple(term for term in self.terms if not isinstance(term.source, Fresh))
        if fresh:
            return replace(done, terms=(*products, Term(multiplied(fresh, constant, self.precision))))
        return replace(done, terms=with_constant(products, constant)) if np.any(constant) else self


def _named(tensor: Sum) -> str:
    return f"{list(tensor.shape)}" + ("" if tensor.batch is None else f" in a batch of {tensor.batch}")


def _collected(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """With the maps of each encrypted tensor added up, so that sums over many steps do not grow."""
    found: dict[tuple[int, tuple[int, ...] | None], Term] = {}
    for term in terms:
        kind = id(term.source), None if term.matrix is None else term.matrix.shape
        same = found.get(kind)
        if same is None:
            found[kind] = term
        elif same.matrix is None or term.matrix is None:
            found[kind] = replace(same, factor=checked_factor(same.factor + term.factor))
        else:
            found[kind] = Term(term.source, 1.0, same.factor * same.matrix + term.factor * term.matrix)
    return tuple(found.values())
