"""Transports: how messages travel between a client and a server."""

from __future__ import annotations

from hesplit_native.transport.channel import Channel
from hesplit_native.transport.in_process import InProcessChannel
from hesplit_native.transport.tcp import TcpChannel, accept, connect, listen

__all__ = ["Channel", "InProcessChannel", "TcpChannel", "accept", "connect", "listen"]
