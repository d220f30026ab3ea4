"""Steering the fake over HTTP, as a program in another language would."""

import asyncio
import io
import json
from typing import Any

import aiohttp
import jsonschema
import pytest
from yarl import URL

from asana_webhooks.testing import FakeAsana
from tests.testing.fake_play import EVENT_SCHEMA, PROJECT, fixed_clock, playing


async def test_changes() -> None:
    """A change is recorded, sent, and comes back as its event; no token is needed."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        change = {"resource": "555", "parent": PROJECT, "field": "due_on", "user": None}
        answered = await api.call("POST", "//_fake/changes", json=change, headers={"Authorization": ""})
        assert answered.status == 202
        jsonschema.validate(answered.tree, EVENT_SCHEMA)
        assert answered.tree["resource"] == {"gid": "555", "resource_type": "task", "resource_subtype": "default_task"}
        assert (await api.call("POST", "//_fake/settle")).status == 200
        assert json.loads(target.deliveries[-1].body) == {"events": [answered.tree]}
        assert fake.deliveries[-1].status == 200


async def test_webhooks() -> None:
    """Everything known about the webhooks is shown, secrets too."""
    async with playing(webhooks=1) as (fake, api, target):
        gid = await api.create_gid(target.url)
        shown = (await api.call("GET", "//_fake/webhooks")).tree["data"]
        assert [one["gid"] for one in shown] == list(fake.webhooks)
        assert shown[1]["secret"] == fake.secret(gid).reveal()
        assert shown[1]["target"] == target.url


async def test_deliveries() -> None:
    """Every attempt is shown."""
    async with playing(clock=fixed_clock()) as (_, api, target):
        gid = await api.create_gid(target.url)
        [shown] = (await api.call("GET", "//_fake/deliveries")).tree["data"]
        assert shown["webhook_gid"] == gid
        assert (shown["body"], shown["status"], shown["heartbeat"]) == ('{"events":[]}', 200, True)
        assert shown["sent_at"] == "2026-01-02T03:04:05.678Z"


async def test_faults() -> None:
    """One fault or a list of them can be scripted."""
    async with playing() as (_, api, _):
        one = await api.call("POST", "//_fake/faults", json={"at": "*", "status": 503})
        assert (one.status, one.tree) == (202, {"added": 1})
        many = [
            {"at": "*", "status": 429, "retry_after": 7},
            {"at": "*", "status": 200, "body": "<", "headers": {"A": "b"}},
        ]
        assert (await api.call("POST", "//_fake/faults", json=many)).tree == {"added": 2}
        answers = [await api.call("GET", "/webhooks?workspace=1331") for _ in range(4)]
        assert [answered.status for answered in answers] == [503, 429, 200, 200]
        assert (answers[1].headers["Retry-After"], answers[2].headers["A"], answers[2].text) == ("7", "b", "<")


async def test_clock() -> None:
    """The clock can be turned, and everything due is done before the answer."""
    async with playing(clock=fixed_clock()) as (fake, api, target):
        await api.create_gid(target.url)
        answered = await api.call("POST", "//_fake/clock", json={"advance": 8 * 3600})
        assert (answered.status, answered.tree) == (200, {"now": "2026-01-02T11:04:05.678Z"})
        assert len(fake.deliveries) == 2


async def test_requests() -> None:
    """Every request to the API is shown, even one that is no UTF-8; no token is."""
    async with playing() as (fake, api, target):
        app = fake.register_app()
        form = {"grant_type": "refresh_token", "refresh_token": app.refresh_token}
        gid = await api.create_gid(target.url)
        await api.call("GET", f"/webhooks/{gid}?opt_fields=target")
        await api.call("GET", "/nothing", token=app.access_token)
        await api.call("POST", "//-/oauth_token", data=form)
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(fake.url).port)
        writer.write(b"GET /api/1.0/webhooks HTTP/1.1\r\nHost: x\r\nX-Name: \xff\r\nConnection: close\r\n\r\n")
        assert b" 401 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        answered = await api.call("GET", "//_fake/requests")
        shown = answered.tree["data"]
        assert [(one["method"], one["path"], one["operation"], one["status"]) for one in shown] == [
            ("POST", "/webhooks", "createWebhook", 201),
            ("GET", f"/webhooks/{gid}", "getWebhook", 200),
            ("GET", "/nothing", None, 404),
            ("POST", "/-/oauth_token", "oauth_token", 400),
            ("GET", "/webhooks", "getWebhooks", 401),
        ]
        assert shown[0]["body"] == {"data": {"resource": PROJECT, "target": target.url}}
        assert (shown[1]["query"], shown[1]["webhook_gid"]) == ({"opt_fields": "target"}, gid)
        assert shown[-1]["headers"]["x-name"] == "?"
        for token in (fake.token, app.access_token, app.refresh_token):
            assert token not in answered.text


async def test_apps() -> None:
    """An app is registered with its user and scopes, and its credentials come back: they work at once."""
    async with playing(webhooks=1) as (fake, api, _):
        wanted = {"client_id": "7", "user": "12", "scopes": ["webhooks:read"], "rotate": True}
        answered = await api.call("POST", "//_fake/apps", json=wanted)
        app = answered.tree
        assert (answered.status, app["token_url"], app["refreshes"]) == (201, fake.token_url, 0)
        assert {name: app[name] for name in wanted} == wanted
        for method, status in (("GET", 200), ("POST", 401)):
            path = "/webhooks?workspace=1331"
            assert (await api.call(method, path, token=app["access_token"])).status == status
        form = {"grant_type": "refresh_token"} | {
            name: app[name] for name in ("client_id", "client_secret", "refresh_token")
        }
        assert (await api.call("POST", "//-/oauth_token", data=form)).tree["refresh_token"]
        plain = (await api.call("POST", "//_fake/apps", json={})).tree
        assert (plain["client_id"], plain["user"], plain["scopes"]) == ("12345", "11", None)


async def test_resources() -> None:
    """A resource of any type is added, with the gid of one's choice or a new one, which comes back."""
    async with playing() as (fake, api, target):
        for wanted in (
            {"resource_type": "project"},
            {"resource_type": "workspace", "gid": "42"},
            {"resource_type": "portfolio", "name": "All"},
            {"resource_type": "task", "parents": [PROJECT], "resource_subtype": "milestone"},
            {"resource_type": "team", "accessible": False},
        ):
            answered = await api.call("POST", "//_fake/resources", json=wanted)
            assert (answered.status, list(answered.tree)) == (201, ["gid"])
            gid = answered.tree["gid"]
            assert gid == wanted.get("gid", gid)
            read = await api.call("GET", f"/{wanted['resource_type']}s/{gid}")
            assert read.status == (403 if "accessible" in wanted else 200)
            if read.status == 200:
                shown = {"resource_type", "name", "resource_subtype"}
                assert {name: read.tree["data"][name] for name in shown & wanted.keys()} == {
                    name: wanted[name] for name in shown & wanted.keys()
                }
            if wanted["resource_type"] == "project":
                assert fake.projects[-1] == gid
                await api.create_gid(target.url, gid)


BAD_INPUT: list[tuple[str, Any, str]] = [
    ("webhooks", {"gid": "7", "active": False}, "the fake has no webhook '7'"),
    ("webhooks", {"gid": "7"}, "a webhook is invalid: Object missing required field `active`"),
    ("webhooks", {"gid": "7", "active": 0}, "a webhook is invalid: Expected `bool`, got `int` @ $.active"),
    ("changes", "{", "the body is not JSON"),
    ("changes", "[]", "a change must be a JSON object"),
    ("changes", {}, "a change is invalid: Object missing required field `resource`"),
    ("changes", {"resource": 5}, "a change is invalid: Expected `str`, got `int` @ $.resource"),
    ("changes", {"resource": "77"}, "the fake has no resource '77': add it first, or pass its parent"),
    ("changes", {"resource": PROJECT, "fields": "x"}, "a change has no member 'fields'; its members are: resource,"),
    ("changes", {"resource": PROJECT, "action": "eaten"}, "action must be one of changed, added, removed,"),
    ("changes", {"resource": PROJECT, "field": "x", "new_value": {}}, "a value must be the gid of a known resource"),
    ("changes", {"resource": "x", "parent": PROJECT}, "a gid must be a string of digits, not 'x'"),
    ("faults", "nope", "the body is not JSON"),
    ("faults", "[5]", "a fault must be a JSON object"),
    ("faults", {}, "a fault needs the member 'at': the requests it applies to"),
    ("faults", {"at": "*", "doo": "reset"}, "a fault has no member 'doo'; its members are: at, do,"),
    ("faults", {"at": "*", "status": "x"}, "status must be a whole number from 200 to 599, not 'x'"),
    ("faults", [{"at": "*"}, {"at": "nowhere"}], "at must be one of *"),
    ("faults", {"at": "*", "headers": {"X": "\x07"}}, "headers has an invalid header value: '\\x07'"),
    ("faults", {"at": "*", "headers": {"a b": "c"}}, "headers cannot include a header named 'a b'"),
    ("faults", '{"at": "*", "body": "\\ud800"}', "the body is not JSON"),
    ("resources", "", "the body is not JSON"),
    ("resources", [], "a resource must be a JSON object"),
    ("resources", {}, "a resource is invalid: Object missing required field `resource_type`"),
    ("resources", {"resource_type": "task", "parent": "1"}, "a resource has no member 'parent'; its members are:"),
    ("resources", {"resource_type": "task", "parents": PROJECT}, "a resource is invalid: Expected `array"),
    ("resources", {"resource_type": "task", "parents": ["77"]}, "the fake has no resource '77'"),
    ("resources", {"resource_type": "task", "gid": 5}, "a resource is invalid: Expected `str"),
    ("resources", {"resource_type": "task", "gid": PROJECT}, "the fake already has a resource 8675309: project"),
    ("resources", {"resource_type": "Task"}, "resource_type must be a type such as 'task', not 'Task'"),
    ("resources", {"resource_type": "task", "accessible": "no"}, "a resource is invalid: Expected `bool`, got `str`"),
    ("apps", "{", "the body is not JSON"),
    ("apps", [], "an app must be a JSON object"),
    ("apps", {"scope": "x"}, "an app has no member 'scope'; its members are: client_id, user, scopes, rotate"),
    ("apps", {"scopes": "webhooks:read"}, "an app is invalid: Expected `array"),
    ("apps", {"scopes": ["webhooks"]}, "a scope must have the form 'webhooks:read', not 'webhooks'"),
    ("apps", {"user": "me"}, "user must be a gid"),
    ("apps", {"client_id": ""}, "client_id must not be empty"),
    ("apps", {"client_id": 7}, "an app is invalid: Expected `str`, got `int` @ $.client_id"),
    ("clock", "x", "the body is not JSON"),
    ("clock", {}, 'the body must be {"advance": seconds}, with seconds as a number'),
    ("clock", {"advance": "5"}, 'the body must be {"advance": seconds}, with seconds as a number'),
    ("clock", {"advance": True}, 'the body must be {"advance": seconds}, with seconds as a number'),
    ("clock", {"advance": -5}, "advance by 0 to 31622400 seconds (366 days), not by -5"),
    ("clock", {"advance": 1e300}, "advance by 0 to 31622400 seconds (366 days)"),
]


async def test_bad_input() -> None:
    """Input that makes no sense is a 400 with a sentence that helps, and nothing happens."""
    async with playing() as (fake, api, _):
        for path, body, message in BAD_INPUT:
            data = body if isinstance(body, str) else json.dumps(body)
            answered = await api.call("POST", f"//_fake/{path}", data=data)
            assert answered.status == 400
            assert answered.message.startswith(message)
        assert (await api.call("GET", "/webhooks?workspace=1331")).status == 200
        assert len(fake.requests) == 1, "steering is no request to the API"


@pytest.mark.parametrize("path", ["changes", "faults", "clock"])
async def test_compressed_bodies(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A body that says it is compressed is no JSON, and no reason for a traceback."""
    async with playing() as (_, api, _):
        answered = await api.call("POST", f"//_fake/{path}", data=b"abc", headers={"Content-Encoding": "gzip"})
        assert (answered.status, answered.message) == (400, "the body is not JSON")
    assert caplog.records == []


async def test_unknown_routes() -> None:
    """What cannot be steered is a 404 that names it; a fake that is not to be steered over HTTP knows no such path."""
    async with playing() as (_, api, _):
        answered = await api.call("GET", "//_fake/changes")
        assert (answered.status, answered.message) == (404, "There is no GET /_fake/changes")
    async with FakeAsana() as fake, aiohttp.ClientSession() as http:
        async with http.post(URL(fake.url).with_path("/_fake/settle")) as response:
            assert response.status == 404


async def test_too_large() -> None:
    """A body of many megabytes is refused like any server does."""
    async with playing() as (_, api, _):
        assert (await api.call("POST", "//_fake/changes", data=io.BytesIO(b" " * (17 * 1024 * 1024)))).status == 413


async def test_values_in_changes() -> None:
    """A value may be a known gid or an object."""
    async with playing() as (fake, api, _):
        tag = fake.add_resource("tag")
        for value in (tag, {"gid": tag, "resource_type": "tag"}):
            change = {"resource": PROJECT, "field": "tags", "added_value": value}
            event = (await api.call("POST", "//_fake/changes", json=change)).tree
            assert event["change"] == {
                "field": "tags",
                "action": "added",
                "added_value": {"gid": tag, "resource_type": "tag"},
            }


async def test_settle_ends_with_the_fake() -> None:
    """A closed fake has nothing under way, so that settling returns at once, whatever was still waiting."""
    async with FakeAsana() as fake:
        await fake.settle()
    fake.change(fake.projects[0], field="name")
    await fake.settle()

    assert fake.deliveries == []
