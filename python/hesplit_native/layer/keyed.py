"""Served layers without hints: ``y = x W^T (+ b)`` for rows of any scale, with a relative error.

Client and server agree on nothing that depends on the data, and of W on one norm: the client divides every row of x by its own l2
norm, the server W by the agreed one, and y is multiplied by both. A bias is the weight of one more feature, which is 1 in every row.
Clients send keys of their own, for which the server keeps some memory; the weights are one for all of them. Either replies hide W,
under the client's public key and a flood (docs/security.md); or they are short, products being merged with evaluation keys
(docs/packing.md), and do not hide it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import Precision
from hesplit_native.errors import ParameterError, RangeError, WireError
from hesplit_native.layer.costs import ServingCost, serving_cost
from hesplit_native.layer.frozen import FrozenCost, checked_matrix, matrix_of
from hesplit_native.layer.keys import SecretKey
from hesplit_native.layer.linear import Buffer, LinearClient, LinearServer
from hesplit_native.layer.normalised import normalised_rows
from hesplit_native.layer.parameters import GIGABIT, Parameters

#: Rows of one request at most, where its messages are not too long before.
MAX_ROWS = 128
_MAX_BYTES = 1 << 24  # of a request and its reply, unless they are one row's

# As good as those of frozen layers (`hesplit_native.layer.frozen.error_bound`).
_ERROR_BOUNDS: dict[Precision, float] = {"float32": 2e-6, "bfloat16": 4e-4}
_NORM = 1 + 2.0**-20  # what rows of norm 1 may come to by rounding
_LEAST_PRIVATE_BITS = 20

# What the core keeps of weights that were made ready for a layout (cpp/linear/blocks/forward.cpp).
_LAYOUTS_KEPT = 4
_LAYOUT_BYTES_KEPT = 1 << 28

# A request of the core begins with a header, then says its rows, how many of them share a ciphertext, and the width of these.
_SHAPE_AT = 64
_SHAPE = struct.Struct("<III")


@dataclass(frozen=True)
class KeyedAgreement:
    """What the server of such a layer decides, and tells its clients.

    Parameters
    ----------
    features, outputs
        Of the matrix; a bias counts as one more feature.
    parameters
        For rows of x and of W of l2 norm at most 1.
    weight_norm
        What W is divided by: no row of it, with its bias, is longer.

    Raises
    ------
    ParameterError
        For parameters that are not for that, or below 128 bits.
    """

    features: int
    outputs: int
    parameters: Parameters
    weight_norm: float

    def __post_init__(self) -> None:
        p = self.parameters
        hides = p.packing == "blocks" and p.private_bits >= _LEAST_PRIVATE_BITS
        if not (hides or p.packing == "merged") or p.security == "paper":
            raise ParameterError(
                "layers without hints have parameters of 128 bits: on blocks with private_bits, or merged"
            )
        norms = (p.activation_norm, p.weight_norm) == (1, _NORM if hides else 0)
        if not norms or p.activation_bound < 1 or p.releases or p.updates:
            raise ParameterError(
                "the parameters of a layer without hints are for rows of l2 norm 1 and releases of nothing"
            )
        if not (math.isfinite(self.weight_norm) and self.weight_norm > 0):
            raise ParameterError(f"weight_norm must be positive and finite, not {self.weight_norm}")
        try:
            p.estimate(self.features, self.outputs, 1, weight_norm=_NORM)
        except (RangeError, TypeError) as error:  # or numbers for which the core has no type
            raise ParameterError(f"the parameters cannot hold {self.features} -> {self.outputs}: {error}") from error

    @property
    def private(self) -> bool:
        """Whether replies hide W."""
        return self.parameters.private_bits != 0

    @property
    def error_bound(self) -> float:
        """E: ``|decrypted - exact| <= E |x_i|`` in the l2 norm of a row, except with probability 2**-39 an output.

        With a bias the row is ``(x, 1)``.
        """
        return self.parameters.error_bound * self.weight_norm

    @property
    def noise(self) -> float:
        """The standard deviation of what hides W in an output, for a row of norm 1 on its own: part of the error.

        Rows of larger batches have less or as much, because fewer outputs share a product.
        """
        found: float = self.parameters.estimate(self.features, self.outputs, 1, weight_norm=_NORM)["logit_noise"]
        return found * self.weight_norm

    @property
    def rows_at_once(self) -> int:
        """Rows of one request at most."""
        return _rows_at_once(self.parameters, self.features, self.outputs)

    @property
    def material_bytes(self) -> int:
        """Length of a client's public material."""
        return self._material.request_bytes

    @property
    def client_bytes(self) -> int:
        """Memory that the server keeps for one client's key."""
        return self._material.held_bytes

    @property
    def _material(self) -> ServingCost:
        return serving_cost(self.parameters, self.features, self.outputs, 1, "public_material")

    def cost(self, rows: int) -> FrozenCost:
        """What a request of so many rows takes at the server.

        With private weights those in its layout count, though they may be there; short replies have one layout, which is resident.
        """
        cost = _cost(self.parameters, self.features, self.outputs, rows)
        layer = cost.layer_bytes if self.private else 0
        return FrozenCost(cost.request_bytes, cost.reply_bytes, cost.working_bytes + layer)


def keyed_parameters(
    features: int, outputs: int, precision: Precision = "float32", *, private: bool = True
) -> Parameters:
    """The parameters of a layer without hints; a bias counts as one more feature.

    They are laid out for single rows: that is fastest for batches of any size, and the noise of larger ones is no larger.

    Raises
    ------
    ParameterError
        When no 128-bit set holds them.
    """
    if precision not in _ERROR_BOUNDS:
        raise ParameterError(f"precision must be one of {', '.join(_ERROR_BOUNDS)}, got {precision!r}")
    return _parameters(features, outputs, precision, private)


@lru_cache(maxsize=256)
def _parameters(features: int, outputs: int, precision: Precision, private: bool) -> Parameters:
    return Parameters.recommend(
        in_features=features,
        out_features=outputs,
        batch_size=1,
        activation_bound=1.0,
        activation_norm=1.0,
        weight_norm=_NORM,
        error_bound=_ERROR_BOUNDS[precision],
        private_weights=private,
        packing="blocks" if private else "merged",
        link=None if private else GIGABIT,  # some bytes more take many rotations less
    )


@lru_cache(maxsize=4096)
def _cost(parameters: Parameters, features: int, outputs: int, rows: int) -> ServingCost:
    return serving_cost(parameters, features, outputs, rows, "forward")


@lru_cache(maxsize=256)
def _rows_at_once(parameters: Parameters, features: int, outputs: int) -> int:
    rows = MAX_ROWS
    while rows > 1:
        cost = _cost(parameters, features, outputs, rows)
        if cost.request_bytes + cost.reply_bytes <= _MAX_BYTES:
            break
        rows //= 2
    return rows


@lru_cache(maxsize=4096)
def _layout(parameters: Parameters, features: int, outputs: int, rows: int) -> tuple[int, int]:
    """Rows of a ciphertext, and how many features of each are in it."""
    layout = parameters.estimate(features, outputs, rows, weight_norm=_NORM)["layout"]
    return layout["rows"], layout["width"]


class KeyedServer:
    """The holder of one matrix. Safe to use from several threads.

    Parameters
    ----------
    weight
        [out_features, in_features], float32 or float64.
    bias
        [out_features] or None.
    private
        Whether replies hide W; else they are short.
    precision
        ``"float32"`` or ``"bfloat16"``: what replies are as good as.
    weight_norm
        What is said of W: no row of it, with its bias, has a larger l2 norm. None: the largest one, rounded up to a power of two.

    Raises
    ------
    ParameterError
        For another shape or dtype, and where no parameters hold the layer.
    RangeError
        For NaN or infinity, and for rows that are longer than `weight_norm`, with what would do.
    """

    def __init__(
        self,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any] | None = None,
        *,
        private: bool = True,
        precision: Precision = "float32",
        weight_norm: float | None = None,
    ) -> None:
        matrix = matrix_of(weight, bias)
        self.out_features, self.in_features = weight.shape
        self.has_bias, self.precision = bias is not None, precision
        outputs, features = matrix.shape
        parameters = keyed_parameters(features, outputs, precision, private=private)
        agreed = _agreed_norm(float(normalised_rows(matrix, "weight")[1].max()), weight_norm)
        self.agreement = KeyedAgreement(features, outputs, parameters, agreed)
        # Nobody has this key: all that is asked for is asked for by `for_client`.
        nobody = LinearClient(SecretKey.generate(parameters), features, outputs)
        self._server = LinearServer(nobody.public_material(), matrix / agreed, private=private, max_batch=MAX_ROWS)
        self.resident_bytes = 8 * matrix.size + _kept_bytes(self.agreement)
        """Memory that the matrix takes at most, with the layouts of it that are kept."""

    def for_client(self, material: Buffer) -> KeyedProducts:
        """What answers one client, by its `KeyedClient.material`.

        Raises
        ------
        WireError, KeyMismatchError
            For anything else.
        """
        return KeyedProducts(self.agreement, self._server.for_client(bytes(material)))


class KeyedProducts:
    """A `KeyedServer` for the key of one client. Made by `KeyedServer.for_client`; safe to use from several threads."""

    def __init__(self, agreement: KeyedAgreement, server: LinearServer) -> None:
        self._agreement, self._server = agreement, server

    def rows_of(self, beginning: Buffer) -> int:
        """The number of rows that a request announces, from its first bytes.

        Raises
        ------
        WireError
            When there are fewer than 76 bytes, or no such request is possible.
        """
        head = memoryview(beginning).cast("B")
        if len(head) < _SHAPE_AT + _SHAPE.size:
            raise WireError(f"a request of {len(head)} bytes is shorter than its head")
        rows, together, width = _SHAPE.unpack_from(head, _SHAPE_AT)
        agreement = self._agreement
        if not 1 <= rows <= agreement.rows_at_once:
            raise WireError(f"a request holds 1 to {agreement.rows_at_once} rows for this layer, this one {rows}")
        if (together, width) != _layout(agreement.parameters, agreement.features, agreement.outputs, rows):
            raise WireError(
                f"a request of {rows} rows in another layout than these parameters have; install the same hesplit_native at both ends"
            )
        return int(rows)

    def cost(self, rows: int) -> FrozenCost:
        """What a request of so many rows takes."""
        return self._agreement.cost(rows)

    def multiply(self, request: Buffer) -> bytes:
        """The reply to `KeyedClient.encrypt`.

        Raises
        ------
        WireError
            Damaged bytes.
        KeyMismatchError
            A request under another key, or of other parameters.
        """
        return self._server.forward(request)


class KeyedClient:
    """Asks the `KeyedServer` of one layer, under a key of its own. Safe to use from several threads.

    Parameters
    ----------
    agreement
        The server's.
    bias
        Whether the last of its features is the bias's.
    """

    def __init__(self, agreement: KeyedAgreement, *, bias: bool) -> None:
        self._agreement, self._bias = agreement, bias
        # Rows that were scaled are within the ranges: there is nothing to clip.
        self._client = LinearClient(
            SecretKey.generate(agreement.parameters), agreement.features, agreement.outputs, on_overflow="raise"
        )

    def material(self) -> bytes:
        """What the server needs to answer this key; holds no secret."""
        return self._client.public_material()

    def encrypt(self, x: npt.NDArray[Any]) -> tuple[bytes, npt.NDArray[np.float64]]:
        """Encrypt rows x [n, in_features], n up to `KeyedAgreement.rows_at_once`: the request, and the norms of its rows.

        Raises
        ------
        RangeError
            NaN or infinity.
        ParameterError
            Another shape or dtype.
        KeyMismatchError
            After `destroy`.
        """
        x = checked_matrix(x, "x")
        inside, norms = normalised_rows(np.column_stack([x, np.ones(len(x), x.dtype)]) if self._bias else x, "x")
        return self._client.encrypt(inside), norms

    def decrypt(self, reply: Buffer, norms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The products [n, out_features].

        Raises
        ------
        WireError
            Damaged bytes.
        KeyMismatchError
            A reply to another request, or under another key.
        """
        return self._client.decrypt(reply) * (norms * self._agreement.weight_norm)[:, None]

    def destroy(self) -> None:
        """Zero the key; this client cannot be used again."""
        self._client.destroy()


def _kept_bytes(agreement: KeyedAgreement) -> int:
    """What layouts of a matrix take that are kept, at most; with short replies there is one."""
    layouts = [
        _cost(agreement.parameters, agreement.features, agreement.outputs, rows).layer_bytes
        for rows in range(1, agreement.rows_at_once + 1)
    ]
    return min(_LAYOUTS_KEPT * max(layouts), max(_LAYOUT_BYTES_KEPT, *layouts)) if agreement.private else max(layouts)


def _agreed_norm(largest: float, stated: float | None) -> float:
    """What W is divided by, where the largest of its rows has that norm."""
    if stated is None:
        # By what rows of norm 1 come to in float32 a power of two shall not become the next one.
        return math.ldexp(1.0, math.ceil(math.log2(largest) - 5e-7)) if largest > 0 else 1.0
    if not (math.isfinite(stated) and stated > 0):
        raise ParameterError(f"weight_norm must be positive and finite, not {stated}")
    if largest > stated * (1 + 3e-7):
        raise RangeError(
            f"a row of these weights, with its bias, has an l2 norm of {largest:.9g}, and what is agreed for it is {stated:.9g}; "
            "agree on that or more (--weight-norm)"
        )
    return float(stated)
