"""What tensors and vectors of ciphertexts have in common."""

from __future__ import annotations

import math
import numbers
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np

from hesplit_native import _core
from hesplit_native.errors import RangeError, WireError
from hesplit_native.tenseal import sources, wire
from hesplit_native.tenseal.enc_context import Context, SecretKey, checked_scale
from hesplit_native.tenseal.layout import Floats, Layout, Order
from hesplit_native.tenseal.sources import Fresh, Product, ring
from hesplit_native.tenseal.sums import Sum
from hesplit_native.tenseal.tensors.plaintensor import as_array
from hesplit_native.tenseal.terms import Term

T = TypeVar("T", bound="Encrypted")

# Of a tensor from outside.
_MAX_NUMBERS = 1 << 26
_MAX_AXES = 16
_MAX_TERMS = 64
_LEAST_PRODUCT_BYTES = sources.PARAMETERS.ring_degree * 2  # of c1, with 16 bits a number


class Encrypted:
    """A tensor of ciphertexts under the key of a context.

    Operations that TenSEAL has and this engine has not raise NotImplementedError and say which. Not safe to use from several
    threads while one of them changes it (`add_` and the like).
    """

    __array_ufunc__ = None  # so that array - tensor is this tensor's business, and not done number by number
    _kind: ClassVar[str]

    def __init__(self, context: Any, values: Floats, scale: float | None, batch: bool) -> None:
        if not isinstance(context, Context):
            raise TypeError("context must be a tenseal.Context")
        precision = context.global_scale if scale is None else checked_scale(scale)
        self._context: Context | None = context
        self._sum = Sum.encrypt(context.key(), values, batch, precision)

    def _new(self: T, result: Sum) -> T:
        other = object.__new__(type(self))
        other._context, other._sum = self._context, result
        return other

    def _set(self: T, result: Sum) -> T:
        self._sum = result
        return self

    # What it is.

    @property
    def shape(self) -> list[int]:
        """Its shape, without the batch's axis."""
        return list(self._sum.shape)

    def scale(self) -> float:
        """The scale that was asked for."""
        return self._sum.precision

    def context(self) -> Context:
        """The context that it belongs to."""
        if self._context is None:
            raise ValueError("missing context: link one with link_context")
        return self._context

    def link_context(self, context: Context) -> None:
        """Say what context a tensor of `lazy_load` belongs to."""
        if not isinstance(context, Context):
            raise TypeError("context must be a tenseal.Context")
        self._context = context

    def copy(self: T) -> T:
        """Another tensor with the same numbers."""
        return self._new(self._sum)

    __copy__ = copy

    def _decrypted(self, secret_key: SecretKey | None) -> Floats:
        if secret_key is not None and not isinstance(secret_key, SecretKey):
            raise TypeError(f"incorrect type: {type(secret_key)} != SecretKey")
        if secret_key is None and not self.context().has_secret_key():
            raise ValueError(
                "the current context of the tensor doesn't hold a secret_key, please provide one as argument"
            )
        return self._sum.decrypt((secret_key or self.context().secret_key())._native)

    # Arithmetic.

    def _plain(self, other: Any) -> Floats:
        """Plain numbers in an array of their own: the caller may change theirs before a result is computed."""
        try:
            values = np.asarray(float(other)) if isinstance(other, numbers.Real) else np.array(as_array(other))
        except TypeError:
            raise TypeError(f"can't operate with object of type {type(other)}") from None
        if not np.all(np.isfinite(values)):
            raise RangeError("a plain operand contains NaN or Inf")
        return values

    def _operand(self, other: Any) -> Floats:
        """What is added to every number, or multiplies it."""
        return self._plain(other)

    def _added(self, other: Any, sign: float) -> Sum:
        if isinstance(other, Encrypted):
            if type(other) is not type(self):
                raise TypeError(f"can't operate with object of type {type(other)}")
            return self._sum.plus_sum(other._sum.times(np.asarray(sign)))
        return self._sum.plus(sign * self._operand(other))

    def _multiplied(self, other: Any) -> Sum:
        if isinstance(other, Encrypted):
            raise NotImplementedError(
                "a product of two tensors of ciphertexts is not here; one of them has to be plain"
            )
        return self._sum.times(self._operand(other))

    def add(self: T, other: Any) -> T:
        """Add plain numbers or a tensor of ciphertexts, broadcast."""
        return self._new(self._added(other, 1.0))

    def add_(self: T, other: Any) -> T:
        """Add in place."""
        return self._set(self._added(other, 1.0))

    def sub(self: T, other: Any) -> T:
        """Subtract plain numbers or a tensor of ciphertexts, broadcast."""
        return self._new(self._added(other, -1.0))

    def sub_(self: T, other: Any) -> T:
        """Subtract in place."""
        return self._set(self._added(other, -1.0))

    def mul(self: T, other: Any) -> T:
        """Multiply with plain numbers, broadcast."""
        return self._new(self._multiplied(other))

    def mul_(self: T, other: Any) -> T:
        """Multiply in place."""
        return self._set(self._multiplied(other))

    def neg(self: T) -> T:
        """The negative."""
        return self._new(self._sum.times(np.asarray(-1.0)))

    def neg_(self: T) -> T:
        """Negate in place."""
        return self._set(self._sum.times(np.asarray(-1.0)))

    __add__ = __radd__ = add
    __iadd__ = add_
    __sub__ = sub
    __isub__ = sub_
    __mul__ = __rmul__ = mul
    __imul__ = mul_
    __neg__ = neg

    def __rsub__(self: T, other: Any) -> T:
        return self.neg().add_(other)

    def sum(self: T, axis: int = 0) -> T:
        """Summed over an axis; that of a batch counts."""
        return self._new(self._sum.summed(axis))

    def sum_(self: T, axis: int = 0) -> T:
        """Sum over an axis in place."""
        return self._set(self._sum.summed(axis))

    def polyval(self: T, coefficients: Any) -> T:
        """``coefficients[0] + coefficients[1] * self``; higher degrees are not here."""
        values = self._plain(coefficients).ravel()
        if not len(values):
            raise ValueError("the coefficients vector need to have at least one element")
        values = np.trim_zeros(values, "b")
        if len(values) > 2:
            raise NotImplementedError(
                f"a polynomial of degree {len(values) - 1} of a tensor of ciphertexts is not here; degree 1 is"
            )
        constant, factor = [*values.tolist(), 0.0, 0.0][:2]
        return self._new(self._sum.times(np.asarray(factor)).plus(np.asarray(constant)))

    def polyval_(self: T, coefficients: Any) -> T:
        """A polynomial of degree 1 in place."""
        return self._set(self.polyval(coefficients)._sum)

    def pow(self: T, power: int) -> T:
        """The first power; others are not here."""
        if power != 1:
            raise NotImplementedError("powers of a tensor of ciphertexts are not here")
        return self.copy()

    pow_ = __pow__ = __ipow__ = pow

    def square(self) -> NoReturn:
        """Not here."""
        raise NotImplementedError("squares of a tensor of ciphertexts are not here")

    square_ = square

    def ciphertext(self) -> NoReturn:
        """Not here."""
        raise NotImplementedError(
            "there are no SEAL ciphertexts behind this tensor: many numbers share one of another form"
        )

    # As bytes.

    def serialize(self) -> bytes:
        """As bytes, all operations done."""
        held = self._sum.evaluated()
        if len(held.terms) > _MAX_TERMS:
            raise NotImplementedError(
                f"a tensor that is the sum of so many results that were serialized before ({len(held.terms)}, of which {_MAX_TERMS} "
                "are supported) cannot be serialized"
            )
        terms: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for term in held.terms:
            source = term.source
            head: dict[str, Any] = {"factor": term.factor, "messages": len(source.messages)}
            if isinstance(source, Fresh):
                layout = source.layout
                head["fresh"] = [layout.rows, layout.columns, layout.group, layout.width]
                head["summands"] = source.summands
            else:
                order = source.order
                head["product"] = [order.rows, order.outputs, order.group, order.per_product]
                head["room"] = source.room
            terms.append(head)
            blobs += source.messages
        header = {"kind": self._kind, "shape": held.shape, "batch": held.batch, "scale": held.precision, "terms": terms}
        return wire.write(header, blobs)

    @classmethod
    def load(cls: type[T], context: Context, data: bytes) -> T:
        """What `serialize` wrote, of a tensor under the key of this context.

        Raises
        ------
        TypeError
            For anything but a context and bytes.
        WireError, KeyMismatchError
            For bytes of anything else.
        """
        if not isinstance(context, Context) or not isinstance(data, bytes):
            raise TypeError(f"Invalid input types context: {type(context)} and vector: {type(data)}")
        tensor = cls.lazy_load(data)
        tensor._context = context
        return tensor

    @classmethod
    def lazy_load(cls: type[T], data: bytes) -> T:
        """The same without a context, which `link_context` gives later."""
        if not isinstance(data, bytes):
            raise TypeError(f"Invalid input types vector: {type(data)}")
        fields, blobs = wire.read(data, cls._kind)
        shape = fields.counts("shape", _MAX_NUMBERS, _MAX_AXES)
        batch = None if fields.missing("batch") else fields.count("batch", _MAX_NUMBERS)
        size = math.prod(shape)
        if size * (batch or 1) > _MAX_NUMBERS:
            raise WireError(f"a tensor of more than {_MAX_NUMBERS} numbers")
        try:
            precision = checked_scale(fields.number("scale"))
        except WireError:
            raise
        except ValueError as error:
            raise WireError(f"a {cls._kind} with an impossible scale") from error
        terms = []
        for part in fields.parts("terms", _MAX_TERMS):
            count = part.count("messages", len(blobs) or 1)
            messages, blobs = blobs[:count], blobs[count:]
            source = _read_source(part, messages, size, batch)
            terms.append(Term(source, part.number("factor")))
        if blobs:
            raise WireError(f"a {cls._kind} with more ciphertexts than it says")
        tensor = object.__new__(cls)
        tensor._context = None
        tensor._sum = Sum(shape, batch, precision, tuple(terms), np.zeros(size))
        return tensor

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a tensor of ciphertexts cannot be pickled; use serialize() and load()")

    def __repr__(self) -> str:
        batch = "" if self._sum.batch is None else f", batch of {self._sum.batch}"
        return f"{type(self).__name__}(shape={self.shape}{batch})"


def _read_source(part: wire.Fields, messages: list[bytes], size: int, batch: int | None) -> Fresh | Product:
    degree = ring().degree
    rows = batch or 1
    if not part.missing("fresh"):
        numbers = part.counts("fresh", _MAX_NUMBERS, 4)
        if len(numbers) != 4:
            raise WireError("an encrypted tensor with an impossible layout")
        layout = Layout(degree, *numbers)
        fits = layout.rows * layout.columns == rows * size and (batch is None or layout.rows == batch)
        if not fits or layout.group > layout.rows or layout.block > degree or len(messages) != layout.groups:
            raise WireError("an encrypted tensor with an impossible layout")
        return Fresh.load(layout, part.count("summands", _core.MOST_SUMMANDS), messages)
    numbers = part.counts("product", _MAX_NUMBERS, 4)
    if len(numbers) != 4:
        raise WireError("a product with an impossible layout")
    order = Order(*numbers)
    if order.rows * order.outputs != rows * size or order.group > order.rows or order.per_product > degree:
        raise WireError("a product with an impossible layout")
    # A product takes its c1 at least: no more of them than there are bytes for, before anything is done for each.
    if order.groups * order.products * _LEAST_PRODUCT_BYTES > sum(map(len, messages)):
        raise WireError("a product with another number of values than its layout has")
    if sum(_core.count_products(ring(), message) for message in messages) != rows * size:
        raise WireError("a product with another number of values than its layout has")
    room = part.number("room")
    if room < 0:
        raise WireError("a product with an impossible room for constants")
    return Product(order, room, tuple(messages))
