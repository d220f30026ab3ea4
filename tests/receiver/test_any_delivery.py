"""Deliveries of every documented shape and of none, from the receiver through the store to the handler."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asana_webhooks import Backoff, Delivery, MemoryStore, Receiver, Retention, SQLiteStore, Worker
from asana_webhooks.models import ResourceRef
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store import Store
from asana_webhooks.store.base import DeliveryState
from tests.helpers.stores import ENDPOINT, SECRET, Clock, body, event, register

HOUR = 3600.0
DAY = 24 * HOUR
EXAMPLES = {"memory": 40, "sqlite": 15}

# As Asana's OpenAPI document has them (EventResponse, AsanaNamedResource, UserCompact), and as webhooks send them.

gids = st.from_regex(r"[1-9][0-9]{0,19}", fullmatch=True)
words = st.text(st.characters(codec="utf-8"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e300, 1e300) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
moments = st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z")


def members(required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]) -> Any:
    """An object with what must be there, what may be there or be null, and members nobody has heard of."""
    known = {*required, *optional}
    unknown = st.dictionaries(words.filter(lambda name: name not in known), json_values, max_size=2)
    documented = st.fixed_dictionaries(required, optional={name: st.none() | one for name, one in optional.items()})
    return st.tuples(documented, unknown).map(lambda parts: parts[0] | parts[1])


resource_types = st.sampled_from(["task", "project", "section", "story", "tag", "team", "goal", "user"]) | words
resources = members(
    {"gid": gids}, {"resource_type": resource_types, "resource_subtype": words, "name": words, "enum_value": st.none()}
)
custom_fields = members({"gid": gids}, {"enum_value": members({"gid": gids}, {"resource_type": words})})
actions = st.sampled_from(["changed", "added", "removed", "deleted", "undeleted"]) | words
values = dict.fromkeys(("new_value", "added_value", "removed_value"), resources | custom_fields)
changes = members({"field": words}, {"action": actions, **values})
events = members(
    {"action": actions, "resource": resources, "created_at": moments},
    {"user": resources, "parent": resources, "change": changes, "type": words},
)
deliveries = st.lists(events, min_size=1, max_size=3)


def signed(content: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"X-Hook-Signature", sign_body(content, secret=SECRET).encode())]


@define
class Service:
    """A receiver and a worker on one store, and what their handler got."""

    store: Store
    clock: Clock
    registration: str
    got: list[Delivery]

    async def send(self, content: bytes) -> None:
        """Have a signed delivery answered 200."""
        reply = await Receiver(self.store).receive(ENDPOINT, signed(content), content)
        assert reply.status == 200

    async def handle(self, delivery: Delivery) -> None:
        self.got.append(delivery)

    async def work(self, **options: Any) -> Worker:
        worker = Worker(self.store, self.handle, **options)
        await worker.drain()
        return worker

    async def pass_through(self, content: bytes) -> Sequence[Delivery]:
        """Send, and have everything handled; return what the handler got."""
        self.got.clear()
        await self.send(content)
        await self.work()
        return self.got


@pytest.fixture(params=["memory", "sqlite"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    """A service on a store of each kind."""
    clock = Clock()
    store: Store = MemoryStore(clock=clock) if request.param == "memory" else SQLiteStore(tmp_path / "db", clock=clock)
    async with store:
        yield Service(store, clock, await register(store), [])


@contextmanager
def lasting_service(kind: str, directory: Path) -> Iterator[tuple[Service, Callable[..., Any]]]:
    """Yield a service for many examples, and what runs a coroutine in its loop."""
    clock = Clock()
    with asyncio.Runner() as runner:
        store: Store = MemoryStore(clock=clock) if kind == "memory" else SQLiteStore(directory / "db", clock=clock)
        yield Service(store, clock, runner.run(register(store)), []), runner.run
        runner.run(store.aclose())


BOTH = pytest.mark.parametrize("kind", EXAMPLES)
_numbers = itertools.count(1)


def unlike_others(content: bytes) -> bytes:
    """Return a body with as many line breaks at its end as no other example has, so that it is no duplicate."""
    return content + b"\n" * next(_numbers)


def gid_of(value: Any) -> str | None:
    return value["gid"] if value else None


@BOTH
def test_any_documented_delivery_is_handled(kind: str, tmp_path: Path) -> None:
    """New actions, types and members, nulls and names in any script: all is read, and the raw bytes come along."""
    with lasting_service(kind, tmp_path) as (service, run):

        @settings(max_examples=EXAMPLES[kind])
        @given(deliveries, st.sampled_from([None, 1]), st.booleans(), st.sampled_from([b"", b"\n", b" \r\n\t"]))
        def deliver(sent: list[Any], indent: int | None, is_ascii: bool, around: bytes) -> None:
            tree = json.dumps({"events": sent}, indent=indent, ensure_ascii=is_ascii).encode()
            content = unlike_others(around + tree + around)

            [delivery] = run(service.pass_through(content))

            assert delivery.body == content
            for one, read in zip(sent, delivery.events, strict=True):
                assert (read.action, read.resource.gid) == (one["action"], one["resource"]["gid"])
                assert read.resource.resource_type == one["resource"].get("resource_type")
                assert read.created_at.isoformat(timespec="milliseconds")[:23] == one["created_at"][:23]
                assert (gid(read.user), gid(read.parent)) == (gid_of(one.get("user")), gid_of(one.get("parent")))
                change = one.get("change") or {}
                assert (read.change.field if read.change else None) == change.get("field")
                for name in values:
                    assert gid(getattr(read.change, name, None)) == gid_of(change.get(name))

        deliver()
        assert run(service.store.deliveries(state=DeliveryState.DEAD)) == []


def gid(resource: ResourceRef | None) -> str | None:
    return resource.gid if resource else None


REMOVED = object()
SPOILED: dict[str, list[Any]] = {
    "action": [REMOVED, None, 5, ["changed"]],
    "resource": [REMOVED, None, {}, "21", 21, {"gid": 21}, {"gid": None}, {"gid": 2**64}, []],
    "created_at": [REMOVED, None, "", "yesterday", 1767323045, "2026-02-30T00:00:00Z"],
    "user": ["11", {"gid": 11}, []],
    "change": ["x", {}, {"field": None}],
}


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A body with one error: cut off, or not a delivery."""
    sent = draw(deliveries)
    whole = json.dumps({"events": sent}).encode()
    kind = draw(st.sampled_from(["cut off", "not a delivery", "bytes"]))
    if kind == "cut off":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if kind == "bytes":
        return whole + draw(st.binary(min_size=1).filter(lambda more: more.strip(b" \t\r\n")))
    return json.dumps(draw(st.sampled_from([sent, {}, {"events": None}, {"events": {}}, {"Events": sent}]))).encode()


@BOTH
def test_the_other_events_are_handled(kind: str, tmp_path: Path) -> None:
    """The handler gets an event with one error unchanged, and the other events."""
    with lasting_service(kind, tmp_path) as (service, run):

        @settings(max_examples=EXAMPLES[kind])
        @given(one_odd())
        def deliver(sent_and_place: tuple[list[Any], int]) -> None:
            sent, place = sent_and_place

            [delivery] = run(service.pass_through(unlike_others(json.dumps({"events": sent}).encode())))

            good = [one["resource"]["gid"] for number, one in enumerate(sent) if number != place]
            assert [one.resource.gid for one in delivery.events] == good
            [odd] = delivery.unreadable
            assert odd.raw == sent[place]
            assert f" @ $.events[{place}]" in odd.problem

        deliver()


@st.composite
def one_odd(draw: st.DrawFn) -> tuple[list[Any], int]:
    """Events of which one is spoiled, and its place."""
    sent = draw(deliveries)
    place = draw(st.integers(0, len(sent) - 1))
    name = draw(st.sampled_from(list(SPOILED)))
    changed = sent[place] | {name: draw(st.sampled_from(SPOILED[name]))}
    sent[place] = {name: value for name, value in changed.items() if value is not REMOVED}
    return sent, place


@BOTH
def test_what_cannot_be_read_is_a_dead_letter_at_once(kind: str, tmp_path: Path) -> None:
    """It is kept as it came and answered 200, for Asana would send the same again; no handler sees a part of it."""
    with lasting_service(kind, tmp_path) as (service, run):

        @settings(max_examples=EXAMPLES[kind])
        @given(spoiled())
        @example(b"\xff\xfe\x00")
        def deliver(bad: bytes) -> None:
            service.clock.now += 1
            run(service.store.purge(older_than=0, dead=True))
            content = unlike_others(bad)

            assert list(run(service.pass_through(content))) == []

            [letter] = run(service.store.deliveries(state=DeliveryState.DEAD))
            assert (letter.body, letter.attempts) == (content, 1)
            assert letter.error.startswith("unreadable: ")

        deliver()


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Any], list[bytes]]:
    """Events, and bodies that bring each at least once: sent again, grown, split, with members in another order."""
    sent = draw(st.lists(events, min_size=1, max_size=5, unique_by=lambda one: one["resource"]["gid"]))
    if draw(st.booleans()):  # the same happened to several, at the same time
        sent = [sent[0] | {"resource": one["resource"]} for one in sent]
    ends = [*draw(st.lists(st.integers(1, len(sent)), max_size=4).map(sorted)), len(sent)]
    bodies = []
    for start, end in zip([0, *(draw(st.integers(0, end)) for end in ends)], ends, strict=False):
        batch = [{name: one[name] for name in draw(st.permutations(list(one)))} for one in sent[start:end]]
        bodies += [json.dumps({"events": batch}).encode()] * draw(st.integers(1, 2))
    return sent, bodies


@BOTH
def test_fingerprints_tell_what_was_seen(kind: str, tmp_path: Path) -> None:
    """A handler that skips known fingerprints acts on each event once, however Asana repeats and regroups them."""
    with lasting_service(kind, tmp_path) as (service, run):

        @settings(max_examples=EXAMPLES[kind])
        @given(schedules())
        def deliver(schedule: tuple[list[Any], list[bytes]]) -> None:
            sent, bodies = schedule
            end = unlike_others(b"")
            acted: dict[str, str] = {}
            for content in bodies:
                for delivery in run(service.pass_through(content + end)):
                    acted |= {one.fingerprint: one.resource.gid for one in delivery.events}

            assert sorted(acted.values()) == sorted(one["resource"]["gid"] for one in sent)

        deliver()


# Replays and clocks


def dated(clock: Clock) -> bytes:
    """Return a delivery of just now."""
    return body(event(created_at=datetime.fromtimestamp(clock.now, UTC).isoformat()))


async def test_a_replay_is_a_duplicate_until_its_key_expires_and_stale_from_then_on(service: Service) -> None:
    """Somebody who recorded a delivery gets it handled again only after days, and then the handler is told."""
    content = dated(service.clock)
    [first] = await service.pass_through(content)
    assert not first.stale

    service.clock.now += 2 * DAY
    await Retention().apply(service.store)
    assert list(await service.pass_through(content)) == []

    service.clock.now += 2 * DAY
    await Retention().apply(service.store)
    [again] = await service.pass_through(content)
    assert again.stale
    assert [one.fingerprint for one in again.events] == [one.fingerprint for one in first.events]


LEASE = 60.0
JUMPS = pytest.mark.parametrize("jump", [400 * DAY, HOUR, -HOUR, -400 * DAY])


@JUMPS
async def test_a_clock_that_jumps_while_a_body_comes_in_changes_nothing(service: Service, jump: float) -> None:
    """The receiver's time limits run on a clock that nobody sets."""
    content = body(event())

    async def slow() -> AsyncIterator[bytes]:
        yield content[:10]
        service.clock.now += jump
        yield content[10:]

    reply = await Receiver(service.store).receive(ENDPOINT, signed(content), slow())
    await service.work()

    assert reply.status == 200
    assert [one.body for one in service.got] == [content]


@define
class Busy:
    """A worker whose handlers are all in the middle of something."""

    working: "asyncio.Task[None]"
    go: asyncio.Event


async def be_busy(service: Service, contents: list[bytes]) -> Busy:
    go, full = asyncio.Event(), asyncio.Event()
    expected = len(service.got) + len(contents)

    async def wait(delivery: Delivery) -> None:
        service.got.append(delivery)
        if len(service.got) == expected:
            full.set()
        await go.wait()

    for content in contents:
        await service.send(content)
    working = asyncio.create_task(Worker(service.store, wait, lease=LEASE).drain())
    await full.wait()
    return Busy(working, go)


@pytest.mark.parametrize("jump", [LEASE / 2, -LEASE / 2])
async def test_leases_hold_when_the_clock_is_corrected(service: Service, jump: float) -> None:
    """Clocks of two machines differ, and are set by seconds: that takes no delivery away from its worker."""
    busy = await be_busy(service, [body(event()) for _ in range(3)])

    service.clock.now += jump
    await service.work()
    busy.go.set()
    await busy.working

    assert [one.attempt for one in service.got] == [1, 1, 1]
    assert (await service.store.health()).waiting == 0


@JUMPS
async def test_leases_and_waits_do_not_stick_when_the_clock_jumps(service: Service, jump: float) -> None:
    """What was held or delayed at that moment is handled at once, perhaps twice; then all is as before."""
    await service.send(body(event()))
    await fail_once(service)
    busy = await be_busy(service, [body(event()) for _ in range(3)])

    service.clock.now += jump
    await service.work()
    assert sorted(one.attempt for one in service.got) == [1, 1, 1, 2, 2, 2, 2]
    busy.go.set()
    await busy.working

    health = await service.store.health()
    assert (health.waiting, health.leased, health.dead) == (0, 0, 0)
    later = await be_busy(service, [body(event()) for _ in range(2)])
    await service.work()
    later.go.set()
    await later.working
    assert [one.attempt for one in service.got[-2:]] == [1, 1]


async def fail_once(service: Service) -> None:
    async def fail(_: Delivery) -> None:
        raise LookupError("away")

    await Worker(service.store, fail, backoff=Backoff(first_wait=HOUR, longest_wait=HOUR)).drain()
