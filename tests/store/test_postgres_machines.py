"""One PostgreSQL for several machines: each step of a webhook's life may happen on another one."""

import asyncio
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import pairwise

import aiohttp
import pytest
from attrs import define
from yarl import URL

from asana_webhooks import RegistrationState, open_store
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.testing import FakeAsana
from tests.helpers.machines import Machine, machine
from tests.helpers.raw import later
from tests.helpers.stores import ENDPOINT, SECRET, body, deliver, event, register
from tests.helpers.tcp_proxy import tcp_proxy

pytestmark = pytest.mark.slow


def of(fake: FakeAsana, public_url: str) -> dict[str, str]:
    """Return what `ensure` must know."""
    return {"token": fake.token, "base_url": fake.url, "public_url": public_url, "resource": fake.projects[0]}


async def test_four_machines_share_a_webhook(postgres_url: str) -> None:
    """One ensures it, another answers its handshake, a third one its delivery, and a fourth handles that."""
    async with (
        FakeAsana() as fake,
        machine("receive", postgres_url) as first,
        machine("receive", postgres_url) as second,
        machine("work", postgres_url, poll=0.05) as worker,
        tcp_proxy(await first.says("public_url")) as proxy,
        machine("ensure", postgres_url, **of(fake, proxy.url)) as creator,
    ):
        await creator.says("ready")
        await creator.end()
        assert [await creator.says("webhook_gid")] == list(fake.webhooks)

        await first.end()
        proxy.upstream = URL(await second.says("public_url"))
        await proxy.close_all()
        task = fake.add_task(parent=fake.projects[0])
        fake.change(task, field="due_on")
        await fake.settle()
        assert await worker.says("handled") == task


async def test_the_same_at_two_machines(postgres_url: str) -> None:
    """Fifty identical requests at once, to two receivers: all are answered 200, and one is stored."""
    content = body(event())
    headers = {"X-Hook-Signature": sign_body(content, secret=SECRET)}
    async with (
        open_store(postgres_url) as store,
        machine("receive", postgres_url) as first,
        machine("receive", postgres_url) as second,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        await register(store)
        urls = [await one.says("public_url") for one in (first, second)]

        async def post(url: str) -> int:
            async with http.post(f"{url}/{ENDPOINT}", data=content, headers=headers) as response:
                return response.status

        assert await asyncio.gather(*map(post, urls * 25)) == [200] * 50
        assert [one.body for one in await store.deliveries(state="waiting")] == [content]


@pytest.mark.long
async def test_ten_machines_ensure_one_webhook(postgres_url: str) -> None:
    """One of them creates it, and the others wait for that and find it as wanted."""
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeAsana())
        store = await stack.enter_async_context(open_store(postgres_url))
        receiver = await stack.enter_async_context(machine("receive", postgres_url))
        wanted = of(fake, await receiver.says("public_url"))
        all_ten = [await stack.enter_async_context(machine("ensure", postgres_url, **wanted)) for _ in range(10)]
        for one in all_ten:
            await one.says("ready")
        await asyncio.gather(*(one.end() for one in all_ten))
        assert Counter([await one.says("action") for one in all_ten]) == {"created": 1, "unchanged": 9}
        [live] = await store.list_registrations(state=RegistrationState.CONFIRMED)
        assert list(fake.webhooks) == [live.webhook_gid]
        assert await store.list_registrations(state=RegistrationState.PENDING) == []


# Order

LEASE = 1.0
WORK = {"ordered": True, "lease": LEASE, "concurrency": 4, "poll": 0.01, "handling": 0.03, "attempts": 1000}


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_workers_that_die_and_stall_keep_the_order(postgres_url: str) -> None:
    """Three workers, of which one is killed or stands still past its lease, again and again, while two stores put: of
    each webhook, one delivery is held at a time, and none before those that the same store had put earlier.
    """
    rng = random.Random(7)
    workers: list[Machine] = []
    sources: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(postgres_url)) for _ in range(2)]
        ids = [await register(stores[0], f"{ENDPOINT}{number}", gid=f"{number}") for number in range(6)]

        async def start() -> Machine:
            workers.append(await stack.enter_async_context(machine("work", postgres_url, **WORK)))
            await workers[-1].says("ready")
            return workers[-1]

        async def put(id: str, source: int) -> None:
            # The commits of large ones take longer, so that ids become visible in another order than they were given.
            one = event(parent={"gid": "1" * 200_000 * source})
            sources[one["resource"]["gid"]] = source
            await deliver(stores[source], id, body(one))

        async def put_all() -> None:
            while len(sources) < 1_200:
                await asyncio.gather(*(put(id, source) for id in ids for source in (0, 1)))
                await later(0.07)

        running = [await start() for _ in range(3)]
        putting = asyncio.create_task(put_all())
        while not putting.done():
            victim = rng.randrange(3)
            await later(rng.uniform(0.2, 0.6))
            if rng.random() < 0.5:
                running[victim].process.kill()
                running[victim] = await start()
            else:
                running[victim].process.send_signal(signal.SIGSTOP)
                await later(LEASE * 1.5)
                running[victim].process.send_signal(signal.SIGCONT)
        await putting
        while (await stores[0].health()).oldest_age is not None:
            await later(0.05)
    check_order([claim for worker in workers for claim in claims_of(worker)], sources)


@define(kw_only=True)
class Claim:
    """A delivery that a worker has claimed at some time from *before* to *after*."""

    webhook: str
    id: int
    gid: str
    attempt: int
    before: float
    after: float
    acking: float | None = None
    """When the worker began to acknowledge it, unless its lease was lost."""


def claims_of(worker: Machine) -> Iterable[Claim]:
    found: dict[tuple[int, int], Claim] = {}
    for line in worker.said:
        if "claimed" in line:
            id, fence = line.pop("claimed"), line.pop("fence")
            found[id, fence] = Claim(id=id, **line)
        elif "acking" in line:
            found[line["acking"], line["fence"]].acking = line["at"]
        elif "acked" in line and not line["done"]:
            found[line["acked"], line["fence"]].acking = None
    return found.values()


def check_order(claims: list[Claim], sources: dict[str, int]) -> None:
    """Fail if a webhook ever had two holders, or if its deliveries were held in another order than they came."""
    done: dict[int, float] = {}
    rows: dict[tuple[str, int], list[Claim]] = defaultdict(list)
    webhooks: dict[str, list[Claim]] = defaultdict(list)
    for one in claims:
        rows[one.webhook, sources[one.gid]].append(one)
        webhooks[one.webhook].append(one)
        if one.acking is not None:
            done[one.id] = min(one.acking, done.get(one.id, one.acking))
    assert len(done) == len(sources)
    assert sum(one.attempt > 1 for one in claims) > 5, "too few were claimed again to say anything"
    for row in rows.values():
        row.sort(key=lambda one: (int(one.gid), one.attempt))
        for one, other in pairwise(row):
            if one.id != other.id:
                assert other.after >= done[one.id], "held before the earlier one was done"
            else:
                assert one.attempt < other.attempt, "two hold one lease"
                assert other.after >= one.before + LEASE * 0.95, "claimed again before the lease had run out"
    for held in webhooks.values():
        for one in held:
            if one.acking is not None and one.acking < one.before + LEASE * 0.95:
                beside = [other for other in held if one.after < other.before and other.after < one.acking]
                assert beside == [], "a webhook has two holders"
