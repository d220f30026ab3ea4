"""The guide's programs that check URLs, and check, watch and move webhooks, run as printed."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from asana_webhooks import AsanaSession, Receiver, SQLiteStore, ensure_webhook
from asana_webhooks.testing import FakeAsana, FakeClock, serve_receiver
from tests.helpers.guides import program
from tests.helpers.ports import free_port
from tests.helpers.programs import access, next_line, run, running, start
from tests.helpers.raw import later

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # whole programs


async def ensure(folder: Path, fake: FakeAsana, port: int) -> str:
    """Ensure a webhook in the programs' store, with a receiver on a port; return its gid."""
    async with (
        SQLiteStore(folder / "asana.db", clock=fake.clock.time) as store,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        serve_receiver(Receiver(store), port=port) as url,
    ):
        return (await ensure_webhook(asana, store, resource=fake.projects[0], public_url=url)).webhook_gid


async def test_check(tmp_path: Path) -> None:
    """The program says that the webhook is ok, and when its target fails, what that says and when it is deleted."""
    port = free_port()
    async with FakeAsana() as fake:
        gid = await ensure(tmp_path, fake, port)
        code, where = program("subscriptions", "Check: how well are they?"), f"http://127.0.0.1:{port}/asana"
        [line] = await run(tmp_path, code, **access(fake), PUBLIC_URL=where)
        assert line.startswith(f"ok: webhook {gid} on {fake.projects[0]}: ")
        fake.change(fake.projects[0], field="name")
        await fake.settle()
        line, said = await run(tmp_path, code, **access(fake), PUBLIC_URL=where)
        assert line.startswith(f"failing: webhook {gid} on {fake.projects[0]}: deliveries fail; Asana deletes it at ")
        assert said.strip() == "what the target said last: The target could not be reached"


async def test_check_the_public_url(tmp_path: Path) -> None:
    """Beside a receiver the program prints a line for each finding, without one it says so and ends with status 1."""
    code, port = program("subscriptions", "Check the public URL"), free_port()
    where = f"http://127.0.0.1:{port}/asana"
    async with SQLiteStore(tmp_path / "asana.db") as store, serve_receiver(Receiver(store), port=port):
        lines = await run(tmp_path, code, PUBLIC_URL=where)
        assert [line.partition(":")[0] for line in lines] == ["warning", "ok", "ok", "ok", "ok", "ok"]
    program_without = await start(tmp_path, "-c", code, PUBLIC_URL=where)
    output, errors = await program_without.communicate()
    assert (program_without.returncode, errors) == (1, b"")
    assert b"failed: handshake: cannot connect to 127.0.0.1:" in output


async def test_watch(tmp_path: Path) -> None:
    """The program finds at its start that Asana has deleted the webhook, makes a new one, and tells of the gap."""
    port = free_port()
    async with FakeAsana(clock=FakeClock(start=datetime.now(UTC) - timedelta(hours=25))) as fake:
        gid = await ensure(tmp_path, fake, port)
        fake.change(fake.projects[0], field="name")
        await fake.advance(25 * 3600)
        where = {"PUBLIC_URL": f"http://127.0.0.1:{port}/asana", "ASANA_PROJECT": fake.projects[0]}
        receiver = program("receiver", "Receiver: be called by Asana")
        async with running(tmp_path, "-c", receiver, PORT=str(port)) as process:
            await next_line(process)
            code = program("subscriptions", "Watch and repair")
            watch = await start(tmp_path, "-c", code, **access(fake), **where)
            try:
                told, advice = await next_line(watch), await next_line(watch)
            finally:
                watch.kill()
                await watch.communicate()
        [new] = fake.webhooks
        assert told.startswith(f"gone: webhook {gid} on {fake.projects[0]}: ")
        assert f"; repaired: created webhook {new}; events may be missing from " in told
        assert advice.startswith(f"fetch what changed in {fake.projects[0]} since ")


async def test_verdicts_in_the_health_check(tmp_path: Path) -> None:
    """The service's health names a webhook that is in trouble until it is well again, with the same status."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/asana"
    async with FakeAsana() as fake, aiohttp.ClientSession() as http:
        gid = await ensure(tmp_path, fake, port)

        async def trouble(expected: dict[str, str]) -> None:
            """Ask until the health shows that."""
            while True:
                async with http.get(f"{url}/health") as answer:
                    shown = await answer.json()
                assert (answer.status, shown["status"]) == (200, "ok")
                if shown["trouble"] == expected:
                    return

        code = program("subscriptions", "Verdicts in the health check")
        fake.webhook(gid).active = False
        async with running(tmp_path, "-c", code, **access(fake), PUBLIC_URL=url, PORT=str(port), EVERY="0.05"):
            await is_up(http, url)
            await trouble({gid: "inactive"})
            fake.webhook(gid).active = True
            await trouble({})
            fake.change(fake.projects[0], field="name")
            await fake.settle()
            assert [one.status for one in fake.deliveries if one.events] == [200]


async def is_up(http: aiohttp.ClientSession, url: str) -> None:
    """Ask until the port is open."""
    while True:
        try:
            async with http.get(f"{url}/health"):
                return
        except aiohttp.ClientConnectionError:
            await later(0.05)


async def test_move(tmp_path: Path) -> None:
    """The program moves the webhook to another URL, and returns the same the second time."""
    old_port, port = free_port(), free_port()
    receiver = program("receiver", "Receiver: be called by Asana")
    code = program("subscriptions", "Move to another URL, or rotate a secret")
    # Not to wait for a minute.
    code = f"import asana_webhooks.subscriptions.move as move\nmove._ACCEPT_SECONDS = 0.01\n{code}"
    async with FakeAsana() as fake:
        old = await ensure(tmp_path, fake, old_port)
        async with (
            running(tmp_path, "-c", receiver, PORT=str(old_port)) as first,
            running(tmp_path, "-c", receiver, PORT=str(port)) as second,
        ):
            await next_line(first)
            await next_line(second)
            where = {"PUBLIC_URL": f"http://127.0.0.1:{port}/asana", "WEBHOOK": old, "OVERLAP": "0"}
            created = fake.hold("createWebhook", when="before_answer")
            moving = asyncio.create_task(run(tmp_path, code, **access(fake), **where))
            await created.reached()
            await fake.advance(1)
            fake.change(fake.projects[0], field="name")
            await fake.settle()
            created.release()
            lines = await moving
            assert lines == [f"the webhook is now {gid}" for gid in fake.webhooks]
            assert (await run(tmp_path, code, **access(fake), **where))[:1] == lines
