"""Where defences were before they moved to `hesplit_native.training.defences`."""

from __future__ import annotations

from hesplit_native.training.config import Defences
from hesplit_native.training.defences import Defender

__all__ = ["Defences", "Defender"]
