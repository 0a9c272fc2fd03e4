"""`hesplit-native serve`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hesplit_native.choices import Precision
from hesplit_native.cli.fields import options_from_fields
from hesplit_native.cli.options import set_threads

if TYPE_CHECKING:
    from rich.console import Console

    from hesplit_native.protocols.budget import Budget
    from hesplit_native.protocols.metrics import Metrics

KEEP_DAYS = 30.0


@dataclass(frozen=True)
class Listening:
    """Where, and to whom."""

    host: str = "127.0.0.1"
    port: int = field(default=7000, metadata={"min": 0, "max": 65535})
    tls: Path | None = None
    insecure: bool = False
    timeout: float = field(default=300.0, metadata={"min": 1.0})
    max_clients: int = 32
    threads: int = 1
    workers: int = field(default=1, metadata={"min": 1, "max": 256})
    metrics: str | None = None


@dataclass(frozen=True)
class Shares:
    """What clients get."""

    memory: float | None = field(default=None, metadata={"min": 1.0})
    memory_per_client: float | None = field(default=None, metadata={"min": 1.0})
    queries: int | None = field(default=None, metadata={"min": 0})
    query_ledger: Path | None = None

    @property
    def memory_bytes(self) -> int | None:
        """Of all clients."""
        return None if self.memory is None else int(self.memory * 2**20)

    @property
    def client_bytes(self) -> int | None:
        """Of one client."""
        return None if self.memory_per_client is None else int(self.memory_per_client * 2**20)


@dataclass(frozen=True)
class Training:
    """Of layers that clients train."""

    output: Path | None = None
    checkpoints: Path | None = None
    keep_checkpoints: float | None = field(default=None, metadata={"min": 0.01})
    sessions: int | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Frozen:
    """Of layers of a model that are used as they are."""

    precision: Precision | None = None
    no_backward: bool = False
    epoch: str | None = None
    no_hints: bool = False
    private_weights: bool = False
    weight_norm: float | None = None


@dataclass(frozen=True)
class Model:
    """A model whose layers are served, or are where training begins."""

    model: Path | None = None
    train: bool = field(default=False, metadata={"flags": ["--train/--freeze"]})
    layers: list[str] | None = None
    transposed: list[str] | None = None
    frozen: Frozen = Frozen()


@dataclass(frozen=True)
class Holding:
    """What is served."""

    training: Training = Training()
    served: Model = Model()


@dataclass(frozen=True)
class Screen:
    """Where a server says what happens: on the terminal and, where --metrics was given, to Prometheus."""

    console: Console
    event: Callable[[str], None]
    counters: Metrics | None

    def show_budget(self, budget: Budget) -> None:
        """Metrics of the memory that clients take."""
        if self.counters is not None:
            self.counters.show("hesplit_memory_held_bytes", "Memory that clients take.", lambda: budget.held)
            self.counters.show("hesplit_memory_limit_bytes", "What they may take.", lambda: budget.total)

    def say_where(self, listening: Listening, port: int) -> None:
        """The port that clients connect to."""
        how = "mutual TLS" if listening.tls is not None else "no TLS"
        self.console.print(f"listening on {listening.host}:{port} ({how})", highlight=False)

    def say_queries(self, queries: int | None) -> None:
        """The budget of each client, where there is one."""
        if queries:
            self.console.print(f"queries: {queries} answers about a layer for one client", highlight=False)


_HELP = {
    "host": "Address to listen on.",
    "port": "0 lets the system choose.",
    "tls": "Folder of `hesplit-native certs`: mutual TLS.",
    "insecure": "Listen to other machines without TLS.",
    "timeout": "Seconds without a message after which a connection is closed.",
    "max_clients": "Connections at once.",
    "threads": "Threads of torch and of the core, in each process.",
    "workers": "Processes behind the port, each with its share of the memory; for layers that clients train, with --checkpoints.",
    "metrics": "Where Prometheus finds /metrics: host:port; :port is this machine only.",
    "memory": "MiB that all clients together may take; half of the machine's memory unless given.",
    "memory_per_client": "MiB that one client may take; a quarter of --memory unless given.",
    "queries": "Answers about a layer that one client gets, over all connections and starts: a row is one, a row of training two. "
    "Clients without a certificate count as one. With --private-weights half of what determines the layer unless given, and 0 is any "
    "number.",
    "query_ledger": "Directory that counts them, which several servers may share; goes with --queries, or --private-weights.",
    "training": "Layers that clients train",
    "output": "Directory for the trained layer of each session.",
    "checkpoints": "Directory from which sessions resume when this process was killed.",
    "keep_checkpoints": "Days without a new checkpoint after which a run is removed from --checkpoints; "
    f"{KEEP_DAYS:g} unless given.",
    "sessions": "Stop after so many finished sessions.",
    "labels": "This server's own labels, for clients of the protocol vertical: an .npy file, or text with a row a line, in the order "
    "of the clients' rows.",
    "served": "A model",
    "model": "A .safetensors file, or a folder of them, whose linear layers are served.",
    "train": "Layers of the model are what clients' training starts from, each with its copy; or are used as they are.",
    "layers": "Pattern for the names of its layers, e.g. 'encoder.*'; several times for several.",
    "transposed": "Pattern for layers that are stored as inputs by outputs, like those of GPT-2.",
    "frozen": "A model whose layers are used as they are",
    "precision": "float32 unless given; bfloat16 makes replies smaller.",
    "no_backward": "Answer no requests for gradients, at half the memory.",
    "epoch": "Any text; another one is another public matrix (docs/security.md).",
    "no_hints": "Clients fetch nothing of the layers, and send keys of under a megabyte once: for few rows and many outputs, such as "
    "tables that are searched. Gradients are not answered.",
    "private_weights": "Replies hide the weights, gradients are not answered, and a budget of queries is needed (docs/security.md).",
    "weight_norm": "With --private-weights: the l2 norm that no row of a layer, with its bias, is longer than, which clients are "
    "told; that of the longest, rounded up to a power of two, unless given.",
}


@options_from_fields(_HELP)
def serve_command(listening: Listening, shares: Shares, holding: Holding) -> None:
    """Hold linear layers for any number of clients at once: such as they train, or those of a model to be used (--model)."""
    from hesplit_native.cli.paths import output_folder
    from hesplit_native.cli.workers import end_on_sigterm
    from hesplit_native.protocols.metrics import Metrics

    _check_options(listening, holding)
    if shares.query_ledger is not None:
        output_folder(shares.query_ledger)
    console, event = terminal()
    set_threads(listening.threads)
    end_on_sigterm()
    try:
        with nullcontext() if listening.metrics is None else Metrics(listening.metrics) as counters:
            if counters is not None:
                console.print(f"metrics on port {counters.port}", highlight=False)
            screen = Screen(console, event, counters)
            if holding.served.model is None or holding.served.train:
                from hesplit_native.cli.serve_training import serve_training

                serve_training(screen, listening, shares, holding.training, holding.served)
            else:
                from hesplit_native.cli.serve_model import serve_model

                serve_model(screen, listening, shares, holding.served.model, holding.served)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def terminal() -> tuple[Console, Callable[[str], None]]:
    """The terminal, and what writes a line of the log there."""
    from rich.console import Console

    from hesplit_native.cli.terminal import one_line

    console = Console()
    return console, lambda line: console.print(one_line(line), highlight=False, markup=False, soft_wrap=True)


def _check_options(listening: Listening, holding: Holding) -> None:
    """ParameterError for options that belong to another kind of server."""
    training, model, frozen = holding.training, holding.served, holding.served.frozen
    of_training: dict[str, object] = {
        "--output": training.output, "--checkpoints": training.checkpoints, "--keep-checkpoints": training.keep_checkpoints,
        "--sessions": training.sessions, "--labels": training.labels,
    }  # fmt: skip
    of_models: dict[str, object] = {
        "--layers": model.layers, "--transposed": model.transposed, "--train": model.train or None,
    }  # fmt: skip
    of_frozen: dict[str, object] = {
        "--precision": frozen.precision, "--no-backward": frozen.no_backward or None, "--epoch": frozen.epoch,
        "--no-hints": frozen.no_hints or None,
        "--private-weights": frozen.private_weights or None, "--weight-norm": frozen.weight_norm,
    }  # fmt: skip
    of_training["--workers"] = listening.workers if listening.workers > 1 else None
    if model.model is None:
        _refuse(of_models | of_frozen, "--model")
    elif model.train:
        _refuse(of_frozen, "layers that are used as they are, not with --train")
    else:
        _refuse(of_training, "layers that are trained, not with --model alone (--train)")


def _refuse(options: dict[str, object], what: str) -> None:
    """ParameterError for options that belong to the other kind of server."""
    from hesplit_native.errors import ParameterError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ParameterError(f"{', '.join(given)} {'goes' if len(given) == 1 else 'go'} with {what}")
