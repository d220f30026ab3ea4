"""The commands ``inbox …``: what a store holds, for the day of an incident. They work beside the running service."""

import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import aiohttp
from attrs import asdict
from cyclopts import App, Parameter
from rich.text import Text
from yarl import URL

from asana_webhooks import (
    ConfigurationError,
    DeliveryState,
    ParsedDelivery,
    PayloadError,
    Retention,
    Secret,
    SecretUnavailableError,
    Store,
    StoredDelivery,
    UnreadableEvent,
    sign_body,
)
from asana_webhooks._checks import parse_url
from asana_webhooks._tasks import for_each
from asana_webhooks.cli import common
from asana_webhooks.cli.common import Json, Label, Output, StoreName, Yes
from asana_webhooks.client.transport import problem_of
from asana_webhooks.store.base import MAX_COUNT
from asana_webhooks.wire import decode_delivery

__all__ = ["inbox"]

_COLUMNS: Final = ("id", "state", "received", "attempts", "due", "webhook", "label", "error")
_LONGEST: Final = 60
"""Characters of an error in a table on a terminal."""
_TIMEOUT: Final = 10.0
"""Seconds for an answer, as at Asana."""
_UNKNOWN: Final = "there is no such delivery; it may be done"

Id = Annotated[int, Parameter(help="The id of the delivery; see `inbox list`.")]
Ids = Annotated[int, Parameter(required=True, help="The ids of the deliveries; see `inbox list`.")]
State = Annotated[DeliveryState, Parameter(name="--state", help="Only those in this state.")]

inbox = App(name="inbox", help="See, repair and export the deliveries in a store, while the service runs.")


@inbox.command
async def status(*, store: StoreName, json: Json = False) -> int:
    """Show the health of the store. The exit status is 1 if anything needs you, for monitors.

    That is: dead letters, silent webhooks, from which nothing came for ten hours (see `health`), or problems, such as
    a store that takes no deliveries or a secret that cannot be opened.

    For example: `asana-webhooks inbox status --store asana.db`
    """
    async with _opened(store) as opened:
        health = await opened.health()
    bad = {"dead": health.dead, "silent": health.silent, "problems": health.problems}
    output, data = Output(json=json), {"healthy": not any(bad.values()), **asdict(health)}
    if json:
        output.show(data, "")
    else:
        rows = [(name, Text(_text(name, value), "red" if bad.get(name) else "")) for name, value in data.items()]
        output.table(("field", "value"), rows)
    return 0 if data["healthy"] else common.FAILED


@inbox.command(name="list")
async def list_deliveries(
    *, store: StoreName, state: State = DeliveryState.DEAD, label: Label | None = None, json: Json = False
) -> int:
    """List the deliveries in one state, the oldest first: dead letters, unless you say another one. Times are UTC.

    For example:

    ```text
    asana-webhooks inbox list --store asana.db
    asana-webhooks inbox list --state delayed --json | jq .error
    ```
    """
    output, found = Output(json=json), False
    async with _opened(store) as opened:
        async for page in _pages(opened, state, label=label):
            found = True
            if not json:
                output.table(_COLUMNS, [_row(one, cut=output.is_terminal) for one in page])
            for one in page if json else ():
                output.show(_data(one), "")
    if not found:
        output.talk(f"no delivery is {state}{'' if label is None else f' with the label {label!r}'}")
    return 0


@inbox.command
async def show(id: Id, /, *, store: StoreName, json: Json = False) -> int:
    """Show all of a delivery: its events, which of them are done, and the error in full.

    For example: `asana-webhooks inbox show 4711 --store asana.db`
    """
    output = Output(json=json)
    async with _opened(store) as opened:
        one = await opened.delivery(id)
    if one is None:
        output.talk(f"{id}: {_UNKNOWN}")
        return common.FAILED
    try:
        parsed = decode_delivery(one.body)
    except PayloadError as problem:
        whole = UnreadableEvent(raw=None, index=0, problem=f"{problem}")
        parsed = ParsedDelivery(events=(), unreadable=(whole,))
    data = _data(one)
    if json:
        events, unreadable = [event.to_dict() for event in parsed.events], [asdict(bad) for bad in parsed.unreadable]
        output.show({**data, "events": events, "unreadable": unreadable}, "")
    else:
        error = data.pop("error")  # it may have several lines
        rows = [(name, "" if value is None else f"{value}") for name, value in data.items() if name != "done"]
        output.table(("field", "value"), [*rows, *_event_rows(parsed, one.done), ("error", error)])
    return 0


@inbox.command
async def requeue(
    *ids: Annotated[int, Parameter(help="The ids of dead letters; see `inbox list`.")],
    store: StoreName,
    every: Annotated[bool, Parameter(name="--all", negative=(), help="All dead letters.")] = False,
    label: Label | None = None,
    json: Json = False,
) -> int:
    """Give dead letters back to the workers, with all their attempts. Events that are done are not repeated.

    For example:

    ```text
    asana-webhooks inbox requeue 4711 4712 --store asana.db
    asana-webhooks inbox requeue --all --label tenant-a
    ```
    """
    if bool(ids) == every or (ids and label is not None):
        raise ConfigurationError("pass either the ids of dead letters, or --all, perhaps with --label")
    async with _opened(store) as opened:
        pages = _pages(opened, DeliveryState.DEAD, label=label)
        chosen = [one.id async for page in pages for one in page] if every else ids
        return await _change(opened, chosen, opened.requeue, "requeued", json=json)


@inbox.command
async def discard(*ids: Ids, store: StoreName, yes: Yes = False, json: Json = False) -> int:
    """Delete deliveries that no worker has leased. Their events are lost: Asana does not send them again.

    For example: `asana-webhooks inbox discard 4711 --store asana.db`
    """
    async with _opened(store) as opened:
        what = "delivery" if len(ids) == 1 else "deliveries"
        common.confirm(f"Discard {len(ids)} {what}? All events in them are lost.", yes=yes)
        return await _change(opened, ids, opened.discard, "discarded", json=json)


@inbox.command
async def replay(
    *ids: Ids,
    store: StoreName,
    to: Annotated[str, Parameter(help="The URL to post to. A redirect is not followed.")],
    secret_env: Annotated[
        str | None, Parameter(help="The variable with the secret to sign with, if not the webhook's own.")
    ] = None,
    json: Json = False,
) -> int:
    """Post stored deliveries to a URL, as Asana did: the same body, signed. Nothing changes in the store.

    They are signed with the secret of their webhook, which is gone once its registration is closed. The exit status is
    1 unless each is answered with 2xx, within 10 seconds.

    For example:

    ```text
    asana-webhooks inbox replay 4711 --store asana.db
        --to http://localhost:3000/hooks
    ```
    """
    url, output, status = parse_url(to), Output(json=json, keep_going=True), 0
    if url.scheme not in ("http", "https") or "@" in url.raw_authority:
        raise ConfigurationError("--to must be an http(s) URL without user and password")
    secret, target = None if secret_env is None else common.secret_in(secret_env), common.masked(to)
    http = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT), connector=aiohttp.TCPConnector(force_close=True)
    )
    async with http, _opened(store) as opened:
        for id in ids:
            answer = await _post(http, URL(to, encoded=True), await opened.delivery(id), opened, secret)
            if isinstance(answer, int):
                output.show({"id": id, "target": target, "status": answer}, f"{id}: {target} answered {answer}")
            else:
                output.talk(f"{id}: {answer}")
            if not isinstance(answer, int) or not 200 <= answer < 300:
                status = common.FAILED
    return status


@inbox.command
async def export(*, store: StoreName, state: State | None = None, json: Json = True) -> int:
    """Print deliveries with their bodies as JSON, one on a line, such as for an archive before a purge.

    The body is the text in `body`, or base64 in `body_base64` if it is not UTF-8. One state is read after the other: a
    delivery whose state changes meanwhile may be printed twice or not at all. Dead letters change by hand only.

    For example: `asana-webhooks inbox export --state dead > dead.jsonl`
    """
    output = Output(json=json)
    async with _opened(store) as opened:
        for each in DeliveryState if state is None else (state,):
            async for page in _pages(opened, each):
                for one in page:
                    output.show({**_data(one), **_body(one.body)}, "")
    return 0


@inbox.command
async def purge(
    *,
    store: StoreName,
    older_than: Annotated[timedelta, Parameter(help="At least 26h, such as 90h, 3d or 2w.")],
    dead: Annotated[bool, Parameter(negative=(), help="Dead letters, too.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Forget what is finished and old: duplicate keys and closed registrations, and with --dead also dead letters.

    A running worker does so by itself, but for dead letters. `inbox export` makes an archive of these.

    For example: `asana-webhooks inbox purge --older-than 30d --dead`
    """
    age, what = older_than.total_seconds(), "duplicate keys and dead letters" if dead else "duplicate keys"
    try:
        retention = Retention(done=age, dead=age if dead else None)
    except ConfigurationError:
        raise ConfigurationError(
            "--older-than must be at least 26h: Asana sends a delivery again for 24 hours, and without its duplicate "
            "key it would be handled twice"
        ) from None
    async with _opened(store) as opened:
        lost = " The events of these dead letters are lost." if dead else ""
        common.confirm(f"Forget {what} that are more than {common.lasting(age)} old?{lost}", yes=yes)
        with common.progress("purging"):
            count = await retention.apply(opened)
    Output(json=json, keep_going=True).show({"purged": count}, f"purged {count:,} {what}")
    return 0


@asynccontextmanager
async def _opened(name: str) -> AsyncIterator[Store]:
    """Open a store, without its warnings, which are for a service; `status` shows what is wrong."""
    quiet, log = logging.NullHandler(), logging.getLogger("asana_webhooks.store")
    log.addHandler(quiet)
    try:
        async with aclosing(common.named_store(name)) as store:  # the first call opens it, also while it is locked
            yield store
    finally:
        log.removeHandler(quiet)


async def _pages(
    store: Store, state: DeliveryState, *, label: str | None = None
) -> AsyncIterator[Sequence[StoredDelivery]]:
    """Yield the deliveries in a state, in the order of their ids, a page at a time."""
    after = 0
    while page := await store.deliveries(state=state, after=after):
        after = page[-1].id
        if found := [one for one in page if label in (None, one.label)]:
            yield found


async def _change(
    store: Store, ids: Iterable[int], do: Callable[[int], Awaitable[bool]], word: str, *, json: bool
) -> int:
    """Change deliveries, many at a time because they then share a commit. Print how many, and why others were not."""
    output, count = Output(json=json, keep_going=True), {True: 0, False: 0}
    chosen = list(dict.fromkeys(ids))
    with common.progress(word, len(chosen)) as bar:

        async def change(id: int) -> None:
            changed = await do(id)
            count[changed] += 1
            if bar is not None:
                bar.advance(bar.task_ids[0])
            if not changed:
                one = await store.delivery(id)
                output.talk(f"{id}: not {word}: {_UNKNOWN if one is None else f'it is {one.state}'}")

        try:
            await for_each(chosen, change, at_once=100)
        finally:
            if sum(count.values()) or not chosen:  # else the store failed at once
                output.show({word: count[True]}, f"{word} {count[True]:,}")
    return common.FAILED if count[False] else 0


async def _post(
    http: aiohttp.ClientSession, to: URL, one: StoredDelivery | None, store: Store, secret: Secret | None
) -> int | str:
    """Post a delivery. Return the status of the answer, or why there is none."""
    if one is None:
        return _UNKNOWN
    try:
        if secret is None and (registration := await store.find_registration(one.registration)):
            secret = registration.secret
        if secret is None:
            return "the store has no secret for it: pass --secret-env"
        headers = {"Content-Type": "application/json", "X-Hook-Signature": sign_body(one.body, secret=secret)}
        async with http.post(to, data=one.body, headers=headers, allow_redirects=False) as answer:
            return answer.status
    except SecretUnavailableError as error:
        return f"{error}"
    except TimeoutError:
        return f"no answer within {_TIMEOUT:g} seconds"
    except (aiohttp.ClientError, OSError) as error:
        return problem_of(error)


# Output


def _text(name: str, value: Any) -> str:
    """Return a field of the health for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, tuple):
        return "; ".join(value or ())
    if name == "oldest_age":
        return common.lasting(value)
    return f"{value:,}{' or more' if value >= MAX_COUNT and name != 'log_bytes' else ''}"


def _data(one: StoredDelivery) -> dict[str, Any]:
    """Return a delivery for JSON, without its body."""
    data = asdict(one, filter=lambda attribute, _: attribute.name != "body")
    times = {name: data[name] for name in ("received_at", "due_at") if data[name] is not None}
    return data | {name: datetime.fromtimestamp(at, UTC).isoformat() for name, at in times.items()}


def _body(body: bytes) -> Mapping[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _row(one: StoredDelivery, *, cut: bool) -> Sequence[str]:
    error = " ".join(one.error.split())
    if cut and len(error) > _LONGEST:
        error = f"{error[: _LONGEST - 3]}..."
    received, due = (
        at and f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}" for at in (one.received_at, one.due_at)
    )
    return f"{one.id}", one.state, received or "", f"{one.attempts}", due or "", one.webhook_gid or "", one.label, error


def _event_rows(parsed: ParsedDelivery, done: Sequence[int]) -> Sequence[tuple[str, str]]:
    texts = list(map(common.event_text, parsed.events))
    for bad in parsed.unreadable:  # in the order of their places
        texts.insert(bad.index, f"unreadable: {bad.problem}")
    return [(f"event {at}", f"{text}{' (done)' if at in done else ''}") for at, text in enumerate(texts)]
