"""Layers whose weights do not change: ``y = x W^T (+ b)`` at the price of the product in the clear.

Every request is encrypted under a public matrix that all requests have in common and under secrets of its own, which are drawn for it
and never used again. What of a reply only depends on W is the *hint*, which a client fetches once; the server's work for a request is
then W times the residues that came, as many multiplications as the layer itself has. Nothing that the client decrypts is released,
so no noise is added for that and no range is agreed: each row of x is scaled by its own l2 norm, each row of W by its own.

A reply and its hint say as much about W as any reply without private weights does (docs/security.md): a client who asks often
enough, or reads the hint, knows W.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native import _core
from hesplit_native._core import FrozenSecret
from hesplit_native.choices import Precision
from hesplit_native.errors import ParameterError, WireError
from hesplit_native.layer.linear import Buffer

__all__ = ["MAX_ROWS", "FrozenClient", "FrozenCost", "FrozenSecret", "FrozenServer", "error_bound"]

#: Rows of one request at most.
MAX_ROWS: int = _core.MAX_FROZEN_ROWS

_PRECISIONS = {"float32": _core.Precision.float32, "bfloat16": _core.Precision.bfloat16}
_ROWS = struct.Struct("<I")
_ROWS_AT = 64  # behind the core's header (cpp/wire/format.h)


@dataclass(frozen=True)
class FrozenCost:
    """Bytes that one request takes: its own, those of its reply, and beyond both while one thread works on it."""

    request_bytes: int
    reply_bytes: int
    working_bytes: int


def error_bound(in_features: int, precision: Precision = "float32") -> float:
    """E: ``|decrypted - exact| <= E |x_i| |W_j|`` in l2 norms of rows, except with probability 2**-39 an output.

    With a bias the rows are ``(x, 1)`` and ``(W, b)``, and in_features counts one more.
    """
    return _agreement(in_features, precision, "").error


class FrozenServer:
    """The holder of one matrix. Safe to use from several threads; keeps nothing of its clients.

    Parameters
    ----------
    weight
        [out_features, in_features], float32 or float64.
    bias
        [out_features] or None: the weight of one more feature, which is 1 in every row.
    precision
        ``"float32"`` or ``"bfloat16"``: see `error_bound`.
    epoch
        Any text. Another one changes the common matrix, and with it all hints: what an attacker computed about the old matrix is
        worth nothing then.

    Raises
    ------
    ParameterError
        For another shape or dtype.
    RangeError
        For NaN or infinity.
    """

    def __init__(
        self,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any] | None = None,
        *,
        precision: Precision = "float32",
        epoch: str = "",
    ) -> None:
        matrix = matrix_of(weight, bias)
        self.out_features, self.in_features = weight.shape
        self.has_bias = bias is not None
        self.precision, self.epoch = precision, epoch
        self._agreement = _agreement(matrix.shape[1], precision, epoch)
        self._native = _core.FrozenServer(self._agreement, matrix)

    @property
    def hint_bytes(self) -> int:
        """Length of `hint`."""
        return self._agreement.hint_bytes(self.out_features)

    @property
    def hint_working_bytes(self) -> int:
        """Memory beyond that while it is computed."""
        return self._native.hint_working_bytes

    @property
    def resident_bytes(self) -> int:
        """Memory that the matrix takes."""
        return self._native.resident_bytes

    def cost(self, rows: int) -> FrozenCost:
        """What a request of so many rows takes."""
        return FrozenCost(
            self._agreement.request_bytes(rows),
            self._agreement.reply_bytes(self.out_features, rows),
            self._native.working_bytes(rows),
        )

    def rows_of(self, beginning: Buffer) -> int:
        """The number of rows that a request announces, from its first bytes.

        Raises
        ------
        WireError
            When there are fewer than 68 bytes, or no such request is possible.
        """
        head = memoryview(beginning).cast("B")
        if len(head) < _ROWS_AT + _ROWS.size:
            raise WireError(f"a request of {len(head)} bytes is shorter than its head")
        rows: int = _ROWS.unpack_from(head, _ROWS_AT)[0]
        if not 1 <= rows <= MAX_ROWS:
            raise WireError(f"a request holds 1 to {MAX_ROWS} rows, this one {rows}")
        return rows

    def multiply(self, request: Buffer) -> bytes:
        """The reply to `FrozenClient.encrypt`: ``x W^T (+ b)`` without what the hint says.

        Raises
        ------
        WireError
            Damaged bytes.
        KeyMismatchError
            A request for another number of features, precision or epoch.
        """
        return self._native.multiply(request)

    def hint(self) -> bytes:
        """The common matrix times W, and the norms of W's rows: what every client fetches once.

        As much work as 2048 rows.
        """
        return self._native.hint()


class FrozenClient:
    """Asks a `FrozenServer` for products. Safe to use from several threads.

    Parameters
    ----------
    in_features, out_features, bias, precision, epoch
        Those of the server's layer.

    Raises
    ------
    ParameterError
        For impossible shapes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        precision: Precision = "float32",
        epoch: str = "",
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        self._agreement = _agreement(in_features + (1 if bias else 0), precision, epoch)
        self._native = _core.FrozenClient(self._agreement, out_features, bias)

    @property
    def has_hint(self) -> bool:
        """Whether a hint was loaded."""
        return self._native.has_hint

    @property
    def hint_bytes(self) -> int:
        """Length of the server's hint."""
        return self._agreement.hint_bytes(self.out_features)

    def reply_bytes(self, rows: int) -> int:
        """Length of the server's reply to so many rows."""
        return self._agreement.reply_bytes(self.out_features, rows)

    @property
    def resident_bytes(self) -> int:
        """Memory that the hint and the common matrix take; the latter is one for all layers of as many features."""
        return self._native.resident_bytes + self._agreement.matrix_bytes

    def load_hint(self, hint: Buffer) -> None:
        """Take `FrozenServer.hint`; another one replaces it.

        Raises
        ------
        WireError
            Damaged bytes.
        KeyMismatchError
            A hint for another number of features or precision.
        """
        self._native.load_hint(hint)

    def encrypt(self, x: npt.NDArray[Any]) -> tuple[bytes, FrozenSecret]:
        """Encrypt rows x [n, in_features], n from 1 to MAX_ROWS, float32 or float64: the request, and what decrypts its reply.

        The same request serves other layers of as many features, bias, precision and epoch, whose clients decrypt their replies.

        Raises
        ------
        RangeError
            NaN or infinity.
        ParameterError
            Another shape or dtype.
        """
        return self._native.encrypt(checked_matrix(x, "x"))

    def decrypt(self, reply: Buffer, secret: FrozenSecret) -> npt.NDArray[np.float64]:
        """The products [n, out_features].

        Raises
        ------
        WireError
            Damaged bytes.
        KeyMismatchError
            A reply to another request, or of other weights than the hint: load the hint again.
        """
        return self._native.decrypt(reply, secret)


def matrix_of(weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None) -> npt.NDArray[np.float64]:
    """The weights of a layer, [out_features, in_features], with a bias as the last column: float64, C-contiguous.

    Raises
    ------
    ParameterError
        For another shape or dtype.
    """
    matrix = checked_matrix(weight, "weight").astype(np.float64, copy=False)
    if bias is None:
        return matrix
    if np.shape(bias) != matrix.shape[:1]:
        raise ParameterError(f"expected a bias of shape [{len(matrix)}], got {list(np.shape(bias))}")
    return np.column_stack([matrix, np.asarray(bias, np.float64)])


def _agreement(features: int, precision: Precision, epoch: str) -> _core.FrozenAgreement:
    if precision not in _PRECISIONS:
        raise ParameterError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    return _core.FrozenAgreement(features, _PRECISIONS[precision], epoch)


def checked_matrix(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """The same, C-contiguous; ParameterError unless it is a matrix of float32 or float64."""
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype not in (np.float32, np.float64):
        found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ParameterError(f"expected {name} as a matrix of float32 or float64, got {found}")
    return np.ascontiguousarray(values)
