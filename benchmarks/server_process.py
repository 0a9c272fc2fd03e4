"""`hesplit-native serve` in a process of its own, for benchmarks that load it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-c", "from hesplit_native.cli import app; app()", "serve", "--port", "0"]
#: What the log of a server says of a fault of its own, not of a client's.
FAULTS = re.compile(r"internal error|Traceback|Exception ignored|\w+(Error|Exception): ")

#: Address, process, and its faults, all when it has ended.
Serving = tuple[str, int, list[str]]


@contextmanager
def server_process(*options: str) -> Iterator[Serving]:
    """A server with these options, once it listens."""
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = ""
            while (found := re.search(r"listening on \S+:(\d+) ", said)) is None:
                line = server.stdout.readline()
                assert line, f"the server ended before it listened: {said}"
                said += line
            lines = server.stdout
            faults: list[str] = []
            reader = threading.Thread(target=lambda: faults.extend(filter(FAULTS.search, lines)), daemon=True)
            reader.start()
            yield f"127.0.0.1:{found[1]}", server.pid, faults
        finally:
            server.terminate()
            server.wait(30)
        reader.join(30)


def cpu_seconds(process: int) -> float:
    """CPU time of a process and those that it started."""
    total = 0.0
    for each in family(process):
        fields = Path(f"/proc/{each}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def family(process: int) -> list[int]:
    """A process and those that it started, and so on."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            found += family(int(child))
    return found


def memory(process: int) -> int:
    """MiB that a process has at present."""
    return _status(process, "VmRSS")


def tree_memory(process: int) -> int:
    """MiB that a process and those that it started have at present; what they share counts for each."""
    return sum(memory(each) for each in family(process))


def largest_memory(process: int) -> int:
    """MiB that a process had at the most so far."""
    return _status(process, "VmHWM")


def _status(process: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) // 1024
