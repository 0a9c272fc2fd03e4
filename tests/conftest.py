from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import hesplit_native as hn
from hesplit_native.data import Dataset, synthetic_ecg
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport import ClientInfo, InProcessChannel

# What is started in the background ignores SIGINT, and so would every process that a test starts and then interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Speed is measured in benchmarks; on a busy machine a deadline only makes tests fail at random.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small problems; two libraries with a thread per core each would only wait for each other."""
    import torch

    torch.set_num_threads(1)
    hn.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws without a generator of its own (weights of layers, above all) does not depend on the tests before it."""
    import torch

    torch.manual_seed(1)


@pytest.fixture(scope="session")
def mitdb() -> Path:
    """The real MIT-BIH records."""
    named = os.environ.get("HESPLIT_MITDB")
    candidates = [Path(named)] if named else [Path(__file__).parents[1] / ".." / "shared" / "data" / "mitdb"]
    for path in candidates:
        if (path / "100.hea").is_file():
            return path
    pytest.skip(f"NO REAL RECORDS: looked in {', '.join(map(str, candidates))}; set HESPLIT_MITDB to test on them")


@pytest.fixture
def open_session():
    """A session over a server in this process: open_session(terms, material) gives the session, the server's state and the server."""

    def start(terms: Terms, material: bytes = b"", server: Server | None = None):
        server = server or Server()
        session = Session(InProcessChannel(server.converse(ClientInfo("test"))), terms, material, Phases())
        return session, server.sessions[session.nonce], server

    return start


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """Synthetic beats; the last training batch of four is short."""
    return synthetic_ecg(train=41, test=30, seed=1)


@pytest.fixture
def make_terms():
    """Terms of a small layer, with what differs."""

    def make(**changes: Any) -> Terms:
        values: dict[str, Any] = {
            "protocol": "plain",
            "in_features": 6,
            "out_features": 3,
            "batch_size": 4,
            "batches": 10,
            "epochs": 2,
            "learning_rate": 0.01,
            "server_optimizer": "adam",
            "weight_seed": 7,
        }
        return Terms(**(values | changes))

    return make
