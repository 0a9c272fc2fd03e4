"""What a session costs its server: known from its terms and from the first bytes of its messages, before anything is done for it.

Every figure is an upper bound in bytes, in Python's integers. What was admitted is held in a `budget.Budget`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from hesplit_native.errors import KeyMismatchError, WireError
from hesplit_native.layer.parameters import Parameters
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.protocols.messages import HEADER_BYTES, MessageType
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import MAX_MESSAGE, SHORT_MESSAGE

#: Layouts for which the core keeps encoded weights.
KEPT_LAYOUTS = 4

#: Rows of one evaluation that a session has room for whatever else its server does; larger ones need room at the moment.
EVALUATION_ROWS = 2048

_FLOAT32, _FLOAT64, _RESIDUE = 4, 8, 8
_MATRIX_HEAD = 12
_MOMENTS = {"client": 0, "sgd": 0, "momentum": 1, "adam": 2}
_STORED_COPIES = 3  # of a state in memory: the last two, and the one that is being written
_KEPT_ENCODINGS = 1 << 28  # of one layout; larger ones are made anew for every request
_PLAN_STEPS = 1 << 24  # of the search for a sealed layout
_SEALED_COPIES = 3  # weights, those that an update makes, and what a checkpoint writes

# The core's messages (cpp/wire/format.h): a header, in public material then the parameters, in requests then the shape.
_CORE_HEADER = 64
_CORE_FRAME = 256  # header, shape, seeds and footer
_PARAMETERS = struct.Struct("<H")
_SHAPE = struct.Struct("<III")


@dataclass(frozen=True)
class Need:
    """Bytes that one message takes.

    `working`: until it is answered. `kept`: it and its reply, until the next. `encodings`: of the weights, which are kept by layout.
    `follows`: what the rest of its training step takes.
    """

    working: int
    kept: int
    encodings: int = 0
    follows: int = 0
    layout: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Layout:
    """How ciphertexts of one request are laid out, as its client says."""

    samples: int
    group: int
    width: int
    inputs: int  # ciphertexts of a group
    products: int  # of a reply to it

    @property
    def groups(self) -> int:
        return -(-self.samples // self.group)


class SessionCosts:
    """The costs of one session.

    Parameters
    ----------
    terms
        What the client proposes.
    material
        The public material, or as much of its beginning as has come: its parameters must be whole.
    material_bytes
        Its whole length.
    checkpoints_in_memory
        Whether the server keeps checkpoints in memory.

    Raises
    ------
    WireError, KeyMismatchError
        The material does not begin with the parameters that the terms name, or there should be none.
    """

    def __init__(self, terms: Terms, material: memoryview, material_bytes: int, *, checkpoints_in_memory: bool) -> None:
        self.terms = terms
        protocol = PROTOCOLS[terms.protocol]
        weights = (terms.in_features + 1) * terms.out_features
        if terms.hidden and protocol.labels_at_server:
            weights += (terms.out_features + 1) * terms.classes
        self._weights = weights
        self._values = max(terms.in_features, terms.out_features, terms.classes)
        self._seals = protocol.seals_weights
        self._gradients = protocol.encrypts and protocol.releases > 1
        self.parameters: Parameters | None = None
        if protocol.encrypts:
            self.parameters = _read_parameters(terms, material)
            self._residues = len(self.parameters._native.primes) * _RESIDUE * self.parameters.ring_degree
            self._polynomial = self.parameters.ring_degree * sum(self.parameters.modulus_bits) // 8 + 1
            if self._seals:
                self._sealed = self._plan_sealed()
        elif material_bytes:
            raise WireError(f"handshake: {terms.protocol} has no public material")
        self._planned: dict[int, _Layout] = {}
        self.state = self._state_bytes()
        """One checkpoint."""
        self.checkpoints = _STORED_COPIES * self.state if checkpoints_in_memory else 0
        """What the last checkpoints of the run take in memory."""
        self.layer = self._layer_bytes(material_bytes) + (0 if checkpoints_in_memory else 2 * self.state)
        """What is there as long as the session: layer, optimiser, keys; and what writing a checkpoint takes."""
        self.reserve = self._reserve()
        """What its training steps and usual evaluations take at the most."""
        self.request = self._longest_request()
        """The longest message that it may send."""
        self.opening = HEADER_BYTES + SHORT_MESSAGE + (MAX_MESSAGE if self._material_is_long() else 0)
        """The longest message that may open it."""

    @property
    def held(self) -> int:
        """All that a session takes from its beginning."""
        return self.layer + self.reserve

    # What is there all the time

    def _plan_sealed(self) -> _Layout:
        assert self.parameters is not None
        if self.parameters.batch_size * (self.terms.in_features + 1) > _PLAN_STEPS:
            raise WireError(
                f"handshake: sealed batches of {self.parameters.batch_size} x {self.terms.in_features} have too many layouts"
            )
        found = self.parameters._native.estimate_sealed(self.terms.in_features, self.terms.out_features, 1e-9)
        if found is None:
            raise WireError("handshake: no sealed weights fit these parameters")
        return _Layout(self.terms.batch_size, found["rows"], found["width"], found["inputs"], found["products"])

    def _state_bytes(self) -> int:
        if self._seals:
            layout = self._sealed
            return 2 * layout.inputs * layout.products * self._polynomial
        return _FLOAT32 * (1 + _MOMENTS[self.terms.server_optimizer]) * self._weights

    def _layer_bytes(self, material_bytes: int) -> int:
        if self._seals:
            layout = self._sealed
            return 2 * _SEALED_COPIES * layout.inputs * layout.products * self._residues
        # The weights with their gradient; dJ/dW as it comes and as it is stored.
        layers = _FLOAT32 * (3 + _MOMENTS[self.terms.server_optimizer]) * self._weights
        if self.terms.members:
            layers += 2 * _FLOAT32 * self._weights  # an offer, and the average
        if self.parameters is None:
            return layers
        # In float64, the new ones beside the old ones.
        held = layers + 4 * _FLOAT64 * self._weights
        if self.parameters.packing == "slots":
            bits = sum(self.parameters.modulus_bits) * self.parameters.ring_degree
            held += 3 * material_bytes * 64 * self.parameters.ring_degree * len(self.parameters._native.primes) // bits
            held += 2 * self._diagonals()
        return held

    def _diagonals(self) -> int:
        """The encoded weights of slots."""
        plan = self._estimate(1)["layout"]
        return int(plan["products"] * plan["giants"] * plan["inputs"] * plan["babies"] * self._residues)

    def _material_is_long(self) -> bool:
        return self.parameters is not None and (self._seals or self.parameters.packing == "slots")

    def _reserve(self) -> int:
        """Room for a training step, twice: the last request and its reply are kept beside the next one."""
        rows = [self.terms.batch_size]
        usual = min(EVALUATION_ROWS, self.terms.max_rows, SHORT_MESSAGE * 32 // (_FLOAT32 * self._values))
        if usual:
            rows.append(usual)
        needs = [self._need_of_rows(count) for count in rows]
        return max(need.working + 2 * need.kept + need.follows for need in needs) + sum(
            need.encodings for need in needs
        )

    # What messages take

    def need(self, kind: MessageType, body: memoryview, length: int) -> Need:
        """What a request of that many bytes takes; `body` is its beginning.

        Raises
        ------
        WireError
            A request that is longer than the terms can need, or whose reply would be longer than any message.
        """
        if length > self.request:
            raise WireError(f"a message of {length} bytes; under these terms none is larger than {self.request}")
        if kind is MessageType.REFRESH and self._seals:
            layout = self._sealed
            return Need(2 * length + 2 * layout.inputs * layout.products * self._residues, length)
        if kind in (MessageType.FORWARD, MessageType.EVALUATE) and self.parameters is not None:
            return self._need_of_layout(kind, self._layout_of(body), length)
        if kind is MessageType.BACKWARD and self._seals:
            return self._need_of_layout(kind, self._layout_of(body), length)
        if kind is MessageType.EVALUATE:
            return self._need_of_values(length, length // (_FLOAT32 * self.terms.in_features) + 1)
        if kind in _TRAINING:
            return self._need_of_values(length, self.terms.batch_size)
        return Need(length, length)

    def _need_of_rows(self, rows: int) -> Need:
        if self.parameters is None:
            return self._need_of_values(_MATRIX_HEAD + _FLOAT32 * rows * self.terms.in_features, rows)
        layout = self._layout_for(rows)
        length = layout.groups * layout.inputs * self._polynomial
        forward = self._need_of_layout(MessageType.FORWARD, layout, length)
        if not self._seals:
            return forward
        update = (layout.groups + layout.inputs) * layout.products * self._polynomial
        return max(forward, self._need_of_layout(MessageType.BACKWARD, layout, update), key=lambda need: need.working)

    def _need_of_values(self, length: int, rows: int) -> Need:
        """Activations or gradients in the clear, of so many rows, and what is computed from them."""
        layers = 4 if self.terms.hidden else 2  # values, and their gradients, of each layer that the rows go through
        reply = HEADER_BYTES + 2 * _MATRIX_HEAD + _FLOAT32 * rows * self._values
        return Need(3 * length + layers * reply, 2 * length + reply)

    def _need_of_layout(self, kind: MessageType, layout: _Layout, length: int) -> Need:
        """Ciphertexts in a client's layout."""
        assert self.parameters is not None
        reply = self._reply_bytes(kind, layout)
        _check_reply(reply, "the reply to", layout)
        expanded = 4 * layout.groups * (layout.inputs + self._seals * layout.products) * self._residues
        encodings = follows = 0
        if self.parameters.packing == "blocks" and not self._seals:
            whole = layout.inputs * layout.products * self._residues
            residues = 16 * len(self.parameters._native.primes) * _RESIDUE * self._weights
            encodings = min(whole, _KEPT_ENCODINGS) + min(residues, whole)
        if self._gradients and kind is MessageType.FORWARD:
            gradient = _CORE_FRAME + layout.inputs * layout.products * 2 * self._polynomial
            _check_reply(gradient, "the encrypted weight gradient of", layout)
            follows = 2 * gradient + 6 * _FLOAT64 * self._weights
            follows += (2 * layout.inputs + layout.products) * layout.groups * self._residues
        working = 2 * length + 3 * reply + expanded
        return Need(working, length + reply, encodings, follows, (layout.group, layout.width))

    def _reply_bytes(self, kind: MessageType, layout: _Layout) -> int:
        """Of each product one or, sealed, two whole polynomials and the coefficients that hold values."""
        degree = 3 if self._seals else 2
        products = layout.inputs if self._seals and kind is MessageType.BACKWARD else layout.products
        return _CORE_FRAME + layout.groups * products * degree * self._polynomial

    def _longest_request(self) -> int:
        rows = self.terms.max_rows
        if self.parameters is None:
            # Activations and labels; dJ/dy and, from `splitways`, dJ/dW come in one message too.
            return min(MAX_MESSAGE, HEADER_BYTES + 2 * _MATRIX_HEAD + _FLOAT32 * rows * (self._values + 1))
        if self._seals:
            layout = self._layout_for(rows)
            most = max(layout.groups * layout.inputs, (layout.groups + layout.inputs) * layout.products)
            return min(MAX_MESSAGE, SHORT_MESSAGE + most * self._polynomial)
        # The layout is the client's choice: at the most one ciphertext for every value.
        most = SHORT_MESSAGE + rows * self.terms.in_features * self._polynomial
        return min(MAX_MESSAGE, max(most, SHORT_MESSAGE + 2 * _FLOAT32 * self._weights))

    # Layouts

    def _layout_of(self, body: memoryview) -> _Layout:
        """The layout that a request says it has; the core checks it against the ciphertexts that come."""
        if len(body) < _CORE_HEADER + _SHAPE.size:
            raise WireError("an encrypted request that ends before its layout")
        samples, group, width = _SHAPE.unpack_from(body, _CORE_HEADER)
        assert self.parameters is not None
        if self._seals or self.parameters.packing == "slots":
            layout = self._layout_for(max(1, samples))
            return replace(layout, samples=max(1, samples))
        if not 1 <= group <= samples or not 1 <= width <= self.terms.in_features:
            raise WireError("an encrypted request with an impossible layout")
        if samples > self.terms.max_rows or group * width > self.parameters.ring_degree:
            raise WireError("an encrypted request with an impossible layout")
        return self._block_layout(samples, group, width)

    def _block_layout(self, samples: int, group: int, width: int) -> _Layout:
        assert self.parameters is not None
        outputs = self.terms.out_features
        per_product = max(1, min(outputs, self.parameters.ring_degree // (group * width)))
        inputs, products = -(-self.terms.in_features // width), -(-outputs // per_product)
        return _Layout(samples, group, width, inputs, products)

    def _layout_for(self, rows: int) -> _Layout:
        """The layout that both sides plan for so many rows."""
        assert self.parameters is not None
        if self._seals:
            return replace(self._sealed, samples=rows)
        fixed = self.parameters.packing == "slots"
        key = 1 if fixed else rows
        if key not in self._planned:
            plan = self._estimate(key)["layout"]
            self._planned[key] = _Layout(key, plan["rows"], plan["width"], plan["inputs"], plan["products"])
        found = self._planned[key]
        return replace(found, samples=rows)

    def _estimate(self, rows: int) -> dict[str, Any]:
        assert self.parameters is not None
        # Layouts do not depend on the norm of the weights; one that fits is never refused.
        return self.parameters.estimate(self.terms.in_features, self.terms.out_features, rows, weight_norm=1e-9)


_TRAINING = (MessageType.FORWARD, MessageType.BACKWARD, MessageType.LEARN, MessageType.OPENED_GRADIENT)


def _check_reply(size: int, what: str, layout: _Layout) -> None:
    if size > MAX_MESSAGE:
        raise WireError(
            f"{what} {layout.samples} samples in groups of {layout.group} would be {size} bytes, no message has more than "
            f"{MAX_MESSAGE}; send fewer at once"
        )


def _read_parameters(terms: Terms, material: memoryview) -> Parameters:
    """The parameters with which public material begins."""
    begin = _CORE_HEADER + _PARAMETERS.size
    if len(material) < begin:
        raise WireError("handshake: the public material ends before its parameters")
    (size,) = _PARAMETERS.unpack_from(material, _CORE_HEADER)
    if len(material) < begin + size:
        raise WireError("handshake: the public material ends before its parameters")
    parameters = Parameters.from_bytes(bytes(material[begin : begin + size]))
    if parameters.hash != terms.parameter_hash:
        raise KeyMismatchError(
            f"handshake: parameter_hash is {terms.parameter_hash!r}, that of the public material {parameters.hash!r}"
        )
    if PROTOCOLS[terms.protocol].seals_weights and (parameters.packing != "blocks" or parameters.updates == 0):
        raise WireError("handshake: sealed weights under parameters that are not for them")
    return parameters
