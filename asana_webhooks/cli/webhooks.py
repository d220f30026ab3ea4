"""Commands for webhooks one by one: list, get, create, update, delete; and workspaces and projects, to find gids."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
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
    SecretUnavailableError,
    Store,
    StoreError,
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
from asana_webhooks.cli import common
from asana_webhooks.cli.common import Output, session
from asana_webhooks.subscriptions.rules import normal_url, split_target

__all__ = ["create", "delete", "get", "list_webhooks", "projects", "update", "workspaces"]

Gid = Annotated[str, Parameter(help="The webhook's gid.")]
Watched = Annotated[str, Parameter(help="The gid of the task, project, portfolio, … to watch.")]
Resource = Annotated[str | None, Parameter(help="Only webhooks on the resource with this gid.")]
AllEvents = Annotated[bool, Parameter(help="Remove all filters, so that Asana sends every event.")]


async def list_webhooks(
    *,
    workspace: common.Workspace,
    resource: Resource = None,
    store: common.StoreName | None = None,
    json: common.Json = False,
    reveal: common.Reveal = False,
    base_url: common.BaseUrl = None,
) -> int:
    """List the webhooks of your token's app and user in a workspace.

    With --store it says whose each one is. `ours`: the store can verify its deliveries. `secret missing`: it posts to
    your receivers, but the store cannot verify its deliveries. `foreign`: it posts elsewhere.

    For example:

    ```text
    asana-webhooks list --workspace 1331 --store asana.db
    asana-webhooks list --resource 8675309 --json | jq .gid
    ```
    """
    found = list[dict[str, Any]]()
    async with session(base_url) as asana, _store_or_none(store) as opened:
        known = None if opened is None else await _Known.read(opened)
        with common.progress("asking Asana") as bar:
            async for webhook in get_webhooks(asana, workspace=workspace, resource=resource):
                found.append(await _data(webhook, known, reveal=reveal))
                bar.advance(bar.task_ids[0])
    columns = ("gid", "resource", "target", "filters", "active", *(() if store is None else ("whose",)))
    return _print(found, columns, json=json)


async def get(
    gid: Gid,
    /,
    *,
    store: common.StoreName | None = None,
    json: common.Json = False,
    reveal: common.Reveal = False,
    base_url: common.BaseUrl = None,
) -> int:
    """Show all that Asana says about one webhook, and with --store what the store knows about it.

    For example: `asana-webhooks get 43214 --store asana.db`
    """
    async with session(base_url) as asana, _store_or_none(store) as opened:
        known = None if opened is None else await _Known.read(opened)
        data = await _data(await get_webhook(asana, gid), known, reveal=reveal)
    rows = [data] if json else [{"field": name, "value": _text(name, data)} for name in data]
    return _print(rows, ("field", "value"), json=json)


async def create(
    resource: Watched,
    /,
    *,
    store: common.StoreName,
    public_url: common.PublicUrl,
    filters: common.Filters = (),
    label: common.Label = "",
    workspace: common.Workspace | None = None,
    json: common.Json = False,
    base_url: common.BaseUrl = None,
) -> int:
    r"""Make sure that a resource has one webhook with these filters. Create, update or replace it only if needed.

    A receiver must be running at the public URL, with the same store: Asana calls it while the webhook is created.
    With --workspace, webhooks that killed processes left on the resource are deleted.

    For example:

    ```text
    asana-webhooks create 8675309 --filter task:changed:due_on \
      --store asana.db --public-url https://example.com/asana
    ```
    """
    wanted: dict[str, Any] = {"resource": resource, "filters": common.parse_filters(filters), "label": label}
    async with session(base_url) as asana, common.named_store(store) as opened:
        with common.progress("ensuring"):
            done = await ensure_webhook(asana, opened, public_url=public_url, workspace=workspace, **wanted)
    data = {name: getattr(done, name) for name in ("action", "webhook_gid", "registration", "orphans")}
    data |= {"resource": resource, "label": label}
    Output(json=json, keep_going=True).show(data, f"{done.webhook_gid}: {done.action}")
    return 0


async def update(
    gid: Gid,
    /,
    *,
    filters: common.Filters = (),
    all_events: AllEvents = False,
    json: common.Json = False,
    base_url: common.BaseUrl = None,
) -> int:
    """Replace all filters of a webhook, and show them before and after. Nothing else of it can be changed.

    A service that ensures other filters sets those again at its next start. Asana does not document what --all-events
    does: look at what the command shows.

    For example: `asana-webhooks update 43214 --filter task:changed:due_on`
    """
    if all_events == bool(filters):
        raise ConfigurationError("pass either --filter, once for each filter the webhook is to have, or --all-events")
    chosen = common.parse_filters(filters)
    async with session(base_url) as asana:
        before = await get_webhook(asana, gid)
        after = await update_webhook(asana, gid, filters=chosen)
    data = {"gid": gid, "filters_before": before.to_dict()["filters"], "filters": after.to_dict()["filters"]}
    text = f"{gid}: {_text('filters_before', data)} -> {_text('filters', data)}"
    Output(json=json, keep_going=True).show(data, text)
    return 0


async def delete(
    *gids: Gid,
    label: common.Label | None = None,
    store: common.StoreName | None = None,
    yes: common.Yes = False,
    json: common.Json = False,
    base_url: common.BaseUrl = None,
) -> int:
    """Delete webhooks by their gids or by their label. With --store, also close their registrations.

    For example:

    ```text
    asana-webhooks delete 43214 43215 --store asana.db
    asana-webhooks delete --label tenant-a --store asana.db --yes
    ```
    """
    if bool(gids) == (label is not None):
        raise ConfigurationError("pass either the gids of webhooks, or --label")
    for gid in gids:
        DeleteWebhookRequest(webhook_gid=gid)  # checks it
    output, status = Output(json=json, keep_going=True), 0
    async with session(base_url) as asana, _store_or_none(store) as opened:
        if label is not None:
            if opened is None:
                raise ConfigurationError("--label needs --store: Asana does not know labels")
            common.confirm(f"Delete all webhooks with the label {label!r}?", yes=yes)
            with common.progress("deleting"):
                deleted = await remove_webhooks(asana, opened, label=label)
            output.show({"label": label, "deleted": deleted}, f"deleted {deleted} webhook(s)")
            return 0
        common.confirm(f"Delete {len(gids)} webhook(s)?", yes=yes)
        for gid in gids:
            try:
                existed = await _delete(asana, opened, gid)
                output.show({"gid": gid, "deleted": existed}, f"{gid}: {'deleted' if existed else 'already gone'}")
            except (NotAuthorizedError, StoreError):
                raise
            except AsanaError as error:
                output.talk(f"{gid}: {error}")
                status = common.FAILED
    return status


async def _delete(asana: AsanaSession, store: Store | None, gid: str) -> bool:
    """Delete a webhook, and close its registration if there is one. Return whether there was either."""
    if store is not None and (known := await store.list_registrations(webhook_gid=gid)):
        for label in {one.label for one in known}:
            await remove_webhook(asana, store, webhook_gid=gid, label=label)
        return True
    try:
        await delete_webhook(asana, gid)
    except NotFoundError as error:
        if error.base_url:  # a wrong base URL, or a proxy's page
            raise
        return False
    return True


async def workspaces(*, json: common.Json = False, base_url: common.BaseUrl = None) -> int:
    """List the workspaces of your token's user.

    For example: `asana-webhooks workspaces`
    """
    async with session(base_url) as asana:
        found = [one.to_dict() async for one in get_workspaces(asana)]
    return _print(found, ("gid", "name"), json=json)


async def projects(*, workspace: common.Workspace, json: common.Json = False, base_url: common.BaseUrl = None) -> int:
    """List the projects of a workspace that are not archived.

    For example: `asana-webhooks projects --workspace 1331`
    """
    async with session(base_url) as asana:
        found = [one.to_dict() async for one in get_projects(asana, workspace=workspace)]
    return _print(found, ("gid", "name"), json=json)


# What they show


def _store_or_none(store: str | None) -> AbstractAsyncContextManager[Store | None]:
    return nullcontext() if store is None else common.named_store(store)


@frozen
class _Known:
    """What a store knows about webhooks."""

    store: Store
    registrations: Mapping[str | None, Registration]
    """By the gids of webhooks."""
    public_urls: Collection[object]
    """In a form to compare."""

    @classmethod
    async def read(cls, store: Store) -> Self:
        found = list[Registration]()
        while page := await store.list_registrations(after=found[-1].id if found else ""):
            found += page
        public_urls = {one.public_url for one in found}
        return cls(store, {one.webhook_gid: one for one in found}, set(map(normal_url, public_urls)))

    async def about(self, webhook: Webhook, *, reveal: bool) -> dict[str, Any]:
        """Return whose a webhook is, and its registration."""
        one, secret, problem = self.registrations.get(webhook.gid), None, {}
        public_url, _ = split_target(webhook.target) or ("", "")
        is_near = one is not None or normal_url(public_url) in self.public_urls
        try:
            found = one and await self.store.find_registration(one.id)
            secret = found and found.secret
        except SecretUnavailableError as error:
            problem = {"problem": str(error)}
        return {
            "whose": "ours" if secret else "secret missing" if is_near else "foreign",
            "label": one and one.label,
            "state": one and one.state.value,
            "secret": secret and (secret.reveal() if reveal else "***"),
            **problem,
        }


async def _data(webhook: Webhook, known: _Known | None, *, reveal: bool) -> dict[str, Any]:
    """Return all about a webhook, without its endpoint unless *reveal*."""
    data = webhook.to_dict() | ({} if known is None else await known.about(webhook, reveal=reveal))
    if webhook.target and not reveal:
        public_url, endpoint = split_target(webhook.target) or ("", "")
        base, mark, query = public_url.partition("?")
        data["target"] = f"{base}/***{mark and '?***'}" if base else "***"
        for hidden in filter(None, (endpoint, query)):  # the answer of a target may show its path
            data["last_failure_content"] = (data["last_failure_content"] or "").replace(hidden, "***")
    return data


def _text(name: str, data: Mapping[str, Any]) -> str:
    """Return a member of *data* for people."""
    value = data[name]
    if name.startswith("filters"):
        return " ".join(common.filter_text(WebhookFilter(**one)) for one in value or ()) or "all events"
    if name == "whose" and data["label"]:
        return f"{value} ({data['label']})"
    if isinstance(value, dict):  # a resource
        return " ".join(filter(None, (value["gid"], value["name"])))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _print(found: Sequence[Mapping[str, Any]], columns: Sequence[str], *, json: bool) -> int:
    output = Output(json=json)
    if not json:
        output.table(columns, [[_text(name, data) for name in columns] for data in found])
    for data in found if json else ():
        output.show(data, "")
    return 0
