"""What is said of a network's outputs on a whole set: loss and accuracy, and more with torchmetrics."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hesplit_native.errors import ParameterError
from hesplit_native.training.task import Loss

#: One of several classes; any of several labels; numbers; or what only the loss understands.
Kind = Literal["classes", "labels", "numbers", "other"]

_LOSS_ROWS = 4096


def has_torchmetrics() -> bool:
    """Whether more than loss and accuracy can be measured."""
    return importlib.util.find_spec("torchmetrics") is not None


def check_torchmetrics(what: str) -> None:
    """ParameterError where it is missing."""
    if not has_torchmetrics():
        raise ParameterError(
            f"{what} needs torchmetrics, which is missing: pip install -c constraints.txt '.[train]' (from the source) brings it"
        )


def measure(kind: Kind, loss: Loss, names: Sequence[str], *, more: bool) -> Callable[[Tensor, Tensor], dict[str, Any]]:
    """What to say of outputs [n, k] and labels, as plain values.

    ``loss`` is the mean over rows; ``accuracy`` the share of rows, of labels in the multi-label case, that are right. With `more`
    ``macro_f1``, over the classes that occur or are predicted, and ``auroc`` (one against the rest, the mean over the classes for
    which it is defined; None if there is none),
    ``per_class`` (precision, recall, f1, auroc and rows of each, by name) and ``confusion`` (rows: true, columns: predicted; of
    several labels a 2 x 2 matrix for each). Of numbers, ``mae`` and ``r2``, which is None where all are the same.
    """

    def found(outputs: Tensor, labels: Tensor) -> dict[str, Any]:
        scores: dict[str, Any] = {"loss": _mean_loss(loss, outputs, labels)}
        if kind == "classes":
            scores["accuracy"] = float((outputs.argmax(1) == labels).double().mean())
        if kind == "labels":
            scores["accuracy"] = float(((outputs > 0) == (labels > 0.5)).double().mean())
        if kind == "numbers":
            error = (outputs - labels).double()
            spread = float((labels - labels.mean(0)).double().square().sum())
            scores |= {
                "mae": float(error.abs().mean()),
                "r2": 1 - float(error.square().sum()) / spread if spread else None,
            }
        if more and kind in ("classes", "labels"):
            scores |= _of_classes(kind, outputs, labels, names)
        return scores

    return found


def _mean_loss(loss: Loss, outputs: Tensor, labels: Tensor) -> float:
    total = 0.0
    for some, wanted in zip(torch.split(outputs, _LOSS_ROWS), torch.split(labels, _LOSS_ROWS), strict=True):
        total += float(loss(some, wanted)) * len(some)
    return total / len(outputs)


def _of_classes(kind: Kind, outputs: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    from torchmetrics.functional import classification

    several = kind == "labels" or outputs.shape[1] < 2
    count = outputs.shape[1]
    truth = (labels > 0.5).long() if several else labels
    present = truth.sum(0) if several else torch.bincount(labels, minlength=count)
    defined = (present > 0) & (present < len(labels))
    options: dict[str, Any] = {"num_labels" if several else "num_classes": count, "validate_args": False}
    prefix = "multilabel" if several else "multiclass"

    def each(name: str, values: Tensor) -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without rows: they are None below
            result: Tensor = getattr(classification, f"{prefix}_{name}")(values, truth, average=None, **options)
        return [float(value) for value in result.reshape(-1)]

    probabilities = outputs.sigmoid() if several else outputs.softmax(1)
    measured = {name: each(key, probabilities) for name, key in _EACH.items()}
    aurocs = [value if known else None for value, known in zip(measured["auroc"], defined.tolist(), strict=True)]
    known = [value for value in aurocs if value is not None]
    predicted = (outputs > 0).sum(0) if several else torch.bincount(outputs.argmax(1), minlength=count)
    seen = [value for value, rows in zip(measured["f1"], (present + predicted).tolist(), strict=True) if rows]
    per_class = {
        name: {
            "precision": measured["precision"][index],
            "recall": measured["recall"][index],
            "f1": measured["f1"][index],
            "auroc": aurocs[index],
            "rows": int(present[index]),
        }
        for index, name in enumerate(names)
    }
    confusion = getattr(classification, f"{prefix}_confusion_matrix")(probabilities, truth, **options)
    return {
        "macro_f1": sum(seen) / len(seen) if seen else None,
        "auroc": sum(known) / len(known) if known else None,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


_EACH = {"precision": "precision", "recall": "recall", "f1": "f1_score", "auroc": "auroc"}
