"""The limit: no HTTP server at all."""

import asyncio
import socket
from multiprocessing.connection import Connection
from typing import cast

from benchmarks.receivers.signed import is_signed

__all__ = ["serve"]


def serve(listening: socket.socket, _: Connection) -> None:
    """Do only what these requests need."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Bare, sock=listening)
        await server.serve_forever()

    asyncio.run(main())


class _Bare(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(_value(head, b"\r\nContent-Length: ")):
            return
        self._received = b""
        signature = _value(head, b"\r\nX-Hook-Signature: ").decode()
        status = b"200 OK" if is_signed(body, signature) else b"401 Unauthorized"
        self._transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")


def _value(head: bytes, name: bytes) -> bytes:
    return head.partition(name)[2].partition(b"\r\n")[0]
