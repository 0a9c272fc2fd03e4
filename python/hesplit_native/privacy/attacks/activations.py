"""Activations from what a U-shaped server sees of the gradients.

dW = Gᵀ X, and in `splitways` and `hesplit` the server has both dW and G [n, o]. For n < o the rows of G are linearly independent and
X = (Gᵀ)⁺ dW exactly. Beyond that the pseudo-inverse gives the least-norm solution: X projected on the row space of G; what lies
outside it is estimated by the mean activation, which follows from many steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hesplit_native.privacy.transcript import Step, Transcript

Float64 = npt.NDArray[np.float64]

# Directions of G that are this much weaker than its strongest are lost in the rounding of float32 messages.
_CUTOFF = 3e-6


def recover(transcript: Transcript) -> list[Float64]:
    """Activations [n, in] of every step: exact, estimated, or no better than chance, as the protocol allows."""
    mean = mean_activation(transcript)
    return [_recover(transcript, step, mean) for step in transcript.steps]


def mean_activation(transcript: Transcript) -> Float64:
    """The mean activation [in] by least squares over all steps: 1ᵀ dW_t is about (1ᵀ G_tᵀ 1) times it, and so is every row."""
    numerator, denominator = np.zeros(transcript.features), 0.0
    for step in transcript.steps:
        gradient = transcript.gradient(step)
        if gradient is not None and step.weight_gradient is not None:
            sums = gradient.astype(np.float64).sum(0)
            numerator += sums @ step.weight_gradient
            denominator += float(sums @ sums)
    return numerator / denominator if denominator > 0 else numerator


def _recover(transcript: Transcript, step: Step, mean: Float64) -> Float64:
    clear = transcript.activations(step)
    if clear is not None:
        return clear.astype(np.float64)
    gradient = transcript.gradient(step)
    if gradient is None or step.weight_gradient is None:
        return transcript.opaque(step, (transcript.batch_size, transcript.features)).astype(np.float64)
    return from_gradients(gradient, step.weight_gradient, mean)


def from_gradients(
    gradient: npt.NDArray[np.floating], weight_gradient: npt.NDArray[np.floating], mean: Float64
) -> Float64:
    """X [n, in] from G [n, out] and dW = Gᵀ X [out, in]; along directions that G does not determine, the mean."""
    g = gradient.astype(np.float64)
    prior = np.broadcast_to(mean, (len(g), len(mean)))
    # Rows of G differ by orders of magnitude: a sample that is classified well hardly has a gradient.
    size = np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-30)
    correction = np.linalg.pinv((g / size).T, rcond=_CUTOFF) @ (weight_gradient.astype(np.float64) - g.T @ prior)
    return np.asarray(prior + correction / size)
