"""Encryption without the secret key, and sums of what several parties have encrypted."""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesplit_native import _core
from hesplit_native.errors import KeyMismatchError, ParameterError, RangeError, WireError
from hesplit_native.layer.arrays import Array, numpy_of
from hesplit_native.layer.parameters import Parameters

#: Encryptions that one sum may have.
MOST_SUMMANDS = 256

# Decryption holds sums of coefficients of up to 2^65, and finds them to within half of a last bit that is below 2^6; as
# doubles, three roundings of 2^-53 each, to within 3 * 2^12.
_LARGEST_SUM_BITS = 65
_DECRYPTION_ERROR = 2.0**14

# An encrypted array: magic, version, number of dimensions, summands; the dimensions; a digest of all that; then its
# polynomials, a message with a checksum of its own.
_MAGIC, _VERSION = b"HESA", 1
_HEAD = struct.Struct("<4sBBI")
_DIGEST_BYTES = 8
_MOST_DIMENSIONS = 32
_MOST_POLYNOMIALS = 65536


@dataclass(frozen=True)
class _Grid:
    """How numbers become coefficients: multiples of `spacing`, further apart than the noise of a whole sum can move one.

    So decryption rounds the noise off, and what it returns follows from what was encrypted alone.
    """

    ring: _core.TensorRing
    bound: float  # the largest |number|
    spacing_bits: int

    @classmethod
    @functools.lru_cache(maxsize=8)
    def of(cls, parameters: Parameters) -> _Grid:
        ring = _core.TensorRing(parameters._native)
        largest_noise = MOST_SUMMANDS * ring.public_noise_bound + _DECRYPTION_ERROR
        return cls(ring, parameters.activation_bound, math.ceil(math.log2(2 * largest_noise)))

    @property
    def bits(self) -> int:
        """Numbers are rounded to multiples of ``bound / 2**bits``."""
        return _LARGEST_SUM_BITS - int(math.log2(MOST_SUMMANDS)) - self.spacing_bits

    def polynomials(self, numbers: int) -> int:
        """How many hold so many numbers."""
        return -(-numbers // self.ring.degree)

    def encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Numbers as coefficients, [polynomials, N], zeros behind them."""
        out = np.zeros(self.polynomials(values.size) * self.ring.degree, np.int64)
        out[: values.size] = np.rint(np.ldexp(values.ravel() / self.bound, self.bits))
        return (out << self.spacing_bits).reshape(-1, self.ring.degree)

    def decode(self, coefficients: npt.NDArray[np.float64], summands: int) -> npt.NDArray[np.float64]:
        """Numbers from the coefficients of a sum; RangeError for what no sum of so many encryptions is."""
        spaced = np.ldexp(coefficients, -self.spacing_bits)
        multiples = np.rint(spaced)
        noise = np.ldexp(summands * self.ring.public_noise_bound + _DECRYPTION_ERROR, -self.spacing_bits)
        if np.abs(spaced - multiples).max() > noise or np.abs(multiples).max() > summands * 2.0**self.bits:
            raise RangeError(
                f"this is not a sum of {summands} encryptions of numbers within +-{self.bound:g}: a sender broke the rules"
            )
        return np.ldexp(multiples, -self.bits) * self.bound


class PublicKey:
    """Encrypts what only the holder of the secret key can decrypt. Made by `SecretKey.public_key`; holds no secret.

    Safe to use from several threads. Its parameters need packing ``"blocks"``, a modulus of at least 80 bits (so a ring degree of
    4096 or more) and 128 bits of security; most sets for private weights are such, and so is
    ``Parameters(ring_degree=4096, modulus_bits=(45, 45), scale=2.0**30, activation_bound=bound)``.
    """

    __slots__ = ("_grid", "_native", "_parameters")

    def __init__(self, native: _core.PublicKey) -> None:
        self._native = native
        self._parameters = Parameters._wrap(native.parameters)
        if self._parameters.security == "paper":
            raise ParameterError('public keys need 128 bits of security: security="standard" or "quantum"')
        self._grid = _Grid.of(self._parameters)

    @property
    def parameters(self) -> Parameters:
        """Those of the secret key."""
        return self._parameters

    @property
    def id(self) -> str:
        """That of the secret key, as 32 hexadecimal digits."""
        return self._native.id.hex()

    def encrypt(self, values: Array) -> EncryptedArray:
        """Encrypt numbers under fresh randomness of the operating system.

        Parameters
        ----------
        values
            Array or CPU tensor of any shape that is not empty, float32 or float64, within ``+-parameters.activation_bound``.

        Raises
        ------
        RangeError
            NaN or infinity; numbers beyond that bound.
        ParameterError
            Another dtype, no numbers, or more than 65,536 polynomials hold.
        """
        array = numpy_of(values)
        if array.dtype not in (np.float32, np.float64):
            raise ParameterError(f"expected values of dtype float32 or float64, got {array.dtype}")
        most = _MOST_POLYNOMIALS * self._grid.ring.degree
        if not 1 <= array.size <= most or array.ndim > _MOST_DIMENSIONS:
            raise ParameterError(
                f"expected 1 to {most} numbers of up to {_MOST_DIMENSIONS} dimensions, got shape {list(array.shape)}"
            )
        largest = float(np.abs(array).max())
        if not math.isfinite(largest):
            raise RangeError("the values contain NaN or infinity")
        if largest > self._grid.bound:
            raise RangeError(
                f"|value| must be at most the agreed activation_bound of {self._grid.bound:g}; scale the values down, or agree on "
                "parameters with a larger one"
            )
        coefficients = self._grid.encode(array.astype(np.float64, copy=False))
        message = _core.encrypt_polynomials(self._grid.ring, self._native, coefficients)
        return EncryptedArray(self._parameters, array.shape, 1, message)

    def to_bytes(self) -> bytes:
        """For those who shall encrypt: 46 kB at a ring degree of 4096 and a modulus of 90 bits."""
        return self._native.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> PublicKey:
        """What `to_bytes` wrote. Who encrypts under it trusts where it is from: compare `id` and `parameters` with what was agreed.

        Raises
        ------
        WireError
            Anything else, or damaged bytes.
        KeyMismatchError
            Bytes whose head names other parameters than they hold.
        ParameterError
            A key of parameters that are below 128 bits, or not for this.
        """
        return cls(_core.PublicKey.from_bytes(data))

    def __repr__(self) -> str:
        return f"PublicKey(id={self.id}, parameters={self.parameters!r})"


@dataclass(frozen=True, repr=False, eq=False)
class EncryptedArray:
    """Numbers that `PublicKey.encrypt` encrypted, or a sum of such arrays: `SecretKey.decrypt` finds them.

    Attributes
    ----------
    parameters
        Those that it was encrypted with.
    shape
        Of the numbers; it is not encrypted.
    summands
        How many encryptions were added up, 1 for one, `MOST_SUMMANDS` = 256 at most.
    """

    parameters: Parameters
    shape: tuple[int, ...]
    summands: int
    _message: bytes

    @functools.cached_property
    def _polynomials(self) -> _core.EncryptedPolynomials:
        # Read when they are first computed with. Threads that ask at the same time may each read them; any result will do.
        return _core.EncryptedPolynomials(_Grid.of(self.parameters).ring, self._message)

    @property
    def key_id(self) -> str:
        """The id of the key that decrypts it, as 32 hexadecimal digits."""
        return self._polynomials.key.hex()

    @property
    def error_bound(self) -> float:
        """Bound on ``|decrypted - exact|`` of every number: half a unit of the rounding for each summand.

        A unit is ``activation_bound`` times 2**-30 at ring degree 4096, and twice that at 32768: 2**-27.
        """
        grid = _Grid.of(self.parameters)
        # Besides half a unit of every summand, roundings of float64: of numbers below 2^30 units, and of their sum.
        return self.summands * (0.5 + 2.0**-20) * math.ldexp(grid.bound, -grid.bits)

    @classmethod
    def sum(cls, terms: Sequence[EncryptedArray]) -> EncryptedArray:
        """The sum of arrays under one key, for which nobody needs a key.

        Raises
        ------
        KeyMismatchError
            Arrays under different keys.
        ParameterError
            None at all, arrays of different shapes, or more than `MOST_SUMMANDS` encryptions: sums of more might wrap around.
        """
        if not terms:
            raise ParameterError("expected encrypted arrays to add up")
        first = terms[0]
        for term in terms:
            if term.key_id != first.key_id or term.parameters != first.parameters:
                raise KeyMismatchError("arrays that were encrypted under different keys cannot be added")
            if term.shape != first.shape:
                raise ParameterError(f"expected arrays of one shape, got {list(first.shape)} and {list(term.shape)}")
        summands = sum(term.summands for term in terms)
        if summands > MOST_SUMMANDS:
            raise ParameterError(
                f"a sum of {summands} encryptions; {MOST_SUMMANDS} are the most that cannot wrap around. Add up and decrypt parts"
            )
        message = _core.sum_polynomials([term._polynomials for term in terms])
        return cls(first.parameters, first.shape, summands, message)

    def to_bytes(self) -> bytes:
        """For whoever adds or decrypts: 92 kB for up to 4,096 numbers at a modulus of 90 bits, as much for each 4,096 more."""
        head = _HEAD.pack(_MAGIC, _VERSION, len(self.shape), self.summands)
        head += struct.pack(f"<{len(self.shape)}Q", *self.shape)
        return head + _digest(head) + self._message

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, parameters: Parameters) -> EncryptedArray:
        """What `to_bytes` wrote, with the parameters that were agreed on.

        A number of summands is what the sender says it is; one who lies can make sums wrong, as one who encrypts wrong numbers can.

        Raises
        ------
        WireError
            Anything else, or damaged bytes.
        KeyMismatchError
            An array of other parameters.
        ParameterError
            Parameters that are not for encrypted arrays.
        """
        data = bytes(data)
        if len(data) < _HEAD.size or not data.startswith(_MAGIC):
            raise WireError("these bytes are not an encrypted array")
        _, version, dimensions, summands = _HEAD.unpack_from(data)
        end = _HEAD.size + 8 * dimensions
        if (
            version != _VERSION
            or dimensions > _MOST_DIMENSIONS
            or data[end : end + _DIGEST_BYTES] != _digest(data[:end])
        ):
            raise WireError("an encrypted array that is truncated, damaged or of another version")
        if not 1 <= summands <= MOST_SUMMANDS:
            raise WireError(f"an encrypted array of {summands} summands; there are 1 to {MOST_SUMMANDS}")
        shape = struct.unpack_from(f"<{dimensions}Q", data, _HEAD.size)
        array = cls(parameters, shape, summands, data[end + _DIGEST_BYTES :])
        if array._polynomials.count != _Grid.of(parameters).polynomials(math.prod(shape)):
            raise WireError(f"an encrypted array of shape {list(shape)} with too few or too many polynomials")
        return array

    def _decrypt(self, key: _core.SecretKey) -> npt.NDArray[np.float64]:
        """What `SecretKey.decrypt` returns."""
        coefficients = self._polynomials.decrypt(key)
        numbers = _Grid.of(self.parameters).decode(coefficients, self.summands)
        return numbers.ravel()[: math.prod(self.shape)].reshape(self.shape)

    def __repr__(self) -> str:
        return f"EncryptedArray(shape={list(self.shape)}, summands={self.summands}, key_id={self.key_id})"


def _digest(head: bytes) -> bytes:
    return hashlib.blake2b(head, digest_size=_DIGEST_BYTES).digest()
