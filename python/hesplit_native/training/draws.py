"""The random numbers that networks draw when they train."""

from __future__ import annotations

import torch
from torch import Tensor

from hesplit_native.seeding import seeded


class Draws:
    """The random numbers of torch that a run draws, for dropout and for what data sets do to their rows: a stream of its own.

    It goes on where it was after a resume; the process's own stream is as it was when the run leaves it.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._inside = False
        with seeded(seed):
            self._states = self._read()
        if device.type == "cuda":
            self._states["draws.cuda"] = torch.Generator(device).manual_seed(seed).get_state()
        self._outside = self._states

    def _read(self) -> dict[str, Tensor]:
        states = {"draws.cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["draws.cuda"] = torch.cuda.get_rng_state(self._device)
        return states

    def _write(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["draws.cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states["draws.cuda"], self._device)

    def enter(self) -> None:
        """Draw from the run's stream from here on."""
        self._outside, self._inside = self._read(), True
        self._write(self._states)

    def leave(self) -> None:
        """Draw from the process's own again."""
        self._states, self._inside = self._read(), False
        self._write(self._outside)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return self._read() if self._inside else self._states

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; KeyError if they are not there."""
        self._states = {name: tensors[name] for name in self._states}
