"""Event loops, closing, and the second sending that aiohttp hides: what a session promises beyond one call."""

import asyncio
import gc
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import aiohttp
import pytest

from asana_webhooks.client.oauth import OAuthToken, TokenSet
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    UnexpectedResponseError,
)
from asana_webhooks.testing import FakeAsana
from tests.helpers.raw import (
    CALLS,
    CREATE,
    DELETE,
    GET,
    LIST,
    PUT,
    TOKEN,
    Call,
    RawServer,
    assert_nothing_left,
    dripping,
    framed,
    raw_server,
    saying,
    session,
    until,
)
from tests.helpers.tokens import oauth_token
from tests.subscriptions.scenes import LoopClock

ANOTHER_LOOP = "belongs to another event loop"

ResultT = TypeVar("ResultT")


@pytest.fixture(autouse=True)
def debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loops look for calls from the wrong thread, and for coroutines that nobody awaited."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


def in_thread(work: Callable[[], Coroutine[Any, Any, Any]]) -> BaseException | None:
    """Run *work* in a loop of another thread; return what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return raised[0] if raised else None


class TestLoops:
    @pytest.mark.parametrize("call", CALLS, ids=str)
    def test_one_after_another(self, call: Call) -> None:
        """A session that one loop has left behind tells the next one so, and can be closed there without a sound."""
        made: list[AsanaSession] = []

        async def first() -> None:
            async with raw_server(saying(framed(GET.good)), keep=True) as server:
                made.append(session(server.url))
                await made[0].send(GET.request)

        asyncio.run(first())
        with pytest.raises(ConfigurationError, match=ANOTHER_LOOP):
            asyncio.run(made[0].send(call.request))
        with pytest.raises(ConfigurationError, match=ANOTHER_LOOP):
            asyncio.run(made[0].__aenter__())
        asyncio.run(made[0].aclose())
        asyncio.run(made[0].aclose())
        with pytest.raises(ConfigurationError, match="closed"):
            asyncio.run(made[0].send(call.request))

    async def test_of_two_threads(self) -> None:
        """A second thread's loop may neither send nor close, and the first one's calls go on."""
        asyncio.get_running_loop().set_debug(True)
        async with raw_server(saying(framed(GET.good)), keep=True) as server, session(server.url) as asana:
            await asana.send(GET.request)
            for work in (lambda: asana.send(GET.request), asana.__aenter__, asana.aclose):
                error = await asyncio.to_thread(in_thread, work)
                assert isinstance(error, ConfigurationError)
                assert ANOTHER_LOOP in str(error)

            assert (await asana.send(GET.request)).gid == "43214"
            assert server.connections == 1

    async def test_closing_from_a_thread_leaves_calls_alone(self) -> None:
        """It is refused, and a call that waits in its own loop still ends when it should."""
        clock = LoopClock()
        async with raw_server(dripping(b"", b"")) as server, session(server.url, timeout=60) as asana:
            call = asyncio.create_task(asana.send(CREATE.request))
            await server.got(1)
            error = await asyncio.to_thread(in_thread, asana.aclose)
            clock.turn(60)
            with pytest.raises(CreateOutcomeUnknownError, match="waiting for an answer after"):
                await call

        assert isinstance(error, ConfigurationError)

    def test_a_loop_that_ends_in_the_middle_of_a_call(self) -> None:
        """The call is cancelled with its loop; the session can be closed in the next one."""
        made: list[AsanaSession] = []

        async def first() -> None:
            async with raw_server(dripping(b"", b"")) as server:
                made.append(session(server.url))
                calls.extend(asyncio.create_task(made[0].send(call.request)) for call in CALLS)
                await server.got(len(CALLS))

        calls: list[asyncio.Task[Any]] = []
        asyncio.run(first())

        assert all(call.done() for call in calls)
        for call in calls:
            assert call.cancelled() or isinstance(call.exception(), AsanaError)
        asyncio.run(made[0].aclose())


async def in_new_loop(work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Run *work* in a loop of another thread, and close that loop."""
    return await asyncio.to_thread(lambda: asyncio.run(work()))


class TestTokenProviders:
    """One `OAuthToken` in one loop after another; the fake runs in the loop of the test."""

    async def test_one_loop_per_call(self) -> None:
        """Each loop goes on with the tokens of the one before, and refreshes them when they end or are refused."""
        async with FakeAsana(webhooks=2) as fake:
            app = fake.register_app(rotate=True)
            token = oauth_token(fake, app)

            async def count() -> int:
                async with AsanaSession(token, base_url=fake.url) as asana:
                    return len([webhook async for webhook in get_webhooks(asana, workspace=fake.workspace)])

            for refreshes in (1, 2, 3):
                assert [await in_new_loop(count) for _ in range(3)] == [2] * 3
                assert app.refreshes == refreshes
                if refreshes == 1:
                    fake.revoke_token(await in_new_loop(token))
                await fake.advance(3600 * (refreshes - 1))

    async def test_beside_each_other(self) -> None:
        """A second loop is refused while the first is not closed, with and without a token to refresh."""
        async with FakeAsana() as fake:
            app = fake.register_app()
            for given in ({}, {"access_token": "2/11/22:good"}):
                token = oauth_token(fake, app, **given)
                first = await token()
                for work in (token, lambda: token.renew(first), lambda: token.renew("another")):  # noqa: B023
                    with pytest.raises(ConfigurationError, match=r"each closed before the next, as asyncio\.run does"):
                        await in_new_loop(work)
                assert await token() == first

    async def test_a_lent_http_session(self) -> None:
        """It cannot follow to the next loop, and the error says whose it is."""
        async with FakeAsana() as fake:
            made: list[OAuthToken] = []

            async def first() -> str:
                async with aiohttp.ClientSession() as http:
                    made.append(oauth_token(fake, fake.register_app(), http=http))
                    return await made[0]()

            await in_new_loop(first)
            with pytest.raises(ConfigurationError, match="http= to this OAuthToken belongs to an event loop that is c"):
                await made[0]()

    async def test_a_loop_that_ends_during_a_refresh(self) -> None:
        """The request ends with its loop, and the next loop sends another one."""
        async with FakeAsana() as fake:
            app, go = fake.register_app(), threading.Event()
            token = oauth_token(fake, app)
            hold = fake.hold("oauth_token")

            async def ask() -> None:
                asking = asyncio.create_task(token())
                await asyncio.to_thread(go.wait, 10)
                assert not asking.done()

            first = asyncio.create_task(in_new_loop(ask))
            await hold.reached()
            go.set()
            await first
            assert await in_new_loop(token)
            hold.release()

    async def test_a_loop_that_ends_while_tokens_are_saved(self) -> None:
        """They are kept, and saved by the first call in the next loop, before it has them."""
        async with FakeAsana() as fake:
            app = fake.register_app(rotate=True)
            given: list[TokenSet] = []

            async def save(tokens: TokenSet) -> None:
                given.append(tokens)
                if len(given) == 1:
                    await asyncio.Event().wait()

            async def ask() -> None:
                asking = asyncio.create_task(token())
                await until(lambda: given)
                assert not asking.done()

            token = oauth_token(fake, app, on_refresh=save)
            await in_new_loop(ask)
            issued = await in_new_loop(token)

            assert [one.access_token.reveal() for one in given] == [issued] * 2
            assert given[1].refresh_token.reveal() == app.refresh_token
            assert (await in_new_loop(token), app.refreshes, len(given)) == (issued, 1, 2)


class TestClosing:
    @pytest.fixture(autouse=True)
    async def nothing_left(self) -> AsyncIterator[None]:
        """Fail a test that leaves a task behind."""
        asyncio.get_running_loop().set_debug(True)
        yield
        assert_nothing_left()

    @pytest.mark.parametrize("call", CALLS, ids=str)
    async def test_before_a_call(self, call: Call) -> None:
        """Closing twice is fine, and nothing is sent any more."""
        async with raw_server(saying(framed(call.good))) as server:
            asana = session(server.url)
            await asana.aclose()
            await asana.aclose()
            with pytest.raises(ConfigurationError, match="closed"):
                await asana.send(call.request)

            assert server.connections == 0

    @pytest.mark.parametrize("call", CALLS, ids=str)
    async def test_a_lent_session_that_is_closed_while_calls_queue_for_its_connection(self, call: Call) -> None:
        """Those who queue are cancelled by aiohttp and by nobody else, so they end in an error that says what to do."""
        async with raw_server(dripping(b"", b"")) as server:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
                async with session(server.url, http=http) as asana:
                    first = asyncio.create_task(asana.send(GET.request))
                    await server.got(1)
                    second = asyncio.create_task(asana.send(call.request))
                    await until(lambda: http.connector is not None and http.connector._waiters)
                    await http.close()
                    for task in (first, second):
                        with pytest.raises(AsanaError):
                            await task
                    assert "session passed as http= is closed" in str(second.exception())
            assert len(server.requests) == 1

    @pytest.mark.parametrize("head", [b"", b"HTTP/1.1 2", b"HTTP/1.1 201 So\r\nContent-Length: 99\r\n\r\n{"])
    async def test_during_calls(self, head: bytes) -> None:
        """All five end at once, wherever their answers stand, and say what is known."""
        calls = [call for call in CALLS if call is not DELETE or not head.endswith(b"{")]
        async with raw_server(dripping(head, b"")) as server:
            asana = session(server.url)
            tasks = [asyncio.create_task(asana.send(call.request)) for call in calls]
            await server.got(len(calls))
            await asyncio.gather(asana.aclose(), asana.aclose())
            for call, task in zip(calls, tasks, strict=True):
                kind = CreateOutcomeUnknownError if call is CREATE else ConfigurationError
                with pytest.raises(kind, match=r"closed|cut off"):
                    await task

    async def test_a_lent_session_survives_everything(self) -> None:
        """After cuts, stalls, garbage, closing and cancelling it is open, and the next call on it works."""
        answers = [b"", b"HTTP/1.1 2", b"\0\r\n\r\n", framed(b"<html>"), framed(b"", "Content-Encoding: br"), GET.good]
        async with aiohttp.ClientSession() as http:
            async with raw_server(saying(*answers, framed(GET.good))) as server:
                for _ in answers:
                    async with session(server.url, http=http, attempts=1) as asana:
                        for call in CALLS:
                            await asyncio.wait({asyncio.create_task(swallow(asana, call))})
            async with raw_server(dripping(b"", b"")) as silent:
                asana = session(silent.url, http=http)
                closed, cancelled = (asyncio.create_task(swallow(asana, GET)) for _ in range(2))
                await silent.got(2)
                cancelled.cancel()
                await asana.aclose()
                await asyncio.wait({closed, cancelled})
            assert not http.closed
            async with raw_server(saying(framed(GET.good)), keep=True) as server:
                async with session(server.url, http=http) as asana:
                    await asana.send(GET.request)
                async with http.get(server.url) as response:
                    assert response.status == 200

    async def test_nothing_is_left_for_the_garbage_collector(self) -> None:
        """A session that was closed complains of nothing unclosed, even right after a call that failed."""
        with warnings.catch_warnings(record=True) as complaints:
            warnings.simplefilter("always")
            async with raw_server(saying(framed(GET.good)[:-3])) as server:
                async with session(server.url) as asana:
                    with pytest.raises(UnexpectedResponseError):
                        await asana.send(GET.request)
            del asana
            gc.collect()

        assert [str(one.message) for one in complaints] == []


async def swallow(asana: AsanaSession, call: Call) -> None:
    try:
        await asana.send(call.request)
    except AsanaError as error:
        assert TOKEN not in "".join(traceback.format_exception(error))  # noqa: PT017 - any of ours will do


class TestHiddenSendings:
    """A server that answers once, and then reads the next request of the connection and resets it."""

    @pytest.fixture(params=["own", "lent"])
    async def http(self, request: pytest.FixtureRequest) -> AsyncIterator[aiohttp.ClientSession | None]:
        """Return a lent session, or none."""
        if request.param == "own":
            yield None
        else:
            async with aiohttp.ClientSession() as http:
                yield http

    async def make(self, call: Call, http: aiohttp.ClientSession | None, after: bytes) -> tuple[Any, list[str]]:
        """Make *call* on a warm connection that is reset on it, with *after* as what later connections hear."""
        resets = 0

        async def talk(writer: asyncio.StreamWriter) -> None:
            nonlocal resets
            if len(server.requests) == 1:
                writer.write(framed(GET.good))
            elif not resets:
                resets += 1
                writer.transport.abort()
            else:
                writer.write(after)

        server: RawServer
        async with raw_server(talk, keep=True) as server, session(server.url, http=http) as asana:
            await asana.send(GET.request)
            try:
                result = await asana.send(call.request)
            except AsanaError as error:
                result = error
        return result, [one.method for one in server.requests[1:]]

    @pytest.mark.parametrize("call", [GET, LIST, PUT, DELETE], ids=str)
    async def test_go_well(self, call: Call, http: aiohttp.ClientSession | None) -> None:
        """What may be repeated is, by aiohttp or by us, and nobody notices."""
        result, methods = await self.make(call, http, framed(call.good))

        assert not isinstance(result, AsanaError)
        assert methods == [call.request.method] * 2

    async def test_of_a_delete_that_had_worked(self, http: aiohttp.ClientSession | None) -> None:
        """The first answer anyone sees is 404, and is a success."""
        result, methods = await self.make(DELETE, http, framed(b"{}", status=404))

        assert result is None
        assert methods == ["DELETE"] * 2

    async def test_of_a_create_there_are_none(self, http: aiohttp.ClientSession | None) -> None:
        """It is sent once, and what became of it is unknown."""
        result, methods = await self.make(CREATE, http, framed(CREATE.good, status=201))

        assert isinstance(result, CreateOutcomeUnknownError)
        assert methods == ["POST"]
