"""The API side of the fake: reads requests, executes the operations, and applies scripted faults.

Sources: https://developers.asana.com/reference/webhooks, https://developers.asana.com/docs/errors,
and https://developers.asana.com/docs/inputoutput-options
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final, Literal

from aiohttp import web
from attrs import evolve, field, frozen
from yarl import URL

from asana_webhooks import wire
from asana_webhooks.client.requests import CreateWebhookRequest, plural_of
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing.faults import TOKEN_REQUEST, Fault, FaultScript, Plan
from asana_webhooks.testing.oauth import TOKEN_PATH, Caller, FakeTokenEndpoint
from asana_webhooks.testing.paging import Offsets
from asana_webhooks.testing.records import RequestRecord, Resource, WebhookRecord
from asana_webhooks.testing.sender import Sender
from asana_webhooks.testing.serving import is_loopback
from asana_webhooks.testing.validation import (
    ApiError,
    Input,
    create_request,
    find_in_path,
    find_resource,
    new_filters,
    not_recognized,
    parse_body,
    read_input,
    select,
)
from asana_webhooks.testing.world import FILTERED_TYPES, World, WorldChange

__all__ = ["BASE_PATH", "Answer", "HeartbeatMoment", "RestApi", "error_answer", "send"]

BASE_PATH: Final = "/api/1.0"

HeartbeatMoment = Literal["before", "after"] | None
"""When to send a webhook's first heartbeat, relative to the 201; ``None`` to skip it."""

_ON_LIST: Final = {
    ("GET", "webhooks"): "getWebhooks",
    ("POST", "webhooks"): "createWebhook",
    ("GET", "projects"): "getProjects",
    ("GET", "workspaces"): "getWorkspaces",
}
_COMPACT: Final = (("resource_type",), ("name",))
"""What a list has of each project or workspace, beside the gid."""
_ON_ONE: Final = {"GET": "getWebhook", "PUT": "updateWebhook", "DELETE": "deleteWebhook"}
_SCOPES: Final = {
    **dict.fromkeys(("getWebhooks", "getWebhook"), "webhooks:read"),
    **dict.fromkeys(("createWebhook", "updateWebhook"), "webhooks:write"),
    "deleteWebhook": "webhooks:delete",
    "getProjects": "projects:read",
    "getWorkspaces": "workspaces:read",
}
"""The scope each operation needs. Source: https://developers.asana.com/docs/oauth-scopes"""
# https://developers.asana.com/reference/rest-api-reference: what GET reads by its gid
_TYPES: Final = (
    *("allocation", "attachment", "budget", "custom_field", "custom_type", "goal", "goal_relationship", "job"),
    *("membership", "organization_export", "portfolio", "portfolio_membership", "project", "project_brief"),
    *("project_membership", "project_portfolio_setting", "project_status", "project_template", "rate", "role"),
    *("section", "status_update", "story", "tag", "task", "task_template", "team", "team_membership", "time_period"),
    *("time_tracking_entry", "user", "user_task_list", "workspace", "workspace_membership"),
)
_TYPES_BY_PATH: Final = {plural_of(resource_type): resource_type for resource_type in _TYPES}
# "6 sad squid snuggle softly" is the example of https://developers.asana.com/docs/errors
_PHRASE: Final = "6 sad squid snuggle softly"
_JSON: Final = "application/json; charset=UTF-8"

_HELP: Final = (
    "For more information on API status codes and how to handle them, read the docs on errors: "
    "https://developers.asana.com/docs/errors"
)

_STATUS_MESSAGES: Final[Mapping[int, str]] = {
    400: "Bad request",
    401: "Not Authorized",
    402: "This feature is not available in the plan of this workspace.",
    403: "Forbidden",
    404: "No matching route for request",
    429: "You've made too many requests and hit a rate limit. Please retry after the given amount of time.",
    500: "Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
"""The default message of an error, by status."""


@frozen(kw_only=True)
class Answer:
    """One answer, ready to send."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(factory=lambda: {"Content-Type": _JSON})

    @classmethod
    def of(cls, status: int, tree: Any, *, pretty: bool = False, headers: Mapping[str, str] | None = None) -> "Answer":
        """Return an answer with the JSON *tree* as its body."""
        body = json.dumps(tree, indent=2, ensure_ascii=False).encode() if pretty else wire.encode(tree)
        return cls(status=status, body=body, headers=_merge({"Content-Type": _JSON}, headers or {}))


def error_answer(
    status: int, message: str | None = None, *, code: str | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return Asana's error envelope with one entry; *message* is by default the usual one for the status."""
    if message is None:
        message = _STATUS_MESSAGES.get(status, "Error")
    more = ({} if code is None else {"error": code}) | ({"phrase": _PHRASE} if status == 500 else {})
    return Answer.of(status, {"errors": [{"message": message, "help": _HELP, **more}]}, headers=headers)


@frozen
class _Route:
    """Where a request goes: its operation, ``None`` for an unknown route, and what its path names."""

    operation: str | None = None
    resource_type: str = ""
    gid: str = ""


class RestApi:
    """Answers requests to the API and the token endpoint.

    Args:
        world: the resources and webhooks.
        sender: sends handshakes and heartbeats.
        tokens: issues and checks access tokens.
        faults: the scripted faults.
        heartbeat: when to send a webhook's first heartbeat.
        allow_loopback: whether to accept targets on this machine; Asana refuses them.
        portfolio_whitelist: whether webhooks on portfolios are held to the whitelist of filters, too.
        max_per_resource: how many webhooks one resource may have.
        max_per_user: how many webhooks a user may have through one app.

    Raises:
        ConfigurationError: *heartbeat* is invalid.
    """

    def __init__(
        self,
        *,
        world: World,
        sender: Sender,
        tokens: FakeTokenEndpoint,
        faults: FaultScript,
        heartbeat: HeartbeatMoment,
        allow_loopback: bool,
        portfolio_whitelist: bool,
        max_per_resource: int,
        max_per_user: int,
    ) -> None:
        if heartbeat not in ("before", "after", None):
            raise ConfigurationError(f"heartbeat must be 'before', 'after' or None, not {heartbeat!r:.80}")
        self.base_url = ""
        """The base URL of the API, once the server listens."""
        self._world = world
        self._sender = sender
        self._tokens = tokens
        self._faults = faults
        self._heartbeat = heartbeat
        self._allow_loopback = allow_loopback
        self._whitelisted = [one for one in FILTERED_TYPES if one != "portfolio" or portfolio_whitelist]
        self._max_per_resource = max_per_resource
        self._max_per_user = max_per_user
        self._opening: list[WebhookRecord] = []
        self._offsets = Offsets(world)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        route = _route(request.method, request.rel_url.raw_path)
        webhook_gid = route.gid if route.resource_type == "webhook" else ""
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers.pop("authorization", None)
        record = RequestRecord(
            operation=route.operation,
            webhook_gid=webhook_gid,
            method=request.method,
            path=request.path.removeprefix(BASE_PATH),
            query=dict(request.query),
            headers=headers,
        )
        self._world.requests.append(record)
        self._faults.activity.begin()
        try:
            # Read the body before any hold or delay: the operation is executed even if the client disconnects.
            body = await request.read()
            if request.path != TOKEN_PATH:  # its requests contain secrets
                record.body = parse_body(request.content_type, body)
            plan = Plan() if route.operation is None else self._faults.take(route.operation, webhook=webhook_gid)
            await plan.wait("before")
            return await self._respond(request, body, route, record, plan)
        finally:
            self._faults.activity.end()

    async def _respond(
        self, request: web.Request, body: bytes, route: _Route, record: RequestRecord, plan: Plan
    ) -> web.StreamResponse:
        fault, do = plan.fault, plan.fault.do if plan.fault else None
        if do == "reset":
            return _cut(request, reset=True)
        created = None
        if fault is not None and do == "answer" and not fault.executed:
            answer = _scripted_answer(fault)
        else:
            answer, created = await self._answer(request, body, route, plan)
            answer = _scripted_answer(fault) if fault is not None and do == "answer" else answer
        await plan.wait("before_answer")
        if do == "lose_answer":
            response: web.StreamResponse = _cut(request, reset=False)
        else:
            record.status = answer.status
            response = await send(request, answer, size=fault.size if fault and do == "truncate" else None)
        if created is not None:
            if self._heartbeat == "after":
                self._sender.add_heartbeat(created)
                self._sender.start(created)
            self._sender.wake()
        return response

    async def _answer(
        self, request: web.Request, body: bytes, route: _Route, plan: Plan
    ) -> tuple[Answer, WebhookRecord | None]:
        """Return the true answer, and the created webhook, if any."""
        if route.operation == TOKEN_REQUEST:
            answer = Answer.of(*self._tokens.answer(request.content_type, body))
            return evolve(answer, body=answer.body.replace(b"/", rb"\u002F")), None  # as Asana's does
        if route.operation is None:
            return error_answer(404), None
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        caller = self._tokens.caller(token) if scheme == "Bearer" else None
        needed = _SCOPES.get(route.operation)
        # Asana answers 401 for a missing scope, too; the wording of its message is unknown.
        if caller is None or (needed and caller.scopes is not None and needed not in caller.scopes):
            return error_answer(401), None
        try:
            # Bodies of GET and DELETE are ignored; the official Python client sends "{}" with DELETE.
            used = body if request.method in ("POST", "PUT") else b""
            given = read_input(content_type=request.content_type, body=used, query=request.query)
            if route.operation == "createWebhook":
                return await self._create(given, caller, plan)
            return Answer.of(200, self._perform(route, request.query, given, caller), pretty=given.pretty), None
        except ApiError as refusal:
            return error_answer(refusal.status, refusal.message, code=refusal.code), None

    def _perform(self, route: _Route, query: Mapping[str, str], given: Input, caller: Caller) -> dict[str, Any]:
        if route.operation == "getWebhooks":
            return self._list_webhooks(query, given, caller)
        if route.operation == "getProjects":
            return self._list_resources("project", query, given)
        if route.operation == "getWorkspaces":
            return self._list_resources("workspace", query, given)
        if route.operation == "readResource":
            return {"data": self._resource(route, given)}
        webhook = find_in_path("webhook", route.gid, self._world.webhooks)
        if not _owns(caller, webhook):
            # Nobody says what Asana answers about a webhook of another user or app. It refuses other objects so.
            raise ApiError(403, "You do not have access to this webhook.")
        if route.operation == "deleteWebhook":
            self._world.delete_webhook(webhook)
            return {"data": {}}
        if route.operation == "updateWebhook":
            filters = given.data.get("filters")
            if filters is None and webhook.resource.resource_type not in FILTERED_TYPES:
                raise ApiError(400, "filters: Missing input")
            webhook.filters = new_filters(filters, webhook.resource, whitelisted=self._whitelisted)
        return {"data": _chosen(webhook, given)}

    def _resource(self, route: _Route, given: Input) -> dict[str, Any]:
        found = find_in_path(route.resource_type, route.gid, self._world.resources)
        if found.deleted or plural_of(found.resource_type) != plural_of(route.resource_type):
            raise not_recognized(route.resource_type, route.gid)
        record = find_resource("gid", found.gid, self._world.resources).full()
        return select(record, given.fields) if given.fields else record

    async def _create(self, given: Input, caller: Caller, plan: Plan) -> tuple[Answer, WebhookRecord]:
        """Execute createWebhook, with the handshake in the middle."""
        request, resource = create_request(given, self._world.resources, whitelisted=self._whitelisted)
        self._refuse(request, caller)
        webhook = self._world.new_webhook(resource, request.target, request.filters, user=caller.user, app=caller.app)
        self._opening.append(webhook)
        try:
            if not plan.find("skip_handshake"):
                await self._sender.shake_hands(webhook.target, webhook.secret)
            # Deliveries may start now, before the 201.
            webhook.last_success_at = self._world.clock.now()
            self._world.webhooks[webhook.gid] = webhook
        finally:
            self._opening.remove(webhook)
        await plan.wait("after_handshake")
        if self._heartbeat == "before":
            self._sender.add_heartbeat(webhook)
            await self._sender.drain(webhook)
        if plan.find("early_event"):
            self._world.apply(WorldChange(resource=webhook.resource.gid, field="name"))
            self._sender.start_due()
            await self._sender.drain(webhook)
        return self._created(webhook, given, plan), webhook

    def _refuse(self, request: CreateWebhookRequest, caller: Caller) -> None:
        webhooks = [*self._world.webhooks.values(), *self._opening]
        same_resource = [one for one in webhooks if one.resource.gid == request.resource]
        if any((one.user, one.target) == (caller.user, request.target) for one in same_resource):
            raise ApiError(
                403,
                "Duplicated webhook. You already have an existing webhook for the given resource and target. "
                "Delete the old one before creating another.",
            )
        if is_loopback(request.target) and not self._allow_loopback:
            # The status is Asana's; the wording of its message is unknown.
            host = URL(request.target, encoded=True).host
            raise ApiError(
                403, f"The remote server which is intended to receive the webhook has an invalid hostname: {host}"
            )
        # Asana publishes both numbers, not how it refuses: https://developers.asana.com/docs/webhooks-guide
        if len(same_resource) >= self._max_per_resource:
            raise ApiError(403, "This resource has too many webhooks.")
        if sum(_owns(caller, one) for one in webhooks) >= self._max_per_user:
            raise ApiError(403, "You have too many webhooks.")

    def _created(self, webhook: WebhookRecord, given: Input, plan: Plan) -> Answer:
        tree = {"data": _chosen(webhook, given), "X-Hook-Secret": webhook.secret.reveal()}
        if plan.find("no_secret"):
            del tree["X-Hook-Secret"]
        elif (wrong := plan.find("wrong_secret")) is not None:
            tree["X-Hook-Secret"] = self._world.secret(wrong.secret).reveal()
        location = {"Location": f"{BASE_PATH}/webhooks/{webhook.gid}"}
        return Answer.of(201, tree, pretty=given.pretty, headers=location)

    def _list_webhooks(self, query: Mapping[str, str], given: Input, caller: Caller) -> dict[str, Any]:
        """Execute getWebhooks: compact records, in pages if ``limit`` is given."""
        if not query.get("workspace"):
            raise ApiError(400, "workspace: Missing input")
        workspace = self._scope("workspace", query)
        resource = query.get("resource")
        if resource is not None:
            find_resource("resource", resource, self._world.resources)
        found = [
            one
            for one in self._world.webhooks.values()
            if _owns(caller, one) and resource in (None, one.resource.gid) and self._is_in(one.resource, workspace)
        ]
        list_of = (workspace.gid, resource or "", caller.user, caller.app or "")
        page, following = self._offsets.page(found, query, base_url=self.base_url, path="/webhooks", list_of=list_of)
        return {"data": [_chosen(one, given, full=False) for one in page], **following}

    def _list_resources(self, resource_type: str, query: Mapping[str, str], given: Input) -> dict[str, Any]:
        """Execute getProjects or getWorkspaces: compact records, in pages if ``limit`` is given.

        Asana does not say that a workspace or a team is needed; without both, this lists every project.
        """
        scopes = [self._scope(name, query) for name in ("workspace", "team") if name in query]
        archived = query.get("archived")
        if archived not in (None, "true", "false"):
            raise ApiError(400, f"archived: Not a valid boolean: {archived}")  # the wording is unknown
        found = [
            one
            for one in self._world.resources.values()
            if (one.resource_type, one.deleted, one.accessible) == (resource_type, False, True)
            and archived in (None, str(one.archived).lower())
            and all(self._is_in(one, scope) for scope in scopes)
        ]
        list_of, path = (*(scope.gid for scope in scopes), archived or ""), f"/{plural_of(resource_type)}"
        page, following = self._offsets.page(found, query, base_url=self.base_url, path=path, list_of=list_of)
        fields = given.fields or _COMPACT
        return {"data": [select(one.full(), fields) for one in page], **following}

    def _scope(self, name: str, query: Mapping[str, str]) -> Resource:
        """Return the workspace or team that a query names."""
        found = find_resource(name, query[name], self._world.resources)
        if found.resource_type != name:
            raise ApiError(400, f"{name}: Unknown object: {found.gid}")
        return found

    def _is_in(self, resource: Resource, scope: Resource) -> bool:
        return any(above.gid == scope.gid for above in self._world.lineage(resource.gid))


def _route(method: str, raw_path: str) -> _Route:
    """Return where a request goes. No route has an encoded character in its path."""
    if (method, raw_path) == ("POST", TOKEN_PATH):
        return _Route(TOKEN_REQUEST)
    match raw_path.removeprefix(BASE_PATH).split("/"):
        case _ if "%" in raw_path:
            return _Route()
        case ["", name] if (method, name) in _ON_LIST:
            return _Route(_ON_LIST[method, name])
        case ["", "webhooks", gid] if gid:
            return _Route(_ON_ONE.get(method), "webhook", gid)
        case ["", types, gid] if types in _TYPES_BY_PATH and gid and method == "GET":
            return _Route("readResource", _TYPES_BY_PATH[types], gid)
        case _:
            return _Route()


def _owns(caller: Caller, webhook: WebhookRecord) -> bool:
    """Return whether the caller created the webhook. Nobody created a quiet one; it is of all apps of its user."""
    return caller.user == webhook.user and (webhook.quiet or caller.app == webhook.app)


def _chosen(webhook: WebhookRecord, given: Input, *, full: bool = True) -> dict[str, Any]:
    """Return the compact or full record, or the fields of the full one that ``opt_fields`` selects."""
    return select(webhook.to_json(), given.fields) if given.fields else webhook.to_json(full=full)


def _merge(*layers: Mapping[str, str]) -> dict[str, str]:
    """Merge headers; the last one of a name wins. Names are case-insensitive."""
    found = {name.lower(): (name, value) for layer in layers for name, value in layer.items()}
    return dict(found.values())


def _scripted_answer(fault: Fault) -> Answer:
    """Return the answer that a fault scripts."""
    retry_after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    headers = _merge(fault.headers, retry_after)
    if fault.body is None and fault.status >= 400:
        return error_answer(fault.status, fault.message, headers=headers)
    body = (fault.body.encode() if isinstance(fault.body, str) else fault.body) or b""
    return Answer(status=fault.status, body=body, headers=_merge({"Content-Type": _JSON}, headers))


async def send(request: web.Request, answer: Answer, *, size: int | None = None) -> web.StreamResponse:
    """Send an answer, or only the first *size* bytes of its body, and return once it is written."""
    response: web.StreamResponse
    try:
        if size is None:
            response = web.Response(status=answer.status, body=answer.body, headers=answer.headers)
            await response.prepare(request)
            await response.write_eof()
            return response
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(answer.body)
        await response.prepare(request)
        await response.write(answer.body[:size])
    except ConnectionError:
        # The client disconnected; its operation was executed all the same.
        return web.Response()
    _cut(request, reset=False)
    return response


def _cut(request: web.Request, *, reset: bool) -> web.Response:
    """Close the connection, or *reset* it. Return a response for aiohttp, which is never sent."""
    transport = request.transport
    if transport is not None:
        if reset:
            # https://man7.org/linux/man-pages/man7/socket.7.html: closing with a linger time of 0 sends a reset
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
    return web.Response()
