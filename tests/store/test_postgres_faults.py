"""Real faults of a PostgreSQL server under a receiver: what was answered 200 is kept, and nothing secret is logged."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from asana_webhooks import ConfigurationError, Receiver, Store, StoreUnavailableError, open_store
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store import PostgresStore
from asana_webhooks.store.base import NewDelivery, registration_id
from asana_webhooks.testing import serve_receiver
from tests.helpers.postgres import PostgresServer, drop_schemas, postgres_server, run_sql
from tests.helpers.raw import later
from tests.helpers.receiving import Load, sending
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register
from tests.store.postgres_help import frozen_server, lossy_proxy, pgbouncer, set_option, synchronous_standby

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No body is in a log line or a traceback, of whatever logger; the suite's canary looks for secrets."""
    caplog.set_level(logging.DEBUG)
    yield
    show = logging.Formatter().format
    assert not any("due_on" in show(record) for record in caplog.get_records("call"))


@pytest.fixture(scope="module", name="shared_server")
def _shared_server() -> Iterator[PostgresServer]:
    """One for the tests of this file in this process."""
    with postgres_server() as server:
        yield server


@pytest.fixture(name="server")
async def _server(shared_server: PostgresServer) -> AsyncIterator[PostgresServer]:
    """A server like new."""
    yield shared_server
    await run_sql(shared_server.url, "ALTER SYSTEM RESET ALL")
    await run_sql(shared_server.url, "SELECT pg_reload_conf()")
    await drop_schemas(shared_server.url)


@asynccontextmanager
async def receiving(url: str) -> AsyncIterator[tuple[Store, str]]:
    """Serve a receiver with one webhook over a store; yield that and the public URL."""
    async with open_store(url) as store:
        await register(store)
        async with serve_receiver(Receiver(store)) as public_url:
            yield store, public_url


def new_delivery() -> NewDelivery:
    content = body(event())
    return NewDelivery(
        registration=registration_id(ENDPOINT), signature=sign_body(content, secret=SECRET), body=content
    )


async def stored(store: Store) -> list[bytes]:
    """Return the bodies of all that waits."""
    found: list[bytes] = []
    after = 0
    while page := await store.deliveries(state="waiting", after=after):
        found += [one.body for one in page]
        after = page[-1].id
    return found


async def assert_nothing_is_lost(store: Store, load: Load) -> None:
    """What was answered 200 is stored, once, and so is nothing else: the rest was sent until it was answered."""
    await load.acknowledge(load.senders)
    await load.stop()
    found = Counter(await stored(store))
    assert len(load.acknowledged - set(found)) == 0, "what is lost"
    assert len(set(found) - load.acknowledged) == 0, "what was not acknowledged in the end"
    assert found.total() == len(found), "stored twice"


async def kill_again_and_again(server: PostgresServer, *, kills: int) -> list[float]:
    """Kill a server under 20 senders; return the seconds from each return to the first answer of 200."""
    rng, waits = random.Random(kills), []
    async with receiving(server.url) as (store, public_url), sending(public_url, resend=True) as load:
        for _ in range(kills):
            await load.acknowledge(rng.randint(50, 500))
            server.kill()
            await asyncio.to_thread(server.start)
            begun = time.monotonic()
            await load.acknowledge(1)
            waits.append(time.monotonic() - begun)
        await assert_nothing_is_lost(store, load)
        assert set(load.statuses) == {200, 503}
        assert load.broken == 0
    return waits


async def test_a_server_that_does_not_wait_for_its_disk(server: PostgresServer) -> None:
    """It is refused in words; `test_postgres_store` has such a database."""
    await set_option(server, "fsync", "off")
    with pytest.raises(ConfigurationError, match="fsync = off, so it can lose deliveries"):
        await PostgresStore(server.url).__aenter__()


async def test_a_killed_server(server: PostgresServer) -> None:
    """SIGKILL under 20 senders: nothing acknowledged is lost, and what comes next is stored soon after its return."""
    [wait] = await kill_again_and_again(server, kills=1)
    assert wait < 2


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_server_that_is_killed_again_and_again(server: PostgresServer) -> None:
    """Ten times the same."""
    waits = await kill_again_and_again(server, kills=10)
    assert max(waits) < 2, waits


async def test_an_answer_lost_after_the_commit(server: PostgresServer) -> None:
    """The caller cannot know that it is stored, and is told so; when it tries again, it is a duplicate."""
    async with lossy_proxy(server.url) as proxy, open_store(proxy.url) as store, open_store(server.url) as other:
        await register(store)
        delivery = new_delivery()

        async def is_stored() -> bool:
            return (await other.health()).waiting == 1

        proxy.lose_when = is_stored
        with pytest.raises(StoreUnavailableError):
            await store.put(delivery)
        assert proxy.losses == 1
        assert await store.put(delivery) == "duplicate"
        assert await stored(other) == [delivery.body]


async def test_a_machine_that_vanishes_in_the_middle_of_a_claim(server: PostgresServer) -> None:
    """Its transaction, which holds a webhook, ends though nobody tells the server; then another machine claims."""
    async with (
        lossy_proxy(server.url) as proxy,
        PostgresStore(proxy.url, timeout=1) as gone,
        open_store(server.url) as other,
    ):
        await register(other)
        delivery = new_delivery()
        assert await other.put(delivery) == "stored"

        async def holds_a_webhook() -> bool:
            holding = "state = 'idle in transaction' AND query LIKE '%FOR NO KEY UPDATE%'"
            return bool(await run_sql(server.url, f"SELECT 1 FROM pg_stat_activity WHERE {holding}"))

        proxy.is_silent, proxy.lose_when = True, holds_a_webhook
        with pytest.raises(StoreUnavailableError):
            await gone.claim(1, lease=60, ordered=True)
        assert proxy.losses == 1
        async with asyncio.timeout(10):
            while not (leases := await other.claim(1, lease=60, ordered=True)):
                await later(0.02)
        assert [one.body for one in leases] == [delivery.body]


@pytest.mark.long
async def test_a_frozen_server(server: PostgresServer) -> None:
    """A server that says nothing: 503 within 8 seconds, and all is well when it goes on; `aclose` does not hang."""
    async with receiving(server.url) as (store, public_url), sending(public_url, senders=5, resend=True) as load:
        await load.acknowledge(20)
        with frozen_server(server):
            await load.until(lambda: load.statuses[503] >= 10)
        begun = time.monotonic()
        await load.acknowledge(1)
        assert time.monotonic() - begun < 2
        await assert_nothing_is_lost(store, load)
        assert load.slowest[503] < 9
        assert (await store.health()).writable
    async with PostgresStore(server.url, timeout=1) as impatient:
        assert await impatient.put(new_delivery()) == "stored"
        with frozen_server(server):
            putting = asyncio.create_task(impatient.put(new_delivery()))
            await later(0)
            async with asyncio.timeout(5):
                await impatient.aclose()
                with pytest.raises(StoreUnavailableError):
                    await putting


async def test_through_pgbouncer(server: PostgresServer) -> None:
    """With PgBouncer in transaction mode, each statement may meet another connection."""
    async with (
        pgbouncer(server, "transaction") as url,
        receiving(url) as (store, public_url),
        sending(public_url, resend=True) as load,
    ):
        await load.acknowledge(200)
        await assert_nothing_is_lost(store, load)
        assert set(load.statuses) == {200}
        leases = await store.claim(100, lease=60)
        assert all(await asyncio.gather(*map(store.ack, leases)))
        assert (await store.health()).problems == ()


def either(one: PostgresServer, other: PostgresServer) -> str:
    """Return the URL of whichever of two servers can be written."""
    both = one.url.replace(f":{one.port}/", f":{one.port},127.0.0.1:{other.port}/")
    return f"{both}?target_session_attrs=read-write"


@pytest.mark.long
async def test_a_standby_that_takes_over() -> None:
    """With synchronous replication, what was acknowledged is in the standby that takes over, and nothing is while that
    is down.
    """
    with postgres_server() as primary:
        async with (
            synchronous_standby(primary) as standby,
            receiving(either(primary, standby)) as (store, public_url),
            sending(public_url, resend=True) as load,
        ):
            await load.acknowledge(300)
            standby.kill()
            await later(0.5)  # what is acknowledged now would be lost
            primary.kill()
            await asyncio.to_thread(standby.start)
            await run_sql(standby.url, "SELECT pg_promote()")
            begun = time.monotonic()
            await load.acknowledge(1)
            assert time.monotonic() - begun < 2
            await assert_nothing_is_lost(store, load)


async def test_a_server_that_only_reads(server: PostgresServer) -> None:
    """503 while nothing can be written, which health says, too; then all goes on."""
    async with receiving(server.url) as (store, public_url), sending(public_url, senders=5, resend=True) as load:
        await load.acknowledge(20)
        await set_option(server, "default_transaction_read_only", "on")
        await load.until(lambda: load.statuses[503] >= 10)
        health = await store.health()
        assert not health.writable
        assert "read-only" in " ".join(health.problems)
        await set_option(server, "default_transaction_read_only", "off")
        await assert_nothing_is_lost(store, load)
        assert (await store.health()).writable


async def test_a_transaction_that_stays_open(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health warns of one that has written something, even if it reads nothing: it, too, holds vacuum back."""
    monkeypatch.setattr("asana_webhooks.store.postgres.store.OLD_TRANSACTION", 0.0)
    async with open_store(server.url) as store:
        connection = await asyncpg.connect(server.url)
        try:
            await connection.execute("BEGIN; SELECT pg_current_xact_id()")
            [problem] = (await store.health()).problems
            assert str(connection.get_server_pid()) in problem
            await connection.execute("COMMIT")
            assert (await store.health()).problems == ()
        finally:
            await connection.close()
