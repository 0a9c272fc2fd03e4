"""Anybody's network as the client's part of a split one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hesplit_native.errors import ParameterError
from hesplit_native.protocols.terms import MAX_FEATURES, MAX_WEIGHTS
from hesplit_native.training.task import Inputs, Loss, call, each


@dataclass(frozen=True)
class OwnNetwork:
    """A module before a server's layer: trained in place, or `copied` for each of several participants."""

    module: nn.Module
    activations: int
    outputs: int
    copied: bool = False

    @property
    def classes(self) -> int:
        """The layer is the last one."""
        return self.outputs

    @property
    def hidden(self) -> bool:
        """The layer is the last one."""
        return False

    @property
    def draws(self) -> bool:
        """It may."""
        return True

    def body(self, seed: int) -> nn.Module:
        """The module itself, as it is, or a copy."""
        return copy.deepcopy(self.module) if self.copied else self.module

    def head(self, seed: int) -> nn.Module:
        """Nothing."""
        return nn.Sequential()


def own_network(module: nn.Module, inputs: Inputs, rows: int, outputs: int, device: torch.device) -> OwnNetwork:
    """Count a network's features on some rows of the data.

    Raises
    ------
    ParameterError
        It cannot take these rows, or does not give a tensor of as many rows; there are more features than a server takes.
    """
    if not isinstance(module, nn.Module):
        raise ParameterError(f"network: expected a torch.nn.Module, got {type(module).__name__}")
    given = _shapes(inputs)
    try:
        module.to(device)
        with _tried(module):
            found = call(module, each(inputs, lambda values: values.to(device)))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ParameterError(f"the network cannot take a batch of {given}: {_first_line(error)}") from error
    if not isinstance(found, Tensor):
        raise ParameterError(
            f"the network gives {type(found).__name__} for a batch; expected one tensor [n, ...] of features: wrap it in a module "
            "whose forward returns that"
        )
    if found.ndim < 1 or found.shape[0] != rows:
        raise ParameterError(
            f"the network gives {list(found.shape)} for a batch of {rows} rows ({given}); expected [{rows}, ...]: the batch must stay "
            "the first dimension"
        )
    if not found.is_floating_point():
        raise ParameterError(f"the network gives {found.dtype}; expected floating point features")
    features = found[0].numel()
    if not 1 <= features <= MAX_FEATURES or features * outputs > MAX_WEIGHTS:
        raise ParameterError(
            f"the network gives {features} features a row, for {outputs} outputs; a server's layer takes 1 to {MAX_FEATURES} features "
            f"and {MAX_WEIGHTS} weights: pool them, or add a layer that makes them fewer"
        )
    return OwnNetwork(module, features, outputs)


def check_loss(loss: Loss, outputs: int, labels: Tensor) -> None:
    """ParameterError where a loss cannot take such labels, or is not one differentiable number."""
    logits = torch.zeros(len(labels), outputs, requires_grad=True)
    given = f"outputs {list(logits.shape)} and labels {list(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
    try:
        with warnings.catch_warnings():
            # Outputs [n, 3] minus labels [n] are a matrix of all pairs of rows, about which torch only warns.
            warnings.filterwarnings("error", message="Using a target size")
            value = loss(logits, labels)
    except (RuntimeError, ValueError, TypeError, IndexError, UserWarning) as error:
        raise ParameterError(f"the loss cannot take {given}: {_first_line(error)}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        what = f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ParameterError(
            f"the loss of {given} is {what}; expected one number as a tensor that depends on the outputs"
        )


def check_last_batch(module: nn.Module, rows: int, batch_size: int, batches: int) -> None:
    """ParameterError where the last of a client's batches of an epoch is one row, which batch normalisation cannot take."""
    last = min(rows, batches * batch_size) - (batches - 1) * batch_size
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if last == 1 and any(isinstance(part, norms) and part.training for part in module.modules()):
        raise ParameterError(
            f"a client's {rows} rows in batches of {batch_size} end with a batch of one row, which batch normalisation cannot take; "
            "choose another batch_size, or leave a row out"
        )


@contextmanager
def _tried(module: nn.Module) -> Iterator[None]:
    """In `eval()` mode, without gradients, and without drawing from torch's generator."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in modes:
            part.training = training


def _shapes(inputs: Inputs) -> str:
    def one(values: Tensor) -> str:
        return f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"

    if isinstance(inputs, dict):
        return ", ".join(f"{name}: {one(values)}" for name, values in inputs.items())
    return ", ".join(one(values) for values in inputs) if isinstance(inputs, tuple) else one(inputs)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
