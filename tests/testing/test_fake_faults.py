"""Faults of the API's operations, whose turn it is, and what a fault may say."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.testing import Fault
from tests.helpers.virtual import jumping_clock
from tests.testing.fake_play import PROJECT, playing

LIST = "/webhooks?workspace=1331"


STATUS: list[tuple[int, str]] = [
    (400, "Bad request"),
    (401, "Not Authorized"),
    (402, "This feature is not available in the plan of this workspace."),
    (403, "Forbidden"),
    (404, "No matching route for request"),
    (429, "You've made too many requests and hit a rate limit. Please retry after the given amount of time."),
    (451, "Error"),
    (500, "Server Error"),
    (502, "Bad Gateway"),
    (503, "Service Unavailable"),
    (504, "Gateway Timeout"),
]


async def test_status() -> None:
    """A scripted status comes in Asana's envelope with its usual sentence, once."""
    async with playing() as (fake, api, _):
        for status, message in STATUS:
            fake.script(Fault(at="getWebhooks", status=status))
            answered = await api.call("GET", LIST)
            assert (answered.status, answered.message) == (status, message)
            assert ("phrase" in answered.tree["errors"][0]) is (status == 500)
            assert answered.headers["Content-Type"] == "application/json; charset=UTF-8"
            assert (await api.call("GET", LIST)).status == 200
            assert [request.status for request in fake.requests[-2:]] == [status, 200]


async def test_own_words() -> None:
    """Message and headers can be chosen; an empty message is one too."""
    async with playing() as (fake, api, _):
        fake.script(
            Fault(at="*", status=500, message="Oops", headers={"Asana-Change": "name=x"}),
            Fault(at="*", status=500, message=""),
        )
        answered = await api.call("GET", LIST)
        assert (answered.message, answered.headers["Asana-Change"]) == ("Oops", "name=x")
        assert (await api.call("GET", LIST)).tree["errors"][0]["message"] == ""


@pytest.mark.parametrize("body", [None, "<x/>"])
async def test_one_header_of_a_name(body: str | None) -> None:
    """Names that differ in case alone are one header; retry_after goes before headers."""
    async with playing() as (fake, api, _):
        headers = {"content-type": "x/y", "RETRY-AFTER": "1", "X-Tab": "a\tb", "X-E": "é☃"}
        fake.script(Fault(at="*", status=503, body=body, headers=headers, retry_after=2))
        url = fake.url + LIST
        async with api.http.get(url) as response:
            assert response.headers.getall("Content-Type") == ["x/y"]
            assert response.headers.getall("Retry-After") == ["2"]
            assert (response.headers["X-Tab"], response.headers["X-E"]) == ("a\tb", "é☃")


async def test_retry_after() -> None:
    """Retry-After can be a number or any text."""
    async with playing() as (fake, api, _):
        for retry_after in (30, 0.5, "Fri, 02 Jan 2026 03:04:05 GMT", "soon", -1):
            fake.script(Fault(at="getWebhooks", status=429, retry_after=retry_after))
            assert (await api.call("GET", LIST)).headers["Retry-After"] == str(retry_after)


RAW_ANSWERS: list[tuple[Fault, int, str, str]] = [
    (Fault(at="*", status=200, body="<html>", headers={"Content-Type": "text/html"}), 200, "<html>", "text/html"),
    (Fault(at="*", status=200, body=""), 200, "", "application/json; charset=UTF-8"),
    (Fault(at="*", status=200), 200, "", "application/json; charset=UTF-8"),
    (Fault(at="*", status=200, body='{"data":5}'), 200, '{"data":5}', "application/json; charset=UTF-8"),
    (
        Fault(at="*", status=502, body=b"\x00down", headers={"Content-Type": "text/plain"}),
        502,
        "\x00down",
        "text/plain",
    ),
    (Fault(at="*", status=301, headers={"Location": "/x"}), 301, "", "application/json; charset=UTF-8"),
    (Fault(at="*", status=308, headers={"Location": "/x"}), 308, "", "application/json; charset=UTF-8"),
]


async def test_raw_answers() -> None:
    """Any answer at all can be scripted."""
    async with playing() as (fake, api, _):
        for fault, status, text, content_type in RAW_ANSWERS:
            fake.script(fault)
            answered = await api.call("GET", LIST)
            assert (answered.status, answered.text, answered.headers["Content-Type"]) == (status, text, content_type)
            assert answered.headers.get("Location") == fault.headers.get("Location")


@pytest.mark.parametrize("executed", [True, False])
async def test_executed_or_not(executed: bool) -> None:
    """A create that is answered with 500 may have happened all the same."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="createWebhook", status=500, executed=executed))
        assert (await api.create(target.url)).status == 500
        assert bool(fake.webhooks) is executed
        assert bool(target.got) is executed


async def test_reset() -> None:
    """The connection is reset, and nothing was done."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="createWebhook", do="reset"))
        with pytest.raises(aiohttp.ClientOSError):
            await api.create(target.url)
        assert (fake.webhooks, target.got, fake.requests[0].status) == ({}, [], None)


async def test_lose_answer() -> None:
    """The operation is done, and the connection closed without a word."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="createWebhook", do="lose_answer"))
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await api.create(target.url)
        assert (len(fake.webhooks), fake.requests[0].status) == (1, None)


async def test_truncate() -> None:
    """The operation is done, and the answer ends in the middle."""
    async with playing() as (fake, api, target):
        for size in [0, 1, 20]:
            fake.script(Fault(at="createWebhook", do="truncate", size=size))
            with pytest.raises(aiohttp.ClientPayloadError):
                await api.create(target.url)
            assert (len(fake.webhooks), fake.requests[0].status) == (1, 201)


@pytest.mark.parametrize("when", ["before", "before_answer"])
async def test_delay(when: str) -> None:
    """A request can take its time; a client that gives up before has done something, or nothing yet."""
    async with playing(heartbeat=None) as (fake, api, target):
        fake.script(Fault(at="createWebhook", do="delay", seconds=0.2, when=when))
        with jumping_clock():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await api.create(target.url)
            assert len(fake.webhooks) == (when == "before_answer")
            await fake.settle()
        assert len(fake.webhooks) == 1, "the fake goes on although nobody waits for the answer"


async def test_any_operation() -> None:
    """A star stands for every operation, not for deliveries."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        fake.script(Fault(at="*", status=503, times=None))
        calls = [
            ("GET", LIST),
            ("GET", f"/webhooks/{gid}"),
            ("PUT", f"/webhooks/{gid}"),
            ("DELETE", f"/webhooks/{gid}"),
            ("GET", "/projects?workspace=1331"),
        ]
        assert [(await api.call(*call)).status for call in calls] == [503] * 5
        assert (await api.create(target.root)).status == 503
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert fake.deliveries[-1].status == 200
        fake.faults.clear()
        assert (await api.call("GET", LIST)).status == 200


async def test_fault_of_one_webhook() -> None:
    """A fault can be for requests about one webhook."""
    async with playing(webhooks=2) as (fake, api, _):
        first, second = fake.webhooks
        fake.script(Fault(at="getWebhook", status=404, webhook=second, times=None))
        assert (await api.call("GET", f"/webhooks/{first}")).status == 200
        assert (await api.call("GET", f"/webhooks/{second}")).status == 404


async def test_whose_turn_it_is() -> None:
    """Of several faults that decide, each has its turn, in order; `after` counts requests with other faults too."""
    for faults, statuses in (
        ([Fault(at="*", status=401, after=1)], [200, 401, 200]),
        (
            [Fault(at="*", status=429), Fault(at="getWebhooks", status=500, times=2), Fault(at="*", status=503)],
            [429, 500, 500, 503, 200],
        ),
        ([Fault(at="*", status=502, after=2), Fault(at="*", status=500)], [500, 200, 502, 200]),
        ([Fault(at="delivery", do="lose"), Fault(at="oauth_token", status=503)], [200]),
    ):
        async with playing() as (fake, api, _):
            fake.script(*faults)
            assert [(await api.call("GET", LIST)).status for _ in statuses] == statuses


async def test_delays_apply_besides() -> None:
    """Delays apply besides what decides; two of the same moment take turns."""
    async with playing() as (fake, api, _):
        fake.script(
            Fault(at="*", do="delay", seconds=0.03),
            Fault(at="*", do="delay", seconds=0.03),
            Fault(at="*", do="delay", seconds=0.03, when="before_answer"),
            Fault(at="*", status=500),
        )
        took = []
        for status in (500, 200, 200):
            started = time.monotonic()
            assert (await api.call("GET", LIST)).status == status
            took.append(time.monotonic() - started)
        assert took[0] >= 0.06
        assert took[1] >= 0.03


FAULTS_THAT_MAKE_NO_SENSE: list[tuple[dict[str, Any], str]] = [
    ({"at": "getTask"}, "at must be one of *"),
    ({"at": 5}, "at must be of type str, not 5"),
    ({"at": "*", "do": "explode"}, "do for at='*' must be one of answer, reset, lose_answer, truncate, delay, not"),
    ({"at": "getWebhook", "do": "wrong_secret"}, "do for at='getWebhook' must be one of"),
    ({"at": "handshake"}, "do for at='handshake' must be one of stranger"),
    ({"at": "delivery"}, "do for at='delivery' must be one of duplicate"),
    ({"at": "*", "when": "after_handshake"}, "when for at='*' must be one of before, before_answer, not"),
    ({"at": "*", "when": 5}, "when must be of type str"),
    ({"at": "*", "times": 0}, "times must be a whole number of at least 1, not 0"),
    ({"at": "*", "times": 1.5}, "times must be a whole number of at least 1"),
    ({"at": "*", "times": True}, "times must be a whole number of at least 1"),
    ({"at": "*", "after": -1}, "after must be a whole number of at least 0"),
    ({"at": "*", "status": 100}, "status must be a whole number from 200 to 599"),
    ({"at": "*", "status": 600}, "status must be a whole number from 200 to 599"),
    ({"at": "*", "status": "500"}, "status must be a whole number"),
    ({"at": "*", "do": "delay", "seconds": float("inf")}, "seconds must be a number of at least 0"),
    ({"at": "*", "do": "delay", "seconds": float("nan")}, "seconds must be a number of at least 0"),
    ({"at": "*", "retry_after": [1]}, "retry_after must be a string or a number"),
    ({"at": "*", "retry_after": True}, "retry_after must be a string or a number"),
    ({"at": "*", "retry_after": "1\r\nX: y"}, "retry_after has an invalid header value"),
    ({"at": "*", "headers": [1]}, "headers must be a mapping of strings to strings"),
    ({"at": "*", "headers": {"a": 1}}, "headers must be a mapping of strings to strings"),
    ({"at": "*", "headers": {"a": "b\n"}}, "headers has an invalid header value"),
    ({"at": "*", "headers": {"a": "\x07"}}, "headers has an invalid header value: '\\x07'"),
    ({"at": "*", "headers": {"a": "\x7f"}}, "headers has an invalid header value"),
    ({"at": "*", "headers": {"a": "\ud800"}}, "headers contains a lone surrogate"),
    ({"at": "*", "headers": {"a b": "c"}}, "headers cannot include a header named 'a b'"),
    ({"at": "*", "headers": {"": "c"}}, "headers cannot include a header named ''"),
    ({"at": "*", "headers": {"é": "c"}}, "headers cannot include a header named 'é'"),
    ({"at": "*", "headers": {"a\n": "c"}}, "headers cannot include a header named 'a\\n'"),
    ({"at": "*", "headers": {"content-Length": "5"}}, "headers cannot include a header named 'content-Length'"),
    ({"at": "*", "headers": {"Transfer-Encoding": "chunked"}}, "headers cannot include a header named 'Transfer-"),
    ({"at": "*", "retry_after": "\x00"}, "retry_after has an invalid header value"),
    ({"at": "*", "body": "\ud800"}, "body contains a lone surrogate"),
    ({"at": "*", "message": "\ud800"}, "message contains a lone surrogate"),
    ({"at": "delivery", "do": "forge", "secret": "\ud800"}, "secret contains a lone surrogate"),
    ({"at": "delivery", "do": "tamper", "body": "\ud800"}, "body contains a lone surrogate"),
    ({"at": "*", "body": 5}, "body must be of type str | bytes, not 5"),
    ({"at": "*", "message": 5}, "message must be of type str"),
    ({"at": "*", "webhook": 5}, "webhook must be of type str"),
    ({"at": "*", "executed": 1}, "executed must be of type bool"),
]


def test_faults_that_make_no_sense() -> None:
    """A fault that cannot be is refused when it is made, with the member and what it may be."""
    for members, message in FAULTS_THAT_MAKE_NO_SENSE:
        with pytest.raises(ConfigurationError) as caught:
            Fault(**members)
        assert str(caught.value).startswith(message)


def test_secret_is_hidden() -> None:
    """The secret of a hostile fault does not show."""
    assert "hidden" not in repr(Fault(at="handshake", do="stranger", secret="hidden"))


async def test_holds() -> None:
    """Held requests wait until they are let go; several can be held at once, at several moments."""
    async with playing() as (fake, api, _):
        before = fake.hold("getWebhooks", times=None)
        later = fake.hold("getWebhooks", when="before_answer")
        first = asyncio.create_task(api.call("GET", LIST))
        await before.reached()
        second = asyncio.create_task(api.call("GET", LIST))
        await before.reached(2)
        await fake.settle()
        assert (before.held, later.held) == (2, 0)
        before.release()
        await later.reached()
        assert (before.held, later.waiting) == (0, 1)
        assert (await second).status == 200
        assert not first.done()
        later.release()
        assert (await first).status == 200
        assert (await api.call("GET", LIST)).status == 200, "a released hold lets everything pass"


async def test_hold_and_fault_together() -> None:
    """A hold does not take the turn of a fault."""
    async with playing() as (fake, api, _):
        hold = fake.hold("getWebhooks")
        fake.script(Fault(at="getWebhooks", status=503))
        call = asyncio.create_task(api.call("GET", LIST))
        await hold.reached()
        hold.release()
        assert (await call).status == 503


async def test_holds_that_make_no_sense() -> None:
    """A hold needs a place and a moment that exist."""
    async with playing() as (fake, _, _):
        for at, when in [
            ("createWebhook", "after"),
            ("getWebhook", "after_handshake"),
            ("delivery", "after"),
            ("nowhere", "before"),
        ]:
            with pytest.raises(ConfigurationError, match="must be one of"):
                fake.hold(at, when=when)


async def test_settle_waits_after_release() -> None:
    """What has been let go counts as under way at once."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        hold = fake.hold("delivery")
        fake.change(PROJECT, field="name")
        await hold.reached()
        await fake.settle()
        assert len(target.deliveries) == 1
        hold.release()
        await fake.settle()
        assert len(target.deliveries) == 2


async def test_clear_lets_go() -> None:
    """Clearing the script releases what is held."""
    async with playing() as (fake, api, _):
        hold = fake.hold("getWebhooks")
        call = asyncio.create_task(api.call("GET", LIST))
        await hold.reached()
        fake.faults.clear()
        assert (await call).status == 200


async def test_hold_of_handshake_and_heartbeat() -> None:
    """Handshakes and heartbeats can be held too, before and after the handshake's answer."""
    async with playing() as (fake, api, target):
        holds = [fake.hold("handshake"), fake.hold("handshake", when="after"), fake.hold("heartbeat")]
        create = asyncio.create_task(api.create(target.url))
        seen = []
        for hold in holds:
            await hold.reached()
            seen.append(len(target.got))
            hold.release()
        assert (await create).status == 201
        assert seen == [0, 1, 1]


async def test_hold_of_one_webhook() -> None:
    """A hold can be for one webhook."""
    async with playing(webhooks=2) as (fake, api, _):
        first, second = fake.webhooks
        hold = fake.hold("getWebhook", webhook=second)
        assert (await api.call("GET", f"/webhooks/{first}")).status == 200
        assert hold.waiting == 0


@pytest.mark.parametrize("do", ["truncate", "lose_answer", "delay"])
async def test_client_gone_before_the_answer(do: str) -> None:
    """An answer for a client that has gone is dropped, and what it asked for is done all the same."""
    async with playing() as (fake, api, target):
        hold = fake.hold("createWebhook", when="before_answer")
        fake.script(Fault(at="createWebhook", do=do))
        create = asyncio.create_task(api.create(target.url))
        await hold.reached()
        create.cancel()
        await asyncio.wait([create])
        await api.call("GET", LIST)  # by now the server has seen that the other connection is closed
        hold.release()
        await fake.settle()
        assert len(fake.webhooks) == 1
