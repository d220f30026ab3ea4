"""What stands between Asana and the receiver and spoils the handshake: the error says what to check."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from attrs import frozen

from asana_webhooks import MemoryStore, Receiver, RegistrationClosedError, RetryPolicy, TargetRejectedError
from asana_webhooks.store.base import RegistrationState
from asana_webhooks.testing import Fault, serve_receiver
from tests.helpers.doors import serve_app
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import Remembering, scene


@frozen(kw_only=True)
class Between:
    """A proxy: it answers itself, or passes requests on to the receiver and changes them or the answer."""

    status: int | None = None
    """It answers itself."""
    drops_in: bool = False
    """It removes X-Hook-Secret from the request."""
    drops_out: bool = False
    """It removes X-Hook-Secret from the answer."""
    turned: int | None = None
    """The status it makes of the receiver's."""

    @asynccontextmanager
    async def serve(self, public_url: str) -> AsyncIterator[str]:
        async def handle(request: web.Request) -> web.Response:
            if self.status is not None:
                return web.Response(status=self.status, headers={"Location": "https://example.com/login"})
            secret = {} if self.drops_in else {"X-Hook-Secret": request.headers["X-Hook-Secret"]}
            url = f"{public_url}/{request.path.rpartition('/')[2]}"
            async with http.post(url, data=await request.read(), headers=secret) as answer:
                echoed = answer.headers.get("X-Hook-Secret")
                kept = {} if self.drops_out or echoed is None else {"X-Hook-Secret": echoed}
                return web.Response(status=self.turned or answer.status, headers=kept)

        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        async with aiohttp.ClientSession() as http, serve_app(app) as url:
            yield f"{url}/asana"


@pytest.mark.parametrize(
    ("between", "said", "advice"),
    [
        (Between(status=401), "incorrect status code: 401", "A login page or a gateway"),
        (Between(status=403), "incorrect status code: 403", "put the gateway's key into the query"),
        (Between(status=301), "incorrect status code: 301", "Asana follows no redirect"),
        (Between(status=302), "incorrect status code: 302", "Asana follows no redirect"),
        (Between(status=404), "incorrect status code: 404", "does not lead to the receiver's path"),
        (Between(status=405), "incorrect status code: 405", "stopped or not running"),
        (Between(status=502), "incorrect status code: 502", "stopped or not running"),
        (Between(status=200), "did not respond with the handshake secret", "answers in the receiver's place"),
        # Without its header, the handshake is a request without a signature to the receiver.
        (Between(drops_in=True), "incorrect status code: 401", "If the receiver's log says 'no signature', a proxy"),
        (Between(drops_out=True), "did not respond with the handshake secret", "a proxy removes the header"),
        (Between(turned=202), "incorrect status code: 202", "Asana accepts only 200 and 204"),
    ],
    ids=repr,
)
async def test_what_stands_between(between: Between, said: str, advice: str) -> None:
    """Each kind is a TargetRejectedError with Asana's words and the fitting advice, and leaves nothing behind."""
    store = Remembering()
    async with scene(store) as here, between.serve(here.public_url) as url:
        with pytest.raises(TargetRejectedError, match=said) as caught:
            await here.establish(public_url=url)

        assert advice in str(caught.value)
        assert here.fake.webhooks == {}
        assert await store.states() == [RegistrationState.CLOSED]


async def test_a_proxy_that_changes_nothing() -> None:
    """Behind the same proxy, a handshake that passes unchanged establishes a webhook."""
    async with scene(MemoryStore()) as here, Between().serve(here.public_url) as url:
        established = await here.establish(public_url=url)

        assert list(here.fake.webhooks) == [established.webhook_gid]


async def test_a_wrong_path_or_another_store() -> None:
    """A path that is not the receiver's and a receiver with another store are both 404: the advice names both."""
    store = Remembering()
    async with scene(store) as here, serve_receiver(Receiver(MemoryStore())) as elsewhere:
        for url in (f"{here.public_url}/a/b", elsewhere):
            with pytest.raises(TargetRejectedError, match="status code: 404") as caught:
                await here.establish(public_url=url)
            for cause in ("check public_url", "another store than ensure_webhook", "a proxy in between"):
                assert cause in str(caught.value)

        assert here.fake.webhooks == {}
        assert await store.states() == [RegistrationState.CLOSED] * 2


async def test_a_port_that_is_not_open_yet() -> None:
    """Asana cannot connect: the advice names startup hooks first, and what else may keep Asana away."""
    store = Remembering()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with scene(store) as here:
            with pytest.raises(TargetRejectedError, match="could not be reached") as caught:
                await here.establish(public_url=f"http://127.0.0.1:{closed.getsockname()[1]}/asana")

            assert "Open the port before the create call: in aiohttp's on_startup" in str(caught.value)
            assert "no private address, no firewall" in str(caught.value)
            assert here.fake.webhooks == {}
            assert await store.states() == [RegistrationState.CLOSED]


@pytest.mark.parametrize("how", ["closed", "overdue", "expired", "closed, and forgotten"])
@pytest.mark.parametrize("deletes", [True, False])
async def test_a_registration_that_ends_before_the_201(how: str, deletes: bool) -> None:
    """Another process closes it, or its deadline passes: that is no mismatch. The webhook is deleted all the same."""
    clock = Clock()
    async with scene(MemoryStore(clock=clock), retry=RetryPolicy(attempts=1)) as here:
        hold = here.fake.hold("createWebhook", when="before_answer")
        establishing = asyncio.create_task(here.establish())
        await hold.reached()
        [pending] = await here.store.list_registrations(state=RegistrationState.PENDING)
        if how.startswith("closed"):
            await here.store.close_registration(pending.id)
        else:
            clock.advance(3600)
        if how == "expired":
            assert await here.store.expire_registrations() != []
        if how == "closed, and forgotten":
            clock.advance(100 * 86_400)
            await here.store.purge(older_than=86_400)
        if not deletes:
            here.fake.script(Fault(at="deleteWebhook", status=500))
        hold.release()
        with pytest.raises(RegistrationClosedError, match="closed or expired before Asana's answer arrived") as caught:
            await establishing

        assert caught.value.deleted is deletes
        assert [caught.value.webhook_gid] * (not deletes) == list(here.fake.webhooks)
