"""The REST side: reads requests, lets the operations answer them, and spoils answers as scripted."""

import socket
import struct
from collections.abc import Callable

from aiohttp import web

from asana_webhooks.testing.activity import Activity
from asana_webhooks.testing.answers import STATUS_MESSAGES, Answer, ApiError, error_answer
from asana_webhooks.testing.faults import TOKEN_REQUEST, Fault
from asana_webhooks.testing.oauth import TOKEN_PATH, TokenEndpoint
from asana_webhooks.testing.operations import Operations
from asana_webhooks.testing.records import RequestRecord, WebhookRecord
from asana_webhooks.testing.script import FaultScript, Plan
from asana_webhooks.testing.texts import merge_headers
from asana_webhooks.testing.validation import Input, legible, read_input

__all__ = ["BASE_PATH", "Api", "route"]

BASE_PATH = "/api/1.0"

_ON_LIST = {"GET": "getWebhooks", "POST": "createWebhook"}
_ON_ONE = {"GET": "getWebhook", "PUT": "updateWebhook", "DELETE": "deleteWebhook"}
# "6 sad squid snuggle softly" is the example of https://developers.asana.com/docs/errors
_PHRASE = "6 sad squid snuggle softly"


def route(method: str, path: str) -> tuple[str | None, str]:
    """The operation id of a request below the base URL, ``None`` for no such route; and the gid in its path."""
    match path.split("/"):
        case ["", "webhooks"]:
            return _ON_LIST.get(method), ""
        case ["", "webhooks", gid] if gid:
            return _ON_ONE.get(method), gid
        case _:
            return None, ""


class Api:
    """Answers REST requests, and those for tokens.

    Args:
        operations: who does what is asked.
        tokens: who issues tokens.
        faults: what is to go wrong.
        activity: where requests under way are counted.
        records: where requests are noted.
        is_good: tells whether an access token is good now.
        base_url: tells the URL the server is reached by.
        answered: told when a 201 for a webhook has been sent.
    """

    def __init__(
        self,
        *,
        operations: Operations,
        tokens: TokenEndpoint,
        faults: FaultScript,
        activity: Activity,
        records: list[RequestRecord],
        is_good: Callable[[str], bool],
        base_url: Callable[[], str],
        answered: Callable[[WebhookRecord], None],
    ) -> None:
        self._operations = operations
        self._tokens = tokens
        self._faults = faults
        self._activity = activity
        self._records = records
        self._is_good = is_good
        self._base_url = base_url
        self._answered = answered

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        path = request.path.removeprefix(BASE_PATH)
        asks_token = (request.method, request.path) == ("POST", TOKEN_PATH)
        operation, gid = (TOKEN_REQUEST, "") if asks_token else route(request.method, path)
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
        self._records.append(record)
        with self._activity.under_way():
            # Now, while the client is there: what it asks for is done even if it does not wait for the answer.
            body = await request.read()
            if request.path != TOKEN_PATH:  # what is sent there is secret
                record.body = legible(request.content_type, body)
            plan = Plan() if operation is None else self._faults.take(operation, webhook=gid)
            await plan.wait("before")
            return await self._respond(request, body, record, plan)

    async def _respond(
        self, request: web.Request, body: bytes, record: RequestRecord, plan: Plan
    ) -> web.StreamResponse:
        fault, do = plan.fault, plan.fault.do if plan.fault else None
        if do == "reset":
            return cut(request, reset=True)
        created = None
        if fault is not None and do == "answer" and not fault.executed:
            answer = scripted_answer(fault)
        else:
            answer, created = await self._answer(request, body, record, plan)
            answer = scripted_answer(fault) if fault is not None and do == "answer" else answer
        await plan.wait("before_answer")
        if do == "lose_answer":
            response: web.StreamResponse = cut(request, reset=False)
        else:
            record.status = answer.status
            response = await send(request, answer, size=fault.size if fault and do == "truncate" else None)
        if created is not None:
            self._answered(created)
        return response

    async def _answer(
        self, request: web.Request, body: bytes, record: RequestRecord, plan: Plan
    ) -> tuple[Answer, WebhookRecord | None]:
        if record.operation == TOKEN_REQUEST:
            return self._tokens.answer(request.content_type, body), None
        try:
            self._admit(request, record)
            # GET and DELETE have no input in their bodies; the official Python client sends "{}" with DELETE.
            used = body if request.method in ("POST", "PUT") else b""
            given = read_input(content_type=request.content_type, body=used, query=request.query)
            return await self._perform(record, given, plan)
        except ApiError as refusal:
            return error_answer(refusal.status, refusal.message), None

    def _admit(self, request: web.Request, record: RequestRecord) -> None:
        if record.operation is None:
            raise ApiError(404, STATUS_MESSAGES[404])
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not self._is_good(token):
            raise ApiError(401, STATUS_MESSAGES[401])

    async def _perform(self, record: RequestRecord, given: Input, plan: Plan) -> tuple[Answer, WebhookRecord | None]:
        gid = record.webhook_gid
        match record.operation:
            case "createWebhook":
                return await self._operations.create(given, plan, self._base_url())
            case "getWebhooks":
                return self._operations.list_page(record.query, given, self._base_url()), None
            case "getWebhook":
                return self._operations.get(gid, given), None
            case "updateWebhook":
                return self._operations.update(gid, given), None
            case _:
                return self._operations.delete(gid, given), None


def scripted_answer(fault: Fault) -> Answer:
    """The answer a fault wants instead of the true one."""
    retry_after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    headers = merge_headers({"Content-Type": fault.content_type}, fault.headers, retry_after)
    if fault.body is None and fault.status >= 400:
        usual = _PHRASE if fault.status == 500 else None
        return error_answer(
            fault.status,
            STATUS_MESSAGES.get(fault.status, "Error") if fault.message is None else fault.message,
            phrase=usual if fault.phrase is None else fault.phrase,
            headers=headers,
        )
    body = (fault.body.encode() if isinstance(fault.body, str) else fault.body) or b""
    return Answer(status=fault.status, body=body, headers=headers)


async def send(request: web.Request, answer: Answer, *, size: int | None = None) -> web.StreamResponse:
    """Send an answer, or only the first *size* bytes of its body, and return once it is on its way."""
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
        # The client has gone; what it asked for is done all the same.
        return web.Response()
    cut(request, reset=False)
    return response


def cut(request: web.Request, *, reset: bool) -> web.Response:
    """End the connection: close it, or *reset* it so that the client sees an error. The response is never sent."""
    transport = request.transport
    if transport is not None:
        if reset:
            # https://man7.org/linux/man-pages/man7/socket.7.html: lingering for no time makes close send a reset
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
    return web.Response()
