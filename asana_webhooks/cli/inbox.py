"""The commands ``inbox …``: what a store holds, for the day of an incident. They work beside the running service."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import aiohttp
from attrs import asdict
from cyclopts import App, Parameter
from rich.text import Text
from yarl import URL

from asana_webhooks import DeliveryState, Secret, Store, StoredDelivery, sign_body
from asana_webhooks._checks import parse_url
from asana_webhooks._tasks import for_each
from asana_webhooks.cli import common
from asana_webhooks.cli.common import FAILED, Json, Output, StoreName, Yes
from asana_webhooks.client.transport import problem_of
from asana_webhooks.errors import ConfigurationError, PayloadError, SecretUnavailableError
from asana_webhooks.wire import decode_delivery

__all__ = ["inbox"]

_QUIET: Final = logging.NullHandler()
_TIMEOUT: Final = 10.0
"""Seconds for an answer, as at Asana."""
_UNKNOWN: Final = "there is no such delivery; it may be done"

Ids = Annotated[int, Parameter(required=True, help="The ids of the deliveries; see `inbox list`.")]
State = Annotated[DeliveryState, Parameter(help="Only those in this state.")]

inbox = App(name="inbox", help="See, repair and export the deliveries in a store, while the service runs.")


@inbox.command
async def status(*, store: StoreName, json: Json = False) -> int:
    """Show the health of the store. The exit status is 1 if anything needs you, for monitors.

    That is: dead letters; silent webhooks, from which nothing came for ten hours; or problems, such as a store that
    takes no deliveries. A count of 10000 means that many or more.

    For example: `asana-webhooks inbox status --store asana.db`
    """
    async with _opened(store) as opened:
        health = await opened.health()
    wrong, output = [name for name in ("dead", "silent", "problems") if getattr(health, name)], Output(json=json)
    output.show({"healthy": not wrong, **asdict(health)}, "not healthy" if wrong else "healthy")
    for name, value in {} if json else asdict(health).items():
        text = ", ".join(value or ()) if value in (None, health.silent, health.problems) else f"{value}".lower()
        text = common.lasting(value) if isinstance(value, float) else text
        output.show({}, Text(f"{name}: {text}", "red" if name in wrong else ""))
    return FAILED if wrong else 0


@inbox.command(name="list")
async def list_deliveries(*, store: StoreName, state: State = DeliveryState.DEAD, json: Json = False) -> int:
    """List the deliveries in one state, oldest first: dead letters, unless you name another state. Times are UTC.

    For example: `asana-webhooks inbox list --state delayed --store asana.db`
    """
    output, found = Output(json=json), False
    async with _opened(store) as opened:
        async for one in _all(opened, state):
            found = True
            _print(output, one)
    if not found:
        output.talk(f"no delivery is {state}")
    return 0


@inbox.command
async def show(
    id: Annotated[int, Parameter(help="See `inbox list`.")], /, *, store: StoreName, json: Json = False
) -> int:
    """Show a delivery with its events: which are done, and which cannot be read. With --json also its body.

    For example: `asana-webhooks inbox show 4711 --store asana.db`
    """
    output = Output(json=json)
    async with _opened(store) as opened:
        one = await opened.delivery(id)
    if one is None:
        output.talk(f"{id}: {_UNKNOWN}")
        return FAILED
    _print(output, one)
    try:
        parsed = decode_delivery(one.body)
        texts: list[str | Text] = [common.event_text(event) for event in parsed.events]
        for bad in parsed.unreadable:  # in the order of their places
            texts.insert(bad.index, f"unreadable: {bad.problem}")
    except PayloadError as problem:
        texts = [f"unreadable: {problem}"]
    for at, text in enumerate([] if json else texts):
        output.show({}, Text.assemble(f"event {at}: ", text, " (done)" if at in one.done else ""))
    return 0


@inbox.command
async def requeue(
    *ids: Annotated[int, Parameter(help="The ids of dead letters; see `inbox list`.")],
    store: StoreName,
    every: Annotated[bool, Parameter(name="--all", help="All dead letters.")] = False,
    json: Json = False,
) -> int:
    """Give dead letters back to the workers, with all their attempts. Events that are done are not repeated.

    For example: `asana-webhooks inbox requeue 4711 4712 --store asana.db`
    """
    if bool(ids) == every:
        raise ConfigurationError("pass either the ids of dead letters, or --all")
    async with _opened(store) as opened:
        chosen = [one.id async for one in _all(opened, DeliveryState.DEAD)] if every else ids
        return await _change(opened, chosen, opened.requeue, "requeued", json=json)


@inbox.command
async def discard(*ids: Ids, store: StoreName, yes: Yes = False, json: Json = False) -> int:
    """Delete deliveries that no worker has leased. Their events are lost: Asana does not send them again.

    For example: `asana-webhooks inbox discard 4711 --store asana.db`
    """
    common.confirm(f"Discard {len(ids)} of the deliveries? All events in them are lost.", yes=yes)
    async with _opened(store) as opened:
        return await _change(opened, ids, opened.discard, "discarded", json=json)


@inbox.command
async def replay(
    *ids: Ids,
    store: StoreName,
    to: Annotated[str, Parameter(help="The URL to post to. A redirect is not followed.")],
    secret_env: Annotated[str, Parameter(help="The variable with another secret to sign with.")] = "",
    json: Json = False,
) -> int:
    """Post stored deliveries to a URL, as Asana did: the same body, signed. The exit status is 1 unless all get 2xx.

    They are signed with the secret of their webhook, which is gone once its registration is closed.

    For example: `asana-webhooks inbox replay 4711 --to http://localhost:3000/hooks`
    """
    url, output, status = parse_url(to), Output(json=json, keep_going=True), 0
    if url.scheme not in ("http", "https"):
        raise ConfigurationError("--to must be an http(s) URL, such as http://localhost:3000/hooks")
    secret = common.secret_in(secret_env) if secret_env else None
    timeout, connector = aiohttp.ClientTimeout(total=_TIMEOUT), aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http, _opened(store) as opened:
        for id in ids:
            answer = await _post(http, url, opened, id, secret)
            if isinstance(answer, str):
                output.talk(f"{id}: {answer}")
            else:
                output.show({"id": id, "status": answer}, f"{id}: answered {answer}")
            status = status if answer in range(200, 300) else FAILED
    return status


@inbox.command
async def export(*, store: StoreName, state: State | None = None, json: Json = True) -> int:
    """Print deliveries with their bodies as JSON, one on a line, such as for an archive before a purge.

    A body that is not UTF-8 is base64, in `body_base64`. Dead letters are printed once each; another delivery may be
    printed twice or not at all, if its state changes meanwhile.

    For example: `asana-webhooks inbox export --state dead > dead.jsonl`
    """
    output = Output(json=json)
    async with _opened(store) as opened:
        for each in DeliveryState if state is None else (state,):
            async for one in _all(opened, each):
                _print(output, one)
    return 0


@inbox.command
async def purge(
    *,
    store: StoreName,
    older_than: Annotated[timedelta, Parameter(help="At least 26h, such as 90h, 3d or 2w.")],
    dead: Annotated[bool, Parameter(help="Dead letters, too; `export` makes an archive.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Delete old duplicate keys and closed registrations, as a running worker does. With --dead also old dead letters.

    For example: `asana-webhooks inbox purge --older-than 30d --dead`
    """
    if older_than < timedelta(hours=26):
        raise ConfigurationError("--older-than must be at least 26h: Asana sends a delivery again for 24 hours")
    if dead:
        before = f"{datetime.now(UTC) - older_than:%F %H:%M} UTC"
        common.confirm(f"Delete the dead letters from before {before}? All events in them are lost.", yes=yes)
    async with _opened(store) as opened:
        with common.progress("purging"):
            count = await opened.purge(older_than=older_than.total_seconds(), dead=dead)
    Output(json=json, keep_going=True).show({"purged": count}, f"purged {count}")
    return 0


@asynccontextmanager
async def _opened(name: str) -> AsyncIterator[Store]:
    """Use a store in a block. Its first call opens it: reading then works also while it is locked."""
    log = logging.getLogger("asana_webhooks.store")
    log.addHandler(_QUIET)  # warnings are for a service; `status` has them, too
    try:
        async with aclosing(common.named_store(name)) as store:
            yield store
    finally:
        log.removeHandler(_QUIET)


async def _all(store: Store, state: DeliveryState) -> AsyncIterator[StoredDelivery]:
    """Yield the deliveries in a state, in the order of their ids."""
    after = 0
    while page := await store.deliveries(state=state, after=after):
        for one in page:
            yield one
        after = page[-1].id


async def _change(
    store: Store, ids: Iterable[int], do: Callable[[int], Awaitable[bool]], word: str, *, json: bool
) -> int:
    """Change deliveries, many at a time because they then share a commit. Print how many, and why others were not."""
    output, count, chosen = Output(json=json, keep_going=True), 0, list(dict.fromkeys(ids))
    with common.progress(word, len(chosen)) as bar:

        async def change(id: int) -> None:
            nonlocal count
            if await do(id):
                count += 1
            else:
                one = await store.delivery(id)
                output.talk(f"{id}: not {word}: {_UNKNOWN if one is None else f'it is {one.state}'}")
            bar.advance(bar.task_ids[0])

        try:
            await for_each(chosen, change, at_once=100)
        except asyncio.CancelledError:
            output.talk(f"interrupted: up to 100 more may be {word}; run it again")
            raise
        finally:
            output.show({word: count}, f"{word} {count}")
    return 0 if count == len(chosen) else FAILED


async def _post(http: aiohttp.ClientSession, to: URL, store: Store, id: int, secret: Secret | None) -> int | str:
    """Post a delivery. Return the status of the answer, or why there is none."""
    if (one := await store.delivery(id)) is None:
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
    except (aiohttp.ClientError, OSError) as error:
        return f"no answer within {_TIMEOUT:g} seconds" if isinstance(error, TimeoutError) else problem_of(error)


def _print(output: Output, one: StoredDelivery) -> None:
    """Print a delivery: all of it as JSON, or a line for people."""
    received, due = (at and datetime.fromtimestamp(at, UTC) for at in (one.received_at, one.due_at))
    data = asdict(one) | {"received_at": received, "due_at": due}
    try:
        data["body"] = one.body.decode()
    except UnicodeDecodeError:
        data["body_base64"] = base64.b64encode(data.pop("body")).decode()
    text = f"{one.id}  {received:%F %T}  {one.state}  webhook {one.webhook_gid or '-'}"
    text += f" (label {one.label!r})" if one.label else ""
    text += f"  attempts {one.attempts}{f'  due {due:%F %T}' if due else ''}  {' '.join(one.error.split())}"
    output.show(data, text.rstrip())
