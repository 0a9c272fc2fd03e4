"""What several commands share: loading a data set, threads, connections. Importing this loads neither torch nor matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hesplit_native.choices import DatasetName, Labels, Split

if TYPE_CHECKING:
    from hesplit_native.data.dataset import Dataset
    from hesplit_native.transport.channel import Channel


Row = TypeVar("Row")


def with_words(text: str, rows: Sequence[Row], name: Callable[[Row], str], has: str) -> list[Row]:
    """The rows whose name contains one of the comma-separated words of `--rows`; ParameterError when there is none."""
    from hesplit_native.errors import ParameterError

    words = [word.strip() for word in text.split(",")]
    chosen = [row for row in rows if any(word in name(row) for word in words)]
    if not chosen:
        raise ParameterError(f"no row {has} with {' or '.join(words)}; --rows list shows them")
    return chosen


def load_dataset(name: DatasetName, data_dir: Path | None, split: Split, labels: Labels = "single") -> Dataset:
    """The named data set, with a progress bar while records are read for the first time."""
    from rich.progress import track

    from hesplit_native.data import load_mitbih, load_ptbxl, synthetic_ecg, synthetic_ptbxl
    from hesplit_native.errors import ParameterError

    if labels == "multi" and name != "ptbxl":
        raise ParameterError(f"every row of {name} has one label; several are those of --dataset ptbxl")
    if name == "synthetic":
        return synthetic_ecg()
    if name == "synthetic12":
        return synthetic_ptbxl()
    if name == "ptbxl":
        return load_ptbxl(
            data_dir,
            labels=labels,
            progress=lambda items: track(items, description="Reading recordings", transient=True),
        )
    return load_mitbih(
        data_dir, split=split, progress=lambda names: track(names, description="Reading records", transient=True)
    )


def set_threads(count: int) -> None:
    """One setting for torch and for the core."""
    import torch

    from hesplit_native import _core

    torch.set_num_threads(count)
    _core.set_num_threads(count)


def connector(server: str, *, tls: Path | None, client_id: str, insecure: bool) -> Callable[[int], Channel]:
    """Opens connections to a server for participant 0, 1, …; with several, each has a certificate ``<client id>-<number>``."""
    from hesplit_native.transport import ClientTls, connect

    def open_channel(participant: int) -> Channel:
        name = client_id if participant < 0 else f"{client_id}-{participant + 1}"
        return connect(
            server, tls=ClientTls.load(tls, name) if tls is not None else None, client_id=name, insecure=insecure
        )

    return open_channel
