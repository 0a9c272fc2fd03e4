"""A client in this process and the session that a malicious server takes over, for the attacks that need one."""

from __future__ import annotations

from hesplit_native.data.dataset import Dataset
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.sessions import SessionState
from hesplit_native.training.client import Client
from hesplit_native.training.config import RunConfig
from hesplit_native.training.recipes import paper_task
from hesplit_native.training.run import in_process


def victim(config: RunConfig, dataset: Dataset) -> tuple[Client, SessionState]:
    """A client that has shaken hands, and the server's state, whose `protocol` is to be replaced."""
    server = Server()
    client = Client(config, paper_task(config, dataset), batches=0, connect=in_process(server))
    client.begin()
    return client, next(iter(server.sessions.values()))
