"""Services as processes of their own that ensure one webhook: restarted, many at once, and killed wherever they are."""

import asyncio
import json
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, frozen

from asana_webhooks import Receiver, SQLiteStore
from asana_webhooks.store.base import Registration, RegistrationState, Store
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver
from tests.helpers.ports import free_port

ROOT = Path(__file__).parents[2]
EXPIRED = 80
"""Seconds after which the registration of a killed process has expired."""


@define
class Service:
    """A running `tests.helpers.ensuring_service`."""

    process: asyncio.subprocess.Process

    async def says(self) -> list[str]:
        """Return the words of its next line; none if it has ended."""
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().split()

    async def dies(self, *, within: float) -> bool:
        """Wait until it has killed itself, or kill it later; say whether it had ensured by then."""
        said = ["still at it"]
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                said = await self.says()
        if said:  # or it is dead
            self.process.kill()
        await self.process.communicate()
        assert self.process.returncode == -signal.SIGKILL
        return said[:1] == ["ensured"]

    async def end(self) -> list[str]:
        """Let it end well; return what it said till then."""
        out, err = await self.process.communicate(b"")  # which closes its input
        assert self.process.returncode == 0, err
        return out.decode().splitlines()


@frozen
class Stage:
    """A fake Asana, a store in a file, and the port at which Asana reaches the receivers."""

    fake: FakeAsana
    store: Store
    path: Path
    port: int

    def set_forward(self, seconds: float) -> None:
        clock = self.path.with_suffix(".clock")
        later = clock.with_suffix(".later")
        later.write_text(str(float(clock.read_text()) + seconds))
        later.rename(clock)

    @asynccontextmanager
    async def service(
        self, *, serves: bool = True, url: str = "", dies_at: int | None = None, **wanted: Any
    ) -> AsyncIterator[Service]:
        public_url = f"http://127.0.0.1:{self.port}/asana{url}"
        options = {
            "path": str(self.path),
            "clock": str(self.path.with_suffix(".clock")),
            "token": self.fake.token,
            "base_url": self.fake.url,
            "wanted": {"resource": self.fake.projects[0], "public_url": public_url} | wanted,
            "port": self.port if serves else None,
            "dies_at": dies_at,
        }
        program = ("-m", "tests.helpers.ensuring_service", json.dumps(options))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            yield Service(process)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()

    async def registrations(self, state: RegistrationState) -> list[Registration]:
        return list(await self.store.list_registrations(state=state))

    async def live(self) -> int:
        found = [await self.registrations(one) for one in RegistrationState if one is not RegistrationState.CLOSED]
        return sum(map(len, found))

    async def one_event(self) -> str:
        """Let something change; return when all webhooks have been told."""
        task = self.fake.add_task()
        self.fake.change(task, field="name")
        await self.fake.settle()
        return task


@asynccontextmanager
async def stage(path: Path, *, serves: bool) -> AsyncIterator[Stage]:
    """Set the stage; with *serves*, this process runs a receiver over the same file all the time."""
    clock, port = path.with_suffix(".clock"), free_port()
    clock.write_text("0")
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeAsana())
        store = SQLiteStore(path, clock=lambda: time.time() + float(clock.read_text()))
        await stack.enter_async_context(store)
        if serves:
            await stack.enter_async_context(serve_receiver(Receiver(store), port=port))
        yield Stage(fake, store, path, port)


async def handled_once(here: Stage, service: Service) -> None:
    """Exactly one webhook is confirmed and exists, others are refused, and an event is handled once."""
    [confirmed] = await here.registrations(RegistrationState.CONFIRMED)
    assert await here.registrations(RegistrationState.PENDING) == []
    assert confirmed.webhook_gid in here.fake.webhooks
    task = await here.one_event()
    assert await service.says() == ["handled", task]
    statuses = {one.webhook_gid: one.status for one in here.fake.deliveries}
    assert {gid for gid in here.fake.webhooks if statuses.get(gid) == 200} == {confirmed.webhook_gid}


async def handled_by_one(here: Stage, services: list[Service]) -> None:
    """An event is handled once among these services, which end then."""
    task = await here.one_event()
    saying = [asyncio.create_task(one.says()) for one in services]
    await asyncio.wait(saying, return_when=asyncio.FIRST_COMPLETED)
    for one in services:
        assert one.process.stdin is not None
        one.process.stdin.close()
    assert sorted([await one for one in saying]) == [[]] * (len(services) - 1) + [["handled", task]]
    assert [await one.end() for one in services] == [[]] * len(services)


@pytest.mark.long
async def test_three_starts(tmp_path: Path) -> None:
    """However often a service is started, there is one webhook, one create request, and one handling of each event."""
    async with stage(tmp_path / "asana.db", serves=False) as here:
        actions = []
        for _ in range(3):
            async with here.service() as service:
                _, action, gid, _ = await service.says()
                actions.append(action)
                assert list(here.fake.webhooks) == [gid]
                await handled_once(here, service)
                assert await service.end() == []

        assert actions == ["created", "unchanged", "unchanged"]
        assert [one.operation for one in here.fake.requests] == ["createWebhook", "getWebhook", "getWebhook"]


FILTERS: list[list[dict[str, Any]]] = [[], [{"resource_type": "task", "action": "changed"}], [{"action": "changed"}]]


async def kill(here: Stage, chance: random.Random, kills: int, *, serves: bool, faults: bool) -> Counter[bool]:
    """Start services that want this or that, and kill each at a random point; count those that had ensured by then."""
    ended = Counter[bool]()
    for _ in range(kills):
        if faults:
            at = chance.choice(["createWebhook", "deleteWebhook", "updateWebhook", "getWebhook"])
            how: dict[str, Any] = chance.choice(
                [{"status": 429, "retry_after": 0}, {"do": "lose_answer"}, {"do": "reset"}]
            )
            here.fake.script(Fault(at=at, **how))
        wanted: dict[str, Any] = {
            "url": chance.choice(["", "?v=2"]),
            "filters": chance.choice(FILTERS),
            "workspace": chance.choice([None, here.fake.workspace]),
        }
        async with here.service(serves=serves, dies_at=chance.randrange(1, 60), **wanted) as service:
            ended[await service.dies(within=3)] += 1
        assert await here.live() <= 2
        if chance.random() < 0.8:
            here.set_forward(EXPIRED)
    return ended


async def survives(path: Path, seed: int, kills: int, *, serves: bool, faults: bool = False) -> Counter[bool]:
    chance = random.Random(seed)
    async with stage(path, serves=not serves) as here:
        ended = await kill(here, chance, kills, serves=serves, faults=faults)
        here.fake.faults.clear()
        here.set_forward(EXPIRED)
        workspace = here.fake.workspace
        async with here.service(serves=serves, filters=FILTERS[1], workspace=workspace) as service:
            said = await service.says()
            assert said[:1] == ["ensured"]
            await handled_once(here, service)
            assert await service.end() == []
        gid = said[2]
        ours = {gid for gid, one in here.fake.webhooks.items() if "?" not in one.target}
        assert ours == {gid}  # those of killed services are deleted, but for those below the other public URL
        assert here.fake.webhook(gid).filters[0].resource_type == "task"
        return ended


@pytest.mark.slow
@pytest.mark.parametrize(
    "serves",
    [pytest.param(True, id="with its receiver"), pytest.param(False, id="beside a receiver", marks=pytest.mark.long)],
)
async def test_killed_a_few_times(tmp_path: Path, serves: bool) -> None:
    """Two are live at most; once a service has started well, one webhook is alive, and its events are handled once."""
    await survives(tmp_path / "asana.db", 4, 4, serves=serves)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("serves", [True, False], ids=["with its receiver", "beside a receiver"])
@pytest.mark.parametrize("faults", [False, True], ids=["fine", "faults"])
async def test_killed_at_twenty_points(tmp_path: Path, faults: bool, serves: bool) -> None:
    """The same after twenty kills, while requests are refused for now, cut, or executed without an answer."""
    ended = await survives(tmp_path / "asana.db", 1, 20, serves=serves, faults=faults)

    assert ended[False] >= 8, ended  # killed before it had ensured; the others got through before their turn


@pytest.mark.long
@pytest.mark.parametrize("count", [3, 10])
async def test_many_at_once(tmp_path: Path, count: int) -> None:
    """One of them creates the webhook, in one request; the others wait for it, and all go on with it."""
    async with stage(tmp_path / "asana.db", serves=True) as here, AsyncExitStack() as stack:
        services = [await stack.enter_async_context(here.service(serves=False)) for _ in range(count)]
        said = [await one.says() for one in services]

        assert Counter(words[1] for words in said) == {"created": 1, "unchanged": count - 1}
        assert {words[2] for words in said} == set(here.fake.webhooks)
        assert [one.operation for one in here.fake.requests].count("createWebhook") == 1
        await handled_by_one(here, services)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
async def test_ten_at_once_and_half_of_them_killed(tmp_path: Path, seed: int) -> None:
    """Whoever is left ends with one webhook, in place of one at another URL."""
    chance = random.Random(seed)
    async with stage(tmp_path / "asana.db", serves=True) as here, AsyncExitStack() as stack:
        async with here.service(serves=False, url="?v=1") as first:
            assert (await first.says())[1] == "created"
        points = [chance.randrange(1, 60) for _ in range(5)] + [None] * 5
        services = [await stack.enter_async_context(here.service(serves=False, dies_at=one)) for one in points]
        await asyncio.gather(*(one.dies(within=20) for one in services[:5]))
        assert await here.live() <= 2
        said = [asyncio.create_task(one.says()) for one in services[5:]]
        while (await asyncio.wait(said, timeout=1))[1]:
            assert await here.live() <= 2
            here.set_forward(EXPIRED)

        [confirmed] = await here.registrations(RegistrationState.CONFIRMED)
        assert {one.result()[2] for one in said} == {confirmed.webhook_gid}
        await handled_by_one(here, services[5:])
