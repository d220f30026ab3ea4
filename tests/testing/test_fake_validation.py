"""What createWebhook and updateWebhook refuse, and with which sentence."""

from typing import Any

import pytest

from asana_webhooks.models import WebhookFilter
from asana_webhooks.testing.answers import ApiError
from asana_webhooks.testing.validation import Input, create_request, new_filters, read_input
from asana_webhooks.testing.world import Resource, World

TARGET = "https://example.com/receive-webhook/7654"


def _world() -> World:
    world = World()
    world.add("workspace", "1")
    world.add("team", "2", parents=["1"])
    world.add("portfolio", "3", parents=["1"])
    world.add("project", "4", parents=["1"])
    world.add("project", "5", parents=["1"], accessible=False)
    world.add("goal", "6", parents=["1"])
    return world


def _input(data: dict[str, Any]) -> Input:
    return Input(data=data, fields=frozenset(), pretty=False)


def _refusal(data: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        create_request(_input(data), _world().resources)
    return caught.value.status, caught.value.message


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        ({}, 400, "You should specify one of resource"),
        ({"data": {"resource": "4", "target": TARGET}}, 400, "You should specify one of resource"),
        ({"resource": None}, 400, "You should specify one of resource"),
        ({"resource": 4}, 400, "resource: Not a valid GID type: number"),
        ({"resource": True}, 400, "resource: Not a valid GID type: boolean"),
        ({"resource": ["4"]}, 400, "resource: Not a valid GID type: array"),
        ({"resource": {"gid": "4"}}, 400, "resource: Not a valid GID type: object"),
        ({"resource": "4x"}, 400, "resource: Not a recognized ID: 4x"),
        ({"resource": ""}, 400, "resource: Not a recognized ID: "),
        ({"resource": "99"}, 400, "resource: Unknown object: 99"),
        ({"resource": "5", "target": TARGET}, 403, "You do not have access to this project."),
        ({"resource": "4"}, 400, "target: Missing input"),
        ({"resource": "4", "target": "example.com"}, 400, "target: Not a valid URL"),
        ({"resource": "4", "target": "ftp://example.com"}, 400, "target: Not a valid URL"),
        ({"resource": "4", "target": 5}, 400, "target: Not a valid URL"),
        ({"resource": "1", "target": TARGET}, 400, "filters: Missing input"),
        ({"resource": "2", "target": TARGET, "filters": []}, 400, "filters: Missing input"),
        ({"resource": "3", "target": TARGET, "filters": None}, 400, "filters: Missing input"),
        (
            {"resource": "4", "target": TARGET, "filters": {}},
            400,
            "filters: Expected `array`, got `object` @ $.filters",
        ),
        (
            {"resource": "4", "target": TARGET, "filters": [5]},
            400,
            "filters: Expected `object`, got `int` @ $.filters[0]",
        ),
        (
            {"resource": "4", "target": TARGET, "filters": [{"resource_type": 5}]},
            400,
            "filters: Expected `str | null`, got `int` @ $.filters[0].resource_type",
        ),
        (
            {"resource": "4", "target": TARGET, "filters": [{"action": "exploded"}]},
            400,
            "filters: Not a valid action: exploded",
        ),
        (
            {"resource": "4", "target": TARGET, "filters": [{"action": "added", "fields": ["name"]}]},
            400,
            "filters: fields is only valid for action changed",
        ),
        (
            {"resource": "1", "target": TARGET, "filters": [{"action": "changed", "fields": ["name"]}]},
            400,
            "filters: fields is not supported for a workspace",
        ),
    ],
)
def test_refusals(data: dict[str, Any], status: int, message: str) -> None:
    """The first thing that is wrong is said in Asana's words."""
    assert _refusal(data) == (status, message)


def test_accepts() -> None:
    """Valid input becomes a request of the package's own."""
    data = {"resource": "4", "target": TARGET, "filters": [{"action": "changed", "fields": ["due_on"], "extra": 1}]}
    request, resource = create_request(_input(data), _world().resources)
    assert (request.resource, request.target, resource.gid) == ("4", TARGET, "4")
    assert request.filters == (WebhookFilter(action="changed", fields=("due_on",)),)


@pytest.mark.parametrize("resource_type", ["project", "task", "goal", "section"])
def test_filters_are_optional_below(resource_type: str) -> None:
    """Below teams and portfolios filters may be left out."""
    assert new_filters(None, Resource(gid="4", resource_type=resource_type)) == ()


def _read(body: bytes, content_type: str = "application/json", query: dict[str, str] | None = None) -> Input:
    return read_input(content_type=content_type, body=body, query=query or {})


def test_json_input() -> None:
    """JSON brings data and options; the query brings options too."""
    given = _read(b'{"data":{"a":1},"options":{"fields":["x","y.z"]}}', query={"opt_pretty": ""})
    assert given.data["a"] == 1
    assert given.fields == {("x",), ("y", "z")}
    assert given.pretty


def test_options_as_text() -> None:
    """The options' fields may be one text."""
    assert _read(b'{"options":{"fields":"x,y","pretty":false}}') == Input(
        data={}, fields=frozenset({("x",), ("y",)}), pretty=False
    )


def test_body_before_query() -> None:
    """The body wins over the query string."""
    assert _read(b'{"data":{"a":"body"}}', query={"a": "query", "b": "query"}).data == {"a": "body", "b": "query"}


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (
            b'{"resource":"4"}',
            "application/json",
            "Unrecognized request field resource . The only allowed keys at the top level are: data, options.",
        ),
        (b'{"data":[]}', "application/json", "data: Not a valid object: array"),
        (b'{"data":"x"}', "application/json", "data: Not a valid object: string"),
        (b'{"data":null}', "application/json", "data: Not a valid object: null"),
        (b'{"options":5}', "application/json", "options: Not a valid object: number"),
        (
            b"filters[0][action]=added",
            "application/x-www-form-urlencoded",
            "filters: Not supported in a form, send JSON instead",
        ),
    ],
)
def test_bodies_refused(body: bytes, content_type: str, message: str) -> None:
    """A body of the wrong shape says which part is wrong."""
    with pytest.raises(ApiError) as caught:
        _read(body, content_type)
    assert (caught.value.status, str(caught.value)) == (400, message)


def test_no_body() -> None:
    """No body at all is no data."""
    assert _read(b"") == Input(data={}, fields=frozenset(), pretty=False)
