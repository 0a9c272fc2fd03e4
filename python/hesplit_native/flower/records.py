"""What Flower's messages carry: the names of their records, and a site's checkpoint beside weights and metrics."""

from __future__ import annotations

from typing import Any

from flwr.app import RecordDict

from hesplit_native.federation import Stored

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # of messages, as Flower's strategies name them
STORED = "stored"  # of a reply: the checkpoint of the site's layer at the server
EXAMPLES = "num-examples"
#: The message that ends a run.
END = "query.end"


def stored_of(reply: RecordDict) -> Stored:
    """What a site says of its checkpoint in a reply to training."""
    where: Any = reply.config_records[STORED]
    rows: Any = reply.metric_records[METRICS][EXAMPLES]
    return Stored(where["run"], where["step"], rows)
