"""What a tensor of ciphertexts is: a sum of encrypted tensors, each under a linear map, and a constant.

Additions, products with plain numbers and matrices, slices and transpositions change maps and constants, in the clear and at no
cost; ciphertexts are multiplied once, when the result is decrypted or serialized (`Sum.products`). So scales never grow and
nothing is rescaled, and any number of operations is one product: what TenSEAL calls depth is not used up by plain operands.

A product can be added up, scaled and decrypted. It cannot be multiplied by a matrix any more, as what is between its values
are sums of others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hesplit_native import _core
from hesplit_native.errors import RangeError
from hesplit_native.layer.parameters import Parameters
from hesplit_native.tenseal.layout import Floats, Layout, Order, all_weights, row_weights

#: Numbers that are encrypted are at most this large.
BOUND = float(2**16)
SCALE = float(2**38)
#: The ring of every tensor, whatever ring degree a context names: 90 bits at degree 4096, where 106 are 128-bit secure.
PARAMETERS = Parameters(
    ring_degree=4096,
    modulus_bits=(45, 45),
    scale=SCALE,
    activation_bound=BOUND,
    activation_norm=BOUND * 2**16,
    error_bound=1.0,
)
#: Numbers of a map, at most: 256 MB.
MAX_MAP = 1 << 25
# Numbers of weight polynomials that are made at a time.
_CHUNK = 1 << 22
_LEAST_BITS = 24
# Larger factors than this cannot be written, and smaller ones of a sum would vanish beside them.
_LARGEST_FACTOR = 2.0**1000

Key = _core.SecretKey | _core.PublicKey


@functools.cache
def ring() -> _core.TensorRing:
    """The ring, made when it is first used."""
    return _core.TensorRing(PARAMETERS._native)


@dataclass(frozen=True)
class Fresh:
    """Encrypted numbers ``[rows, columns]``, one message for each group of rows: the sum of so many numbers up to `BOUND`."""

    layout: Layout
    summands: int
    messages: tuple[bytes, ...]
    polynomials: tuple[_core.EncryptedPolynomials, ...] = field(compare=False, repr=False)

    @classmethod
    def encrypt(cls, key: Key, values: Floats) -> Fresh:
        """Encrypt ``[rows, columns]`` numbers.

        Raises
        ------
        RangeError
            When one is NaN, infinite or beyond `BOUND`.
        """
        largest = float(np.abs(values).max())
        if not largest <= BOUND:
            what = "the numbers to encrypt contain NaN or Inf" if not math.isfinite(largest) else "a number to encrypt"
            raise RangeError(what if "contain" in what else f"{what} is beyond {BOUND:.0f}; scale the data down")
        layout = Layout.choose(ring().degree, *values.shape)
        coefficients = layout.place(np.rint(values * SCALE).astype(np.int64))
        messages = tuple(_core.encrypt_polynomials(ring(), key, group) for group in coefficients)
        return cls.read(layout, 1, messages)

    @classmethod
    def read(cls, layout: Layout, summands: int, messages: Sequence[bytes]) -> Fresh:
        """What these messages hold. Raises WireError or KeyMismatchError."""
        polynomials = tuple(_core.EncryptedPolynomials(ring(), message) for message in messages)
        return cls(layout, summands, tuple(messages), polynomials)

    def plus(self, constant: Floats) -> Fresh:
        """With ``[rows, columns]`` numbers of up to `BOUND` added."""
        coefficients = zip(self.messages, self.layout.place(np.rint(constant * SCALE).astype(np.int64)), strict=True)
        messages = [_core.add_to_polynomials(ring(), message, group) for message, group in coefficients]
        return self.read(self.layout, self.summands + 1, messages)

    def plus_fresh(self, others: Sequence[Fresh]) -> Fresh:
        """The sum of several in one layout."""
        groups = zip(self.polynomials, *(other.polynomials for other in others), strict=True)
        messages = [_core.sum_polynomials(group) for group in groups]
        return self.read(self.layout, self.summands + sum(other.summands for other in others), messages)

    def decrypt(self, key: _core.SecretKey) -> Floats:
        """The numbers ``[rows, columns]``."""
        coefficients = np.stack([group.decrypt(key) for group in self.polynomials])
        return self.layout.read(coefficients) / SCALE


@dataclass(frozen=True)
class Product:
    """Values ``[rows, outputs]`` that a product left, one message or more for each group of rows.

    Constants that are added later may add up to `room`: beyond that sums would wrap around.
    """

    order: Order
    room: float
    messages: tuple[bytes, ...]

    def decrypt(self, key: _core.SecretKey) -> Floats:
        """The values ``[rows, outputs]``."""
        values = np.concatenate([_core.decrypt_products(ring(), key, message) for message in self.messages])
        return self.order.scatter(values)

    def plus(self, constant: Floats) -> Product:
        """With ``[rows, outputs]`` of up to `room` added."""
        flat = np.concatenate([part for group in self.order.gather(constant) for part in group])
        messages, at = [], 0
        for message in self.messages:
            count = _core.count_products(ring(), message)
            messages.append(_core.add_to_products(ring(), message, flat[at : at + count]))
            at += count
        return replace(self, room=self.room - float(np.abs(constant).max()), messages=tuple(messages))


@dataclass(frozen=True)
class Term:
    """One encrypted tensor under a linear map.

    `matrix` None multiplies by `factor`. A matrix ``[columns, outputs]`` maps every row, a matrix
    ``[rows, columns, outputs]`` all numbers together, each times `factor`.
    """

    source: Fresh | Product
    factor: float = 1.0
    matrix: Floats | None = None


def _limit(numbers: int) -> None:
    if numbers > MAX_MAP:
        raise NotImplementedError(
            f"this operation on a tensor of ciphertexts is a linear map of {numbers} numbers, of which {MAX_MAP} are supported; "
            "encrypt it in smaller parts"
        )


def _fresh(term: Term, what: str) -> Layout:
    if not isinstance(term.source, Fresh):
        raise NotImplementedError(
            f"{what} on the result of a product that was serialized: that takes more depth than this engine has. Do it before "
            "the result is serialized, or decrypt it first"
        )
    return term.source.layout


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
        source = Fresh.encrypt(key, np.ascontiguousarray(values, np.float64).reshape(-1, columns))
        return cls(shape, values.shape[0] if batch else None, precision, (Term(source),), np.zeros(size))

    @property
    def size(self) -> int:
        """Numbers of one tensor of a batch."""
        return math.prod(self.shape)

    def _map(self, term: Term, what: str, flat: npt.NDArray[np.int64] | None = None) -> Floats:
        """The map of rows in a batch, else of all numbers; last come the numbers of the tensor, or those at `flat`."""
        layout = _fresh(term, what)
        flat = np.arange(self.size) if flat is None else flat
        if self.batch is not None or (term.matrix is not None and term.matrix.ndim == 3):
            return _columns(term, layout, flat)
        # Every row has outputs of its own.
        rows, outputs = np.divmod(flat, self.size // layout.rows)
        _limit(layout.rows * layout.columns * len(flat))
        whole = np.zeros((layout.rows, layout.columns, len(flat)))
        whole[rows, :, np.arange(len(flat))] = _columns(term, layout, outputs).T
        return whole

    def reshaped(self, shape: Sequence[int]) -> Sum:
        """The same numbers in another shape."""
        shape = tuple(int(n) for n in shape)
        if any(n < 1 for n in shape) or math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape a tensor of shape {list(self.shape)} into {list(shape)}")
        return replace(self, shape=shape)

    def taken(self, index: npt.NDArray[np.int64], what: str) -> Sum:
        """The numbers at these places of the flattened tensor, in the shape of `index`."""
        flat = index.ravel()
        if index.shape == self.shape and np.array_equal(flat, np.arange(self.size)):
            return self
        terms = [Term(term.source, 1.0, self._map(term, what, flat)) for term in self.terms]
        return replace(self, shape=index.shape, terms=tuple(terms), constant=self.constant[flat])

    def broadcast(self, shape: tuple[int, ...]) -> Sum:
        """As numpy.broadcast_to."""
        if shape == self.shape:
            return self
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
        constant = wide.constant * factors
        if np.all(factors == first):
            terms = [replace(term, factor=_factor(term.factor * first)) for term in wide.terms]
            return replace(wide, terms=tuple(terms), constant=constant)
        return replace(wide, terms=tuple(wide._times(term, factors) for term in wide.terms), constant=constant)

    def _times(self, term: Term, factors: Floats) -> Term:
        layout = _fresh(term, "a product with different numbers")
        if self.batch is None and (term.matrix is None or term.matrix.ndim == 2):
            # Where every row meets the same numbers, the map stays one of rows.
            by_row = factors.reshape(layout.rows, -1)
            if np.all(by_row == by_row[0]):
                _limit(layout.columns * by_row.shape[1])
                matrix = np.eye(layout.columns) if term.matrix is None else term.matrix
                return Term(term.source, term.factor, matrix * by_row[0])
        matrix = self._map(term, "a product with different numbers")
        return Term(term.source, 1.0, matrix * factors)

    def matmul(self, right: Floats) -> Sum:
        """``[p, q] @ [q, c]``."""
        if len(self.shape) != 2:
            raise ValueError("this tensor isn't a matrix")
        if right.ndim != 2 or right.shape[0] != self.shape[1]:
            raise ValueError(f"can't multiply matrices of shapes {list(self.shape)} and {list(right.shape)}")
        p, q = self.shape
        c = right.shape[1]
        terms = tuple(self._matmul(term, right) for term in self.terms)
        return replace(self, shape=(p, c), terms=terms, constant=(self.constant.reshape(p, q) @ right).ravel())

    def _matmul(self, term: Term, right: Floats) -> Term:
        layout = _fresh(term, "a product with a matrix")
        p, q = self.shape
        if term.matrix is None and layout.columns == q:
            return Term(term.source, term.factor, right)  # a batch of one row each, or the rows of one matrix
        if term.matrix is not None and term.matrix.ndim == 2 and term.matrix.shape[1] == q:
            return Term(term.source, term.factor, term.matrix @ right)
        matrix = self._map(term, "a product with a matrix")
        lead = matrix.shape[:-1]
        _limit(math.prod(lead) * p * right.shape[1])
        return Term(term.source, 1.0, (matrix.reshape(*lead, p, q) @ right).reshape(*lead, -1))

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
            parts = (self._map(term, "a sum", part.ravel()) for part in index)
            terms.append(Term(term.source, 1.0, functools.reduce(np.add, parts)))
        constant = self.constant.reshape(self.shape).sum(axis).ravel()
        return replace(self, shape=shape, terms=tuple(terms), constant=constant)

    def summed_batch(self) -> Sum:
        """The sum of all tensors of a batch, as one without batch."""
        if self.batch is None:
            raise ValueError("this tensor was not encrypted as a batch")
        terms = []
        for term in self.terms:
            matrix = self._map(term, "a sum")
            _limit(self.batch * matrix.size)
            terms.append(Term(term.source, 1.0, np.broadcast_to(matrix, (self.batch, *matrix.shape)).copy()))
        return replace(self, batch=None, terms=tuple(terms), constant=self.constant * self.batch)

    def plus_sum(self, other: Sum) -> Sum:
        """Two tensors of ciphertexts added, both broadcast; a batch only to one of as many."""
        try:
            if other.batch != self.batch:
                raise ValueError
            shape = np.broadcast_shapes(self.shape, other.shape)
        except ValueError:
            raise ValueError(f"can't add tensors of shapes {_named(self)} and {_named(other)}") from None
        left, right = self.broadcast(shape), other.broadcast(shape)
        return replace(
            left,
            precision=max(left.precision, right.precision),
            terms=_collected(left.terms + right.terms),
            constant=left.constant + right.constant,
        )

    def decrypt(self, key: _core.SecretKey) -> Floats:
        """The numbers, with the batch's axis first if there is one."""
        held = self.evaluated(key)
        rows = self.batch or 1
        values = np.tile(held.constant, (rows, 1))
        for term in held.terms:
            source = term.source
            found = source.decrypt(key)
            values += term.factor * found.reshape(rows, self.size)
        return values.reshape(self.shape if self.batch is None else (self.batch, *self.shape))

    def evaluated(self, key: _core.SecretKey | None = None) -> Sum:
        """The sum without maps: multiplied, so that it can be sent. Its constant is in ciphertexts, unless `key` decrypts it.

        One fresh tensor that was only scaled stays one.
        """
        plain = all(term.matrix is None for term in self.terms)
        if plain and key is not None:
            return self
        constant = np.tile(self.constant, (self.batch or 1, 1))
        done = replace(self, constant=np.zeros_like(self.constant))
        whole = _added(self.terms, constant) if plain else None
        if whole is not None:
            return replace(done, terms=(whole,))
        fresh = [term for term in self.terms if isinstance(term.source, Fresh)]
        products = tuple(term for term in self.terms if not isinstance(term.source, Fresh))
        if fresh:
            return replace(done, terms=(*products, Term(_multiplied(self, fresh, constant))))
        if not np.any(constant):
            return self
        return replace(done, terms=_plus(products, constant))


def _added(terms: tuple[Term, ...], constant: Floats) -> Term | None:
    """One fresh term that is the sum of these and of constants; None where only a product says it."""
    first = terms[0]
    sources = [term.source for term in terms if isinstance(term.source, Fresh)]
    if len(sources) < len(terms) or first.factor == 0 or any(term.factor != first.factor for term in terms):
        return None
    added = bool(np.any(constant))
    if any(source.layout != sources[0].layout for source in sources) or (
        sum(source.summands for source in sources) + added > _core.MOST_SUMMANDS
    ):
        return None
    if np.abs(constant).max() > BOUND * abs(first.factor):
        return None
    source = sources[0].plus_fresh(sources[1:]) if len(sources) > 1 else sources[0]
    if added:
        source = source.plus(constant.reshape(source.layout.rows, source.layout.columns) / first.factor)
    return replace(first, source=source)


def _plus(terms: tuple[Term, ...], constant: Floats) -> tuple[Term, ...]:
    """Products with constants added to one that has room for them."""
    largest = float(np.abs(constant).max())
    for index, term in enumerate(terms):
        source = term.source
        if isinstance(source, Product) and largest < source.room * abs(term.factor):
            held = replace(term, source=source.plus(constant.reshape(source.order.shape) / term.factor))
            return (*terms[:index], held, *terms[index + 1 :])
    raise RangeError(
        f"there is no room for a constant of {largest:.3g} in a result that was serialized before; add it before that, or to what "
        "is decrypted"
    )


def _factor(factor: float) -> float:
    if not abs(factor) <= _LARGEST_FACTOR:
        raise RangeError("the product of a tensor's plain factors is too large")
    return factor


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
            found[kind] = replace(same, factor=_factor(same.factor + term.factor))
        else:
            found[kind] = Term(term.source, 1.0, same.factor * same.matrix + term.factor * term.matrix)
    return tuple(found.values())


def _multiplied(tensor: Sum, terms: list[Term], constant: Floats) -> Product:
    """The sum of fresh terms and of constants ``[batch or 1, size]``, multiplied."""
    sources = [term.source for term in terms if isinstance(term.source, Fresh)]
    layouts = [source.layout for source in sources]
    maps = [_matrix(term, layout) for term, layout in zip(terms, layouts, strict=True)]
    by_row = all(matrix.ndim == 2 for matrix in maps) and len({(layout.rows, layout.group) for layout in layouts}) == 1
    if not by_row:
        maps = [_of_all(layout, matrix, constant.size) for layout, matrix in zip(layouts, maps, strict=True)]
    bounds = [source.summands * matrix for source, matrix in zip(sources, maps, strict=True)]
    scale, bits = _scaling(tensor, bounds, constant)
    degree, spacing = ring().degree, max(layout.block for layout in layouts)
    per_product = degree // spacing
    if by_row:
        order = Order(layouts[0].rows, maps[0].shape[1], layouts[0].group, per_product)
    else:
        order = Order(1, constant.size, 1, per_product)
    integers = [np.rint(matrix * scale).astype(np.int64) for matrix in maps]
    constants = order.gather(constant.reshape(order.rows, order.outputs) * (SCALE * scale))
    at_once = max(1, _CHUNK // (degree * sum(each.parts * (1 if by_row else each.groups) for each in layouts)))
    messages = []
    for group, rows in enumerate(constants):
        for first in range(0, order.products, at_once):
            wanted, chosen = [], slice(first * per_product, (first + at_once) * per_product)
            for p in range(first, min(first + at_once, order.products)):
                outputs = min(per_product, order.outputs - p * per_product)
                places = np.arange(outputs)[:, None] * spacing + np.arange(len(rows[p]) // outputs)
                wanted.append((places.ravel().astype(np.uint32), rows[p]))
            operands = []
            for source, matrix in zip(sources, integers, strict=True):
                if by_row:
                    weights = row_weights(source.layout, matrix[:, chosen], spacing, per_product)
                    operands.append((source.polynomials[group], weights))
                    continue
                for other, polynomials in enumerate(source.polynomials):
                    row = other * source.layout.group
                    part = matrix[row : row + source.layout.group, :, chosen]
                    operands.append((polynomials, all_weights(source.layout, part, spacing, per_product)))
            messages.append(_core.multiply_polynomials(ring(), operands, wanted, bits, SCALE * scale))
    # The products take a quarter of the modulus at most, and half of it is there; 1 % is for the noise.
    return Product(order, 0.99 * ring().modulus / 4 / (SCALE * scale), tuple(messages))


def _columns(term: Term, layout: Layout, outputs: npt.NDArray[np.int64]) -> Floats:
    """Some outputs of a term's map, written out."""
    if term.matrix is not None:
        _limit(term.matrix.size // term.matrix.shape[-1] * len(outputs))
        return term.factor * term.matrix[..., outputs]
    _limit(layout.columns * len(outputs))
    found = np.zeros((layout.columns, len(outputs)))
    found[outputs, np.arange(len(outputs))] = term.factor
    return found


def _matrix(term: Term, layout: Layout) -> Floats:
    """A term's map, written out."""
    if term.matrix is not None:
        return term.factor * term.matrix
    _limit(layout.columns**2)
    return term.factor * np.eye(layout.columns)


def _of_all(layout: Layout, matrix: Floats, size: int) -> Floats:
    """A map as one of all numbers together, ``[rows, columns, size]``."""
    if matrix.ndim == 3:
        return matrix
    _limit(layout.rows * layout.columns * size)
    whole = np.zeros((layout.rows, layout.columns, layout.rows, matrix.shape[1]))
    whole[np.arange(layout.rows), :, np.arange(layout.rows)] = matrix
    return whole.reshape(layout.rows, layout.columns, size)


def _scaling(tensor: Sum, maps: list[Floats], constant: Floats) -> tuple[float, int]:
    """The factor of the maps, a power of two, and the bits of the product's numbers.

    No sum can wrap around: with numbers of up to `BOUND` it takes at most a quarter of the modulus, and the noise, which the
    maps multiply too, is far below that (`SCALE`).
    """
    largest = float(np.abs(constant).max())
    largest += BOUND * sum(float(np.abs(matrix).reshape(-1, matrix.shape[-1]).sum(0).max()) for matrix in maps)
    if not math.isfinite(largest):
        raise RangeError("a plain operand contains NaN or Inf, or is too large")
    room = ring().modulus / 4 / SCALE
    # Below the last bound every weight is rounded to zero anyway.
    scale = 2.0 ** min(math.floor(math.log2(room / largest)) if largest > 0 else 0, 500)
    # So that the rounding's standard deviation is at most 1 / precision.
    numbers = ring().rounding_deviation(0) / (SCALE * scale) * tensor.precision
    return scale, min(max(math.ceil(math.log2(numbers)), _LEAST_BITS), _core.MOST_PRODUCT_BITS)
