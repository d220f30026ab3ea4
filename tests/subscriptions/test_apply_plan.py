"""Applying plans: many at once, when some fail, when something ends it, killed, and twice at once."""

import asyncio
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    MemoryStore,
    NotAuthorizedError,
    Receiver,
    RegistrationState,
    SecretUnavailableError,
    SQLiteStore,
    StepResult,
    StoreUnavailableError,
    WantedWebhook,
    WebhookFilter,
    WebhookPlan,
    apply_plan,
)
from asana_webhooks.testing import FakeAsana, Fault, Hold, serve_receiver
from tests.helpers.stores import Clock
from tests.subscriptions.scenes import Remembering, Scene, live, scene, troubled
from tests.subscriptions.test_plan import BOX, TASKS, moved, plan

PROGRAM = """
import asyncio, sys
from asana_webhooks import AsanaSession, SQLiteStore, WantedWebhook, apply_plan, plan_webhooks

async def main(path, now, token, base_url, public_url, workspace, *projects):
    async with SQLiteStore(path, clock=lambda: float(now)) as store, AsanaSession(token, base_url=base_url) as asana:
        plan = await plan_webhooks(
            asana, store, map(WantedWebhook, projects), public_url=public_url, workspace=workspace
        )
        await apply_plan(asana, store, plan)

asyncio.run(main(*sys.argv[1:]))
"""


def projects(here: Scene, number: int) -> list[WantedWebhook]:
    """Want a webhook on so many new projects."""
    return [WantedWebhook(here.fake.add_project()) for _ in range(number)]


async def apply(here: Scene, planned: WebhookPlan, **options: Any) -> Any:
    return await apply_plan(here.asana, here.store, planned, **options)


async def clean(here: Scene, wanted: list[WantedWebhook]) -> None:
    """Check that each wanted webhook exists once and works, that there is no other, and nothing left to do."""
    planned = await plan(here, wanted, prune=True)
    assert (planned.steps, planned.problems) == ((), {})
    confirmed = list[str | None]()
    for one in wanted:
        [registration] = await here.store.list_registrations(resource=one.resource, state=RegistrationState.CONFIRMED)
        confirmed.append(registration.webhook_gid)
    assert sorted(here.fake.webhooks) == sorted(map(str, confirmed))
    assert await live(here.fake) == set(here.fake.webhooks)


@pytest.mark.long
async def test_three_hundred() -> None:
    """All are created, so many at a time, in the plan's order; each result is told at once, and returned in order."""
    async with scene(MemoryStore()) as here:
        wanted = projects(here, 300)
        told = list[StepResult]()
        planned = await plan(here, wanted)
        hold = here.fake.hold("createWebhook", times=None)
        applying = asyncio.create_task(apply(here, planned, at_once=7, on_step=told.append))
        await hold.reached(7)
        assert (hold.waiting, told) == (7, [])
        assert {one.body["data"]["resource"] for one in here.fake.requests[-7:]} == {one.resource for one in wanted[:7]}
        hold.release()
        result = await applying

        assert result.counts == {"created": 300}
        assert result.failed == ()
        assert [one.step for one in result.results] == list(planned.steps)
        assert sorted(map(id, told)) == sorted(map(id, result.results))
        assert {one.ensured.webhook_gid for one in result.results} == set(here.fake.webhooks)
        await clean(here, wanted)


async def test_what_was_done_meanwhile() -> None:
    """A plan that is applied twice, or in two processes at once, does nothing twice."""
    async with scene(MemoryStore()) as here:
        wanted = projects(here, 20)
        planned = await plan(here, wanted)
        both = await asyncio.gather(apply(here, planned), apply(here, planned))
        third = await apply(here, planned)

        assert Counter(both[0].counts) + Counter(both[1].counts) == {"created": 20, "unchanged": 20}
        assert third.counts == {"unchanged": 20}
        await clean(here, wanted)


async def test_a_lost_answer() -> None:
    """The webhook of a create call without an answer is found by the plan's workspace, and deleted."""
    async with scene(MemoryStore()) as here:
        wanted = projects(here, 3)
        here.fake.script(Fault(at="createWebhook", do="lose_answer"))
        result = await apply(here, await plan(here, wanted))

        assert result.counts == {"created": 3}
        assert [one.ensured.orphans for one in result.results] == [0, 0, 0]
        await clean(here, wanted)


async def test_a_step_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """It does not stop the others: it is logged, told and returned with its error."""
    async with scene(MemoryStore()) as here:
        good, forbidden = projects(here, 3), here.fake.add_project(accessible=False)
        deleted, team = "404", here.fake.add_resource("team")
        bad = [WantedWebhook(forbidden), WantedWebhook(deleted), WantedWebhook(team)]
        told = list[StepResult]()
        planned = await plan(here, [*good, *bad])
        result = await apply(here, planned, on_step=told.append)

        # What fails does so first; the results are in the plan's order.
        assert [one.action for one in result.results] == ["created"] * 3 + ["failed"] * 3
        errors = {one.step.resource: str(one.error) for one in result.failed}
        assert "403 after 1 attempt: You do not have access to this project" in errors[forbidden]
        assert "400 after 1 attempt: resource: Unknown object: 404" in errors[deleted]
        assert "must have at least one filter" in errors[team]
        assert len(told) == 6
        for one in bad:
            assert f"to create the webhook on resource {one.resource} failed: createWebhook" in caplog.text
        await clean(here, good)


async def test_too_many_webhooks() -> None:
    """At Asana's cap, as many are created as it allows; deletions come first, and make room."""
    async with FakeAsana(max_per_user=5) as fake, MemoryStore() as store:
        async with AsanaSession(fake.token, base_url=fake.url) as asana, serve_receiver(Receiver(store)) as public_url:
            here = Scene(fake, asana, store, public_url)
            old = projects(here, 5)
            await apply(here, await plan(here, old))
            new = projects(here, 6)
            result = await apply(here, await plan(here, new, prune=True), at_once=1)

            assert result.counts == {"deleted": 5, "created": 5, "failed": 1}
            assert result.results[-1].step.resource == new[-1].resource
            assert "too many webhooks" in str(result.results[-1].error)
            await clean(here, new[:5])


@pytest.mark.parametrize("filters", [[], [TASKS]], ids=["no filters", "another public_url"])
async def test_a_move_that_began_meanwhile(filters: list[WebhookFilter]) -> None:
    """A webhook that is being moved elsewhere since it was planned fails; it does not stop the others."""
    async with scene(MemoryStore()) as here:
        [project] = here.fake.projects
        wanted = [WantedWebhook(project, filters), *projects(here, 2)]
        planned = await plan(here, wanted)
        await moved(here, old="?old=1", new="" if not filters else "?new=1")
        result = await apply(here, planned)

        assert [one.action for one in result.results] == ["failed", "created", "created"]
        assert "is being moved" in str(result.results[0].error)


async def test_a_key_that_was_lost_meanwhile(tmp_path: Path) -> None:
    """It fails, and does not stop the others."""
    async with scene(SQLiteStore(tmp_path / "asana.db", secret_box=BOX)) as here:
        await here.establish()
        wanted = [WantedWebhook(here.fake.projects[0], [TASKS]), WantedWebhook("404")]
        planned = await plan(here, wanted)
        BOX.lost = True
        try:
            result = await apply(here, planned)
        finally:
            BOX.lost = False

        assert [one.action for one in result.results] == ["failed", "failed"]
        assert isinstance(result.results[0].error, SecretUnavailableError)


class StopError(Exception):
    """What a function of a caller may raise."""


def stop(_: StepResult) -> None:
    raise StopError from KeyError("the cause")


async def refused_token(here: Scene, applying: "asyncio.Task[Any]", _: Hold) -> None:
    here.fake.script(Fault(at="createWebhook", status=401, after=2))
    await applying


async def told_to_stop(_: Scene, applying: "asyncio.Task[Any]", __: Hold) -> None:
    await applying


async def cancelled(_: Scene, applying: "asyncio.Task[Any]", hold: Hold) -> None:
    await hold.reached(3)
    applying.cancel()
    await applying


@pytest.mark.parametrize(
    ("end", "error", "created"),
    [(refused_token, NotAuthorizedError, 0), (told_to_stop, StopError, 1), (cancelled, asyncio.CancelledError, 0)],
)
async def test_what_ends_it(end: Any, error: type[BaseException], created: int) -> None:
    """The error is raised as it is; what is under way is cancelled, nothing new begins, and it can be resumed."""
    store = Remembering()
    async with scene(store) as here:
        wanted = projects(here, 10)
        planned = await plan(here, wanted)
        held = here.fake.hold("createWebhook", when="before_answer", times=3 if end is cancelled else 2)
        on_step = stop if end is told_to_stop else None
        with pytest.raises(error) as caught:
            await end(here, asyncio.create_task(apply(here, planned, at_once=3, on_step=on_step)), held)

        assert type(caught.value) is error
        assert error is not StopError or isinstance(caught.value.__cause__, KeyError)
        states = Counter(await store.states())
        assert states[RegistrationState.CONFIRMED] == created
        assert states[RegistrationState.CLOSED] == 3 - created
        held.release()
        await here.fake.settle()
        await apply(here, await plan(here, wanted))
        await clean(here, wanted)


async def test_a_result_of_a_cancelled_task() -> None:
    """Read in on_step, it raises a CancelledError, which must not end the apply as if it had done everything."""
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    async with scene(MemoryStore()) as here:
        planned = await plan(here, projects(here, 10))
        with pytest.raises(RuntimeError, match="cancelled elsewhere"):
            await apply(here, planned, at_once=3, on_step=lambda _: cancelled.result())


async def test_what_is_broken_ends_it() -> None:
    """A store that fails, and a session or a store that is closed, end it at once."""
    store = Remembering()
    async with scene(store) as here:
        planned = await plan(here, projects(here, 10))
        with pytest.raises(StoreUnavailableError):
            await apply_plan(here.asana, troubled(store, "open_registration"), planned)
        await here.asana.aclose()
        with pytest.raises(ConfigurationError, match="AsanaSession is closed"):
            await apply(here, planned)
        await store.aclose()
        with pytest.raises(ConfigurationError, match="closed"):
            await apply(here, planned)

        assert (store.opened, here.fake.webhooks) == ([], {})


async def test_invalid_arguments() -> None:
    """They are refused before anything is sent."""
    async with scene(MemoryStore()) as here:
        planned = await plan(here)

        async def on_step(_: StepResult) -> None: ...

        with pytest.raises(ConfigurationError, match="on_step must be a plain function"):
            await apply(here, planned, on_step=on_step)
        with pytest.raises(ConfigurationError, match="at_once must be"):
            await apply(here, planned, at_once=0)
        with pytest.raises(ConfigurationError, match="pass the session first"):
            await apply_plan(here.store, here.asana, planned)  # type: ignore[arg-type]
        assert here.fake.webhooks == {}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after_handshake", "before_answer"])
async def test_killed(tmp_path: Path, when: str) -> None:
    """A process is killed while it applies a plan; planned and applied again, nothing is doubled or left behind."""
    clock = Clock()
    async with scene(SQLiteStore(tmp_path / "asana.db", clock=clock)) as here:
        wanted, fake = projects(here, 20), here.fake
        first = fake.hold("createWebhook", times=10)
        arguments = (tmp_path / "asana.db", clock.now, fake.token, fake.url, here.public_url, fake.workspace)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, *map(str, arguments), *(one.resource for one in wanted)
        )
        await first.reached(10)
        second = fake.hold("createWebhook", when=when, times=None)
        first.release()
        await second.reached(10)
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        second.release()
        await fake.settle()
        assert len(fake.webhooks) == 20

        planned = await plan(here, wanted)
        assert Counter(one.action for one in planned.steps) == {"in progress": 10}
        clock.advance(120)
        planned = await plan(here, wanted)
        assert Counter(one.action for one in planned.steps) == {"delete": 10, "create": 10}
        assert (await apply(here, planned)).counts == {"deleted": 10, "created": 10}
        await clean(here, wanted)
