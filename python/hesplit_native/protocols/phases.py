"""Where the time goes: every moment between `start` and `stop` belongs to exactly one phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Phases:
    """Seconds by phase. `enter` ends the current phase and begins another."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._current: str | None = None
        self._since = 0.0

    def enter(self, name: str | None) -> str | None:
        """Begin a phase (None: nothing is counted) and return the one that ended, to come back to it."""
        now = perf_counter()
        previous = self._current
        if previous is not None:
            self.seconds[previous] += now - self._since
        self._current, self._since = name, now
        return previous

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Outside of training: whatever is entered meanwhile counts nothing."""
        counted = dict(self.seconds)
        try:
            yield
        finally:
            self.enter(None)
            self.seconds.clear()
            self.seconds.update(counted)
