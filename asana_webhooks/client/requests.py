"""Asana's operations as request objects: method, path, query, body, and how to read the answer.

Five are about webhooks. The others list projects and workspaces, and read a resource of any type, such as an event's.

The classes are public: log them, queue them (`asana_webhooks.wire.encode` and `decode` convert them to and from JSON),
and send them later with `AsanaSession.send`. Constructing an invalid request raises `ConfigurationError`, before
anything is sent.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Generic, TypeVar

import attrs
from attrs import field, frozen

from asana_webhooks import wire
from asana_webhooks._checks import is_encodable, parse_url
from asana_webhooks.errors import ConfigurationError, PayloadError
from asana_webhooks.models import CreatedWebhook, ResourceRef, Webhook, WebhookFilter

__all__ = [
    "WEBHOOK_FIELDS",
    "CreateWebhookRequest",
    "DeleteWebhookRequest",
    "GetProjectsRequest",
    "GetWebhookRequest",
    "GetWebhooksRequest",
    "GetWorkspacesRequest",
    "ListRequest",
    "ReadResourceRequest",
    "Request",
    "UpdateWebhookRequest",
    "filters_of",
    "plural_of",
]

AnswerT = TypeVar("AnswerT")
ItemT = TypeVar("ItemT")

WEBHOOK_FIELDS = (
    "active",
    "created_at",
    "delivery_retry_count",
    "failure_deletion_timestamp",
    "filters",
    "filters.action",
    "filters.fields",
    "filters.resource_subtype",
    "filters.resource_type",
    "is_workspace_webhook",
    "last_failure_at",
    "last_failure_content",
    "last_success_at",
    "next_attempt_after",
    "resource",
    "resource.name",
    "resource.resource_type",
    "resource_type",
    "target",
)
"""Every known field of a webhook: `GetWebhooksRequest` asks for them, because Asana's lists are compact.

``is_workspace_webhook`` is undocumented, and in real answers. The three that end in ``resource_type`` are documented as
members, though missing from the parameter's own list."""

_ALL_FIELDS: Final = ",".join(WEBHOOK_FIELDS)
_GID: Final = re.compile(r"[0-9]{1,64}")
"""Source: https://developers.asana.com/docs/object-hierarchy (gids are strings of digits)"""

_MEMBERSHIPS: Final = ("custom_field_membership", "custom_type_membership", "goal_membership")
"""Types with one path in common. Source: https://developers.asana.com/reference/getmembership"""


def _check_gid(_: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if value is None and attribute.default is None:
        return
    if not isinstance(value, str) or not _GID.fullmatch(value):
        raise ConfigurationError(
            f"{attribute.name} must be a gid, a string of digits such as '8675309', not {value!r:.80}"
        )


def _check_resource_type(_: object, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z_]*", value):
        raise ConfigurationError(f"resource_type must be a type of Asana's resources such as 'task', not {value!r:.80}")


def plural_of(resource_type: str) -> str:
    """Return the name of a type of resources in Asana's paths: ``stories`` for ``story``.

    Source: https://developers.asana.com/reference/rest-api-reference
    """
    if resource_type in _MEMBERSHIPS:
        return "memberships"
    if resource_type.endswith("y"):
        return resource_type[:-1] + "ies"
    return resource_type + ("es" if resource_type.endswith("s") else "s")


def _check_target(_: object, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    url = parse_url(value)
    printable = isinstance(value, str) and value.isprintable() and " " not in value
    if not (printable and url.scheme in ("http", "https") and url.host):
        # The value is not shown: its last segment is the endpoint.
        raise ConfigurationError("target must be an absolute URL such as https://example.com/asana/7654")


def filters_of(filters: Any) -> tuple[WebhookFilter, ...]:
    """Return *filters*, which a caller gave, as a tuple.

    Raises:
        ConfigurationError: it is not a list, or another iterable, of `WebhookFilter` objects.
    """
    rule = "filters must be a list of WebhookFilter objects, such as [WebhookFilter(resource_type='task')]"
    if isinstance(filters, Mapping | str) or not isinstance(filters, Iterable):
        raise ConfigurationError(f"{rule}, not {type(filters).__name__}")
    items = tuple(filters)
    for one in items:
        if not isinstance(one, WebhookFilter):
            raise ConfigurationError(f"{rule}; one of them is {type(one).__name__}")
    return items


def _check_filters(_: object, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, tuple):
        raise ConfigurationError(f"filters must be a tuple of WebhookFilter objects, not {type(value).__name__}")
    for one in filters_of(value):
        _check_members(one)
        # "This field is only valid for `action` of type `changed`": https://developers.asana.com/reference/createwebhook
        if one.fields and one.action != "changed":
            raise ConfigurationError(f"a filter with fields needs action='changed', not {one.action!r:.80}")


def _check_members(one: WebhookFilter) -> None:
    for name in ("resource_type", "resource_subtype", "action"):
        value = getattr(one, name)
        if value is not None and not is_encodable(value):
            raise ConfigurationError(f"a filter's {name} must be a string such as 'task', not {value!r:.80}")
    fields: Any = one.fields  # callers may ignore the type hints
    if fields is not None and not (isinstance(fields, tuple) and all(map(is_encodable, fields))):
        raise ConfigurationError(f"a filter's fields must be a tuple of names, not {fields!r:.80}")


def _check_opt_fields(_: object, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if value is not None and not isinstance(value, tuple):
        raise ConfigurationError(f"opt_fields must be a tuple of names or None, not {type(value).__name__}")
    for name in value or ():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_.|()]+", name):
            raise ConfigurationError(f"opt_fields must be names of fields such as 'target', not {name!r:.80}")


def _check_page_size(_: object, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    # "The value must be between 1 and 100": https://developers.asana.com/docs/pagination
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100:
        raise ConfigurationError(f"page_size must be between 1 and 100, not {value!r:.80}")


def _check_archived(_: object, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if not isinstance(value, bool | None):
        raise ConfigurationError(f"archived must be True, False, or None for both, not {value!r:.80}")


def _check_offset(_: object, _attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if value is not None and (value == "" or not is_encodable(value)):
        raise ConfigurationError("offset must be the next_offset of an earlier page, or None to start")


@frozen(kw_only=True)
class Request(Generic[AnswerT]):
    """The base class of requests. `AsanaSession.send` returns the result of `answer`."""

    operation: ClassVar[str]
    """Asana's operation id."""
    method: ClassVar[str]
    path_template: ClassVar[str]
    """The path below the base URL with names in place of gids; safe to log."""

    opt_pretty: bool = False

    @property
    def path(self) -> str:
        """The path below the base URL."""
        template = self.path_template
        return template.format(**attrs.asdict(self, recurse=False)) if "{" in template else template

    def query(self) -> dict[str, str]:
        """The query parameters."""
        return {"opt_pretty": "true"} if self.opt_pretty else {}

    def body(self) -> bytes | None:
        """The JSON body, or ``None`` for no body."""
        return None

    def answer(self, body: bytes) -> AnswerT:
        """Read the body of a successful answer.

        Raises:
            PayloadError: *body* does not match Asana's documentation.
        """
        raise NotImplementedError


def _envelope(data: dict[str, Any]) -> bytes:
    # https://developers.asana.com/docs/inputoutput-options
    return wire.encode({"data": data})


def _filter_members(filters: tuple[WebhookFilter, ...]) -> list[dict[str, Any]]:
    return [attrs.asdict(one, filter=lambda _, value: value is not None) for one in filters]


@frozen(kw_only=True)
class _WithFields(Request[AnswerT]):
    usual_fields: ClassVar[str] = ""
    """What is asked for if *opt_fields* is ``None``. Asana's answers for one object are full records without it."""

    opt_fields: tuple[str, ...] | None = field(default=None, validator=_check_opt_fields)
    """Fields to return. ``None``: all. ``()``: Asana's default fields, which in lists are few."""

    def query(self) -> dict[str, str]:
        """The query parameters."""
        fields = self.usual_fields if self.opt_fields is None else ",".join(self.opt_fields)
        query = super().query()
        if fields:
            query["opt_fields"] = fields
        return query


@frozen(kw_only=True)
class _OnOneWebhook(_WithFields[AnswerT]):
    path_template = "/webhooks/{webhook_gid}"

    webhook_gid: str = field(validator=_check_gid)

    @property
    def path(self) -> str:
        """The path below the base URL."""
        return f"/webhooks/{self.webhook_gid}"


@frozen(kw_only=True)
class CreateWebhookRequest(_WithFields[CreatedWebhook]):
    """createWebhook. Source: https://developers.asana.com/reference/createwebhook"""

    operation = "createWebhook"
    method = "POST"
    path_template = "/webhooks"

    resource: str = field(validator=_check_gid)
    target: str = field(validator=_check_target, repr=False)
    filters: tuple[WebhookFilter, ...] = field(default=(), validator=_check_filters)

    def body(self) -> bytes:
        """The JSON body; filters are left out when there are none."""
        data: dict[str, Any] = {"resource": self.resource, "target": self.target}
        return _envelope(data | ({"filters": _filter_members(self.filters)} if self.filters else {}))

    def answer(self, body: bytes) -> CreatedWebhook:
        """Read the body of a successful answer."""
        return wire.decode_created_webhook(body)


@frozen(kw_only=True)
class GetWebhookRequest(_OnOneWebhook[Webhook]):
    """getWebhook. Source: https://developers.asana.com/reference/getwebhook"""

    operation = "getWebhook"
    method = "GET"

    def answer(self, body: bytes) -> Webhook:
        """Read the body of a successful answer."""
        return wire.decode_webhook(body)


@frozen(kw_only=True)
class ListRequest(_WithFields[wire.ListPage[ItemT]]):
    """The base class of requests for one page of a list. Source: https://developers.asana.com/docs/pagination"""

    method = "GET"

    page_size: int = field(default=100, validator=_check_page_size)
    offset: str | None = field(default=None, validator=_check_offset, repr=False)

    def query(self) -> dict[str, str]:
        """The query parameters."""
        offset = {} if self.offset is None else {"offset": self.offset}
        return {"limit": str(self.page_size), **offset} | super().query()

    def decode(self, body: bytes) -> wire.ListPage[ItemT]:
        """Decode the page."""
        raise NotImplementedError

    def answer(self, body: bytes) -> wire.ListPage[ItemT]:
        """Read the body of a successful answer."""
        page = self.decode(body)
        if page.next_page is not None and not page.next_page.offset:
            raise PayloadError(problem="Expected an offset, got an empty string", path="$.next_page.offset")
        return page


@frozen(kw_only=True)
class _InWorkspace(ListRequest[ItemT]):
    workspace: str = field(validator=_check_gid)

    def query(self) -> dict[str, str]:
        """The query parameters."""
        return {"workspace": self.workspace} | super().query()


@frozen(kw_only=True)
class GetWebhooksRequest(_InWorkspace[Webhook]):
    """getWebhooks, one page. Source: https://developers.asana.com/reference/getwebhooks"""

    operation = "getWebhooks"
    path_template = "/webhooks"
    usual_fields = _ALL_FIELDS

    resource: str | None = field(default=None, validator=_check_gid)

    def query(self) -> dict[str, str]:
        """The query parameters."""
        return super().query() | ({} if self.resource is None else {"resource": self.resource})

    def decode(self, body: bytes) -> wire.ListPage[Webhook]:
        """Decode the page."""
        return wire.decode_webhook_list(body)


@frozen(kw_only=True)
class GetProjectsRequest(_InWorkspace[ResourceRef]):
    """getProjects, one page. Source: https://developers.asana.com/reference/getprojects"""

    operation = "getProjects"
    path_template = "/projects"

    team: str | None = field(default=None, validator=_check_gid)
    archived: bool | None = field(default=False, validator=_check_archived)

    def query(self) -> dict[str, str]:
        """The query parameters."""
        team = {} if self.team is None else {"team": self.team}
        archived = {} if self.archived is None else {"archived": str(self.archived).lower()}
        return super().query() | team | archived

    def decode(self, body: bytes) -> wire.ListPage[ResourceRef]:
        """Decode the page."""
        return wire.decode_resource_list(body)


@frozen(kw_only=True)
class GetWorkspacesRequest(ListRequest[ResourceRef]):
    """getWorkspaces, one page. Source: https://developers.asana.com/reference/getworkspaces"""

    operation = "getWorkspaces"
    path_template = "/workspaces"

    def decode(self, body: bytes) -> wire.ListPage[ResourceRef]:
        """Decode the page."""
        return wire.decode_resource_list(body)


@frozen(kw_only=True)
class UpdateWebhookRequest(_OnOneWebhook[Webhook]):
    """updateWebhook: replace all filters. Source: https://developers.asana.com/reference/updatewebhook"""

    operation = "updateWebhook"
    method = "PUT"

    filters: tuple[WebhookFilter, ...] = field(validator=_check_filters)

    def body(self) -> bytes:
        """The JSON body; no filters are sent as an empty list."""
        return _envelope({"filters": _filter_members(self.filters)})

    def answer(self, body: bytes) -> Webhook:
        """Read the body of a successful answer."""
        return wire.decode_webhook(body)


@frozen(kw_only=True)
class DeleteWebhookRequest(_OnOneWebhook[None]):
    """deleteWebhook. Source: https://developers.asana.com/reference/deletewebhook"""

    operation = "deleteWebhook"
    method = "DELETE"

    def answer(self, body: bytes) -> None:
        """Ignore the body: Asana documents an empty object, so there is nothing to check."""


@frozen(kw_only=True)
class ReadResourceRequest(_WithFields[dict[str, Any]]):
    """getTask, getProject, getStory and so on: one resource of any type.

    Source: https://developers.asana.com/reference/rest-api-reference
    """

    operation = "readResource"
    """Not an operation id of Asana, which has one for each type."""
    method = "GET"
    path_template = "/{resource_types}/{gid}"

    resource_type: str = field(validator=_check_resource_type)
    gid: str = field(validator=_check_gid)

    @property
    def path(self) -> str:
        """The path below the base URL: ``/tasks/1234``."""
        return f"/{plural_of(self.resource_type)}/{self.gid}"

    def answer(self, body: bytes) -> dict[str, Any]:
        """Read the body of a successful answer."""
        return wire.decode_resource(body)
