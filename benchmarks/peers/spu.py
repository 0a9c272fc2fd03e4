"""SecretFlow's SPU: Cheetah's two-party product of a matrix of the client and one of the server.

Not the same thing as the other rows: what the parties get are shares modulo 2^64 of fixed-point numbers, and the protocol hides the
weights from the client as well. One side's matrix is encrypted (BFV, N = 8192), multiplied and masked by the other; shares are then
cut to fixed point. Both parties are threads of one process, their link is in memory; SPU's own profile says what it carried.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.layers import Layer, LeftOut, Phases, duration

LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+)")


def carried(log: str) -> tuple[int, int]:
    """Bytes both ways, as the first profile in a log says: what its party sent and received."""
    found = LINK.search(log)
    if found is None:
        raise ValueError("no profile of the link in SPU's log")
    return int(found[1]), int(found[2])


def logged(work: Callable[[], object]) -> str:
    """What native code writes to standard output meanwhile."""
    kept = os.dup(1)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        try:
            work()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        log.seek(0)
        return log.read().decode(errors="replace")


class Spu(Layer):
    """Each party's matrix is private to it, in numbers of 64 bits with 18 behind the point."""

    name = "SPU, Cheetah"
    about = (
        "0.9.5, BFV, N = 8192, shares of 64 bits; 128 bits (its sets), two parties who follow the protocol; "
        "hides x, and W from the client"
    )

    def setup(self) -> None:
        if self.n * self.d * self.o > 2**27 and not self.patient:
            raise LeftOut(duration(1.06e-7 * self.n * self.d * self.o))
        spu: Any = importlib.import_module("spu")
        frontend: Any = importlib.import_module("spu.utils.frontend")
        self.spu, lib = spu, spu.libspu
        self.secret = lib.Visibility.VIS_SECRET
        config = lib.RuntimeConfig(protocol=lib.ProtocolKind.CHEETAH, field=lib.FieldType.FM64, fxp_fraction_bits=18)
        config.experimental_enable_colocated_optimization = True
        config.max_concurrency = 1
        self.io = spu.api.Io(2, config)
        self.values = [a.astype(np.float32) for a in (self.x, self.weight.T, self.bias)]
        self.executable, _ = frontend.compile(
            frontend.Kind.JAX, lambda x, w, b: x @ w + b, tuple(self.values), {}, ["x", "w", "b"], [self.secret] * 3,
            lambda outputs: ["y"],
        )  # fmt: skip
        self.parties = self._parties(config)
        first = sum(carried(logged(self._whole)))
        up, down = carried(logged(self._whole))
        self.once = first - up - down  # oblivious transfers are set up once
        self.bytes = (up, down + 8 * self.n * self.o)  # and the server's share of y

    def _parties(self, config: Any) -> list[Any]:
        lib = self.spu.libspu
        description = lib.link.Desc()
        description.recv_timeout_ms = 3_600_000  # a party waits while the other computes
        for rank in range(2):
            description.add_party(f"party {rank}", f"thread {rank}")
        made: list[Any] = [None, None]

        def make(rank: int) -> None:
            own = lib.RuntimeConfig(config)
            own.enable_pphlo_profile = rank == 0  # the client's
            made[rank] = self.spu.api.Runtime(lib.link.create_mem(description, rank), own)

        self._both(make)
        return made

    @staticmethod
    def _both(work: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def phases(self) -> Phases:
        yield "encrypt", self._share
        yield "weights", self._weights
        yield "forward", self._run
        yield "decrypt", lambda: self.io.reconstruct([party.get_var("y") for party in self.parties])

    def _share(self) -> None:
        self.x_shares = self.io.make_shares(self.values[0], self.secret, 0)

    def _weights(self) -> None:
        self.w_shares, self.b_shares = (self.io.make_shares(value, self.secret, 1) for value in self.values[1:])

    def _run(self) -> None:
        def party(rank: int) -> None:
            for name, shares in (("x", self.x_shares), ("w", self.w_shares), ("b", self.b_shares)):
                self.parties[rank].set_var(name, shares[rank])
            self.parties[rank].run(self.executable)

        self._both(party)

    def _whole(self) -> None:
        for _, work in self.phases():
            work()
