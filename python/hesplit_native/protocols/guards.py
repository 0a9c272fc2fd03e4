"""Batches from whose gradients the server would recover what was encrypted."""

from __future__ import annotations

from hesplit_native.errors import ParameterError
from hesplit_native.protocols import PROTOCOLS


def check_batch(protocol: str, batch_size: int, outputs: int, *, accept_leak: bool) -> None:
    """Refuse batches from which the server would recover the activations exactly.

    dW = Gᵀ X is solvable for X when the rows of G [n, o] are linearly independent, which they are for n < o (docs/security.md).

    Raises
    ------
    ParameterError
        For `splitways` and `hesplit` with n < o, unless that is accepted.
    """
    if leaks(protocol, batch_size, outputs) and not accept_leak:
        raise ParameterError(
            f"batches of {batch_size} samples with {outputs} outputs: from dJ/dy and dJ/dW the server of {protocol} recovers the "
            f"activations exactly, encrypted or not. Take a batch size of {outputs} or more, or the protocol sealed; the papers' "
            "setting runs with --accept-leak (accept_leak=True)"
        )


def leaks(protocol: str, batch_size: int, outputs: int) -> bool:
    """Whether a batch is small enough for its activations to follow from the gradients."""
    return PROTOCOLS[protocol].gradients_tell_activations and batch_size < outputs
