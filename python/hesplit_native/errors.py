"""Every error this package raises on purpose.

All derive from `HESplitError`, so `except hn.HESplitError` catches what the package diagnosed and lets
programming errors through. The C++ core raises the same classes: they are registered with it once, when
`hesplit_native` is imported. Messages say what was wrong and what to do; none carries a secret.
"""

from __future__ import annotations

from collections.abc import Iterable

_NAMED = 8


class HESplitError(Exception):
    """Base of all errors of this package."""


class ParameterError(HESplitError, ValueError):
    """CKKS parameters, shapes or options that cannot work or are not secure."""


class RangeError(HESplitError, ValueError):
    """Values that cannot be represented: NaN, infinities, or numbers beyond an agreed bound."""


class WireError(HESplitError, ValueError):
    """Bytes from a peer or a file that are malformed, truncated, extended or of another version."""


class KeyMismatchError(HESplitError, ValueError):
    """Well-formed bytes made under another key, other parameters or for another request."""


class ProtocolError(HESplitError, RuntimeError):
    """A peer that broke the agreed order of messages, refused the handshake or went away."""


class BudgetError(ProtocolError):
    """More memory than a server has for one client, or for all at the moment."""


class QueryBudgetExceeded(ProtocolError):
    """More answers than a server gives one client, who would learn its weights from them; nothing was answered or counted."""


class ConnectionLost(ProtocolError):
    """The connection broke or nobody answers: trying again may help."""


class DataError(HESplitError, RuntimeError):
    """A data set that is missing, incomplete or not what it claims to be."""


def shortened(names: Iterable[str], separator: str = ", ") -> str:
    """Some names for a message, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return separator.join(name[:200] for name in found[:_NAMED]) + more if found else "none"
