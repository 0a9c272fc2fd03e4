"""Signals from activations.

Two ways: the channel of the activations that looks most like the signal (visual invertibility: Split Ways, figure 4), and a network
that learns to invert the client's convolutions from pairs of somebody else's signals and their activations, which a participant that
colludes with the server can make, having the same convolutions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.seeding import seeded

Float32 = npt.NDArray[np.float32]


def stretched_channels(activations: npt.NDArray[np.floating], channels: int, samples: int) -> npt.NDArray[np.float64]:
    """All channels of activations [n, in], stretched to the signal's length: [n, channels, samples]."""
    maps = activations.reshape(len(activations), channels, -1)
    grid, fine = np.linspace(0, 1, maps.shape[2]), np.linspace(0, 1, samples)
    return np.stack([[np.interp(fine, grid, channel) for channel in row] for row in maps])


def closest_channel_correlation(
    maps: npt.NDArray[np.float64], inputs: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """|correlation| of each signal [n, samples] with whichever of its channels [n, channels, samples] is closest to it: [n]."""
    a = maps - maps.mean(2, keepdims=True)
    b = (inputs - inputs.mean(1, keepdims=True))[:, None]
    size = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    found = np.divide(np.abs((a * b).sum(2)), size, out=np.zeros(size.shape), where=size > 0)
    return np.asarray(found.max(1))


def learn_inverse(
    body: Callable[[Tensor], Tensor], auxiliary: Float32, *, steps: int = 1500, batch_size: int = 64, seed: int = 0
) -> Callable[[npt.NDArray[np.floating]], Float32]:
    """A network from activations [n, in] to signals [n, channels, samples], trained on the auxiliary signals alone.

    Parameters
    ----------
    body
        The client's convolutions, with whatever noise it adds.
    auxiliary
        Signals [n, channels, samples] that are not the victim's.
    """
    with torch.no_grad():
        known = body(torch.from_numpy(auxiliary)).float()
    wanted = torch.from_numpy(auxiliary).flatten(1)
    mean, spread = known.mean(0), known.std(0) + 1e-6
    with seeded(seed):
        network = nn.Sequential(
            nn.Linear(known.shape[1], 512), nn.LeakyReLU(), nn.Linear(512, 256), nn.LeakyReLU(),
            nn.Linear(256, wanted.shape[1]),
        )  # fmt: skip
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(steps):
            rows = torch.randint(0, len(known), (batch_size,))
            loss = nn.functional.mse_loss(network((known[rows] - mean) / spread), wanted[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def invert(activations: npt.NDArray[np.floating]) -> Float32:
        rows = torch.from_numpy(np.asarray(activations, np.float32))
        with torch.no_grad():
            # What an estimate gets wildly wrong is of no use to the network either.
            found: Float32 = network(((rows - mean) / spread).clamp(-8, 8)).numpy()
        return found.reshape(len(rows), *auxiliary.shape[1:])

    return invert
