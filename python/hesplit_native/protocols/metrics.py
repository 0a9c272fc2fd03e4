"""What a server says about itself to Prometheus: sums over all clients, and nothing of any single one."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from hesplit_native.errors import ParameterError, ProtocolError
from hesplit_native.protocols.frozen import Answered
from hesplit_native.transport.grpc import parse_address

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters behind ``http://host:port/metrics``, from the moment that it is made.

    Parameters
    ----------
    address
        ``"host:port"``; ``":port"`` is this machine only.

    Raises
    ------
    ParameterError
        No such address; prometheus_client is not installed.
    ProtocolError
        The port is taken.
    """

    def __init__(self, address: str) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
        except ImportError as error:
            raise ParameterError(
                f"{error.name} is missing: pip install -c constraints.txt '.[serve]' (from the source) brings it"
            ) from error
        host, port = parse_address(f"127.0.0.1{address}" if address.startswith(":") else address)
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "hesplit_requests",
            "Requests by outcome: ok, or the error's name.",
            ["request", "outcome"],
            registry=registry,
        )
        self._rows = Counter("hesplit_rows", "Encrypted rows that were multiplied.", ["request"], registry=registry)
        self._received = Counter("hesplit_received_bytes", "Bytes of requests.", ["request"], registry=registry)
        self._sent = Counter("hesplit_sent_bytes", "Bytes of replies.", ["request"], registry=registry)
        self._seconds = Histogram(
            "hesplit_request_seconds", "Work on a request.", ["request"], registry=registry, buckets=_SECONDS
        )
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ProtocolError(f"cannot listen on {address} for metrics: {error.strerror or error}") from error
        self.port: int = self._server.server_port

    def count(self, answered: Answered) -> None:
        """Another request was answered or refused."""
        kind = answered.request
        self._requests.labels(kind, answered.outcome).inc()
        self._received.labels(kind).inc(answered.received)
        self._sent.labels(kind).inc(answered.sent)
        self._seconds.labels(kind).observe(answered.seconds)
        if answered.outcome == "ok" and answered.rows:
            self._rows.labels(kind).inc(answered.rows)

    def show(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is asked for whenever somebody looks."""
        from prometheus_client import Gauge

        Gauge(name, text, registry=self._registry).set_function(value)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
