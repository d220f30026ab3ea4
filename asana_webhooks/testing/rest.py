"""The API side of the fake: reads requests, executes the operations, and applies scripted faults.

Sources: https://developers.asana.com/reference/webhooks, https://developers.asana.com/docs/errors,
https://developers.asana.com/docs/inputoutput-options and https://developers.asana.com/docs/pagination
"""

import json
import socket
import struct
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from aiohttp import web
from attrs import field, frozen
from yarl import URL

from asana_webhooks import wire
from asana_webhooks.client.requests import CreateWebhookRequest, plural_of
from asana_webhooks.testing.faults import TOKEN_REQUEST, Fault, FaultScript, Plan
from asana_webhooks.testing.oauth import TOKEN_PATH, FakeTokenEndpoint
from asana_webhooks.testing.records import RequestRecord, WebhookRecord
from asana_webhooks.testing.sender import Sender
from asana_webhooks.testing.target_client import is_loopback
from asana_webhooks.testing.validation import (
    ApiError,
    Input,
    check_limit,
    create_request,
    find_resource,
    gid_in_path,
    new_filters,
    parse_body,
    read_input,
    select,
)
from asana_webhooks.testing.world import World, WorldChange

__all__ = ["BASE_PATH", "Answer", "HeartbeatMoment", "RestApi", "error_answer", "send"]

BASE_PATH: Final = "/api/1.0"

HeartbeatMoment = Literal["before", "after"] | None
"""When to send a webhook's first heartbeat, relative to the 201; ``None`` to skip it."""

_LONGEST_LIST: Final = 1000
"""Longer lists must be requested in pages."""
_OFFSET_LIFETIME: Final = timedelta(minutes=15)
_MAX_OFFSETS: Final = 10_000
_ON_LIST: Final = {"GET": "getWebhooks", "POST": "createWebhook"}
_ON_ONE: Final = {"GET": "getWebhook", "PUT": "updateWebhook", "DELETE": "deleteWebhook"}
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


def error_answer(status: int, message: str | None = None, *, headers: Mapping[str, str] | None = None) -> Answer:
    """Return Asana's error envelope with one entry; *message* is by default the usual one for the status."""
    if message is None:
        message = _STATUS_MESSAGES.get(status, "Error")
    phrase = {"phrase": _PHRASE} if status == 500 else {}
    return Answer.of(status, {"errors": [{"message": message, "help": _HELP, **phrase}]}, headers=headers)


@frozen
class _Offset:
    """Where a page begins: after the webhook with gid *after*, even if that was deleted."""

    after: int
    list_of: tuple[str, str]
    """The workspace and resource of the list; the offset is valid for this list only."""
    expires: datetime


class RestApi:
    """Answers requests to the API and the token endpoint.

    Args:
        world: the resources and webhooks.
        sender: sends handshakes and heartbeats.
        tokens: issues and checks access tokens.
        faults: the scripted faults.
        heartbeat: when to send a webhook's first heartbeat.
        allow_loopback: whether to accept targets on this machine; Asana refuses them.
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
    ) -> None:
        self.base_url = ""
        """The base URL of the API, once the server listens."""
        self._world = world
        self._sender = sender
        self._tokens = tokens
        self._faults = faults
        self._heartbeat = heartbeat
        self._allow_loopback = allow_loopback
        self._opening: set[tuple[str, str]] = set()
        self._offsets: dict[str, _Offset] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        path = request.path.removeprefix(BASE_PATH)
        asks_token = (request.method, request.path) == ("POST", TOKEN_PATH)
        operation, gid = (TOKEN_REQUEST, "") if asks_token else _route(request.method, path)
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers.pop("authorization", None)
        record = RequestRecord(
            operation=operation,
            webhook_gid=gid,
            method=request.method,
            path=path,
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
            plan = Plan() if operation is None else self._faults.take(operation, webhook=gid)
            await plan.wait("before")
            return await self._respond(request, body, record, plan)
        finally:
            self._faults.activity.end()

    async def _respond(
        self, request: web.Request, body: bytes, record: RequestRecord, plan: Plan
    ) -> web.StreamResponse:
        fault, do = plan.fault, plan.fault.do if plan.fault else None
        if do == "reset":
            return _cut(request, reset=True)
        created = None
        if fault is not None and do == "answer" and not fault.executed:
            answer = _scripted_answer(fault)
        else:
            answer, created = await self._answer(request, body, record, plan)
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
        self, request: web.Request, body: bytes, record: RequestRecord, plan: Plan
    ) -> tuple[Answer, WebhookRecord | None]:
        """Return the true answer, and the created webhook, if any."""
        if record.operation == TOKEN_REQUEST:
            return Answer.of(*self._tokens.answer(request.content_type, body)), None
        if record.operation is None:
            return error_answer(404), None
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not self._tokens.accepts(token):
            return error_answer(401), None
        try:
            # Bodies of GET and DELETE are ignored; the official Python client sends "{}" with DELETE.
            used = body if request.method in ("POST", "PUT") else b""
            given = read_input(content_type=request.content_type, body=used, query=request.query)
            if record.operation == "createWebhook":
                return await self._create(given, plan)
            return self._perform(record, given), None
        except ApiError as refusal:
            return error_answer(refusal.status, refusal.message), None

    def _perform(self, record: RequestRecord, given: Input) -> Answer:
        if record.operation == "getWebhooks":
            return Answer.of(200, self._list_page(record.query, given), pretty=given.pretty)
        if record.operation == "readResource":
            return Answer.of(200, {"data": self._resource(record.path, given)}, pretty=given.pretty)
        webhook = self._world.webhooks.get(gid_in_path(record.webhook_gid))
        if webhook is None:
            raise ApiError(404, f"webhook_gid: Unknown object: {record.webhook_gid}")
        if record.operation == "deleteWebhook":
            # A delivery in flight still arrives.
            webhook.active = False
            del self._world.webhooks[webhook.gid]
            return Answer.of(200, {"data": {}}, pretty=given.pretty)
        if record.operation == "updateWebhook":
            if given.data.get("filters") is None:
                raise ApiError(400, "filters: Missing input")
            webhook.filters = new_filters(given.data["filters"], webhook.resource)
        return Answer.of(200, {"data": _chosen(webhook, given)}, pretty=given.pretty)

    def _resource(self, path: str, given: Input) -> dict[str, Any]:
        _, types, gid = path.split("/")
        known = self._world.resources.get(gid)
        if known is None or known.deleted or plural_of(known.resource_type) != types:
            raise ApiError(404, f"{types}: Not a recognized ID: {gid}")
        record = find_resource("gid", gid, self._world.resources).full()
        return select(record, given.fields) if given.fields else record

    async def _create(self, given: Input, plan: Plan) -> tuple[Answer, WebhookRecord]:
        """Execute createWebhook, with the handshake in the middle."""
        request, resource = create_request(given, self._world.resources)
        self._refuse(request)
        pair = (request.resource, request.target)
        self._opening.add(pair)
        try:
            webhook = self._world.new_webhook(resource, request.target, request.filters)
            if not plan.find("skip_handshake"):
                await self._sender.shake_hands(webhook.target, webhook.secret)
            # Deliveries may start now, before the 201.
            webhook.last_success_at = self._world.clock.now()
            self._world.webhooks[webhook.gid] = webhook
        finally:
            self._opening.discard(pair)
        await plan.wait("after_handshake")
        if self._heartbeat == "before":
            self._sender.add_heartbeat(webhook)
            await self._sender.drain(webhook)
        if plan.find("early_event"):
            self._world.apply(WorldChange(resource=webhook.resource.gid, field="name"))
            self._sender.start_due()
            await self._sender.drain(webhook)
        return self._created(webhook, given, plan), webhook

    def _refuse(self, request: CreateWebhookRequest) -> None:
        existing = {(one.resource.gid, one.target) for one in self._world.webhooks.values()} | self._opening
        if (request.resource, request.target) in existing:
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

    def _created(self, webhook: WebhookRecord, given: Input, plan: Plan) -> Answer:
        tree = {"data": _chosen(webhook, given), "X-Hook-Secret": webhook.secret.reveal()}
        if plan.find("no_secret"):
            del tree["X-Hook-Secret"]
        elif (wrong := plan.find("wrong_secret")) is not None:
            tree["X-Hook-Secret"] = self._world.secret(wrong.secret).reveal()
        location = {"Location": f"{self.base_url}/webhooks/{webhook.gid}"}
        return Answer.of(201, tree, pretty=given.pretty, headers=location)

    def _list_page(self, query: Mapping[str, str], given: Input) -> dict[str, Any]:
        """Execute getWebhooks: compact records, in pages if ``limit`` is given."""
        if not query.get("workspace"):
            raise ApiError(400, "workspace: Missing input")
        workspace = find_resource("workspace", query["workspace"], self._world.resources)
        if workspace.resource_type != "workspace":
            raise ApiError(400, f"workspace: Unknown object: {workspace.gid}")
        resource = query.get("resource")
        if resource is not None:
            find_resource("resource", resource, self._world.resources)
        limit = check_limit(query.get("limit"))
        list_of = (workspace.gid, resource or "")
        found = self._matching(workspace.gid, resource, after=self._read_offset(query.get("offset"), list_of))
        if limit is None:
            if len(found) > _LONGEST_LIST:
                raise ApiError(
                    400, "The result is too large. You should use pagination (may require specifying a workspace)!"
                )
            return {"data": [_chosen(one, given, full=False) for one in found]}
        page = found[:limit]
        next_page = None
        if len(found) > limit:
            offset = self._new_offset(int(page[-1].gid), list_of)
            path = str(URL("/webhooks").with_query({**query, "offset": offset}))
            next_page = {"offset": offset, "path": path, "uri": self.base_url + path}
        return {"data": [_chosen(one, given, full=False) for one in page], "next_page": next_page}

    def _matching(self, workspace: str, resource: str | None, *, after: int) -> list[WebhookRecord]:
        return [
            one
            for one in sorted(self._world.webhooks.values(), key=lambda webhook: int(webhook.gid))
            if int(one.gid) > after
            and resource in (None, one.resource.gid)
            and any(above.gid == workspace for above in self._world.lineage(one.resource.gid))
        ]

    def _new_offset(self, after: int, list_of: tuple[str, str]) -> str:
        offset = f"{self._world.rng.getrandbits(256):064x}"
        self._offsets[offset] = _Offset(after, list_of, self._world.clock.now() + _OFFSET_LIFETIME)
        if len(self._offsets) > _MAX_OFFSETS:
            del self._offsets[next(iter(self._offsets))]
        return offset

    def _read_offset(self, text: str | None, list_of: tuple[str, str]) -> int:
        if text is None:
            return 0
        offset = self._offsets.get(text)
        if offset is None or offset.list_of != list_of:
            raise ApiError(400, "offset: Your pagination token is invalid.")
        if self._world.clock.now() >= offset.expires:
            raise ApiError(400, "offset: Your pagination token has expired.")
        return offset.after


def _route(method: str, path: str) -> tuple[str | None, str]:
    """Return the operation id, ``None`` for an unknown route, and the webhook's gid in the path, which may be empty."""
    match path.split("/"):
        case ["", "webhooks"]:
            return _ON_LIST.get(method), ""
        case ["", "webhooks", gid] if gid:
            return _ON_ONE.get(method), gid
        case ["", types, gid] if types.isidentifier() and gid and method == "GET":
            return "readResource", ""
        case _:
            return None, ""


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
