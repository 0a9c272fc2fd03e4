"""Checkpoints of a server's sessions: safetensors files, the last two of each run."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from hesplit_native.errors import DataError, ProtocolError, WireError
from hesplit_native.files import make_folder, write_atomically
from hesplit_native.protocols.messages import json_object
from hesplit_native.protocols.terms import Terms

_FORMAT = "hesplit_native-server-1"
_KEPT = 2
_RUN = re.compile(r"[0-9a-f]{32}")

Entry = tuple[str, Terms, dict[str, Tensor]]


class CheckpointStore:
    """State by run and training step, in a directory or, without one, in memory. Safe to use from several threads."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, dict[int, Entry]] = {}
        self._lock = threading.Lock()

    def save(self, run: str, step: int, client: str, terms: Terms, tensors: dict[str, Tensor]) -> None:
        """Store a state durably; only the last two of a run are kept, because a client may lack the last one."""
        copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        with self._lock:
            if self._folder is None:
                entries = self._memory.setdefault(run, {})
                entries[step] = (client, terms, copies)
                for old in sorted(entries)[:-_KEPT]:
                    del entries[old]
                return
            folder = self._folder / run
            make_folder(folder)
            values = {"client": client, "terms": json.loads(terms.to_json())}
            write_tensors(folder / f"{step}.safetensors", copies, _FORMAT, values)
            for old in sorted(self._on_disk(run))[:-_KEPT]:
                (folder / f"{old}.safetensors").unlink(missing_ok=True)

    def steps(self, run: str, client: str) -> list[int]:
        """The steps that can be loaded for this client."""
        found = sorted(self._memory.get(run, {})) if self._folder is None else sorted(self._on_disk(run))
        steps = []
        for step in found:
            try:
                if self.load(run, step)[0] == client:
                    steps.append(step)
            except (DataError, ProtocolError):
                continue  # damaged: the one before it will do
        return steps

    def load(self, run: str, step: int) -> Entry:
        """Client, terms and tensors of a checkpoint; ProtocolError when there is none."""
        if self._folder is None:
            entry = self._memory.get(run, {}).get(step)
            if entry is None:
                raise ProtocolError("there is no such checkpoint of this run here")
            return entry
        if not _RUN.fullmatch(run):
            raise ProtocolError("a run is named by 32 hexadecimal digits")
        tensors, values = read_tensors(self._folder / run / f"{step}.safetensors", _FORMAT)
        client, terms = values.get("client"), values.get("terms")
        if not isinstance(client, str) or not isinstance(terms, dict):
            raise DataError(f"the checkpoint {step} of run {run} is damaged")
        try:
            return client, Terms.from_json(terms), tensors
        except WireError as error:
            raise DataError(f"the checkpoint {step} of run {run} is damaged: {error}") from error

    def _on_disk(self, run: str) -> list[int]:
        if self._folder is None or not _RUN.fullmatch(run):
            return []
        names = [path.stem for path in (self._folder / run).glob("*.safetensors")]
        return [int(name) for name in names if name.isdigit()]


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
