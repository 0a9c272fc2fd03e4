"""What tensors and vectors of ciphertexts have in common."""

from __future__ import annotations

import numbers
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np

from hesplit_native.errors import RangeError
from hesplit_native.tenseal import serialization
from hesplit_native.tenseal.enc_context import Context, SecretKey, checked_scale
from hesplit_native.tenseal.layout import Floats
from hesplit_native.tenseal.sums import Sum
from hesplit_native.tenseal.tensors.plaintensor import as_array

T = TypeVar("T", bound="Encrypted")


class Encrypted:
    """A tensor of ciphertexts under the key of a context.

    Operations that TenSEAL has and this engine has not raise NotImplementedError and say which. Not safe to use from several
    threads while one of them changes it (`add_` and the like).
    """

    __array_ufunc__ = None  # so that array - tensor is this tensor's business, and not done number by number
    _kind: ClassVar[str]

    def __init__(self, context: Any, values: Floats, scale: float | None, batch: bool) -> None:
        self._context: Context | None = None
        self.link_context(context)
        precision = context.global_scale if scale is None else checked_scale(scale)
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
        if isinstance(other, Encrypted):
            raise NotImplementedError(
                "a product of two tensors of ciphertexts is not here; one of them has to be plain"
            )
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
        return self._sum.times(self._operand(other))

    def _product(self, other: Any) -> Sum:
        """A matrix, or a vector, times a plain matrix."""
        values = self._plain(other)
        if len(self.shape) != 1:
            return self._sum.matmul(values)
        return self._sum.reshaped((1, self._sum.size)).matmul(values).reshaped(values.shape[1:])

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
        return self.copy().pow_(power)

    def pow_(self: T, power: int) -> T:
        """The first power in place."""
        if power != 1:
            raise NotImplementedError("powers of a tensor of ciphertexts are not here")
        return self

    __pow__ = pow
    __ipow__ = pow_

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
        return serialization.dump(self._sum, self._kind)

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
        tensor = object.__new__(cls)
        tensor._context = None
        tensor._sum = serialization.load(data, cls._kind)
        return tensor

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a tensor of ciphertexts cannot be pickled; use serialize() and load()")

    def __repr__(self) -> str:
        batch = "" if self._sum.batch is None else f", batch of {self._sum.batch}"
        return f"{type(self).__name__}(shape={self.shape}{batch})"
