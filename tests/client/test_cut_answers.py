"""Answers of the fake that are cut off at every byte, or never come, between an AsanaSession and the server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest

from asana_webhooks import AsanaSession, RetryPolicy, create_webhook, get_webhook
from asana_webhooks.errors import ConnectionFailedError, CreateOutcomeUnknownError, UnexpectedResponseError
from asana_webhooks.testing import FakeAsana
from tests.helpers.tcp_proxy import Loss, TcpProxy, tcp_proxy
from tests.testing.fake_play import PROJECT, Target, serving

ENDS = pytest.mark.parametrize("how", ["reset", "close"])
How = Literal["reset", "close"]


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[AsanaSession, TcpProxy, FakeAsana]]:
    async with FakeAsana(webhooks=1) as fake, tcp_proxy(fake.url) as proxy, session(fake, proxy) as asana:
        yield asana, proxy, fake


def session(fake: FakeAsana, proxy: TcpProxy, *, attempts: int = 4) -> AsanaSession:
    """Make a session that reaches the fake through the proxy and does not wait between attempts."""
    retry = RetryPolicy(attempts=attempts, first_wait=0.0, longest_wait=0.0)
    return AsanaSession(fake.token, base_url=proxy.url, retry=retry)


@ENDS
async def test_an_answer_cut_off_anywhere(how: How) -> None:
    """Wherever an answer is cut off, the next attempt brings the right one; without one it is an error of ours."""
    async with proxied() as (asana, proxy, fake):
        [gid] = fake.webhooks
        whole = await get_webhook(asana, gid, opt_fields=("active",))
        for after in range(proxy.reply_bytes):
            async with session(fake, proxy) as another, session(fake, proxy, attempts=1) as once:
                proxy.lose(replies=Loss(after, how))
                assert await get_webhook(another, gid, opt_fields=("active",)) == whole
                assert not proxy.losses
                proxy.lose(replies=Loss(after, how), times=2)  # aiohttp may ask once more by itself
                with pytest.raises((ConnectionFailedError, UnexpectedResponseError)):
                    await get_webhook(once, gid, opt_fields=("active",))
                proxy.losses.clear()


async def test_a_lost_answer_to_create() -> None:
    """When the answer to a create request is swallowed, nobody knows; the webhook is there and not made twice."""
    async with proxied() as (asana, proxy, fake), serving(Target()) as target:
        before = set(fake.webhooks)
        proxy.lose(replies=Loss(0, "swallow"))
        creating = asyncio.create_task(create_webhook(asana, resource=PROJECT, target=target.url))
        await proxy.swallowed.wait()
        await proxy.close_all()
        with pytest.raises(CreateOutcomeUnknownError):
            await creating
        assert len(set(fake.webhooks) - before) == 1
        assert len(fake.requests) == 1


async def test_a_lost_request_to_create() -> None:
    """For the session it is the same when the request was swallowed; here nothing was created."""
    async with proxied() as (asana, proxy, fake):
        before = set(fake.webhooks)
        proxy.lose(requests=Loss(0, "swallow"))
        creating = asyncio.create_task(create_webhook(asana, resource=PROJECT, target="http://127.0.0.1:1/x"))
        await proxy.swallowed.wait()
        await proxy.close_all()
        with pytest.raises(CreateOutcomeUnknownError):
            await creating
        assert (set(fake.webhooks), fake.requests) == (before, [])


async def test_refused() -> None:
    """A refused connection was not used: even create is tried again, and works once somebody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        fake = FakeAsana(port=port)

        async def come_up(_: float) -> None:
            bound.close()
            await fake.start()

        retry = RetryPolicy(sleep=come_up)
        async with (
            serving(Target()) as target,
            AsanaSession(fake.token, base_url=f"http://127.0.0.1:{port}/api/1.0", retry=retry) as asana,
        ):
            created = await create_webhook(asana, resource=PROJECT, target=target.url)
            assert list(fake.webhooks) == [created.webhook.gid]
            await fake.aclose()
