"""`hesplit-native serve --model` for layers that are used as they are."""

from __future__ import annotations

from pathlib import Path
from time import sleep

from rich.table import Table

from hesplit_native.cli.serve import Listening, Model, Screen, Shares
from hesplit_native.protocols.budget import give_back_memory, mebibytes
from hesplit_native.protocols.frozen import FrozenService
from hesplit_native.protocols.serving import serve

_TIDY_SECONDS = 10.0


def serve_model(screen: Screen, listening: Listening, shares: Shares, path: Path, model: Model) -> None:
    """Serve until this process is ended."""
    frozen = model.frozen
    server = serve(
        path,
        layers=model.layers or "*",
        transposed=model.transposed or (),
        precision=frozen.precision or "float32",
        backward=False if frozen.no_backward else None,
        epoch=frozen.epoch or "",
        hints=not frozen.no_hints,
        private_weights=frozen.private_weights,
        weight_norm=frozen.weight_norm,
        host=listening.host,
        port=listening.port,
        tls=listening.tls,
        insecure=listening.insecure,
        memory=shares.memory_bytes,
        memory_per_client=shares.client_bytes,
        queries=shares.queries,
        query_ledger=shares.query_ledger,
        max_clients=listening.max_clients,
        timeout=listening.timeout,
        on_event=screen.event,
        on_request=screen.counters.count if screen.counters is not None else lambda answered: None,
    )
    with server:
        screen.console.print(_layers(server.service))
        screen.console.print(_summary(server.service), highlight=False, soft_wrap=True)
        screen.say_where(listening, server.port)
        screen.say_queries(shares.queries)
        _show_memory(screen, server.service)
        while True:
            sleep(_TIDY_SECONDS)
            give_back_memory()


def _layers(service: FrozenService) -> Table:
    """What is served, and the memory that it takes; of layers without hints also what clients are told, and how much they get."""
    keyed = any(layer.description.keyed is not None for layer in service.layers.values())
    table = Table("layer", "inputs", "outputs", "bias", "memory", *(_OF_KEYED if keyed else ["hints"]))
    for layer in service.layers.values():
        about = layer.description
        agreed = about.keyed
        if agreed is None:
            more = [mebibytes(sum(matrix.hint_bytes for matrix in layer.matrices))]
        else:
            limit = service.query_limit(about.name)
            more = [
                f"{agreed.weight_norm:g}",
                f"{agreed.error_bound:.1e}",
                "any number" if limit is None else str(limit),
            ]
        table.add_row(
            about.name,
            str(about.in_features),
            str(about.out_features),
            "yes" if about.bias else "no",
            mebibytes(layer.resident_bytes),
            *more,
        )
    return table


_OF_KEYED = ["weight norm", "error", "queries"]


def _summary(service: FrozenService) -> str:
    first = next(iter(service.layers.values())).description
    how = "" if first.keyed is None else "private weights, " if first.private else "without hints, "
    hints = "" if first.keyed is not None else f"{mebibytes(service.hints.limit)} for hints, "
    return (
        f"{len(service.layers)} layers, {first.precision}, {how}{'forward and backward' if first.backward else 'forward only'}; "
        f"memory: {mebibytes(service.resident_bytes)} for them, {hints}{mebibytes(service.budget.total)} for all clients, "
        f"{mebibytes(service.budget.per_client)} for one"
    )


def _show_memory(screen: Screen, service: FrozenService) -> None:
    screen.show_budget(service.budget)
    if screen.counters is not None:
        screen.counters.show("hesplit_hint_memory_bytes", "Hints that are kept.", lambda: service.hints.held)
        screen.counters.show("hesplit_model_memory_bytes", "The prepared matrices.", lambda: service.resident_bytes)
