"""Labels from the gradient at the logits.

Under plain cross-entropy row s of G = dJ/dy is (softmax(y) - onehot(label)) / n: its only negative entry is the label's. Where that
does not hold (two softmaxes, noise, a hidden layer after the server's), rows of one class still point in one direction: they are
clustered, and what a cluster stands for is guessed from how often classes occur.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from hesplit_native.privacy.transcript import Transcript

Labels = npt.NDArray[np.int64]


def by_sign(gradient: npt.NDArray[np.floating]) -> Labels:
    """The most negative entry of every row of G [n, classes]."""
    return np.asarray(gradient.argmin(1), np.int64)


def probabilities(gradient: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """What softmax gave for the logits [n, classes], from G = (softmax(y) - onehot(label)) / n."""
    found = len(gradient) * gradient.astype(np.float64)
    found[np.arange(len(found)), by_sign(gradient)] += 1
    return found


def by_direction(gradient: npt.NDArray[np.floating], classes: int, *, seed: int = 0, rounds: int = 50) -> Labels:
    """Clusters 0 ... classes - 1 of the directions of G's rows [n, out], by spherical k-means from the best of several starts."""
    rows = gradient.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    best, found = -np.inf, np.zeros(len(rows), np.int64)
    for start in range(5):
        generator = np.random.default_rng([seed, start])
        centres = rows[generator.choice(len(rows), min(classes, len(rows)), replace=False)]
        for _ in range(rounds):
            cluster = (rows @ centres.T).argmax(1)
            sums = np.stack([rows[cluster == c].sum(0) for c in range(len(centres))])
            sizes = np.linalg.norm(sums, axis=1, keepdims=True)
            centres = np.divide(sums, sizes, out=centres.copy(), where=sizes > 0)
        quality = float((rows @ centres.T).max(1).sum())
        if quality > best:
            best, found = quality, (rows @ centres.T).argmax(1)
    return found.astype(np.int64)


def by_norm(gradient: npt.NDArray[np.floating], rare: npt.NDArray[np.bool_]) -> float:
    """How well the size of G's rows [n, out] tells the rare class from the others: area under the ROC curve, 0.5 for not at all.

    A network that has learnt the frequent classes has large gradients where the rare one occurs.
    """
    order = np.linalg.norm(gradient, axis=1).argsort(kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    positives, negatives = int(rare.sum()), int((~rare).sum())
    if positives == 0 or negatives == 0:
        return 0.5
    return float((ranks[rare].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def infer(transcript: Transcript) -> list[Labels]:
    """Labels [n] of every step: sent, by sign, or by the bytes of what is encrypted, which is guessing."""
    guesses = []
    for step in transcript.steps:
        clear, gradient = transcript.labels(step), transcript.gradient(step)
        if clear is not None:
            guesses.append(clear)
        elif gradient is not None:
            guesses.append(by_sign(gradient))
        else:
            opaque = transcript.opaque(step, (transcript.batch_size, transcript.classes))
            guesses.append(opaque.argmin(1).astype(np.int64))
    return guesses


def clusters(transcript: Transcript) -> list[Labels]:
    """Clusters of the directions of all steps' gradients, step by step; by the bytes of what is encrypted where there are none."""
    gradients = [
        gradient
        if (gradient := transcript.gradient(step)) is not None
        else transcript.opaque(step, (transcript.batch_size, transcript.outputs))
        for step in transcript.steps
    ]
    found = by_direction(np.concatenate(gradients), transcript.classes)
    return np.split(found, np.cumsum([len(g) for g in gradients])[:-1])


def accuracy(guess: Labels, truth: Labels) -> float:
    """The share of labels that are right."""
    return float((guess == truth).mean())


def cluster_accuracy(cluster: Labels, truth: Labels) -> float:
    """The share of labels that are right when every cluster is given the class that suits it best, one to one."""
    classes = int(max(cluster.max(), truth.max())) + 1
    table = np.zeros((classes, classes))
    np.add.at(table, (cluster, truth), 1)
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / len(truth))
