"""`health`, `move` and `rotate`: how well the webhooks are, and other ones in their place without losing an event."""

import asyncio
import logging
import re
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from attrs import frozen
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from asana_webhooks import (
    AsanaError,
    AsanaSession,
    ConfigurationError,
    NotAuthorizedError,
    ReplacedWebhook,
    Store,
    WantedWebhook,
    WebhookChange,
    check_webhooks,
    replace_webhook,
    watch_webhooks,
)
from asana_webhooks._tasks import for_each
from asana_webhooks.cli.common import (
    FAILED,
    AtOnce,
    BaseUrl,
    Json,
    Label,
    Output,
    StoreName,
    Yes,
    confirm,
    named_store,
    progress,
    session,
)
from asana_webhooks.cli.plans import File, Place, logs_from, named_wanted, read_settings
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import LONGEST_WAIT, reaches
from asana_webhooks.worker.signals import stop_on_signals

__all__ = ["health", "move", "rotate"]

_STYLES: Final = {
    "gone": "red",
    "deaf": "red",
    "failing": "red",
    "inactive": "red",
    "silent": "yellow",
    "unknown": "yellow",
    "repaired": "green",
    "removed": "dim",
    "new": "green",
    "ok": "green",
}
"""The colour of each state, the worst first."""
_FINE: Final = ("new", "ok")

# health


async def health(
    file: File = None,
    /,
    *,
    place: Place,
    watch: Annotated[bool, Parameter(negative=(), help="Go on, and print each change.")] = False,
    repair: Annotated[
        bool, Parameter(negative=(), help="Create anew what is gone or deaf, and named by the file.")
    ] = False,
    every: Annotated[
        float, Parameter(show_default=True, validator=Number(gt=0), help="Seconds between two checks of --watch.")
    ] = 300.0,
    json: Json = False,
) -> int:
    """Show how well the webhooks are, the worst first: what Asana says, joined with what the store has received.

    ```text
    asana-webhooks health --store asana.db
    asana-webhooks health webhooks.toml --store asana.db --repair --watch
    ```

    The file may be left out, but for --repair. Those that are ok or new are only counted, except with --json.
    --watch ends with Ctrl-C or SIGTERM. Status: 0 if all are ok, new or repaired; else 1.
    """
    settings, output = read_settings(file, place, needed=repair), Output(json=json)
    where: dict[str, Any] = {
        "public_url": settings.public_url,
        "workspace": settings.workspace,
        "label": settings.label,
    }
    async with session(place.base_url) as asana, named_store(place.store) as store:
        wanted = await named_wanted(asana, settings) if repair else []
        with logs_from(logging.ERROR, "health"):
            if watch:
                output.talk(f"checking the webhooks every {lasting(every)}; each change is a line")
                return await _watch(asana, store, wanted, output, every=every, repair=repair, **where)
            with progress("checking"):
                found = await check_webhooks(asana, store, **where)
                changes = {one.webhook_gid: WebhookChange(health=one) for one in found}
                if repair:

                    def note(change: WebhookChange) -> None:
                        changes[change.health.webhook_gid] = change

                    await watch_webhooks(asana, store, wanted, every=None, on_change=note, repair=True, **where)
    _show_all(output, list(changes.values()))
    missing = {one.resource for one in wanted} - {one.health.resource for one in changes.values()}
    for resource in sorted(missing):  # never created, or closed by a repair that failed
        output.talk(f"{resource} has no webhook; apply creates it")
    return FAILED if missing or not all(one.resolved for one in changes.values()) else 0


async def _watch(asana: AsanaSession, store: Store, wanted: list[WantedWebhook], output: Output, **options: Any) -> int:
    def tell(change: WebhookChange) -> None:
        now, state, one = datetime.now(UTC), _state(change), change.health
        line = f"{now:%Y-%m-%d %H:%M:%S}  {state}: webhook {one.webhook_gid} on {one.resource}: {_reason(change, now)}"
        output.show({"at": now} | _data(change), Text(line, _STYLES[state]))

    with suppress(TimeoutError):
        async with asyncio.timeout(None) as ending:

            def end() -> None:
                if ending.when() is None:  # one signal may call it twice
                    ending.reschedule(0)

            with stop_on_signals([signal.SIGTERM], end):
                await watch_webhooks(asana, store, wanted, on_change=tell, **options)
    return 0


def _show_all(output: Output, changes: Sequence[WebhookChange]) -> None:
    now, order = datetime.now(UTC), list(_STYLES)
    states = Counter(_state(one) for one in changes)

    def badness(one: WebhookChange) -> tuple[object, ...]:
        return order.index(_state(one)), one.health.deleted_at or now, one.health.resource, one.health.webhook_gid

    worst_first = sorted(changes, key=badness)
    if output.json:
        for one in worst_first:
            output.show(_data(one), "")
    else:
        rows = [
            (Text(_state(one), _STYLES[_state(one)]), one.health.resource, one.health.webhook_gid, _reason(one, now))
            for one in worst_first
            if _state(one) not in _FINE
        ]
        if rows:
            output.table(("STATE", "RESOURCE", "WEBHOOK", "WHY"), rows)
    counts = {state: states[state] for state in order if states[state]}
    text = ", ".join(f"{number} {state}" for state, number in counts.items())
    output.show({"counts": counts}, text or "there are no webhooks")


def _state(change: WebhookChange) -> str:
    return "repaired" if change.ensured else "removed" if change.removed else change.health.verdict


def _reason(change: WebhookChange, now: datetime) -> str:
    """Return such as ``Asana deletes it in 3 h 12 min; the target last answered 503``."""
    one, texts = change.health, list[str]()
    if one.verdict != "failing":
        texts.append(one.reason)
    elif one.deleted_at is None:
        texts.append("deliveries fail")
    else:
        texts.append(f"Asana deletes it in {lasting((one.deleted_at - now).total_seconds())}")
    if one.verdict == "failing" and one.last_failure:
        texts.append(last_answer(one.last_failure))
    if change.ensured is not None:
        texts.append(f"{change.ensured.action} webhook {change.ensured.webhook_gid}")
    if change.gap is not None:
        since, until = (f"{one:%Y-%m-%d %H:%M}" for one in (change.gap.since, change.gap.until))
        texts.append(f"events may be missing from {since} to {until} UTC")
    if change.error is not None:
        texts.append(f"repairing it failed: {change.error}")
    return "; ".join(texts)


def _data(change: WebhookChange) -> dict[str, Any]:
    one, ensured, gap = change.health, change.ensured, change.gap
    names = ("verdict", "reason", "webhook_gid", "resource", "label", "last_sign_at", "deleted_at")
    return {
        **{name: getattr(one, name) for name in names},
        "last_failure": last_answer(one.last_failure),
        "before": change.before,
        "removed": change.removed,
        "resolved": change.resolved,
        "ensured": ensured and {"action": ensured.action, "webhook_gid": ensured.webhook_gid},
        "gap": gap and {"since": gap.since, "until": gap.until},
        "error": change.error and str(change.error),
    }


def last_answer(text: str) -> str:
    """Return what a target said, without what may be its path: Asana gives ``503 Service Unavailable`` and the body."""
    first = text.strip().partition("\n")[0].strip()
    if re.match(r"\d{3}\b", first):
        return f"the target last answered {first[:3]}"
    shown = re.sub(r"\S*/\S*|[\w-]{16,}", "***", first)
    return f"Asana says: {shown:.80}" if shown else ""


def lasting(seconds: float) -> str:
    """Return a duration for people, such as ``3 h 12 min``."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"


# move and rotate


@Parameter(name="*")
@frozen(kw_only=True)
class Way:
    """What `move` and `rotate` have in common."""

    store: StoreName
    label: Label | None = None
    at_once: AtOnce = 100
    overlap: Annotated[
        float,
        Parameter(
            show_default=True, validator=Number(gte=0), help="Seconds for which the old and the new one exist at least."
        ),
    ] = 900.0
    longest_wait: Annotated[
        float,
        Parameter(
            show_default=True, validator=Number(gte=0), help="Seconds after which the old one is deleted in any case."
        ),
    ] = LONGEST_WAIT
    base_url: BaseUrl = None
    json: Json = False


Gid = Annotated[str, Parameter(help="The gids of the webhooks; without, all live ones of the label.")]


async def move(*gid: Gid, to: Annotated[str, Parameter(help="The public URL to move to.")], way: Way) -> int:
    """Move webhooks to another public URL without losing an event. It takes 15 minutes to nine hours.

    ```text
    asana-webhooks move --to https://new.example.com/asana --store asana.db
    ```

    Receivers must listen at both URLs, on one store. A new webhook is created beside each old one, which is deleted
    when nothing can be lost by that. Interrupted, run it again. Status: 0; 1 if one failed.
    """
    return await _replace_all(gid, way, to=to)


async def rotate(
    *gid: Gid,
    way: Way,
    now: Annotated[bool, Parameter(negative=(), help="Refuse the old secrets at once: they have leaked.")] = False,
    yes: Yes = False,
) -> int:
    """Give webhooks new secrets without losing an event. It takes 15 minutes to nine hours.

    ```text
    asana-webhooks rotate 1209876543210987 --store asana.db
    asana-webhooks rotate --label tenant-a --now --store asana.db
    ```

    It creates a new webhook beside each old one, which is deleted when nothing can be lost by that. With --now the old
    one goes at once, and events may be lost. Interrupted, run it again with the gids that it names. Status: 0; 1 if one
    failed.
    """
    return await _replace_all(gid, way, now=now, yes=yes)


async def _replace_all(
    gids: tuple[str, ...], way: Way, *, to: str | None = None, now: bool = False, yes: bool = False
) -> int:
    output, failed = Output(json=way.json, keep_going=True), list[str]()
    async with session(way.base_url) as asana, named_store(way.store) as store:
        left = dict.fromkeys(await _chosen(store, gids, way.label, to))
        _announce(output, len(left), way, now=now, yes=yes)
        with (
            progress("replacing", len(left)) as bar,
            logs_from(logging.INFO, "move"),
            logs_from(logging.ERROR, "ensure"),  # what it says about a replaced webhook is the command's output
        ):

            async def replace(gid: str) -> None:
                try:
                    replaced = await replace_webhook(
                        asana,
                        store,
                        webhook_gid=gid,
                        public_url=to,
                        overlap=way.overlap,
                        longest_wait=way.longest_wait,
                        now=now,
                    )
                    _show_replaced(output, gid, replaced)
                except NotAuthorizedError:
                    raise
                except AsanaError as error:
                    failed.append(gid)
                    output.talk(f"replacing webhook {gid} failed: {error}")
                del left[gid]
                if bar is not None:
                    bar.advance(bar.task_ids[0])

            try:
                await for_each(tuple(left), replace, at_once=way.at_once)
            except asyncio.CancelledError:
                output.talk(f"interrupted; to go on, run it again with: {' '.join(left)}")
                raise
    return FAILED if failed else 0


def _announce(output: Output, number: int, way: Way, *, now: bool, yes: bool) -> None:
    if now:
        confirm(
            "Deliveries with an old secret are refused at once: events that Asana has still to send may be lost. "
            f"Replace {number} webhooks?",
            yes=yes,
        )
    else:
        time = f"{lasting(way.overlap)} to {lasting(way.longest_wait)}"
        output.talk(f"webhooks to replace: {number}, each in {time}; you may interrupt it, and run it again")


async def _chosen(store: Store, gids: tuple[str, ...], label: str | None, to: str | None) -> Sequence[str]:
    """Return the gids of the webhooks to replace: those given, or all of the label that are not at *to* already."""
    if gids and label is not None:
        raise ConfigurationError("pass either the gids of webhooks, or --label")
    live = [] if gids else await live_registrations(store, label=label or "")
    if not gids and not live:
        raise ConfigurationError(f"the store has no live webhook with the label {label or ''!r:.40}")
    ids, replaced = {one.id for one in live}, {one.replaces for one in live}
    todo = [one for one in live if one.replaces not in ids]  # of two webhooks the old one, to go on
    todo = [one for one in todo if to is None or one.id in replaced or not reaches(one, None, to)]
    return gids or sorted(one.webhook_gid for one in todo if one.webhook_gid)


def _show_replaced(output: Output, gid: str, replaced: ReplacedWebhook) -> None:
    lost = replaced.lost_since
    data = {"replaced": gid, "webhook_gid": replaced.webhook_gid, "lost_since": lost}
    end = "" if lost is None else f"; events since {lost:%Y-%m-%d %H:%M} UTC may be lost: fetch what changed"
    output.show(data, f"webhook {gid} has been replaced by webhook {replaced.webhook_gid}{end}")
