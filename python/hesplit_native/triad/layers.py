"""The three privacy-preserving layers of Triad of Split Learning (section III-B).

The split learning server draws a nonce for a session and gives it to the participants over an authenticated channel; everything
random here is expanded from it, so that all participants of a session build the same layer and nobody else can. The nonce is not
kept, and what is derived from it in cases 1 and 2 is in no `repr`, no `state_dict` and no pickle.

None of the three is encryption. Under cases 1 and 2 an eavesdropper who knows a few rows of data learns the vector, and with it
everything that was sent ("differential attack"); case 3 has no shared secret, but its features still say much about the data.
"""

from __future__ import annotations

import hashlib
import math
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.errors import ParameterError
from hesplit_native.seeding import seeded

MIN_NONCE_BYTES = 16

_DOMAIN = b"hesplit-native triad v1"
_TABLE_FEATURES = 32
_IMAGE_CHANNELS = 16
_LEARNING_RATE = 1e-3
_BATCH = 32


def shared_vector(nonce: bytes, shape: int | tuple[int, ...], label: str = "random vector") -> Tensor:
    """The random vector of a session: equal for equal nonces, shapes and labels, unrelated otherwise.

    SHAKE-256 expands the nonce, 32 bits to an entry: a random sign, and a magnitude uniform in [0.5, 1.5). Signs make the
    following ReLU cut something of every feature; magnitudes away from zero let every feature through and keep training
    well-conditioned, which a normal distribution does not.

    Parameters
    ----------
    nonce
        At least 16 secret bytes of the session.
    shape
        Of one row of data, without the batch.
    label
        Separates vectors of different use under one nonce.

    Returns
    -------
    Tensor
        float32 of that shape, dimensionless, no entry below 0.5 in magnitude.
    """
    words = _expand(nonce, _shape(shape), label)
    magnitude = 0.5 + (words >> 9) / 2.0**23  # exact in float32
    return torch.from_numpy(np.where(words & 1, -magnitude, magnitude).astype(np.float32))


class RandomVector(nn.Module):
    """Case 1: every row is multiplied, element by element, by the session's random vector.

    Parameters
    ----------
    shape
        Of one row: the number of features, or e.g. ``(3, 32, 32)``.
    nonce
        The session's, at least 16 bytes; not kept.
    """

    _vector: Tensor

    def __init__(self, shape: int | tuple[int, ...], nonce: bytes) -> None:
        super().__init__()
        self.shape = _shape(shape)
        self.register_buffer("_vector", shared_vector(nonce, self.shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rows [n, *shape] to sanitised rows of the same shape."""
        _check_rows(x, self.shape)
        return x * self._vector

    def extra_repr(self) -> str:
        """The shape; never the vector."""
        return f"shape={self.shape}"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret of its session and cannot be pickled or copied")


class RandomVectorReLU(RandomVector):
    """Case 2: as `RandomVector`, then ReLU, which has no inverse: what it cuts off cannot be recovered."""

    def forward(self, x: Tensor) -> Tensor:
        """Rows [n, *shape] to sanitised rows of the same shape, none below zero."""
        return torch.relu(super().forward(x))


class PretrainedLocal(nn.Module):
    """Case 3: a small layer that each participant trains on its own data before it sends anything.

    All participants start from the same weights, which the nonce gives; after `pretrain` each has its own, which the server never
    sees. For tables a dense layer and ReLU, [n, features] to [n, 32]. For images the paper's Conv2D, activation and Dense,
    [n, c, h, w] to [n, 16, h/2, w/2]: as in Keras, which the paper used, a dense layer on an image acts on the channels of
    every position. (Flattened, it would mix positions differently at every participant: the server then learns hardly more
    from all of them than each participant alone.)

    Parameters
    ----------
    shape
        Of one row: the number of features, or ``(channels, height, width)``.
    nonce
        The session's, at least 16 bytes; not kept.
    """

    def __init__(self, shape: int | tuple[int, ...], nonce: bytes) -> None:
        super().__init__()
        self.shape = _shape(shape)
        self.pretrained = False
        self.out_shape = pretrained_shape(self.shape)
        with seeded(0):  # torch draws weights of its own, which are overwritten
            if len(self.shape) == 1:
                self.layers = nn.Sequential(nn.Linear(self.shape[0], _TABLE_FEATURES), nn.ReLU())
            else:
                self.layers = nn.Sequential(
                    nn.Conv2d(self.shape[0], _IMAGE_CHANNELS, kernel_size=5, stride=2, padding=2),
                    nn.ReLU(),
                    nn.Conv2d(_IMAGE_CHANNELS, _IMAGE_CHANNELS, kernel_size=1),  # Dense, on every position
                )
        with torch.no_grad():
            for name, parameter in self.layers.named_parameters():
                parameter.copy_(_initial_weights(nonce, parameter.shape, f"pretrained {name}"))

    def forward(self, x: Tensor) -> Tensor:
        """Rows [n, *shape] to the participant's features [n, *out_shape]."""
        if not self.pretrained:
            # Still the shared weights: whoever holds the nonce could undo them.
            raise ParameterError("pretrain the layer on the participant's data before using it")
        _check_rows(x, self.shape)
        out: Tensor = self.layers(x)
        return out

    def pretrain(self, x: Tensor, y: Tensor, *, classes: int | None, epochs: int, seed: int) -> float:
        """Train on the participant's own rows below a local head, drop the head and freeze the layer.

        Parameters
        ----------
        x
            float32 [n, *shape].
        y
            int64 [n], or float32 [n] for regression in any unit: it is standardised here.
        classes
            Number of classes; None: regression.
        seed
            Of the head and of the order of the rows; differs between participants.

        Returns
        -------
        float
            Mean loss of the last epoch: cross-entropy, or the square error in units of the variance of `y`.
        """
        _check_rows(x, self.shape)
        if len(x) < 2 or epochs < 1:
            raise ParameterError(f"pre-training takes at least 2 rows and 1 epoch, got {len(x)} and {epochs}")
        with seeded(seed):
            head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(math.prod(self.out_shape), classes or 1))
            target = y if classes else ((y - y.mean()) / y.std().clamp_min(1e-6))[:, None]
            criterion: nn.Module = nn.CrossEntropyLoss() if classes else nn.MSELoss()
            optimizer = torch.optim.Adam([*self.layers.parameters(), *head.parameters()], _LEARNING_RATE)
            total = 0.0
            for _ in range(epochs):
                total = 0.0
                for rows in torch.split(torch.randperm(len(x)), _BATCH):
                    optimizer.zero_grad()
                    loss = criterion(head(self.layers(x[rows])), target[rows])
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(rows)
        self.layers.requires_grad_(False)
        self.pretrained = True
        return total / len(x)

    def extra_repr(self) -> str:
        """What goes in and comes out."""
        return f"shape={self.shape}, out_shape={self.out_shape}, pretrained={self.pretrained}"


def pretrained_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a `PretrainedLocal` makes of a row of this shape."""
    if len(shape) == 1:
        return (_TABLE_FEATURES,)
    if len(shape) == 3:
        return (_IMAGE_CHANNELS, (shape[1] + 1) // 2, (shape[2] + 1) // 2)
    raise ParameterError(f"a pre-trained layer takes rows [features] or [c, h, w], not {list(shape)}")


def _initial_weights(nonce: bytes, shape: tuple[int, ...], label: str) -> Tensor:
    """Uniform in ±sqrt(6 / fan-in) for weights (He et al. 2015), zero for biases."""
    if len(shape) == 1:
        return torch.zeros(shape)
    bound = math.sqrt(6 / math.prod(shape[1:]))
    words = _expand(nonce, tuple(shape), label)
    return torch.from_numpy(((words / 2.0**31 - 1) * bound).astype(np.float32))


def _expand(nonce: bytes, shape: tuple[int, ...], label: str) -> npt.NDArray[np.uint32]:
    """32-bit words of `shape` from SHAKE-256; the fields are length-prefixed, so that no two inputs read the same."""
    if not isinstance(nonce, bytes) or len(nonce) < MIN_NONCE_BYTES:
        size = f"{len(nonce)} bytes" if isinstance(nonce, bytes) else type(nonce).__name__
        raise ParameterError(f"the nonce must be at least {MIN_NONCE_BYTES} bytes, got {size}")
    fields = (_DOMAIN, label.encode(), ",".join(map(str, shape)).encode(), nonce)
    digest = hashlib.shake_256(b"".join(len(field).to_bytes(8, "little") + field for field in fields))
    # One byte order on every machine.
    words = np.frombuffer(digest.digest(4 * math.prod(shape)), "<u4")
    return words.astype(np.uint32).reshape(shape)


def _shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes or min(sizes) < 1:
        raise ParameterError(f"a row must have at least one feature, got the shape {list(sizes)}")
    return sizes


def _check_rows(x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape or x.dim() != len(shape) + 1:
        raise ParameterError(f"expected rows [n, {', '.join(map(str, shape))}], got {list(x.shape)}")
