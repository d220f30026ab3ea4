"""FaultProxy: a TCP proxy on loopback that is slow, cuts connections off and swallows what it should pass on."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from math import inf
from types import TracebackType
from typing import Any, Literal, Self

from yarl import URL

from asana_webhooks._checks import check_count, parse_url
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.listening import HOST, Listener
from asana_webhooks.testing.streams import Connection, Scripts, StreamFault, reset

__all__ = ["FaultProxy"]


class FaultProxy:
    """A TCP proxy on 127.0.0.1 for tests: between a client and its server, it does to their bytes what it is told.

    It passes bytes, resets and ends both ways as they come, whatever the protocol, TLS too, until `script` or `refuse`
    say otherwise. So a test can see what `FakeAsana` cannot play: an answer cut off at any byte, a slow one, one that
    never comes back.

    ::

        async with (
            FakeAsana(webhooks=1) as fake,
            FaultProxy(fake.url) as proxy,
            AsanaSession(fake.token, base_url=proxy.url) as asana,
        ):
            [gid] = fake.webhooks
            proxy.script(replies=StreamFault(swallow=True))  # on the connection that is used next
            deleting = asyncio.create_task(delete_webhook(asana, gid))
            await proxy.reached(swallowed_bytes=1)
            assert gid not in fake.webhooks  # it has been deleted, and the answer is lost
            await proxy.reset_all()
            await deleting  # was sent again, and the 404 that came then means that it is gone

    Use it in one event loop, with ``async with`` or with `start` and `aclose`. A client whose connection cannot be
    passed on, because nothing listens upstream, is reset; the next one is tried again.

    Args:
        upstream: where to pass connections on to: a URL of any scheme such as `FakeAsana.url`, or a host and a port.
            A host name means its IPv4 address.
        sleep: waits out `StreamFault.latency`, given in seconds.

    Raises:
        ConfigurationError: *upstream* names no host or no port.
    """

    connections: int
    """How many connections there have been."""
    ended: int
    """How many of them have ended, however that came."""
    cut: int
    """How many of them were ended by the proxy: by a fault, by `reset_all`, or because nothing listens upstream."""
    request_bytes: int
    """How many bytes have been passed on from clients to upstream, over all connections."""
    reply_bytes: int
    """How many bytes have been passed on from upstream to clients."""
    swallowed_bytes: int
    """How many bytes have been swallowed, either way."""

    def __init__(
        self, upstream: str | URL | tuple[str, int], *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._url, self._upstream = _parse_upstream(upstream)
        self._sleep = sleep
        self._state: Literal["new", "running", "closed"] = "new"
        self._listener = Listener(self._take)
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._scripts = Scripts()
        self._news = asyncio.Event()
        self.connections = self.ended = self.cut = 0
        self.request_bytes = self.reply_bytes = self.swallowed_bytes = 0

    @property
    def host(self) -> str:
        """The address it listens on: ``127.0.0.1``."""
        return HOST

    @property
    def port(self) -> int:
        """The port it listens on; the same from start to end.

        Raises:
            ConfigurationError: it has not been started.
        """
        if not self._listener.port:
            self._check_running()
        return self._listener.port

    @property
    def url(self) -> str:
        """The URL of *upstream* with the proxy in its place; the rest of it, such as its path, stays.

        The host is ``127.0.0.1``; ``localhost`` stays what it is, as a certificate may be for it.

        Raises:
            ConfigurationError: it has not been started, or *upstream* was a host and a port.
        """
        port = self.port
        if self._url is None:
            raise ConfigurationError("upstream was no URL but a host and a port; use the proxy's host and port")
        here = self._url if self._url.host == "localhost" else self._url.with_host(HOST)
        return str(here.with_port(port))

    # Faults

    def script(
        self,
        *,
        requests: StreamFault | None = None,
        replies: StreamFault | None = None,
        connections: int | None = 1,
    ) -> None:
        """Let faults happen to the next connections, after what was scripted before; then all are healthy again.

        A connection takes them when it is made or, if it is open already (kept alive, in a pool), with the next bytes
        its client sends, and keeps them until it ends, takes something scripted later, or `heal` is called. Of
        whatever is scripted at that moment it takes one.

        Args:
            requests: what happens to bytes from the client; by default nothing.
            replies: what happens to bytes from upstream; by default nothing.
            connections: how many connections; ``None`` for all until `heal`.

        Raises:
            ConfigurationError: an argument makes no sense, or the proxy is not running.
        """
        self._check_running()
        for name, fault in (("requests", requests), ("replies", replies)):
            if fault is not None and not isinstance(fault, StreamFault):
                raise ConfigurationError(f"{name} must be a StreamFault or None, not {fault!r:.80}")
        left = inf if connections is None else check_count("connections", connections)
        self._scripts.add(requests or StreamFault(), replies or StreamFault(), left)

    def refuse(self) -> None:
        """Refuse new connections from now on until `heal` is called; open ones go on.

        Raises:
            ConfigurationError: the proxy is not running.
        """
        self._check_running()
        self._listener.refuse()

    def heal(self) -> None:
        """Forget everything scripted and let all connections pass, new ones and open ones.

        What was swallowed stays lost.

        Raises:
            ConfigurationError: the proxy is not running, or somebody else listens on its port since `refuse`.
        """
        self._check_running()
        self._scripts.clear()
        for connection in self._open.values():
            connection.heal()
        self._listener.open()

    async def reset_all(self) -> None:
        """Reset every open connection on both sides, and return when that is done; new ones are not concerned.

        Raises:
            ConfigurationError: the proxy is not running.
        """
        self._check_running()
        for task, connection in self._open.items():
            connection.cut = True
            task.cancel()
        await self._all_ended()

    # What has happened

    async def reached(
        self,
        *,
        connections: int = 0,
        ended: int = 0,
        cut: int = 0,
        request_bytes: int = 0,
        reply_bytes: int = 0,
        swallowed_bytes: int = 0,
    ) -> None:
        """Return once each figure of the same name is at least what is given here.

        Raises:
            ConfigurationError: a number makes no sense, or the proxy is not running, or closed before that.
        """
        least = {
            "connections": connections,
            "ended": ended,
            "cut": cut,
            "request_bytes": request_bytes,
            "reply_bytes": reply_bytes,
            "swallowed_bytes": swallowed_bytes,
        }
        for name, number in least.items():
            check_count(name, number, zero=True)
        while any(getattr(self, name) < number for name, number in least.items()):
            self._check_running()
            self._news.clear()
            await self._news.wait()

    def __repr__(self) -> str:
        return f"<FaultProxy {self._state}, {len(self._open)} of {self.connections} connections open>"

    # Start and end

    async def start(self) -> None:
        """Listen on a free port. Done by ``async with``.

        Raises:
            ConfigurationError: it has been started before, or there is no free port.
        """
        if self._state != "new":
            raise ConfigurationError("a FaultProxy can be started once; make another one")
        self._listener.open()
        self._state = "running"

    async def aclose(self) -> None:
        """Stop listening and reset every open connection. May be called again; goes to its end even if cancelled."""
        self._state = "closed"
        self._listener.close()
        for task in self._open:
            task.cancel()
        self._news.set()
        await self._all_ended()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_running(self) -> None:
        if self._state == "new":
            raise ConfigurationError("FaultProxy is not running: use async with, or await start()")
        if self._state == "closed":
            raise ConfigurationError("this FaultProxy is closed; make another one")

    async def _all_ended(self) -> None:
        # Even a cancelled gather() ends only after everything in it has.
        await asyncio.gather(*self._open, return_exceptions=True)

    # Connections

    def _take(self, client: socket.socket) -> None:
        try:
            connection = Connection(client, self._upstream, scripts=self._scripts, sleep=self._sleep, count=self._count)
        except OSError:  # too many files are open
            reset(client)
            return
        task = asyncio.create_task(connection.serve(), name="FaultProxy connection")
        self._open[task] = connection
        task.add_done_callback(self._end)
        self._count("connections", 1)

    def _end(self, task: asyncio.Task[None]) -> None:
        # Not done by the task itself: one that is cancelled before it has begun does nothing.
        connection = self._open.pop(task)
        connection.end()
        self._count("cut", int(connection.cut))
        self._count("ended", 1)

    def _count(self, figure: str, more: int) -> None:
        setattr(self, figure, getattr(self, figure) + more)
        self._news.set()


def _parse_upstream(upstream: Any) -> tuple[URL | None, tuple[str, int]]:
    url = parse_url(upstream) if isinstance(upstream, str | URL) else None
    try:
        host, port = upstream if url is None else (url.host, url.port)
    except (TypeError, ValueError):
        host = port = None
    if isinstance(host, str) and host and isinstance(port, int) and 1 <= port <= 65535:
        return url, (host, port)
    # It is not shown: a URL may hold a password.
    raise ConfigurationError("upstream must be a URL that names a host and a port, or a pair of the two")
