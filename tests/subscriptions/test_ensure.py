"""ensure_webhook: whatever is there, one webhook as wanted comes of it, and no request more than that takes."""

import json
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve, field, frozen

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    ConfigurationError,
    CreateOutcomeUnknownError,
    EnsuredWebhook,
    EstablishedWebhook,
    ForbiddenError,
    MemoryStore,
    NotAuthorizedError,
    NotFoundError,
    RetryPolicy,
    ServerError,
    TargetRejectedError,
    WebhookFilter,
    WebhookNotVisibleError,
)
from asana_webhooks.client.requests import WEBHOOK_FIELDS
from asana_webhooks.store.base import RegistrationState
from asana_webhooks.testing import Fault
from asana_webhooks.testing.records import WebhookRecord
from tests.subscriptions.scenes import GONE, Scene, live, no_wait, scene, shown

QUERY = "?code=k3y-of-the-gateway"
GET, PUT, POST, DELETE, LIST = "getWebhook", "updateWebhook", "createWebhook", "deleteWebhook", "getWebhooks"
DUE = WebhookFilter(resource_type="project", action="changed", fields=("due_on", "name"))
DUE_TOO = WebhookFilter(resource_type="project", action="changed", fields=("name", "due_on"))
ADDED = WebhookFilter(resource_type="story", action="added")
ADDED_TOO = WebhookFilter(resource_type="story", action="added", fields=())


@frozen
class Before:
    """What there is before the call: nothing, a webhook, or one that replaces another."""

    here: Scene
    old: EstablishedWebhook | None = None
    new: EstablishedWebhook | None = None

    @property
    def asked(self) -> list[str | None]:
        return [one.operation for one in self.here.fake.requests]

    def record(self, which: str) -> WebhookRecord:
        """Return Asana's record of ``"old"`` or ``"new"``."""
        return self.here.fake.webhook(getattr(self, which).webhook_gid)

    async def ensure(self, **options: Any) -> EnsuredWebhook:
        """Ensure a webhook at *url*, which is the end of a public URL."""
        self.here.fake.requests.clear()
        return await self.here.ensure(public_url=self.here.public_url + options.pop("url", QUERY), **options)

    async def live(self) -> list[str | None]:
        """Return the webhooks that are confirmed in the store."""
        confirmed = await self.here.store.list_registrations(state=RegistrationState.CONFIRMED)
        assert await self.here.store.list_registrations(state=RegistrationState.PENDING) == []
        return sorted((one.webhook_gid for one in confirmed), key=str)


Step = Callable[[Before], Awaitable[Before]]


def one(*filters: WebhookFilter, url: str = QUERY, **options: Any) -> Step:
    """Have a webhook."""

    async def establish(before: Before) -> Before:
        here = before.here
        return evolve(before, old=await here.establish(public_url=here.public_url + url, filters=filters, **options))

    return establish


def two(*, url: str = QUERY, retire: float | None = None, delivered: bool = False) -> Step:
    """Have a webhook at *url* replace the one at QUERY; with *retire*, in a move, which may end so many seconds on."""

    async def replace(before: Before) -> Before:
        here = before.here
        old = await here.establish(public_url=here.public_url + QUERY)
        new = await here.establish(public_url=here.public_url + url, replaces=old.registration)
        if retire is not None:
            assert await here.store.retire_registration(old.registration, after=retire)
        if delivered:
            await here.fake.advance(1)
            await live(here.fake)
        return Before(here, old, new)

    return replace


def gone(which: str) -> Step:
    """Have Asana delete a webhook."""

    async def delete(before: Before) -> Before:
        del before.here.fake.webhooks[before.record(which).gid]
        return before

    return delete


def change(which: str, **members: Any) -> Step:
    """Change Asana's record of a webhook; a function gets the record, and returns the value."""

    async def apply(before: Before) -> Before:
        record = before.record(which)
        for name, value in members.items():
            setattr(record, name, value(record) if callable(value) else value)
        return before

    return apply


async def prepared(here: Scene, steps: tuple[Step, ...]) -> Before:
    before = Before(here)
    for step in steps:
        before = await step(before)
    return before


@frozen
class Case:
    what: str
    before: tuple[Step, ...]
    wanted: dict[str, Any]
    action: str
    asked: list[str]
    left: str = "it"
    """What exists at Asana in the end: the webhook that was returned, or names of `Before` beside it."""
    says: str = ""
    """What the log says; nothing if it is empty."""

    def __str__(self) -> str:
        return self.what


WITH = {"filters": [DUE, ADDED]}
AGAIN = change("old", next_attempt_after=lambda record: record.created_at + timedelta(hours=1))
LONG_AGO = change("new", created_at=lambda record: record.created_at - timedelta(hours=10))
LOST = "that Asana had not sent yet may be lost"
CASES = [
    Case("nothing", (), WITH, "created", [POST]),
    Case("nothing, and orphans are looked for", (), {"workspace": "1331"}, "created", [POST, LIST]),
    Case("as wanted", (one(DUE),), {"filters": [DUE]}, "unchanged", [GET]),
    Case("as wanted, without filters", (one(),), {}, "unchanged", [GET]),
    Case("written otherwise", (one(ADDED_TOO, DUE, ADDED),), {"filters": [DUE_TOO, ADDED]}, "unchanged", [GET]),
    Case("as wanted, with a slash", (one(url="/" + QUERY),), {}, "unchanged", [GET]),
    Case("target spelled otherwise", (one(), change("old", target="https://elsewhere/1")), {}, "unchanged", [GET]),
    Case("orphans are looked for", (one(),), {"workspace": "1331"}, "unchanged", [GET, LIST]),
    Case("inactive", (one(), change("old", active=False)), {}, "unchanged", [GET], says="is inactive"),
    Case("other filters", (one(DUE),), WITH, "updated", [GET, PUT]),
    Case("filters, from none", (one(),), {"filters": [DUE]}, "updated", [GET, PUT]),
    Case("inactive, other filters", (one(), change("old", active=False)), WITH, "updated", [GET, PUT], says="inactive"),
    Case("no filters, from some", (one(DUE),), {}, "replaced", [GET, POST, GET, DELETE], says=LOST),
    Case("other query", (one(url=""),), {}, "replaced", [GET, POST, GET, DELETE], says=LOST),
    Case("other URL and filters", (one(DUE, url=""),), WITH, "replaced", [GET, POST, GET, DELETE], says=LOST),
    Case("gone", (one(), gone("old")), WITH, "created", [GET, POST], says="is gone"),
    Case("another label", (one(label="other"),), {"label": "mine"}, "created", [POST], left="old, it"),
    Case("another resource", (one(),), {"resource": "1331", "filters": [WebhookFilter(resource_type="project",
         action="added")]}, "created", [POST], left="old, it"),
    # A killed process had replaced it, and not deleted the old one.
    Case("both", (two(),), {}, "unchanged", [GET, GET, DELETE, GET], says=LOST),
    Case("both, other filters", (two(),), WITH, "updated", [GET, GET, DELETE, GET, PUT], says=LOST),
    Case("both, the new one gone", (two(), gone("new")), {}, "unchanged", [GET, GET], left="old", says="is gone"),
    Case("both, the old one gone", (two(), gone("old")), {}, "unchanged", [GET, GET, DELETE, GET], left="new",
         says=LOST),
    Case("both, both gone", (two(), gone("old"), gone("new")), {}, "created", [GET, GET, POST], says="is gone"),
    Case("both, at another URL", (two(url=""),), {}, "replaced", [GET, GET, DELETE, GET, POST, GET, DELETE],
         says=LOST),
    # A move is under way.
    Case("move", (two(url="", retire=60),), {}, "unchanged", [GET, GET], left="old, new"),
    Case("move, new URL", (two(url="", retire=60),), {"url": ""}, "unchanged", [GET, GET], left="old, new"),
    Case("move, one URL", (two(retire=60),), {}, "unchanged", [GET, GET], left="old, new"),
    Case("move, other filters", (two(retire=60),), WITH, "updated", [GET, GET, PUT], left="old, new"),
    Case("move, new one gone", (two(retire=60), gone("new")), {}, "unchanged", [GET, GET], left="old", says="is gone"),
    Case("move, old one gone", (two(retire=60), gone("old")), {}, "unchanged", [GET] * 3, left="new", says="is gone"),
    Case("move over", (two(retire=0, delivered=True),), {}, "unchanged", [GET, GET, DELETE, GET], left="new"),
    Case("move over, nothing came", (two(retire=0),), {}, "unchanged", [GET, GET], left="old, new"),
    Case("over, to send again", (two(retire=0, delivered=True), AGAIN), {}, "unchanged", [GET, GET], left="old, new"),
    Case("move over, for long", (two(retire=0), LONG_AGO), {}, "unchanged", [GET, GET, DELETE, GET], left="new"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_what_is_done(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """Only what is needed: the requests are those of the table. A second call then sends its GETs and nothing else.

    No log shows the query, and each warning names the resource.
    """
    caplog.set_level(logging.DEBUG, "asana_webhooks")
    async with scene(MemoryStore()) as here:
        before = await prepared(here, case.before)
        caplog.clear()
        ensured = await before.ensure(**case.wanted)

        assert (ensured.action, ensured.orphans) == (case.action, 0)
        assert before.asked == case.asked
        left = {it.webhook_gid for it in (before.old, before.new) if it} if "old, " in case.left else set()
        assert set(here.fake.webhooks) == left | {ensured.webhook_gid}
        if case.left in ("old", "new"):
            assert ensured.webhook_gid == getattr(before, case.left).webhook_gid
        assert await before.live() == sorted(here.fake.webhooks)
        assert here.fake.webhook(ensured.webhook_gid).filters == tuple(case.wanted.get("filters", ())) or (
            "otherwise" in case.what
        )
        said = [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]
        assert bool(said) is bool(case.says)
        assert all(case.says in it and f"on {here.fake.projects[0]}" in it for it in said)
        assert "k3y" not in caplog.text + repr(ensured)

        again = await before.ensure(**case.wanted)
        assert (again.action, again.webhook_gid) == ("unchanged", ensured.webhook_gid)
        assert set(before.asked) <= {GET, LIST}
        if len(here.fake.webhooks) == 1:
            assert before.asked[0:1] == [GET]
            assert before.asked.count(GET) == 1
            assert set(here.fake.requests[0].query["opt_fields"].split(",")) == set(WEBHOOK_FIELDS)
        if "target" not in case.what:
            assert await live(here.fake) == set(here.fake.webhooks)


NO_GET = Fault(at=GET, status=403)


@frozen
class Refusal:
    what: str
    before: tuple[Step, ...]
    error: type[AsanaError]
    asked: list[str]
    faults: tuple[Fault, ...] = ()
    wanted: dict[str, Any] = field(factory=dict)
    says: str = ""

    def __str__(self) -> str:
        return self.what


MOVED = "webhook {old} on 8675309 is being moved to webhook {new} on 8675309, and neither has this public_url"
MOVING = "webhook {new} on 8675309 is being moved, so it cannot be replaced to have no filters"
FILTERED = change("new", filters=(DUE,))
NOT_VISIBLE = r"The store has webhook {old} \(registration .*\), which is left as it is. Use a token"
REFUSALS = [
    Refusal("not visible", (one(),), WebhookNotVisibleError, [GET], (NO_GET,), says=NOT_VISIBLE),
    Refusal("old one not visible", (two(),), WebhookNotVisibleError, [GET, GET], (evolve(NO_GET, after=1),)),
    Refusal("may not delete", (two(),), WebhookNotVisibleError, [GET, GET, DELETE], (Fault(at=DELETE, status=403),)),
    Refusal("may not update", (one(),), ForbiddenError, [GET, PUT], (Fault(at=PUT, status=403),), WITH),
    Refusal("a page says 404", (one(),), NotFoundError, [GET], (Fault(at=GET, status=404, body="<h1>404</h1>"),)),
    Refusal("wrong base URL", (two(),), NotFoundError, [GET], (Fault(at=GET, status=404),)),
    Refusal("404 of a PUT", (one(),), NotFoundError, [GET, PUT, GET], (Fault(at=PUT, status=404, body=GONE),), WITH),
    Refusal("500", (one(),), ServerError, [GET] * 4, (Fault(at=GET, times=4),)),
    Refusal("401", (one(),), NotAuthorizedError, [GET], (Fault(at=GET, status=401),)),
    Refusal("refused", (one(url=""),), TargetRejectedError, [GET, POST], (Fault(at="handshake", do="drop"),)),
    Refusal("unknown", (), CreateOutcomeUnknownError, [POST] * 2, (Fault(at=POST, do="lose_answer", times=2),)),
    Refusal("move", (two(retire=9),), ConfigurationError, [GET] * 2, wanted={"url": "?else"}, says=MOVED),
    Refusal("move, no filters", (two(retire=9), FILTERED), ConfigurationError, [GET] * 2, says=MOVING),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS, ids=str)
async def test_what_is_not_done(case: Refusal, caplog: pytest.LogCaptureFixture) -> None:
    """An error leaves everything as it was, and no second webhook is live. It shows neither endpoint nor query."""
    async with scene(MemoryStore(), retry=RetryPolicy(sleep=no_wait)) as here:
        before = await prepared(here, case.before)
        there, was = set(here.fake.webhooks), await before.live()
        here.fake.script(*case.faults)
        with pytest.raises(case.error) as caught:
            await before.ensure(**case.wanted)

        assert type(caught.value) is case.error
        assert before.asked == case.asked
        gids = {name: it and it.webhook_gid for name, it in (("old", before.old), ("new", before.new))}
        assert caught.match(case.says.format(**gids))
        assert "k3y" not in shown(caught.value) + caplog.text
        assert await before.live() == was
        assert there <= set(here.fake.webhooks)
        assert await live(here.fake) == there


async def test_a_webhook_of_another_app() -> None:
    """What Asana refuses to show this token exists all the same: the error carries it, and it goes on working."""
    async with scene(MemoryStore()) as here:
        established = await here.establish()
        async with AsanaSession(here.fake.register_app("7").access_token, base_url=here.fake.url) as other:
            for workspace in (None, here.fake.workspace):
                with pytest.raises(WebhookNotVisibleError) as caught:
                    await evolve(here, asana=other).ensure(workspace=workspace)
                assert caught.value.webhook_gid == established.webhook_gid
                assert caught.value.registration == established.registration

        assert await live(here.fake) == {established.webhook_gid}


async def test_bad_arguments_are_refused_before_anything() -> None:
    """Nothing is sent or stored."""
    async with scene(MemoryStore()) as here:
        for wrong in (
            {"resource": "my project"},
            {"public_url": "example.com"},
            {"label": "l" * 201},
            {"workspace": "mine"},
            {"filters": "task"},
        ):
            with pytest.raises(ConfigurationError):
                await here.ensure(**wrong)

        assert here.fake.requests == []
        assert await here.store.list_registrations() == []


async def test_asana_writes_filters_in_its_own_way(caplog: pytest.LogCaptureFixture) -> None:
    """What it keeps in place of what it was given is logged once for each call, and no call sends a second update."""
    async with scene(MemoryStore()) as here:
        before = await prepared(here, (one(),))
        record = before.record("old")
        for _ in range(2):
            kept = record.to_json() | {"filters": [{"resource_type": "task", "action": "changed"}]}
            here.fake.script(Fault(at=PUT, status=200, body=json.dumps({"data": kept})))
            caplog.clear()
            ensured = await before.ensure(filters=[DUE], label="")

            assert (ensured.action, before.asked) == ("updated", [GET, PUT])
            assert [it.fields for it in ensured.webhook.filters or ()] == [None]
            [said] = [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING]
            assert f"webhook {record.gid} on 8675309: Asana keeps other filters than those it was given" in said
