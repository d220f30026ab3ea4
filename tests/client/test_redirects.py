"""Redirects: nobody follows them, for whatever operation and wherever to, and the token goes nowhere."""

import traceback
from collections.abc import AsyncIterator

import pytest

from asana_webhooks.errors import UnexpectedResponseError
from tests.helpers.raw import CALLS, TOKEN, assert_nothing_left, framed, raw_server, saying, session


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind."""
    yield
    assert_nothing_left()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    """Same host, another, one without TLS, a file, nonsense or nothing: one request and one error."""
    async with raw_server(saying(framed(b'{"data":{"gid":"1"}}'))) as other:
        for location in (
            "Location: /api/1.0/webhooks/1",
            f"Location: {other.url}/webhooks/1",
            f"Location: //127.0.0.1:{other.port}/webhooks/1",
            f"Location: https://127.0.0.1:{other.port}/webhooks/1",
            "Location: file:///etc/passwd",
            "Location: http://[::1",
            f"Refresh: 0; url={other.url}",
            f"Content-Location: {other.url}",
        ):
            async with raw_server(saying(framed(b"", location, status=status)), keep=True) as server:
                async with session(server.url) as asana:
                    for number, call in enumerate(CALLS, 1):
                        with pytest.raises(UnexpectedResponseError, match="redirect") as caught:
                            await asana.send(call.request)

                        assert (caught.value.status, caught.value.attempts) == (status, 1)
                        assert len(server.requests) == number
                        assert TOKEN not in "".join(traceback.format_exception(caught.value))

        assert other.connections == 0


async def test_a_target_is_not_sent_on() -> None:
    """A create whose redirect keeps method and body stays where it was sent."""
    async with raw_server(saying(b"")) as other:
        redirect = framed(b"", f"Location: {other.url}/webhooks", status=307)
        async with raw_server(saying(redirect)) as server, session(server.url) as asana:
            with pytest.raises(UnexpectedResponseError):
                await asana.send(CALLS[-1].request)

            assert [one.method for one in server.requests] == ["POST"]
        assert other.heard == b""
