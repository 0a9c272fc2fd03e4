"""Where reports were before they moved to `hesplit_native.training.report`."""

from __future__ import annotations

from hesplit_native.training.report import metrics, write_curves, write_metrics

__all__ = ["metrics", "write_curves", "write_metrics"]
