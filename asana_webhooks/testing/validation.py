"""Reads the input of requests, and refuses invalid input with Asana's messages.

Sources: https://developers.asana.com/docs/errors, https://developers.asana.com/docs/inputoutput-options and
https://developers.asana.com/reference/webhooks
"""

import re
from collections.abc import Collection, Mapping
from itertools import islice, product
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from attrs import frozen

from asana_webhooks import wire
from asana_webhooks.client.requests import CreateWebhookRequest
from asana_webhooks.errors import ConfigurationError, PayloadError
from asana_webhooks.models import WebhookFilter
from asana_webhooks.testing.records import Resource
from asana_webhooks.testing.world import ACTIONS, FILTERED_TYPES

__all__ = [
    "ApiError",
    "Input",
    "create_request",
    "find_in_path",
    "find_resource",
    "new_filters",
    "not_recognized",
    "parse_body",
    "read_input",
    "select",
]

_FORM = "application/x-www-form-urlencoded"
_TYPE_NAMES = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object", type(None): "null"}
_MAX_PATHS: Final = 1000
"""More than any record has members; bounds the work for a hostile ``opt_fields``."""

_Found = TypeVar("_Found")

Path = tuple[str, ...]
"""The names that lead to one member of a record, from the outside in."""


# https://developers.asana.com/docs/webhooks-guide: what webhooks on workspaces and teams may be told
_WHITELIST: Final[Mapping[str, Collection[str]]] = {
    "project": ACTIONS,
    "team_membership": ("added", "removed"),
    "workspace_membership": ("added", "removed"),
}


class ApiError(Exception):
    """A refusal of a request, with the status and the message of the answer, and its code if Asana sends one."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@frozen(kw_only=True)
class Input:
    """The input of a request, merged from its JSON or form body and its query string."""

    data: Mapping[str, Any]
    fields: frozenset[Path]
    """The members that ``opt_fields`` selects; empty if it is not given."""
    pretty: bool


def read_input(*, content_type: str, body: bytes, query: Mapping[str, str]) -> Input:
    """Read the body and the query string of a request.

    Raises:
        ApiError: 400, the body is invalid.
    """
    tree = _read_form(body) if content_type == _FORM else _read_json(body)
    options: dict[str, Any] = {name: query[name] for name in query if name.startswith("opt_")}
    if content_type == _FORM:
        data = tree
        options |= {name: tree[name] for name in tree if name.startswith("opt_")}
    else:
        data = _member(tree, "data")
        options |= {f"opt_{name}": value for name, value in _member(tree, "options").items()}
    fields = options.get("opt_fields", "")
    return Input(
        # Input may also be in the query string. Where both have a member, the body wins.
        data={**query, **data},
        fields=_read_fields(",".join(map(str, fields)) if isinstance(fields, list) else str(fields)),
        pretty=options.get("opt_pretty", False) not in (False, "false", "0"),
    )


def _read_fields(text: str) -> frozenset[Path]:
    """Read ``opt_fields``: ``name``, ``resource.name``, ``(this|resource).name``, joined by commas.

    A group stands for each of its alternatives, ``this`` for the record itself. Unknown names are ignored.
    """
    paths = set()
    for term in re.findall(r"(?:\([^()]*\)|[^,()])+", text.replace(" ", "")):
        segments = re.findall(r"\([^()]*\)|[^.()]+", term)
        choices = [segment[1:-1].split("|") if segment.startswith("(") else [segment] for segment in segments]
        for chosen in islice(product(*choices), _MAX_PATHS):
            paths.add(tuple(name for name in ".".join(chosen).split(".") if name != "this"))
    return frozenset(path for path in paths if path)


def select(record: dict[str, Any], paths: Collection[Path]) -> dict[str, Any]:
    """Return the part of *record* that *paths* name, in the record's order; ``gid`` is always included.

    A resource named alone (``resource``) has its gid and type. With names inside it (``resource.name``) it has just
    these, and its type only if that is named too. Nobody says what naming both gives; the fake gives the less, and
    treats filters alike. Filters named alone are whole.
    """
    chosen = {}
    for name, value in record.items():
        below = [path[1:] for path in paths if path[0] == name]
        inside = [path for path in below if path]
        if inside:
            chosen[name] = _select_inside(value, inside)
        elif below and isinstance(value, dict):
            chosen[name] = {key: value[key] for key in ("gid", "resource_type")}
        elif below or name == "gid":
            chosen[name] = value
    return chosen


def _select_inside(value: Any, paths: Collection[Path]) -> Any:
    if isinstance(value, list):
        return [_select_inside(item, paths) for item in value]
    return select(value, paths) if isinstance(value, dict) else value


def parse_body(content_type: str, body: bytes) -> Any:
    """Parse a body as a form or as JSON, by its content type; return ``None`` if the JSON is invalid."""
    if content_type == _FORM:
        return dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
    try:
        return wire.parse(body)
    except PayloadError:
        return None


def _read_json(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        tree = wire.parse(body)
    except PayloadError:
        raise ApiError(400, "Could not parse request data, invalid JSON") from None
    if not isinstance(tree, dict):
        raise ApiError(400, "Could not parse request data, invalid JSON")
    for key in tree:
        if key not in ("data", "options"):
            raise ApiError(
                400,
                f"Unrecognized request field {key} . The only allowed keys at the top level are: data, options.",
            )
    return tree


def _read_form(body: bytes) -> dict[str, Any]:
    form: dict[str, Any] = parse_body(_FORM, body)
    if any(name.startswith("filters") for name in form):
        # Asana does not document how to write filters in a form.
        raise ApiError(400, "filters: Not supported in a form, send JSON instead")
    return form


def _member(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = tree.get(name, {})
    if not isinstance(value, dict):
        raise ApiError(400, f"{name}: Not a valid object: {_type_name(value)}")
    return value


def _type_name(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), "string")


def _gid(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ApiError(400, f"{name}: Not a valid GID type: {_type_name(value)}")
    if not re.fullmatch(r"[0-9]{1,64}", value):
        raise ApiError(400, f"{name}: Not a recognized ID: {value}")
    return value


def find_in_path(resource_type: str, gid: str, known: Mapping[str, _Found]) -> _Found:
    """Return the webhook or resource that a path names by its gid, a number: leading zeros do not count.

    Raises:
        ApiError: 404 for an unknown gid, and for what is no gid.
    """
    found = known.get(gid, known.get(_number(gid)))
    if found is None:
        raise not_recognized(resource_type, gid)
    return found


def not_recognized(resource_type: str, gid: str) -> ApiError:
    """Return Asana's refusal of a gid in a path. It repeats the gid as a number."""
    return ApiError(404, f"{resource_type}: Not a recognized ID: {_number(gid)}")


def _number(gid: str) -> str:
    return (gid.lstrip("0") or "0") if gid.isdigit() else gid


def find_resource(name: str, value: Any, resources: Mapping[str, Resource]) -> Resource:
    """Return the resource that a parameter names.

    Raises:
        ApiError: 400 for an invalid or unknown gid, 403 for a resource without access.
    """
    gid = _gid(name, value)
    if gid not in resources:
        raise ApiError(400, f"{name}: Unknown object: {gid}")
    if not resources[gid].accessible:
        raise ApiError(403, f"You do not have access to this {resources[gid].resource_type}.")
    return resources[gid]


def create_request(
    given: Input, resources: Mapping[str, Resource], *, whitelisted: Collection[str]
) -> tuple[CreateWebhookRequest, Resource]:
    """Read the input of createWebhook; *whitelisted* is for `new_filters`.

    Raises:
        ApiError: 400 or 403, with the first problem found.
    """
    data = given.data
    if data.get("resource") is None:
        raise ApiError(400, "You should specify one of resource")
    resource = find_resource("resource", data["resource"], resources)
    if data.get("target") is None:
        raise ApiError(400, "target: Missing input")
    filters = new_filters(data.get("filters"), resource, whitelisted=whitelisted)
    try:
        request = CreateWebhookRequest(resource=resource.gid, target=data["target"], filters=filters)
    except ConfigurationError:
        raise ApiError(400, "target: Not a valid URL") from None
    return request, resource


@frozen(kw_only=True)
class _Filters:
    filters: tuple[WebhookFilter, ...]


def new_filters(tree: Any, resource: Resource, *, whitelisted: Collection[str]) -> tuple[WebhookFilter, ...]:
    """Read the filters of createWebhook and updateWebhook.

    Asana does not say how it refuses ``fields`` on a larger scope; the fake uses the error for all other mistakes
    there. It also refuses a filter on a whitelisted type without a type or an action, which may be too strict.

    Args:
        tree: the filters as JSON.
        resource: the resource of the webhook.
        whitelisted: the types of resources whose webhooks are held to Asana's whitelist.

    Raises:
        ApiError: 400, the filters are invalid, or not allowed for this resource.
    """
    try:
        filters = wire.structure({"filters": [] if tree is None else tree}, _Filters).filters
    except PayloadError as problem:
        raise ApiError(400, f"filters: {problem}") from None
    for one in filters:
        if one.action not in (None, *ACTIONS):
            raise ApiError(400, f"filters: Not a valid action: {one.action}")
        if one.fields and one.action != "changed":
            raise ApiError(400, "filters: fields is only valid for action changed")
    larger, bound = resource.resource_type in FILTERED_TYPES, resource.resource_type in whitelisted
    listed = all(one.action in _WHITELIST.get(one.resource_type or "", ()) for one in filters)
    if larger and (not filters or any(one.fields for one in filters) or (bound and not listed)):
        raise ApiError(
            400,
            "Webhooks for larger scoped resources must have at least one filter and all filters must be in our "
            "whitelist.",
            "invalid_filters_for_larger_scoped_webhooks",
        )
    return filters
