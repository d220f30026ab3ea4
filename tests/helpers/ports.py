"""Ports for servers that have to be told theirs."""

import socket

__all__ = ["free_port"]

_kept: list[socket.socket] = []


def free_port() -> int:
    """Take a free port until this process ends; bound and never listening, the socket leaves it to one server alone."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    _kept.append(kept)
    port: int = kept.getsockname()[1]
    return port
