"""Several users and apps at one fake: what each may see and do, and what a token's scopes allow."""

from typing import Any

from tests.testing.fake_play import PROJECT, Answered, Caller, playing

LIST = "/webhooks?workspace=1331"


async def _create(api: Caller, token: str, target: str) -> Answered:
    return await api.call("POST", "/webhooks", token=token, json={"data": {"resource": PROJECT, "target": target}})


async def test_lists_are_of_one_app_and_user() -> None:
    """A list has what this app created for this user, or the user's own token, and the user's quiet webhooks."""
    async with playing(webhooks=1) as (fake, api, target):
        tokens = {
            "own": fake.token,
            "app": fake.register_app("7").access_token,
            "other app": fake.register_app("8").access_token,
            "other user": fake.register_app("7", user="12").access_token,
        }
        gids = {name: set() if name == "other user" else set(fake.webhooks) for name in tokens}
        for name, token in tokens.items():
            created = await _create(api, token, f"{target.root}/{name.replace(' ', '-')}")
            gids[name].add(created.tree["data"]["gid"])
        for name, token in tokens.items():
            listed = (await api.call("GET", LIST, token=token)).tree["data"]
            assert {one["gid"] for one in listed} == gids[name], name
        fake.token = "another"
        assert {one["gid"] for one in (await api.call("GET", LIST)).tree["data"]} == gids["own"]
        [gid] = gids["other user"]
        assert (fake.webhook(gid).user, fake.webhook(gid).app) == ("12", "7")


async def test_offsets_are_of_one_app_and_user() -> None:
    """An offset leads on in the list it is from, not in that of another user or app."""
    async with playing(webhooks=2) as (fake, api, _):
        offset = (await api.call("GET", f"{LIST}&limit=1")).tree["next_page"]["offset"]
        for user in ("11", "12"):
            token = fake.register_app(user=user).access_token
            answered = await api.call("GET", f"{LIST}&offset={offset}", token=token)
            assert (answered.status, answered.message) == (400, "offset: Your pagination token is invalid.")
        assert (await api.call("GET", f"{LIST}&offset={offset}")).status == 200


async def test_webhooks_of_others() -> None:
    """A webhook of another user or app can be neither read nor changed nor deleted."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        body: dict[str, Any] = {"data": {"filters": [{"action": "added"}]}}
        for token in (fake.register_app("7").access_token, fake.register_app("8", user="12").access_token):
            for method in ("GET", "PUT", "DELETE"):
                answered = await api.call(method, f"/webhooks/{gid}", token=token, json=body)
                assert (answered.status, answered.message) == (403, "You do not have access to this webhook.")
        assert fake.webhook(gid).filters == ()


async def test_duplicates_are_of_one_user() -> None:
    """Another user may have the same target for the same resource; another app of the same user may not."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        for client_id, user, status in (("7", "11", 403), ("7", "12", 201), ("8", "12", 403)):
            token = fake.register_app(client_id, user=user).access_token
            assert (await _create(api, token, target.url)).status == status


OPERATIONS = [
    ("GET", LIST, "webhooks:read"),
    ("GET", "/webhooks/{gid}", "webhooks:read"),
    ("POST", "/webhooks", "webhooks:write"),
    ("PUT", "/webhooks/{gid}", "webhooks:write"),
    ("DELETE", "/webhooks/{gid}", "webhooks:delete"),
    ("GET", "/projects?workspace=1331", "projects:read"),
]


async def test_scopes() -> None:
    """Each operation needs its scope, in a refreshed token too; without it, the answer is that to a wrong token."""
    async with playing() as (fake, api, target):
        scopes = ("webhooks:read", "webhooks:write", "webhooks:delete", "projects:read")
        for number, left_out in enumerate((None, *scopes)):
            app = fake.register_app(str(number), scopes=[one for one in scopes if one != left_out])
            gid = await api.create_gid(f"{target.root}/{number}")
            fake.webhook(gid).app = app.client_id
            form = {name: getattr(app, name) for name in ("client_id", "client_secret", "refresh_token")}
            refreshed = await api.call("POST", "//-/oauth_token", data=form | {"grant_type": "refresh_token"})
            for method, path, needed in OPERATIONS:
                data = {"resource": PROJECT, "target": f"{target.root}/new-{number}", "filters": []}
                token = refreshed.tree["access_token"] if method == "GET" else app.access_token
                answered = await api.call(method, path.format(gid=gid), token=token, json={"data": data})
                assert (answered.status == 401) is (needed == left_out), (left_out, method, path)
                assert answered.status < 300 or answered.message == "Not Authorized"
