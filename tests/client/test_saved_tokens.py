"""Several processes that share one authorization: what one saves the others load, also if refresh tokens rotate."""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from asana_webhooks import AsanaSession, OAuthToken, Secret, TokenRefreshError, TokenSet, get_webhooks
from asana_webhooks.client import oauth
from asana_webhooks.testing import FakeAsana
from asana_webhooks.testing.oauth import AppRecord
from tests.helpers.tokens import oauth_token
from tests.helpers.virtual import jumping_clock


@pytest.fixture
async def seconds() -> AsyncIterator[Callable[[], float]]:
    """Let waits end at once, and return the clock they move."""
    with jumping_clock(patience=5e-3) as clock:
        yield clock


@define
class TokenFile:
    """The file all processes share."""

    path: Path
    loads: int = 0

    async def save(self, tokens: TokenSet) -> None:
        names = {"access_token": tokens.access_token.reveal(), "refresh_token": tokens.refresh_token.reveal()}
        self.path.write_text(json.dumps(names | {"expires_at": tokens.expires_at.isoformat()}))

    async def load(self) -> TokenSet | None:
        self.loads += 1
        if not self.path.exists():
            return None
        saved = json.loads(self.path.read_text())
        return TokenSet(
            access_token=Secret(saved["access_token"]),
            refresh_token=Secret(saved["refresh_token"]),
            expires_at=datetime.fromisoformat(saved["expires_at"]),
        )


def process(fake: FakeAsana, app: AppRecord, file: TokenFile, **changes: Any) -> OAuthToken:
    """Return what a process that starts now makes."""
    return oauth_token(fake, app, **({"on_refresh": file.save, "load": file.load} | changes))


async def count_webhooks(fake: FakeAsana, token: OAuthToken) -> int:
    async with AsanaSession(token, base_url=fake.url) as asana:
        return len([webhook async for webhook in get_webhooks(asana, workspace=fake.workspace)])


async def test_one_refresh_is_enough(tmp_path: Path) -> None:
    """What one process has refreshed the next one uses, at its first call and when Asana refuses the token."""
    async with FakeAsana(webhooks=3) as fake:
        app, file = fake.register_app(rotate=True), TokenFile(tmp_path / "tokens.json")
        first, second = (process(fake, app, file) for _ in range(2))
        assert [await count_webhooks(fake, one) for one in (first, second)] == [3, 3]
        assert (await first() == await second(), app.refreshes) == (True, 1)
        fake.revoke_token(await first())
        assert [await count_webhooks(fake, one) for one in (second, first)] == [3, 3]
        assert (await first() == await second(), app.refreshes) == (True, 2)


@pytest.mark.usefixtures("seconds")
async def test_in_any_order(tmp_path: Path) -> None:
    """Whoever asks first, together or in turn, after an end or a refusal: both go on, and tokens are not wasted."""
    async with FakeAsana(webhooks=1) as fake:
        for number, order in enumerate(itertools.product(["a", "b", "both", "ended", "revoked"], repeat=3)):
            app, file = fake.register_app(f"{number}", rotate=True), TokenFile(tmp_path / f"{number}.json")
            a, b = (process(fake, app, file) for _ in range(2))
            issued = await a()
            for step in (*order, "both"):
                if step == "ended":
                    await fake.advance(3600)
                elif step == "revoked":
                    fake.revoke_token(issued)
                else:
                    asking = {"a": [a], "b": [b], "both": [a, b]}[step]
                    counted = await asyncio.gather(*(count_webhooks(fake, one) for one in asking))
                    assert counted == [1] * len(asking), order
                    issued = await asking[0]()
            assert await a() == await b()
            assert app.refreshes <= 1 + order.count("ended") + order.count("revoked"), order


@pytest.mark.usefixtures("seconds")
async def test_while_the_other_process_is_still_saving(tmp_path: Path) -> None:
    """The refresh token is used, its successor not saved yet: a later look finds it."""
    async with FakeAsana() as fake:
        app, file = fake.register_app(rotate=True), TokenFile(tmp_path / "tokens.json")
        saving, go = asyncio.Event(), asyncio.Event()

        async def save_slowly(tokens: TokenSet) -> None:
            saving.set()
            await go.wait()
            await file.save(tokens)

        async def load() -> TokenSet | None:
            found = await file.load()
            if file.loads == 3:  # before the refresh, and at once after it was refused
                go.set()
            return found

        second = process(fake, app, file, load=load)
        winning = asyncio.create_task(process(fake, app, file, load=None, on_refresh=save_slowly)())
        await saving.wait()

        assert await second() == await winning
        assert (app.refreshes, file.loads) == (1, 4)


@pytest.mark.usefixtures("seconds")
async def test_saved_by_another_process_long_ago(tmp_path: Path) -> None:
    """If only its refresh token is still good, the request is sent again with that."""
    async with FakeAsana() as fake:
        app, file = fake.register_app(rotate=True), TokenFile(tmp_path / "tokens.json")
        first = await process(fake, app, file)()
        loads = iter([None, await file.load()])

        async def load() -> TokenSet | None:
            return next(loads)

        second = process(fake, app, file, refresh_token="used-already", load=load)
        await fake.advance(3600)
        assert await second() != first
        assert [one.status for one in fake.requests] == [200, 400, 200]


async def test_withdrawn(tmp_path: Path, seconds: Callable[[], float]) -> None:
    """A refusal that nobody's tokens explain is the error, after three looks, and a try of the token given first."""
    async with FakeAsana() as fake:
        app, file = fake.register_app(rotate=True), TokenFile(tmp_path / "tokens.json")
        looked: list[int] = []

        async def load() -> TokenSet | None:
            looked.append(round(seconds() - began))
            return await file.load()

        began = seconds()
        token = process(fake, app, file, load=load)
        await token()
        await fake.advance(3600)
        app.refresh_token = "withdrawn"
        with pytest.raises(TokenRefreshError, match="Let the user authorize the app again"):
            await token()

        assert (looked, len(fake.requests)) == ([0, 0, 0, 1, 3], 3)
        file.path.unlink()
        for load_or_none in (load, None):
            with pytest.raises(TokenRefreshError):
                await process(fake, app, file, refresh_token="never-good", load=load_or_none)()
        assert (round(seconds() - began), len(fake.requests)) == (2 * 3, 3 + 2)


async def test_refused_for_another_reason(tmp_path: Path) -> None:
    """Saved tokens do not help against a wrong client secret, so nobody looks for them again."""
    async with FakeAsana() as fake:
        app, file = fake.register_app(), TokenFile(tmp_path / "tokens.json")
        with pytest.raises(TokenRefreshError, match="invalid_client"):
            await process(fake, app, file, client_secret="wrong")()

        assert (file.loads, len(fake.requests)) == (1, 1)


@pytest.mark.usefixtures("seconds")
async def test_authorized_again(tmp_path: Path) -> None:
    """A program that starts with the new refresh token uses it when Asana refuses the saved one, and so do the rest."""
    async with FakeAsana(webhooks=1) as fake:
        app, file = fake.register_app(), TokenFile(tmp_path / "tokens.json")
        running = process(fake, app, file)
        withdrawn = await running()
        app.refresh_token = "authorized-again"
        fake.revoke_token(withdrawn)
        for one in (process(fake, app, file), running):
            assert await count_webhooks(fake, one) == 1

        assert app.refreshes == 2


async def test_given_and_saved(tmp_path: Path) -> None:
    """Of the tokens given and the saved ones, those that last longer are used; the same one, if refused, is not."""
    async with FakeAsana(webhooks=1) as fake:
        app, file = fake.register_app(rotate=True), TokenFile(tmp_path / "tokens.json")
        issued = await process(fake, app, file)()
        newer = {"access_token": issued, "expires_at": fake.clock.now() + timedelta(hours=1)}
        older = TokenSet(access_token=Secret("1"), refresh_token=Secret("2"), expires_at=fake.clock.now())
        fake.revoke_token(issued)
        assert await count_webhooks(fake, process(fake, app, file, access_token=issued)) == 1

        await file.save(older)
        await fake.advance(3600)
        assert await count_webhooks(fake, process(fake, app, file, **newer)) == 1
        assert [one.status for one in fake.requests if one.operation == "oauth_token"] == [200] * 3


async def test_what_was_not_saved_is_not_forgotten(tmp_path: Path) -> None:
    """Tokens older than the ones in use, because saving had failed, do not replace them."""
    async with FakeAsana() as fake:
        app, file = fake.register_app(rotate=True), TokenFile(tmp_path / "tokens.json")
        full = iter([False, True, False])

        async def save(tokens: TokenSet) -> None:
            if next(full):
                raise OSError
            await file.save(tokens)

        token = process(fake, app, file, on_refresh=save)
        await token()
        await fake.advance(600)
        for _ in range(2):
            await token.renew(await token())

        assert app.refreshes == 3
        assert json.loads(file.path.read_text())["refresh_token"] == app.refresh_token


NEVER = datetime.max.replace(tzinfo=UTC)
SAVED: dict[str, Any] = {"access_token": Secret("1"), "refresh_token": Secret("2"), "expires_at": NEVER}
USELESS: list[tuple[Any, str]] = [
    ({"access_token": "canary-of-load"}, "load must return a TokenSet or None, not dict"),
    (TokenSet(**SAVED | {"access_token": "canary-of-load"}), "access_token must be a Secret, not str"),
    (TokenSet(**SAVED | {"access_token": Secret("canary-of-load\n")}), "access_token has a space, a line break"),
    (TokenSet(**SAVED | {"refresh_token": Secret("")}), "refresh_token is empty"),
    (TokenSet(**SAVED | {"expires_at": datetime.max}), "expires_at must be a datetime with a time zone"),  # noqa: DTZ901
    (TokenSet(**SAVED | {"expires_at": None}), "expires_at must be a datetime with a time zone"),
]


async def test_saved_tokens_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning says what is wrong with them without showing one, and the tokens in use are refreshed."""
    async with FakeAsana() as fake:
        for number, (useless, problem) in enumerate(USELESS):

            async def load(useless: Any = useless) -> Any:
                return useless

            app = fake.register_app(f"{number}")
            assert await process(fake, app, TokenFile(tmp_path / "tokens.json"), load=load)()
            assert problem in caplog.messages[number].removeprefix("load returned tokens that cannot be used: ")

    assert len(caplog.records) == len(USELESS)
    assert "canary" not in caplog.text


@pytest.mark.parametrize("how", ["OSError", "CancelledError", "TimeoutError"])
async def test_loading_that_fails(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error or no end costs a warning without its text, and the tokens in use are refreshed."""
    monkeypatch.setattr(oauth, "_HOOK_TIMEOUT", 0.05)
    caplog.set_level(logging.INFO)
    words = "canary-of-load"

    async def load() -> Any:
        match how:
            case "TimeoutError":
                await asyncio.Event().wait()
            case "CancelledError":
                raise asyncio.CancelledError(words)
        raise OSError(words)

    async with FakeAsana() as fake:
        app = fake.register_app()
        assert await process(fake, app, TokenFile(tmp_path / "tokens.json"), load=load)()

    assert [one.getMessage() for one in caplog.records] == [f"load failed with {how}; the tokens in use stay"]
