"""Whose turn it is to go wrong: scripted faults, and holds that stop a request until a test lets it go on."""

import asyncio
from collections.abc import Callable

from attrs import define, frozen

from asana_webhooks.testing.faults import BESIDES, OPERATIONS, Fault, check_moment

__all__ = ["FaultScript", "Hold", "Plan"]


class Hold:
    """Stops requests at one moment until they are let go; made by `FakeAsana.hold`."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.waiting = 0
        """How many requests wait here now."""
        self._changed = changed
        self._came = 0
        self._news = asyncio.Event()
        self._released = asyncio.Event()

    async def reached(self, requests: int = 1) -> None:
        """Return once that many requests have come here."""
        while self._came < requests:
            self._news.clear()
            await self._news.wait()

    def release(self) -> None:
        """Let what waits here go on, and what comes later pass."""
        self._released.set()

    @property
    def held(self) -> int:
        """How many requests can only go on when a test lets them."""
        return 0 if self._released.is_set() else self.waiting

    async def wait(self) -> None:
        """The fake's side: wait here."""
        self.waiting += 1
        self._came += 1
        self._news.set()
        self._changed()
        try:
            await self._released.wait()
        finally:
            self.waiting -= 1


@frozen
class _HeldAt:
    when: str
    hold: Hold


@define
class _Scripted:
    what: Fault | _HeldAt
    at: str
    webhook: str | None
    times: int | None
    after: int = 0
    seen: int = 0
    applied: int = 0

    def meets(self, at: str, webhook: str | None) -> bool:
        """Count a request that fits, and tell whether it is one of those to apply to."""
        if at != self.at and not (self.at == "*" and at in OPERATIONS):
            return False
        if self.webhook not in (None, webhook):
            return False
        self.seen += 1
        return self.seen > self.after and (self.times is None or self.applied < self.times)


@frozen
class Plan:
    """What will go wrong with one request."""

    fault: Fault | None = None
    """How it ends, if not well."""
    besides: tuple[Fault, ...] = ()
    holds: tuple[_HeldAt, ...] = ()

    def find(self, do: str, when: str | None = None) -> Fault | None:
        """The fault of this kind, if there is one."""
        every = (*self.besides, *([self.fault] if self.fault else []))
        return next((one for one in every if one.do == do and when in (None, one.when)), None)

    async def wait(self, when: str) -> None:
        """Spend the delays and holds of this moment."""
        delay = self.find("delay", when)
        if delay is not None:
            await asyncio.sleep(delay.seconds)
        for held in self.holds:
            if held.when == when:
                await held.hold.wait()


class FaultScript:
    """The faults still to come. Each applies to the requests after it was added."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._scripted: list[_Scripted] = []
        self._holds: list[Hold] = []

    def add(self, *faults: Fault) -> None:
        """Let these happen, in this order, after those added before."""
        for fault in faults:
            self._scripted.append(
                _Scripted(fault, at=fault.at, webhook=fault.webhook, times=fault.times, after=fault.after)
            )

    def hold(self, at: str, *, when: str, times: int | None, webhook: str | None) -> Hold:
        """Stop requests at a moment."""
        check_moment(at, when)
        hold = Hold(self._changed)
        self._holds.append(hold)
        self._scripted.append(_Scripted(_HeldAt(when, hold), at=at, webhook=webhook, times=times))
        return hold

    def clear(self) -> None:
        """Forget all faults to come and let everything held go on."""
        self._scripted.clear()
        for hold in self._holds:
            hold.release()

    @property
    def held(self) -> int:
        """How many requests wait in holds now."""
        return sum(hold.held for hold in self._holds)

    def take(self, at: str, *, webhook: str | None = None) -> Plan:
        """Decide what goes wrong with a request that has just come up."""
        chosen: dict[object, Fault | _HeldAt] = {}
        for scripted in self._scripted:
            if scripted.meets(at, webhook):
                what = scripted.what
                if isinstance(what, _HeldAt):
                    group: object = what.hold
                else:
                    group = (what.do, what.when) if what.do in BESIDES else "fault"
                if group not in chosen:
                    chosen[group] = what
                    scripted.applied += 1
        faults = [what for what in chosen.values() if isinstance(what, Fault)]
        return Plan(
            fault=next((one for one in faults if one.do not in BESIDES), None),
            besides=tuple(one for one in faults if one.do in BESIDES),
            holds=tuple(what for what in chosen.values() if isinstance(what, _HeldAt)),
        )
