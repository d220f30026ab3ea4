"""What `PostgresStore` promises beyond the contract: opening, roles, migrations, lent pools, what it says and hides."""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from cryptography.fernet import Fernet
from yarl import URL

from asana_webhooks.errors import ConfigurationError, StoreFullError, StoreUnavailableError
from asana_webhooks.store import PostgresStore, open_store
from asana_webhooks.store.base import DeliveryState, Registration
from asana_webhooks.store.postgres import postgres_schema
from asana_webhooks.store.postgres import schema as schema_module
from asana_webhooks.store.postgres import store as store_module
from asana_webhooks.store.secret_box import FernetBox
from tests.helpers.ports import free_port
from tests.helpers.postgres import run_sql
from tests.helpers.raw import later
from tests.helpers.stores import Clock
from tests.store.contract.tools import (
    ID,
    LEASE,
    OTHER,
    SECRET,
    adopt_one,
    bodies,
    bodies_of,
    claim_one,
    confirm_one,
    expect_misuse,
    find_one,
    lease_one,
    new_delivery,
    open_one,
    put,
    put_many,
    strange_lease,
)


async def use(store: PostgresStore) -> None:
    """Go once through everything that a delivery needs, and through what keeps the store tidy."""
    await confirm_one(store)
    await store.fail(await lease_one(store), error="", retry_in=0)
    assert await store.ack(await claim_one(store, ordered=True))
    assert (await store.health()).problems == ()
    await store.close_registration(ID)
    await store.expire_registrations()
    await store.purge(older_than=0, dead=True)


@asynccontextmanager
async def role(url: str, *rights: str) -> AsyncIterator[str]:
    """Yield the URL of a role that may log in and has these rights, as in ``USAGE ON SCHEMA x``."""
    password = "hunter2"
    await run_sql(url, f"CREATE ROLE small LOGIN PASSWORD '{password}'", *(f"GRANT {one} TO small" for one in rights))
    try:
        yield str(URL(url).with_user("small").with_password(password))
    finally:
        await run_sql(url, "DROP OWNED BY small", "DROP ROLE small")


# Opening


async def test_many_stores_create_the_tables_at_once(postgres_url: str) -> None:
    """Ten stores that open a new database at the same moment all succeed."""
    stores = [PostgresStore(postgres_url, connections=1) for _ in range(10)]
    await asyncio.gather(*(store.__aenter__() for store in stores))
    await use(stores[0])
    await asyncio.gather(*(store.aclose() for store in stores))


async def test_a_role_that_creates_nothing(postgres_url: str) -> None:
    """With the tables of `postgres_schema` a role needs no right to create; without them it is told what to do."""
    tables = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA mine"
    async with role(postgres_url) as url:
        with pytest.raises(ConfigurationError, match=r"may not create them; run the SQL of .*postgres_schema\(\)"):
            await PostgresStore(url, schema="mine").__aenter__()
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(postgres_schema(schema="mine"))
    await connection.close()
    async with role(postgres_url, "USAGE ON SCHEMA mine", tables) as url:
        async with PostgresStore(url, schema="mine") as store:
            await use(store)


async def test_a_later_release_was_here(postgres_url: str) -> None:
    """Steps that a later release ran are no problem if they are ``pre``; after a ``post`` the store says what to do."""
    async with PostgresStore(postgres_url):
        pass
    assert postgres_schema(after=1) == "\n"
    add = "INSERT INTO asana_webhooks.steps (number, kind) VALUES ({}, '{}')"
    await run_sql(postgres_url, add.format(98, "pre"))
    async with PostgresStore(postgres_url) as store:
        await use(store)
    await run_sql(postgres_url, add.format(99, "post"))
    with pytest.raises(ConfigurationError, match="step 99, which only a later release understands; upgrade"):
        await PostgresStore(postgres_url).__aenter__()


async def test_the_next_release(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store runs the ``pre`` steps that came with its release; the ``post`` ones are printed for the operator."""
    async with PostgresStore(postgres_url):
        pass
    new = ("pre", "CREATE TABLE @extra ();"), ("post", "DROP TABLE @extra;")
    monkeypatch.setattr(schema_module, "STEPS", (*schema_module.STEPS, *new))
    async with PostgresStore(postgres_url) as store:
        await use(store)
    assert await run_sql(postgres_url, "SELECT number, kind FROM asana_webhooks.steps, asana_webhooks.extra") == []
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(postgres_schema(after=2))
    await connection.close()
    steps = await run_sql(postgres_url, "SELECT number, kind FROM asana_webhooks.steps ORDER BY number")
    assert steps == [(1, "pre"), (2, "pre"), (3, "post")]


async def test_a_commit_must_be_durable(postgres_url: str) -> None:
    """A database or role that does not wait for its disk is refused in words; servers are in `test_postgres_faults`."""
    url = str(URL(postgres_url).update_query(synchronous_commit="off"))
    with pytest.raises(ConfigurationError, match="synchronous_commit = off, so it can lose deliveries"):
        await PostgresStore(url).__aenter__()


WRONG: dict[str, tuple[Callable[[URL], URL], str]] = {
    "a password": (lambda url: url.with_password("hunter2"), "rejects the user or the password"),
    "a database": (lambda url: url.with_path("/hunter2"), "the database does not exist"),
    "a port": (lambda url: url.with_port(free_port()), "cannot be reached .* sslmode"),
    "a key": (lambda url: url.update_query(sslmode="hunter2"), "the DSN is not valid"),
    "a setting": (lambda url: url.update_query(hunter2="on"), "PostgreSQL reported an error"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_with_a_dsn(what: str, postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake in the DSN is named, and neither the error nor any log shows what it contains."""
    change, words = WRONG[what]
    url = change(URL(postgres_url).with_password("hunter2") if what == "a port" else URL(postgres_url))
    store = open_store(str(url))
    caplog.set_level(logging.DEBUG)
    with pytest.raises((ConfigurationError, StoreUnavailableError), match=words) as caught:
        await store.close_registration(ID)
    password = URL(postgres_url).password
    for shown in (str(caught.value), repr(caught.value.__context__), repr(store), caplog.text):
        assert "hunter2" not in shown
        assert str(password) not in shown
    await store.aclose()


@pytest.mark.parametrize("wrong", ["hunter2", "mysql://hunter2", "", None, 5, asyncpg.Pool])
def test_what_is_no_dsn(wrong: Any) -> None:
    """Anything but PostgreSQL's URLs and pools is refused, and not repeated; so are odd names of schemas."""
    with pytest.raises(ConfigurationError, match=r"postgresql://user:password@host/database|asyncpg\.Pool") as caught:
        PostgresStore(wrong)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="lower-case letters"):
        PostgresStore("postgresql://db/asana", schema='a"; DROP TABLE x; --')


def test_without_asyncpg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver the error names the extra."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'asana-webhooks\[postgres\]'"):
        open_store("postgresql://db/asana")


async def test_a_lent_pool_stays_open(postgres_url: str) -> None:
    """A store works over a pool of the application, leaves no trace in it, and does not close it."""
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=2) as pool:
        settings = await pool.fetch("SELECT name, setting FROM pg_settings WHERE source = 'session'")
        async with PostgresStore(pool) as store:
            await use(store)
        assert await pool.fetch("SELECT name, setting FROM pg_settings WHERE source = 'session'") == settings
        assert await pool.fetchval("SELECT 1") == 1
    with pytest.raises(StoreUnavailableError, match="check that a lent pool is open"):
        await PostgresStore(pool).find_registration(ID)


async def test_secrets_at_rest(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a box one warning says that secrets are plain text. With one they are sealed, and can be resealed."""
    async with PostgresStore(postgres_url) as store:
        await adopt_one(store)
        await find_one(store)
        with pytest.raises(ConfigurationError, match="no secret_box"):
            await store.reseal()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    old, new = (FernetBox({name: Fernet.generate_key()}) for name in ("old", "new"))
    async with PostgresStore(postgres_url, secret_box=old) as store:
        assert await store.reseal() == 1
        assert (await find_one(store)).secret == SECRET
    assert len(caplog.records) == 1, "with a box"
    (stored,) = await run_sql(postgres_url, "SELECT secret, key_id FROM asana_webhooks.secrets")
    assert SECRET.reveal().encode() not in stored["secret"]
    async with PostgresStore(postgres_url, secret_box=new) as store:
        assert "cannot be opened" in caplog.records[1].getMessage()
        health = await store.health()
        assert (health.secrets_readable, health.writable) == (False, True)
        with pytest.raises(StoreUnavailableError, match="cannot open"):
            await store.find_registration(ID)
        assert await store.reseal() == 0


# Use


async def test_nul_characters(postgres_url: str) -> None:
    """PostgreSQL cannot save NUL: it is refused in names, and a failure is recorded with an escape."""
    bad = "a\0b"
    async with PostgresStore(postgres_url) as store:
        await confirm_one(store)
        for call in (open_one(store, OTHER, label=bad), store.list_registrations(after=bad)):
            await expect_misuse(call, "a name with NUL")
        calls = (store.find_registration(bad), store.find_registration(ID))
        refused, found = await asyncio.gather(*calls, return_exceptions=True)
        assert (type(refused), type(found)) == (ConfigurationError, Registration), "two that share a statement"
        assert await store.fail(await lease_one(store), error=bad, retry_in=None)
        (letter,) = await store.deliveries(state=DeliveryState.DEAD)
        assert letter.error == "a\\x00b"


async def test_a_slow_server(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A call that waits longer than *timeout* fails in words, and counts until then even if its caller has gone; the
    server stops waiting, too; later ones succeed, and closing does not hang. asyncio logs no error that nobody read.
    """
    async with PostgresStore(postgres_url, timeout=0.3, max_operations=2, connections=2) as store:
        await adopt_one(store)
        locker = await asyncpg.connect(postgres_url)
        await locker.execute("BEGIN; LOCK TABLE asana_webhooks.inbox")
        async with asyncio.timeout(10):
            gone, late = (asyncio.create_task(store.put(new_delivery(number))) for number in range(2))
            await later(0)
            gone.cancel()
            await asyncio.wait([gone])
            with pytest.raises(StoreFullError, match="too many operations"):
                await store.put(new_delivery(3))
            health = asyncio.create_task(store.health())
            for call in (late, health):
                with pytest.raises(StoreUnavailableError, match="did not answer in time"):
                    await call
            assert gone.cancelled()
            calls = [asyncio.create_task(call) for call in (store.put(new_delivery(3)), store.ack(strange_lease()))]
            await later(0.1)
            assert [call.cancel() for call in calls] == [True, True]
            while (await run_sql(postgres_url, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
                await later(0.01)
        await locker.close()
        await put(store, 4)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_server_that_never_answers(postgres_url: str) -> None:
    """Calls that wait for the first connection all fail after one *timeout*, and not one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = PostgresStore(str(URL(postgres_url).with_port(silent.getsockname()[1])), timeout=0.3)
        async with asyncio.timeout(5):
            failures = await asyncio.gather(*map(store.delivery, range(30)), return_exceptions=True)
            await store.aclose()
    assert {str(failure)[:38] for failure in failures} == {"PostgreSQL did not answer in time (Tim"}


async def test_a_cancelled_claim_holds_nothing(postgres_url: str) -> None:
    """What is claimed for a caller who has gone is released, wherever the claim was."""
    async with PostgresStore(postgres_url) as store:
        await confirm_one(store)
        await put(store, 1, 2)
        for turns in range(12):
            claim = asyncio.create_task(store.claim(9, lease=3600))
            for _ in range(turns):
                await later(0.001)
            claim.cancel()
            await asyncio.gather(claim, return_exceptions=True)
            held = () if claim.cancelled() else claim.result()
            assert await asyncio.gather(*map(store.release, held)) == [True] * len(held)
    async with PostgresStore(postgres_url) as store:  # what was begun has ended
        leases = await store.claim(9, lease=LEASE)
        assert ([lease.attempt for lease in leases], bodies_of(leases)) == ([1, 1], bodies(1, 2))


async def test_a_statement_keeps_the_order(postgres_url: str) -> None:
    """Deliveries that are put at once share a statement, and are claimed in the order they came; copies are found."""
    async with PostgresStore(postgres_url) as store:
        await confirm_one(store)
        numbers = (5, 3, 9, 3, 1, 5)
        answers = await asyncio.gather(*(store.put(new_delivery(number)) for number in numbers))
        assert answers == ["stored", "stored", "stored", "duplicate", "stored", "duplicate"]
        assert bodies_of(await store.claim(9, lease=LEASE)) == bodies(5, 3, 9, 1)


async def test_what_must_run_alone_is_not_passed_over(postgres_url: str) -> None:
    """Between two webhooks with much to do, what must run alone is claimed before long."""
    clock = Clock()
    async with PostgresStore(postgres_url, clock=clock) as store:
        for id in ("1", "2", "3"):
            await adopt_one(store, id)
        await put(store, 1, registration="2")
        for _ in range(2):
            await claim_one(store)
            clock.advance(LEASE)
        for id in ("1", "3"):
            await put_many(store, range(60), id)
        claims = [await store.claim(limit, lease=LEASE) for limit in (1, 9, 9, 9)]  # the last turn is the third one's
        assert [len(claimed) for claimed in claims if any(lease.alone for lease in claimed)] == [1]


async def test_blocked_webhooks_hide_no_other(postgres_url: str) -> None:
    """Behind thousands of webhooks that wait for a retry, an ordered claim finds the one that does not."""
    clock = Clock()
    async with PostgresStore(postgres_url, clock=clock) as store:
        await adopt_one(store)
        await run_sql(
            postgres_url,
            """
            INSERT INTO asana_webhooks.registrations (id, resource, label, public_url, state, opened_at, deadline)
            SELECT n::text, '1', n::text, '', 'confirmed', 0, 0 FROM generate_series(2, 6000) AS n
            """,
            f"""
            INSERT INTO asana_webhooks.inbox (registration, received_at, since, due_at, body)
            SELECT number, 0, {clock.now}, {clock.now} + 3600, '' FROM asana_webhooks.registrations
            """,
            "INSERT INTO asana_webhooks.inbox (registration, received_at, body) "
            "SELECT number, 0, '' FROM asana_webhooks.registrations",
            "DELETE FROM asana_webhooks.inbox WHERE registration = 4000 AND due_at IS NOT NULL",
        )
        assert [lease.registration for lease in await store.claim(9, lease=LEASE, ordered=True)] == ["4000"]
        assert list(await store.claim(9, lease=LEASE, ordered=True)) == []


# Health


async def test_health_says_what_is_wrong(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only database and a transaction that someone left open are named."""
    monkeypatch.setattr(store_module, "OLD_TRANSACTION", 0.0)
    name = URL(postgres_url).path.strip("/")
    async with PostgresStore(postgres_url) as store:
        await adopt_one(store)
        left = await asyncpg.connect(postgres_url)
        await left.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        (problem,) = (await store.health()).problems
        assert f"pg_stat_activity has its process, {left.get_server_pid()}" in problem
        await left.close()
    monkeypatch.undo()
    await run_sql(postgres_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        async with PostgresStore(postgres_url) as store:
            health = await store.health()
            assert (health.writable, health.webhooks) == (False, 1)
            with pytest.raises(StoreUnavailableError, match="PostgreSQL is read-only") as caught:
                await store.put(new_delivery(1))
            assert health.problems == (str(caught.value),)
    finally:
        await run_sql(postgres_url, "SET default_transaction_read_only = off", f'ALTER DATABASE "{name}" RESET ALL')
