"""What createWebhook and updateWebhook refuse, with which sentence, and how input is read."""

from typing import Any

from asana_webhooks.testing import FakeAsana
from tests.testing.fake_play import LARGER_SCOPES, PROJECT, playing

TARGET = "https://example.com/receive-webhook/7654"

REFUSALS: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "You should specify one of resource"),
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
    ({"resource": "1", "target": TARGET}, 400, LARGER_SCOPES),
    ({"resource": "2", "target": TARGET, "filters": []}, 400, LARGER_SCOPES),
    ({"resource": "3", "target": TARGET, "filters": None}, 400, LARGER_SCOPES),
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
]


async def test_refusals() -> None:
    """The first thing that is wrong is said in Asana's words."""
    async with playing(workspace="1", projects=("4",)) as (fake, api, _):
        for resource_type, gid in (("team", "2"), ("portfolio", "3"), ("goal", "6")):
            fake.add_resource(resource_type, gid)
        fake.add_project("5", accessible=False)
        for data, status, message in REFUSALS:
            answered = await api.call("POST", "/webhooks", json={"data": data})
            assert (answered.status, answered.message) == (status, message), data
        assert fake.handshakes == []


WHITELIST = {
    *(("project", action) for action in ("added", "removed", "deleted", "undeleted", "changed")),
    *(("team_membership", action) for action in ("added", "removed")),
    *(("workspace_membership", action) for action in ("added", "removed")),
}
NAME_CHANGES = {"resource_type": "project", "action": "changed", "fields": ["name"]}
NOT_LISTED: list[list[dict[str, Any]]] = [
    [],
    [{}],
    [{"action": "added"}],
    [{"resource_type": "project"}],
    [{"resource_type": "project", "action": "added"}, {"resource_type": "task", "action": "added"}],
    [NAME_CHANGES],
]


def _larger(fake: FakeAsana) -> dict[str, str]:
    return {one: fake.add_resource(one) for one in ("team", "portfolio")} | {"workspace": fake.workspace}


async def test_whitelist_of_larger_scopes() -> None:
    """Webhooks on workspaces and teams may have every filter of the list, and no others; PUT is no way round it."""
    async with playing(heartbeat=None) as (fake, api, target):
        larger = _larger(fake)
        for scope in ("workspace", "team"):
            gid = await api.create_gid(
                target.url, larger[scope], filters=[{"resource_type": "project", "action": "added"}]
            )
            types = ("project", "team_membership", "workspace_membership", "task", "story", "section", "project_status")
            tried = [
                (one, action) for one in types for action in ("added", "removed", "deleted", "undeleted", "changed")
            ]
            for one, action in tried:
                body = {"data": {"filters": [{"resource_type": one, "action": action}]}}
                answered = await api.call("PUT", f"/webhooks/{gid}", json=body)
                assert (answered.status == 200) is ((one, action) in WHITELIST), (scope, one, action)
            kept = fake.webhook(gid).filters
            for filters in NOT_LISTED:
                put = await api.call("PUT", f"/webhooks/{gid}", json={"data": {"filters": filters}})
                for refused in (put, await api.create(target.root, larger[scope], filters=filters)):
                    assert (refused.status, refused.message) == (400, LARGER_SCOPES)
                    assert refused.tree["errors"][0]["error"] == "invalid_filters_for_larger_scoped_webhooks"
            assert (await api.call("PUT", f"/webhooks/{gid}", json={"data": {}})).message == LARGER_SCOPES
            assert fake.webhook(gid).filters == kept


async def test_portfolios() -> None:
    """They need filters without fields; only with portfolio_whitelist these must be in the list of larger scopes."""
    tasks, projects = ({"resource_type": one, "action": "changed"} for one in ("task", "project"))
    for bound in (False, True):
        async with playing(heartbeat=None, portfolio_whitelist=bound) as (fake, api, target):
            portfolio = _larger(fake)["portfolio"]
            for filters in ([], [NAME_CHANGES], [tasks | {"fields": ["name"]}]):
                assert (await api.create(target.url, portfolio, filters=filters)).message == LARGER_SCOPES
            gid = await api.create_gid(target.url, portfolio, filters=[projects])
            answered = await api.call("PUT", f"/webhooks/{gid}", json={"data": {"filters": [tasks]}})
            assert answered.status == (400 if bound else 200)


async def test_filters_are_optional_below() -> None:
    """Below teams and portfolios filters may be left out."""
    async with playing() as (fake, api, target):
        for resource_type in ("project", "task", "goal", "section"):
            assert (await api.create(target.url, fake.add_resource(resource_type))).status == 201


async def test_unknown_members_do_no_harm() -> None:
    """Members nobody knows are left out of what is stored."""
    async with playing() as (_, api, target):
        filters = [{"action": "changed", "fields": ["due_on"], "extra": 1}]
        [stored] = (await api.create(target.url, filters=filters)).tree["data"]["filters"]
        assert stored == {"resource_type": None, "resource_subtype": None, "action": "changed", "fields": ["due_on"]}


async def test_body_before_query() -> None:
    """The body wins over the query string, which says the rest."""
    async with playing() as (fake, api, target):
        body = {"data": {"target": target.url}, "options": {"fields": "target,resource.gid", "pretty": False}}
        path = f"/webhooks?resource={PROJECT}&target={target.root}&opt_pretty"
        answered = await api.call("POST", path, json=body)
        assert set(answered.tree["data"]) == {"gid", "target", "resource"}
        assert answered.tree["data"]["target"] == target.url
        assert "\n" not in answered.text
        assert [webhook.resource.gid for webhook in fake.webhooks.values()] == [PROJECT]


OPT_FIELDS: list[tuple[str, Any]] = [
    ("target, active", {"target", "active"}),
    ("this.target", {"target"}),
    ("this", None),
    ("", None),
    ("resource.name", {"resource": {"gid", "name"}}),
    ("(this|resource).name", {"resource": {"gid", "name"}}),
    ("resource.(name|gid),target", {"resource": {"gid", "name"}, "target": None}),
    ("(active|resource.name)", {"resource": {"gid", "name"}, "active": None}),
    ("resource", {"resource": {"gid", "resource_type"}}),
    ("resource,resource.name", {"resource": {"gid", "name"}}),
    ("resource,resource.name,resource.resource_type", {"resource": {"gid", "name", "resource_type"}}),
    ("target,resource_type", {"target", "resource_type"}),
    ("is_workspace_webhook", {"is_workspace_webhook"}),
    ("target.x,,bogus", {"target"}),
    (".".join(["(" + "|".join(f"n{number}" for number in range(20)) + ")"] * 9), set()),
]


async def test_opt_fields() -> None:
    """Names, paths and groups choose members; the gid is always there; an unknown name does no harm."""
    async with playing(webhooks=1) as (fake, api, _):
        for fields, members in OPT_FIELDS:
            [gid] = fake.webhooks
            whole = (await api.call("GET", f"/webhooks/{gid}")).tree["data"]
            chosen = (await api.call("GET", f"/webhooks/{gid}", params={"opt_fields": fields})).tree["data"]
            if members is None:
                assert chosen == whole
                continue
            assert list(chosen) == [name for name in whole if name in {"gid", *members}]
            if "resource" in members:
                assert set(chosen["resource"]) == members["resource"]


async def test_opt_fields_of_filters() -> None:
    """Filters named alone are whole; names inside them choose members, their type like any other."""
    async with playing(heartbeat=None) as (_, api, target):
        gid = await api.create_gid(target.url, filters=[{"resource_type": "task", "action": "added"}])
        whole = {"resource_type": "task", "resource_subtype": None, "action": "added", "fields": None}
        for fields, names in (
            ("filters", whole.keys()),
            ("filters.action", {"action"}),
            ("filters,filters.action", {"action"}),
            ("filters.(action|resource_type)", {"action", "resource_type"}),
        ):
            answered = await api.call("GET", f"/webhooks/{gid}", params={"opt_fields": fields})
            assert answered.tree["data"] == {"gid": gid, "filters": [{name: whole[name] for name in names}]}


BODIES_REFUSED: list[tuple[bytes, str]] = [
    (
        b'{"resource":"4"}',
        "Unrecognized request field resource . The only allowed keys at the top level are: data, options.",
    ),
    (b'{"data":[]}', "data: Not a valid object: array"),
    (b'{"data":"x"}', "data: Not a valid object: string"),
    (b'{"data":null}', "data: Not a valid object: null"),
    (b'{"options":5}', "options: Not a valid object: number"),
    (b"", "You should specify one of resource"),
]


async def test_bodies_refused() -> None:
    """A body of the wrong shape says which part is wrong; none at all is no data."""
    async with playing() as (_, api, _):
        for body, message in BODIES_REFUSED:
            answered = await api.call("POST", "/webhooks", data=body, headers={"Content-Type": "application/json"})
            assert (answered.status, answered.message) == (400, message)


async def test_no_filters_in_forms() -> None:
    """Nobody says how filters would be written in a form."""
    async with playing() as (_, api, _):
        answered = await api.call("POST", "/webhooks", data={"filters[0][action]": "added"})
        assert (answered.status, answered.message) == (400, "filters: Not supported in a form, send JSON instead")
