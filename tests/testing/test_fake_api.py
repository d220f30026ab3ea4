"""The REST side over real sockets: who may ask what, and how it is answered."""

import asyncio
import json
from typing import Any

import jsonschema
import pytest

from tests.testing.fake_play import COMPACT_SCHEMA, FULL_SCHEMA, PROJECT, WORKSPACE, playing

UNKNOWN_ROUTES: list[tuple[str, str]] = [
    ("PATCH", "/webhooks"),
    ("DELETE", "/webhooks"),
    ("POST", "/webhooks/1"),
    ("GET", "/webhooks/"),
    ("GET", "/webhooks/1/events"),
    ("GET", "/tasks"),
    ("GET", "/enum_options/1"),
    ("GET", "//elsewhere"),
    ("GET", "//%0A"),
    ("GET", "//"),
    ("GET", "/%0A"),
    ("GET", "/webhooks%0A"),
    ("GET", "/webhooks%2F1"),
    ("GET", "/webhooks/%0A"),
    ("GET", "/webhooks/%FF"),
    ("GET", "/webhooks/%31"),
    ("GET", "/tasks/1%3F"),
    ("POST", "//-/oauth_token%0A"),
]


async def test_unknown_routes() -> None:
    """A route or method that does not exist is a 404, before anyone looks at the token."""
    async with playing() as (_, api, _):
        for method, path in UNKNOWN_ROUTES:
            answered = await api.call(method, path, token="wrong", encoded=True)
            assert answered.headers["Content-Type"] == "application/json; charset=UTF-8"
            assert (answered.status, answered.message) == (404, "No matching route for request")


async def test_token() -> None:
    """Whatever is not the token is a 401, in Asana's envelope and content type."""
    async with playing() as (fake, api, _):
        for header in ["", "Bearer wrong", "Basic abc", "bearer", "Bearer é"]:
            answered = await api.call("GET", "/webhooks?workspace=1331", headers={"Authorization": header})
            assert (answered.status, answered.message) == (401, "Not Authorized")
            assert answered.headers["Content-Type"] == "application/json; charset=UTF-8"
            assert fake.requests[0].status == 401


async def test_token_ends() -> None:
    """The token can be changed while the fake runs."""
    async with playing(token="first") as (fake, api, _):
        assert (await api.call("GET", "/webhooks?workspace=1331", token="first")).status == 200
        fake.token = "second"
        assert (await api.call("GET", "/webhooks?workspace=1331", token="first")).status == 401
        assert (await api.call("GET", "/webhooks?workspace=1331", token="second")).status == 200


async def test_create_and_get() -> None:
    """A created webhook comes back as its full record, with its secret and its address once."""
    async with playing() as (fake, api, target):
        filters = [{"resource_type": "task", "action": "changed"}]
        created = await api.create(target.url, filters=filters)
        record = created.tree["data"]
        assert created.status == 201
        assert set(created.tree) == {"data", "X-Hook-Secret"}
        jsonschema.validate(record, FULL_SCHEMA)
        assert (record["active"], record["last_failure_content"], record["is_workspace_webhook"]) == (True, "", False)
        assert record["last_success_at"] is not None
        assert record["target"] == target.url
        assert record["filters"] == [
            {"resource_type": "task", "resource_subtype": None, "action": "changed", "fields": None}
        ]
        assert created.headers["Location"] == f"/api/1.0/webhooks/{record['gid']}"
        assert (
            created.tree["X-Hook-Secret"]
            == fake.secret(record["gid"]).reveal()
            == target.got[0].headers["X-Hook-Secret"]
        )

        got = await api.call("GET", f"/webhooks/{record['gid']}")
        assert got.tree == {"data": record}


async def test_update_replaces_filters_only() -> None:
    """A PUT replaces all filters and nothing else; an empty list takes them away."""
    async with playing() as (_, api, target):
        gid = await api.create_gid(target.url, filters=[{"resource_type": "task"}, {"resource_type": "story"}])
        body: dict[str, Any] = {
            "data": {"filters": [{"action": "deleted"}], "target": "https://example.com/", "resource": "1"}
        }
        updated = await api.call("PUT", f"/webhooks/{gid}", json=body)
        assert updated.status == 200
        assert [one["action"] for one in updated.tree["data"]["filters"]] == ["deleted"]
        assert updated.tree["data"]["target"] == target.url
        emptied = await api.call("PUT", f"/webhooks/{gid}", json={"data": {"filters": []}})
        assert emptied.tree["data"]["filters"] == []
        assert len(target.got) == 2, "no new handshake"


async def test_update_needs_filters() -> None:
    """A PUT without filters is refused."""
    async with playing() as (_, api, target):
        gid = await api.create_gid(target.url)
        answered = await api.call("PUT", f"/webhooks/{gid}", json={"data": {}})
        assert (answered.status, answered.message) == (400, "filters: Missing input")


async def test_delete() -> None:
    """A deleted webhook is unknown from then on; a body and a content type, as Asana's client sends, do no harm."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        json_type = {"Content-Type": "application/json"}
        deleted = await api.call("DELETE", f"/webhooks/{gid}", data=b"{}", headers=json_type)
        assert (deleted.status, deleted.tree) == (200, {"data": {}})
        assert not fake.webhooks
        for method in ("GET", "DELETE"):
            again = await api.call(method, f"/webhooks/{gid}", headers=json_type)
            assert (again.status, again.message) == (404, f"webhook: Not a recognized ID: {gid}")
        put = await api.call("PUT", f"/webhooks/{gid}", json={"data": {"filters": []}})
        assert put.status == 404


UNKNOWN_GIDS: list[tuple[str, str]] = [
    ("/webhooks/77", "webhook: Not a recognized ID: 77"),
    ("/webhooks/me", "webhook: Not a recognized ID: me"),
    ("/webhooks/000", "webhook: Not a recognized ID: 0"),
    ("/webhooks/0077", "webhook: Not a recognized ID: 77"),
    (f"/webhooks/{PROJECT}", f"webhook: Not a recognized ID: {PROJECT}"),
    ("/tasks/77", "task: Not a recognized ID: 77"),
    (f"/tasks/{PROJECT}", f"task: Not a recognized ID: {PROJECT}"),
    ("/stories/me", "story: Not a recognized ID: me"),
    ("/memberships/00", "membership: Not a recognized ID: 0"),
]


async def test_unknown_gids_in_paths() -> None:
    """What a path names and the fake does not know is a 404 with the gid as a number; zeros before it do not count."""
    async with playing(webhooks=1) as (fake, api, _):
        for path, message in UNKNOWN_GIDS:
            answered = await api.call("GET", path)
            assert (answered.status, answered.message) == (404, message)
        [gid] = fake.webhooks
        assert (await api.call("GET", f"/webhooks/00{gid}")).tree["data"]["gid"] == gid


async def test_one_resource() -> None:
    """A resource is read at the path of its type, by GET and with the token."""
    async with playing() as (_, api, _):
        read = await api.call("GET", f"/projects/{PROJECT}?opt_fields=name,permalink_url")
        assert (read.status, read.tree) == (200, {"data": {"gid": PROJECT, "name": f"project {PROJECT}"}})
        for method, path, status in [
            ("GET", f"/tasks/{PROJECT}", 404),
            ("GET", "/projects/me", 404),
            ("PUT", f"/projects/{PROJECT}", 404),
        ]:
            assert (await api.call(method, path)).status == status
        assert (await api.call("GET", f"/projects/{PROJECT}", token="wrong")).status == 401


async def test_lists_are_compact() -> None:
    """A list holds compact records in order; without a limit it has no next_page."""
    async with playing(webhooks=2) as (_, api, target):
        gid = await api.create_gid(target.url)
        answered = await api.call("GET", f"/webhooks?workspace={WORKSPACE}")
        assert set(answered.tree) == {"data"}
        for record in answered.tree["data"]:
            jsonschema.validate(record, COMPACT_SCHEMA)
        assert answered.tree["data"][-1]["gid"] == gid
        only = await api.call("GET", f"/webhooks?workspace={WORKSPACE}&resource={PROJECT}")
        assert [one["gid"] for one in only.tree["data"]] == [gid]


async def test_pages() -> None:
    """Pages follow each other to the end; a deletion between two of them skips nothing."""
    async with playing(webhooks=5) as (fake, api, _):
        gids = list(fake.webhooks)
        first = (await api.call("GET", f"/webhooks?workspace={WORKSPACE}&limit=2&opt_fields=target")).tree
        assert [one["gid"] for one in first["data"]] == gids[:2]
        offset = first["next_page"]["offset"]
        path = f"/webhooks?workspace={WORKSPACE}&opt_fields=target&limit=2&offset={offset}"
        assert first["next_page"] == {"offset": offset, "path": path, "uri": fake.url + path}
        await api.call("DELETE", f"/webhooks/{gids[0]}")
        second = (await api.call("GET", f"/webhooks?offset={offset}&limit=2&workspace={WORKSPACE}&opt_pretty")).tree
        assert second["next_page"]["path"].startswith(f"/webhooks?workspace={WORKSPACE}&opt_pretty=&limit=2&offset=")
        assert [one["gid"] for one in second["data"]] == gids[2:4]
        last = (await api.call("GET", second["next_page"]["path"])).tree
        assert [one["gid"] for one in last["data"]] == gids[4:]
        assert last["next_page"] is None
        rest = (await api.call("GET", first["next_page"]["path"].replace("&limit=2", ""))).tree
        assert (len(rest["data"]), "next_page" in rest) == (3, False)


async def test_exact_page_is_the_last() -> None:
    """A list that just fits has no next page."""
    async with playing(webhooks=2) as (_, api, _):
        page = (await api.call("GET", f"/webhooks?workspace={WORKSPACE}&limit=2")).tree
        assert (len(page["data"]), page["next_page"]) == (2, None)


async def test_offset_expires() -> None:
    """An offset is good for fifteen minutes of the fake's clock."""
    async with playing(webhooks=3) as (fake, api, _):
        path = (await api.call("GET", f"/webhooks?workspace={WORKSPACE}&limit=1")).tree["next_page"]["path"]
        await fake.advance(899)
        assert (await api.call("GET", path)).status == 200
        await fake.advance(1)
        answered = await api.call("GET", path)
        assert (answered.status, answered.message) == (400, "offset: Your pagination token has expired.")


async def test_offset_invalid() -> None:
    """An offset nobody issued, or for another list, is refused."""
    async with playing(webhooks=3) as (_, api, _):
        wrong = await api.call("GET", f"/webhooks?workspace={WORKSPACE}&limit=1&offset=abc")
        assert (wrong.status, wrong.message) == (400, "offset: Your pagination token is invalid.")
        path = (await api.call("GET", f"/webhooks?workspace={WORKSPACE}&limit=1")).tree["next_page"]["path"]
        other = await api.call("GET", f"{path}&resource={PROJECT}")
        assert other.message == "offset: Your pagination token is invalid."


WRONG_LISTS: list[tuple[str, int, str]] = [
    ("", 400, "workspace: Missing input"),
    ("?workspace=", 400, "workspace: Missing input"),
    ("?workspace=abc", 400, "workspace: Not a recognized ID: abc"),
    ("?workspace=8675309", 400, "workspace: Unknown object: 8675309"),
    ("?workspace=77", 400, "workspace: Unknown object: 77"),
    ("?workspace=1331&resource=x", 400, "resource: Not a recognized ID: x"),
    ("?workspace=1331&resource=77", 400, "resource: Unknown object: 77"),
    ("?workspace=1331&limit=0", 400, "limit: Must be between 1 and 100"),
    ("?workspace=1331&limit=101", 400, "limit: Must be between 1 and 100"),
    ("?workspace=1331&limit=ten", 400, "limit: Must be between 1 and 100"),
    ("?workspace=1331&limit=", 400, "limit: Must be between 1 and 100"),
]


async def test_wrong_lists() -> None:
    """A list that cannot be had says what is wrong."""
    async with playing() as (_, api, _):
        for query, status, message in WRONG_LISTS:
            answered = await api.call("GET", f"/webhooks{query}")
            assert (answered.status, answered.message) == (status, message)


async def test_long_list_needs_pages() -> None:
    """More than a thousand records come by pages only."""
    async with playing(webhooks=1001) as (fake, api, _):
        answered = await api.call("GET", f"/webhooks?workspace={WORKSPACE}")
        assert answered.status == 400
        assert answered.message == (
            "The result is too large. You should use pagination (may require specifying a workspace)!"
        )
        assert len((await api.call("GET", f"/webhooks?workspace={WORKSPACE}&limit=100")).tree["data"]) == 100
        await api.call("DELETE", f"/webhooks/{next(iter(fake.webhooks))}")
        assert len((await api.call("GET", f"/webhooks?workspace={WORKSPACE}")).tree["data"]) == 1000


async def test_opt_fields() -> None:
    """opt_fields chooses members, by query and by the body's options, and unknown names do no harm."""
    async with playing() as (fake, api, target):
        created = await api.create(
            target.url, query="?opt_fields=target,filters.action,bogus", filters=[{"action": "added"}]
        )
        gid = created.tree["data"]["gid"]
        assert created.tree["data"] == {"gid": gid, "target": target.url, "filters": [{"action": "added"}]}
        assert "X-Hook-Secret" in created.tree
        body = {"data": {"filters": []}, "options": {"fields": ["resource.name"], "pretty": True}}
        updated = await api.call("PUT", f"/webhooks/{gid}", json=body)
        assert updated.tree["data"] == {"gid": gid, "resource": {"gid": PROJECT, "name": f"project {PROJECT}"}}
        assert updated.text.startswith("{\n")
        listed = await api.call("GET", f"/webhooks?workspace={WORKSPACE}&opt_fields=(this|resource).name,created_at")
        assert set(listed.tree["data"][0]) == {"gid", "created_at", "resource"}
        assert fake.requests[-1].query["opt_fields"] == "(this|resource).name,created_at"


async def test_opt_pretty() -> None:
    """opt_pretty breaks lines, with a value or without; otherwise answers are compact."""
    async with playing(webhooks=1) as (_, api, _):
        for query, pretty in [
            ("", False),
            ("opt_pretty", True),
            ("opt_pretty=true", True),
            ("opt_pretty=false", False),
        ]:
            answered = await api.call("GET", f"/webhooks?workspace=1331&{query}")
            assert ("\n" in answered.text) is pretty
            assert (": " in answered.text) is pretty


async def test_form_and_query_input() -> None:
    """A form with bare keys and a bare query string create webhooks as well."""
    async with playing() as (fake, api, target):
        form = {"resource": PROJECT, "target": target.url, "opt_fields": "target", "opt_pretty": ""}
        formed = await api.call("POST", "/webhooks", data=form)
        assert (formed.status, set(formed.tree["data"])) == (201, {"gid", "target"})
        assert fake.requests[0].body == form
        query = {"resource": PROJECT, "target": target.root}
        asked = await api.call("POST", "/webhooks", params=query)
        assert (asked.status, asked.tree["data"]["target"]) == (201, target.root)


async def test_invalid_json() -> None:
    """A body that is no JSON object is refused with Asana's sentence."""
    async with playing() as (_, api, _):
        for body in [b"{", b"[]", b"5", b"\xff", b"[" * 100_000]:
            answered = await api.call("POST", "/webhooks", data=body, headers={"Content-Type": "application/json"})
            assert (answered.status, answered.message) == (400, "Could not parse request data, invalid JSON")


async def test_requests_are_recorded() -> None:
    """Each request is remembered with everything but the token."""
    async with playing(token="0/secret-token") as (fake, api, _):
        await api.call("POST", "/webhooks?opt_pretty", json={"data": {"resource": "x"}}, headers={"X-Mine": "yes"})
        [request] = fake.requests
        assert (request.operation, request.method, request.path) == ("createWebhook", "POST", "/webhooks")
        assert (request.query, request.body) == ({"opt_pretty": ""}, {"data": {"resource": "x"}})
        assert (request.status, request.headers["x-mine"]) == (400, "yes")
        assert "secret-token" not in json.dumps([request.headers, request.body, request.query]) + repr(request)


@pytest.mark.parametrize("body", [b"{", b"5", b'{"a":1}', b'{"data":5}', b'{"options":{"fields":["target"]}}'])
async def test_bodies_that_nobody_reads(body: bytes) -> None:
    """GET and DELETE take no input from their bodies, whatever is in them."""
    async with playing(webhooks=1) as (fake, api, _):
        path = f"/webhooks/{next(iter(fake.webhooks))}"
        json_type = {"Content-Type": "application/json"}
        plain = await api.call("GET", path)
        assert (await api.call("GET", path, data=body, headers=json_type)).tree == plain.tree
        assert (await api.call("GET", "/webhooks?workspace=1331", data=body, headers=json_type)).status == 200
        assert (await api.call("DELETE", path, data=body, headers=json_type)).tree == {"data": {}}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_compressed_bodies(encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    """A body that is compressed, or says so, is no JSON; where no body is read, it does no harm."""
    headers = {"Content-Encoding": encoding}
    async with playing() as (fake, api, _):
        posted = await api.call("POST", "/webhooks", data=b"abc", headers=headers, skip_auto_headers=["Content-Type"])
        assert (posted.status, posted.message) == (400, "Could not parse request data, invalid JSON")
        listed = await api.call("GET", "/webhooks?workspace=1331", data=b"abc", headers=headers)
        assert (listed.status, [one.status for one in fake.requests]) == (200, [400, 200])
    assert caplog.records == []


async def test_requests_name_their_webhook() -> None:
    """A request's record tells which webhook it was about, if any."""
    async with playing() as (fake, api, _):
        for path in ("/webhooks?workspace=1331", "/webhooks/77", "/tasks/77"):
            await api.call("GET", path)
        assert [request.webhook_gid for request in fake.requests] == ["", "77", ""]


async def test_delete_body_is_recorded() -> None:
    """A body nobody reads is remembered too, unless it is no JSON."""
    async with playing(webhooks=2) as (fake, api, _):
        for gid, body in zip(list(fake.webhooks), (b'{"a":1}', b"{"), strict=True):
            await api.call("DELETE", f"/webhooks/{gid}", data=body)
        assert [request.body for request in fake.requests] == [{"a": 1}, None]


async def test_client_gone_in_the_middle() -> None:
    """Half a request is no request: nothing happens, and nothing is logged."""
    async with playing() as (fake, api, _):
        host, port = fake.url.split("/")[2].split(":")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /api/1.0/webhooks HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        await api.call("GET", "/webhooks?workspace=1331")  # by now the other request has begun
        writer.close()
        await writer.wait_closed()
        assert await reader.read() == b""
        await fake.settle()
        assert [request.status for request in fake.requests] == [None, 200]
