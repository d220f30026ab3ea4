"""What the fake's own tests play with: a target that records what it gets, a caller of the API, and small schemas."""

import asyncio
import hashlib
import hmac
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import attrs
import jsonschema
from aiohttp import web
from yarl import URL

from asana_webhooks.models import Secret
from asana_webhooks.testing import FakeAsana, FakeClock
from asana_webhooks.testing.control import serve_control

PROJECT = "8675309"
WORKSPACE = "1331"


def fixed_clock() -> FakeClock:
    """Return a frozen clock at 2026-01-02T03:04:05.678Z."""
    return FakeClock(start=datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC))


@attrs.frozen
class Got:
    """One request a target got."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_handshake(self) -> bool:
        return "X-Hook-Secret" in self.headers

    @property
    def events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = json.loads(self.body)["events"]
        return events

    def is_signed(self, secret: Secret) -> bool:
        expected = hmac.new(secret.reveal().encode("ascii"), self.body, hashlib.sha256).hexdigest()
        return (self.headers["X-Hook-Signature"], self.headers["X-Asana-Request-Signature"]) == (expected, expected)


class Target:
    """Echoes handshakes and answers 200, unless told otherwise."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: deque[Callable[[], web.Response]] = deque()
        """What to answer to the next requests, handshakes too, instead of 200."""
        self.echo: Callable[[str], str | None] = lambda secret: secret
        self.root = ""
        self.pause = asyncio.Event()
        """While it is cleared, nothing is answered."""
        self.pause.set()
        self._news = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{self.root}/hook/1?mine=a%20b"

    @property
    def deliveries(self) -> list[Got]:
        return [one for one in self.got if not one.is_handshake]

    def fail(self, status: int = 500, text: str = "no", *, times: int = 1) -> None:
        self.answers.extend([lambda: web.Response(status=status, text=text)] * times)

    async def reached(self, requests: int) -> None:
        """Return once that many requests have come."""
        while len(self.got) < requests:
            self._news.clear()
            await self._news.wait()

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append(Got(request.path_qs, request.headers.copy(), await request.read()))
        self._news.set()
        await self.pause.wait()
        if self.answers:
            return self.answers.popleft()()
        secret = request.headers.get("X-Hook-Secret")
        echoed = None if secret is None else self.echo(secret)
        return web.Response(headers={} if echoed is None else {"X-Hook-Secret": echoed})


@attrs.frozen
class Answered:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def tree(self) -> Any:
        return json.loads(self.text)

    @property
    def message(self) -> str:
        jsonschema.validate(self.tree, ERROR_SCHEMA)
        message: str = self.tree["errors"][0]["message"]
        return message


class Caller:
    """Calls the fake over HTTP."""

    def __init__(self, fake: FakeAsana, http: aiohttp.ClientSession) -> None:
        self.fake = fake
        self.http = http

    async def call(
        self, method: str, path: str, *, token: str | None = None, encoded: bool = False, **arguments: Any
    ) -> Answered:
        """Send a request to *path*: below the base URL, or anywhere on the server with ``//`` before it."""
        url = self.fake.url.removesuffix("/api/1.0") + path[1:] if path.startswith("//") else self.fake.url + path
        headers = {"Authorization": f"Bearer {token or self.fake.token}", **arguments.pop("headers", {})}
        where = URL(url, encoded=encoded)
        async with self.http.request(method, where, headers=headers, allow_redirects=False, **arguments) as response:
            return Answered(response.status, response.headers.copy(), await response.text())

    async def create(self, target: str, resource: str = PROJECT, *, query: str = "", **data: Any) -> Answered:
        body = {"data": {"resource": resource, "target": target, **data}}
        return await self.call("POST", f"/webhooks{query}", json=body)

    async def create_gid(self, target: str, resource: str = PROJECT, **data: Any) -> str:
        answered = await self.create(target, resource, **data)
        assert answered.status == 201, answered.text
        gid: str = answered.tree["data"]["gid"]
        return gid


@asynccontextmanager
async def serving(target: Target) -> AsyncIterator[Target]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", target.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    target.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield target
    finally:
        await runner.cleanup()


@asynccontextmanager
async def playing(**options: Any) -> AsyncIterator[tuple[FakeAsana, Caller, Target]]:
    """A running fake, a caller of it, and a target for it. The caller never sends anything twice by itself."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        serving(Target()) as target,
        FakeAsana(**options) as fake,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        serve_control(fake)
        yield fake, Caller(fake, http), target


TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
TIME_OR_NULL = {"anyOf": [TIME, {"type": "null"}]}
GID = {"type": "string", "pattern": "^[0-9]+$"}


def _object(members: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in members if name not in optional]
    return {"type": "object", "properties": members, "required": required, "additionalProperties": False}


ERROR_SCHEMA = _object(
    {
        "errors": {
            "type": "array",
            "minItems": 1,
            "items": _object(
                {
                    "message": {"type": "string", "minLength": 1},
                    "help": {"type": "string", "pattern": "^For more information on API status codes"},
                    "phrase": {"type": "string"},
                    "error": {"const": "invalid_filters_for_larger_scoped_webhooks"},
                },
                optional=("phrase", "error"),
            ),
        }
    }
)
LARGER_SCOPES = (
    "Webhooks for larger scoped resources must have at least one filter and all filters must be in our whitelist."
)
COMPACT = {
    "gid": GID,
    "resource_type": {"const": "webhook"},
    "active": {"type": "boolean"},
    "resource": _object({"gid": GID, "resource_type": {"type": "string"}, "name": {"type": "string"}}),
    "target": {"type": "string", "pattern": "^https?://"},
}
COMPACT_SCHEMA = _object(COMPACT)
TEXT_OR_NULL = {"type": ["string", "null"]}
FILTER_SCHEMA = _object(
    {
        "resource_type": TEXT_OR_NULL,
        "resource_subtype": TEXT_OR_NULL,
        "action": TEXT_OR_NULL,
        "fields": {"type": ["array", "null"], "items": {"type": "string"}},
    }
)
FULL_SCHEMA = _object(
    {
        **COMPACT,
        "created_at": TIME,
        "last_success_at": TIME_OR_NULL,
        "last_failure_at": TIME_OR_NULL,
        "last_failure_content": {"type": "string"},
        "delivery_retry_count": {"type": "integer", "minimum": 0},
        "next_attempt_after": TIME_OR_NULL,
        "failure_deletion_timestamp": TIME_OR_NULL,
        "filters": {"type": "array", "items": FILTER_SCHEMA},
        "is_workspace_webhook": {"type": "boolean"},
    }
)
REFERENCE = _object(
    {"gid": GID, "resource_type": {"type": "string"}, "resource_subtype": {"type": "string"}},
    optional=("resource_subtype",),
)
EVENT_SCHEMA = _object(
    {
        "user": {"anyOf": [_object({"gid": GID, "resource_type": {"const": "user"}}), {"type": "null"}]},
        "created_at": TIME,
        "action": {"enum": ["changed", "added", "removed", "deleted", "undeleted"]},
        "resource": REFERENCE,
        "parent": {"anyOf": [REFERENCE, {"type": "null"}]},
        "change": _object(
            {
                "field": {"type": "string"},
                "action": {"enum": ["changed", "added", "removed"]},
                "new_value": {"type": "object"},
                "added_value": {"type": "object"},
                "removed_value": {"type": "object"},
            },
            optional=("new_value", "added_value", "removed_value"),
        ),
    },
    optional=("change",),
)
