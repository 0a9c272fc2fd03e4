"""Hospitals on their own machines, by Flower (extra `flower`): a ClientApp for every site and a ServerApp (docs/flower.md).

Flower says who takes part in a round, moves and averages the networks of the sites, and logs. The encrypted steps do not go through
it: every site talks to `hesplit-native serve` itself, under its own keys and certificate.
"""

from __future__ import annotations

try:
    import flwr  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "hesplit_native.flower needs Flower, on Python 3.11 or newer: pip install 'hesplit_native[flower]'", name="flwr"
    ) from error

from hesplit_native.federation import Site
from hesplit_native.flower.client import client_app, site_of
from hesplit_native.flower.server import server_app

__all__ = ["Site", "client_app", "server_app", "site_of"]
