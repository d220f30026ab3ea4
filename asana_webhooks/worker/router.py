"""The router: a worker's handler that passes each event to the functions registered for such events."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from attrs import frozen

from asana_webhooks._checks import check_awaitable, check_handler, is_encodable
from asana_webhooks.errors import ConfigurationError, UnusableHandlerError
from asana_webhooks.models import Delivery, Event, UnreadableEvent, WebhookFilter

__all__ = ["EventHandler", "EventRouter", "UnreadableHandler"]

EventHandler = Callable[[Event, Delivery], Awaitable[object]]
"""Your coroutine function for events. Returning means success; raising fails this event of the delivery."""
UnreadableHandler = Callable[[UnreadableEvent, Delivery], Awaitable[object]]
"""Your coroutine function for events that cannot be read."""

E = TypeVar("E", bound=EventHandler)
U = TypeVar("U", bound=UnreadableHandler)

# https://developers.asana.com/reference/events
_ACTIONS: Final = ("changed", "added", "removed", "deleted", "undeleted")
_WITH_PARENT: Final = (None, "added", "removed")
_MISSING: Any = None

_log = logging.getLogger(__name__)


@frozen
class _Route:
    filter: WebhookFilter
    parent_type: str | None
    handler: EventHandler

    def matches(self, event: Event) -> bool:
        parent_type = event.parent.resource_type if event.parent else None
        return self.parent_type in (None, parent_type) and self.filter.matches(event)


class EventRouter:
    """Passes each event of a delivery to the functions that match it. A router is the handler of a `Worker`.

    ::

        router = EventRouter()

        @router.on("task", "changed", field=("due_on", "due_at"))
        async def due_date_changed(event: Event, delivery: Delivery) -> None: ...

        worker = Worker(store, router)

    Functions run one at a time: the events in Asana's order, and for each event all matching functions in the order
    they were added. A function that matches an event by several routes runs once. If a function raises, the event's
    remaining functions do not run; the other events are handled. Unreadable events come last. Then the failures are
    raised: one alone as itself, several as an `ExceptionGroup`. Cancellation and other exceptions that are not an
    `Exception` are raised immediately.

    An event is done when all its functions have returned. The worker keeps which events are done, and retries only the
    others, with all their functions. ``await router(delivery)``, for example in a handler of your own, runs them for
    every event of the delivery, also for those that are done: use `handle_events` there to keep track of them.
    """

    def __init__(self) -> None:
        self._routes: list[_Route] = []
        self._otherwise: EventHandler | None = None
        self._unreadable: UnreadableHandler | None = None

    def on(
        self,
        resource_type: str | None = None,
        action: str | None = None,
        *,
        field: str | Iterable[str] | None = None,
        resource_subtype: str | None = None,
        parent_type: str | None = None,
    ) -> Callable[[E], E]:
        """Return a decorator that adds an ``async def`` function of (event, delivery) for matching events.

        An event matches if every given argument does. Without arguments, every event matches. The decorator returns
        the function unchanged. To let one function match in several ways, decorate it several times.

        Args:
            resource_type: the type of `Event.resource`: ``task``, ``project``, ``story`` …
            action: ``changed``, ``added``, ``removed``, ``deleted`` or ``undeleted``.
            field: with ``action="changed"``: the changed field, or several of which one has changed.
            resource_subtype: the subtype of `Event.resource`: ``comment_added``, ``milestone`` …
            parent_type: the type of `Event.parent`, for ``added`` and ``removed``: ``section``, ``project``, ``task`` …

        Raises:
            ConfigurationError: no event can match these arguments, or `on` is used without parentheses. The decorator
                raises it if the function is not ``async def`` or cannot take two positional arguments.

        Source: https://developers.asana.com/reference/events
        """
        if callable(resource_type):
            raise ConfigurationError("router.on needs parentheses: write @router.on(), or better @router.on('task')")
        for name, value in {"resource_type": resource_type, "resource_subtype": resource_subtype}.items():
            _check_name(name, value)
        if resource_type in _ACTIONS:
            raise ConfigurationError(f"{resource_type!r} is an action, not a type: write action={resource_type!r}")
        _check_action(action, field, parent_type)
        fields = None if field is None else _read_fields(field)
        chosen = WebhookFilter(
            resource_type=resource_type, resource_subtype=resource_subtype, action=action, fields=fields
        )

        def add(handler: E) -> E:
            check_handler("handler", handler, "event", "delivery")
            self._routes.append(_Route(chosen, parent_type, handler))
            return handler

        return add

    def otherwise(self, handler: E = _MISSING) -> E:
        """Add the function for events that no route matches. It gets (event, delivery). Use it without parentheses.

        Raises:
            ConfigurationError: as for `on`, or there is such a function already.
        """
        _check_only("router.otherwise", handler, self._otherwise)
        check_handler("handler", handler, "event", "delivery")
        self._otherwise = handler
        return handler

    def unreadable(self, handler: U = _MISSING) -> U:
        """Add the function for `Delivery.unreadable`. It gets (unreadable, delivery). Use it without parentheses.

        Without one, unreadable events are only logged, by the worker.

        Raises:
            ConfigurationError: as for `on`, or there is such a function already.
        """
        _check_only("router.unreadable", handler, self._unreadable)
        check_handler("handler", handler, "unreadable", "delivery")
        self._unreadable = handler
        return handler

    @property
    def filters(self) -> tuple[WebhookFilter, ...]:
        """The narrowest filters with which a webhook sends every event that a route matches.

        They are ``()``, which lets all events pass, if a route matches all events. *parent_type* does not narrow
        them, because filters cannot express it. `otherwise` and `unreadable` do not widen them. The order of
        decoration does not matter.

        For a webhook on a workspace, team or portfolio, write filters by hand if a route has a *field*, or if these are
        ``()``: Asana refuses ``fields`` there, and webhooks without filters.

        Raises:
            ConfigurationError: the router has no route.

        Source: https://developers.asana.com/reference/createwebhook
        """
        if not self._routes:
            raise ConfigurationError("a router without routes has no filters: add functions with router.on(…) first")
        # One filter for each field, so that two filters can be compared member by member.
        single = {
            (one.resource_type or "", one.resource_subtype or "", one.action or "", name)
            for one in (route.filter for route in self._routes)
            for name in one.fields or ("",)
        }
        fields: dict[tuple[str, str, str], list[str]] = {}
        for narrow in sorted(single):
            if not any(wide != narrow and _covers(wide, narrow) for wide in single):
                fields.setdefault(narrow[:3], []).append(narrow[3])
        if ("", "", "") in fields:
            return ()
        return tuple(
            WebhookFilter(
                resource_type=resource_type or None,
                resource_subtype=resource_subtype or None,
                action=action or None,
                fields=None if names == [""] else tuple(names),
            )
            for (resource_type, resource_subtype, action), names in fields.items()
        )

    async def __call__(self, delivery: Delivery) -> None:
        """Run the functions for every event of *delivery*, as described above. `Delivery.done` does not matter.

        Raises:
            UnusableHandlerError: as for `handle_events`, like the others.
        """
        await self.handle_events(delivery, set())

    async def handle_events(self, delivery: Delivery, done: set[int]) -> None:
        """Run the functions for the events of *delivery* that are not in *done*. A worker calls this.

        Args:
            delivery: the delivery.
            done: the indices of events to skip, counted in the body's ``events`` from 0. Each event that is done is
                added at once, so that they are known even if this is cancelled. An event without a function is done.

        Raises:
            UnusableHandlerError: the router has no functions, or one returned something that cannot be awaited. It ends
                the worker's run.
            Exception: the only failure, as the function raised it.
            ExceptionGroup: all failures, if there are several.
        """
        if not self._routes and self._otherwise is None and self._unreadable is None:
            raise UnusableHandlerError("this router has no functions: import the modules that add them first")
        failures: list[Exception] = []
        for index, event, handlers in self._plan(delivery):
            try:
                if index not in done and await _all_return(handlers, event, delivery):
                    done.add(index)
            except UnusableHandlerError:
                raise
            except Exception as error:  # noqa: BLE001 - raised below, after the other events
                failures.append(error)
            except BaseException:
                for failure in failures:
                    _log.warning("delivery %d: failed before its cancellation", delivery.id, exc_info=failure)
                raise
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup(f"the handlers of {len(failures)} events failed", failures)

    def _plan(
        self, delivery: Delivery
    ) -> Iterator[tuple[int, Any, Sequence[Callable[[Any, Delivery], Awaitable[object]]]]]:
        """Yield each event with its index and its handlers, the unreadable ones last."""
        unreadable = {one.index for one in delivery.unreadable}
        readable = (index for index in itertools.count() if index not in unreadable)
        for index, event in zip(readable, delivery.events, strict=False):
            handlers: list[EventHandler] = []
            for route in self._routes:
                if route.handler not in handlers and route.matches(event):
                    handlers.append(route.handler)
            if not handlers and self._otherwise is not None:
                handlers = [self._otherwise]
            if not handlers:
                what = (event.action, event.resource.resource_type, event.resource.gid)
                _log.debug("delivery %d: no handler for the event %.200r", delivery.id, what)
            yield index, event, handlers
        for one in delivery.unreadable:
            yield one.index, one, [] if self._unreadable is None else [self._unreadable]


async def _all_return(
    handlers: Iterable[Callable[[Any, Delivery], Awaitable[object]]], event: object, delivery: Delivery
) -> bool:
    """Run an event's handlers. Return False if they returned only because they were cancelled, as by a timeout."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    for handler in handlers:
        await check_awaitable(handler(event, delivery))
    return task is None or task.cancelling() == cancels


def _is_name(value: object) -> bool:
    return value != "" and is_encodable(value)


def _check_name(name: str, value: object) -> None:
    if value is not None and not _is_name(value):
        raise ConfigurationError(f"{name} must be a name such as 'task', or None, not {value!r:.80}")


def _check_action(action: object, field: object, parent_type: object) -> None:
    _check_name("parent_type", parent_type)
    if action is not None and action not in _ACTIONS:
        raise ConfigurationError(f"action must be one of {', '.join(_ACTIONS)}, not {action!r:.80}")
    if field is not None and action != "changed":
        raise ConfigurationError(f"field needs action='changed', not {action!r}; others change no field")
    if parent_type is not None and action not in _WITH_PARENT:
        raise ConfigurationError(
            f"parent_type needs action='added' or 'removed', not {action!r}; others have no parent"
        )


def _read_fields(field: object) -> tuple[str, ...]:
    names = [field] if isinstance(field, str) else list(field) if isinstance(field, Iterable) else []
    if not names or not all(map(_is_name, names)):
        raise ConfigurationError(f"field must be a name such as 'due_on', or several of them, not {field!r:.80}")
    return tuple(names)


def _covers(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    return all(one in ("", other) for one, other in zip(wide, narrow, strict=True))


def _check_only(decorator: str, handler: object, previous: object) -> None:
    if not callable(handler):
        raise ConfigurationError(f"{decorator} takes no arguments: write @{decorator}, without parentheses")
    if previous is not None:
        raise ConfigurationError(f"{decorator} is used twice; a router takes one such function")
