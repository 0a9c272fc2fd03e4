"""Checkpoints of a server's sessions: safetensors files, the last two of each run and the one that its client asked to keep."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hesplit_native.errors import DataError, ProtocolError, WireError
from hesplit_native.files import make_folder, write_atomically
from hesplit_native.protocols.budget import Hold
from hesplit_native.protocols.messages import json_object
from hesplit_native.protocols.terms import Terms

#: Runs without a new checkpoint for that many days, and those that came to their end a day ago, are removed from disk; and a
#: client's oldest ones beyond that many.
KEEP_DAYS = 30.0
FINISHED_DAYS = 1.0
MAX_RUNS_PER_CLIENT = 64

_FORMAT = "hesplit_native-server-1"
_KEPT = 2
_RUN = re.compile(r"[0-9a-f]{32}")
_FINISHED = "finished"  # the file that says so
_MARKED = "kept"  # the file that names the step that stays
_DAY = 86400.0

Entry = tuple[str, Terms, dict[str, Tensor]]


@dataclass
class _Kept:
    """Checkpoints of one run in memory."""

    hold: Hold
    entries: dict[int, Entry] = field(default_factory=dict)
    marked: int | None = None  # the one that stays
    seen: float = field(default_factory=time.monotonic)


class CheckpointStore:
    """State by run and training step, in a directory or, without one, in memory. Safe to use from several threads.

    Parameters
    ----------
    folder
        None: in memory.
    keep_days
        After so many days without a new checkpoint a run is removed from disk.
    on_event
        Called with a line for the log.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        keep_days: float = KEEP_DAYS,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._folder = folder
        self._keep_days = keep_days
        self._on_event = on_event
        self._memory: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    @property
    def in_memory(self) -> bool:
        """Whether checkpoints take memory."""
        return self._folder is None

    def reserve(self, run: str, hold: Hold) -> None:
        """Room in memory for a run's checkpoints, which is held as long as they are kept; given back where the run has some."""
        with self._lock:
            if self._folder is not None or run in self._memory:
                hold.release()
            else:
                self._memory[run] = _Kept(hold)

    def save(
        self, run: str, step: int, client: str, terms: Terms, tensors: dict[str, Tensor], *, keep: bool = False
    ) -> None:
        """Store a state durably. Of a run the last two stay, because a client may lack the last one, and the last one with `keep`.

        Raises
        ------
        ProtocolError
            It cannot be written: a full disk, for example. The ones before are as they were.
        """
        copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        if self._folder is None:
            with self._lock:
                kept = self._memory.get(run)
                if kept is None:
                    raise ProtocolError("the session is over")
                kept.seen = time.monotonic()
                kept.entries[step] = (client, terms, copies)
                kept.marked = step if keep else kept.marked
                for old in sorted(kept.entries)[:-_KEPT]:
                    if old != kept.marked:
                        del kept.entries[old]
            return
        folder = self._folder / run
        values = {"client": client, "terms": json.loads(terms.to_json())}
        try:
            if not folder.exists():
                self._make_room(client)
                make_folder(folder)
            write_tensors(folder / f"{step}.safetensors", copies, _FORMAT, values)
            (folder / _FINISHED).unlink(missing_ok=True)
            if keep:
                write_atomically(folder / _MARKED, str(step).encode())
            marked = self._marked(run)
            for old in sorted(self._on_disk(run))[:-_KEPT]:
                if old != marked:
                    (folder / f"{old}.safetensors").unlink(missing_ok=True)
        except OSError as error:
            self._on_event(f"the checkpoint {step} of run {run[:8]} was not stored: {error}")
            with contextlib.suppress(OSError):
                folder.rmdir()  # where it is empty
            raise ProtocolError(f"the server could not store the checkpoint ({error.strerror})") from error

    def steps(self, run: str, client: str) -> list[int]:
        """The steps that can be loaded for this client."""
        steps = []
        for step in sorted(self._on_disk(run) if self._folder is not None else self._in_memory(run)):
            try:
                if self.load(run, step)[0] == client:
                    steps.append(step)
            except (DataError, ProtocolError):
                continue  # damaged: the one before it will do
        return steps

    def load(self, run: str, step: int) -> Entry:
        """Client, terms and tensors of a checkpoint; ProtocolError when there is none."""
        if self._folder is None:
            entry = self._in_memory(run).get(step)
            if entry is None:
                raise ProtocolError("there is no such checkpoint of this run here")
            return entry
        if not _RUN.fullmatch(run):
            raise ProtocolError("a run is named by 32 hexadecimal digits")
        if step not in self._on_disk(run):
            raise ProtocolError("there is no such checkpoint of this run here")
        try:
            tensors, values = read_tensors(self._folder / run / f"{step}.safetensors", _FORMAT)
            client, terms = values.get("client"), values.get("terms")
            if not isinstance(client, str) or not isinstance(terms, dict):
                raise DataError("it names no client and terms")
            return client, Terms.from_json(terms), tensors
        except (DataError, WireError) as error:
            # Where it is stored is none of the client's business.
            self._on_event(f"the checkpoint {step} of run {run[:8]} cannot be used: {error}")
            raise DataError(f"the checkpoint {step} of run {run} is damaged") from error

    # Letting go

    def drop(self, run: str) -> None:
        """Let go of a run's checkpoints in memory."""
        with self._lock:
            self._drop(run)

    def drop_oldest(self, willing: Callable[[str, float], bool], alive: Collection[str]) -> bool:
        """Let go of the run in memory that was stored first, among those without a session whose client and time are `willing`."""
        with self._lock:
            found = [
                run for run, kept in self._memory.items() if run not in alive and willing(kept.hold.client, kept.seen)
            ]
            if found:
                self._drop(min(found, key=lambda run: self._memory[run].seen))
            return bool(found)

    def forget_empty(self, run: str) -> None:
        """Give back the room for a run's checkpoints where it has none."""
        with self._lock:
            kept = self._memory.get(run)
            if kept is not None and not kept.entries:
                self._drop(run)

    def forget_old(self, seconds: float, alive: Collection[str]) -> None:
        """Let go of runs in memory that were stored so long ago and have no session."""
        now = time.monotonic()
        with self._lock:
            for run in [run for run, kept in self._memory.items() if now - kept.seen > seconds and run not in alive]:
                self._drop(run)

    def finish(self, run: str, *, shared: bool = False) -> None:
        """A run has come to its end: nobody needs its checkpoints, on disk after a day, and in memory after a while if `shared`."""
        if shared:
            with self._lock:
                if run in self._memory:
                    self._memory[run].seen = time.monotonic()
        else:
            self.drop(run)
        if self._folder is not None and self._on_disk(run):
            with contextlib.suppress(OSError):  # then it is removed when it is old
                (self._folder / run / _FINISHED).touch(mode=0o600)

    def expire(self) -> None:
        """Remove runs from disk that are over or old, and what killed processes left of files."""
        now = time.time()
        for run in self._runs():
            assert self._folder is not None
            written_days = (now - self._written(run)) / _DAY
            with contextlib.suppress(OSError):
                for path in (self._folder / run).glob(".*.tmp"):
                    if now - path.stat().st_mtime > _DAY:
                        path.unlink(missing_ok=True)
                finished = self._folder / run / _FINISHED
                if finished.exists() and (now - finished.stat().st_mtime) / _DAY > FINISHED_DAYS:
                    self._remove(run, "it came to its end")
                elif written_days > self._keep_days:
                    self._remove(run, f"it was stored {written_days:.0f} days ago")

    def _make_room(self, client: str) -> None:
        """Let a client have no more than so many runs on disk."""
        mine = [run for run in self._runs() if self._client_of(run) == client]
        for run in sorted(mine, key=self._written)[: max(0, len(mine) + 1 - MAX_RUNS_PER_CLIENT)]:
            self._remove(run, f"{client} has {len(mine)} runs")

    def _remove(self, run: str, why: str) -> None:
        assert self._folder is not None
        with contextlib.suppress(FileNotFoundError):  # another process has done so
            for path in (self._folder / run).iterdir():
                path.unlink(missing_ok=True)
            (self._folder / run).rmdir()
        self._on_event(f"the checkpoints of run {run[:8]} were removed: {why}")

    def _drop(self, run: str) -> None:
        kept = self._memory.pop(run, None)
        if kept is not None:
            kept.hold.release()

    # What is there

    def _in_memory(self, run: str) -> dict[int, Entry]:
        with self._lock:
            kept = self._memory.get(run)
            return dict(kept.entries) if kept is not None else {}

    def _on_disk(self, run: str) -> list[int]:
        if self._folder is None or not _RUN.fullmatch(run):
            return []
        names = [path.stem for path in (self._folder / run).glob("*.safetensors")]
        return [int(name) for name in names if name.isdigit()]

    def _marked(self, run: str) -> int | None:
        assert self._folder is not None
        path = self._folder / run / _MARKED
        text = path.read_bytes() if path.is_file() else b""
        return int(text) if text.isdigit() and len(text) < 20 else None

    def _runs(self) -> list[str]:
        """The runs on disk."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return [path.name for path in self._folder.iterdir() if _RUN.fullmatch(path.name) and path.is_dir()]

    def _written(self, run: str) -> float:
        """When a run's last checkpoint was written, in seconds since 1970."""
        assert self._folder is not None
        times = [0.0]
        for path in (self._folder / run, *(self._folder / run).glob("*.safetensors")):
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(times)

    def _client_of(self, run: str) -> str | None:
        """Whose run it is, from the head of one of its files."""
        from safetensors import SafetensorError, safe_open

        assert self._folder is not None
        for path in (self._folder / run).glob("*.safetensors"):
            with contextlib.suppress(SafetensorError, OSError, ValueError, WireError), safe_open(path, "pt") as file:
                client = json_object((file.metadata() or {}).get("values", ""), "values").get("client")
                return client if isinstance(client, str) else None
        return None


def write_tensors(path: Path, tensors: dict[str, Tensor], form: str, values: dict[str, Any]) -> None:
    """A safetensors file with plain values as metadata, written atomically and durably, readable only by its owner."""
    from safetensors.torch import save

    write_atomically(path, save(tensors, metadata={"format": form, "values": json.dumps(values)}))


def read_tensors(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote; DataError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise DataError(f"{path} does not exist")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or cannot be read: {error}") from error
    if metadata.get("format") != form:
        raise DataError(f"{path} is of another format ({metadata.get('format')!r}, expected {form!r})")
    try:
        values = json_object(metadata.get("values", ""), "its values")
    except WireError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return tensors, values
