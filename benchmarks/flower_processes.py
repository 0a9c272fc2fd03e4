"""A federation as separate processes on loopback, all under TLS: SuperLink, SuperNodes, `hesplit-native serve`, for `examples/flower`.

python -m benchmarks.flower_processes                       # three sites on synthetic heartbeats
python -m benchmarks.flower_processes --mitdb path/to/mitdb # on MIT-BIH, divided by patients
python -m benchmarks.flower_processes --kill                # one of them is killed in the midst of a round, and comes back
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.server_process import server_process

APP = Path(__file__).parents[1] / "examples" / "flower"
SITES = ("hospital-a", "hospital-b", "hospital-c")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(name: str) -> str:
    """One of Flower's, beside this Python."""
    return str(Path(sys.executable).parent / name)


def wait_for(condition, seconds, what):
    """What `condition` gives as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.2)
    return found


class Processes:
    """The processes of one federation, and what they write, in a folder."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder, self.server = folder, server
        self.link = f"127.0.0.1:{free_port()}"
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.env = os.environ | {
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "lab"\n\n[superlink.lab]\naddress = "{self.link}"\n'
            f'root-certificates = "{folder / "tls" / "ca.pem"}"\n',
            encoding="utf-8",
        )

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A process with a group of its own, so that its children end with it; what it says is in a file of that name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [command(arguments[0]), *arguments[1:]], stdout=log, stderr=log, env=self.env, start_new_session=True
            )

    def said(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start_link(self) -> subprocess.Popen[bytes]:
        tls = self.folder / "tls"
        found = self.start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", self.link.rsplit(":", 1)[1],
            "--ssl-certfile", str(tls / "server.pem"), "--ssl-keyfile", str(tls / "server.key"),
            "--ssl-ca-certfile", str(tls / "ca.pem"), "--disable-runtime-dependency-installation",
        )  # fmt: skip
        wait_for(lambda: "Application startup complete" in self.said("superlink"), 60, "the SuperLink")
        return found

    def start_node(self, site: str, mitdb: str = "") -> None:
        tls = self.folder / "tls"
        values = {"site": site, "server": self.server, "tls": tls, "state": self.folder / "state", "mitdb": mitdb}
        config = " ".join(f'{key}="{value}"' for key, value in values.items())
        before = self.said(site).count("SuperNode ID")
        self.nodes[site] = self.start(
            site, "flower-supernode", "--superlink", self.link, "--root-certificates", str(tls / "ca.pem"),
            "--port", str(free_port()), "--node-config", f"{config} partition-id={SITES.index(site)}",
        )  # fmt: skip
        wait_for(lambda: self.said(site).count("SuperNode ID") > before, 60, site)

    def kill_node(self, site: str) -> None:
        """With everything that it started, as a machine that loses power."""
        os.killpg(self.nodes[site].pid, signal.SIGKILL)
        self.nodes.pop(site).wait()

    def run(self, **config: object) -> subprocess.Popen[bytes]:
        """`flwr run`, whose log is that of the server app."""
        values = " ".join(f"{key}={_toml(value)}" for key, value in config.items())
        options = ["--run-config", values] if config else []
        return self.start("run", "flwr", "run", str(APP), "lab", "--stream", *options)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@contextmanager
def federation(folder: Path, *, mitdb: str = "") -> Iterator[Processes]:
    """All processes but `flwr run`, once they are there."""
    certs = [sys.executable, "-m", "hesplit_native", "certs", str(folder / "tls"), "--host", "127.0.0.1"]
    clients = [option for site in SITES for option in ("--client", site)]
    subprocess.run([*certs, *clients], check=True, capture_output=True)
    served = (
        "--tls",
        str(folder / "tls"),
        "--checkpoints",
        str(folder / "checkpoints"),
        "--output",
        str(folder / "layers"),
    )
    with ExitStack() as stack:
        address, _, faults = stack.enter_context(server_process(*served))
        found = Processes(folder, address)
        started = [found.start_link()]
        stack.callback(lambda: _end([*found.nodes.values(), *started]))
        for site in SITES:
            found.start_node(site, mitdb)
        yield found
    assert not faults, faults


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left of its children
        process.wait()


def rounds(log: str) -> list[tuple[int, int]]:
    """Of what `flwr run` said: results and failures of every round's training."""
    return [(int(a), int(b)) for a, b in re.findall(r"aggregate_train: Received (\d+) results and (\d+) failures", log)]


def scores(log: str, what: str = "accuracy") -> list[float]:
    """Of every round's evaluation."""
    parts = re.findall(r"aggregate_evaluate: .*\n.*Aggregated MetricRecord: (\{.*\})", log)
    return [float(re.findall(rf"'{what}': ([\d.e+-]+)", part)[0]) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mitdb", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of a site in a round")
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, federation(Path(name), mitdb=options.mitdb) as running:
        start = time.monotonic()
        process = running.run(**{"num-server-rounds": options.rounds, "local-epochs": options.epochs})
        if options.kill:
            wait_for(lambda: rounds(running.said("run")), 600, "the first round")
            seen = running.said(SITES[1]).count("Start `flwr-clientapp`")
            wait_for(lambda: running.said(SITES[1]).count("Start `flwr-clientapp`") > seen + 1, 600, "the second round")
            running.kill_node(SITES[1])
            print(f"{time.monotonic() - start:6.1f} s: {SITES[1]} is killed", flush=True)
            time.sleep(5)
            running.start_node(SITES[1], options.mitdb)
            print(f"{time.monotonic() - start:6.1f} s: {SITES[1]} is back", flush=True)
        begun: list[float] = []
        ended: list[float] = []
        while process.poll() is None:
            log = running.said("run")
            for moments, what in ((begun, "configure_train: Sampled"), (ended, "aggregate_train: Received")):
                moments += [time.monotonic()] * (log.count(what) - len(moments))
            time.sleep(0.1)
        log = running.said("run")
        print(log if process.returncode or not scores(log) else "", end="")
        at_work = [float(value) for value in re.findall(r"aggregate_train:.*\n.*'seconds': ([\d.e+-]+)", log)]
        for number, row in enumerate(zip(rounds(log), scores(log), begun, ended, at_work, strict=False), start=1):
            (results, failures), accuracy, first, last, seconds = row
            print(
                f"round {number}: {results} results, {failures} failures, accuracy {accuracy:.4f}, {last - first:.1f} s, of which the "
                f"sites trained {seconds:.1f} s"
            )
        print(f"{time.monotonic() - start:.1f} s in all")


if __name__ == "__main__":
    main()
