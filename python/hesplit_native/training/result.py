"""What a training run gives back, and what watches it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from hesplit_native.errors import ParameterError
from hesplit_native.training.config import RunConfig
from hesplit_native.training.models import Architecture


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss and accuracy (0..1) while training, accuracy on what is held out after it, seconds of training.

    Accuracies are None where nothing is right or wrong, or nothing is held out. `epsilon` is what a beat's noised releases add up to
    so far (`RunResult`); None without noise. `validation` is what was measured on a validation set (`training.metrics`), `test` what
    was measured beside the accuracy where test rows are evaluated after every epoch; in a result's history the numbers alone.
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    epsilon: float | None = None
    validation: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """Everything that a report needs. Bytes are counted at the channel; `bytes_up` and `bytes_down` are those of training steps.

    `epsilon` is what the noised releases of a beat add up to for the one that was released most, those of unfinished epochs and
    those that were sent again included; None without noise. `best_epoch` is the one whose state both sides have in the end; 0: the
    last one. `validation` is all that was measured after it, `test` on a test set in the end, or after the last finished epoch.
    """

    config: RunConfig
    history: tuple[EpochRecord, ...] = ()
    train_seconds: float = 0.0
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    server_seconds_by_phase: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    setup_bytes_up: int = 0
    setup_bytes_down: int = 0
    evaluation_bytes_up: int = 0
    evaluation_bytes_down: int = 0
    batches: int = 0
    batches_per_epoch: int = 0
    parameters: dict[str, Any] | None = None
    clipped: int = 0
    flooding_deviation: float = 0.0
    participants: int = 1
    notes: tuple[str, ...] = ()
    epsilon: float | None = None
    interrupted: str | None = None
    architecture: Architecture | None = None
    client_state: dict[str, Tensor] = field(default_factory=dict)
    server_weight: Tensor | None = None
    server_bias: Tensor | None = None
    best_epoch: int = 0
    validation: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return self.config.protocol

    @property
    def epochs(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def test_accuracy(self) -> float | None:
        """After the last finished epoch."""
        return self.history[-1].test_accuracy if self.history else None

    @property
    def linear(self) -> nn.Linear:
        """The server's layer as one of torch; ParameterError where its weights are not in this process."""
        if self.server_weight is None or self.server_bias is None:
            raise ParameterError(f"the layer's weights are at the server ({self.protocol})")
        layer = nn.Linear(self.server_weight.shape[1], self.server_weight.shape[0])
        layer.load_state_dict({"weight": self.server_weight, "bias": self.server_bias})
        return layer

    @property
    def flooding(self) -> str:
        """How released decryptions were flooded: with a fresh key per step, with one per run, or not at all."""
        return self.config.flooding if self.config.releases else "not needed"


class StopTraining(Exception):
    """What an observer raises to end a run, which then ends as after its last epoch."""


class Observer(Protocol):
    """What watches a run: a progress display, a log, or anything that shall happen on the way.

    It may raise `StopTraining`. Errors of this package, OSError and KeyboardInterrupt end the run before its time.
    """

    def on_start(self, batches_per_epoch: int, epochs: int) -> None:
        """Before the first batch."""

    def on_batch(self, epoch: int, batch: int, loss: float, accuracy: float) -> None:
        """From time to time: the batches done in this epoch, running mean loss and accuracy (NaN where there is none)."""

    def on_evaluate(self, epoch: int) -> None:
        """Before the test set is evaluated."""

    def on_epoch(self, record: EpochRecord) -> None:
        """After an epoch."""
