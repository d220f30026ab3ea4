"""What the fake plays for a program that keeps its webhooks: failing, inactive, too many, and changed by Asana."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from asana_webhooks.models import WebhookFilter
from asana_webhooks.testing import Fault
from tests.testing.fake_play import PROJECT, Caller, playing


async def read(api: Caller, gid: str) -> Any:
    answered = await api.call("GET", f"/webhooks/{gid}")
    assert answered.status == 200, answered.text
    return answered.tree["data"]


async def test_next_attempt_after() -> None:
    """It is when the failed delivery is sent again, and null before it failed and once it came through."""
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        target.fail(times=2)
        found = [(await read(api, gid))["next_attempt_after"]]
        fake.change(PROJECT, field="name")
        await fake.settle()
        for seconds in (10, 20):
            found.append((await read(api, gid))["next_attempt_after"])
            due = fake.webhook(gid).next_attempt_after
            assert due is not None
            assert (due - fake.clock.now()).total_seconds() == seconds
            await fake.advance(seconds)
        found.append((await read(api, gid))["next_attempt_after"])
        assert [one is None for one in found] == [True, False, False, True]


async def test_a_deleted_webhook_resends_nothing() -> None:
    """Its waiting delivery goes with it; a new one for the same target starts anew."""
    async with playing(heartbeat=None) as (fake, api, target):
        old = await api.create_gid(target.url)
        target.fail()
        fake.change(PROJECT, field="name")
        await fake.settle()
        assert (await api.call("DELETE", f"/webhooks/{old}")).status == 200
        new = await api.create_gid(target.url)
        await fake.advance(2 * 3600)
        assert [(one.webhook_gid, one.status) for one in fake.deliveries] == [(old, 500)]
        assert (await read(api, new))["next_attempt_after"] is None


@pytest.mark.parametrize("by_control", [False, True])
async def test_inactive(by_control: bool) -> None:
    """An inactive webhook says so and sends nothing; once active again it sends what changes from then on."""
    async with playing(heartbeat=None) as (fake, api, target):
        gid = await api.create_gid(target.url)

        async def set_active(active: bool) -> None:
            if by_control:
                answered = await api.call("POST", "//_fake/webhooks", json={"gid": gid, "active": active})
                assert answered.tree == {"gid": gid, "active": active}
            else:
                fake.webhook(gid).active = active

        await set_active(False)
        fake.change(PROJECT, field="name")
        await fake.advance(9 * 3600)
        assert (await read(api, gid))["active"] is False
        assert fake.deliveries == []
        await set_active(True)
        fake.change(PROJECT, field="notes")
        await fake.settle()
        assert (await read(api, gid))["active"] is True
        fields = [event["change"]["field"] for one in target.deliveries for event in one.events]
        assert fields == ["notes"]


async def test_too_many_on_one_resource() -> None:
    """They count for all users and apps together, also those under way; a deleted one makes room."""
    async with playing(max_per_resource=3) as (fake, api, target):
        other = fake.register_app("7", user="12").access_token
        body = {"data": {"resource": PROJECT, "target": f"{target.root}/0"}}
        assert (await api.call("POST", "/webhooks", token=other, json=body)).status == 201
        answers = await asyncio.gather(*(api.create(f"{target.root}/{number}") for number in range(1, 5)))
        assert sorted(one.status for one in answers) == [201, 201, 403, 403]
        refused = next(one for one in answers if one.status == 403)
        assert refused.message == "This resource has too many webhooks."
        assert (await api.create(f"{target.root}/9", fake.add_project())).status == 201
        created = next(one.tree["data"]["gid"] for one in answers if one.status == 201)
        assert (await api.call("DELETE", f"/webhooks/{created}")).status == 200
        assert [(await api.create(f"{target.root}/{number}")).status for number in (5, 6)] == [201, 403]


async def test_too_many_of_one_user() -> None:
    """They count for one user through one app, on all resources; another user or app has its own."""
    async with playing(max_per_user=3, webhooks=1) as (fake, api, target):
        answers = [await api.create(target.url, fake.add_project()) for _ in range(3)]
        assert [one.status for one in answers] == [201, 201, 403]
        assert answers[-1].message == "You have too many webhooks."
        body = {"data": {"resource": PROJECT, "target": target.url}}
        for client_id, user in (("7", "12"), ("8", "11")):
            token = fake.register_app(client_id, user=user).access_token
            url = f"{target.root}/{client_id}"
            body["data"]["target"] = url
            assert (await api.call("POST", "/webhooks", token=token, json=body)).status == 201


async def test_filters_stored_in_another_form() -> None:
    """One answer can be scripted, though the webhook is updated; or the record is changed for all answers."""
    sent = [{"resource_type": "task", "action": "changed", "fields": ["name", "due_on"]}]
    stored = WebhookFilter(resource_type="task", action="changed", fields=("due_on", "name"))
    async with playing() as (fake, api, target):
        gid = await api.create_gid(target.url)
        body = json.dumps({"data": {"gid": gid, "filters": []}})
        fake.script(Fault(at="updateWebhook", status=200, executed=True, body=body))
        answers = [await api.call("PUT", f"/webhooks/{gid}", json={"data": {"filters": sent}}) for _ in range(2)]
        assert [len(one.tree["data"]["filters"]) for one in answers] == [0, 1]
        fake.webhook(gid).filters = (stored,)
        assert (await read(api, gid))["filters"][0]["fields"] == ["due_on", "name"]
        assert Counter(one.operation for one in fake.requests) == {
            "createWebhook": 1,
            "updateWebhook": 2,
            "getWebhook": 1,
        }
