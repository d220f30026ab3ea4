"""The five operations as values: what each puts on the wire, and what cannot be put there."""

import copy
import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from asana_webhooks.client.requests import (
    WEBHOOK_FIELDS,
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetProjectsRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    GetWorkspacesRequest,
    ReadResourceRequest,
    Request,
    UpdateWebhookRequest,
    plural_of,
)
from asana_webhooks.errors import ConfigurationError, PayloadError
from asana_webhooks.models import CreatedWebhook, ResourceRef, Secret, Webhook, WebhookFilter
from asana_webhooks.wire import ResourceList, WebhookList

TARGET = "https://example.com/asana/canary-endpoint?keep=%20this"
EVERY_FIELD = ",".join(WEBHOOK_FIELDS)

CREATE = CreateWebhookRequest(resource="21", target=TARGET)
GET = GetWebhookRequest(webhook_gid="7")
LIST = GetWebhooksRequest(workspace="1331")
PROJECTS = GetProjectsRequest(workspace="1331")
WORKSPACES = GetWorkspacesRequest()
UPDATE = UpdateWebhookRequest(webhook_gid="7", filters=())
DELETE = DeleteWebhookRequest(webhook_gid="7")
READ = ReadResourceRequest(resource_type="story", gid="31")

Row = tuple[Request[Any], str, str, str, str, dict[str, str], Any]

# request, operation, method, path, template, query, body
TABLE: list[Row] = [
    (
        CREATE,
        "createWebhook",
        "POST",
        "/webhooks",
        "/webhooks",
        {},
        {"data": {"resource": "21", "target": TARGET}},
    ),
    (GET, "getWebhook", "GET", "/webhooks/7", "/webhooks/{webhook_gid}", {}, None),
    (
        LIST,
        "getWebhooks",
        "GET",
        "/webhooks",
        "/webhooks",
        {"workspace": "1331", "limit": "100", "opt_fields": EVERY_FIELD},
        None,
    ),
    (
        UPDATE,
        "updateWebhook",
        "PUT",
        "/webhooks/7",
        "/webhooks/{webhook_gid}",
        {},
        {"data": {"filters": []}},
    ),
    (DELETE, "deleteWebhook", "DELETE", "/webhooks/7", "/webhooks/{webhook_gid}", {}, None),
    (
        PROJECTS,
        "getProjects",
        "GET",
        "/projects",
        "/projects",
        {"workspace": "1331", "limit": "100", "archived": "false"},
        None,
    ),
    (
        GetProjectsRequest(workspace="1331", team="5", archived=None, offset="eyJ"),
        "getProjects",
        "GET",
        "/projects",
        "/projects",
        {"workspace": "1331", "limit": "100", "team": "5", "offset": "eyJ"},
        None,
    ),
    (WORKSPACES, "getWorkspaces", "GET", "/workspaces", "/workspaces", {"limit": "100"}, None),
    (READ, "readResource", "GET", "/stories/31", "/{resource_types}/{gid}", {}, None),
]
REQUESTS = [row[0] for row in TABLE]
EACH = pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: one.operation)
WITH_FIELDS = pytest.mark.parametrize(
    "request_", [CREATE, GET, LIST, PROJECTS, WORKSPACES, UPDATE, READ], ids=lambda one: one.operation
)


def body_of(request: Request[Any]) -> Any:
    body = request.body()
    return None if body is None else json.loads(body)


class TestWhatIsSent:
    @pytest.mark.parametrize("row", TABLE, ids=[row[1] for row in TABLE])
    def test_table(self, row: Row) -> None:
        """Each operation has the method, path, query and body of Asana's reference."""
        request, operation, method, path, template, query, body = row

        assert request.operation == operation
        assert request.method == method
        assert request.path == path
        assert request.path_template == template
        assert request.query() == query
        assert body_of(request) == body

    @EACH
    def test_pretty(self, request_: Request[Any]) -> None:
        """opt_pretty adds one parameter, and only when asked for."""
        pretty = attrs.evolve(request_, opt_pretty=True)

        assert pretty.query() == request_.query() | {"opt_pretty": "true"}
        assert "opt_pretty" not in request_.query()

    @WITH_FIELDS
    def test_compact(self, request_: Any) -> None:
        """No opt_fields asks for what Asana sends unasked."""
        assert "opt_fields" not in attrs.evolve(request_, opt_fields=()).query()

    @WITH_FIELDS
    def test_chosen_fields(self, request_: Any) -> None:
        """Chosen fields are sent in one parameter, as given."""
        chosen = attrs.evolve(request_, opt_fields=("target", "this.filters.(action|fields)", "target"))

        assert chosen.query()["opt_fields"] == "target,this.filters.(action|fields),target"

    def test_lists_ask_for_every_known_field(self) -> None:
        """What is asked for is what a Webhook can hold."""
        asked = {name.partition(".")[0] for name in WEBHOOK_FIELDS}

        assert asked | {"gid"} == {one.name for one in attrs.fields(Webhook)}
        assert {name for name in WEBHOOK_FIELDS if name.startswith("filters.")} == {
            f"filters.{one.name}" for one in attrs.fields(WebhookFilter)
        }
        assert list(WEBHOOK_FIELDS) == sorted(set(WEBHOOK_FIELDS))

    def test_list_narrowed_and_resumed(self) -> None:
        """Resource, page size and offset become parameters."""
        request = GetWebhooksRequest(workspace="1", resource="2", page_size=7, offset="eyJ.a-b_c=", opt_fields=())

        assert request.query() == {"workspace": "1", "resource": "2", "limit": "7", "offset": "eyJ.a-b_c="}

    def test_filters_have_only_the_given_members(self) -> None:
        """A member that is None is left out; Asana is never sent a null."""
        filters = (
            WebhookFilter(resource_type="task", action="changed", fields=("due_on", "name")),
            WebhookFilter(action="deleted"),
            WebhookFilter(resource_type="story", resource_subtype="comment_added", action="added", fields=()),
            WebhookFilter(),
        )
        wanted = [
            {"resource_type": "task", "action": "changed", "fields": ["due_on", "name"]},
            {"action": "deleted"},
            {"resource_type": "story", "resource_subtype": "comment_added", "action": "added", "fields": []},
            {},
        ]

        create = CreateWebhookRequest(resource="21", target=TARGET, filters=filters)
        update = UpdateWebhookRequest(webhook_gid="7", filters=filters)

        assert body_of(create) == {"data": {"resource": "21", "target": TARGET, "filters": wanted}}
        assert body_of(update) == {"data": {"filters": wanted}}

    @given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=30))
    def test_target_is_sent_as_it_is(self, path: str) -> None:
        """The target reaches Asana letter for letter: it uses the query verbatim, and so do signatures of proxies."""
        request = CreateWebhookRequest(resource="21", target="https://example.com/a?" + path)

        assert body_of(request)["data"]["target"] == "https://example.com/a?" + path


class TestAnswers:
    def test_create_keeps_the_secret(self) -> None:
        """The 201's secret stands beside data and is not lost (trap 1: create drops the secret)."""
        created = CREATE.answer(b'{"data":{"gid":"7"},"X-Hook-Secret":"s3"}')

        assert created == CreatedWebhook(webhook=Webhook(gid="7"), secret=Secret("s3"))

    def test_records(self) -> None:
        """Get and update answer with a record, the list with a page."""
        assert GET.answer(b'{"data":{"gid":"7"}}') == Webhook(gid="7")
        assert UPDATE.answer(b'{"data":{"gid":"7"}}') == Webhook(gid="7")
        assert LIST.answer(b'{"data":[{"gid":"7"}],"next_page":null}') == WebhookList(data=(Webhook(gid="7"),))
        assert PROJECTS.answer(b'{"data":[{"gid":"7","name":"A"}]}') == ResourceList(
            data=(ResourceRef(gid="7", name="A"),)
        )

    def test_any_resource(self) -> None:
        """A resource's record is the dict that Asana sent, with any content."""
        assert READ.answer(b'{"data":{"gid":"31","likes":[{"n":1.5}],"text":null}}') == {
            "gid": "31",
            "likes": [{"n": 1.5}],
            "text": None,
        }

    @pytest.mark.parametrize("body", [b'{"data":{}}', b"", b"OK", b"\xff", b"null"])
    def test_delete_learns_nothing(self, body: bytes) -> None:
        """A 2xx says the webhook is gone, whatever stands in it."""
        answer: object = DELETE.answer(body)  # type: ignore[func-returns-value]

        assert answer is None

    @WITH_FIELDS
    def test_bad_answer(self, request_: Request[Any]) -> None:
        """Whatever else is no answer."""
        for body in (b"", b"{}", b'{"data":5}', b"<html>"):
            with pytest.raises(PayloadError):
                request_.answer(body)

    def test_bare_request_answers_nothing(self) -> None:
        """The common base is no operation of its own."""
        with pytest.raises(NotImplementedError):
            Request[None]().answer(b"")


BAD_GIDS: list[Any] = [
    "",
    " ",
    "12 ",
    " 12",
    "12\n",
    "\t12",
    "abc",
    "12a",
    "-12",
    "+12",
    "1.2",
    "1_2",
    "0x12",
    "٣",
    "１２",  # noqa: RUF001 - digits only to str.isdigit
    "²",
    "1/../2",
    "1%2F2",
    "1" * 65,
    12,
    1.5,
    True,
    b"12",
    ["12"],
]

BAD_TARGETS: dict[str, Any] = {
    "empty": "",
    "blank": " ",
    "relative": "/asana/7654",
    "no scheme": "example.com/asana",
    "no scheme, two slashes": "//example.com/asana",
    "ftp": "ftp://example.com/canary",
    "javascript": "javascript:alert('canary')",
    "file": "file:///canary",
    "space": "https://example.com/canary 1",
    "leading space": " https://example.com/canary",
    "newline": "https://example.com/canary\n",
    "carriage return": "https://example.com/canary\r\nX-Evil: 1",
    "tab": "https://example.com/\tcanary",
    "NUL": "https://example.com/canary\x00",
    "delete": "https://example.com/canary\x7f",
    "C1 control": "https://example.com/canary\x85",
    "line separator": "https://example.com/canary\u2028",
    "no-break space": "https://example.com/canary\xa0",
    "zero-width space": "https://example.com/canary\u200b",
    "lone surrogate": "https://example.com/canary\udc80",
    "no host": "https:///canary",
    "nothing after the scheme": "https://",
    "port only": "https://:443/canary",
    "bad port": "https://example.com:99999/canary",
    "half an IPv6 address": "https://[::1/canary",
    "None": None,
    "a number": 5,
    "bytes": b"https://example.com/canary",
    "a URL object": URL("https://example.com/canary"),
}


class TestBadInput:
    def test_gid(self) -> None:
        """A gid is a text of ASCII digits; anything else is refused by name, before it can shape a path."""
        makes: list[tuple[Callable[[Any], Any], str]] = [
            (lambda gid: GetWebhookRequest(webhook_gid=gid), "webhook_gid"),
            (lambda gid: UpdateWebhookRequest(webhook_gid=gid, filters=()), "webhook_gid"),
            (lambda gid: DeleteWebhookRequest(webhook_gid=gid), "webhook_gid"),
            (lambda gid: CreateWebhookRequest(resource=gid, target=TARGET), "resource"),
            (lambda gid: ReadResourceRequest(resource_type="task", gid=gid), "gid"),
            (lambda gid: GetWebhooksRequest(workspace=gid), "workspace"),
            (lambda gid: GetProjectsRequest(workspace=gid), "workspace"),
            (lambda gid: GetWebhooksRequest(workspace="1", resource=gid), "resource"),
            (lambda gid: GetProjectsRequest(workspace="1", team=gid), "team"),
        ]
        for make, name in makes:
            for gid in BAD_GIDS:
                with pytest.raises(ConfigurationError, match=rf"^{name} must be a gid, a string of digits"):
                    make(gid)
        for make, name in makes[:-2]:  # the resource and the team of a list may be left out
            with pytest.raises(ConfigurationError, match=f"^{name} must be a gid"):
                make(None)

    def test_long_garbage_is_cut(self) -> None:
        """A message stays short whatever was passed."""
        with pytest.raises(ConfigurationError) as caught:
            GetWebhookRequest(webhook_gid="x" * 10_000)

        assert len(str(caught.value)) < 200

    def test_target(self) -> None:
        """A target that Asana could not call is refused, without showing it."""
        for what, target in BAD_TARGETS.items():
            with pytest.raises(ConfigurationError, match=r"^target must be an absolute URL such as https://") as caught:
                CreateWebhookRequest(resource="21", target=target)
            assert "canary" not in str(caught.value), what

    def test_good_target(self) -> None:
        """What looks unusual but can be called is let through; Asana decides about hosts."""
        for target in (
            "https://example.com",
            "http://localhost:8080/x",
            "HTTPS://example.com/x",
            "https://[::1]:8443/x",
            "https://bücher.example/ü?q=1#f",
            "https://example.com/" + "a" * 2000,
        ):
            assert CreateWebhookRequest(resource="21", target=target).target == target

    def test_page_size(self) -> None:
        """A page has 1 to 100 webhooks; a text or a bool is no number."""
        for size in (1, 50, 100):
            assert GetWebhooksRequest(workspace="1", page_size=size).query()["limit"] == str(size)
        odd: list[Any] = [0, 101, -1, 10**30, True, False, "5", 5.0, None, float("nan")]
        for size in odd:
            with pytest.raises(ConfigurationError, match=r"^page_size must be between 1 and 100, not "):
                GetWebhooksRequest(workspace="1", page_size=size)

    @pytest.mark.parametrize("offset", ["", 0, 5, b"eyJ", ["eyJ"]], ids=repr)
    def test_offset(self, offset: Any) -> None:
        """An offset is what an earlier page gave; an empty one would silently start over."""
        with pytest.raises(ConfigurationError, match=r"^offset must be the next_offset of an earlier page") as caught:
            GetWebhooksRequest(workspace="1", offset=offset)

        assert "eyJ" not in str(caught.value)

    @pytest.mark.parametrize("action", [None, "added", "removed", "deleted", "undeleted", "Changed"])
    def test_fields_need_changed(self, action: str | None) -> None:
        """Fields only go with action="changed", as Asana's reference says."""
        filters = (WebhookFilter(), WebhookFilter(action=action, fields=("due_on",)))
        for make in (
            lambda: CreateWebhookRequest(resource="21", target=TARGET, filters=filters),
            lambda: UpdateWebhookRequest(webhook_gid="7", filters=filters),
        ):
            with pytest.raises(ConfigurationError, match=r"^a filter with fields needs action='changed', not "):
                make()

    @pytest.mark.parametrize("one", [{"action": "changed"}, "task", None, WebhookFilter], ids=str)
    def test_filters_of_another_class(self, one: Any) -> None:
        """A dict where a WebhookFilter belongs is refused by the name of its class, with the right form."""
        with pytest.raises(ConfigurationError, match=r"such as \[WebhookFilter\(.*; one of them is \w+$"):
            CreateWebhookRequest(resource="21", target=TARGET, filters=(one,))

    def test_fields_as_one_text(self) -> None:
        """One name without the tuple would be taken apart into letters."""
        one: Any = WebhookFilter(action="changed", fields="due_on")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"^a filter's fields must be a tuple of names, not 'due_on'"):
            UpdateWebhookRequest(webhook_gid="7", filters=(one,))

    @pytest.mark.parametrize("name", ["", "a b", "a,b", "Target", "a&b=c", "a\n", "ü", 5, None], ids=repr)
    def test_opt_fields(self, name: Any) -> None:
        """A name of a field cannot bring other parameters with it."""
        with pytest.raises(ConfigurationError, match=r"^opt_fields must be names of fields"):
            GetWebhookRequest(webhook_gid="7", opt_fields=("target", name))

    def test_opt_fields_as_one_text(self) -> None:
        """One text is not silently taken for its letters (t,a,r,g,e,t)."""
        with pytest.raises(ConfigurationError, match="opt_fields"):
            GetWebhookRequest(webhook_gid="7", opt_fields="target")  # type: ignore[arg-type]

    @pytest.mark.parametrize("filters", [None, 5, WebhookFilter()], ids=repr)
    def test_filters_that_are_no_tuple(self, filters: Any) -> None:
        """Something else in place of the tuple is the caller's error like any other, not a bare TypeError."""
        with pytest.raises(ConfigurationError, match="filters"):
            CreateWebhookRequest(resource="21", target=TARGET, filters=filters)

    def test_filters_are_never_lost(self) -> None:
        """An iterator is refused or read once: one used up by the check would create a webhook without filters."""
        lent: Any = iter((WebhookFilter(action="deleted"),))
        try:
            request = CreateWebhookRequest(resource="21", target=TARGET, filters=lent)
        except ConfigurationError:
            return
        assert body_of(request)["data"].get("filters") == [{"action": "deleted"}]

    @EACH
    def test_only_keywords(self, request_: Request[Any]) -> None:
        """Arguments are given by name."""
        assert all(one.kw_only for one in attrs.fields(type(request_)))


class TestValues:
    @EACH
    def test_frozen_and_hashable(self, request_: Request[Any]) -> None:
        """A request can be kept, compared and put into a set, and does not change under its sender."""
        for one in attrs.fields(type(request_)):
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(request_, one.name, None)
        assert {request_, copy.deepcopy(request_)} == {request_}

    @EACH
    def test_asking_changes_nothing(self, request_: Request[Any]) -> None:
        """Reading path, query and body, and changing what came back, leaves the request as it was (trap 2)."""
        before = copy.deepcopy(request_)
        request_.query().clear()
        request_.query()["limit"] = "1"
        first = request_.query(), request_.body(), request_.path

        assert (request_.query(), request_.body(), request_.path) == first
        assert request_ == before

    def test_arguments_are_not_changed(self) -> None:
        """What the caller passed in is left as it was (trap 2: the pager mutates its arguments)."""
        filters = (WebhookFilter(action="changed", fields=("due_on",)),)
        fields = ("target", "active")
        arguments: dict[str, Any] = {"resource": "21", "target": TARGET, "filters": filters, "opt_fields": fields}
        before = copy.deepcopy(arguments)

        request = CreateWebhookRequest(**arguments)
        request.query()
        request.body()

        assert arguments == before

    def test_repr_hides_target_and_offset(self) -> None:
        """A logged request does not say whose secret it is nor how to resume a walk."""
        listing = GetWebhooksRequest(workspace="1", offset="canary-offset")

        for shown in (repr(CREATE), str(CREATE), f"{listing}"):
            assert "canary" not in shown
        assert repr(CREATE) == "CreateWebhookRequest(opt_pretty=False, opt_fields=None, resource='21', filters=())"

    @EACH
    def test_template_is_safe_to_log(self, request_: Request[Any]) -> None:
        """The template of a path holds no gid."""
        assert not any(letter.isdigit() for letter in request_.path_template)


# Every path of Asana's reference that reads one resource.
PATHS = """
    /allocations/{allocation_gid} /attachments/{attachment_gid} /budgets/{budget_gid} /custom_fields/{custom_field_gid}
    /custom_types/{custom_type_gid} /goal_relationships/{goal_relationship_gid} /goals/{goal_gid} /jobs/{job_gid}
    /memberships/{membership_gid} /memberships/{goal_membership_gid} /memberships/{custom_field_membership_gid}
    /organization_exports/{organization_export_gid} /portfolio_memberships/{portfolio_membership_gid}
    /portfolios/{portfolio_gid} /project_briefs/{project_brief_gid} /project_memberships/{project_membership_gid}
    /project_statuses/{project_status_gid} /project_templates/{project_template_gid} /projects/{project_gid}
    /sections/{section_gid} /status_updates/{status_update_gid} /stories/{story_gid} /tags/{tag_gid}
    /task_templates/{task_template_gid} /tasks/{task_gid} /team_memberships/{team_membership_gid} /teams/{team_gid}
    /time_periods/{time_period_gid} /time_tracking_categories/{time_tracking_category_gid}
    /time_tracking_entries/{time_tracking_entry_gid} /user_task_lists/{user_task_list_gid} /users/{user_gid}
    /webhooks/{webhook_gid} /workspace_memberships/{workspace_membership_gid} /workspaces/{workspace_gid}
"""


class TestReadResource:
    @pytest.mark.parametrize("path", PATHS.split())
    def test_paths(self, path: str) -> None:
        """Each type of resource has the path of Asana's reference."""
        _, types, parameter = path.split("/")
        resource_type = parameter.removeprefix("{").removesuffix("_gid}")

        assert plural_of(resource_type) == types
        assert ReadResourceRequest(resource_type=resource_type, gid="7").path == f"/{types}/7"

    @pytest.mark.parametrize("resource_type", ["", "Task", "tasks/1", "../users", "task?", "té", "task\n", None, 5])
    def test_bad_types(self, resource_type: Any) -> None:
        """A text that is not a resource type is refused, so it cannot change the path."""
        with pytest.raises(ConfigurationError, match=r"^resource_type must be a type"):
            ReadResourceRequest(resource_type=resource_type, gid="7")


class TestFilterMembers:
    @pytest.mark.parametrize(
        "members",
        [
            {"resource_type": 5},
            {"resource_subtype": b"x"},
            {"action": ["changed"]},
            {"resource_type": "\ud800"},
            {"action": "changed", "fields": {"a": 1}},
            {"action": "changed", "fields": ["a"]},
            {"action": "changed", "fields": (1,)},
            {"action": "changed", "fields": ("\ud800",)},
        ],
        ids=repr,
    )
    def test_wrong_types(self, members: dict[str, Any]) -> None:
        """What no JSON text can be made of is refused when the request is made."""
        with pytest.raises(ConfigurationError, match="a filter's"):
            CreateWebhookRequest(resource="21", target=TARGET, filters=(WebhookFilter(**members),))
        with pytest.raises(ConfigurationError, match="a filter's"):
            UpdateWebhookRequest(webhook_gid="7", filters=(WebhookFilter(**members),))


def test_an_offset_that_cannot_be_sent() -> None:
    """Half a surrogate pair fits into no URL."""
    with pytest.raises(ConfigurationError, match="offset"):
        GetWebhooksRequest(workspace="1", offset="\ud800")


def test_a_page_with_an_empty_offset() -> None:
    """It is no offset anyone could ask with."""
    with pytest.raises(PayloadError, match="empty"):
        LIST.answer(b'{"data": [], "next_page": {"offset": ""}}')
