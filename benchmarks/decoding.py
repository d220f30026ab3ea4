"""Decoding what Asana sends, from bytes to values with datetimes: a page of webhooks, and deliveries of events."""

import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from types import GenericAlias, UnionType
from typing import Any, Final, Union, get_args, get_type_hints

import attrs
import msgspec
import orjson
import pydantic

from asana_webhooks import Change, Event, ResourceRef, Webhook, WebhookFilter, wire
from benchmarks.bodies import delivery, page
from benchmarks.harness import OURS, Case, Goal, Round
from benchmarks.processes import apart

TITLE: Final = "Decoding"

BY_HAND: Final = "orjson, constructors by hand"
PYDANTIC: Final = "pydantic"
LIMIT: Final = "msgspec.Struct"

_Decoder = Callable[[bytes], object]


# Ours


def our_page(body: bytes) -> object:
    return wire.decode_webhook_list(body).data


def our_events(body: bytes) -> object:
    return wire.decode_delivery(body).events


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
    )


def page_by_hand(body: bytes) -> object:
    return tuple(_webhook(one) for one in orjson.loads(body)["data"])


def events_by_hand(body: bytes) -> object:
    return tuple(_event(one) for one in orjson.loads(body)["events"])


# Classes of other libraries with the members of ours, but without `ResourceRef.other_members`.
# The values of changes are resources here.


def _mirror(make: Callable[[str, dict[str, tuple[Any, Any]]], Any]) -> dict[str, Any]:
    """Return classes made from their name and their members: a type each, and a default or ``...``."""
    made: dict[Any, Any] = {}
    for model in (ResourceRef, WebhookFilter, Webhook, Change, Event):
        hints = get_type_hints(model)
        members = {name: one for name, one in attrs.fields_dict(model).items() if name != "other_members"}
        defaults = {name: ... if one.default is attrs.NOTHING else one.default for name, one in members.items()}
        hints |= {name: ResourceRef | None for name, hint in hints.items() if hint is Any}
        made[model] = make(model.__name__, {name: (_mirrored(hints[name], made), defaults[name]) for name in members})
    page = make("Page", {"data": (GenericAlias(tuple, (made[Webhook], ...)), ...)})
    return {"page": page, "events": make("Events", {"events": (GenericAlias(tuple, (made[Event], ...)), ...)})}


def _mirrored(hint: Any, made: dict[Any, Any]) -> Any:
    if attrs.has(hint):
        return made.get(hint)
    parts = tuple(_mirrored(part, made) for part in get_args(hint))
    if isinstance(hint, UnionType):
        return Union[parts]  # noqa: UP007 - there is no other way to write it
    return GenericAlias(tuple, parts) if parts else hint


def _struct(name: str, members: dict[str, tuple[Any, Any]]) -> type[msgspec.Struct]:
    fields = [(one, *(part for part in parts if part is not ...)) for one, parts in members.items()]
    return msgspec.defstruct(name, fields, gc=False)


def _model(name: str, members: dict[str, Any]) -> type[pydantic.BaseModel]:
    return pydantic.create_model(name, **members)


_MODELS: Final = _mirror(_model)
_STRUCTS: Final = {name: msgspec.json.Decoder(struct) for name, struct in _mirror(_struct).items()}


def page_by_pydantic(body: bytes) -> object:
    return _MODELS["page"].model_validate_json(body).data


def events_by_pydantic(body: bytes) -> object:
    return _MODELS["events"].model_validate_json(body).events


def page_of_structs(body: bytes) -> object:
    return _STRUCTS["page"].decode(body).data


def events_of_structs(body: bytes) -> object:
    return _STRUCTS["events"].decode(body).events


# The comparison


def _plain(value: Any) -> Any:
    """Return values of any kind as dicts and lists, without the other members, which only some decoders read."""
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
    return {name: _plain(member) for name, member in members.items() if name != "other_members"}


def decode(decoder: _Decoder, body: bytes, objects: int, times: int) -> Round:
    """Return how many nanoseconds an object takes, in the fastest of ten runs, and what it came to."""
    fastest = math.inf
    for _ in range(10):
        began = time.process_time()
        for _ in range(times):
            decoded = decoder(body)
        fastest = min(fastest, time.process_time() - began)
    return Round(value=fastest / times / objects * 1e9, work=_plain(decoded))


PAGES: Final[dict[str, _Decoder]] = {
    OURS: our_page,
    BY_HAND: page_by_hand,
    PYDANTIC: page_by_pydantic,
    LIMIT: page_of_structs,
}
EVENTS: Final[dict[str, _Decoder]] = {
    OURS: our_events,
    BY_HAND: events_by_hand,
    PYDANTIC: events_by_pydantic,
    LIMIT: events_of_structs,
}


def cases(*, quick: bool) -> Iterator[Case]:
    """Compare for a page of webhooks, and for deliveries of several lengths."""
    bodies = [
        ("a page of 100 webhooks", page(0, 100, "eyJ"), 100, PAGES, 4.0),
        ("a page of 100 webhooks, no filters alike", page(0, 100, "eyJ", own_filters=True), 100, PAGES, 4.0),
        *((f"a delivery of {count:,} events", delivery(count), count, EVENTS, 4.6) for count in (1, 20, 100, 1_000)),
    ]
    with apart(quick) as own:
        for name, body, objects, decoders, at_most in bodies:
            times = (10 if quick else 2_000) // objects or 1
            yield Case(
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
