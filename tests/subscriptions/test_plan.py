"""Plans: what has to be done in each situation, and that applying it does that."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, frozen

from asana_webhooks import (
    AsanaError,
    ConfigurationError,
    MemoryStore,
    NotAuthorizedError,
    PlanStep,
    RegistrationState,
    Secret,
    SQLiteStore,
    WantedWebhook,
    WebhookFilter,
    WebhookPlan,
    apply_plan,
    plan_webhooks,
)
from asana_webhooks.testing import Fault
from tests.subscriptions.scenes import Scene, scene

TASKS = WebhookFilter(resource_type="task", action="changed")
STORIES = WebhookFilter(resource_type="story")


@define
class Box:
    """A secret box whose key may be lost."""

    key_id: str = "k1"
    lost: bool = False

    def seal(self, secret: Secret) -> bytes:
        return secret.reveal().encode()[::-1]

    def open(self, sealed: bytes, key_id: str) -> Secret:
        if self.lost:
            raise LookupError(key_id)
        return Secret(sealed[::-1].decode())


BOX = Box()


@pytest.fixture(autouse=True)
def key() -> None:
    """Find the key again."""
    BOX.lost = False


async def plan(here: Scene, wanted: Iterable[WantedWebhook] | None = None, **options: Any) -> WebhookPlan:
    """Plan for what is wanted, by default the first project; it must send only GETs."""
    here.fake.requests.clear()
    usual = {"public_url": here.public_url, "workspace": here.fake.workspace}
    todo = [WantedWebhook(here.fake.projects[0])] if wanted is None else wanted
    planned = await plan_webhooks(here.asana, here.store, todo, **(usual | options))
    assert {one.method for one in here.fake.requests} <= {"GET"}
    return planned


def sent(here: Scene) -> Counter[str | None]:
    """Count the requests since the last plan began."""
    return Counter(one.operation for one in here.fake.requests)


# Situations. Each is about the only project.


async def nothing(_: Scene) -> None:
    pass


async def established(here: Scene) -> None:
    await here.establish()


async def tasks(here: Scene) -> None:
    await here.establish(filters=[TASKS, WebhookFilter(resource_type="story", fields=())])


async def elsewhere(here: Scene) -> None:
    await here.establish(public_url=f"{here.public_url}?old=1")


async def gone(here: Scene) -> None:
    del here.fake.webhooks[(await here.establish()).webhook_gid]


async def inactive(here: Scene) -> None:
    here.fake.webhook((await here.establish()).webhook_gid).active = False


async def not_visible(here: Scene) -> None:
    here.fake.webhook((await here.establish()).webhook_gid).user = "12"


async def not_listed(here: Scene) -> None:
    await here.establish()
    here.fake.script(Fault(at="getWebhooks", status=200, body='{"data": [], "next_page": null}'))


async def lost_key(here: Scene) -> None:
    await here.establish()
    BOX.lost = True


async def lost_key_and_gone(here: Scene) -> None:
    await gone(here)
    BOX.lost = True


async def half_replaced(here: Scene) -> None:
    await here.establish(replaces=(await here.establish(public_url=f"{here.public_url}?old=1")).registration)


async def pending(here: Scene) -> None:
    """Another process opened a registration; it was killed, so the registration expires, after half a second here."""
    [project] = here.fake.projects
    assert await here.store.open_registration("a" * 64, resource=project, public_url=here.public_url, ttl=0.5)


async def moved(here: Scene, *, old: str, new: str, after: float = 3600) -> list[str]:
    """Move the webhook from one query to another; return the old and the new gid."""
    before = await here.establish(public_url=here.public_url + old, filters=[TASKS])
    behind = await here.establish(public_url=here.public_url + new, filters=[TASKS], replaces=before.registration)
    assert await here.store.retire_registration(before.registration, after=after)
    return [before.webhook_gid, behind.webhook_gid]


async def moving_here(here: Scene) -> None:
    await moved(here, old="?old=1", new="")


async def moving_away(here: Scene) -> None:
    await moved(here, old="", new="?new=1")


async def moving_elsewhere(here: Scene) -> None:
    await moved(here, old="?old=1", new="?new=1")


async def rotating(here: Scene) -> None:
    """Both have the wanted URL: the new one counts."""
    old, _ = await moved(here, old="", new="")
    here.fake.webhook(old).filters = ()


async def moved_and_gone(here: Scene) -> None:
    del here.fake.webhooks[(await moved(here, old="", new="?new=1"))[1]]


async def moved_long_ago(here: Scene) -> None:
    await moved(here, old="?old=1", new="", after=0)
    await here.fake.advance(1)
    here.fake.change(here.fake.add_task(), field="due_on")
    await here.fake.settle()


@frozen
class Case:
    """A situation, the step that is planned for it, and what applying it does and leaves."""

    situation: Callable[[Scene], Awaitable[None]]
    filters: list[WebhookFilter]
    action: str
    """What is planned, or the error that is the problem."""
    reason: str
    done: str = ""
    """What applying does; empty if there is nothing to do."""
    left: int = 1
    """How many webhooks there are afterwards."""


CASES = [
    Case(nothing, [], "create", "there is none", "created"),
    Case(established, [], "unchanged", "it is as wanted"),
    Case(inactive, [], "unchanged", "it is as wanted"),
    Case(not_listed, [], "unchanged", "it is as wanted"),
    Case(tasks, [STORIES, TASKS, TASKS], "unchanged", "it is as wanted"),
    Case(tasks, [STORIES], "update", "it has other filters", "updated"),
    Case(established, [TASKS], "update", "it has other filters", "updated"),
    Case(tasks, [], "replace", "it has filters, and none are wanted", "replaced"),
    Case(elsewhere, [TASKS], "replace", "it has another public URL", "replaced"),
    Case(gone, [], "create", "Asana or someone has deleted it", "created"),
    Case(lost_key_and_gone, [], "create", "Asana or someone has deleted it"),
    Case(half_replaced, [], "replace", "replacing it was begun, and not finished", "unchanged"),
    Case(pending, [], "in progress", "another process is creating it", "created"),
    Case(moving_here, [TASKS], "unchanged", "it is as wanted", left=2),
    Case(rotating, [TASKS], "unchanged", "it is as wanted", left=2),
    Case(moving_away, [STORIES], "update", "it has other filters", "updated", left=2),
    Case(moved_long_ago, [TASKS], "replace", "it has been moved, and the old webhook can go", "unchanged"),
    Case(moved_and_gone, [TASKS], "replace", "one of the two webhooks is gone", "unchanged"),
    Case(moving_elsewhere, [TASKS], "ConfigurationError", "and neither has this public_url", left=2),
    Case(moving_here, [], "ConfigurationError", "is being moved, so it cannot be replaced", left=2),
    Case(not_visible, [TASKS], "WebhookNotVisibleError", "which is left as it is"),
    Case(lost_key, [], "SecretUnavailableError", "call remove_webhook"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.situation.__name__}-{case.action}")
async def test_what_is_planned(case: Case, tmp_path: Path) -> None:
    """Each situation has its step, with its reason; applied, there is nothing left to do. A problem is left alone."""
    async with scene(SQLiteStore(tmp_path / "asana.db", secret_box=BOX)) as here:
        await case.situation(here)
        [project], wanted = here.fake.projects, WantedWebhook(here.fake.projects[0], case.filters)
        planned = await plan(here, [wanted])

        both: list[PlanStep | AsanaError] = [*planned.steps, *planned.unchanged, *planned.problems.values()]
        [decided] = both
        if isinstance(decided, AsanaError):
            assert (type(decided).__name__, list(planned.problems)) == (case.action, [project])
            assert case.reason in str(decided)
        else:
            assert (decided.action, decided.resource) == (case.action, project)
            assert case.reason in decided.reason
            assert (decided in planned.unchanged) == (case.action == "unchanged")
            assert decided.webhook_gid is None or case.action == "create" or decided.webhook_gid in here.fake.webhooks
        unlisted = (gone, lost_key_and_gone, moved_and_gone, not_listed, not_visible)
        assert sent(here) == {"getWebhooks": 1} | ({"getWebhook": 1} if case.situation in unlisted else {})
        assert bool(planned.warnings) == (case.situation is inactive)
        if not case.done:
            return

        result = await apply_plan(here.asana, here.store, planned)
        assert [one.action for one in result.results] == [case.done]
        again = await plan(here, [wanted])
        assert (again.steps, len(again.unchanged), len(again.problems)) == ((), 1, 0)
        assert len(here.fake.webhooks) == case.left


async def test_the_difference_of_an_update() -> None:
    """An update names the filters that come and those that go; null members and the order do not count."""
    async with scene(MemoryStore()) as here:
        await here.establish(filters=[TASKS, STORIES])
        due = WebhookFilter(resource_type="task", action="changed", fields=("due_on", "name"))
        planned = await plan(here, [WantedWebhook(here.fake.projects[0], [due, STORIES])])

        [step] = planned.steps
        assert (step.added, step.removed) == ((due,), (TASKS,))
        assert step.webhook_gid in here.fake.webhooks
        assert str(planned).splitlines() == [
            "1 to do, 0 unchanged, 0 with a problem",
            f"update {step.resource} (webhook {step.webhook_gid}): it has other filters",
            "    + task changed due_on name",
            "    - task changed",
        ]
        await apply_plan(here.asana, here.store, planned)
        assert set(here.fake.webhook(step.webhook_gid).filters) == {due, STORIES}


async def closed(here: Scene, **options: Any) -> str:
    """Leave a webhook of a closed registration, as a killed process does; return its gid."""
    left = await here.establish(resource=here.fake.add_project(), **options)
    await here.store.close_registration(left.registration)
    return left.webhook_gid


async def test_extra_webhooks(caplog: pytest.LogCaptureFixture) -> None:
    """Those of closed registrations of this label are deleted; another store's are named; others are left alone."""
    async with scene(MemoryStore()) as here:
        await here.establish()
        orphans = {await closed(here) for _ in range(3)}
        await closed(here, label="another")
        await closed(here, public_url=f"{here.public_url}?old=1")
        await here.establish(resource=here.fake.add_project(), label="another")
        here.fake.add_quiet_webhook()
        unknown = await closed(here)
        here.fake.webhook(unknown).target = f"{here.public_url}/endpoint-of-another-store"
        before = set(here.fake.webhooks)
        planned = await plan(here)

        assert {one.webhook_gid for one in planned.steps} == orphans
        assert {one.action for one in planned.steps} == {"delete"}
        [warning] = planned.warnings
        assert warning.startswith(f"webhook {unknown} on ")
        assert f"webhook {unknown} posts below this public_url, but this store does not know it" in caplog.text
        result = await apply_plan(here.asana, here.store, planned)
        assert result.counts == {"deleted": 3}
        assert before - set(here.fake.webhooks) == orphans


async def test_pruning() -> None:
    """Unwanted webhooks of the label are deleted, in this workspace or gone already; another label's never."""
    async with scene(MemoryStore()) as here:
        kept = await here.establish(label="a")
        names = ("listed", "gone", "in another workspace", "not visible", "another label")
        unwanted = {
            name: await here.establish(
                resource=here.fake.add_resource(
                    "project", parents=[here.fake.add_resource("workspace")] if "workspace" in name else None
                ),
                label="b" if name == "another label" else "a",
            )
            for name in names
        }
        del here.fake.webhooks[unwanted["gone"].webhook_gid]
        here.fake.webhook(unwanted["not visible"].webhook_gid).user = "12"

        assert (await plan(here, label="a")).steps == ()
        planned = await plan(here, label="a", prune=True)
        assert sent(here) == {"getWebhooks": 1, "getWebhook": 3}
        steps = {one.webhook_gid: (one.action, one.reason) for one in planned.steps}
        assert steps == {unwanted[name].webhook_gid: ("delete", "it is not wanted") for name in ("listed", "gone")}
        [warning] = planned.warnings
        assert unwanted["not visible"].webhook_gid in warning

        result = await apply_plan(here.asana, here.store, planned)
        assert result.counts == {"deleted": 2}
        live = {one.id for one in await here.store.list_registrations(state=RegistrationState.CONFIRMED)}
        left = [kept, *(unwanted[name] for name in names[2:])]
        assert live == {one.registration for one in left}
        assert set(here.fake.webhooks) == {one.webhook_gid for one in left}


async def test_what_is_asked() -> None:
    """One list call per 100 webhooks, whatever there is to do, and one GET for each that the list lacks."""
    async with scene(MemoryStore()) as here:
        projects = [here.fake.add_project() for _ in range(30)]
        for project in projects[:20]:
            await here.establish(resource=project)
        for gid in list(here.fake.webhooks)[:5]:
            del here.fake.webhooks[gid]
        for _ in range(190):
            here.fake.add_quiet_webhook()
        planned = await plan(here, map(WantedWebhook, projects))

        assert [one.resource for one in planned.steps] == [*projects[:5], *projects[20:]]
        assert {one.action for one in planned.steps} == {"create"}
        assert len(planned.unchanged) == 15
        assert sent(here) == {"getWebhooks": 3, "getWebhook": 5}


@pytest.mark.parametrize(
    ("existing", "new", "warning"),
    [
        (range(8_999), 1, None),
        (range(8_999), 2, "9001 webhooks, of at most 10000 that Asana allows an app for each user"),
        (range(9_001), 0, "9001 webhooks, of at most 10000 that Asana allows an app for each user"),
        ([8675309] * 899, 1, None),
        ([8675309] * 900, 1, "901 webhooks, of at most 1000 that Asana allows an app for each resource (8675309)"),
    ],
)
async def test_nearly_too_many(existing: Iterable[int], new: int, warning: str | None, caplog: Any) -> None:
    """More than 90 % of what Asana allows, with what is going to be created, is worth a warning."""
    async with scene(MemoryStore()) as here:
        record = '{"gid": "%d", "resource": {"gid": "%d"}, "target": "https://example.com/hook"}'
        listed = ",".join(record % numbers for numbers in enumerate(existing))
        here.fake.script(Fault(at="getWebhooks", status=200, body=f'{{"data": [{listed}], "next_page": null}}'))
        planned = await plan(here, map(WantedWebhook, (*here.fake.projects, here.fake.add_project())[:new]))

        assert planned.warnings == (() if warning is None else (warning,))
        assert len(planned.steps) == new
        assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [*planned.warnings]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wanted": [WantedWebhook("1"), WantedWebhook("2"), WantedWebhook("1")]}, "resource 1 is wanted twice"),
        ({"wanted": WantedWebhook("1")}, "wanted must be a list of WantedWebhook objects, not WantedWebhook"),
        ({"wanted": ["1"]}, "must be WantedWebhook objects, not str"),
        ({"wanted": [WantedWebhook("one")]}, "resource must be a gid"),
        ({"wanted": [WantedWebhook("1", [WebhookFilter(fields=("name",))])]}, "needs action='changed'"),
        ({"workspace": None, "wanted": []}, "workspace must be a gid"),
        ({"public_url": "https://user@example.com", "wanted": []}, "public_url must be"),
        ({"label": "x" * 201}, "label must be"),
    ],
)
async def test_invalid_arguments(changes: dict[str, Any], message: str) -> None:
    """They are refused before anything is sent."""
    async with scene(MemoryStore()) as here:
        with pytest.raises(ConfigurationError, match=message):
            await plan(here, **changes)
        with pytest.raises(ConfigurationError, match="filters must be a list"):
            WantedWebhook("1", "task")

        assert here.fake.requests == []


async def test_a_token_that_is_refused() -> None:
    """Nothing can be planned with it."""
    async with scene(MemoryStore()) as here:
        here.fake.token = "another"
        with pytest.raises(NotAuthorizedError):
            await plan(here)


async def test_a_plan_hides_the_public_url() -> None:
    """Its query may contain a key."""
    async with scene(MemoryStore()) as here:
        planned = await plan(here, public_url=f"{here.public_url}?code=k3y")

        assert "k3y" in planned.public_url
        assert "k3y" not in f"{planned} {planned!r}"
