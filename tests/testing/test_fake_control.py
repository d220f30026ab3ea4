"""Steering the fake over HTTP, as a program in another language would."""

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


BAD_INPUT: list[tuple[str, Any, str]] = [
    ("changes", "{", "the body is not JSON"),
    ("changes", "[]", "a change must be a JSON object"),
    ("changes", {}, "invalid change: Object missing required field `resource`"),
    ("changes", {"resource": 5}, "invalid change: Expected `str`, got `int` @ $.resource"),
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
