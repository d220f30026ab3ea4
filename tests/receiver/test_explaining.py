"""What the log says about an invalid signature: whose it is, how long the body is, and the likely cause."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from asana_webhooks import MemoryStore, Receiver, Secret, StoreUnavailableError, sign_body
from asana_webhooks.receiver.protocol import InvalidDelivery
from asana_webhooks.receiver.receiver import RegistrationCache
from asana_webhooks.store.base import NewDelivery, PutResult, Registration, registration_id
from tests.helpers.stores import ENDPOINT, SECRET, body, event, register
from tests.subscriptions.scenes import LoopClock

OTHER = Secret("4f8b1e07c92d5a36be70d1f29c8a6453")
OTHER_ENDPOINT = ENDPOINT[::-1]
CONTENT = body(event(name="Straße/7"))


async def refused(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, content: bytes, signature: str, endpoint: str = ENDPOINT
) -> tuple[str, Any]:
    """Deliver what is refused; return the log line without the registration, and the record's field for the webhook."""
    caplog.clear()
    reply = await receiver.receive(endpoint, [(b"X-Hook-Signature", signature.encode())], content)
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert (reply.status, reply.headers, reply.body) == (401, (), b"")
    said, where = record.getMessage(), f", registration {registration_id(endpoint)[:12]}"
    assert not [text for text in (SECRET.reveal(), OTHER.reveal(), signature, endpoint, "Stra") if text in said]
    assert where in said
    return said.replace(where, ""), vars(record)["asana_webhook"]


async def test_the_likely_cause_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each cause is named, once a minute for each webhook; the webhook and the length always are."""
    async with MemoryStore() as store:
        receiver, clock = Receiver(store), LoopClock()
        await register(store)
        await register(store, OTHER_ENDPOINT, OTHER, gid="43215", label="other")
        await receiver.receive(
            OTHER_ENDPOINT, [(b"X-Hook-Signature", sign_body(CONTENT, secret=OTHER).encode())], CONTENT
        )
        anew = json.dumps(json.loads(CONTENT), ensure_ascii=False).encode()
        signature = sign_body(CONTENT, secret=SECRET)
        for content, given, cause in (
            (CONTENT, sign_body(CONTENT, secret=OTHER), "it was signed with the secret of webhook 43215; two webhooks"),
            (CONTENT + b"\n", signature, "a last newline was added to the body on the way"),
            (anew, signature, "a proxy or framework parsed the body on the way and wrote its JSON anew; keep the raw"),
            (CONTENT, sign_body(CONTENT, secret=bytes.fromhex(SECRET.reveal())), "the signer decoded the secret from"),
            (CONTENT, "f" * 64, ""),
            (CONTENT, "evil", "the signature is not 64 hex digits"),
        ):
            where = f"; webhook '43214', {len(content)} bytes"
            said, webhook = await refused(receiver, caplog, content, given)
            assert said.startswith("request refused with 401: ")
            assert ("'invalid signature" + f": {cause}" * bool(cause)) in said.replace('"', "'")
            assert said.endswith(where)
            assert webhook == "43214"
            clock.turn(59)
            again, _ = await refused(receiver, caplog, content, given)
            assert again == f"request refused with 401: 'invalid signature'{where}"
            clock.turn(2)


async def test_each_webhook_has_its_own_minute(caplog: pytest.LogCaptureFixture) -> None:
    """One webhook's explanation does not silence another's."""
    receiver = Receiver(store := MemoryStore())
    await register(store)
    await register(store, OTHER_ENDPOINT, OTHER, gid="43215", label="other")

    for endpoint, secret in ((ENDPOINT, SECRET), (OTHER_ENDPOINT, OTHER)):
        said, _ = await refused(receiver, caplog, CONTENT + b"\n", sign_body(CONTENT, secret=secret), endpoint)
        assert "newline" in said


async def test_only_a_short_body_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    """A body over 64 KiB is not explained, because the event loop waits meanwhile."""
    receiver = Receiver(store := MemoryStore())
    await register(store)
    for length in (65_537, 65_536):
        content = b"x" * (length - 1)
        said, _ = await refused(receiver, caplog, content + b"\n", sign_body(content, secret=SECRET))
        assert ("newline" in said) is (length == 65_536)
        assert f"{length} bytes" in said


async def test_the_secrets_that_were_used_last_are_tried(caplog: pytest.LogCaptureFixture) -> None:
    """The secrets of the hundred webhooks that were used last are compared."""
    receiver, clock = Receiver(store := MemoryStore()), LoopClock()
    secrets = [Secret(f"{number:032x}") for number in range(102)]
    for number, secret in enumerate(secrets):
        endpoint = f"endpoint-number-{number}"
        await register(store, endpoint, secret, gid=str(number), label=str(number))
        await receiver.receive(endpoint, [(b"X-Hook-Signature", sign_body(CONTENT, secret=secret).encode())], CONTENT)
    for number, known in ((0, False), (1, True), (100, True)):
        said, _ = await refused(
            receiver, caplog, CONTENT, sign_body(CONTENT, secret=secrets[number]), "endpoint-number-101"
        )
        assert (f"the secret of webhook {number}" in said) is known, number
        clock.turn(61)


async def test_before_the_201_there_is_no_webhook(caplog: pytest.LogCaptureFixture) -> None:
    """While the create call is open, the line says that the webhook is not confirmed yet."""
    store = MemoryStore()
    assert await store.open_registration(
        registration_id(ENDPOINT), resource="8675309", public_url="https://example.com/asana", ttl=60
    )
    await store.add_candidate(registration_id(ENDPOINT), SECRET)

    said, webhook = await refused(Receiver(store), caplog, CONTENT, sign_body(CONTENT, secret=OTHER))
    where = f"; webhook 'not confirmed yet', {len(CONTENT)} bytes"
    assert (said, webhook) == (f"request refused with 401: 'invalid signature'{where}", None)


class Refusing(MemoryStore):
    """A store that can refuse or fail to store."""

    does: str = ""

    async def put(self, delivery: NewDelivery) -> PutResult:
        if self.does == "fail":
            raise StoreUnavailableError(problem="gone", advice="Find it.")
        return "refused" if self.does == "refuse" else await super().put(delivery)


async def test_every_line_names_webhook_and_label(caplog: pytest.LogCaptureFixture) -> None:
    """What is accepted and what is refused is logged with the webhook and its label, if they are known.

    The records of refusals have them as fields, of all refusals, so a formatter may name the fields.
    """
    caplog.set_level(logging.DEBUG, logger="asana_webhooks")
    store, id = Refusing(), registration_id(ENDPOINT)
    opened = {"resource": "8675309", "public_url": "https://example.com/asana", "label": "tenant-a"}
    assert await store.open_registration(id, **opened, ttl=60)
    receiver = Receiver(store)
    signed = [(b"X-Hook-Signature", sign_body(CONTENT, secret=SECRET).encode())]

    async def line(headers: list[tuple[bytes, bytes]], does: str = "", endpoint: str = ENDPOINT) -> Any:
        """Return the last line, and the two fields."""
        store.does = does
        await receiver.receive(endpoint, headers, CONTENT)
        record = caplog.records[-1]
        fields = [vars(record)[name] for name in ("asana_webhook", "asana_label") if hasattr(record, name)]
        return record.getMessage().partition(": ")[2] or record.getMessage(), fields

    early = f"; webhook 'not confirmed yet' (label 'tenant-a'), registration {id[:12]}"
    known = f"; webhook '43214' (label 'tenant-a'), registration {id[:12]}"
    assert await line([]) == (f"'no signature'{early}", [None, "tenant-a"])
    assert await line([(b"X-Hook-Secret", SECRET.reveal().encode())]) == (f"handshake echoed{early}", [])
    for number in range(4):
        await store.add_candidate(id, Secret(f"{number}"))
    late = "'handshake too late, or too many'"
    assert await line([(b"X-Hook-Secret", b"one-too-many")]) == (f"{late}{early}", [None, "tenant-a"])
    assert await store.confirm_registration(id, webhook_gid="43214", secret=SECRET)
    assert await line(signed) == (f"delivery stored, {len(CONTENT)} bytes{known}", [])
    assert await line(signed) == (f"delivery duplicate, {len(CONTENT)} bytes{known}", [])
    assert await line([]) == (f"'no signature'{known}", ["43214", "tenant-a"])
    failed = f"'store unavailable: gone. Find it.'{known}"
    assert await line(signed, "fail") == (failed, ["43214", "tenant-a"])
    assert await line(signed, "refuse") == (f"'closed registration'{known}", ["43214", "tenant-a"])
    await store.close_registration(id)
    assert await line(signed) == (f"'closed registration'{known}", ["43214", "tenant-a"])
    nobody = "nobody-knows-this-one"
    unknown = f"'unknown endpoint'; registration {registration_id(nobody)[:12]}"
    assert await line(signed, endpoint=nobody) == (unknown, [None, None])


async def test_a_broken_store(caplog: pytest.LogCaptureFixture) -> None:
    """An empty secret, which anyone could sign with, is refused like any other and needs no cause."""

    class Broken(MemoryStore):
        async def find_registration(self, id: str) -> Registration | None:
            found = await super().find_registration(id)
            return None if found is None else evolve(found, secret=Secret(""))

    await register(store := Broken())
    said, webhook = await refused(Receiver(store), caplog, CONTENT, sign_body(CONTENT, secret=SECRET))
    assert (said, webhook) == (
        f"request refused with 401: 'invalid signature'; webhook '43214', {len(CONTENT)} bytes",
        "43214",
    )


async def test_the_cache_keeps_no_time_without_its_registration() -> None:
    """The time of the last explanation goes with the entry, so the cache's limit bounds these too."""
    store = MemoryStore()
    ids = [await register(store, f"endpoint-number-{one}", gid=one, label=one) for one in "01"]
    first, second = [found for id in ids if (found := await store.find_registration(id)) is not None]
    cache = RegistrationCache(size=1)
    invalid = InvalidDelivery(registration=first, signature=b"evil", body=CONTENT, length=len(CONTENT))
    forgets: list[Callable[[], object]] = [lambda: cache.add(second), lambda: cache.forget(first.id)]
    for forget in forgets:
        cache.add(first)
        assert cache.explain(invalid, now=0.0)
        assert not cache.explain(invalid, now=0.0)
        forget()
    assert not cache.explain(invalid, now=100.0)
