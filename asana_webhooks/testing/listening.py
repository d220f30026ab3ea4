"""A port on 127.0.0.1 that takes connections or refuses them, and stays one's own meanwhile."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from asana_webhooks.errors import ConfigurationError

__all__ = ["HOST", "Listener"]

HOST: Final = "127.0.0.1"
_BACKLOG: Final = 128


class Listener:
    """Hands over every connection that is made to its port.

    Args:
        take: gets the socket of a client, to keep or to close.
    """

    def __init__(self, take: Callable[[socket.socket], None]) -> None:
        self.port = 0
        """The port, from the first `open` on."""
        self._take = take
        self._placeholder: socket.socket | None = None
        self._listening: socket.socket | None = None

    def open(self) -> None:
        """Take connections from now on.

        Raises:
            ConfigurationError: there is no free port, or somebody else has taken this one.
        """
        if self._listening is not None:
            return
        first = self._placeholder is None
        try:
            if self._placeholder is None:
                # Bound and never listening, it keeps the port while connections are refused.
                self._placeholder = _bind(0)
                self.port = self._placeholder.getsockname()[1]
            self._listening = _bind(self.port)
            self._listening.listen(_BACKLOG)
            asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)
        except OSError as problem:
            if first:
                self.close()
            else:
                self.refuse()
            raise ConfigurationError(f"the proxy cannot listen on {HOST}: {problem.strerror}") from None

    def refuse(self) -> None:
        """Refuse connections from now on."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def close(self) -> None:
        """Refuse connections, and leave the port to others."""
        self.refuse()
        if self._placeholder is not None:
            self._placeholder.close()

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except OSError:  # it has gone again; or too many files are open, and the loop will call again
            return
        self._take(client)


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise
    return bound
