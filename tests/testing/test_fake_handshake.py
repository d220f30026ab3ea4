"""The handshake inside createWebhook: what targets must do, and what strangers try."""

import asyncio
import re
from functools import partial

import pytest
from aiohttp import web

from asana_webhooks.models import Secret
from asana_webhooks.testing import FakeAsana, Fault
from tests.testing.fake_play import PROJECT, playing

SERVER = "The remote server which is intended to receive the webhook"


async def test_good_handshake() -> None:
    """The target gets one unsigned POST with a fresh secret of 32 hex digits while the create call is open."""
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)
        [got] = target.got
        assert got.path == "/hook/1?mine=a%20b"
        assert re.fullmatch("[0-9a-f]{32}", got.headers["X-Hook-Secret"])
        assert "X-Hook-Signature" not in got.headers
        assert (got.headers["Content-Type"], got.body) == ("application/json", b"{}")
        [handshake] = fake.handshakes
        assert (handshake.status, handshake.echoed, handshake.stranger) == (200, True, False)
        assert handshake.secret == fake.secret(gid)
        assert handshake.seconds > 0


async def test_secrets_differ_and_repeat_by_seed() -> None:
    """Each webhook has its own secret; the same seed gives the same ones."""

    async def secrets(seed: int) -> list[Secret]:
        async with playing(seed=seed) as (fake, api, target):
            await api.create_gid(target.url)
            await api.create_gid(target.root)
            return [webhook.secret for webhook in fake.webhooks.values()]

    first, again, other = await secrets(1), await secrets(1), await secrets(2)
    assert first == again != other
    assert len(set(first)) == 2


async def test_204_is_fine() -> None:
    """A target may answer 204."""
    async with playing() as (_, api, target):
        echoed = "X-Hook-Secret"
        target.answers.append(lambda: web.Response(status=204, headers={echoed: target.got[0].headers[echoed]}))
        assert (await api.create(target.url)).status == 201


async def test_wrong_status() -> None:
    """Any other status refuses the webhook; a redirect is not followed."""
    async with playing() as (fake, api, target):
        for status in [201, 202, 302, 401, 404, 500]:
            target.answers.append(partial(web.Response, status=status, headers={"Location": target.root}))
            answered = await api.create(target.url)
            assert answered.status == 400
            assert answered.message == f"{SERVER} responded with an incorrect status code: {status}"
            assert (fake.webhooks, fake.handshakes[-1].status) == ({}, status)
        assert len(target.got) == len(fake.handshakes)


async def test_not_echoed() -> None:
    """The same secret must come back, not another one and not none."""
    async with playing() as (fake, api, target):
        for echo in [None, "", "0" * 32]:
            target.echo = lambda _, echo=echo: echo  # type: ignore[misc]
            answered = await api.create(target.url)
            assert (answered.status, answered.message) == (400, f"{SERVER} did not respond with the handshake secret")
            assert (fake.webhooks, fake.handshakes[-1].echoed) == ({}, False)


async def test_unreachable() -> None:
    """A target that cannot be reached, or is not on this machine, refuses the webhook at once."""
    async with playing() as (fake, api, _):
        for target in [
            "http://127.0.0.1:1/x",
            "https://example.com/x",
            "http://10.0.0.1/x",
            "http://[::1]:1/",
            "http://[2001:db8::1]/",
        ]:
            answered = await api.create(target)
            assert (answered.status, answered.message) == (400, f"{SERVER} could not be reached")
            assert fake.handshakes[-1].failure == "The target could not be reached"


async def test_too_slow() -> None:
    """A target that takes too long refuses the webhook."""
    async with playing(answer_timeout=0.05) as (fake, api, target):
        target.pause.clear()
        answered = await api.create(target.url)
        target.pause.set()
        assert (answered.status, answered.message) == (400, f"{SERVER} did not respond in time")
        assert fake.handshakes[0].failure == "The target did not answer within 0.05 seconds"
        assert fake.handshakes[0].seconds >= 0.05


async def test_answer_is_no_http() -> None:
    """A target that speaks something else cannot be reached."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server, playing() as (_, api, _):
        port = server.sockets[0].getsockname()[1]
        assert (await api.create(f"http://localhost:{port}/")).message == f"{SERVER} could not be reached"


async def test_duplicate() -> None:
    """The same resource and target cannot have two webhooks; either alone can."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        answered = await api.create(target.url)
        assert answered.status == 403
        assert answered.message == (
            "Duplicated webhook. You already have an existing webhook for the given resource and target. "
            "Delete the old one before creating another."
        )
        other = fake.add_project()
        assert (await api.create(target.url, other)).status == 201
        assert (await api.create(target.root)).status == 201


async def test_duplicate_while_opening() -> None:
    """Of two create calls at once for the same resource and target, one is refused."""
    async with playing() as (fake, api, target):
        hold = fake.hold("handshake")
        first = asyncio.create_task(api.create(target.url))
        await hold.reached()
        assert (await api.create(target.url)).status == 403
        hold.release()
        assert (await first).status == 201


async def test_failed_create_may_be_repeated() -> None:
    """A create call that failed leaves nothing behind."""
    async with playing() as (_, api, target):
        target.fail()
        assert (await api.create(target.url)).status == 400
        assert (await api.create(target.url)).status == 201


async def test_loopback_refused() -> None:
    """Without the switch for tests, targets on this machine are refused as Asana does, with 403."""
    async with playing(allow_loopback=False) as (fake, api, _):
        for host in ["127.0.0.1", "127.5.5.5", "localhost", "[::1]"]:
            answered = await api.create(f"http://{host}:8080/x")
            assert answered.status == 403
            assert answered.message == f"{SERVER} has an invalid hostname: {host.strip('[]')}"
        assert fake.handshakes == []
        assert (await api.create("https://example.com/x")).status == 400


async def test_heartbeat_before() -> None:
    """By default a signed empty delivery comes between the handshake and the 201."""
    async with playing() as (fake, api, target):
        hold = fake.hold("createWebhook", when="before_answer")
        create = asyncio.create_task(api.create(target.url))
        await hold.reached()
        assert [got.body for got in target.got] == [b"{}", b'{"events":[]}']
        assert not create.done()
        hold.release()
        assert (await create).status == 201
        assert fake.deliveries[0].heartbeat


async def test_heartbeat_after() -> None:
    """It can come after the 201 as well."""
    async with playing(heartbeat="after") as (fake, api, target):
        hold = fake.hold("heartbeat")
        assert (await api.create(target.url)).status == 201
        assert len(target.got) == 1
        await hold.reached()
        hold.release()
        await fake.settle()
        assert target.deliveries[0].body == b'{"events":[]}'


async def test_no_first_heartbeat() -> None:
    """Or not at all; the one after eight hours comes in any case."""
    async with playing(heartbeat=None) as (fake, api, target):
        await api.create_gid(target.url)
        await fake.settle()
        assert target.deliveries == []
        await fake.advance(8 * 3600)
        assert len(target.deliveries) == 1


async def test_failed_first_heartbeat() -> None:
    """A target that refuses its first heartbeat still has its webhook, which tries again."""
    async with playing() as (fake, api, target):
        hold = fake.hold("heartbeat")
        create = asyncio.create_task(api.create(target.url))
        await hold.reached()
        target.fail(503)
        hold.release()
        record = (await create).tree["data"]
        assert (record["last_failure_content"], record["delivery_retry_count"]) == ("503 Service Unavailable\n\nno", 0)
        await fake.advance(10)
        assert [one.status for one in fake.deliveries] == [503, 200]


@pytest.mark.parametrize(("when", "order"), [("before", [True, False]), ("after", [False, True])])
async def test_stranger(when: str, order: list[bool]) -> None:
    """A stranger's handshake comes to the same target, before the real one or after it, with another secret."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="handshake", do="stranger", when=when, secret="f" * 32))
        gid = await api.create_gid(target.url)
        assert [one.stranger for one in fake.handshakes] == order
        assert Secret("f" * 32) in [one.secret for one in fake.handshakes if one.stranger]
        assert fake.secret(gid) != Secret("f" * 32)


async def test_strangers_on_both_sides() -> None:
    """Both at once, each with a secret of its own."""
    async with playing(heartbeat=None) as (fake, api, target):
        fake.script(*(Fault(at="handshake", do="stranger", when=when) for when in ("before", "after")))
        await api.create_gid(target.url)
        assert [one.stranger for one in fake.handshakes] == [True, False, True]
        assert len({one.secret for one in fake.handshakes}) == 3
        assert len(target.got) == 3


async def test_dropped_handshake() -> None:
    """A handshake that never arrives refuses the webhook."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="handshake", do="drop"))
        assert (await api.create(target.url)).message == f"{SERVER} could not be reached"
        assert target.got == []


async def test_repeated_handshake() -> None:
    """The same handshake may arrive twice."""
    async with playing(heartbeat=None) as (fake, api, target):
        fake.script(Fault(at="handshake", do="duplicate"))
        gid = await api.create_gid(target.url)
        assert {got.headers["X-Hook-Secret"] for got in target.got} == {fake.secret(gid).reveal()}
        assert len(target.got) == 2


async def test_delayed_handshake() -> None:
    """A handshake can be late, in real time."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="handshake", do="delay", seconds=0.01), Fault(at="handshake", do="delay", when="after"))
        assert (await api.create(target.url)).status == 201


async def test_stranger_handshake_helper() -> None:
    """A stranger can come at any time; its answer's status is returned and its echo recorded."""
    async with playing() as (fake, _, target):
        assert await fake.stranger_handshake(target.url) == 200
        assert await fake.stranger_handshake(target.url, secret="mine") == 200
        target.fail(404)
        assert await fake.stranger_handshake(target.url, secret=Secret("mine")) == 404
        assert await fake.stranger_handshake("https://example.com/") is None
        assert await fake.stranger_handshake("http://[::1") is None
        assert [one.echoed for one in fake.handshakes] == [True, True, False, False, False]
        assert all(one.stranger for one in fake.handshakes)
        assert target.got[1].headers["X-Hook-Secret"] == "mine"


async def test_skip_handshake() -> None:
    """A webhook can be created without a handshake."""
    async with playing(heartbeat=None) as (fake, api, target):
        fake.script(Fault(at="createWebhook", do="skip_handshake"))
        assert (await api.create(target.url)).status == 201
        assert (target.got, fake.handshakes) == ([], [])


async def test_wrong_secret() -> None:
    """The 201 can name another secret than the handshake."""
    async with playing() as (fake, api, target):
        fake.script(
            Fault(at="createWebhook", do="wrong_secret", secret="f" * 32), Fault(at="createWebhook", do="wrong_secret")
        )
        chosen = await api.create(target.url)
        assert chosen.tree["X-Hook-Secret"] == "f" * 32
        random = await api.create(target.root)
        named = random.tree["X-Hook-Secret"]
        assert Secret(named) not in [webhook.secret for webhook in fake.webhooks.values()]
        fake.script(Fault(at="createWebhook", do="wrong_secret", secret=""))
        assert (await api.create(target.root + "/empty")).tree["X-Hook-Secret"] == ""


async def test_no_secret() -> None:
    """The 201 can name no secret."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="createWebhook", do="no_secret"))
        assert set((await api.create(target.url)).tree) == {"data"}


async def test_early_event() -> None:
    """An event can be delivered before the 201."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="createWebhook", do="early_event"))
        hold = fake.hold("createWebhook", when="before_answer")
        create = asyncio.create_task(api.create(target.url))
        await hold.reached()
        assert f'"gid":"{PROJECT}"' in target.deliveries[-1].body.decode()
        hold.release()
        assert (await create).status == 201


async def test_events_between_handshake_and_answer() -> None:
    """What changes while the create call is open after its handshake is delivered before the 201."""
    async with playing() as (fake, api, target):
        hold = fake.hold("createWebhook", when="after_handshake")
        create = asyncio.create_task(api.create(target.url))
        await hold.reached()
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert len(target.deliveries) == 1
        hold.release()
        assert (await create).status == 201
        assert [one.events for one in fake.deliveries] == [1, 0]


async def test_create_waits_for_delivery_under_way() -> None:
    """The first heartbeat waits its turn behind an event that is being delivered, and goes before the next one."""
    async with playing() as (fake, api, target):
        hold = fake.hold("createWebhook", when="after_handshake")
        slow = fake.hold("delivery")
        create = asyncio.create_task(api.create(target.url))
        await hold.reached()
        fake.change(PROJECT, field="name")
        await slow.reached()
        fake.change(PROJECT, field="notes")
        hold.release()
        await asyncio.sleep(0)
        slow.release()
        assert (await create).status == 201
        assert [one.heartbeat for one in fake.deliveries] == [False, True, False]


async def test_first_heartbeat_behind_an_event_that_fails() -> None:
    """It comes once that event is delivered, though that shows already that the target lives."""
    async with playing() as (fake, api, target):
        hold = fake.hold("createWebhook", when="after_handshake")
        create = asyncio.create_task(api.create(target.url))
        await hold.reached()
        target.fail()
        fake.change(PROJECT, field="name")
        await fake.settle()
        hold.release()
        assert (await create).status == 201
        await fake.advance(60)
        assert [(one.heartbeat, one.status) for one in fake.deliveries] == [(False, 500), (False, 200), (True, 200)]


async def test_a_fake_talks_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is even tried to another machine."""

    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    async with FakeAsana() as fake:
        monkeypatch.setattr("aiohttp.TCPConnector._create_connection", refuse)
        for target in (
            "https://example.com",
            "http://192.0.2.1",
            "http://localhost.example",
            "http://[::ffff:8.8.8.8]",
        ):
            assert await fake.stranger_handshake(target) is None
