"""A service with many tenants: a token and a label each; one HTTP session, one store and one receiver for all."""

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import pytest

from asana_webhooks import (
    AsanaSession,
    MemoryStore,
    NotAuthorizedError,
    PlanResult,
    Receiver,
    WantedWebhook,
    apply_plan,
    plan_webhooks,
    remove_webhooks,
)
from asana_webhooks.testing import FakeAsana, serve_receiver
from tests.subscriptions.scenes import arrived

TENANTS, EACH = 20, 50


@pytest.mark.long
async def test_twenty_tenants() -> None:
    """Each of 20 tokens creates, sees and prunes its own 50 webhooks only; deliveries carry the tenant's label."""
    tokens = dict[str, str]()
    async with FakeAsana() as fake, MemoryStore() as store, AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        public_url = await stack.enter_async_context(serve_receiver(Receiver(store)))
        projects = [fake.add_project() for _ in range(EACH)]  # all tenants watch the same ones
        sessions = dict[str, AsanaSession]()
        for number in range(TENANTS):
            tenant = f"tenant {number}"
            tokens[tenant] = fake.register_app("12345", user=str(100 + number)).access_token
            session = AsanaSession(tokens[tenant], base_url=fake.url, http=http)
            sessions[tenant] = await stack.enter_async_context(session)

        async def bring_about(tenant: str, wanted: list[str]) -> PlanResult:
            plan = await plan_webhooks(
                sessions[tenant],
                store,
                map(WantedWebhook, wanted),
                public_url=public_url,
                workspace=fake.workspace,
                label=tenant,
                prune=True,
            )
            assert (plan.problems, plan.warnings) == ({}, ())
            return await apply_plan(sessions[tenant], store, plan)

        async def bring_about_all(wanted: list[str]) -> list[dict[str, int]]:
            results = await asyncio.gather(*(bring_about(tenant, wanted) for tenant in sessions))
            return [one.counts for one in results]

        assert await bring_about_all(projects) == [{"created": EACH}] * TENANTS
        assert len(fake.webhooks) == TENANTS * EACH
        fake.requests.clear()
        assert await bring_about_all(projects) == [{}] * TENANTS
        assert len(fake.requests) == TENANTS

        fake.change(projects[0], field="name")
        await fake.settle()
        assert sorted(one.label for one in await arrived(store)) == sorted(sessions)

        [first, second, *others] = sessions
        assert (await bring_about(first, projects[:10])).counts == {"deleted": EACH - 10}
        assert await remove_webhooks(sessions[second], store, label=second) == EACH
        users = [one.user for one in fake.webhooks.values()]
        assert [users.count(str(100 + number)) for number in range(TENANTS)] == [10, 0, *[EACH] * len(others)]

        fake.revoke_token(tokens[first])
        with pytest.raises(NotAuthorizedError):
            await bring_about(first, projects)
        assert (await bring_about(second, projects)).counts == {"created": EACH}
        assert not http.closed
