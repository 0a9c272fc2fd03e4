"""The memory that a server may use: for each client and in all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from hesplit_native.errors import BudgetError

_UNKNOWN_MEMORY = 1 << 32
_SHARES = 32
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Budget:
    """Bytes that are held, by client and in all, and never more than agreed. Safe to use from several threads.

    Parameters
    ----------
    total
        Bytes for all clients.
    per_client
        Bytes for one; None: as `total`.
    kept
        Bytes of all that only clients get who hold no more than a 32nd of the total: some large clients leave room for small ones.
    """

    def __init__(self, total: int, per_client: int | None = None, *, kept: int = 0) -> None:
        self.total = total
        self.per_client = total if per_client is None else min(per_client, total)
        self._kept, self._small = kept, total // _SHARES
        self._held: dict[str, int] = {}
        self._sum = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._sum

    def held_by(self, client: str) -> int:
        """Those of one client."""
        return self._held.get(client, 0)

    def could_hold(self, amount: int) -> bool:
        """Whether one client can have so many bytes when nobody else takes any."""
        return amount <= min(self.per_client, self.total if amount <= self._small else self.total - self._kept)

    def hold(self, client: str, amount: int = 0) -> Hold:
        """Take so many bytes for a client; BudgetError when they are not there."""
        hold = Hold(self, client)
        hold.resize(amount)
        return hold

    def _resize(self, hold: Hold, amount: int) -> None:
        with self._lock:
            if hold.released:
                return
            more = amount - hold.amount
            mine = self._held.get(hold.client, 0) + more
            if more > 0 and mine > self.per_client:
                raise BudgetError(
                    f"this takes {mebibytes(more)} of memory at the server, where one client may have {mebibytes(self.per_client)} "
                    f"(--memory-per-client) and this one has {mebibytes(mine - more)}"
                )
            if more > 0 and self._sum + more > self.total:
                raise BudgetError(
                    f"this takes {mebibytes(more)} of memory at the server, which has {mebibytes(self.total - self._sum)} of "
                    f"{mebibytes(self.total)} (--memory) to spare; try again later"
                )
            if more > 0 and mine > self._small and self._sum + more > self.total - self._kept:
                raise BudgetError(
                    f"this takes {mebibytes(more)} of memory at the server, which keeps {mebibytes(self._kept)} of "
                    f"{mebibytes(self.total)} (--memory) for clients that take no more than {mebibytes(self._small)} each; "
                    "try again later"
                )
            self._sum += more
            hold.amount = amount
            if mine:
                self._held[hold.client] = mine
            else:
                self._held.pop(hold.client, None)


@dataclass(eq=False)
class Hold:
    """Bytes taken from a budget for a client until they are given back."""

    budget: Budget
    client: str
    amount: int = 0
    released: bool = False

    def resize(self, amount: int) -> None:
        """Hold another amount; BudgetError, with the old amount held, when that is not there. Nothing, once it was released."""
        if amount != self.amount:
            self.budget._resize(self, amount)

    def release(self) -> None:
        """Give all of it back, for good."""
        self.budget._resize(self, 0)
        self.released = True


def default_memory() -> int:
    """Half of the memory of this machine, or of the container that this process is in."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        physical = _UNKNOWN_MEMORY
    try:
        limit = int(_CGROUP_LIMIT.read_text(encoding="ascii"))
    except (OSError, ValueError):  # none there, or "max"
        limit = physical
    return min(physical, limit) // 2


def give_back_memory() -> None:
    """Return what is freed to the system, where the C library can: the heaps of many threads keep it beside any budget."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)


def mebibytes(count: int) -> str:
    """So many bytes, for people."""
    return f"{count / 2**20:,.1f} MiB"
