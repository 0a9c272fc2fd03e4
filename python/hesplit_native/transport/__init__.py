"""Transports: how messages travel between a client and a server."""

from __future__ import annotations

from hesplit_native.transport.authority import make_authority, make_client, make_server
from hesplit_native.transport.certificates import ClientTls, ServerTls
from hesplit_native.transport.channel import Channel, ClientInfo
from hesplit_native.transport.grpc import GrpcChannel, connect, join_address
from hesplit_native.transport.grpc_server import GrpcServer
from hesplit_native.transport.in_process import InProcessChannel
from hesplit_native.transport.limits import Limits

__all__ = [
    "Channel",
    "ClientInfo",
    "ClientTls",
    "GrpcChannel",
    "GrpcServer",
    "InProcessChannel",
    "Limits",
    "ServerTls",
    "connect",
    "join_address",
    "make_authority",
    "make_client",
    "make_server",
]
