"""Runs the rows of a table that have no result yet, several at a time."""

from __future__ import annotations

import json
import multiprocessing
import queue as queues
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hesplit_native.reproduce.rows import run_row
from hesplit_native.reproduce.tables import Row


def results(rows: list[Row], folder: Path) -> dict[str, dict[str, Any]]:
    """What has been measured so far, by row; a result of another configuration does not count."""
    found = {}
    for row in rows:
        path = folder / f"{row.id}.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        ours = json.loads(json.dumps(asdict(row.config)))
        if all(values.get("config", {}).get(key) == value for key, value in ours.items()):
            found[row.id] = values
    return found


def run(
    rows: list[Row],
    folder: Path,
    sources: dict[str, str | None],
    *,
    jobs: int,
    on_progress: Callable[[Row, int, int], None],
    on_done: Callable[[Row, BaseException | None], None],
) -> None:
    """Run what is missing; a row that fails is reported, the others go on."""
    folder.mkdir(parents=True, exist_ok=True)
    have = results(rows, folder)
    missing = [row for row in rows if row.id not in have]
    if not missing:
        return
    by_id = {row.id: row for row in missing}
    # Spawned: a forked child of a process with threads may deadlock.
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        said = manager.Queue()
        waiting: dict[Future[None], Row] = {pool.submit(run_row, row, folder, sources, said): row for row in missing}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.3, return_when=FIRST_COMPLETED)
                while True:
                    try:
                        row_id, at, total = said.get_nowait()
                    except queues.Empty:
                        break
                    on_progress(by_id[row_id], at, total)
                for future in done:
                    on_done(waiting.pop(future), future.exception())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process.pid is not None and process.name.startswith("SpawnProcess"):
                    process.terminate()
            raise
