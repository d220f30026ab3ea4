"""The last step before each attempt, *prepare*, and *discard*, which undoes it."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest
from aiohttp import web

from asana_webhooks.client.requests import GetWebhookRequest, Request
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.errors import ConfigurationError, ConnectionFailedError, ServerError
from tests.helpers.raw import DELETE, GET, PUT, TOKEN, no_wait
from tests.helpers.virtual import asking, good, jumping_clock, refusal


async def test_place() -> None:
    """It comes after the slot, the limiter and the token, and its request is sent; *discard* before any wait."""
    said: list[str] = []

    class Limiter(nullcontext[None]):
        async def __aenter__(self) -> None:
            said.append("limiter")

    async def provide() -> str:
        said.append("token")
        return f"{TOKEN}{len(said)}"

    async def prepare() -> GetWebhookRequest:
        said.append("prepare")
        return GetWebhookRequest(webhook_gid=str(said.count("prepare")))

    async def discard() -> None:
        said.append(f"discard at {server.time.now:g}")

    def answer(request: web.BaseRequest) -> web.Response:
        said.append(request.path.rpartition("/")[2])
        status = {"1": 429, "2": 503, "3": 401}.get(said[-1])
        return refusal(status, ("Retry-After", "7"))(request) if status else good(request)

    async with asking(answer, token=provide, limiter=Limiter()) as (asana, server):
        [found] = await server.time.run(asana.send(GET.request, prepare=prepare, discard=discard))

    assert found.gid == "43214"
    undone = {1: ["discard at 0"], 2: ["discard at 7"], 3: ["discard at 14"]}
    attempts = [["limiter", "token", "prepare", str(one), *undone.get(one, [])] for one in (1, 2, 3, 4)]
    assert said == [word for attempt in attempts for word in attempt]


async def test_errors() -> None:
    """They end the call unchanged, nothing is sent, and there is nothing to discard."""
    for error in (ServerError(operation="x", status=500), TimeoutError("mine"), LookupError("mine")):

        async def fail(error: Exception = error) -> GetWebhookRequest:
            raise error

        async with asking(max_reads=1) as (asana, server):
            with pytest.raises(type(error)) as caught:
                await asana.send(GET.request, prepare=fail)
            assert caught.value is error
            assert server.arrivals == []
            await asana.send(GET.request)


async def test_time() -> None:
    """It counts as the attempt's, and then the next attempt prepares again; closing ends it at once."""
    called = 0
    reached = asyncio.Event()

    async def hang() -> GetWebhookRequest:
        nonlocal called
        called += 1
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with asking(attempt_timeout=0.01, attempts=3, sleep=no_wait) as (asana, server):
        with pytest.raises(ConnectionFailedError, match="timed out waiting for prepare"):
            await asana.send(GET.request, prepare=hang)
        assert (called, server.arrivals) == (3, [])

    async with asking() as (asana, server):
        reached.clear()
        call = asyncio.create_task(asana.send(GET.request, prepare=hang))
        await reached.wait()
        await asana.aclose()
        with pytest.raises(ConfigurationError, match="is closed"):
            await call


async def test_a_429_to_another_call_meanwhile() -> None:
    """What was prepared is not sent into the pause; it is discarded, once, and prepared again after all pauses."""
    preparing, paused, began = asyncio.Event(), asyncio.Event(), 0.0
    said: list[str] = []

    async def prepare() -> Request[Any]:
        said.append("prepare")
        preparing.set()
        await paused.wait()
        return PUT.request

    async def discard() -> None:
        said.append("discard")

    async def answer(request: web.BaseRequest) -> Any:
        if request.method == "PUT":
            said.append(f"PUT after {clock() - began:.0f}")
        await asyncio.sleep({"DELETE": 5}.get(request.method, 0))  # the second 429 comes while the first pause lasts
        if clock() - began < 10:
            asyncio.get_running_loop().call_later(1, paused.set)
            return refusal(429, ("Retry-After", "10"))(request)
        return good(request)

    with jumping_clock() as clock:
        async with asking(answer, retry=RetryPolicy(clock=clock, random=lambda: 0.0)) as (asana, _):
            began = clock()
            put = asyncio.create_task(asana.send(PUT.request, prepare=prepare, discard=discard))
            await preparing.wait()
            await asyncio.gather(put, asana.send(GET.request), asana.send(DELETE.request))

    assert said == ["prepare", "discard", "prepare", "PUT after 15"]
