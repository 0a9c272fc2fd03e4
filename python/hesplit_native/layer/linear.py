"""The encrypted linear layer: a client that encrypts and decrypts, a server that computes on ciphertexts."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from hesplit_native import _core
from hesplit_native.choices import Overflow
from hesplit_native.errors import ParameterError
from hesplit_native.layer.arrays import Array, numpy_of
from hesplit_native.layer.costs import MAX_MEMORY_BYTES, MAX_MULTIPLICATIONS, MAX_REPLY_BYTES, ServingCost
from hesplit_native.layer.keys import ReleaseLedger, SecretKey
from hesplit_native.layer.parameters import GIGABIT, PRIVATE_BITS, WEIGHT_NORM, Parameters, byte_nanoseconds

if TYPE_CHECKING:
    import torch

ArrayT = TypeVar("ArrayT", bound="Array")
Buffer = bytes | bytearray | memoryview
Float = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class LogitShare:
    """One of two shares of logits: their sum modulo ``2**bits``, as a signed number, is the logit times `scale`.

    ``values`` is uint64 [n, out_features].
    """

    values: npt.NDArray[np.uint64]
    bits: int
    scale: float


class LinearClient:
    """Encrypts activations and decrypts logits of one linear layer. Safe to use from several threads.

    Parameters
    ----------
    key
        The client's secret key; its parameters decide packing, precision and ranges.
    in_features, out_features
        Shape of the layer.
    on_overflow
        ``"clip"``: samples beyond the agreed ranges are clipped and counted in `clipped`; ``"raise"``: RangeError.
    fresh_keys
        Encrypt every request under a key of its own; `key` then only names the parameters. Packing ``"blocks"`` only.
    ledger
        Counts the releases under `key` in a file, for a key that outlives the process. In memory all clients of a key count together.
    weight_gradients
        The server shall compute them too (`LinearServer.weight_gradient`).
    link
        Bits per second to the server: requests are laid out for the least time on it (packing ``"blocks"``).
    """

    def __init__(
        self,
        key: SecretKey,
        in_features: int,
        out_features: int,
        *,
        on_overflow: Overflow = "clip",
        fresh_keys: bool = False,
        ledger: ReleaseLedger | None = None,
        weight_gradients: bool = False,
        link: float = GIGABIT,
    ) -> None:
        if on_overflow not in ("clip", "raise"):
            raise ParameterError(f'on_overflow must be "clip" or "raise", got {on_overflow!r}')
        if in_features < 1 or out_features < 1:
            raise ParameterError(f"in_features and out_features must be positive, got {in_features} and {out_features}")
        self.parameters: Parameters = key.parameters
        self.in_features = in_features
        self.out_features = out_features
        self.on_overflow = on_overflow
        self.clipped = 0
        """Samples that were beyond the agreed ranges so far."""
        self.flooding_deviation = 0.0
        """The largest standard deviation so far of the noise that flooded a released logit."""
        self._lock = threading.Lock()  # of the two numbers above
        self._ledger = ledger
        self._native = _core.LinearClient(
            key._native, in_features, out_features, fresh_keys, weight_gradients, byte_nanoseconds(link)
        )

    def public_material(self) -> bytes:
        """What a server needs: parameters, shape and, for slots, the rotation keys. Holds no secret."""
        return self._native.public_material()

    def encrypt(self, x: Array) -> bytes:
        """Encrypt activations.

        Parameters
        ----------
        x
            Array or CPU tensor [n, in_features], float32 or float64; C-contiguous ones are not copied.

        Raises
        ------
        RangeError
            NaN or infinity; values beyond the agreed ranges when ``on_overflow="raise"``.
        ParameterError
            Another shape or dtype.
        """
        request, clipped = self._native.encrypt(_matrix(x, "x", (None, self.in_features)), self.on_overflow == "clip")
        self._count(clipped)
        return request

    def decrypt(self, reply: Buffer, *, weight_gradient_follows: bool = False) -> npt.NDArray[np.float64]:
        """Decrypt the server's reply to logits [n, out_features], for local use only.

        Decrypted values carry the noise, and the noise carries the key: sending anything computed from them to the server is a
        release, for which there is `decrypt_for_release`. Each request is answered once; with ``weight_gradient_follows``
        `open_weight_gradient` may come after it.

        Raises
        ------
        WireError
            Damaged bytes.
        KeyMismatchError
            A reply for another key, other parameters or another request.
        """
        return self._native.decrypt(reply, False, weight_gradient_follows)[0]

    def decrypt_for_release(self, reply: Buffer, *, weight_gradient_follows: bool = False) -> npt.NDArray[np.float64]:
        """Decrypt to logits [n, out_features] flooded with noise, so that what is computed from them may be sent.

        Gaussian noise of ``sqrt(12 tau) 2^15 B``: tau is `Parameters.releases`, B bounds the l2 norm of the noise of all
        decrypted coefficients in the worst case, rounding of the reply included (Li et al. 2022; docs/security.md).

        Raises
        ------
        ParameterError
            When tau decryptions were released under this key already; errors otherwise as for `decrypt`.
        """
        if self._ledger is not None:
            self._ledger.take()
        y, deviation = self._native.decrypt(reply, True, weight_gradient_follows)
        with self._lock:
            self.flooding_deviation = max(self.flooding_deviation, deviation)
        return y

    def open_share(self, message: Buffer, *, weight_gradient_follows: bool = False) -> bytes:
        """The client's share of masked logits (`LinearServer.forward_share`), to be returned: a release like `decrypt_for_release`.

        Raises
        ------
        ParameterError
            When tau decryptions were released under this key already; errors otherwise as for `decrypt`.
        """
        if self._ledger is not None and self.parameters.releases:
            self._ledger.take()
        opened, deviation = self._native.open_share(message, weight_gradient_follows)
        with self._lock:
            self.flooding_deviation = max(self.flooding_deviation, deviation)
        return opened

    def decrypt_share(self, message: Buffer) -> LogitShare:
        """The same share for use on this side, as `LinearServer.own_share` is on the other; errors as for `decrypt`."""
        return LogitShare(*self._native.decrypt_share(message))

    def open_weight_gradient(self, message: Buffer, gradient: Array | None = None) -> bytes:
        """Decrypt the server's masked dJ/dW for it (*Split Without a Leak*): a release, flooded if the parameters allow releases.

        ``gradient`` is dJ/dy [n, out_features], as it was sent to the server; None with private weights, where it is the server's.
        """
        if gradient is None:
            g = np.zeros(0)
        else:
            g = _matrix(gradient, "gradient", (None, self.out_features)).astype(np.float64, copy=False)
        if self._ledger is not None and self.parameters.releases:
            self._ledger.take()
        return self._native.open_weight_gradient(message, g)

    def destroy(self) -> None:
        """Zero every key of this client, which cannot be used again: for a peer whose replies showed that it is not honest."""
        self._native.destroy()

    def clip_counted(self, x: ArrayT) -> ArrayT:
        """`clip`, with the rows counted in `clipped`; x itself when `encrypt` is to refuse it."""
        if self.on_overflow == "raise":
            return x
        inside, count = self.clip(x)
        self._count(count)
        return inside

    def _count(self, clipped: int) -> None:
        if clipped:
            with self._lock:
                self.clipped += clipped

    def clip(self, x: ArrayT) -> tuple[ArrayT, int]:
        """X within the agreed ranges, as `encrypt` clips it, and how many of its rows had to change."""
        return clip(x, self.parameters)


class LinearServer:
    """Evaluates ``y = x W^T + b`` on ciphertexts. Safe to use from several threads.

    Parameters
    ----------
    public_material
        The bytes of `LinearClient.public_material`.
    weight, bias
        Arrays or CPU tensors [out_features, in_features] and [out_features]; bias may be None.
    private
        Take no client whose parameters leave the weights to be read from replies. These must have 128 bits and at least so many
        `Parameters.private_bits`, True being `PRIVATE_BITS`; with any of them replies hide the weights whether or not this is set.
    max_batch
        Requests of more samples are refused.
    max_reply_bytes, max_multiplications, max_memory_bytes
        What would lead to a longer reply, to more work or to more memory is refused before anything is done for it
        (`hesplit_native.layer.costs`).

    Raises
    ------
    WireError
        When the bytes are not valid public material, or this layer under these parameters exceeds the limits.
    ParameterError
        When the weights are ``private`` and the client's parameters are not for that.
    RangeError
        When the parameters cannot hold these weights within their error bound; with private weights, when they outgrew the agreed
        norm, and which one would do.
    """

    def __init__(
        self,
        public_material: bytes,
        weight: Array,
        bias: Array | None = None,
        *,
        private: bool | int = False,
        max_batch: int = 65536,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        max_multiplications: float = MAX_MULTIPLICATIONS,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> None:
        self._native = _core.LinearServer(
            public_material, max_batch, max_reply_bytes, max_multiplications, max_memory_bytes
        )
        self.in_features: int = self._native.features
        self.out_features: int = self._native.outputs
        self.parameters = Parameters._wrap(self._native.parameters)
        if private:
            check_private(self.parameters, PRIVATE_BITS if private is True else private)
        self.set_weight(weight, bias)

    def set_weight(self, weight: Array, bias: Array | None = None) -> None:
        """Replace the weights; on an error the old ones stay. Forward passes that have begun finish with the old ones."""
        w = _matrix(weight, "weight", (self.out_features, self.in_features))
        b = np.zeros(0) if bias is None else _vector(bias, self.out_features)
        self._native.set_weight(w, b)

    def forward(self, request: Buffer) -> bytes:
        """The reply to a request of `LinearClient.encrypt`.

        Raises
        ------
        WireError
            Damaged bytes, a larger batch than ``max_batch``, or one that costs more than this server's limits.
        KeyMismatchError
            A request made under another key or other parameters.
        """
        return self._native.forward(request)

    def forward_training(self, request: Buffer, *, keep: bool) -> tuple[bytes, int, _core.KeptRequest | None]:
        """`forward`, the number of samples, and with `keep` the request's ciphertexts for `weight_gradient`."""
        return self._native.forward_training(request, keep)

    def forward_share(
        self, request: Buffer, *, keep: bool = False
    ) -> tuple[bytes, _core.Share, int, _core.KeptRequest | None]:
        """A reply whose logits are masked uniformly, and the masks; otherwise as `forward_training`.

        Neither side knows a logit: the client decrypts one share of it (`LinearClient.open_share`, `LinearClient.decrypt_share`),
        the other one is here (`join`, `own_share`).

        Raises
        ------
        ParameterError
            Where the weights are not private: the reply would give them away.
        """
        return self._native.forward_share(request, keep)

    def join(self, share: _core.Share, opened: Buffer) -> npt.NDArray[np.float64]:
        """The logits [n, out_features] from what the client opened of its share.

        Raises
        ------
        WireError, KeyMismatchError
            Damaged bytes, or those of another request.
        """
        return self._native.join(share, opened)

    def own_share(self, share: _core.Share) -> LogitShare:
        """The server's share, for use here."""
        return LogitShare(self._native.own_share(share), share.bits, share.scale)

    def for_client(self, public_material: bytes) -> LinearServer:
        """A server for another client of the same parameters, with the same weights in the same memory (packing ``"blocks"``).

        Raises
        ------
        WireError, KeyMismatchError
            When the bytes are not the public material of such a client.
        """
        made = object.__new__(LinearServer)
        made._native = self._native.for_client(public_material)
        made.in_features, made.out_features, made.parameters = self.in_features, self.out_features, self.parameters
        return made

    def cost(self, request: Buffer, *, keep: bool = False) -> ServingCost:
        """What `forward` would take for a request, with `keep` what it takes to keep it; errors as for `forward`."""
        return ServingCost(**self._native.cost(request, keep))

    def gradient_cost(self, kept: _core.KeptRequest) -> ServingCost:
        """What `weight_gradient` would take for a kept request, at most."""
        return ServingCost(**self._native.gradient_cost(kept))

    def weight_gradient(self, kept: _core.KeptRequest, gradient: Array) -> tuple[bytes, _core.MaskedGradient]:
        """Enc(dJ/dW) from a request's own ciphertexts and dJ/dy [n, out_features], uniformly masked for the client to open.

        Raises
        ------
        WireError
            When it would cost more than this server's limits, or the rotation keys are for smaller batches.
        RangeError
            NaN or infinity in the gradient. With private weights, where its size must not show: one whose absolute values sum to more
            than 1 over the batch for some output, which those of a mean cross entropy do not.
        """
        g = _matrix(gradient, "gradient", (None, self.out_features)).astype(np.float64, copy=False)
        return self._native.weight_gradient(kept, g)

    def unmask(self, masked: _core.MaskedGradient, opened: bytes) -> npt.NDArray[np.float64]:
        """dJ/dW [out_features, in_features] from what the client opened.

        Raises
        ------
        WireError, KeyMismatchError
            Damaged bytes, or those of another request.
        """
        return self._native.unmask(masked, opened)


class SealedClient:
    """The client of a layer whose weights the server holds only as ciphertexts. Updates are made one after the other.

    They go to the server every ``updates`` of them; until then the client adds what the server's copy lacks to what it decrypts.
    A request is answered by the weights that were sent last before it was made.

    Parameters
    ----------
    key
        The secret key; its parameters must allow ``updates``.
    in_features, out_features
        Shape of the layer.
    weight_norm
        The largest l2 norm of a row of the weight that fits the scale; larger ones are sealed at a coarser one.

    Raises
    ------
    RangeError
        When the parameters cannot keep their error bound with such weights.
    """

    def __init__(
        self, key: SecretKey, in_features: int, out_features: int, *, weight_norm: float = WEIGHT_NORM
    ) -> None:
        self.parameters = key.parameters
        self.in_features, self.out_features = in_features, out_features
        self.clipped = 0
        """Samples that were beyond the agreed ranges so far."""
        self._lock = threading.Lock()  # of that number
        self._native = _core.SealedLayerClient(key._native, in_features, out_features, weight_norm)

    @property
    def error(self) -> float:
        """The bound on ``decrypted - exact`` for logits, at the present scale."""
        return self._native.error

    @property
    def behind(self) -> int:
        """How many updates the server's copy lacks."""
        return self._native.behind

    def seal(self, weight: Array, bias: Array) -> bytes:
        """All weights [out_features, in_features] and biases [out_features], encrypted: to begin, and where others replace them."""
        return self._native.seal(*self._weights(weight, bias))

    def clip_counted(self, x: ArrayT) -> ArrayT:
        """X within the agreed ranges; rows that had to change are counted in `clipped`."""
        inside, count = clip(x, self.parameters)
        self._count(count)
        return inside

    def encrypt(self, x: Array) -> bytes:
        """Encrypt activations [n, in_features] within the agreed ranges; RangeError beyond them."""
        return self._native.encrypt(_float64(_matrix(x, "x", (None, self.in_features))))

    def decrypt(self, reply: Buffer) -> npt.NDArray[np.float64]:
        """Logits [n, out_features], for local use. WireError, KeyMismatchError or RangeError for anything not genuine."""
        return self._native.decrypt(reply)

    def update(self, gradient: Array, weight: Array, bias: Array) -> bytes:
        """Encrypt dJ/dy [n, out_features], after which the layer is this one; the weights themselves if they are due.

        Raises
        ------
        RangeError
            NaN or infinity, or weights that are due and do not fit the parameters.
        """
        g = _float64(_matrix(gradient, "gradient", (None, self.out_features)))
        return self._native.update(g, *self._weights(weight, bias))

    def decrypt_input_gradient(self, reply: Buffer) -> npt.NDArray[np.float64]:
        """dJ/da [n, in_features] by the weights before the update, for local use."""
        return self._native.decrypt_input_gradient(reply)

    def destroy(self) -> None:
        """Zero the key; this client cannot be used again."""
        self._native.destroy()

    def _count(self, clipped: int) -> None:
        with self._lock:
            self.clipped += clipped

    def _weights(self, weight: Array, bias: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return _float64(_matrix(weight, "weight", (self.out_features, self.in_features))), _vector(
            bias, self.out_features
        )


class SealedServer:
    """The server of a layer whose weights it holds only as ciphertexts. Safe to use from several threads.

    Parameters
    ----------
    sealed
        The bytes of `SealedClient.seal`, or of `saved`.
    max_batch
        Requests of more samples are refused.
    max_reply_bytes, max_multiplications, max_memory_bytes
        What would lead to a longer reply, to more work or to more memory is refused before anything is done for it
        (`hesplit_native.layer.costs`).

    Raises
    ------
    WireError
        For other bytes.
    """

    def __init__(
        self,
        sealed: bytes,
        *,
        max_batch: int = 65536,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        max_multiplications: float = MAX_MULTIPLICATIONS,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> None:
        self._native = _core.SealedLayerServer(
            sealed, max_batch, max_reply_bytes, max_multiplications, max_memory_bytes
        )
        self.in_features: int = self._native.features
        self.out_features: int = self._native.outputs
        self.parameters = Parameters._wrap(self._native.parameters)

    def cost(self, message: Buffer) -> ServingCost:
        """What `forward` or `update` would take for the bytes of `SealedClient.encrypt` or `update`; errors as for these."""
        return ServingCost(**self._native.cost(message))

    def refresh(self, sealed: bytes) -> None:
        """Replace the weights by newly encrypted ones."""
        self._native.refresh(sealed)

    def forward(self, request: Buffer) -> bytes:
        """Encrypted logits for the bytes of `SealedClient.encrypt`."""
        return self._native.forward(request)

    def update(self, update: Buffer) -> bytes:
        """Encrypted dJ/da for the bytes of `SealedClient.update`, whose weights, if it brings any, then take the others' place."""
        return self._native.update(update)

    def saved(self) -> bytes:
        """Everything that this server holds: ciphertexts, as `SealedClient.seal` makes them."""
        return self._native.saved()


def check_private(parameters: Parameters, least: int = PRIVATE_BITS) -> None:
    """ParameterError for parameters under which a client could read the weights from replies."""
    if parameters.private_bits < least or parameters.security == "paper":
        raise ParameterError(
            f"these parameters have private_bits={parameters.private_bits} and security={parameters.security!r}, with which weights "
            f"could be read from replies: {least} bits are wanted, and 128 bits of security. The client makes such with "
            "Parameters.recommend(..., private_weights=True)"
        )


def clip(x: ArrayT, parameters: Parameters) -> tuple[ArrayT, int]:
    """X within the agreed ranges, and how many of its rows had to change; x itself when none had to, or `encrypt` will refuse it.

    Tensors are clipped by differentiable operations.
    """
    bound, norm = parameters.activation_bound, parameters.activation_norm
    values = numpy_of(x)
    if values.ndim != 2 or values.dtype not in _DTYPES:
        return x, 0
    finite, count = _core.inspect(np.ascontiguousarray(values), bound, norm)
    if not finite or count == 0:
        return x, 0
    if isinstance(x, np.ndarray):
        inside = np.clip(x, -bound, bound)
        norms = np.sqrt(np.einsum("ij,ij->i", inside, inside, dtype=np.float64))
        factor = np.minimum(1.0, norm / np.maximum(norms, 1e-300))
        return cast(ArrayT, (inside * factor[:, None]).astype(x.dtype)), count
    tensor = cast("torch.Tensor", x).clamp(-bound, bound)
    scale = (norm / tensor.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    return cast(ArrayT, tensor * scale), count


def _float64(values: Float) -> npt.NDArray[np.float64]:
    return values.astype(np.float64, copy=False)


def _matrix(x: Array, name: str, shape: tuple[int | None, int]) -> Float:
    values = numpy_of(x)
    fits = values.ndim == 2 and values.shape[1] == shape[1] and shape[0] in (None, values.shape[0])
    if not fits or values.shape[0] < 1:
        expected = f"[{shape[0] if shape[0] is not None else 'n'}, {shape[1]}]"
        raise ParameterError(f"expected {name} of shape {expected}, got {list(values.shape)}")
    if values.dtype not in _DTYPES:
        raise ParameterError(f"expected {name} of dtype float32 or float64, got {values.dtype}")
    return np.ascontiguousarray(values)


def _vector(bias: Array, size: int) -> npt.NDArray[np.float64]:
    values = numpy_of(bias)
    if values.shape != (size,) or values.dtype not in _DTYPES:
        raise ParameterError(
            f"expected bias of shape [{size}] and dtype float32 or float64, got {list(values.shape)} {values.dtype}"
        )
    return np.ascontiguousarray(values, dtype=np.float64)
