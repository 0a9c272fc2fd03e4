"""Where `train_together` was before it moved to `hesplit_native.training`."""

from __future__ import annotations

from hesplit_native.training import train_together

__all__ = ["train_together"]
