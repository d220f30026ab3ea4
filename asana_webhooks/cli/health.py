"""`health`, `move` and `rotate`: how well the webhooks are, and other ones in their place without losing an event."""

import asyncio
import logging
import re
import signal
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from attrs import asdict, evolve
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from asana_webhooks import (
    AsanaError,
    ConfigurationError,
    GetWebhookRequest,
    NotAuthorizedError,
    ReplacedWebhook,
    Store,
    WebhookChange,
    check_webhooks,
    replace_webhook,
    watch_webhooks,
)
from asana_webhooks._tasks import for_each, is_being_cancelled
from asana_webhooks.cli import common
from asana_webhooks.cli.plans import File, Options, Place, logs_from, read_file, wanted_webhooks
from asana_webhooks.subscriptions.establish import live_registrations
from asana_webhooks.subscriptions.rules import reaches, split_public_url

__all__ = ["health", "move", "rotate"]

_COLOURS: Final = {
    **dict.fromkeys(("gone", "deaf", "failing", "inactive"), "red"),
    **dict.fromkeys(("silent", "unknown"), "yellow"),
    **dict.fromkeys(("repaired", "removed", "new", "ok"), "green"),
}
"""The colour of each state, the worst first."""

Watch = Annotated[bool, Parameter(help="Go on, and print each change.")]
Repair = Annotated[bool, Parameter(help="Create anew what is gone or deaf, and named by the file.")]
Every = Annotated[
    float, Parameter(show_default=True, validator=Number(gt=0), help="Seconds between two checks of --watch.")
]


async def health(
    file: File = None, /, *, place: Place, watch: Watch = False, repair: Repair = False, every: Every = 300.0
) -> int:
    """Show how well the webhooks are, the worst first: what Asana says, joined with what the store has received.

    ```text
    asana-webhooks health --store asana.db
    asana-webhooks health webhooks.toml --store asana.db --repair --watch
    ```

    The file may be left out, but for --repair. Those that are ok or new are only counted, except with --json.
    --watch ends with Ctrl-C or SIGTERM. Status: 0 if all are ok, new or repaired; else 1.
    """
    (named, where), output = read_file(file, place, needed=repair), common.Output(json=place.json)
    async with common.session(place.base_url) as asana, common.named_store(place.store) as store:
        wanted = await wanted_webhooks(asana, named, where["workspace"]) if repair else []
        with logs_from(logging.ERROR, "health"):
            with common.progress("checking"):
                found = await check_webhooks(asana, store, **where)
            changes = {one.webhook_gid: WebhookChange(health=one) for one in found}

            def note(change: WebhookChange) -> None:
                changes[change.health.webhook_gid] = change
                if watch:
                    now = datetime.now(UTC)
                    output.show({"at": now, **_data(change)}, Text(f"{now:%Y-%m-%d %H:%M:%S} ") + _line(change))

            where |= {"wanted": wanted, "repair": repair, "on_change": note}
            if watch:
                output.talk(f"checking the webhooks every {every:g} s; each change is a line")
                return await _until_sigterm(watch_webhooks(asana, store, every=every, **where))
            if repair:
                with common.progress("repairing"):
                    await watch_webhooks(asana, store, every=None, **where)
    _show(output, changes.values())
    missing = {one.resource for one in wanted} - {one.health.resource for one in changes.values()}
    for resource in sorted(missing):  # never created, or closed by a repair that failed
        output.talk(f"{resource} has no webhook; apply creates it")
    return common.FAILED if missing or not all(one.resolved for one in changes.values()) else 0


async def _until_sigterm(watching: Any) -> int:
    task = asyncio.ensure_future(watching)
    with suppress(NotImplementedError):  # on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if is_being_cancelled():  # by Ctrl-C
            raise
    return 0


def _show(output: common.Output, changes: Iterable[WebhookChange]) -> None:
    states = list(_COLOURS)
    for one in sorted(changes, key=lambda one: states.index(_state(one))):
        if output.json or _state(one) not in ("new", "ok"):
            output.show(_data(one), _line(one))
    counts = Counter(sorted(map(_state, changes), key=states.index))
    text = ", ".join(f"{number} {state}" for state, number in counts.items())
    output.show({"counts": counts}, text or "there are no webhooks")


def _state(change: WebhookChange) -> str:
    return "repaired" if change.ensured else "removed" if change.removed else change.health.verdict


def _line(change: WebhookChange) -> Text:
    """Return such as ``failing: webhook 43 on 12: Asana deletes it in 3 h 12 min; the target last answered 503``."""
    one = change.health
    if one.verdict == "failing":
        reason, said = one.reason, _last_answer(one.last_failure)
        if one.deleted_at is not None:
            left = (one.deleted_at - datetime.now(UTC)).total_seconds()
            reason = f"Asana deletes it in {common.lasting(left)}"
        change = evolve(change, health=evolve(one, reason=f"{reason}; {said}" if said else reason))
    return Text(str(change), _COLOURS[_state(change)])


def _last_answer(text: str) -> str:
    """Return what a target said, without what may be its path: Asana gives ``503 Service Unavailable`` and the body."""
    first = text.strip().partition("\n")[0].strip()
    if first[:3].isdecimal():
        return f"the target last answered {first[:3]}"
    return first and "Asana says: " + re.sub(r"\S*/\S*|[\w-]{16,}", "***", first)[:80]


def _data(change: WebhookChange) -> dict[str, Any]:
    ensured, gap = change.ensured, change.gap
    return {
        **asdict(change.health),
        "last_failure": _last_answer(change.health.last_failure),
        "before": change.before,
        "removed": change.removed,
        "resolved": change.resolved,
        "ensured": ensured and {"action": ensured.action, "webhook_gid": ensured.webhook_gid},
        "gap": gap and asdict(gap),
        "error": change.error,
    }


# move and rotate


Gids = Annotated[str, Parameter(help="The gids of the webhooks; without, all live ones of the label.")]
To = Annotated[str, Parameter(help="The public URL to move to.")]
Now = Annotated[bool, Parameter(help="Refuse the old secrets at once: they have leaked.")]


async def move(*gid: Gids, to: To, options: Options, at_once: common.AtOnce = 100) -> int:
    """Move webhooks to another public URL without losing an event. It takes 15 minutes to nine hours.

    ```text
    asana-webhooks move --to https://new.example.com/asana --store asana.db
    ```

    Receivers must listen at both URLs, on one store. A new webhook is created beside each old one, which is deleted
    when nothing can be lost by that. Interrupted, run it again. Status: 0; 1 if one failed.
    """
    return await _replace_all(gid, options, at_once, to=to)


async def rotate(
    *gid: Gids, options: Options, at_once: common.AtOnce = 100, now: Now = False, yes: common.Yes = False
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
    return await _replace_all(gid, options, at_once, now=now, yes=yes)


async def _replace_all(
    gids: tuple[str, ...],
    options: Options,
    at_once: int,
    *,
    to: str | None = None,
    now: bool = False,
    yes: bool = False,
) -> int:
    output, failed = common.Output(json=options.json, keep_going=True), list[str]()
    _check(gids, to)
    async with common.session(options.base_url) as asana, common.named_store(options.store) as store:
        left = dict.fromkeys(await _chosen(store, gids, options.label, to))
        if now:
            lost = "Deliveries with an old secret are refused at once: events that Asana has still to send may be lost."
            common.confirm(f"{lost} Replace {len(left)} webhook(s)?", yes=yes)
        else:
            output.talk(f"replacing {len(left)} webhook(s) takes 15 minutes to nine hours; you may interrupt it")
        with (
            common.progress("replacing", len(left)) as bar,
            logs_from(logging.INFO, "move"),
            logs_from(logging.ERROR, "ensure"),  # what it says about a replaced webhook is the command's output
        ):

            async def replace(gid: str) -> None:
                try:
                    new = await replace_webhook(asana, store, webhook_gid=gid, public_url=to, now=now)
                    data = {"replaced": gid, "webhook_gid": new.webhook_gid, "lost_since": new.lost_since}
                    output.show(data, _replaced_text(gid, new))
                except NotAuthorizedError:
                    raise
                except AsanaError as error:
                    failed.append(gid)
                    output.talk(f"replacing webhook {gid} failed: {error}")
                del left[gid]
                bar.advance(bar.task_ids[0])

            try:
                await for_each(tuple(left), replace, at_once=at_once)
            except asyncio.CancelledError:
                output.talk(f"interrupted; to go on, run it again with: {' '.join(left)}")
                raise
    return common.FAILED if failed else 0


def _replaced_text(gid: str, new: ReplacedWebhook) -> str:
    text = f"webhook {gid} has been replaced by webhook {new.webhook_gid}"
    if new.lost_since is not None:
        text += f"; events since {new.lost_since:%Y-%m-%d %H:%M} UTC may be lost: fetch what changed"
    return text


def _check(gids: Iterable[str], to: str | None) -> None:
    """Raise `ConfigurationError` for a wrong gid or URL, before anything begins."""
    for gid in gids:
        GetWebhookRequest(webhook_gid=gid)
    if to is not None:
        split_public_url(to)


async def _chosen(store: Store, gids: tuple[str, ...], label: str | None, to: str | None) -> Iterable[str]:
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
