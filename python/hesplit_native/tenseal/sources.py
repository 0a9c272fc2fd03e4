"""What is encrypted: tensors as they were encrypted, and the values that products left.

A product can be added up, scaled and decrypted. It cannot be multiplied by a matrix any more, as what is between its values
are sums of others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hesplit_native import _core
from hesplit_native.errors import RangeError, WireError
from hesplit_native.layer.parameters import Parameters
from hesplit_native.tenseal.layout import Floats, Layout, Order

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

    @classmethod
    def encrypt(cls, key: Key, values: Floats) -> Fresh:
        """Encrypt ``[rows, columns]`` numbers.

        Raises
        ------
        RangeError
            When one is NaN, infinite or beyond `BOUND`.
        """
        largest = float(np.abs(values).max())
        if not math.isfinite(largest):
            raise RangeError("the numbers to encrypt contain NaN or Inf")
        if largest > BOUND:
            raise RangeError(f"a number to encrypt is beyond {BOUND:.0f}; scale the data down")
        layout = Layout.choose(ring().degree, *values.shape)
        coefficients = layout.place(np.rint(values * SCALE).astype(np.int64))
        return cls(layout, 1, tuple(_core.encrypt_polynomials(ring(), key, group) for group in coefficients))

    @classmethod
    def load(cls, layout: Layout, summands: int, messages: Sequence[bytes]) -> Fresh:
        """What messages from outside hold, which are read here and now.

        Raises
        ------
        WireError, KeyMismatchError
            For messages of anything else.
        """
        fresh = cls(layout, summands, tuple(messages))
        if any(polynomials.count != layout.parts for polynomials in fresh.polynomials):
            raise WireError("an encrypted tensor with another number of polynomials than its layout has")
        return fresh

    @functools.cached_property
    def polynomials(self) -> tuple[_core.EncryptedPolynomials, ...]:
        """Those of the messages, transformed: read when they are first computed with, as many tensors are only sent.

        Threads that ask at the same time may each read them; any of the results will do.
        """
        return tuple(_core.EncryptedPolynomials(ring(), message) for message in self.messages)

    def plus(self, constant: Floats) -> Fresh:
        """With ``[rows, columns]`` numbers of up to `BOUND` added."""
        coefficients = self.layout.place(np.rint(constant * SCALE).astype(np.int64))
        messages = zip(self.messages, coefficients, strict=True)
        added = tuple(_core.add_to_polynomials(ring(), message, group) for message, group in messages)
        return replace(self, summands=self.summands + 1, messages=added)

    def plus_fresh(self, others: Sequence[Fresh]) -> Fresh:
        """The sum of several in one layout."""
        groups = zip(self.polynomials, *(other.polynomials for other in others), strict=True)
        added = tuple(_core.sum_polynomials(group) for group in groups)
        return replace(self, summands=self.summands + sum(other.summands for other in others), messages=added)

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
