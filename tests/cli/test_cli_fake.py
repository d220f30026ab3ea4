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
from asana_webhooks.testing.serving import serve_receiver
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

    async with (
        fake_process("--webhooks", "120") as fake,
        MemoryStore() as store,
        serve_receiver(Receiver(store)) as public_url,
        fake.session() as asana,
    ):
        project = fake.ready["projects"][0]
        await establish_webhook(asana, store, public_url=public_url, resource=project)
        listed = [one.gid async for one in get_webhooks(asana, workspace=fake.ready["workspace"])]
        assert len(listed) == 121

        change = {"resource": project, "action": "changed", "field": "due_on"}
        assert (await fake.control("POST", "/changes", change))[0] == 202
        assert (await fake.control("POST", "/settle"))[0] == 200
        await Worker(store, handle).drain()
        (delivery,) = got
        assert [(one.resource.gid, one.change and one.change.field) for one in delivery.events] == [(project, "due_on")]


async def test_options() -> None:
    """Token, workspace and projects are those that were asked for, in either way of writing several."""
    options = ("--token", "my-token", "--workspace", "42", "--project", "1", "2", "--project", "3")
    async with fake_process(*options) as fake:
        asked_for = {"token": "my-token", "workspace": "42", "projects": ["1", "2", "3"]}
        assert fake.ready == {"url": fake.url} | asked_for
        assert fake.url.startswith("http://127.0.0.1:")
        async with fake.session("another") as stranger:
            with pytest.raises(NotAuthorizedError):
                await create_webhook(stranger, resource="1", target="http://127.0.0.1:9/x")


async def test_control() -> None:
    """Over HTTP the fake tells its webhooks with their secrets, takes faults, and turns its clock."""
    async with fake_process("--webhooks", "2") as fake, fake.session() as asana:
        status, answer = await fake.control("GET", "/webhooks")
        assert status == 200
        assert [len(one["secret"]) for one in answer["data"]] == [32, 32]

        fault = {"at": "getWebhooks", "status": 429, "retry_after": 2}
        assert await fake.control("POST", "/faults", fault) == (202, {"added": 1})
        with pytest.raises(RateLimitedError):
            [one async for one in get_webhooks(asana, workspace="1331")]

        before = (await fake.control("POST", "/clock", {"advance": 0}))[1]["now"]
        after = (await fake.control("POST", "/clock", {"advance": 86_400}))[1]["now"]
        assert before[:10] < after[:10]
        assert (await fake.control("GET", "/deliveries"))[0] == 200
        assert (await fake.control("POST", "/clock", {"advance": "soon"}))[0] == 400


async def test_examples_of_the_help() -> None:
    """What the help shows is what the fake takes."""
    async with fake_process() as fake:
        change = {"resource": "8675309", "action": "changed", "field": "due_on"}
        added = {"resource": "99", "action": "added", "parent": "8675309"}
        refused = {"at": "createWebhook", "status": 429, "retry_after": 2, "times": 2}
        twice = {"at": "delivery", "do": "duplicate"}
        assert (await fake.control("POST", "/changes", change))[0] == 202
        assert (await fake.control("POST", "/changes", added))[0] == 202
        assert (await fake.control("POST", "/faults", [refused, twice])) == (202, {"added": 2})
        assert (await fake.control("POST", "/clock", {"advance": 28_800}))[0] == 200


async def test_targets_on_this_machine_refused() -> None:
    """With --no-loopback a target on this machine is refused with 403, as Asana does."""
    async with fake_process("--no-loopback") as fake, fake.session() as asana:
        with pytest.raises(TargetRejectedError, match="answered 403"):
            await create_webhook(asana, resource=fake.ready["projects"][0], target="http://127.0.0.1:9/x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_end(number: signal.Signals) -> None:
    """Either signal ends the fake with status 0, and with nothing more to read."""
    async with fake_process() as fake:
        fake.process.send_signal(number)
        end = await ended(fake.process)
    assert (end.status, end.out, end.err) == (0, "", "")


async def test_port_taken() -> None:
    """A port somebody else has is one sentence and status 1."""
    async with fake_process() as fake:
        port = fake.url.removesuffix("/api/1.0").rpartition(":")[2]
        end = await run_cli("fake", "--port", port)
    assert (end.status, end.out) == (1, "")
    assert len(end.err.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in end.err
