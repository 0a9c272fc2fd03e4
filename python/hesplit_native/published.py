"""Figures that the papers published, for the tables beside ours. All: MIT-BIH, ``paper`` split, batch size 4, model M1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of a table: per epoch, and accuracy in percent after 10 epochs; communication as printed, with its unit."""

    network: str
    protocol: str
    seconds: float
    accuracy: float
    communication: str


# Split Ways, table 1.
SPLIT_WAYS = (
    Published("local", "local", 4.80, 88.06, "0"),
    Published("split, plaintext", "plain", 8.56, 88.06, "33.06e-6 Tb"),
    Published("8192 [60,40,40,60] 2^40", "splitways", 50318, 85.31, "37.84 Tb"),
    Published("8192 [40,21,21,40] 2^21", "splitways", 48946, 80.63, "22.42 Tb"),
    Published("4096 [40,20,20] 2^21", "splitways", 14946, 85.41, "4.49 Tb"),
    Published("4096 [40,20,40] 2^20", "splitways", 18129, 80.78, "4.57 Tb"),
    Published("2048 [18,18,18] 2^16", "splitways", 5018, 22.65, "0.58 Tb"),
)


def comparable(protocol: str) -> list[Published]:
    """The published rows of a protocol."""
    return [row for row in SPLIT_WAYS if row.protocol == protocol]
