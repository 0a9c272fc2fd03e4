"""Sums as bytes: a header that says what each term is, and the messages of all terms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hesplit_native import _core
from hesplit_native.errors import WireError
from hesplit_native.tenseal import wire
from hesplit_native.tenseal.enc_context import checked_scale
from hesplit_native.tenseal.layout import Layout, Order
from hesplit_native.tenseal.sources import Fresh, Product, ring
from hesplit_native.tenseal.sums import Sum
from hesplit_native.tenseal.terms import Term

# Of a tensor from outside, which fits a header then.
_MAX_NUMBERS = 1 << 26
_MAX_AXES = 16
_MAX_TERMS = 64
_C1_BITS = 16  # of a number of a product's c1, at least


def dump(tensor: Sum, kind: str) -> bytes:
    """A tensor of this kind as bytes, all operations done.

    Raises
    ------
    NotImplementedError
        Nobody would load it: it is too large, or the sum of too many results that were serialized before.
    """
    if tensor.size * (tensor.batch or 1) > _MAX_NUMBERS or len(tensor.shape) > _MAX_AXES:
        raise NotImplementedError(
            f"a tensor of more than {_MAX_NUMBERS} numbers or {_MAX_AXES} axes cannot be serialized; do it in parts, or reshape it"
        )
    done = tensor.evaluated()
    if len(done.terms) > _MAX_TERMS:
        raise NotImplementedError(
            f"a tensor that is the sum of so many results that were serialized before ({len(done.terms)}, of which {_MAX_TERMS} "
            "are supported) cannot be serialized"
        )
    header = {
        "kind": kind,
        "shape": done.shape,
        "batch": done.batch,
        "scale": done.precision,
        "terms": [_head(term) for term in done.terms],
    }
    return wire.write(header, [message for term in done.terms for message in term.source.messages])


def _head(term: Term) -> dict[str, Any]:
    source = term.source
    head: dict[str, Any] = {"factor": term.factor, "messages": len(source.messages)}
    if isinstance(source, Fresh):
        layout = source.layout
        return head | {
            "fresh": [layout.rows, layout.columns, layout.group, layout.width],
            "summands": source.summands,
        }
    order = source.order
    return head | {"product": [order.rows, order.outputs, order.group, order.per_product], "room": source.room}


def load(data: bytes, kind: str) -> Sum:
    """What `dump` wrote of a tensor of this kind.

    Raises
    ------
    WireError, KeyMismatchError
        For anything else.
    """
    fields, blobs = wire.read(data, kind)
    shape = fields.counts("shape", _MAX_NUMBERS, _MAX_AXES)
    batch = None if fields.missing("batch") else fields.count("batch", _MAX_NUMBERS)
    size = math.prod(shape)
    if size * (batch or 1) > _MAX_NUMBERS:
        raise WireError(f"a tensor of more than {_MAX_NUMBERS} numbers")
    scale = fields.number("scale")
    try:
        precision = checked_scale(scale)
    except ValueError as error:
        raise WireError(f"a {kind} with an impossible scale") from error
    terms = []
    for part in fields.parts("terms", _MAX_TERMS):
        count = part.count("messages", len(blobs) or 1)
        messages, blobs = blobs[:count], blobs[count:]
        read = _product if part.missing("fresh") else _fresh
        terms.append(Term(read(part, messages, size, batch), part.number("factor")))
    if blobs:
        raise WireError(f"a {kind} with more ciphertexts than it says")
    return Sum(shape, batch, precision, tuple(terms), np.zeros(size))


def _fresh(part: wire.Fields, messages: list[bytes], size: int, batch: int | None) -> Fresh:
    degree = ring().degree
    numbers = part.counts("fresh", _MAX_NUMBERS, 4)
    if len(numbers) != 4:
        raise WireError("an encrypted tensor with an impossible layout")
    layout = Layout(degree, *numbers)
    fits = layout.rows * layout.columns == (batch or 1) * size and (batch is None or layout.rows == batch)
    if not fits or layout.group > layout.rows or layout.block > degree or len(messages) != layout.groups:
        raise WireError("an encrypted tensor with an impossible layout")
    return Fresh.load(layout, part.count("summands", _core.MOST_SUMMANDS), messages)


def _product(part: wire.Fields, messages: list[bytes], size: int, batch: int | None) -> Product:
    degree, values = ring().degree, (batch or 1) * size
    numbers = part.counts("product", _MAX_NUMBERS, 4)
    if len(numbers) != 4:
        raise WireError("a product with an impossible layout")
    order = Order(*numbers)
    if order.rows * order.outputs != values or order.group > order.rows or order.per_product > degree:
        raise WireError("a product with an impossible layout")
    # A product takes its c1 at least: no more of them than there are bytes for, before anything is done for each.
    if order.groups * order.products * degree * _C1_BITS // 8 > sum(map(len, messages)):
        raise WireError("a product with another number of values than its layout has")
    if sum(_core.count_products(ring(), message) for message in messages) != values:
        raise WireError("a product with another number of values than its layout has")
    room = part.number("room")
    if room < 0:
        raise WireError("a product with an impossible room for constants")
    return Product(order, room, tuple(messages))
