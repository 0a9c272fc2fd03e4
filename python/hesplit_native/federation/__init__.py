"""A site of a federation, whatever engine organises it: `hesplit_native.flower`, or one of your own (examples/flare).

The engine says who takes part in a round and averages the networks. The encrypted steps do not go through it: every site talks to
`hesplit-native serve` itself, and the layer at the server is averaged there, from checkpoints that a `Plan` names.
"""

from __future__ import annotations

from hesplit_native.federation.plan import Plan, Stored
from hesplit_native.federation.site import LAYER, NETWORK_FORMAT, Site, SiteRun, Trained

__all__ = ["LAYER", "NETWORK_FORMAT", "Plan", "Site", "SiteRun", "Stored", "Trained"]
