"""What the five operations do in the fake.

Source: https://developers.asana.com/reference/webhooks
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal

from yarl import URL

from asana_webhooks.client.requests import CreateWebhookRequest
from asana_webhooks.testing.answers import Answer, ApiError
from asana_webhooks.testing.clock import FakeClock
from asana_webhooks.testing.fields import select
from asana_webhooks.testing.handshake import Handshaker
from asana_webhooks.testing.offsets import read_offset, write_offset
from asana_webhooks.testing.records import WebhookRecord
from asana_webhooks.testing.schedule import HEARTBEAT_EVERY
from asana_webhooks.testing.script import Plan
from asana_webhooks.testing.sender import Sender
from asana_webhooks.testing.signing import new_secret, secret_of
from asana_webhooks.testing.target_client import is_loopback
from asana_webhooks.testing.validation import (
    Input,
    check_limit,
    create_request,
    find_resource,
    gid_in_path,
    new_filters,
)
from asana_webhooks.testing.world import Resource, World

__all__ = ["HeartbeatMoment", "Operations"]

HeartbeatMoment = Literal["before", "after"] | None

# https://developers.asana.com/docs/pagination: longer lists have to be asked for page by page
LONGEST_LIST = 1000


class Operations:
    """The five operations over one world.

    Args:
        world: the resources.
        webhooks: all webhooks by gid.
        clock: what time it is.
        handshaker: who asks targets whether they want a webhook.
        sender: who sends heartbeats.
        rng: where secrets and the key of offsets come from.
        allow_loopback: whether targets on this machine are fine; Asana refuses them.
        heartbeat: when the first heartbeat of a webhook is sent, relative to the 201.
        change: records a change, for faults that need one.
    """

    def __init__(
        self,
        *,
        world: World,
        webhooks: dict[str, WebhookRecord],
        clock: FakeClock,
        handshaker: Handshaker,
        sender: Sender,
        rng: random.Random,
        allow_loopback: bool,
        heartbeat: HeartbeatMoment,
        change: Callable[..., object],
    ) -> None:
        self._world = world
        self._webhooks = webhooks
        self._clock = clock
        self._handshaker = handshaker
        self._sender = sender
        self._rng = rng
        self._key = rng.randbytes(32)
        self._allow_loopback = allow_loopback
        self._heartbeat = heartbeat
        self._change = change
        self._opening: set[tuple[str, str]] = set()

    async def create(self, given: Input, plan: Plan, base_url: str) -> tuple[Answer, WebhookRecord]:
        """Do createWebhook, with the handshake in the middle."""
        request, resource = create_request(given, self._world.resources)
        self._refuse(request)
        pair = (request.resource, request.target)
        self._opening.add(pair)
        try:
            webhook = self._new(request, resource)
            if not plan.find("skip_handshake"):
                await self._handshaker.shake(webhook.target, webhook.secret)
            # Deliveries may begin now, before the 201.
            webhook.last_success_at = self._clock.now()
            self._webhooks[webhook.gid] = webhook
        finally:
            self._opening.discard(pair)
        await plan.wait("after_handshake")
        if self._heartbeat == "before":
            await self._sender.heartbeat(webhook)
        if plan.find("early_event"):
            self._change(webhook.resource.gid, field="name")
            await self._sender.drain(webhook)
        return self._created(webhook, given, plan, base_url), webhook

    def _refuse(self, request: CreateWebhookRequest) -> None:
        existing = {(one.resource.gid, one.target) for one in self._webhooks.values()} | self._opening
        if (request.resource, request.target) in existing:
            raise ApiError(
                403,
                "Duplicated webhook. You already have an existing webhook for the given resource and target. "
                "Delete the old one before creating another.",
            )
        if is_loopback(request.target) and not self._allow_loopback:
            # Asana's own sentence is unknown, the status is not.
            host = URL(request.target, encoded=True).host
            raise ApiError(
                403, f"The remote server which is intended to receive the webhook has an invalid hostname: {host}"
            )

    def _new(self, request: CreateWebhookRequest, resource: Resource) -> WebhookRecord:
        now = self._clock.now()
        return WebhookRecord(
            gid=self._world.new_gid(),
            resource=resource,
            target=request.target,
            filters=request.filters,
            secret=new_secret(self._rng),
            created_at=now,
            next_heartbeat=now + HEARTBEAT_EVERY,
        )

    def _created(self, webhook: WebhookRecord, given: Input, plan: Plan, base_url: str) -> Answer:
        tree = {"data": _chosen(webhook, given), "X-Hook-Secret": webhook.secret.reveal()}
        if plan.find("no_secret"):
            del tree["X-Hook-Secret"]
        elif (wrong := plan.find("wrong_secret")) is not None:
            tree["X-Hook-Secret"] = secret_of(wrong.secret, self._rng).reveal()
        location = {"Location": f"{base_url}/webhooks/{webhook.gid}"}
        return Answer.of(201, tree, pretty=given.pretty, headers=location)

    def get(self, gid: str, given: Input) -> Answer:
        """Do getWebhook: the full record."""
        return Answer.of(200, {"data": _chosen(self._find(gid), given)}, pretty=given.pretty)

    def update(self, gid: str, given: Input) -> Answer:
        """Do updateWebhook: other filters, and nothing else."""
        webhook = self._find(gid)
        if given.data.get("filters") is None:
            raise ApiError(400, "filters: Missing input")
        webhook.filters = new_filters(given.data["filters"], webhook.resource)
        return Answer.of(200, {"data": _chosen(webhook, given)}, pretty=given.pretty)

    def delete(self, gid: str, given: Input) -> Answer:
        """Do deleteWebhook. What is under way already still arrives."""
        webhook = self._find(gid)
        webhook.active = False
        del self._webhooks[webhook.gid]
        return Answer.of(200, {"data": {}}, pretty=given.pretty)

    def list_page(self, query: Mapping[str, str], given: Input, base_url: str) -> Answer:
        """Do getWebhooks: compact records, by pages if ``limit`` is given."""
        if not query.get("workspace"):
            raise ApiError(400, "workspace: Missing input")
        workspace = find_resource("workspace", query["workspace"], self._world.resources)
        if workspace.resource_type != "workspace":
            raise ApiError(400, f"workspace: Unknown object: {workspace.gid}")
        resource = query.get("resource")
        if resource is not None:
            find_resource("resource", resource, self._world.resources)
        limit = check_limit(query.get("limit"))
        list_of = [workspace.gid, resource or ""]
        found = self._matching(workspace.gid, resource, after=self._offset(query.get("offset"), list_of))
        if limit is None:
            if len(found) > LONGEST_LIST:
                raise ApiError(
                    400, "The result is too large. You should use pagination (may require specifying a workspace)!"
                )
            return Answer.of(200, {"data": [_chosen(one, given, full=False) for one in found]}, pretty=given.pretty)
        page = found[:limit]
        next_page = None
        if len(found) > limit:
            offset = write_offset(after=int(page[-1].gid), list_of=list_of, now=self._clock.now(), key=self._key)
            path = str(URL("/webhooks").with_query({**query, "offset": offset}))
            next_page = {"offset": offset, "path": path, "uri": base_url + path}
        data = [_chosen(one, given, full=False) for one in page]
        return Answer.of(200, {"data": data, "next_page": next_page}, pretty=given.pretty)

    def _offset(self, token: str | None, list_of: list[str]) -> int:
        if token is None:
            return 0
        return read_offset(token, list_of=list_of, now=self._clock.now(), key=self._key)

    def _matching(self, workspace: str, resource: str | None, *, after: int) -> list[WebhookRecord]:
        return [
            one
            for one in sorted(self._webhooks.values(), key=lambda webhook: int(webhook.gid))
            if int(one.gid) > after
            and resource in (None, one.resource.gid)
            and any(above.gid == workspace for above in self._world.lineage(one.resource.gid))
        ]

    def _find(self, gid: str) -> WebhookRecord:
        webhook = self._webhooks.get(gid_in_path(gid))
        if webhook is None:
            raise ApiError(404, f"webhook_gid: Unknown object: {gid}")
        return webhook


def _chosen(webhook: WebhookRecord, given: Input, *, full: bool = True) -> dict[str, Any]:
    """The record in its usual extent, or the part of the full one that was asked for."""
    return select(webhook.to_json(), given.fields) if given.fields else webhook.to_json(full=full)
