"""``asana-webhooks fake`` as a real process: its first line, our own session against it, its control, its end."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from attrs import frozen

from asana_webhooks import (
    AsanaSession,
    Delivery,
    MemoryStore,
    NotAuthorizedError,
    RateLimitedError,
    Receiver,
    RetryPolicy,
    TargetRejectedError,
    Worker,
    create_webhook,
    establish_webhook,
    get_webhooks,
)
from asana_webhooks.testing import serve_receiver
from tests.cli.cli_process import ended, run_cli, started


@frozen
class RunningFake:
    process: asyncio.subprocess.Process
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def session(self, token: str | None = None) -> AsanaSession:
        return AsanaSession(token or self.ready["token"], base_url=self.url, retry=RetryPolicy(attempts=1))

    async def control(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        url = self.url.removesuffix("/api/1.0") + "/_fake" + path
        async with aiohttp.ClientSession() as http, http.request(method, url, json=content) as answer:
            return answer.status, await answer.json()


@asynccontextmanager
async def fake_process(*arguments: str) -> AsyncIterator[RunningFake]:
    async with started("fake", *arguments) as process:
        assert process.stdout is not None
        yield RunningFake(process, json.loads(await process.stdout.readline()))


async def test_whole_way() -> None:
    """A webhook is established at the fake; a change posted to its control arrives at the worker."""
    got: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        got.append(delivery)

    options = ("--token", "my-token", "--workspace", "42", "--project", "1", "2", "--project", "3", "--webhooks", "120")
    async with (
        fake_process(*options) as fake,
        MemoryStore() as store,
        serve_receiver(Receiver(store)) as public_url,
        fake.session() as asana,
        fake.session("another") as stranger,
    ):
        asked_for = {"token": "my-token", "workspace": "42", "projects": ["1", "2", "3"]}
        assert fake.ready == {"url": fake.url} | asked_for
        assert fake.url.startswith("http://127.0.0.1:")
        with pytest.raises(NotAuthorizedError):
            await create_webhook(stranger, resource="1", target="http://127.0.0.1:9/x")

        await establish_webhook(asana, store, public_url=public_url, resource="2")
        assert len([one.gid async for one in get_webhooks(asana, workspace="42")]) == 121
        change = {"resource": "2", "action": "changed", "field": "due_on"}
        assert (await fake.control("POST", "/changes", change))[0] == 202
        assert (await fake.control("POST", "/settle"))[0] == 200
        await Worker(store, handle).drain()
        ((event,),) = (delivery.events for delivery in got)
        assert (event.resource.gid, event.change and event.change.field) == ("2", "due_on")


async def test_control() -> None:
    """Over HTTP the fake tells what it has and got, turns its clock, and takes what the help shows."""
    async with fake_process("--webhooks", "2") as fake, fake.session() as asana:
        status, answer = await fake.control("GET", "/webhooks")
        assert (status, [len(one["secret"]) for one in answer["data"]]) == (200, [32, 32])
        assert (await fake.control("GET", "/deliveries"))[0] == 200

        task = {"resource_type": "task", "parents": ["8675309"]}
        status, answer = await fake.control("POST", "/resources", task)
        assert (status, (await fake.control("POST", "/changes", {"resource": answer["gid"]}))[0]) == (201, 202)
        status, app = await fake.control("POST", "/apps", {"user": "12", "scopes": ["webhooks:read"]})
        assert (status, app["token_url"]) == (201, fake.url.removesuffix("/api/1.0") + "/-/oauth_token")
        async with fake.session(app["access_token"]) as reader:
            assert [one async for one in get_webhooks(reader, workspace="1331")] == []
            with pytest.raises(NotAuthorizedError):
                await create_webhook(reader, resource="8675309", target="http://127.0.0.1:9/x")
        requests = (await fake.control("GET", "/requests"))[1]["data"]
        assert [(one["operation"], one["status"]) for one in requests] == [("getWebhooks", 200), ("createWebhook", 401)]

        added = {"resource": "99", "action": "added", "parent": "8675309"}
        assert (await fake.control("POST", "/changes", added))[0] == 202
        refused = {"at": "getWebhooks", "status": 429, "retry_after": 3600, "times": 2}
        twice = {"at": "delivery", "do": "duplicate"}
        assert (await fake.control("POST", "/faults", [refused, twice])) == (202, {"added": 2})
        with pytest.raises(RateLimitedError):
            [one async for one in get_webhooks(asana, workspace="1331")]

        before = (await fake.control("POST", "/clock", {"advance": 0}))[1]["now"]
        after = (await fake.control("POST", "/clock", {"advance": 86_400}))[1]["now"]
        assert before[:10] < after[:10]
        assert (await fake.control("POST", "/clock", {"advance": "soon"}))[0] == 400


async def test_targets_on_this_machine_refused() -> None:
    """With --no-loopback a target on this machine is refused with 403, as Asana does."""
    async with fake_process("--no-loopback") as fake, fake.session() as asana:
        with pytest.raises(TargetRejectedError, match="answered 403"):
            await create_webhook(asana, resource=fake.ready["projects"][0], target="http://127.0.0.1:9/x")


async def test_end() -> None:
    """A port somebody else has is one sentence and status 2; either signal ends the fake quietly, with status 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        async with fake_process() as fake:
            if number == signal.SIGTERM:
                port = fake.url.removesuffix("/api/1.0").rpartition(":")[2]
                other = await run_cli("fake", "--port", port)
                assert (other.status, other.out, len(other.err.splitlines())) == (2, "", 1)
                assert f"cannot listen on 127.0.0.1:{port}" in other.err
            fake.process.send_signal(number)
            end = await ended(fake.process)
        assert (end.status, end.out, end.err) == (0, "", "")
