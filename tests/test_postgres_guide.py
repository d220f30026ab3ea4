"""What the store's guide says of PostgreSQL: its programs and its SQL, run as printed on a real server."""

import signal
from pathlib import Path

import asyncpg
import pytest
from yarl import URL

from asana_webhooks import open_store
from asana_webhooks.testing import FakeAsana
from tests.helpers.guides import program
from tests.helpers.postgres import run_sql
from tests.helpers.programs import access, next_line, run, running
from tests.helpers.stores import body, deliver, event, register
from tests.helpers.tcp_proxy import tcp_proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # whole programs


async def test_several_machines(postgres_url: str, tmp_path: Path) -> None:
    """One process ensures, a receiver answers the handshake, another one the delivery, and a worker handles it; the
    next deploy changes nothing.
    """
    where = {"STORE_URL": postgres_url, "PORT": "0"}
    receiver = ("-c", program("store", "Receivers behind a load balancer"))
    ensure = program("store", "Webhooks at each deploy")
    async with FakeAsana() as fake, running(tmp_path, *receiver, **where) as second:
        async with running(tmp_path, *receiver, **where) as first:
            first_url, second_url = [URL((await next_line(one)).split()[-1]) for one in (first, second)]
            async with tcp_proxy(str(first_url.origin())) as balancer:
                where |= {"PUBLIC_URL": f"{balancer.url}/asana", "ASANA_PROJECT": fake.projects[0]} | access(fake)
                created = await run(tmp_path, ensure, **where)
                assert created == [f"created {gid}" for gid in fake.webhooks]

                first.send_signal(signal.SIGTERM)
                await first.wait()
                balancer.upstream = second_url.origin()
                await balancer.close_all()
                task = fake.add_task(parent=fake.projects[0])
                fake.change(task, field="name")
                await fake.settle()
                assert [one.status for one in fake.deliveries if one.events] == [200]
                assert await run(tmp_path, ensure, **where) == [f"unchanged {gid}" for gid in fake.webhooks]
    async with running(tmp_path, "-c", program("store", "Workers elsewhere"), **where) as worker:
        assert await next_line(worker) == f"changed {task}"


async def test_roles_and_migrations(postgres_url: str, tmp_path: Path) -> None:
    """The printed command prints the SQL of the tables, and the role that is made then can do what a store does, see
    who holds a transaction open, and not more.
    """
    command, _, owner = program("store", "Roles and migrations", language="sh").strip().partition(" | ")
    assert owner == 'psql "$OWNER_URL"'
    printed = await run(tmp_path, command.removeprefix('python -c "').removesuffix('"'))
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("\n".join(printed))
    await connection.execute(program("store", "Roles and migrations", language="sql"))
    try:
        url = str(URL(postgres_url).with_user("webhooks").with_password("choose another"))
        async with open_store(url) as store:
            await deliver(store, await register(store), body(event()))
            (lease,) = await store.claim(1, lease=60)
            assert await store.fail(lease, error="", retry_in=None)
            await store.purge(older_than=0, dead=True)
            assert (await store.health()).problems == ()
        assert await run_sql(url, "SELECT FROM pg_stat_activity WHERE query = '<insufficient privilege>'") == []
        for more in (
            "CREATE TABLE asana_webhooks.more ()",
            "CREATE TABLE public.more ()",
            "TRUNCATE asana_webhooks.seen",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await run_sql(url, more)
        await connection.execute("CREATE TABLE asana_webhooks.later (n integer)")  # of a later release
        assert await run_sql(url, "SELECT FROM asana_webhooks.later") == []
    finally:
        await connection.execute("DROP OWNED BY webhooks; DROP ROLE webhooks")
        await connection.close()


async def test_counting(postgres_url: str) -> None:
    """The printed query says how many deliveries a second arrived in the last hour."""
    async with open_store(postgres_url) as store:
        id = await register(store)
        for count in (100, 36):
            await run_sql(postgres_url, "UPDATE asana_webhooks.seen SET received_at = received_at - 3600")
            for _ in range(count):
                await deliver(store, id, body(event()))
    ((rate,),) = await run_sql(postgres_url, program("store", "Past one server", language="sql"))
    assert float(rate) == 36 / 3600
