"""The encrypted linear layer: a client that encrypts and decrypts, a server that computes on ciphertexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from hesplit_native import _core
from hesplit_native.errors import ParameterError
from hesplit_native.keys import SecretKey
from hesplit_native.parameters import Parameters

if TYPE_CHECKING:
    import torch

    Array = npt.NDArray[Any] | torch.Tensor
else:
    Array = Any

ArrayT = TypeVar("ArrayT", bound="Array")
Overflow = Literal["clip", "raise"]
Float = npt.NDArray[np.float32] | npt.NDArray[np.float64]


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
    """

    def __init__(self, key: SecretKey, in_features: int, out_features: int, *, on_overflow: Overflow = "clip") -> None:
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
        self._native = _core.LinearClient(key._native, in_features, out_features)

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
        self.clipped += clipped
        return request

    def decrypt(self, reply: bytes) -> npt.NDArray[np.float64]:
        """Decrypt the server's reply to logits [n, out_features], for local use only.

        Decrypted values carry the noise, and the noise carries the key: sending anything computed from them to the server is a
        release and needs flooding (docs/security.md). Each request is answered once.

        Raises
        ------
        WireError
            Damaged bytes.
        KeyMismatchError
            A reply for another key, other parameters or another request.
        """
        return self._native.decrypt(reply)

    def clip_counted(self, x: ArrayT) -> ArrayT:
        """`clip`, with the rows counted in `clipped`; x itself when `encrypt` is to refuse it."""
        if self.on_overflow == "raise" or not np.isfinite(_numpy(x)).all():
            return x
        inside, count = self.clip(x)
        self.clipped += count
        return inside

    def clip(self, x: ArrayT) -> tuple[ArrayT, int]:
        """X within the agreed ranges, and how many of its rows had to change; x itself when none had to.

        Tensors are clipped by differentiable operations. `encrypt` applies the same clip.
        """
        bound, norm = self.parameters.activation_bound, self.parameters.activation_norm
        values = _numpy(x)
        square = np.einsum("ij,ij->i", values, values, dtype=np.float64)
        beyond = square > norm**2
        if not beyond.any() and float(np.abs(values).max(initial=0.0)) <= bound:
            return x, 0
        count = int(np.count_nonzero(beyond | (np.abs(values) > bound).any(axis=1)))
        if isinstance(x, np.ndarray):
            inside = np.clip(x, -bound, bound)
            norms = np.sqrt(np.einsum("ij,ij->i", inside, inside, dtype=np.float64))
            factor = np.minimum(1.0, norm / np.maximum(norms, 1e-300))
            return cast(ArrayT, (inside * factor[:, None]).astype(x.dtype)), count
        tensor = cast("torch.Tensor", x).clamp(-bound, bound)
        scale = (norm / tensor.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
        return cast(ArrayT, tensor * scale), count


class LinearServer:
    """Evaluates ``y = x W^T + b`` on ciphertexts. Safe to use from several threads.

    Parameters
    ----------
    public_material
        The bytes of `LinearClient.public_material`.
    weight, bias
        Arrays or CPU tensors [out_features, in_features] and [out_features]; bias may be None.
    max_batch
        Requests of more samples are refused.

    Raises
    ------
    WireError
        When the bytes are not valid public material.
    RangeError
        When the parameters cannot hold these weights within their error bound.
    """

    def __init__(
        self, public_material: bytes, weight: Array, bias: Array | None = None, *, max_batch: int = 65536
    ) -> None:
        self._native = _core.LinearServer(public_material, max_batch)
        self.in_features: int = self._native.features
        self.out_features: int = self._native.outputs
        self.parameters = Parameters._wrap(self._native.parameters)
        self.set_weight(weight, bias)

    def set_weight(self, weight: Array, bias: Array | None = None) -> None:
        """Replace the weights; on an error the old ones stay. Forward passes that have begun finish with the old ones."""
        w = _matrix(weight, "weight", (self.out_features, self.in_features)).astype(np.float64, copy=False)
        b = np.zeros(0) if bias is None else _vector(bias, self.out_features)
        self._native.set_weight(w, b)

    def forward(self, request: bytes) -> bytes:
        """The reply to a request of `LinearClient.encrypt`.

        Raises
        ------
        WireError
            Damaged bytes, or a larger batch than ``max_batch``.
        KeyMismatchError
            A request made under another key or other parameters.
        """
        return self._native.forward(request)


def _numpy(x: Array) -> npt.NDArray[Any]:
    """A view of an array or of a CPU tensor."""
    if isinstance(x, np.ndarray):
        return x
    detach = getattr(x, "detach", None)
    if detach is None:
        raise ParameterError(f"expected a numpy array or a torch tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise ParameterError(f"expected a CPU tensor, got one on {x.device}; call .cpu() first")
    return cast("npt.NDArray[Any]", detach().numpy())


def _matrix(x: Array, name: str, shape: tuple[int | None, int]) -> Float:
    values = _numpy(x)
    expected = f"[{shape[0] if shape[0] is not None else 'n'}, {shape[1]}]"
    fits = values.ndim == 2 and values.shape[1] == shape[1] and shape[0] in (None, values.shape[0])
    if not fits or values.shape[0] < 1:
        raise ParameterError(f"expected {name} of shape {expected}, got {list(values.shape)}")
    if values.dtype not in (np.float32, np.float64):
        raise ParameterError(f"expected {name} of dtype float32 or float64, got {values.dtype}")
    return np.ascontiguousarray(values)


def _vector(bias: Array, size: int) -> npt.NDArray[np.float64]:
    values = _numpy(bias)
    if values.shape != (size,) or values.dtype not in (np.float32, np.float64):
        raise ParameterError(
            f"expected bias of shape [{size}] and dtype float32 or float64, got {list(values.shape)} {values.dtype}"
        )
    return np.ascontiguousarray(values, dtype=np.float64)
