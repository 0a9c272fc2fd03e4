"""What the papers printed in their tables, to lay beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hesplit_native.training.report import size

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Published:
    """One row of a table: seconds and communication as printed, with its unit; accuracy in percent after 10 epochs."""

    network: str
    protocol: str
    seconds: float
    accuracy: float
    communication: str
    dataset: str = "mitbih"
    batch_size: int = 4
    parameter_set: str | None = None
    communication_bytes: float = 0.0


# Split Ways, table 1: per epoch.
SPLIT_WAYS = (
    Published("local", "local", 4.80, 88.06, "0"),
    Published("split, plaintext", "plain", 8.56, 88.06, "33.06e-6 Tb", communication_bytes=33.06e6),
    *(
        Published(name, "splitways", seconds, accuracy, f"{terabits} Tb", "mitbih", 4, chosen, terabits * 1e12)
        for name, seconds, accuracy, terabits, chosen in (
            ("8192 [60,40,40,60] 2^40", 50318, 85.31, 37.84, "8192-60"),
            ("8192 [40,21,21,40] 2^21", 48946, 80.63, 22.42, "8192-40"),
            ("4096 [40,20,20] 2^21", 14946, 85.41, 4.49, "4096-20"),
            ("4096 [40,20,40] 2^20", 18129, 80.78, 4.57, "4096-40"),
            ("2048 [18,18,18] 2^16", 5018, 22.65, 0.58, "2048-18"),
        )
    ),
)

# Split Without a Leak, experimental results (slides): seconds and communication, which they print in "Gb".
HESPLIT = tuple(
    Published(f"{chosen}, batch {batch}", "hesplit", seconds, accuracy, f"{gb} Gb", dataset, batch, chosen, gb * 1e9)
    for dataset, chosen, batch, accuracy, seconds, gb in (
        ("mitbih", "S1", 4, 83.49, 8100.60, 239.53),
        ("mitbih", "S1", 8, 78.01, 4780.73, 121.57),
        ("mitbih", "S1", 16, 74.77, 2855.29, 62.58),
        ("mitbih", "S1", 32, 73.79, 1658.73, 33.09),
        ("mitbih", "S1", 64, 62.08, 987.42, 18.35),
        ("mitbih", "S2", 4, 83.09, 19746.85, 471.57),
        ("mitbih", "S2", 8, 67.94, 10378.92, 239.33),
        ("mitbih", "S2", 16, 70.33, 5358.59, 123.20),
        ("mitbih", "S2", 32, 72.47, 3152.82, 65.14),
        ("mitbih", "S2", 64, 64.42, 1913.11, 36.11),
        ("ptbxl", "S1", 4, 58.71, 100060.60, 2624.85),
        ("ptbxl", "S1", 8, 58.95, 49334.95, 1315.38),
        ("ptbxl", "S1", 16, 57.10, 22501.79, 660.65),
        ("ptbxl", "S1", 32, 59.36, 12370.38, 333.23),
        ("ptbxl", "S1", 64, 56.45, 5702.29, 169.60),
    )
)
HESPLIT_PLAIN = (
    Published("split, plaintext", "plain", 8.56, 88.06, "0.033 Gb", "mitbih", 4, None, 33e6),
    Published("split, plaintext", "plain", 15.55, 67.68, "0.317 Gb", "ptbxl", 4, None, 317e6),
)


def _comparable(protocol: str) -> list[Published]:
    """Split Ways' rows of a protocol."""
    return [row for row in SPLIT_WAYS if row.protocol == protocol]


def published_table(values: dict[str, Any]) -> Table | None:
    """Ours beside what the papers published for this protocol; None when there is nothing of the same task to lay beside."""
    from rich.table import Table

    rows: list[Published] = _comparable(values["protocol"])
    same = (values["dataset"], values["split"], values["config"]["batch_size"]) == ("mitbih", "paper", 4)
    if not same or not rows or not values["history"]:
        return None
    table = Table(title="Beside Split Ways, table 1", title_justify="left")
    for name in ("", "seconds per epoch", "test accuracy", "sent per epoch"):
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    epochs = max(values["batches"] / values["batches_per_epoch"], 1e-9)
    bytes_per_epoch = (values["bytes_up"] + values["bytes_down"]) / epochs
    seconds = values["train_seconds"] / epochs
    table.add_row(
        "this run", f"{seconds:.2f}", f"{100 * values['test_accuracy']:.2f} %", size(bytes_per_epoch), style="bold"
    )
    for row in rows:
        table.add_row(row.network, f"{row.seconds:,.2f}", f"{row.accuracy:.2f} %", row.communication)
    return table
