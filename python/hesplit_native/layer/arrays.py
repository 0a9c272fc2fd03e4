"""Numbers from the caller: numpy arrays and CPU tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import ParameterError

if TYPE_CHECKING:
    import torch

    Array = npt.NDArray[Any] | torch.Tensor
else:
    Array = Any


def numpy_of(x: Array) -> npt.NDArray[Any]:
    """A view of an array or of a CPU tensor."""
    if isinstance(x, np.ndarray):
        return x
    if not hasattr(x, "detach"):
        raise ParameterError(f"expected a numpy array or a torch tensor, got {type(x).__name__}")
    if not x.is_cpu:
        raise ParameterError(f"expected a CPU tensor, got one on {x.device}; call .cpu() first")
    return (x.detach() if x.requires_grad else x).numpy()
