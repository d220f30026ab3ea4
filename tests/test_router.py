"""The router: which functions get an event, in which order, the effects of failures, and the filters."""

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, assert_type
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import (
    Change,
    ConfigurationError,
    Delivery,
    Event,
    EventRouter,
    MemoryStore,
    PermanentFailure,
    ResourceRef,
    UnreadableEvent,
    WebhookFilter,
    Worker,
)
from asana_webhooks.testing import make_delivery
from tests.helpers.stores import body, deliver, register
from tests.helpers.stores import event as raw_event

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
TYPES, SUBTYPES, FIELDS = ["task", "story"], ["milestone", "comment_added"], ["due_on", "due_at", "name"]
PARENTS, ACTIONS = ["section", "project"], ["changed", "added", "removed", "deleted", "undeleted"]


def make_event(
    resource_type: str = "task",
    action: str = "changed",
    *,
    gid: str = "1",
    field: str | None = None,
    subtype: str | None = None,
    parent: str | None = None,
) -> Event:
    return Event(
        action=action,
        resource=ResourceRef(gid=gid, resource_type=resource_type, resource_subtype=subtype),
        created_at=NOON,
        parent=ResourceRef(gid="9", resource_type=parent) if parent else None,
        change=Change(field=field, action="changed") if field else None,
    )


def odd(index: int) -> UnreadableEvent:
    return UnreadableEvent(raw=None, index=index, problem=f"Expected `object`, got `null` @ $.events[{index}]")


Noted = Callable[[Any, Delivery], Coroutine[Any, Any, None]]


class Notes(list[str]):
    """What handlers made here note when they run."""

    def handler(self, name: str, *, fails: BaseException | None = None) -> Noted:
        async def handle(event: Any, delivery: Delivery) -> None:
            self.append(f"{name} {event.resource.gid}" if isinstance(event, Event) else name)
            if fails is not None:
                raise fails

        return handle


@pytest.fixture
def notes() -> Notes:
    return Notes()


class TestRoutes:
    @pytest.mark.parametrize(
        ("wanted", "matching"),
        [
            ({}, "abcdefg"),
            ({"resource_type": "task"}, "abcef"),
            ({"action": "added"}, "defg"),
            ({"resource_type": "task", "action": "changed"}, "abc"),
            ({"action": "changed", "field": "due_on"}, "a"),
            ({"action": "changed", "field": ["due_at", "due_on"]}, "ab"),
            ({"resource_subtype": "comment_added"}, "d"),
            ({"resource_type": "task", "action": "added", "parent_type": "section"}, "e"),
            ({"parent_type": "project"}, "f"),
        ],
    )
    async def test_what_matches(self, wanted: dict[str, Any], matching: str, notes: Notes) -> None:
        """An event matches if every given argument does."""
        router = EventRouter()
        router.on(**wanted)(notes.handler("got"))
        await router(
            make_delivery(
                make_event(gid="a", field="due_on"),
                make_event(gid="b", field="due_at"),
                make_event(gid="c"),
                make_event("story", "added", gid="d", subtype="comment_added", parent="task"),
                make_event("task", "added", gid="e", parent="section"),
                make_event("task", "added", gid="f", parent="project"),
                make_event("tag", "added", gid="g"),
            )
        )
        assert notes == [f"got {gid}" for gid in matching]

    async def test_the_order(self, notes: Notes) -> None:
        """Events run in Asana's order, each event's functions in the order they were added, unreadable events last."""
        router = EventRouter()
        router.unreadable(notes.handler("unreadable"))
        router.on("task")(notes.handler("tasks"))
        router.on()(notes.handler("all"))
        router.on("task", "changed")(notes.handler("changed"))
        await router(make_delivery(make_event(gid="1"), make_event("story", gid="2"), unreadable=(odd(0), odd(2))))

        assert notes == ["tasks 1", "all 1", "changed 1", "all 2", "unreadable", "unreadable"]
        notes.clear()
        await router(make_delivery(unreadable=(odd(0),)))
        assert notes == ["unreadable"]

    async def test_once_an_event(self, notes: Notes) -> None:
        """A function with several routes runs once for an event that matches them, where it was added first.

        That holds for methods, too, which are new objects each time they are named.
        """

        class Sync:
            async def handle(self, event: Event, delivery: Delivery) -> None:
                notes.append(f"method {event.resource.gid}")

        router, first, sync = EventRouter(), notes.handler("first"), Sync()
        for function in (first, sync.handle, notes.handler("between"), first, sync.handle):
            router.on("task")(function)
        await router(make_delivery(make_event(gid="1"), make_event(gid="1")))

        assert notes == ["first 1", "method 1", "between 1"] * 2

    async def test_otherwise(self, notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
        """Events without a route go to `otherwise`; without it, they are only logged, at DEBUG."""
        caplog.set_level(logging.DEBUG)
        router = EventRouter()
        router.on("story")(notes.handler("story"))
        delivery = make_delivery(make_event("story", gid="1"), make_event(gid="2"), unreadable=(odd(1),))
        await router(delivery)
        assert notes == ["story 1"]
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("DEBUG", "delivery 1: no handler for the event ('changed', 'task', '2')")
        ]

        router.otherwise(notes.handler("otherwise"))
        await router(delivery)
        assert notes[1:] == ["story 1", "otherwise 2"]
        assert len(caplog.records) == 1

    async def test_decorators_change_nothing(self) -> None:
        """Each returns the same function, and type checkers keep its type."""
        router = EventRouter()

        async def number(event: Event, delivery: Delivery) -> int:
            return 1

        async def odd_one(unreadable: UnreadableEvent, delivery: Delivery) -> str:
            return unreadable.problem

        assert assert_type(await router.on("task")(number)(make_event(), make_delivery()), int) == 1
        assert assert_type(await router.otherwise(number)(make_event(), make_delivery()), int) == 1
        assert assert_type(await router.unreadable(odd_one)(odd(0), make_delivery()), str) == odd(0).problem
        assert router.on("task")(number) is number


class TestFailures:
    async def test_one_alone(self, notes: Notes) -> None:
        """After a failure the event's other functions do not run, other events do, and it is raised as itself."""
        router, failure = EventRouter(), ValueError("no calendar")
        router.on("task")(notes.handler("fails", fails=failure))
        router.on()(notes.handler("all"))
        router.unreadable(notes.handler("unreadable"))
        with pytest.raises(ValueError, match="no calendar") as caught:
            await router(make_delivery(make_event(gid="1"), make_event("story", gid="2"), unreadable=(odd(1),)))

        assert caught.value is failure
        assert notes == ["fails 1", "all 2", "unreadable"]

    async def test_several(self, notes: Notes) -> None:
        """Several failures are raised as one group, also those of unreadable events."""
        router, first, second = EventRouter(), ValueError("no calendar"), PermanentFailure("gone")
        router.on("task")(notes.handler("task", fails=first))
        router.on("tag")(notes.handler("tag"))
        router.unreadable(notes.handler("unreadable", fails=second))
        with pytest.raises(ExceptionGroup, match="the handlers of 2 events failed") as caught:
            await router(make_delivery(make_event(), make_event("tag"), unreadable=(odd(1),)))

        assert caught.value.exceptions == (first, second)

    @pytest.mark.parametrize("interruption", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
    async def test_interruptions(
        self, interruption: BaseException, notes: Notes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception that is not an `Exception` is raised at once, as itself; earlier failures are logged."""
        router, failure = EventRouter(), ValueError("no calendar")
        router.on("task")(notes.handler("task", fails=failure))
        router.on("story")(notes.handler("story", fails=interruption))
        with pytest.raises(type(interruption)) as caught:
            # Not run as a task, because asyncio lets some of these stop the loop.
            router(make_delivery(make_event(), make_event("story"), make_event())).send(None)

        assert caught.value is interruption
        assert notes == ["task 1", "story 1"]
        assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [failure]

    async def test_cancelled(self, notes: Notes) -> None:
        """Once cancelled, no further event is handled."""
        router, started = EventRouter(), asyncio.Event()

        @router.on("task")
        async def wait(event: Event, delivery: Delivery) -> None:
            started.set()
            await asyncio.Event().wait()

        router.on("story")(notes.handler("story"))
        task = asyncio.create_task(router(make_delivery(make_event(), make_event("story"))))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert notes == []

    async def test_a_failure_in_a_task_group(self, notes: Notes) -> None:
        """It is a failure like any other: the other events are handled."""
        router = EventRouter()

        @router.on("task")
        async def group(event: Event, delivery: Delivery) -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())

        async def fail() -> None:
            raise ValueError("in a task")

        router.on("story")(notes.handler("story"))
        with pytest.raises(ExceptionGroup):
            await router(make_delivery(make_event(), make_event("story")))
        assert notes == ["story 1"]

    @pytest.mark.parametrize("added", [True, False])
    async def test_what_never_works_ends_the_worker(self, added: bool) -> None:
        """A function whose result cannot be awaited, or no function at all: no attempt is counted."""
        store, router = MemoryStore(), EventRouter()
        await deliver(store, await register(store), body(raw_event()))
        if added:
            never: Any = lambda event, delivery: None  # noqa: E731 - ruff would make it a function
            router.on()(never)
        worker = Worker(store, router)
        with pytest.raises(ConfigurationError, match="cannot be awaited" if added else "this router has no functions"):
            await worker.drain()
        [lease] = await store.claim(1, lease=60)
        assert lease.attempt == 1

    async def test_in_a_worker(self, notes: Notes) -> None:
        """A worker takes a router as its handler, and retries a delivery that has failed."""
        store, router = MemoryStore(), EventRouter()
        registration = await register(store)
        resource = {"gid": "1", "resource_type": "task"}
        story = {"gid": "2", "resource_type": "story"}
        await deliver(store, registration, body(raw_event(resource=resource), raw_event(resource=story)))
        router.on("task")(notes.handler("task"))
        router.on("story")(notes.handler("story", fails=ValueError("no calendar")))
        worker = Worker(store, router)
        await worker.drain()

        assert notes == ["task 1", "story 2"]
        assert worker.counts["to be retried"] == 1


async def good(event: Event, delivery: Delivery) -> None: ...


def plain(event: Event, delivery: Delivery) -> None: ...


async def generator(event: Event, delivery: Delivery) -> Any:
    yield event


class Callable2:
    async def __call__(self, event: Event, delivery: Delivery) -> None: ...


async def three(database: Any, event: Any, delivery: Any) -> None: ...


@functools.wraps(three)
def wrapper(*args: Any) -> Any:
    return three(None, *args)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"resource_type": good}, "needs parentheses"),
            ({"resource_type": ""}, "resource_type must be a name"),
            ({"resource_type": 1}, "resource_type must be a name"),
            ({"resource_type": "added"}, "'added' is an action, not a type"),
            ({"resource_subtype": ("a",)}, "resource_subtype must be a name"),
            ({"parent_type": "\ud800"}, "parent_type must be a name"),
            ({"action": "change"}, "action must be one of changed, added"),
            ({"action": ["changed"]}, "action must be one of changed, added"),
            ({"field": "name"}, "field needs action='changed'"),
            ({"action": "added", "field": "name"}, "field needs action='changed', not 'added'"),
            *(({"action": "changed", "field": field}, "field must be a name") for field in ("", (), ["a", ""], [1], 1)),
            ({"action": "changed", "parent_type": "section"}, "parent_type needs action='added' or 'removed'"),
            ({"action": "deleted", "parent_type": "section"}, "parent_type needs action='added' or 'removed'"),
        ],
    )
    def test_routes_that_cannot_match(self, arguments: dict[str, Any], message: str) -> None:
        """A route that no event can match is refused when it is made, and the error names the mistake."""
        with pytest.raises(ConfigurationError, match=message):
            EventRouter().on(**arguments)

    @pytest.mark.parametrize("method", ["on", "otherwise", "unreadable"])
    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (plain, "async def"),
            (functools.partial(plain), "async def"),
            (generator, "contains yield"),
            (Callable2, "pass an instance"),
            (three, "2 positional arguments"),
            (functools.partial(three, None, None), "2 positional arguments"),
        ],
    )
    def test_functions_that_cannot_work(self, method: str, function: Any, message: str) -> None:
        """Anything but a coroutine function of two arguments is refused when it is added."""
        router = EventRouter()
        with pytest.raises(ConfigurationError, match=message):
            (router.on() if method == "on" else getattr(router, method))(function)

    @pytest.mark.parametrize(
        "function",
        [
            good,
            Callable2(),
            Callable2().__call__,
            functools.partial(three, None),
            functools.partial(wrapper),
            AsyncMock(),
            lambda event, delivery: three(None, event, delivery),
        ],
    )
    async def test_functions_that_work(self, function: Any) -> None:
        """Objects with an async `__call__`, methods, partials, wrapped functions, mocks and lambdas are run, too."""
        router = EventRouter()
        router.on()(function)
        router.unreadable(function)
        await router(make_delivery(make_event(), unreadable=(odd(1),)))

    def test_a_function_that_is_no_function(self) -> None:
        """A decorator of `on` refuses values that cannot be called."""
        with pytest.raises(ConfigurationError, match="async def"):
            EventRouter().on()("task")  # type: ignore[type-var]

    @pytest.mark.parametrize("method", ["otherwise", "unreadable"])
    def test_parentheses(self, method: str) -> None:
        """`otherwise` and `unreadable` decorate without parentheses, and only once."""
        decorator: Any = getattr(EventRouter(), method)
        for arguments in ((), ("task",)):
            with pytest.raises(ConfigurationError, match=f"@router.{method}, without parentheses"):
                decorator(*arguments)
        decorator(good)
        with pytest.raises(ConfigurationError, match=f"router.{method} is used twice"):
            decorator(good)


Route = dict[str, Any]


def make_router(routes: list[Route]) -> EventRouter:
    router = EventRouter()
    for route in routes:
        router.on(**route)(good)
    return router


def optional(values: list[str]) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from(values)


@st.composite
def make_route(draw: st.DrawFn) -> Route:
    action = draw(optional(ACTIONS))
    return {
        "resource_type": draw(optional(TYPES)),
        "action": action,
        "resource_subtype": draw(optional(SUBTYPES)),
        "field": draw(st.none() | st.sets(st.sampled_from(FIELDS), min_size=1)) if action == "changed" else None,
        "parent_type": draw(optional(PARENTS)) if action in (None, "added", "removed") else None,
    }


EVENTS = st.builds(
    make_event,
    st.sampled_from([*TYPES, "tag"]),
    st.sampled_from([*ACTIONS, "approved"]),
    field=optional([*FIELDS, "notes"]),
    subtype=optional(SUBTYPES),
    parent=optional(PARENTS),
)


def wants(route: Route, event: Event) -> bool:
    """Tell whether a route matches, its *parent_type* left out."""
    return (
        route["resource_type"] in (None, event.resource.resource_type)
        and route["resource_subtype"] in (None, event.resource.resource_subtype)
        and route["action"] in (None, event.action)
        and (route["field"] is None or (event.change is not None and event.change.field in route["field"]))
    )


class TestFilters:
    @pytest.mark.parametrize(
        ("routes", "filters"),
        [
            ([{}, {"resource_type": "task"}], []),
            ([{"parent_type": "section"}], []),
            (
                [{"action": "changed", "field": "name"}, {"action": "changed", "field": ("due_on", "due_at")}],
                [{"action": "changed", "fields": ("due_at", "due_on", "name")}],
            ),
            (
                [{"resource_type": "task", "action": "changed", "field": "name"}, {"action": "changed"}],
                [{"action": "changed"}],
            ),
            (
                [
                    {"resource_type": "task", "action": "changed", "field": ("due_on", "name")},
                    {"action": "changed", "field": "name"},
                ],
                [
                    {"action": "changed", "fields": ("name",)},
                    {"resource_type": "task", "action": "changed", "fields": ("due_on",)},
                ],
            ),
            (
                [
                    {"resource_type": "task", "action": "added", "parent_type": "section"},
                    {"resource_type": "story", "resource_subtype": "comment_added"},
                    {"resource_type": "task", "action": "added", "parent_type": "project"},
                ],
                [
                    {"resource_type": "story", "resource_subtype": "comment_added"},
                    {"resource_type": "task", "action": "added"},
                ],
            ),
        ],
    )
    def test_examples(self, routes: list[Route], filters: list[dict[str, Any]]) -> None:
        """Fields are merged, covered filters dropped, parents ignored; no filter means every event."""
        assert make_router(routes).filters == tuple(WebhookFilter(**one) for one in filters)

    @given(st.lists(make_route(), min_size=1, max_size=6), EVENTS)
    async def test_exact(self, routes: list[Route], event: Event) -> None:
        """Every event that has a handler passes the filters, and none passes that fits no route."""
        router = make_router(routes)
        passes = not router.filters or any(one.matches(event) for one in router.filters)
        missed: list[Event] = []

        @router.otherwise
        async def miss(event: Event, delivery: Delivery) -> None:
            missed.append(event)

        await router(make_delivery(event))

        assert passes or missed
        assert passes is any(wants(route, event) for route in routes)

    @given(st.lists(make_route(), min_size=1, max_size=6), st.randoms(use_true_random=False))
    def test_order(self, routes: list[Route], random: Any) -> None:
        """The filters do not depend on the order of decoration; they are sorted, and no two differ in fields only."""
        filters = make_router(routes).filters
        random.shuffle(routes)
        kinds = [(one.resource_type or "", one.resource_subtype or "", one.action or "") for one in filters]

        assert make_router(routes + routes).filters == filters
        assert all(one < other for one, other in pairwise(kinds))

    def test_without_routes(self) -> None:
        """Without routes, reading the filters raises: `()` would mean every event."""
        router = EventRouter()
        router.otherwise(good)
        with pytest.raises(ConfigurationError, match="without routes"):
            _ = router.filters

    def test_others_do_not_widen(self) -> None:
        """`otherwise` and `unreadable` do not widen the filters."""
        router = make_router([{"resource_type": "task"}])
        router.otherwise(good)
        router.unreadable(AsyncMock())
        assert router.filters == (WebhookFilter(resource_type="task"),)
