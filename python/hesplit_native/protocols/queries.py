"""How many answers about its weights a server gives one client.

No cryptography hides a linear layer from whoever may ask enough independent questions and sees the answers (docs/security.md), so
these are counted: in rows, not in requests, because every row of a request is a question of its own.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hesplit_native.errors import ParameterError, ProtocolError, QueryBudgetExceeded, WireError
from hesplit_native.files import locked, make_folder, write_atomically
from hesplit_native.protocols import PROTOCOLS, messages
from hesplit_native.protocols.frozen_messages import Description
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import ClientInfo

_SECONDS = 60.0  # to wait for other servers that count
_ANSWER_BITS = 25  # that the flood leaves of an answer, at most, as private layers are served
_AHEAD = 1024  # answers that are counted before anybody asks for them, at most

#: No client has this id (`check_client_id`): all share it whose id is only what they say.
_UNAUTHENTICATED = "without a certificate"

# A request of the core begins with a header, then says how many samples it holds (cpp/wire/format.h, cpp/linear/messages.h).
_SAMPLES_AT = 64
_SAMPLES = struct.Struct("<I")


def rows_that_solve(in_features: int, out_features: int, *, bias: bool = True, backward: bool = False) -> int:
    """Answers from which ``y = x W^T (+ b)`` follows exactly, whatever computed them, for questions that the client chooses.

    A row of y is out_features equations, one for each row of W: in_features + 1 independent x determine W and b, in_features
    without a bias. With `backward` a row of ``dJ/da = dJ/dy W`` is in_features equations, one for each column, so that
    out_features of them determine W, whatever its width. Partial sums, which replies on slots hold, are more equations a row.
    """
    forward = in_features + (1 if bias else 0)
    return min(forward, out_features) if backward else forward


def default_queries(
    in_features: int, out_features: int, *, bias: bool = True, backward: bool = False, levels: int | None = None
) -> int:
    """A budget for weights that are to stay private: half of the answers that determine them, at least one.

    Below `rows_that_solve` the questions span only a part of the space, and any answer to a question outside of it fits what was
    seen. Half, and not one less, because clients may know something of W beforehand, and may put their answers together.

    That is so where weights may be any numbers. Weights of few `levels` (int8: 256) are told several at once: a question of powers
    of a base has them as the digits of its answer, of which a reply holds `_ANSWER_BITS` bits.

    Raises
    ------
    ParameterError
        Where a single answer gives W, so that no budget can keep it private.
    """
    solving = rows_that_solve(in_features, out_features, bias=bias, backward=backward)
    if solving <= 1:
        raise ParameterError(
            f"one answer of a layer {in_features} -> {out_features} gives its weights: no number of queries keeps them private"
            + ("; answer no backward requests" if backward else "")
        )
    together = 1 if levels is None else max(1, _ANSWER_BITS // math.ceil(math.log2(max(2, levels))))
    return max(1, min(in_features, solving) // (2 * together))


def answered_rows(terms: Terms, kind: MessageType, body: memoryview) -> tuple[int, int]:
    """Rows of a session's request that are answered about W, and how many answers each of them gets: y, in training dJ/da too.

    The body is one for which `Answers.work` raised nothing.

    Raises
    ------
    WireError
        It is malformed.
    """
    if kind not in (MessageType.FORWARD, MessageType.EVALUATE, MessageType.LEARN):
        return 0, 0
    if PROTOCOLS[terms.protocol].own_labels and kind is MessageType.LEARN:
        return messages.rows_announced(body, "rows"), 2  # dJ/da and the loss, from which y may follow
    training = kind is not MessageType.EVALUATE
    if PROTOCOLS[terms.protocol].encrypts:
        rows: int = _SAMPLES.unpack_from(body, _SAMPLES_AT)[0]
    else:
        possible = range(1, (terms.batch_size if training else terms.max_rows) + 1)
        rows = len(messages.take_matrix(body, "activations", rows=possible, columns=terms.in_features)[0])
    return rows, 2 if training else 1


class QueryLedger:
    """Answers that each client got about each layer, in a folder of files that never count backwards, and no more than so many.

    What is answered is counted on disk, file and folder synced, before it is computed: where many are left a few of these ahead,
    so that not every request waits for a disk. What a crash leaves unanswered stays counted. Several servers may count in one
    folder: each under a lock beside a client's file. Clients are told apart by their certificates; all without one are one client
    here. Safe to use from several threads.

    Parameters
    ----------
    folder
        Made where it is missing. ``<client>.json`` holds one client's answers by layer.
    limit
        Answers about one layer for one client, at least 1; or by the layer's name.
    on_event
        Called with a line for the log where a file cannot be used, whose path is none of a client's business.

    Raises
    ------
    ParameterError
        For a limit below 1.
    OSError
        When the folder cannot be made.
    """

    def __init__(
        self, folder: Path, limit: int | Mapping[str, int], *, on_event: Callable[[str], None] = lambda text: None
    ) -> None:
        least = limit if isinstance(limit, int) else min(limit.values())
        if least < 1:
            raise ParameterError(f"a client gets 1 answer or more (queries), not {least}")
        make_folder(folder)
        self._limit = limit
        self._folder = folder
        self._on_event = on_event
        self._known: dict[str, dict[str, int]] = {}  # of each client, when this ledger last looked
        self._ahead: dict[
            tuple[str, str], int
        ] = {}  # by client and layer: counted by this ledger, and not answered yet
        self._lock = threading.Lock()
        self._process = os.getpid()

    def limit(self, layer: str) -> int:
        """Answers about this layer for one client."""
        return self._limit if isinstance(self._limit, int) else self._limit[layer]

    def take(self, client: ClientInfo, layers: tuple[str, ...], rows: int, *, answers: int = 1) -> None:
        """Count answers to so many rows about each of these layers, durably, before they are given: all, or none.

        Parameters
        ----------
        answers
            What one row gets.

        Raises
        ------
        QueryBudgetExceeded
            There are not so many left to this client; says how many rows would do.
        ProtocolError
            They cannot be counted: a full disk, or a file that is damaged or locked for a minute.
        """
        name = client.id if client.authenticated else _UNAUTHENTICATED
        with self._lock:
            if self._process != os.getpid():  # what a parent counted ahead before it forked is the parent's
                self._process, self._ahead = os.getpid(), {}
            if any(rows * answers > self._ahead.get((name, layer), 0) for layer in layers):
                self._count(client, name, layers, rows, answers)
            for layer in layers:
                self._ahead[name, layer] -= rows * answers

    def _count(self, client: ClientInfo, name: str, layers: tuple[str, ...], rows: int, answers: int) -> None:
        """Bring what is counted ahead to what such a request needs at least."""
        path, needed = self._folder / f"{name}.json", rows * answers
        try:
            with locked(path, _SECONDS):
                found, ahead = self._counted(name, path), dict(self._ahead)
                left = {
                    layer: max(0, self.limit(layer) - found.get(layer, 0)) + ahead.get((name, layer), 0)
                    for layer in layers
                }
                least = min(layers, key=lambda layer: left[layer])
                if needed > left[least]:
                    raise self._exceeded(client, least, rows, answers, left[least])
                for layer in layers:
                    more = max(0, needed - ahead.get((name, layer), 0))
                    # Few when few are left: one server shall not take them all from another.
                    more += min(_AHEAD, (left[layer] - needed) // 64) if more else 0
                    found[layer] = found.get(layer, 0) + more
                    ahead[name, layer] = ahead.get((name, layer), 0) + more
                write_atomically(path, json.dumps({"answered": found}).encode())
        except (OSError, WireError) as error:
            self._on_event(f"{client.id}: its queries could not be counted: {error}")
            raise ProtocolError(
                "the server could not count this request, so it is not answered; its log says why"
            ) from error
        self._known[name], self._ahead = found, ahead

    def _counted(self, name: str, path: Path) -> dict[str, int]:
        """By layer, as the file says, or what was known where that is more: a file that was removed or put back counts on."""
        found = dict(self._known.get(name, {}))
        for layer, count in _read(path).items():
            found[layer] = max(count, found.get(layer, 0))
        return found

    def _exceeded(self, client: ClientInfo, layer: str, rows: int, answers: int, left: int) -> QueryBudgetExceeded:
        whose = "one client" if client.authenticated else "all clients without a certificate together"
        possible = left // answers
        advice = f"ask with {possible} rows or fewer" if possible else "no more of these will be answered"
        return QueryBudgetExceeded(
            f"{rows} rows{' of training' if answers > 1 else ''} take {rows * answers} answers about {layer[:200] or 'the layer'}; "
            f"the server gives {whose} {self.limit(layer)} (--queries), of which {left} are left: {advice}"
        )


def _read(path: Path) -> Mapping[str, int]:
    if not path.exists():
        return {}
    try:
        values = messages.json_object(path.read_text(encoding="utf-8"), "queries")
    except ValueError as error:  # of the text's encoding, or a WireError
        raise WireError(f"{path} is not a count of queries, or is damaged") from error
    answered = values.get("answered")
    if not isinstance(answered, dict) or not all(type(count) is int and count >= 0 for count in answered.values()):
        raise WireError(f"{path} is damaged")
    return answered


def make_ledger(
    queries: int | None, folder: Path | None, on_event: Callable[[str], None] = lambda text: None
) -> QueryLedger | None:
    """The ledger of a server that is given a budget; ParameterError where only one of both is given."""
    if queries is None and folder is None:
        return None
    if queries is None or folder is None:
        raise ParameterError(
            "a budget of queries (--queries) and the folder that counts them (--query-ledger) go together: what is not kept on "
            "disk begins anew with every start of the server"
        )
    return QueryLedger(folder, queries, on_event=on_event)


def make_private_ledger(
    layers: Iterable[Description],
    queries: int | None,
    folder: Path | None,
    on_event: Callable[[str], None] = lambda text: None,
    *,
    levels: Mapping[str, int],
) -> QueryLedger | None:
    """The ledger of a server whose weights are private, which goes without one only when told so: ``queries=0``.

    ``queries=None`` gives every layer its `default_queries`; `levels` are the numbers of different weights of layers that have few.
    ParameterError where there is no folder, or no use for it.
    """
    if queries == 0 and folder is None:
        return None
    if queries == 0:
        raise ParameterError(
            "--queries 0 is any number of queries, for which no folder counts them: leave --query-ledger out"
        )
    if folder is None:
        raise ParameterError(
            "private weights need a budget of queries: whoever gets enough answers computes the weights from them. Name a folder that "
            "counts the answers (--query-ledger); or serve without a budget to clients who may know the weights (--queries 0)"
        )
    if queries is not None:
        return QueryLedger(folder, queries, on_event=on_event)
    limits = {
        one.name: default_queries(one.in_features, one.out_features, bias=one.bias, levels=levels.get(one.name))
        for one in layers
    }
    return QueryLedger(folder, limits, on_event=on_event)
