"""How a sum is made into ciphertexts without maps: by adding up its messages where that says it, else by one product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hesplit_native import _core
from hesplit_native.errors import RangeError
from hesplit_native.tenseal.layout import Floats, Order, weights
from hesplit_native.tenseal.sources import BOUND, SCALE, Fresh, Product, ring
from hesplit_native.tenseal.terms import Term

# Numbers of weight polynomials that are made at a time.
_CHUNK = 1 << 22
_LEAST_BITS = 24
# Of a result: with more, the bits of its product and the room for constants could not be said in floating point.
_LARGEST = 2.0**950


def added_up(terms: Sequence[Term], constant: Floats) -> Term | None:
    """One fresh term that is the sum of these and of constants ``[batch or 1, size]``; None where only a product says it."""
    factor = terms[0].factor
    sources = [
        term.source
        for term in terms
        if isinstance(term.source, Fresh) and term.matrix is None and term.factor == factor
    ]
    if len(sources) < len(terms) or factor == 0 or any(source.layout != sources[0].layout for source in sources):
        return None
    is_added = bool(np.any(constant))
    if sum(source.summands for source in sources) + is_added > _core.MOST_SUMMANDS:
        return None
    if np.abs(constant).max() > BOUND * abs(factor):
        return None
    whole = sources[0].plus_fresh(sources[1:]) if len(sources) > 1 else sources[0]
    if is_added:
        whole = whole.plus(constant.reshape(whole.layout.rows, whole.layout.columns) / factor)
    return Term(whole, factor)


def with_constant(products: tuple[Term, ...], constant: Floats) -> tuple[Term, ...]:
    """Products with constants ``[batch or 1, size]`` added to one that has room for them.

    Raises
    ------
    RangeError
        None has.
    """
    largest = float(np.abs(constant).max())
    for index, term in enumerate(products):
        source = term.source
        if isinstance(source, Product) and largest < source.room * abs(term.factor):
            whole = Term(source.plus(constant.reshape(source.order.shape) / term.factor), term.factor)
            return (*products[:index], whole, *products[index + 1 :])
    raise RangeError(
        f"there is no room for a constant of {largest:.3g} in a result that was serialized before; add it before that, or to what "
        "is decrypted"
    )


def multiplied(terms: Sequence[Term], constant: Floats, precision: float) -> Product:
    """The sum of fresh terms under their maps and of constants ``[batch or 1, size]``.

    Raises
    ------
    RangeError
        Maps or constants are not finite, or results may be beyond 2^950.
    """
    sources = [term.source for term in terms if isinstance(term.source, Fresh)]
    layouts = [source.layout for source in sources]
    # Rows of different tensors are added up where they sit at the same places of their groups; else each number is found by itself.
    by_row = all(term.maps_rows for term in terms) and len({(layout.rows, layout.group) for layout in layouts}) == 1
    maps = [
        term.factor * (term.written_out(layout) if by_row else term.of_all(layout))
        for term, layout in zip(terms, layouts, strict=True)
    ]
    scale, bits = _scaling(
        [source.summands * each for source, each in zip(sources, maps, strict=True)], constant, precision
    )
    integers = [np.rint(each * scale).astype(np.int64) for each in maps]
    spacing = max(layout.block for layout in layouts)
    per_product = ring().degree // spacing
    if by_row:
        order = Order(layouts[0].rows, maps[0].shape[-1], layouts[0].group, per_product)
    else:
        order = Order(1, constant.size, 1, per_product)
    polynomials = sum(layout.parts * (1 if by_row else layout.groups) for layout in layouts)
    at_once = max(1, _CHUNK // (ring().degree * polynomials))
    unit = SCALE * scale
    messages = []
    added = order.gather(constant.reshape(order.shape) * unit)
    for group, (places, constants) in enumerate(zip(order.places(spacing), added, strict=True)):
        wanted = list(zip(places, constants, strict=True))
        for first in range(0, order.products, at_once):
            outputs = slice(first * per_product, (first + at_once) * per_product)
            operands = [
                operand
                for source, each in zip(sources, integers, strict=True)
                for operand in _operands(source, each[..., outputs], group, spacing, per_product)
            ]
            messages.append(_core.multiply_polynomials(ring(), operands, wanted[first : first + at_once], bits, unit))
    # The products take a quarter of the modulus at most, and half of it is there; 1 % is for the noise.
    return Product(order, 0.99 * ring().modulus / 4 / unit, tuple(messages))


def _operands(
    source: Fresh, matrix: npt.NDArray[np.int64], group: int, spacing: int, per_product: int
) -> list[tuple[_core.EncryptedPolynomials, npt.NDArray[np.int64]]]:
    """What is multiplied for a map of the rows of one group, ``[columns, outputs]``, or of all, ``[rows, columns, outputs]``."""
    layout = source.layout
    if matrix.ndim == 2:
        # Weights that find the first row's outputs find those of the others beside them.
        return [(source.polynomials[group], weights(layout, matrix[None], spacing, per_product))]
    parts = [matrix[first : first + layout.group] for first in range(0, layout.rows, layout.group)]
    return [
        (polynomials, weights(layout, part, spacing, per_product))
        for polynomials, part in zip(source.polynomials, parts, strict=True)
    ]


def _scaling(maps: Sequence[Floats], constant: Floats, precision: float) -> tuple[float, int]:
    """The factor of the maps, a power of two, and the bits of the product's numbers.

    No sum can wrap around: with numbers of up to `BOUND` it takes at most a quarter of the modulus, and the noise, which the
    maps multiply too, is far below that (`SCALE`).
    """
    largest = float(np.abs(constant).max())
    largest += BOUND * sum(float(np.abs(matrix).reshape(-1, matrix.shape[-1]).sum(0).max()) for matrix in maps)
    if not largest <= _LARGEST:
        raise RangeError("a plain operand contains NaN or Inf, or is too large")
    room = ring().modulus / 4 / SCALE
    # Below the last bound every weight is rounded to zero anyway.
    scale = 2.0 ** min(math.floor(math.log2(room / largest)) if largest > 0 else 0, 500)
    # So that the rounding's standard deviation is at most 1 / precision.
    numbers = ring().rounding_deviation(0) / (SCALE * scale) * precision
    return scale, min(max(math.ceil(math.log2(numbers)), _LEAST_BITS), _core.MOST_PRODUCT_BITS)
