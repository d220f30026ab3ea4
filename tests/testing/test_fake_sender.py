"""Deliveries: signatures, batches, retries, heartbeats, deletion, and everything scripted to go wrong with them."""

import itertools
import json
from typing import Any

import jsonschema
import pytest

from tests.subscriptions.scenes import LoopClock
from tests.testing.fake_play import EVENT_SCHEMA, PROJECT, Target, fixed_clock, playing, serving

VECTOR_KEY = "0123456789abcdef0123456789abcdef"
VECTORS = [
    (b'{"events":[]}', "b8e5e1612f52653b9177d6a1b25773f910e9317fb1f3df63f0d0cf2efdfc02a3"),
    (
        (
            b'{"events":[{"user":null,"created_at":"2026-01-02T03:04:05.678Z","action":"deleted","resource":'
            b'{"gid":"2002","resource_type":"task","resource_subtype":"default_task"},"parent":null}]}'
        ),
        "54c8dde9546bb0e224feb173ecc637736b44e96e38166bd9bdc0b82088e21437",
    ),
]


@pytest.mark.parametrize(("body", "signature"), VECTORS)
async def test_signature_vectors(body: bytes, signature: str) -> None:
    """What the fake sends is signed as Asana signs: over the bytes, with the secret's text as the key."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        assert await fake.forge_delivery(gid, body=body, secret=VECTOR_KEY) == 200
        assert target.deliveries[-1].headers["X-Hook-Signature"] == signature
        assert target.deliveries[-1].body == body


async def test_delivery() -> None:
    """A change arrives as compact, signed JSON with Asana's shapes, at the whole URL of the target."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        task = fake.add_task()
        event = fake.change(task, field="assignee", new_value={"gid": "12", "resource_type": "user"})
        await fake.settle()
        got = target.deliveries[-1]
        assert got.events == [event]
        assert got.is_signed(fake.secret(gid))
        assert got.body == json.dumps({"events": [event]}, separators=(",", ":")).encode()
        assert (got.path, got.headers["Content-Type"]) == ("/hook/1?mine=a%20b", "application/json")
        jsonschema.validate(event, EVENT_SCHEMA)
        record = fake.deliveries[-1]
        assert (record.webhook_gid, record.events, record.status, record.failure) == (gid, 1, 200, None)
        assert (record.heartbeat, record.retry, record.duplicate, record.forged) == (False, False, False, False)
        assert record.body == got.body
        assert record.signature == got.headers["X-Hook-Signature"]
        assert record.seconds > 0
        assert got.headers["X-Hook-Signature"] not in repr(record)


async def test_batches() -> None:
    """Changes since the last delivery travel together, a hundred at most; only one delivery is under way."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        hold = fake.hold("delivery")
        fake.change(PROJECT, field="name")
        await hold.reached()
        for _ in range(205):
            fake.change(PROJECT, field="notes")
        hold.release()
        await fake.settle()
        assert [one.events for one in fake.deliveries] == [0, 1, 100, 100, 5]


async def test_key_order_varies() -> None:
    """The members of events come in varying order, the same in every run with the same seed."""

    async def orders(seed: int) -> list[list[str]]:
        async with playing(seed=seed) as (fake, api, target):
            await api.create_gid(target.url)
            for _ in range(8):
                fake.change(PROJECT, field="name")
            await fake.settle()
            return [list(event) for got in target.deliveries for event in got.events]

    first = await orders(5)
    assert len({tuple(order) for order in first}) > 1
    assert first == await orders(5) != await orders(6)


async def test_events_are_not_always_sorted() -> None:
    """The seed decides which events overtake the one before them; each is sent once; with the usual seed a few stay."""

    async def arrived(changes: int, **options: Any) -> list[str]:
        async with playing(**options) as (fake, api, target):
            await api.create_gid(target.url)
            for _ in range(changes):
                fake.change(PROJECT, field="name")
            await fake.settle()
            return [event["created_at"] for got in target.deliveries for event in got.events]

    few, many, again = await arrived(25), await arrived(50), await arrived(50, seed=2)
    assert few == sorted(few)
    assert (len(many), many == sorted(many)) == (50, False)
    assert (len(set(again)), again == sorted(again)) == (50, False)
    orders = [[sorted(times).index(time) for time in times] for times in (many, await arrived(50), again)]
    assert orders[0] == orders[1] != orders[2]


async def test_filters_decide() -> None:
    """Only events that pass a filter are sent; others make no delivery at all."""
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url, filters=[{"action": "changed", "fields": ["due_on"]}])
        task = fake.add_task()
        fake.change(task, field="name")
        await fake.settle()
        assert target.deliveries == []
        fake.change(task, field="due_on")
        await fake.settle()
        assert len(target.deliveries) == 1
        await api.call("PUT", f"/webhooks/{gid}", json={"data": {"filters": [{"action": "deleted"}]}})
        fake.change(task, field="due_on")
        fake.change(task, action="deleted")
        await fake.settle()
        assert [event["action"] for got in target.deliveries for event in got.events] == ["changed", "deleted"]


async def test_each_webhook_gets_its_own() -> None:
    """Webhooks get what happens in their resources, each signed with its own secret."""
    async with playing(heartbeat=None) as (fake, api, target):
        other = fake.add_project()
        first = await api.create_gid(target.root + "/first")
        second = await api.create_gid(target.root + "/second", other)
        fake.change(fake.add_task(parent=other), field="name")
        both = fake.add_resource("task", parents=[PROJECT, other])
        fake.change(both, field="name")
        await fake.settle()
        assert {got.path: len(got.events) for got in target.deliveries} == {"/first": 1, "/second": 2}
        for got in target.deliveries:
            assert got.is_signed(fake.secret(first if got.path == "/first" else second))


@pytest.mark.parametrize("status", [201, 202, 301, 400, 410, 500])
async def test_only_200_and_204_succeed(status: int) -> None:
    """Any other answer is a failure, shown in the record until a delivery succeeds."""
    async with playing(clock=fixed_clock()) as (fake, api, target):
        gid = await api.create_gid(target.url)
        await fake.advance(1)
        target.fail(status, "body of the answer")
        fake.change(PROJECT, field="name")
        await fake.settle()
        record = (await api.call("GET", f"/webhooks/{gid}")).tree["data"]
        assert record["last_failure_content"].startswith(f"{status} ")
        assert record["last_failure_content"].endswith("\n\nbody of the answer")
        assert record["last_failure_at"] == "2026-01-02T03:04:06.678Z"
        assert record["next_attempt_after"] == "2026-01-02T03:04:16.678Z"
        assert record["failure_deletion_timestamp"] == "2026-01-03T03:04:06.678Z"
        assert record["last_success_at"] == "2026-01-02T03:04:05.678Z"
        await fake.advance(10)
        healed = (await api.call("GET", f"/webhooks/{gid}")).tree["data"]
        assert (healed["delivery_retry_count"], healed["next_attempt_after"]) == (0, None)
        assert (healed["failure_deletion_timestamp"], healed["last_success_at"]) == (None, "2026-01-02T03:04:16.678Z")
        assert healed["last_failure_at"] == record["last_failure_at"]


async def test_500_reads_as_in_the_documentation() -> None:
    """The content of a failure has the form of Asana's own example."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(500, "Could not complete the request")
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert fake.webhook(gid).last_failure_content == "500 Server Error\n\nCould not complete the request"


async def test_long_answers_are_cut() -> None:
    """Only the beginning of a long answer is kept."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(503, "x" * 1_000_000)
        fake.change(PROJECT, field="name")
        await fake.settle()
        content = fake.webhook(gid).last_failure_content
        assert content == "503 Service Unavailable\n\n" + "x" * 4096


async def test_unusual_status() -> None:
    """A status nobody knows is a failure like any other."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(299)
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert fake.webhook(gid).last_failure_content == "299 Unknown\n\nno"


async def test_retries_back_off() -> None:
    """The same bytes come again after 10, 20, 40 … seconds, at most an hour, and nothing overtakes them."""
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(times=12)
        fake.change(PROJECT, field="name")
        await fake.settle()
        fake.change(PROJECT, field="notes")
        await fake.advance(7 * 3600)
        attempts = [one for one in fake.deliveries if one.events]
        waits = [
            (later.sent_at - sooner.sent_at).total_seconds() for sooner, later in itertools.pairwise(attempts[:13])
        ]
        assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]
        assert len({one.body for one in attempts[:13]}) == 1
        assert [one.retry for one in attempts] == [False] + [True] * 12 + [False]
        assert [one.status for one in attempts[-2:]] == [200, 200]
        assert fake.webhook(gid).delivery_retry_count == 0


async def test_retry_count() -> None:
    """delivery_retry_count is how often the delivery has been sent again."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(times=3)
        fake.change(PROJECT, field="name")
        counts = []
        for seconds in (0, 10, 20, 40):
            await fake.advance(seconds)
            counts.append(fake.webhook(gid).delivery_retry_count)
        assert counts == [0, 1, 2, 0]


async def test_retries_grow() -> None:
    """With retries_grow new events join the delivery that failed, up to a hundred."""
    async with playing(retries_grow=True) as (fake, api, target):
        await api.create_gid(target.url)
        target.fail()
        fake.change(PROJECT, field="name")
        await fake.settle()
        for _ in range(120):
            fake.change(PROJECT, field="notes")
        await fake.advance(10)
        sent = [one for one in fake.deliveries if one.events]
        assert [one.events for one in sent] == [1, 100, 21]
        assert sent[0].body[:-2] in sent[1].body


async def test_heartbeat_every_eight_hours() -> None:
    """A signed empty delivery comes every eight hours."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        await fake.advance(8 * 3600 - 1)
        assert len(target.deliveries) == 1
        await fake.advance(1)
        assert len(target.deliveries) == 2
        await fake.advance(16 * 3600)
        beats = [one for one in fake.deliveries if one.heartbeat]
        assert [(one.sent_at - beats[0].sent_at).total_seconds() / 3600 for one in beats] == [0, 8, 16, 24]
        assert all(got.is_signed(fake.secret(gid)) for got in target.deliveries)
        assert fake.webhook(gid).last_success_at == fake.clock.now()


async def test_heartbeats_rest_while_deliveries_fail() -> None:
    """A heartbeat that falls due while a delivery fails is not sent besides; the beat goes on from the recovery."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        target.fail(times=17)
        fake.change(PROJECT, field="name")
        await fake.advance(12 * 3600)
        assert [one.heartbeat for one in fake.deliveries] == [True] + [False] * 18
        await fake.advance(8 * 3600)
        assert fake.deliveries[-1].heartbeat


async def test_deleted_after_a_day() -> None:
    """24 hours after the first failure the webhook is deleted, not a second sooner."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(times=1000)
        fake.change(PROJECT, field="name")
        await fake.advance(24 * 3600 - 1)
        assert (await api.call("GET", f"/webhooks/{gid}")).status == 200
        attempts = len(fake.deliveries)
        await fake.advance(1)
        answered = await api.call("GET", f"/webhooks/{gid}")
        assert (answered.status, answered.message) == (404, f"webhook: Not a recognized ID: {gid}")
        assert len(fake.deliveries) == attempts
        await fake.advance(24 * 3600)
        assert len(fake.deliveries) == attempts


@pytest.mark.parametrize("gone_deletes", [True, False])
async def test_410(gone_deletes: bool) -> None:
    """A 410 is a failure like any other; with gone_deletes it deletes the webhook at once."""
    async with playing(gone_deletes=gone_deletes) as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(410)
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert (gid in fake.webhooks) is not gone_deletes
        await fake.advance(60)
        assert [one.status for one in fake.deliveries] == ([200, 410] if gone_deletes else [200, 410, 200])
        assert (await api.create(target.url)).status == (201 if gone_deletes else 403)


async def test_no_user_agent() -> None:
    """Handshakes and deliveries name no program: Asana documents none."""
    async with playing() as (fake, api, target):
        await api.create_gid(target.url)
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert [got.is_handshake for got in target.got] == [True, False, False]
        assert not any("User-Agent" in got.headers for got in target.got)


async def test_success_stops_the_deletion() -> None:
    """One success within the day, and the day begins anew with the next failure."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(times=20)
        fake.change(PROJECT, field="name")
        await fake.advance(23 * 3600)
        assert fake.webhook(gid).failure_deletion_timestamp is None
        await fake.advance(24 * 3600)
        assert gid in fake.webhooks


async def test_target_gone() -> None:
    """A target that cannot be reached any more is a failure with a sentence instead of a status."""
    async with playing() as (fake, api, _):
        async with serving(Target()) as target:
            gid = await api.create_gid(target.url)
        fake.change(PROJECT, field="name")
        await fake.settle()
        record = fake.deliveries[-1]
        assert (record.status, record.failure) == (None, "The target could not be reached")
        assert fake.webhook(gid).last_failure_content == "The target could not be reached"


async def test_slow_target_is_sent_again() -> None:
    """An answer after the limit counts as none: the same delivery comes again."""
    clock = LoopClock()
    async with playing(answer_timeout=60) as (fake, api, target):
        await api.create_gid(target.url)
        target.pause.clear()
        fake.change(PROJECT, field="name")
        await target.reached(3)  # after the handshake and the first heartbeat
        clock.turn(60)
        await fake.settle()
        assert fake.deliveries[-1].failure == "The target did not answer within 60 seconds"
        assert fake.deliveries[-1].seconds > 0
        target.pause.set()
        await fake.advance(10)
        assert fake.deliveries[-1].status == 200
        assert fake.deliveries[-1].body == fake.deliveries[-2].body


async def test_quiet_webhooks_are_never_contacted() -> None:
    """Webhooks made beforehand send nothing, whatever changes and however much time passes."""
    async with playing(webhooks=3) as (fake, _, _):
        quiet = next(iter(fake.webhooks.values()))
        fake.change(quiet.resource.gid, field="name")
        await fake.advance(48 * 3600)
        assert fake.deliveries == []
        assert len(fake.webhooks) == 3


async def test_in_flight_after_delete() -> None:
    """A delivery under way when the webhook is deleted still arrives; those behind it do not."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        hold = fake.hold("delivery")
        fake.change(PROJECT, field="name")
        await hold.reached()
        fake.change(PROJECT, field="notes")
        assert (await api.call("DELETE", f"/webhooks/{gid}")).status == 200
        hold.release()
        await fake.settle()
        assert len(target.deliveries) == 2
        await fake.advance(24 * 3600)
        assert len(target.deliveries) == 2
