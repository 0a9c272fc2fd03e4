"""An optimiser's step without what surrounds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``, number for number.

    Looking for hooks, profilers, graphs and devices takes torch four times as long as Adam's step of a layer 256 -> 5. Where there may
    be anything to be found that way is taken.
    """
    trained = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    if not (
        type(optimizer) is torch.optim.Adam
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and all(map(_is_usual, optimizer.param_groups))
        and all(p.device.type == "cpu" and optimizer.state[p] for params in trained for p in params)
    ):
        optimizer.step()  # the first step makes the moments
        return
    with torch.no_grad():
        for group, params in zip(optimizer.param_groups, trained, strict=True):
            if params:
                _fused_adam(group, params, [optimizer.state[p] for p in params])


def _is_usual(group: dict[str, Any]) -> bool:
    """Whether it is Adam as `make_optimizer` makes it."""
    return group["fused"] is True and not group["amsgrad"] and not group["maximize"] and type(group["lr"]) is float


def _fused_adam(group: dict[str, Any], params: list[Tensor], states: list[dict[str, Tensor]]) -> None:
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    torch._fused_adam_(
        params,
        [p.grad for p in params if p.grad is not None],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
