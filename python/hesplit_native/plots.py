"""Matplotlib as this package uses it: for files, and imported only where something is drawn."""

from __future__ import annotations

import logging
from typing import Any


def pyplot() -> Any:
    """``matplotlib.pyplot`` without windows. Where there is no home for its cache it works without a word about that."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as module
    finally:
        log.setLevel(level)
    return module
