"""Decoding what Asana sends, from bytes to values with datetimes: a page of webhooks, and deliveries of events."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any, Final

import attrs
import msgspec
import orjson
import pydantic
from cattrs import Converter

from asana_webhooks import Change, Event, ResourceRef, Webhook, WebhookFilter, shapes, wire
from benchmarks.bodies import delivery, page
from benchmarks.harness import OURS, Case, Goal, Round, Size
from benchmarks.processes import apart

__all__ = ["TITLE", "cases"]

TITLE: Final = "Decoding"

BY_HAND: Final = "orjson, constructors by hand"
PYDANTIC: Final = "pydantic"
LIMIT: Final = "msgspec.Struct"

REGISTRATION: Final = "0123456789abcdef"

_Decoder = Callable[[bytes], object]


# Ours


def our_page(body: bytes) -> object:
    return wire.decode_webhook_list(body).data


def our_events(body: bytes) -> object:
    return wire.decode_events(body, REGISTRATION)


# The same attrs classes, without the checks, as one would write it by hand


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _ref(tree: dict[str, Any] | None) -> ResourceRef | None:
    return None if tree is None else _sure_ref(tree)


def _sure_ref(tree: dict[str, Any]) -> ResourceRef:
    return ResourceRef(
        gid=tree["gid"],
        resource_type=tree.get("resource_type"),
        resource_subtype=tree.get("resource_subtype"),
        name=tree.get("name"),
        enum_value=_ref(tree.get("enum_value")),
    )


def _filter(tree: dict[str, Any]) -> WebhookFilter:
    fields = tree.get("fields")
    return WebhookFilter(
        resource_type=tree.get("resource_type"),
        resource_subtype=tree.get("resource_subtype"),
        action=tree.get("action"),
        fields=None if fields is None else tuple(fields),
    )


def _webhook(tree: dict[str, Any]) -> Webhook:
    filters = tree.get("filters")
    return Webhook(
        gid=tree["gid"],
        resource_type=tree.get("resource_type"),
        active=tree.get("active"),
        resource=_ref(tree.get("resource")),
        target=tree.get("target"),
        created_at=_time(tree.get("created_at")),
        last_success_at=_time(tree.get("last_success_at")),
        last_failure_at=_time(tree.get("last_failure_at")),
        last_failure_content=tree.get("last_failure_content"),
        delivery_retry_count=tree.get("delivery_retry_count"),
        next_attempt_after=_time(tree.get("next_attempt_after")),
        failure_deletion_timestamp=_time(tree.get("failure_deletion_timestamp")),
        filters=None if filters is None else tuple(_filter(one) for one in filters),
        is_workspace_webhook=tree.get("is_workspace_webhook"),
    )


def _change(tree: dict[str, Any] | None) -> Change | None:
    if tree is None:
        return None
    return Change(
        field=tree["field"],
        action=tree.get("action"),
        new_value=_ref(tree.get("new_value")),
        added_value=_ref(tree.get("added_value")),
        removed_value=_ref(tree.get("removed_value")),
    )


def _event(tree: dict[str, Any]) -> Event:
    return Event(
        action=tree["action"],
        resource=_sure_ref(tree["resource"]),
        created_at=datetime.fromisoformat(tree["created_at"]),
        user=_ref(tree.get("user")),
        parent=_ref(tree.get("parent")),
        change=_change(tree.get("change")),
        type=tree.get("type"),
        registration=REGISTRATION,
    )


def page_by_hand(body: bytes) -> object:
    return tuple(_webhook(one) for one in orjson.loads(body)["data"])


def events_by_hand(body: bytes) -> object:
    return tuple(_event(one) for one in orjson.loads(body)["events"])


# The same attrs classes, by cattrs as it comes


@cache
def _cattrs() -> Converter:
    converter = Converter(detailed_validation=False)  # it is faster so
    converter.register_structure_hook(datetime, lambda text, _: datetime.fromisoformat(text))
    return converter


def page_by_cattrs(body: bytes) -> object:
    return _cattrs().structure(orjson.loads(body)["data"], tuple[Webhook, ...])


def events_by_cattrs(body: bytes) -> object:
    return _cattrs().structure(orjson.loads(body)["events"], tuple[Event, ...])


# Pydantic's own classes, with the same members


class PydanticRef(pydantic.BaseModel):
    gid: str
    resource_type: str | None = None
    resource_subtype: str | None = None
    name: str | None = None
    enum_value: "PydanticRef | None" = None


class PydanticFilter(pydantic.BaseModel):
    resource_type: str | None = None
    resource_subtype: str | None = None
    action: str | None = None
    fields: tuple[str, ...] | None = None


class PydanticWebhook(pydantic.BaseModel):
    gid: str
    resource_type: str | None = None
    active: bool | None = None
    resource: PydanticRef | None = None
    target: str | None = None
    created_at: datetime | None = None
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_failure_content: str | None = None
    delivery_retry_count: int | None = None
    next_attempt_after: datetime | None = None
    failure_deletion_timestamp: datetime | None = None
    filters: tuple[PydanticFilter, ...] | None = None
    is_workspace_webhook: bool | None = None


class PydanticChange(pydantic.BaseModel):
    field: str
    action: str | None = None
    new_value: PydanticRef | None = None
    added_value: PydanticRef | None = None
    removed_value: PydanticRef | None = None


class PydanticEvent(pydantic.BaseModel):
    action: str
    resource: PydanticRef
    created_at: datetime
    user: PydanticRef | None = None
    parent: PydanticRef | None = None
    change: PydanticChange | None = None
    type: str | None = None
    registration: str = ""


class PydanticPage(pydantic.BaseModel):
    data: tuple[PydanticWebhook, ...]


class PydanticEvents(pydantic.BaseModel):
    events: tuple[PydanticEvent, ...]


def page_by_pydantic(body: bytes) -> object:
    return PydanticPage.model_validate_json(body).data


def events_by_pydantic(body: bytes) -> object:
    return PydanticEvents.model_validate_json(body).events


# The limit: mutable Structs, whose encoding is not checked everywhere


class _StructFilter(msgspec.Struct, gc=False):
    resource_type: str | None = None
    resource_subtype: str | None = None
    action: str | None = None
    fields: tuple[str, ...] | None = None


class _StructWebhook(msgspec.Struct, gc=False):
    gid: str
    resource_type: str | None = None
    active: bool | None = None
    resource: shapes.ResourceRef | None = None
    target: str | None = None
    created_at: datetime | None = None
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_failure_content: str | None = None
    delivery_retry_count: int | None = None
    next_attempt_after: datetime | None = None
    failure_deletion_timestamp: datetime | None = None
    filters: tuple[_StructFilter, ...] | None = None
    is_workspace_webhook: bool | None = None


class _StructPage(msgspec.Struct, gc=False):
    data: tuple[_StructWebhook, ...]
    next_page: shapes.NextPage | None = None


_page: Final = msgspec.json.Decoder(_StructPage)
_events: Final = msgspec.json.Decoder(shapes.EventsBody)


def page_of_structs(body: bytes) -> object:
    return _page.decode(body).data


def events_of_structs(body: bytes) -> object:
    return _events.decode(body).events


# The comparison


def _plain(value: Any) -> Any:
    """Return values of any kind as dicts and lists, without the registration, which not everybody sets."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if attrs.has(type(value)):
        members = {one.name: getattr(value, one.name) for one in attrs.fields(type(value))}
    elif isinstance(value, msgspec.Struct):
        members = msgspec.structs.asdict(value)
    elif isinstance(value, pydantic.BaseModel):
        members = dict(value)
    else:
        return value
    return {name: _plain(member) for name, member in members.items() if name != "registration"}


def decode(decoder: _Decoder, body: bytes, objects: int, times: int) -> Round:
    """Return how many nanoseconds an object takes, in the fastest of ten runs, and what it came to."""
    fastest = math.inf
    for _ in range(10):
        began = time.process_time()
        for _ in range(times):
            decoded = decoder(body)
        fastest = min(fastest, time.process_time() - began)
    return Round(value=fastest / times / objects * 1e9, work=_plain(decoded))


@contextmanager
def cases(size: Size) -> Iterator[Iterator[Case]]:
    """Compare for one page, and for deliveries of several lengths."""
    pages: dict[str, _Decoder] = {
        OURS: our_page,
        BY_HAND: page_by_hand,
        "orjson, cattrs as it comes": page_by_cattrs,
        PYDANTIC: page_by_pydantic,
        LIMIT: page_of_structs,
    }
    events: dict[str, _Decoder] = {
        OURS: our_events,
        BY_HAND: events_by_hand,
        "orjson, cattrs as it comes": events_by_cattrs,
        PYDANTIC: events_by_pydantic,
        LIMIT: events_of_structs,
    }
    with apart(size) as own:

        def case(name: str, body: bytes, objects: int, decoders: dict[str, _Decoder], at_most: float) -> Case:
            times = size.of(2_000, quick=10) // objects or 1
            return Case(
                name=name,
                unit="ns of CPU per object",
                competitors={key: own(decode, one, body, objects, times) for key, one in decoders.items()},
                reference=LIMIT,
                rounds=5,
                goals=[
                    Goal(against=BY_HAND, at_most=1),
                    Goal(against=PYDANTIC, at_most=1),
                    Goal(against=LIMIT, at_most=at_most),
                ],
            )

        def all_cases() -> Iterator[Case]:
            yield case("a page of 100 webhooks", page(0, 100, "eyJ"), 100, pages, 4)
            alike_in_nothing = page(0, 100, "eyJ", own_filters=True)
            yield case("a page of 100 webhooks, no filters alike", alike_in_nothing, 100, pages, 4)
            for count in (1, 20, 100, 1_000):
                yield case(f"a delivery of {count:,} events", delivery(count), count, events, 4.6)

        yield all_cases()
