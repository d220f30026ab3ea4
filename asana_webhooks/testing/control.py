"""Steering the fake over HTTP, for programs in any language; everything else they need is Asana's own API.

======  ===================  ==================================================================================
POST    ``/_fake/changes``   ``{"resource": "8675309", "field": "name"}``, the members of `FakeAsana.change`; 202
GET     ``/_fake/webhooks``  every webhook, with its secret; 200
GET     ``/_fake/deliveries``  every attempt to deliver; 200
POST    ``/_fake/faults``    one `Fault` or a list of them; 202
POST    ``/_fake/clock``     ``{"advance": 28800}``: seconds; 200 when everything due has been done
POST    ``/_fake/settle``    200 when nothing is under way any more
======  ===================  ==================================================================================

No token is needed. Input that makes no sense is a 400 with a sentence in Asana's error envelope.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError, PayloadError
from asana_webhooks.testing.answers import Answer, error_answer
from asana_webhooks.testing.changes import ChangeRequest
from asana_webhooks.testing.clock import format_time
from asana_webhooks.testing.faults import Fault
from asana_webhooks.testing.records import DeliveryRecord, WebhookRecord
from asana_webhooks.testing.steering import Steering

__all__ = ["CONTROL_PATH", "Control"]

CONTROL_PATH = "/_fake"


class Control:
    """Answers the requests that steer *fake*."""

    def __init__(self, fake: Steering) -> None:
        self._fake = fake
        self._routes: dict[tuple[str, str], Callable[[bytes], Awaitable[Answer]]] = {
            ("POST", "/changes"): self._change,
            ("GET", "/webhooks"): self._webhooks,
            ("GET", "/deliveries"): self._deliveries,
            ("POST", "/faults"): self._faults,
            ("POST", "/clock"): self._clock,
            ("POST", "/settle"): self._settle,
        }

    async def handle(self, request: web.Request) -> Answer:
        """Do what one request says."""
        path = request.path.removeprefix(CONTROL_PATH)
        perform = self._routes.get((request.method, path))
        if perform is None:
            return error_answer(404, f"There is no {request.method} {CONTROL_PATH}{path}")
        try:
            return await perform(await request.read())
        except ConfigurationError as problem:
            return error_answer(400, str(problem))

    async def _change(self, body: bytes) -> Answer:
        return Answer.of(202, self._fake.apply(_read_change(body)))

    async def _webhooks(self, _: bytes) -> Answer:
        return Answer.of(200, {"data": [_webhook(one) for one in self._fake.webhooks.values()]})

    async def _deliveries(self, _: bytes) -> Answer:
        return Answer.of(200, {"data": [_delivery(one) for one in self._fake.deliveries]})

    async def _faults(self, body: bytes) -> Answer:
        faults = read_faults(body)
        self._fake.script(*faults)
        return Answer.of(202, {"added": len(faults)})

    async def _clock(self, body: bytes) -> Answer:
        await self._fake.advance(_read_advance(body))
        return Answer.of(200, {"now": format_time(self._fake.clock.now())})

    async def _settle(self, _: bytes) -> Answer:
        await self._fake.settle()
        return Answer.of(200, {"now": format_time(self._fake.clock.now())})


def _json(body: bytes) -> Any:
    try:
        return wire.parse(body)
    except PayloadError:
        raise ConfigurationError("the body is not JSON") from None


def _object(tree: Any, kind: type, what: str) -> dict[str, Any]:
    """Check that *tree* is an object whose members *kind* has."""
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{what} is a JSON object")
    names = [attribute.name for attribute in attrs.fields(kind)]
    unknown = [name for name in tree if name not in names]
    if unknown:
        raise ConfigurationError(f"{what} has no member {unknown[0]!r:.80}; it may have: {', '.join(names)}")
    return tree


def _read_change(body: bytes) -> ChangeRequest:
    try:
        return wire.structure(_object(_json(body), ChangeRequest, "a change"), ChangeRequest)
    except PayloadError as problem:
        raise ConfigurationError(f"a change: {problem}") from None


def read_faults(body: bytes) -> list[Fault]:
    """Read one fault or a list of them.

    Raises:
        ConfigurationError: one of them makes no sense.
    """
    tree = _json(body)
    members = [_object(one, Fault, "a fault") for one in (tree if isinstance(tree, list) else [tree])]
    if any("at" not in one for one in members):
        raise ConfigurationError("a fault needs at: which requests it is about")
    return [Fault(**one) for one in members]


def _read_advance(body: bytes) -> float:
    tree = _json(body)
    seconds = tree.get("advance") if isinstance(tree, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ConfigurationError('the clock takes {"advance": seconds}')
    return seconds


def _webhook(webhook: WebhookRecord) -> Mapping[str, Any]:
    return webhook.to_json() | {"secret": webhook.secret.reveal()}


def _delivery(delivery: DeliveryRecord) -> Mapping[str, Any]:
    tree = attrs.asdict(delivery)
    return tree | {"sent_at": format_time(delivery.sent_at), "body": delivery.body.decode(errors="replace")}
