"""JSON bytes to models and back: the only place that parses or writes Asana's JSON.

One cattrs converter with msgspec as its engine. Types are strict (a number is never taken for a text), unknown members
are skipped, and an error says where in the JSON it is. Whatever a decoder can raise becomes `PayloadError`.

Webhooks and events, which come often, are first read into msgspec Structs with the members of the models, and then made
into models: two steps that take half the time of one. Straight into attrs classes, msgspec raises and drops an
AttributeError for every member the JSON leaves out, and events leave out most of theirs (100 of them: 184 instead of
310 us on CPython 3.11, 188 instead of 600 us on 3.13). What comes rarely is read into dicts and lists first, and so is
whatever cannot be read the fast way: a member that is named twice, or an error that must be located.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final, TypeVar

import attrs
import msgspec
from attrs import frozen
from cattrs.preconf.msgspec import MsgspecJsonConverter, make_converter

from asana_webhooks.errors import PayloadError
from asana_webhooks.models import CreatedWebhook, Event, Secret, Webhook, WebhookFilter

__all__ = [
    "ErrorDetail",
    "TokenAnswer",
    "TokenRefusal",
    "WebhookList",
    "decode",
    "decode_created_webhook",
    "decode_error_details",
    "decode_events",
    "decode_token_answer",
    "decode_token_refusal",
    "decode_webhook",
    "decode_webhook_list",
    "encode",
    "parse",
    "structure",
]

T = TypeVar("T")

_UNREADABLE: Final = (ValueError, RecursionError, msgspec.MsgspecError)
"""Whatever msgspec raises."""


@frozen(kw_only=True)
class ErrorDetail:
    """One entry of an error answer. Source: https://developers.asana.com/docs/errors"""

    message: str | None = None
    help: str | None = None
    phrase: str | None = None


@frozen(kw_only=True)
class NextPage:
    """How to go on in a list. Its ``path`` and ``uri`` are left out on purpose: only the offset is ever used."""

    offset: str


@frozen(kw_only=True)
class WebhookList:
    """A page of webhooks. Source: https://developers.asana.com/reference/getwebhooks"""

    data: tuple[Webhook, ...]
    next_page: NextPage | None = None


@frozen(kw_only=True)
class TokenAnswer:
    """What the token endpoint issues. Source: https://developers.asana.com/docs/oauth"""

    access_token: Secret
    refresh_token: Secret | None = None
    """Only if there is a new one."""
    expires_in: float | None = None
    """Seconds."""


@frozen(kw_only=True)
class TokenRefusal:
    """Why the token endpoint issues nothing. Source: https://www.rfc-editor.org/rfc/rfc6749#section-5.2"""

    error: str
    error_description: str | None = None


@frozen(kw_only=True)
class _TokenAnswer:
    access_token: str
    refresh_token: str | None = None
    expires_in: float | None = None


@frozen(kw_only=True)
class _WebhookAnswer:
    data: Webhook


@frozen(kw_only=True)
class _ErrorAnswer:
    errors: tuple[ErrorDetail, ...] = ()


@frozen(kw_only=True)
class _EventsBody:
    events: tuple[Event, ...]


# The Structs below have the members of the models of the same names; see the top of this file.


class _Struct(msgspec.Struct, gc=False):  # they live for a moment, and in no cycles: 7 to 20 % less for 1,000 events
    pass


class _ResourceRefStruct(_Struct):
    gid: str
    resource_type: str | None = None
    resource_subtype: str | None = None
    name: str | None = None
    enum_value: "_ResourceRefStruct | None" = None


class _WebhookStruct(_Struct):
    gid: str
    resource_type: str | None = None
    active: bool | None = None
    resource: _ResourceRefStruct | None = None
    target: str | None = None
    created_at: datetime | None = None
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_failure_content: str | None = None
    delivery_retry_count: int | None = None
    next_attempt_after: datetime | None = None
    failure_deletion_timestamp: datetime | None = None
    filters: msgspec.Raw = msgspec.Raw(b"null")  # the JSON itself; replaced by models in `_make_filters`
    is_workspace_webhook: bool | None = None


class _ChangeStruct(_Struct):
    field: str
    action: str | None = None
    new_value: _ResourceRefStruct | None = None
    added_value: _ResourceRefStruct | None = None
    removed_value: _ResourceRefStruct | None = None


class _EventStruct(_Struct):
    action: str
    resource: _ResourceRefStruct
    created_at: datetime
    user: _ResourceRefStruct | None = None
    parent: _ResourceRefStruct | None = None
    change: _ChangeStruct | None = None
    type: str | None = None
    registration: Any = ""  # set below, whatever the JSON may hold under this name


class _WebhookListStruct(_Struct):
    data: tuple[_WebhookStruct, ...]
    next_page: NextPage | None = None


class _EventsBodyStruct(_Struct):
    events: tuple[_EventStruct, ...]


def _structure_attrs(cls: type[T]) -> Callable[[Any, Any], T]:
    # msgspec checks the types and names the path of what is wrong; cattrs alone turns null into the text 'None'.
    # from_attributes is for the Structs.
    def convert(tree: Any, _: Any) -> T:
        return msgspec.convert(tree, cls, from_attributes=True)

    return convert


def _make_converter() -> MsgspecJsonConverter:
    converter = make_converter()
    converter.register_structure_hook_factory(attrs.has, _structure_attrs)
    return converter


_converter: Final = _make_converter()


def _maker(cls: type[T]) -> Callable[[Any, type[T]], T]:
    return _converter.get_structure_hook(cls)


# Made once, for finding them anew takes a tenth of the time for a delivery of one event.
# Straight into the models, for there msgspec.convert would take longer to begin than to work.
_read_webhook: Final = msgspec.json.Decoder(_WebhookAnswer).decode
_read_page: Final = msgspec.json.Decoder(_WebhookListStruct).decode
_read_filters: Final = msgspec.json.Decoder(tuple[WebhookFilter, ...] | None).decode
_make_page: Final = _maker(WebhookList)
_read_events: Final = msgspec.json.Decoder(_EventsBodyStruct).decode
_make_events: Final = _maker(_EventsBody)


def _payload_error(problem: Exception) -> PayloadError:
    if isinstance(problem, msgspec.ValidationError):
        text, _, path = str(problem).partition(" - at `")
        return PayloadError(problem=text, path=path.rstrip("`") or "$")
    if isinstance(problem, RecursionError):
        return PayloadError(problem="nested too deeply", malformed=True)
    if isinstance(problem, UnicodeDecodeError):  # its own text quotes the bytes
        return PayloadError(problem="not UTF-8", malformed=True)
    return PayloadError(problem="not JSON, or cut off", malformed=True)


def parse(body: bytes) -> Any:
    """Read *body* as JSON of whatever shape.

    Raises:
        PayloadError: it is no JSON.
    """
    try:
        return _converter.loads(body, Any)
    except _UNREADABLE as problem:
        raise _payload_error(problem) from None


def structure(tree: Any, cls: type[T]) -> T:
    """Make an object of the attrs class *cls* from what `parse` returned.

    Raises:
        PayloadError: *tree* does not have the shape of *cls*.
    """
    try:
        return _converter.structure(tree, cls)
    except _UNREADABLE as problem:
        raise _payload_error(problem) from None


def encode(value: Any) -> bytes:
    """Write models, requests, or plain lists and dicts of them as JSON, compact and in UTF-8."""
    return _converter.dumps(value)


def decode(body: bytes, cls: type[T]) -> T:
    """Read *body* as one object of the attrs class *cls*.

    Raises:
        PayloadError: *body* is no JSON, or does not have the shape of *cls*.
    """
    return structure(parse(body), cls)


def decode_webhook(body: bytes) -> Webhook:
    """Read ``{"data": {…}}``."""
    try:
        # Here and below as text: of bytes, msgspec checks the encoding of those members alone that it keeps.
        return _read_webhook(body.decode()).data
    except _UNREADABLE:
        return decode(body, _WebhookAnswer).data


def decode_webhook_list(body: bytes) -> WebhookList:
    """Read ``{"data": […], "next_page": …}``."""
    try:
        page = _read_page(body.decode())
        _make_filters(page.data)
        return _make_page(page, WebhookList)
    except _UNREADABLE:
        return decode(body, WebhookList)


def _make_filters(webhooks: Iterable[Any]) -> None:
    # Filters are half of a page's objects, and an app mostly has the same for all its webhooks: to make equal ones
    # once takes a fifth off the time of such a page, and adds a sixth to others, those without filters included.
    made: dict[bytes, tuple[WebhookFilter, ...] | None] = {}
    for webhook in webhooks:
        written = bytes(webhook.filters)
        if written not in made:
            made[written] = _read_filters(written)
        webhook.filters = made[written]


def decode_created_webhook(body: bytes) -> CreatedWebhook:
    """Read the answer of createWebhook, with the secret that stands beside ``data``."""
    tree = parse(body)
    webhook = structure(tree, _WebhookAnswer).data
    secret = tree.get("X-Hook-Secret")
    if secret is not None and not isinstance(secret, str):
        raise PayloadError(problem="Expected `str`", path="$.X-Hook-Secret")
    return CreatedWebhook(webhook=webhook, secret=Secret(secret) if secret else None)


def decode_error_details(body: bytes) -> tuple[ErrorDetail, ...]:
    """Read Asana's error envelope ``{"errors": […]}``."""
    return decode(body, _ErrorAnswer).errors


def decode_token_answer(body: bytes) -> TokenAnswer:
    """Read the answer of the token endpoint, which is in no envelope."""
    answer = decode(body, _TokenAnswer)
    return TokenAnswer(
        access_token=Secret(answer.access_token),
        refresh_token=Secret(answer.refresh_token) if answer.refresh_token else None,
        expires_in=answer.expires_in,
    )


def decode_token_refusal(body: bytes) -> TokenRefusal:
    """Read an error of the token endpoint, which is not in Asana's usual envelope."""
    return decode(body, TokenRefusal)


def decode_events(body: bytes, registration: str = "") -> tuple[Event, ...]:
    """Read the events of a delivery, in the order Asana sent them.

    Args:
        body: the raw bytes of the delivery, already verified.
        registration: the registration it came in for; part of each event's fingerprint.

    Raises:
        PayloadError: *body* is not what Asana documents for a delivery.
    """
    try:
        read = _read_events(body.decode())
        for event in read.events:
            event.registration = registration
        return _make_events(read, _EventsBody).events
    except _UNREADABLE:
        return _decode_strange_events(body, registration)


def _decode_strange_events(body: bytes, registration: str) -> tuple[Event, ...]:
    tree = parse(body)
    events = tree.get("events") if isinstance(tree, dict) else None
    for event in events if isinstance(events, list) else ():
        if isinstance(event, dict):
            event["registration"] = registration
    return structure(tree, _EventsBody).events
