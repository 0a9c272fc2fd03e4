"""The client's part of the papers' networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hesplit_native.choices import Model
from hesplit_native.errors import ParameterError
from hesplit_native.seeding import seeded

_HIDDEN = 128

#: Rows up to which PyTorch's own convolutions are faster than oneDNN's, which cost more to call (M1, batch 4, forward and
#: backward on one core: 0.20 ms instead of 0.47; batch 16: 1.5 ms instead of 0.8).
_SMALL_BATCH = 4


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` for undilated convolutions of one group, without oneDNN for batches of a few samples."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(input) > _SMALL_BATCH or input.device.type != "cpu":
            return cast(Tensor, super()._conv_forward(input, weight, bias))
        kernel, stride, padding = (
            [side, *size] for side, size in ((1, self.kernel_size), (1, self.stride), (0, self.padding))
        )
        # reshape, unlike unsqueeze, leaves no doubt about the memory format when there is one channel.
        rows, filters = input.reshape(len(input), -1, 1, input.shape[-1]), weight.reshape(len(weight), -1, *kernel)
        y = torch.ops.aten.thnn_conv2d(rows, filters, kernel, bias, stride, padding)
        return cast(Tensor, y.squeeze(2))


@dataclass(frozen=True)
class Architecture:
    """A network of convolutions at the client, one linear layer at the server and, in the base paper's, another one after it.

    `activations` is what the client sends per sample, `outputs` what the server's layer answers; `hidden` is whether that is
    the first of two fully connected layers, the second of which then maps `outputs` to `classes`.
    """

    in_channels: int
    samples: int
    channels: int
    convolutions: int
    classes: int
    hidden: bool

    @property
    def activations(self) -> int:
        """Activations per sample: two poolings divide the length by four."""
        return self.channels * (self.samples // 2 // 2)

    @property
    def draws(self) -> bool:
        """Nothing in it is random."""
        return False

    @property
    def outputs(self) -> int:
        """Outputs of the server's layer."""
        return _HIDDEN if self.hidden else self.classes

    def body(self, seed: int) -> nn.Sequential:
        """Signals [n, in_channels, samples] to activations [n, activations] (Split Ways, section 3.1 and figure 1).

        Convolutions beyond the second, up to eight, keep the size (Abuadbba et al., who vary their number from 2 to 8).
        The global generator is left alone.
        """
        with seeded(seed):
            more: list[nn.Module] = []
            for _ in range(self.convolutions - 2):
                more += [Conv1d(self.channels, self.channels, kernel_size=5, padding=2), nn.LeakyReLU()]
            return nn.Sequential(
                Conv1d(self.in_channels, 16, kernel_size=7, padding=3),
                nn.LeakyReLU(),
                nn.MaxPool1d(2),
                Conv1d(16, self.channels, kernel_size=5, padding=2),
                nn.LeakyReLU(),
                nn.MaxPool1d(2),
                *more,
                nn.Flatten(),
            )

    def head(self, seed: int) -> nn.Sequential:
        """What follows the server's layer: nothing, or the second fully connected layer."""
        with seeded(seed):
            return nn.Sequential(nn.LeakyReLU(), nn.Linear(_HIDDEN, self.classes)) if self.hidden else nn.Sequential()


def architecture(model: Model, in_channels: int, samples: int, classes: int, convolutions: int = 2) -> Architecture:
    """A model for signals of that shape.

    ``"m1"``: 256 activations for a heartbeat of 128 samples (Split Ways), 2000 for 12 leads of 1000 samples (HESplit's PTB-XL
    model); ``"m2"``: twice as many channels, 512 activations; ``"base"``: m1 with two fully connected layers (Abuadbba et al.).
    """
    if not 2 <= convolutions <= 8:
        raise ParameterError(f"convolutions must be 2 to 8, got {convolutions}")
    if samples < 4:
        raise ParameterError(f"signals must have at least 4 samples, got {samples}")
    return Architecture(in_channels, samples, 16 if model == "m2" else 8, convolutions, classes, model == "base")
