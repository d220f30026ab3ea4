"""The fake's token endpoint over real sockets: what it issues, to whom, for how long, and how it goes wrong."""

import asyncio
import re
from typing import Any

import aiohttp
import pytest

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing import AppRecord, FakeAsana, Fault
from tests.testing.fake_play import Answered, Caller, playing

LIST = "/webhooks?workspace=1331"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def refresh(api: Caller, app: AppRecord, **changes: str) -> Answered:
    """Ask for an access token as the documentation says, with changes."""
    form = {
        "grant_type": "refresh_token",
        "client_id": app.client_id,
        "client_secret": app.client_secret,
        "refresh_token": app.refresh_token,
    } | changes
    async with api.http.post(api.fake.token_url, data=form) as response:
        return Answered(response.status, response.headers.copy(), await response.text())


async def test_the_address() -> None:
    """It lies beside the API, as Asana's does, and is known once the fake runs."""
    fake = FakeAsana()
    with pytest.raises(ConfigurationError, match="not running"):
        _ = fake.token_url
    async with fake:
        assert fake.token_url == fake.url.replace("/api/1.0", "/-/oauth_token")


async def test_issues_a_token_that_is_good() -> None:
    """A refresh token buys an access token for an hour; the API takes it, and the fake's own token too."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        answered = await refresh(api, app)

        tree: dict[str, Any] = answered.tree
        assert (answered.status, tree["token_type"], tree["expires_in"]) == (200, "bearer", 3600)
        assert answered.headers["Content-Type"] == "application/json; charset=UTF-8"
        assert set(tree) == {"access_token", "token_type", "expires_in", "data"}
        assert (rb"2\u002F11\u002F".decode() in answered.text, "/" in answered.text) == (True, False)
        assert re.fullmatch(r"2/11/\d+:[0-9a-f]{32}", tree["access_token"])
        for token in (tree["access_token"], fake.token):
            assert (await api.call("GET", LIST, token=token)).status == 200
        assert app.refreshes == 1


async def test_every_token_is_another_one() -> None:
    """Two refreshes give two tokens, both good."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        tokens = [(await refresh(api, app)).tree["access_token"] for _ in range(2)]

        assert len({*tokens, app.refresh_token}) == 3
        assert [(await api.call("GET", LIST, token=token)).status for token in tokens] == [200, 200]


async def test_a_token_ends_after_an_hour() -> None:
    """The fake's clock ends it, to the second."""
    async with playing() as (fake, api, _):
        token = (await refresh(api, fake.register_app())).tree["access_token"]
        await fake.advance(3599.9)
        assert (await api.call("GET", LIST, token=token)).status == 200
        await fake.advance(0.1)
        answered = await api.call("GET", LIST, token=token)
        assert (answered.status, answered.message) == (401, "Not Authorized")


async def test_revoke() -> None:
    """A revoked token is refused at once; another app's is not; one nobody got cannot be revoked."""
    async with playing() as (fake, api, _):
        first, second = fake.register_app("1"), fake.register_app("2")
        tokens = [(await refresh(api, app)).tree["access_token"] for app in (first, second)]
        fake.revoke_token(tokens[0])
        assert [(await api.call("GET", LIST, token=token)).status for token in tokens] == [401, 200]
        with pytest.raises(ConfigurationError, match="this access token was not issued to an app") as caught:
            fake.revoke_token("2/11/1:canary")
        assert "canary" not in str(caught.value)


async def test_a_token_goes_behind_bearer() -> None:
    """An issued token is taken where Asana takes it, and nowhere else; spaces around a header do not count."""
    async with playing() as (fake, api, _):
        token = (await refresh(api, fake.register_app())).tree["access_token"]
        for header in ["{}", "bearer {}", "Bearer  {}", "Basic {}", "Bearer {} "]:
            answered = await api.call("GET", LIST, headers={"Authorization": header.format(token)})
            assert answered.status == (200 if header == "Bearer {} " else 401)


REFUSALS: list[tuple[dict[str, str], str, str]] = [
    ({"refresh_token": "2/11/1:wrong"}, "invalid_grant", "The `refresh_token` provided was invalid."),
    ({"client_id": "54321"}, "invalid_client", "The `client_id` or `client_secret` provided was invalid."),
    ({"client_secret": "wrong"}, "invalid_client", "The `client_id` or `client_secret` provided was invalid."),
    ({"grant_type": "password"}, "unsupported_grant_type", "The `grant_type` provided is not supported."),
    ({"grant_type": ""}, "invalid_request", "The `grant_type` parameter is required."),
    ({"client_id": ""}, "invalid_request", "The `client_id` parameter is required."),
    ({"client_secret": ""}, "invalid_request", "The `client_secret` parameter is required."),
    ({"refresh_token": ""}, "invalid_request", "The `refresh_token` parameter is required."),
]


async def test_refusals() -> None:
    """Errors are OAuth's, not Asana's usual envelope."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        for changes, code, description in REFUSALS:
            answered = await refresh(api, app, **changes)
            assert answered.status == 400
            assert answered.tree.pop("error_uri").startswith("https://developers.asana.com/")
            assert (answered.tree["error"], answered.tree["error_description"]) == (code, description)
            assert set(answered.tree) == {"error", "error_description", "error_uri"}
            assert app.refreshes == 0


async def test_unreadable_forms() -> None:
    """Whatever is no form with what is needed is a refusal too."""
    async with playing() as (_, api, _):
        for body in [b"", b"\xff=\xff", b"grant_type", b"{}"]:
            answered = await api.call("POST", "//-/oauth_token", data=body, headers=FORM)
            assert (answered.status, answered.tree["error"]) == (400, "invalid_request")


async def test_json_is_not_taken() -> None:
    """The endpoint reads forms, whatever the API reads."""
    async with playing() as (_, api, _):
        answered = await api.call("POST", "//-/oauth_token", json={"grant_type": "refresh_token"})
        assert answered.tree["error_description"] == "The request must be form-encoded."


async def test_other_methods_and_places() -> None:
    """Only a POST beside the API is a request for a token."""
    async with playing() as (_, api, _):
        for method, path in [("GET", "//-/oauth_token"), ("POST", "/-/oauth_token")]:
            answered = await api.call(method, path)
            assert (answered.status, answered.message) == (404, "No matching route for request")


async def test_rotation() -> None:
    """If asked to, the endpoint sends a new refresh token and forgets the old one."""
    async with playing() as (fake, api, _):
        app = fake.register_app(rotate=True)
        old = app.refresh_token
        answered = await refresh(api, app)

        assert answered.tree["refresh_token"] == app.refresh_token != old
        assert (await refresh(api, app, refresh_token=old)).tree["error"] == "invalid_grant"
        assert (await refresh(api, app)).status == 200


async def test_an_authorization_can_be_withdrawn() -> None:
    """A test that changes an app's refresh token plays a user who withdrew it."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        old, app.refresh_token = app.refresh_token, "another"
        assert (await refresh(api, app, refresh_token=old)).tree["error"] == "invalid_grant"


async def test_two_apps_with_one_id() -> None:
    """An id belongs to one app, which each user authorizes once: with one client secret, and tokens of its own."""
    async with playing() as (fake, api, _):
        apps = [fake.register_app("7", user=user) for user in ("11", "12")]
        with pytest.raises(ConfigurationError, match="the fake already has an app '7' of user 12"):
            fake.register_app("7", user="12")
        assert apps[0].client_secret == apps[1].client_secret
        for app in apps:
            tree = (await refresh(api, app)).tree
            assert (tree["data"]["gid"], tree["access_token"].split("/")[1]) == (app.user, app.user)


APPS_THAT_CANNOT_BE: list[tuple[dict[str, Any], str]] = [
    ({"client_id": ""}, "client_id must not be empty"),
    ({"client_id": "\ud800"}, "client_id contains a lone surrogate"),
    ({"user": "me"}, "user must be a gid, a string of digits, not 'me'"),
    ({"scopes": "webhooks:read"}, "scopes must be a list of scopes"),
    ({"scopes": ["webhooks"]}, "a scope must have the form 'webhooks:read', not 'webhooks'"),
    ({"scopes": [5]}, "a scope must have the form 'webhooks:read', not 5"),
]


def test_apps_that_cannot_be() -> None:
    """An app that makes no sense is refused, and can be registered properly afterwards."""
    fake = FakeAsana()
    for arguments, message in APPS_THAT_CANNOT_BE:
        with pytest.raises(ConfigurationError, match=message):
            fake.register_app(**arguments)
    assert fake.register_app().user == "11"


async def test_the_same_in_every_run() -> None:
    """The seed decides the tokens as it does every other secret."""
    apps = [FakeAsana(seed=seed).register_app() for seed in (1, 1, 2)]
    secrets = [(app.client_secret, app.refresh_token) for app in apps]
    assert secrets[0] == secrets[1] != secrets[2]


async def test_records_hold_no_secret() -> None:
    """A request for a token is counted with the others, without what it said; an app's repr hides its secrets."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        await refresh(api, app)

        record = fake.requests[0]
        assert (record.operation, record.path, record.status, record.body) == (
            "oauth_token",
            "/-/oauth_token",
            200,
            None,
        )
        for text in (repr(record), repr(record.headers), repr(app)):
            for secret in (app.client_secret, app.refresh_token, app.access_token):
                assert secret not in text


@pytest.mark.parametrize(("executed", "refreshes"), [(True, 1), (False, 0)])
async def test_scripted_answer(executed: bool, refreshes: int) -> None:
    """A fault answers in the place of the endpoint; other operations do not meet it, nor does it meet theirs."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        fake.script(Fault(at="*", status=502), Fault(at="oauth_token", status=503, executed=executed, retry_after=5))
        answered = await refresh(api, app)

        assert (answered.status, answered.headers["Retry-After"]) == (503, "5")
        assert app.refreshes == refreshes
        assert (await refresh(api, app)).status == 200
        assert (await api.call("GET", LIST)).status == 502


async def test_broken_connections() -> None:
    """A reset issues nothing; a lost answer and a truncated one do."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        faults = [Fault(at="oauth_token", do=do) for do in ("reset", "lose_answer", "truncate")]
        fake.script(*faults, Fault(at="oauth_token", do="delay", seconds=0.01))
        seen = []
        for _ in faults:
            with pytest.raises(aiohttp.ClientError):
                await refresh(api, app)
            seen.append(app.refreshes)
        assert seen == [0, 1, 2]


async def test_hold() -> None:
    """A request for a token can be stopped before it is done, and before it is answered."""
    async with playing() as (fake, api, _):
        app = fake.register_app()
        before, answer = fake.hold("oauth_token"), fake.hold("oauth_token", when="before_answer")
        asking = asyncio.create_task(refresh(api, app))
        await before.reached()
        assert app.refreshes == 0
        before.release()
        await answer.reached()
        assert app.refreshes == 1
        answer.release()
        assert (await asking).status == 200
