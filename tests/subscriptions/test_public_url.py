"""The query of public_url: gateways demand a key in it, so it is kept as written, and shown nowhere."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from asana_webhooks import (
    AsanaError,
    CreateOutcomeUnknownError,
    DuplicateWebhookError,
    MemoryStore,
    Receiver,
    TargetRejectedError,
    WebhookFilter,
    create_webhook,
    delete_webhook,
    get_webhook,
    update_webhook,
)
from asana_webhooks.receiver.asgi import ReceiverApp
from asana_webhooks.receiver.web import webhook_routes
from asana_webhooks.testing import Fault
from tests.helpers.doors import serve_app, serve_asgi
from tests.subscriptions.scenes import arrived, live, scene, shown

QUERY = "code=k3y%2f==&x-vercel-protection-bypass=A+b%20c&empty"
"""What yarl and browsers would write in other ways."""


@asynccontextmanager
async def aiohttp_gateway(receiver: Receiver) -> AsyncIterator[str]:
    @web.middleware
    async def gate(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if request.raw_path.partition("?")[2] != QUERY:
            return web.Response(status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(middlewares=[gate])
    app.add_routes(webhook_routes(receiver, "/asana"))
    async with serve_app(app) as url:
        yield f"{url}/asana"


@asynccontextmanager
async def asgi_gateway(receiver: Receiver) -> AsyncIterator[str]:
    inner: Any = ReceiverApp(receiver)

    async def gate(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["query_string"].decode() != QUERY:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await inner(scope, receive, send)

    async with serve_asgi(gate) as url:
        yield f"{url}/asana"


GATEWAYS: dict[str, Callable[[Receiver], AbstractAsyncContextManager[str]]] = {
    "aiohttp": aiohttp_gateway,
    "asgi": asgi_gateway,
}


@pytest.mark.parametrize("door", GATEWAYS)
async def test_a_gateway_gets_its_key(door: str, caplog: pytest.LogCaptureFixture) -> None:
    """The key goes to Asana byte for byte, handshake and deliveries pass the gateway, and no record shows it."""
    caplog.set_level(logging.DEBUG, logger="asana_webhooks")
    async with scene(MemoryStore()) as here, GATEWAYS[door](Receiver(here.store)) as url:
        for slash in ("", "/"):
            established = await here.establish(public_url=f"{url}{slash}?{QUERY}", label=f"slash {slash}")
            target = here.fake.webhook(established.webhook_gid).target
            start, _, query = target.partition("?")
            assert (start.rpartition("/")[0], query) == (url, QUERY)
            assert len(start.rpartition("/")[2]) == 43
            assert "k3y" not in repr(established.webhook)

        assert await live(here.fake) == set(here.fake.webhooks)
        assert len(await arrived(here.store)) == 2
        with pytest.raises(TargetRejectedError, match="incorrect status code: 401"):
            await here.establish(public_url=f"{url}?code=wr0ng-key")
    assert not [text for text in ("k3y", "A+b", "wr0ng") if text in caplog.text]


async def test_the_other_operations(caplog: pytest.LogCaptureFixture) -> None:
    """A webhook with a query in its target can be read, changed and deleted, and is a duplicate of itself."""
    async with scene(MemoryStore()) as here:
        established = await here.establish(public_url=f"{here.public_url}?{QUERY}")
        gid = established.webhook_gid
        target = (await get_webhook(here.asana, gid)).target
        assert target is not None
        assert target == established.webhook.target
        assert target.endswith(f"?{QUERY}")
        with pytest.raises(DuplicateWebhookError) as caught:
            await create_webhook(here.asana, resource=here.fake.projects[0], target=target)
        assert "k3y" not in shown(caught.value)
        filters = (WebhookFilter(resource_type="task", action="added"),)
        assert (await update_webhook(here.asana, gid, filters=filters)).target == target
        await delete_webhook(here.asana, gid)
        assert here.fake.webhooks == {}


async def test_an_orphan_is_found_by_its_endpoint() -> None:
    """After a lost answer, the search matches the target although it ends with a query."""
    async with scene(MemoryStore()) as here:
        here.fake.script(Fault(at="createWebhook", do="lose_answer"))
        url = f"{here.public_url}?{QUERY}"
        established = await here.establish(public_url=url, workspace=here.fake.workspace)

        assert established.orphans == 0
        assert list(here.fake.webhooks) == [established.webhook_gid]


async def test_no_error_shows_the_key() -> None:
    """Whatever Asana and the network do with the create call, the key is in no text, repr or traceback."""
    said = f'{{"errors": [{{"message": "target {{}} refused: {QUERY}; k3y%2f== is no key"}}]}}'
    async with scene(MemoryStore()) as here:
        for kind, faults in (
            (CreateOutcomeUnknownError, [Fault(at="createWebhook", do="lose_answer", times=2)]),
            (TargetRejectedError, [Fault(at="createWebhook", status=400, body=said)]),
            (AsanaError, [Fault(at="createWebhook", status=500, body=said, times=2)]),
            (AsanaError, [Fault(at="createWebhook", do="wrong_secret")]),
        ):
            here.fake.script(*faults)
            with pytest.raises(kind) as caught:
                await here.establish(public_url=f"{here.public_url}?{QUERY}")
            assert "k3y" not in shown(caught.value)
