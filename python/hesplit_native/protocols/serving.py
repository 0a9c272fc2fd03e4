"""`serve`: a model's linear layers behind a port."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor, nn

from hesplit_native.choices import Precision
from hesplit_native.errors import ParameterError, RangeError
from hesplit_native.layer.frozen import FrozenServer
from hesplit_native.layer.keyed import KeyedServer
from hesplit_native.layer.weights import Weights, weights_of
from hesplit_native.protocols.budget import default_memory, mebibytes
from hesplit_native.protocols.frozen import Answered, FrozenService
from hesplit_native.protocols.frozen_messages import Description
from hesplit_native.protocols.queries import QueryLedger, make_ledger, make_private_ledger
from hesplit_native.protocols.served_layers import FrozenLayer, KeyedLayer
from hesplit_native.transport import ClientInfo, GrpcServer, Limits, ServerTls, join_address
from hesplit_native.transport.in_process import Conversation

Source = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]


class ModelServer:
    """A model that is being served. Made by `serve`; ends with `close` or its ``with`` block."""

    def __init__(self, service: FrozenService, transport: GrpcServer, host: str) -> None:
        self.service = service
        self._transport = transport
        self._host = host

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._transport.port

    @property
    def address(self) -> str:
        """What `connect` takes, on this machine or wherever `host` is known."""
        return join_address(self._host, self.port)

    @property
    def layers(self) -> Mapping[str, Description]:
        """What is served, by name."""
        return {name: layer.description for name, layer in self.service.layers.items()}

    def converse(self, client: ClientInfo) -> Conversation:
        """Answer a connection within this process."""
        return self.service.converse(client)

    def close(self) -> None:
        """End all connections, and stop."""
        self._transport.stop()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(
    model: Source,
    *,
    layers: str | Iterable[str] = "*",
    transposed: str | Iterable[str] = (),
    precision: Precision = "float32",
    backward: bool | None = None,
    epoch: str = "",
    hints: bool = True,
    private_weights: bool = False,
    weight_norm: float | None = None,
    host: str = "127.0.0.1",
    port: int = 7000,
    tls: ServerTls | str | os.PathLike[str] | None = None,
    insecure: bool = False,
    memory: int | None = None,
    memory_per_client: int | None = None,
    queries: int | None = None,
    query_ledger: str | os.PathLike[str] | None = None,
    max_clients: int = 32,
    timeout: float = 300.0,
    on_event: Callable[[str], None] = lambda text: None,
    on_request: Callable[[Answered], None] = lambda answered: None,
) -> ModelServer:
    """Serve the linear layers of a model as they are now: clients use them on encrypted rows, nobody changes them.

    Clients fetch products of the weights with a public matrix, from which the weights follow: what is served is not hidden from them,
    unless with ``private_weights``. The server learns sizes and timing (docs/security.md).

    Parameters
    ----------
    model
        A module, tensors by name, a ``.safetensors`` file or a folder of these (`hesplit_native.layer.weights`).
    layers
        Patterns, as of shells, for the names of layers.
    transposed
        Patterns for layers that tensors or files hold as [in_features, out_features] (GPT-2's).
    precision
        What replies are as good as; ``"bfloat16"`` makes them smaller.
    backward
        Also answer for gradients, ``dJ/dx = dJ/dy W``, which takes twice the memory. None: yes, but not without hints, nor with
        ``private_weights``, which cannot be kept from whoever chooses dJ/dy.
    epoch
        Any text: another one is another public matrix, for which clients fetch their hints again (docs/security.md). Private layers
        have none.
    hints
        False: clients fetch nothing of the layers, and send keys of under a megabyte once: for few rows and many outputs, such as
        tables that are searched (`hesplit_native.search`). Gradients are not answered.
    private_weights
        Replies hide the weights, and a budget of queries is needed: `query_ledger`, or ``queries=0`` to go without.
    weight_norm
        With ``private_weights``: what clients are told of the weights, that no row of any layer, with its bias, has a larger l2 norm.
        None: that of each layer's largest row, rounded up to a power of two.
    host, port
        Where to listen; port 0 lets the system choose.
    tls
        Certificates for mutual TLS, or the folder of `hesplit-native certs` with them; None: connections of this machine only, or
        ``insecure``.
    memory
        Bytes for all clients' requests and for hints that are kept; None: half of the machine's, less what the layers take.
    memory_per_client
        Bytes for the requests of one client; None: a quarter of `memory`.
    queries
        Rows that one client gets answered by each layer, forward and backward together, over all connections and starts; beyond
        that requests raise `QueryBudgetExceeded` there. Clients without a certificate count as one. None: any number; with
        ``private_weights`` half of what determines a layer (`default_queries`), and 0 is any number.
    query_ledger
        Folder that counts them, which several servers of the same layers may share; goes with `queries`, or ``private_weights``.
    max_clients
        Connections at once.
    timeout
        Seconds without a message after which a connection is closed.
    on_event, on_request
        Called with lines for a log, and with every request.

    Raises
    ------
    DataError, ParameterError
        As `weights_of` raises them; certificates that are missing or not in order; no memory is left; an address of another machine
        without TLS; private weights without a budget, or with what would tell them.
    RangeError
        Weights beyond ``weight_norm``, with what would do.
    ProtocolError
        The port is taken.
    """
    certificates = tls if tls is None or isinstance(tls, ServerTls) else ServerTls.load(tls)
    found = list(weights_of(model, layers, transposed=transposed))
    folder = None if query_ledger is None else Path(query_ledger)
    prepared: Sequence[FrozenLayer | KeyedLayer]
    if private_weights or not hints:
        prepared = _prepare_keyed(
            found, precision, weight_norm, private=private_weights, backward=backward, epoch=epoch
        )
    else:
        prepared = [_prepare(w, precision, epoch, backward is not False) for w in found]
    if private_weights:
        ledger = make_private_ledger(
            (layer.description for layer in prepared), queries, folder, on_event, levels=_levels(found)
        )
    elif weight_norm is not None:
        raise ParameterError("weight_norm (--weight-norm) goes with private weights (--private-weights)")
    else:
        ledger = make_ledger(queries, folder, on_event)
    service = make_service(
        prepared,
        memory=memory,
        memory_per_client=memory_per_client,
        queries=ledger,
        on_event=on_event,
        on_request=on_request,
    )
    transport = GrpcServer(
        join_address(host, port),
        service.converse,
        tls=certificates,
        insecure=insecure,
        limits=Limits(idle_seconds=timeout, max_clients=max_clients),
        on_event=on_event,
    )
    transport.start()
    return ModelServer(service, transport, host)


def make_service(
    layers: Sequence[FrozenLayer | KeyedLayer],
    *,
    memory: int | None = None,
    memory_per_client: int | None = None,
    queries: QueryLedger | None = None,
    on_event: Callable[[str], None] = lambda text: None,
    on_request: Callable[[Answered], None] = lambda answered: None,
) -> FrozenService:
    """A service whose hints and requests share `memory` (as in `serve`)."""
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    resident = sum(layer.resident_bytes for layer in layers)
    total = default_memory() - resident if memory is None else memory
    longest = max((matrix.hint_bytes for matrix in matrices), default=0)
    computing = max((matrix.hint_working_bytes for matrix in matrices), default=0)
    hints = max(longest, min(total // 2, sum(matrix.hint_bytes for matrix in matrices)))
    requests = total - hints - computing
    if requests <= 0:
        of_hints = (
            f", their longest hint {mebibytes(longest)} and {mebibytes(computing)} while it is computed"
            if matrices
            else ""
        )
        raise ParameterError(
            f"no memory is left for requests: the layers take {mebibytes(resident)}{of_hints}, of {mebibytes(max(total, 0))}; "
            "serve fewer layers, or give more (--memory)"
        )
    return FrozenService(
        layers,
        memory=requests,
        memory_per_client=total // 4 if memory_per_client is None else memory_per_client,
        memory_kept=requests // 2,  # or a few large clients would lock everybody out
        hint_memory=hints,
        queries=queries,
        on_event=on_event,
        on_request=on_request,
    )


def _prepare(weights: Weights, precision: Precision, epoch: str, backward: bool) -> FrozenLayer:
    return FrozenLayer(
        weights.name,
        FrozenServer(weights.weight, weights.bias, precision=precision, epoch=epoch),
        FrozenServer(weights.weight.T, precision=precision, epoch=epoch) if backward else None,
    )


def _levels(found: Iterable[Weights]) -> dict[str, int]:
    """How many different weights layers have that were quantised: far fewer than weights, and no more than 16 bits hold."""
    counts = {w.name: (len(np.unique(w.weight)), w.weight.size) for w in found}
    return {name: levels for name, (levels, size) in counts.items() if levels <= min(1 << 16, size // 4)}


def _prepare_keyed(
    found: Iterable[Weights],
    precision: Precision,
    weight_norm: float | None,
    *,
    private: bool,
    backward: bool | None,
    epoch: str,
) -> list[KeyedLayer]:
    if backward:
        raise ParameterError(
            "private weights are served without backward requests: the answer to a dJ/dy that is 1 at one output is a row of W"
            if private
            else "backward requests are answered with hints only"
        )
    if epoch:
        raise ParameterError(
            f"an epoch (--epoch) is of the public matrix, which {'private layers' if private else 'layers without hints'} do not have"
        )
    layers = []
    for w in found:
        try:
            server = KeyedServer(w.weight, w.bias, private=private, precision=precision, weight_norm=weight_norm)
        except RangeError as error:
            raise RangeError(f"{w.name}: {error}") from error
        layers.append(KeyedLayer(w.name, server))
    return layers
