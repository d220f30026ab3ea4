"""Control the fake over HTTP, for programs in any language. Everything else they need is Asana's own API.

======  =====================  ================================================================================
POST    ``/_fake/resources``   ``{"resource_type": "task"}``, the arguments of `FakeAsana.add_resource`; 201
POST    ``/_fake/apps``        ``{"scopes": ["webhooks:read"]}``, the arguments of `FakeAsana.register_app`; 201
POST    ``/_fake/changes``     ``{"resource": "8675309", "field": "name"}``, the members of `FakeAsana.change`; 202
GET     ``/_fake/webhooks``    every webhook, with its secret; 200
POST    ``/_fake/webhooks``    ``{"gid": "43", "active": false}``: set whether a webhook is active; 200
GET     ``/_fake/requests``    every `RequestRecord`, without access tokens; 200
GET     ``/_fake/deliveries``  every delivery attempt; 200
POST    ``/_fake/faults``      one `Fault` or a list of them; 202
POST    ``/_fake/clock``       ``{"advance": 28800}``: seconds; 200 once everything due is done
POST    ``/_fake/settle``      200 once nothing is due or in flight, except held requests
======  =====================  ================================================================================

No token is needed. Invalid input is answered with 400 and the reason, in Asana's error envelope.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import attrs
from aiohttp import web

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError, PayloadError
from asana_webhooks.testing.clock import format_time
from asana_webhooks.testing.fake import FakeAsana
from asana_webhooks.testing.faults import Fault
from asana_webhooks.testing.records import DeliveryRecord, RequestRecord, WebhookRecord
from asana_webhooks.testing.rest import Answer, error_answer, send
from asana_webhooks.testing.world import DEFAULT_USER, WorldChange

__all__ = ["serve_control"]

_PATH: Final = "/_fake"
_Kind = TypeVar("_Kind")


@attrs.frozen(kw_only=True)
class _NewResource:
    """The arguments of `FakeAsana.add_resource`."""

    resource_type: str
    gid: str | None = None
    parents: tuple[str, ...] | None = None
    name: str | None = None
    resource_subtype: str | None = None
    accessible: bool = True
    archived: bool = False


@attrs.frozen(kw_only=True)
class _NewApp:
    """The arguments of `FakeAsana.register_app`."""

    client_id: str = "12345"
    user: str = DEFAULT_USER
    scopes: tuple[str, ...] | None = None
    rotate: bool = False


@attrs.frozen(kw_only=True)
class _WebhookState:
    """A webhook, and whether it is active."""

    gid: str
    active: bool


def serve_control(fake: FakeAsana) -> None:
    """Serve the control API of *fake* below ``/_fake``, beside Asana's API."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            answer = await _answer(fake, request.method, request.path, await request.read())
        except ConfigurationError as problem:
            answer = error_answer(400, str(problem))
        return await send(request, answer)

    fake.serve_also(_PATH, handle)


async def _answer(fake: FakeAsana, method: str, path: str, body: bytes) -> Answer:
    tree: Any
    match method, path.removeprefix(_PATH):
        case "POST", "/resources":
            new = _read(body, _NewResource, "a resource")
            status, tree = 201, {"gid": fake.add_resource(**attrs.asdict(new, recurse=False))}
        case "POST", "/apps":
            app = fake.register_app(**attrs.asdict(_read(body, _NewApp, "an app"), recurse=False))
            status, tree = 201, attrs.asdict(app) | {"token_url": fake.token_url}
        case "POST", "/changes":
            change = _read(body, WorldChange, "a change")
            status, tree = 202, fake.change(**attrs.asdict(change, recurse=False))
        case "GET", "/webhooks" | "/requests" | "/deliveries" as records:
            status, tree = 200, {"data": _records(fake, records)}
        case "POST", "/webhooks":
            state = _read(body, _WebhookState, "a webhook")
            fake.webhook(state.gid).active = state.active
            status, tree = 200, attrs.asdict(state)
        case "POST", "/faults":
            faults = _read_faults(body)
            fake.script(*faults)
            status, tree = 202, {"added": len(faults)}
        case "POST", "/clock":
            await fake.advance(_read_advance(body))
            status, tree = 200, {"now": format_time(fake.clock.now())}
        case "POST", "/settle":
            await fake.settle()
            status, tree = 200, {"now": format_time(fake.clock.now())}
        case _:
            return error_answer(404, f"There is no {method} {path}")
    return Answer.of(status, tree)


def _records(fake: FakeAsana, path: str) -> list[Mapping[str, Any]]:
    if path == "/webhooks":
        return [_webhook(one) for one in fake.webhooks.values()]
    if path == "/requests":
        return [_request(one) for one in fake.requests]
    return [_delivery(one) for one in fake.deliveries]


def _json(body: bytes) -> Any:
    try:
        return wire.parse(body)
    except PayloadError:
        raise ConfigurationError("the body is not JSON") from None


def _object(tree: Any, kind: type, what: str) -> dict[str, Any]:
    """Check that *tree* is an object with members of *kind* only."""
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{what} must be a JSON object")
    names = [attribute.name for attribute in attrs.fields(kind)]
    unknown = [name for name in tree if name not in names]
    if unknown:
        raise ConfigurationError(f"{what} has no member {unknown[0]!r:.80}; its members are: {', '.join(names)}")
    return tree


def _read(body: bytes, kind: type[_Kind], what: str) -> _Kind:
    try:
        return wire.structure(_object(_json(body), kind, what), kind)
    except PayloadError as problem:
        raise ConfigurationError(f"{what} is invalid: {problem}") from None


def _read_faults(body: bytes) -> list[Fault]:
    """Read one fault or a list of them."""
    tree = _json(body)
    members = [_object(one, Fault, "a fault") for one in (tree if isinstance(tree, list) else [tree])]
    if any("at" not in one for one in members):
        raise ConfigurationError("a fault needs the member 'at': the requests it applies to")
    return [Fault(**one) for one in members]


def _read_advance(body: bytes) -> float:
    tree = _json(body)
    seconds = tree.get("advance") if isinstance(tree, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ConfigurationError('the body must be {"advance": seconds}, with seconds as a number')
    return seconds


def _webhook(webhook: WebhookRecord) -> Mapping[str, Any]:
    return webhook.to_json() | {"secret": webhook.secret.reveal()}


def _delivery(delivery: DeliveryRecord) -> Mapping[str, Any]:
    tree = attrs.asdict(delivery)
    return tree | {"sent_at": format_time(delivery.sent_at), "body": delivery.body.decode(errors="replace")}


def _request(request: RequestRecord) -> Mapping[str, Any]:
    # Headers need not be valid UTF-8.
    headers = {name: text.encode(errors="replace").decode() for name, text in request.headers.items()}
    return attrs.asdict(request) | {"headers": headers}
