"""The client's part of the papers' networks."""

from __future__ import annotations

from torch import nn

ACTIVATIONS = 256
CLASSES = 5


def m1_client() -> nn.Sequential:
    """The convolutions of M1: signals [n, 1, 128] to activations [n, 256] (Split Ways, section 3.1 and figure 1)."""
    return nn.Sequential(
        nn.Conv1d(1, 16, kernel_size=7, padding=3),
        nn.LeakyReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 8, kernel_size=5, padding=2),
        nn.LeakyReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
    )
