"""The five operations against the fake, from the first create to the last delete."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from asana_webhooks import (
    AsanaSession,
    BadRequestError,
    ConfigurationError,
    CreatedWebhook,
    DuplicateWebhookError,
    ForbiddenError,
    MemoryStore,
    NotAuthorizedError,
    NotFoundError,
    PaginationError,
    Receiver,
    ResourceRef,
    TargetRejectedError,
    WebhookFilter,
    create_webhook,
    delete_webhook,
    get_webhook,
    get_webhooks,
    read_resource,
    update_webhook,
)
from asana_webhooks.store.base import registration_id
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver
from tests.helpers.servers import answer, scripted_server

ENDPOINT = "Endpoint_0123456789_abcdefghijklmnopqrstuvw"
DUE_DATES = WebhookFilter(resource_type="task", action="changed", fields=("due_on", "due_at"))


@pytest.fixture
async def fake() -> AsyncIterator[FakeAsana]:
    """A fake with 250 earlier webhooks."""
    async with FakeAsana(webhooks=250) as running:
        yield running


@pytest.fixture
async def asana(fake: FakeAsana) -> AsyncIterator[AsanaSession]:
    """A session with it."""
    async with AsanaSession(fake.token, base_url=fake.url) as session:
        yield session


@pytest.fixture
async def target() -> AsyncIterator[str]:
    """A target that answers handshakes."""
    async with MemoryStore() as store, serve_receiver(Receiver(store)) as url:
        await store.open_registration(
            registration_id(ENDPOINT), resource="8675309", public_url="https://example.com/asana", ttl=600
        )
        yield f"{url}/{ENDPOINT}?app_specific=1"


Create = Callable[..., Awaitable[CreatedWebhook]]


@pytest.fixture
def create(fake: FakeAsana, asana: AsanaSession, target: str) -> Create:
    """Create a webhook on the fake's project."""

    async def create(**options: Any) -> CreatedWebhook:
        return await create_webhook(asana, **({"resource": fake.projects[0], "target": target} | options))

    return create


async def test_create_returns_the_webhook_and_its_secret(fake: FakeAsana, create: Create, target: str) -> None:
    """Create must not drop the secret (the official client does), and returns the full record, typed."""
    created = await create(filters=[DUE_DATES])

    webhook = created.webhook
    assert created.secret == fake.secret(webhook.gid)
    assert (webhook.active, webhook.resource_type, webhook.target) == (True, "webhook", target)
    assert webhook.resource is not None
    assert (webhook.resource.gid, webhook.resource.resource_type) == (fake.projects[0], "project")
    assert webhook.filters == (DUE_DATES,)
    assert isinstance(webhook.created_at, datetime)
    assert webhook.created_at.tzinfo is not None
    assert (webhook.last_failure_content, webhook.delivery_retry_count) == ("", 0)
    assert webhook.last_failure_at is None


async def test_what_was_created_can_be_read_changed_and_deleted(
    fake: FakeAsana, asana: AsanaSession, create: Create
) -> None:
    """get, update and delete work on the gid that create returned."""
    gid = (await create()).webhook.gid

    assert (await get_webhook(asana, gid)).filters == ()
    changed = await update_webhook(asana, gid, filters=[DUE_DATES, WebhookFilter(action="deleted")])
    assert changed.filters == (DUE_DATES, WebhookFilter(action="deleted"))
    assert (await get_webhook(asana, gid)).filters == changed.filters
    assert (await update_webhook(asana, gid, filters=[])).filters == ()
    await delete_webhook(asana, gid, opt_fields=["gid"])
    assert fake.requests[-1].query == {"opt_fields": "gid"}
    with pytest.raises(NotFoundError, match=gid):
        await get_webhook(asana, gid)
    with pytest.raises(NotFoundError):
        await delete_webhook(asana, gid)


async def test_listing_walks_all_pages_in_full_records(fake: FakeAsana, asana: AsanaSession) -> None:
    """All 250 come, each once, with every documented field."""
    listed = [webhook async for webhook in get_webhooks(asana, workspace=fake.workspace)]

    assert [webhook.gid for webhook in listed] == list(fake.webhooks)
    assert all(webhook.created_at is not None and webhook.filters == () for webhook in listed)
    assert len(fake.requests) == 3


async def test_listing_can_be_narrowed_resumed_and_paged(fake: FakeAsana, asana: AsanaSession) -> None:
    """resource, page_size and offset do what Asana documents."""
    pages = [page async for page in get_webhooks(asana, workspace=fake.workspace, page_size=60).pages()]
    assert [len(page.items) for page in pages] == [60, 60, 60, 60, 10]

    rest = get_webhooks(asana, workspace=fake.workspace, page_size=60, offset=pages[2].next_offset)
    assert [webhook.gid async for webhook in rest] == [one.gid for page in pages[3:] for one in page.items]

    resource = pages[0].items[5].resource
    assert resource is not None
    only = get_webhooks(asana, workspace=fake.workspace, resource=resource.gid)
    assert [webhook.gid async for webhook in only] == [pages[0].items[5].gid]


async def test_an_offset_expires_in_the_middle_of_a_walk(fake: FakeAsana, asana: AsanaSession) -> None:
    """After 15 minutes between pages the walk ends in the error that says how far it came."""
    pages = get_webhooks(asana, workspace=fake.workspace).pages()
    await anext(pages)
    await fake.advance(901)

    with pytest.raises(PaginationError, match=r"\(items so far: 100\)"):
        await anext(pages)


async def test_compact_records_and_chosen_fields(fake: FakeAsana, asana: AsanaSession, create: Create) -> None:
    """opt_fields=() asks for Asana's compact records; names ask for just these."""
    gid = (await create()).webhook.gid

    compact = [one async for one in get_webhooks(asana, workspace=fake.workspace, opt_fields=()) if one.gid == gid]
    assert (compact[0].active, compact[0].created_at, compact[0].filters) == (True, None, None)
    chosen = await get_webhook(asana, gid, opt_fields=["created_at"], opt_pretty=True)
    assert chosen.created_at is not None
    assert chosen.target is None
    assert "opt_pretty" in fake.requests[-1].query


async def test_asanas_refusals_have_their_classes(fake: FakeAsana, asana: AsanaSession, create: Create) -> None:
    """Duplicate, unreachable target, unknown object, bad token: told apart, in Asana's words."""
    await create()
    with pytest.raises(DuplicateWebhookError, match="Duplicated webhook"):
        await create()
    with pytest.raises(TargetRejectedError, match="remote server"):
        await create(target="http://127.0.0.1:1/nobody")
    with pytest.raises(BadRequestError, match="Unknown object"):
        await create(resource="999")
    with pytest.raises(NotFoundError):
        await get_webhook(asana, "999")
    async with AsanaSession("wrong", base_url=fake.url) as stranger:
        with pytest.raises(NotAuthorizedError, match="Not Authorized"):
            await get_webhook(stranger, "999")


async def test_a_base_url_without_asanas_path(fake: FakeAsana) -> None:
    """There is no webhook's path below it: the 404 says what it lacks."""
    base_url = fake.url.removesuffix("/api/1.0")
    async with AsanaSession(fake.token, base_url=base_url) as session:
        with pytest.raises(NotFoundError, match=f"The base URL {base_url} lacks /api/1.0"):
            await get_webhook(session, "999")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"resource": "my project"}, "resource must be a gid"),
        ({"resource": 8675309}, "resource must be a gid"),
        ({"target": "/asana"}, "absolute URL"),
        ({"filters": [WebhookFilter(action="added", fields=("due_on",))]}, "action='changed'"),
        ({"filters": DUE_DATES}, "list of WebhookFilter"),
        ({"filters": None}, "list of WebhookFilter"),
        ({"opt_fields": 5}, "list of names"),
        ({"filters": [{"action": "changed"}]}, r"such as \[WebhookFilter\(.*one of them is dict"),
        ({"filters": {"resource_type": "task"}}, r"such as \[WebhookFilter\(.*, not dict"),
        ({"opt_fields": "target"}, "list of names"),
        ({"opt_fields": ["a b"]}, "names of fields"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(
    fake: FakeAsana, create: Create, bad: dict[str, Any], match: str
) -> None:
    """Each is a ConfigurationError with a clear text, and the server hears nothing."""
    with pytest.raises(ConfigurationError, match=match):
        await create(**bad)

    assert fake.requests == []


async def test_bad_gids_and_filters_are_refused_by_the_others_too(fake: FakeAsana, asana: AsanaSession) -> None:
    """get, update and delete check their gid, update its filters; nothing is sent."""
    bad_filter = WebhookFilter(fields=("due_on",))
    for call in (
        get_webhook(asana, "../x"),
        update_webhook(asana, "", filters=[]),
        update_webhook(asana, "1", filters=[bad_filter]),
        delete_webhook(asana, "1?x"),
    ):
        with pytest.raises(ConfigurationError):
            await call

    assert fake.requests == []


async def test_arguments_are_not_changed(create: Create) -> None:
    """Lists that are handed in stay as they were."""
    filters, opt_fields = [DUE_DATES], ["filters"]
    await create(filters=filters, opt_fields=opt_fields)

    assert (filters, opt_fields) == ([DUE_DATES], ["filters"])


async def test_reading_what_an_event_is_about(fake: FakeAsana, asana: AsanaSession) -> None:
    """Reading returns a dict with the chosen fields, None after the deletion, and the dict again once restored."""
    story = ResourceRef(gid=fake.add_resource("story", name="Done!"), resource_type="story")

    assert await read_resource(asana, story) == {
        "gid": story.gid,
        "resource_type": "story",
        "resource_subtype": "comment_added",
        "name": "Done!",
    }
    assert await read_resource(asana, story, opt_fields=["name"]) == {"gid": story.gid, "name": "Done!"}
    assert (fake.requests[-1].path, fake.requests[-1].query) == (f"/stories/{story.gid}", {"opt_fields": "name"})
    fake.change(story.gid, action="deleted")
    assert await read_resource(asana, story) is None
    fake.change(story.gid, action="undeleted")
    assert await read_resource(asana, story) is not None
    assert await read_resource(asana, ResourceRef(gid=story.gid, resource_type="task")) is None
    assert await read_resource(asana, ResourceRef(gid="999", resource_type="task")) is None


async def test_reading_is_retried_and_refused_like_any_get(fake: FakeAsana, asana: AsanaSession) -> None:
    """A 500 is retried. A 403 is an error, and does not count as gone."""
    task = ResourceRef(gid=fake.add_task(), resource_type="task")
    fake.script(Fault(at="readResource", status=500))
    assert await read_resource(asana, task) is not None
    assert len(fake.requests) == 2

    hidden = ResourceRef(gid=fake.add_project(accessible=False), resource_type="project")
    with pytest.raises(ForbiddenError, match="do not have access to this project"):
        await read_resource(asana, hidden)


@pytest.mark.parametrize("body", [b"<html>", {"errors": [{"message": "No matching route for request"}]}])
async def test_a_404_that_is_not_about_the_resource(body: Any) -> None:
    """Neither a proxy's 404 nor a type that cannot be read means that the resource is gone."""
    option = ResourceRef(gid="1", resource_type="enum_option")
    async with scripted_server(answer(404, body)) as server, AsanaSession("token", base_url=server.url) as session:
        with pytest.raises(NotFoundError):
            await read_resource(session, option)


@pytest.mark.parametrize(
    ("ref", "match"),
    [
        (ResourceRef(gid="1"), "^ref must be a ResourceRef with a resource_type, not ResourceRef"),
        ("1", "^ref must be a ResourceRef with a resource_type, not '1'$"),
        (None, "^ref must be a ResourceRef"),
        (ResourceRef(gid="../1", resource_type="task"), "^gid must be a gid"),
        (ResourceRef(gid="1", resource_type="../users"), "^resource_type must be"),
    ],
)
async def test_nothing_is_read_without_a_type(fake: FakeAsana, asana: AsanaSession, ref: Any, match: str) -> None:
    """A reference without a usable path is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match=match):
        await read_resource(asana, ref)

    assert fake.requests == []
