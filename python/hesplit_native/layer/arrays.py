"""Numbers from the caller: numpy arrays and CPU tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

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
    detach = getattr(x, "detach", None)
    if detach is None:
        raise ParameterError(f"expected a numpy array or a torch tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise ParameterError(f"expected a CPU tensor, got one on {x.device}; call .cpu() first")
    return cast("npt.NDArray[Any]", detach().numpy())
