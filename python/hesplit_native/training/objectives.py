"""How each kind of labels is learnt: its loss, what counts as right, and which protocols can."""

from __future__ import annotations

from torch.nn import functional

from hesplit_native.errors import ParameterError
from hesplit_native.training.config import RunConfig
from hesplit_native.training.metrics import Kind
from hesplit_native.training.task import Hits, Loss, right_labels, right_shares

LOSSES: dict[Kind, Loss] = {
    "classes": functional.cross_entropy,
    "labels": functional.binary_cross_entropy_with_logits,
    "numbers": functional.mse_loss,
}
HITS: dict[Kind, Hits] = {"classes": right_labels, "labels": right_shares}


def check_objective(config: RunConfig, kind: Kind, *, own_loss: bool = False) -> None:
    """Refuse what only knows classes under cross-entropy, with other labels or a loss of one's own.

    Raises
    ------
    ParameterError
        For a protocol whose server computes the loss, noise on labels, and the papers' double softmax.
    """
    if kind == "classes" and not own_loss:
        return
    if config.traits.labels_at_server and not (config.traits.own_labels and kind == "labels" and not own_loss):
        raise ParameterError(f"in {config.protocol} the server computes the loss, cross-entropy; take another protocol")
    if config.defences.label_epsilon is not None:
        raise ParameterError(
            "label_epsilon noises classes under cross-entropy; there is no such noise for other labels or losses"
        )
    if config.recipe == "paper":
        raise ParameterError(
            'recipe="paper" is softmax before cross-entropy, of one class a row; other labels take recipe="default"'
        )
