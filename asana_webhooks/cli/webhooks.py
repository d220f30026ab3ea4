"""Commands for webhooks one by one: list, get, create, update, delete; and workspaces and projects, to find gids."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from attrs import frozen
from cyclopts import Parameter

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    ConfigurationError,
    DeleteWebhookRequest,
    NotAuthorizedError,
    NotFoundError,
    Registration,
    RegistrationState,
    ResourceRef,
    SecretUnavailableError,
    Store,
    StoreError,
    TargetRejectedError,
    Webhook,
    WebhookFilter,
    delete_webhook,
    ensure_webhook,
    get_projects,
    get_webhook,
    get_webhooks,
    get_workspaces,
    remove_webhook,
    remove_webhooks,
    update_webhook,
)
from asana_webhooks.cli.common import (
    FAILED,
    BaseUrl,
    Filters,
    Json,
    Label,
    Output,
    PublicUrl,
    Reveal,
    StoreName,
    Workspace,
    Yes,
    confirm,
    fail,
    filter_text,
    masked,
    named_store,
    parse_filters,
    progress,
    session,
)
from asana_webhooks.store.base import registration_id
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import normal_url, split_target

__all__ = ["create", "delete", "get", "list_webhooks", "projects", "update", "workspaces"]

WebhookGid = Annotated[str, Parameter(help="The gid of the webhook.")]
WebhookGids = Annotated[str, Parameter(help="The gids of the webhooks.")]
Watched = Annotated[str, Parameter(help="The gid of the task, project, portfolio, … to watch.")]
Resource = Annotated[str | None, Parameter(help="Only webhooks on the resource with this gid.")]
Team = Annotated[str | None, Parameter(help="Only projects of the team with this gid.")]
AllEvents = Annotated[bool, Parameter(negative=(), help="Have no filters.")]
Items = AsyncIterator[tuple[dict[str, Any], Sequence[str]]]
"""Things to print: as JSON, and as a row of a table."""


async def list_webhooks(
    *,
    workspace: Workspace,
    resource: Resource = None,
    store: StoreName | None = None,
    label: Label | None = None,
    json: Json = False,
    reveal: Reveal = False,
    base_url: BaseUrl = None,
) -> int:
    """List the webhooks of your token's app and user in a workspace.

    With --store it says whose each one is. `ours`: the store can verify its deliveries. `secret missing`: it posts to
    the receivers of the store, but the store cannot verify its deliveries. `foreign`: it posts elsewhere.

    For example:

    ```text
    asana-webhooks list --workspace 1331 --store asana.db
    asana-webhooks list --resource 8675309 --json | jq .gid
    ```
    """
    if label is not None and store is None:
        raise ConfigurationError("--label needs --store: Asana does not know labels")
    columns = ("gid", "resource", "target", "filters", "active", *(() if store is None else ("whose",)))
    async with session(base_url) as asana, _store_or_none(store) as opened:

        async def items() -> Items:
            known = None if opened is None else await _Known.read(opened)
            async for webhook in get_webhooks(asana, workspace=workspace, resource=resource):
                data = _data(webhook, reveal=reveal)
                if known is not None:
                    data |= await known.owner(webhook)
                if label is None or data["label"] == label:
                    yield data, [_text(name, data) for name in columns]

        return await _print(Output(json=json), columns, items())


async def get(
    gid: WebhookGid,
    /,
    *,
    store: StoreName | None = None,
    json: Json = False,
    reveal: Reveal = False,
    base_url: BaseUrl = None,
) -> int:
    """Show all that Asana says about one webhook, and with --store what the store knows.

    For example: `asana-webhooks get 43214 --store asana.db`
    """
    output = Output(json=json)
    async with session(base_url) as asana, _store_or_none(store) as opened:
        data = _data(await get_webhook(asana, gid), reveal=reveal)
        if opened is not None:
            data |= await _stored(opened, gid, output, reveal=reveal)
    if json:
        output.show(data, "")
    else:
        output.table(("field", "value"), [(name, _text(name, data)) for name in data])
    return 0


async def create(
    resource: Watched,
    /,
    *,
    store: StoreName,
    public_url: PublicUrl,
    filters: Filters = (),
    label: Label = "",
    workspace: Workspace | None = None,
    json: Json = False,
    base_url: BaseUrl = None,
) -> int:
    r"""Have one webhook on a resource, with these filters. It is created, updated or replaced only if need be.

    A receiver must be running at the public URL, with the same store: Asana asks it while the webhook is created.
    With --workspace, webhooks that killed processes left on the resource are deleted.

    For example:

    ```text
    asana-webhooks create 8675309 --filter task:changed:due_on \
      --store asana.db --public-url https://example.com/asana
    ```
    """
    wanted: dict[str, Any] = {"resource": resource, "filters": parse_filters(filters), "label": label}
    async with session(base_url) as asana, named_store(store) as opened:
        try:
            ensured = await ensure_webhook(asana, opened, public_url=public_url, workspace=workspace, **wanted)
        except TargetRejectedError as error:
            fail(f"{error} Is a receiver with this store running at --public-url? Start it, and try again.", FAILED)
    data = {name: getattr(ensured, name) for name in ("action", "webhook_gid", "registration", "orphans")}
    text = f"{ensured.webhook_gid}: {ensured.action}"
    Output(json=json, keep_going=True).show(data | {"resource": resource, "label": label}, text)
    return 0


async def update(
    gid: WebhookGid,
    /,
    *,
    filters: Filters = (),
    all_events: AllEvents = False,
    json: Json = False,
    base_url: BaseUrl = None,
) -> int:
    """Replace all filters of a webhook, and show them before and after. Nothing else of it can be changed.

    If a service ensures other filters, it sets those again at its next start. What Asana makes of --all-events is not
    documented: look at what it shows after.

    For example: `asana-webhooks update 43214 --filter task:changed:due_on`
    """
    if all_events == bool(filters):
        raise ConfigurationError("pass either --filter, for all filters the webhook is to have, or --all-events")
    chosen = parse_filters(filters)
    async with session(base_url) as asana:
        before = await get_webhook(asana, gid)
        after = await update_webhook(asana, gid, filters=chosen)
    data = {"gid": gid, "filters_before": before.to_dict()["filters"], "filters": after.to_dict()["filters"]}
    text = f"{gid}: {_text('filters_before', data)} -> {_text('filters', data)}"
    Output(json=json, keep_going=True).show(data, text)
    return 0


async def delete(
    *gids: WebhookGids,
    label: Label | None = None,
    store: StoreName | None = None,
    yes: Yes = False,
    json: Json = False,
    base_url: BaseUrl = None,
) -> int:
    """Delete webhooks, by their gids or by their label, and with --store close their registrations.

    For example:

    ```text
    asana-webhooks delete 43214 43215 --store asana.db
    asana-webhooks delete --label tenant-a --store asana.db --yes
    ```
    """
    if bool(gids) == (label is not None):
        raise ConfigurationError("pass either the gids of webhooks, or --label")
    if label is not None and store is None:
        raise ConfigurationError("--label needs --store: Asana does not know labels")
    for gid in gids:
        DeleteWebhookRequest(webhook_gid=gid)  # checks it
    output = Output(json=json, keep_going=True)
    async with session(base_url) as asana, _store_or_none(store) as opened:
        if opened is None or label is None:
            confirm(f"Delete {len(gids)} webhook(s)?", yes=yes)
            return await _delete_all(asana, opened, gids, output)
        confirm(f"Delete {len(await live_registrations(opened, label=label))} webhook(s)?", yes=yes)
        deleted = await remove_webhooks(asana, opened, label=label)
    output.show({"label": label, "deleted": deleted}, f"deleted {deleted} webhook(s)")
    return 0


async def _delete_all(asana: AsanaSession, store: Store | None, gids: Sequence[str], output: Output) -> int:
    status = 0
    for gid in gids:
        try:
            existed = await _delete_one(asana, store, gid)
        except (NotAuthorizedError, StoreError):
            raise
        except AsanaError as error:
            output.talk(f"{gid}: {error}")
            status = FAILED
        else:
            output.show({"gid": gid, "deleted": existed}, f"{gid}: {'deleted' if existed else 'already gone'}")
    return status


async def _delete_one(asana: AsanaSession, store: Store | None, gid: str) -> bool:
    """Delete a webhook, and close its registration if there is one. Return whether Asana had the webhook."""
    known = () if store is None else await store.list_registrations(webhook_gid=gid)
    try:
        await (get_webhook(asana, gid) if known else delete_webhook(asana, gid))
        existed = True
    except NotFoundError as error:
        if error.base_url:  # a wrong base URL, or a proxy's page
            raise
        existed = False
    if store is not None:
        for label in {one.label for one in known}:
            await remove_webhook(asana, store, webhook_gid=gid, label=label)
    return existed


async def workspaces(*, json: Json = False, base_url: BaseUrl = None) -> int:
    """List the workspaces of your token's user.

    For example: `asana-webhooks workspaces`
    """
    async with session(base_url) as asana:
        return await _print_named(get_workspaces(asana), Output(json=json))


async def projects(*, workspace: Workspace, team: Team = None, json: Json = False, base_url: BaseUrl = None) -> int:
    """List the projects of a workspace that are not archived.

    For example: `asana-webhooks projects --workspace 1331`
    """
    async with session(base_url) as asana:
        return await _print_named(get_projects(asana, workspace=workspace, team=team), Output(json=json))


# The store's part


def _store_or_none(store: str | None) -> AbstractAsyncContextManager[Store | None]:
    return nullcontext() if store is None else named_store(store)


@frozen
class _Known:
    """What a store knows about webhooks: all its registrations, by their ids."""

    store: Store
    registrations: Mapping[str, Registration]
    public_urls: Collection[object]
    """Those of live registrations, in a form to compare."""

    @classmethod
    async def read(cls, store: Store) -> Self:
        known = dict[str, Registration]()
        while page := await store.list_registrations(after=max(known, default=""), limit=1000):
            known |= {one.id: one for one in page}
        live = {one.public_url for one in known.values() if one.state is not RegistrationState.CLOSED}
        return cls(store, known, set(map(normal_url, live)))

    async def owner(self, webhook: Webhook) -> dict[str, str | None]:
        """Return whose a webhook is, and its label."""
        public_url, endpoint = split_target(webhook.target) or ("", "")
        one, found = self.registrations.get(registration_id(endpoint)), None
        if one is not None and one.webhook_gid == webhook.gid:
            with suppress(SecretUnavailableError):
                found = await self.store.find_registration(one.id)
        is_near = one is not None or normal_url(public_url) in self.public_urls
        whose = "ours" if found and found.secret else "secret missing" if is_near else "foreign"
        return {"whose": whose, "label": None if one is None else one.label}


async def _stored(store: Store, gid: str, output: Output, *, reveal: bool) -> dict[str, Any]:
    """Return what a store knows about one webhook."""
    known = sorted(await store.list_registrations(webhook_gid=gid), key=lambda one: one.opened_at)
    if not known:
        return {"state": "unknown"}
    one, secret = known[-1], None
    try:
        found = await store.find_registration(one.id)
        secret = found and found.secret
    except SecretUnavailableError as error:
        output.talk(str(error))
    came = {"last_heartbeat_at": one.last_heartbeat_at, "last_delivery_at": one.last_delivery_at}
    return {
        "label": one.label,
        "state": one.state.value,
        **{name: at and datetime.fromtimestamp(at, UTC).isoformat() for name, at in came.items()},
        "secret": secret and (secret.reveal() if reveal else "***"),
    }


# Output


def _data(webhook: Webhook, *, reveal: bool) -> dict[str, Any]:
    """Return a webhook for JSON, without its endpoint unless *reveal*."""
    target, said = webhook.target or "", webhook.last_failure_content or ""
    path, _, query = target.partition("?")
    for hidden in (path.rstrip("/").rpartition("/")[2], query):
        if hidden and not reveal:  # the answer of a target may show its path
            said = said.replace(hidden, "***")
    return webhook.to_dict() | {"target": masked(target, reveal=reveal), "last_failure_content": said}


def _text(name: str, data: Mapping[str, Any]) -> str:
    """Return a member of *data* for people."""
    value = data[name]
    if name.startswith("filters"):
        return " ".join(filter_text(WebhookFilter(**one)) for one in value or ()) or "all events"
    if name == "whose" and data["label"]:
        return f"{value} ({data['label']})"
    if isinstance(value, dict):  # a resource
        return " ".join(filter(None, (value["gid"], value["name"])))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


async def _print(output: Output, columns: Sequence[str], items: Items) -> int:
    """Print things as they come; on a terminal as one table at the end, with progress until then."""
    collects, rows = output.is_terminal and not output.json, list[Sequence[str]]()
    with progress("asking Asana") if collects else nullcontext() as bar:
        async for data, row in items:
            if output.json:
                output.show(data, "")
            elif not collects:
                output.table(columns, [row])
            else:
                rows.append(row)
                if bar is not None:
                    bar.advance(bar.task_ids[0])
    if collects:
        output.table(columns, rows)
    return 0


async def _print_named(found: AsyncIterator[ResourceRef], output: Output) -> int:
    async def items() -> Items:
        async for one in found:
            yield {"gid": one.gid, "name": one.name, "resource_type": one.resource_type}, (one.gid, one.name or "")

    return await _print(output, ("gid", "name"), items())
