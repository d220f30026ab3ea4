"""Deliveries that go wrong on request: duplicates, losses, forgeries, changed bodies."""

import json

import pytest

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.testing import FakeAsana, Fault
from tests.testing.fake_play import PROJECT, Target, playing


async def _one_change(fault: Fault, *, changes: int = 1) -> tuple[FakeAsana, Target, Secret]:
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)
        secret = fake.secret(gid)
        fake.script(fault)
        for _ in range(changes):
            fake.change(PROJECT, field="name")
            await fake.settle()
        await fake.advance(60)
        return fake, target, secret


async def test_duplicate() -> None:
    """The same bytes can come twice although they were accepted."""
    fake, target, _ = await _one_change(Fault(at="delivery", do="duplicate"))
    assert len(target.deliveries) == 2
    assert target.deliveries[0].body == target.deliveries[1].body
    assert [one.duplicate for one in fake.deliveries] == [False, True]


async def test_lose() -> None:
    """A delivery can be lost without anyone knowing."""
    fake, target, _ = await _one_change(Fault(at="delivery", do="lose"), changes=2)
    assert len(target.deliveries) == 1
    assert [(one.status, one.failure) for one in fake.deliveries] == [(None, "lost on the way"), (200, None)]
    assert next(iter(fake.webhooks.values())).failure_deletion_timestamp is None


async def test_lose_a_retry() -> None:
    """A retry can be lost too; then the failure is over as far as Asana knows."""
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)
        fake.script(Fault(at="delivery", do="lose", after=1))
        target.fail()
        fake.change(PROJECT, field="name")
        await fake.advance(3600)
        assert len(target.deliveries) == 1
        assert fake.webhook(gid).next_attempt_after is None


async def test_tamper() -> None:
    """The body can be changed after signing; once refused, the true one follows."""
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)
        fake.script(Fault(at="delivery", do="tamper"), Fault(at="delivery", do="tamper", body='{"events":[]}'))
        target.fail(401, times=2)
        fake.change(PROJECT, field="name")
        await fake.advance(60)
        signed = [got.is_signed(fake.secret(gid)) for got in target.deliveries]
        assert signed == [False, False, True]
        assert json.loads(target.deliveries[0].body)["tampered"] is True
        assert target.deliveries[1].body == b'{"events":[]}'
        assert [one.forged for one in fake.deliveries] == [True, True, False]


@pytest.mark.parametrize("secret", [None, "mine", ""])
async def test_forge(secret: str | None) -> None:
    """A delivery can be signed with another secret; once refused, the true one follows."""
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)
        fake.script(Fault(at="delivery", do="forge", secret=secret))
        target.fail(401)
        fake.change(PROJECT, field="name")
        await fake.advance(10)
        assert [got.is_signed(fake.secret(gid)) for got in target.deliveries] == [False, True]
        assert target.deliveries[0].body == target.deliveries[1].body
        if secret is not None:
            assert target.deliveries[0].is_signed(Secret(secret))


async def test_delay() -> None:
    """A delivery can be late, in real time."""
    fake, target, _ = await _one_change(Fault(at="delivery", do="delay", seconds=0.01))
    assert len(target.deliveries) == len(fake.deliveries) == 1


async def test_heartbeats_can_go_wrong() -> None:
    """Faults of heartbeats are scripted apart from those of deliveries with events."""
    async with playing() as (fake, api, target):
        fake.script(Fault(at="heartbeat", do="duplicate"), Fault(at="delivery", do="lose"))
        await api.create_gid(target.url)
        assert [got.body for got in target.deliveries] == [b'{"events":[]}'] * 2
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert len(target.deliveries) == 2


async def test_fault_of_one_webhook() -> None:
    """A fault can be for one webhook only."""
    async with playing(heartbeat=None) as (fake, api, target):
        await api.create_gid(target.root + "/first")
        second = await api.create_gid(target.root + "/second")
        fake.script(Fault(at="delivery", do="lose", webhook=second))
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert [got.path for got in target.deliveries] == ["/first"]


async def test_forge_delivery_helper() -> None:
    """A forged delivery goes out at once and its status comes back."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(401)
        assert await fake.forge_delivery(gid) == 401
        assert target.deliveries[-1].events[0]["action"] == "deleted"
        assert not target.deliveries[-1].is_signed(fake.secret(gid))
        assert await fake.forge_delivery(gid, secret=fake.secret(gid)) == 200
        assert target.deliveries[-1].is_signed(fake.secret(gid))
        assert [(one.forged, one.heartbeat) for one in fake.deliveries] == [(False, True), (True, False), (True, False)]
        assert fake.webhook(gid).last_failure_at is None


async def test_forge_delivery_with_the_empty_key() -> None:
    """The key an attacker tries first can be tried; a text that is none is refused at once."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        for secret in ("", Secret("")):
            await fake.forge_delivery(gid, secret=secret)
            assert target.deliveries[-1].is_signed(Secret(""))
        with pytest.raises(ConfigurationError, match="secret contains a lone surrogate"):
            await fake.forge_delivery(gid, secret="\ud800")


async def test_sign_is_the_packages_own() -> None:
    """A test can sign what it likes with the secret the fake tells."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        assert target.deliveries[0].headers["X-Hook-Signature"] == sign_body(b'{"events":[]}', secret=fake.secret(gid))
