"""Everything a test can make the fake do: change things, turn the clock, spoil requests, look things up."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from asana_webhooks import wire
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret
from asana_webhooks.testing.activity import Activity
from asana_webhooks.testing.changes import DEFAULT_USER, ChangeRequest, Value, record_change
from asana_webhooks.testing.clock import FakeClock, check_advance, format_time
from asana_webhooks.testing.faults import Fault
from asana_webhooks.testing.handshake import Handshaker
from asana_webhooks.testing.records import DeliveryRecord, HandshakeRecord, Kept, WebhookRecord
from asana_webhooks.testing.script import FaultScript, Hold
from asana_webhooks.testing.sender import Sender
from asana_webhooks.testing.signing import secret_of
from asana_webhooks.testing.target_client import Postman
from asana_webhooks.testing.world import World, passes, reaches

__all__ = ["Steering"]


class Steering:
    """The half of `FakeAsana` that is steered: its workspace, its webhooks, and the sender of deliveries.

    Args:
        workspace: gid of the only workspace.
        clock: what time it is.
        seed: of everything random.
        answer_timeout: seconds of real time a target has to answer.
        retries_grow: whether new events join a delivery that is sent again.
        keep: how many records of each kind are remembered.
    """

    def __init__(
        self, *, workspace: str, clock: FakeClock, seed: int, answer_timeout: float, retries_grow: bool, keep: int
    ) -> None:
        self.workspace = workspace
        self.clock = clock
        self.handshakes: list[HandshakeRecord] = Kept(keep)
        """Every handshake, strangers' too; of more than `keep`, the last ones."""
        self.deliveries: list[DeliveryRecord] = Kept(keep)
        """Every attempt to deliver, heartbeats and forgeries too; of more than `keep`, the last ones."""
        self.webhooks: dict[str, WebhookRecord] = {}
        """Every webhook there is, by gid."""
        self._activity = Activity(lambda: self.faults.held)
        self.faults = FaultScript(self._activity.changed)
        """The faults still to come; see `script`."""

        self._rng = random.Random(seed)  # noqa: S311 (the same secrets in every run, on purpose)
        self._world = World()
        self._world.add("workspace", workspace, name="Workspace")
        self._projects: list[str] = []
        self._postman = Postman(timeout=answer_timeout)
        self._handshaker = Handshaker(postman=self._postman, faults=self.faults, rng=self._rng, records=self.handshakes)
        self._sender = Sender(
            webhooks=self.webhooks,
            postman=self._postman,
            clock=self.clock,
            faults=self.faults,
            activity=self._activity,
            rng=self._rng,
            records=self.deliveries,
            retries_grow=retries_grow,
        )

    # The workspace

    @property
    def projects(self) -> tuple[str, ...]:
        """The gids of the projects, those added later too."""
        return tuple(self._projects)

    def add_project(self, gid: str | None = None, *, name: str | None = None, accessible: bool = True) -> str:
        """Add a project to the workspace and return its gid.

        Args:
            gid: a text of digits; a new one by default.
            name: what it is called.
            accessible: False to refuse webhooks on it with 403.
        """
        gid = self.add_resource("project", gid, name=name, accessible=accessible)
        self._projects.append(gid)
        return gid

    def add_task(self, gid: str | None = None, *, parent: str | None = None, name: str | None = None) -> str:
        """Add a task and return its gid; no event comes of it.

        Args:
            gid: a text of digits; a new one by default.
            parent: gid of the project, section or task it is in; the first project by default.
            name: what it is called.
        """
        if parent is None and not self._projects:
            raise ConfigurationError("there is no project to put the task in: name its parent")
        return self.add_resource("task", gid, parents=[parent or self._projects[0]], name=name)

    def add_resource(
        self,
        resource_type: str,
        gid: str | None = None,
        *,
        parents: Sequence[str] | None = None,
        name: str | None = None,
        resource_subtype: str | None = None,
        accessible: bool = True,
    ) -> str:
        """Add a resource of any type and return its gid; no event comes of it.

        Args:
            resource_type: ``story``, ``section``, ``team``, ``portfolio``, ``goal`` …
            gid: a text of digits; a new one by default.
            parents: gids of what it is in, where its changes are heard too; the workspace by default.
            name: what it is called.
            resource_subtype: such as ``milestone``; the usual one by default.
            accessible: False to refuse webhooks on it with 403.
        """
        parents = [self.workspace] if parents is None else parents
        return self._world.add(
            resource_type,
            gid,
            parents=parents,
            name=name,
            resource_subtype=resource_subtype,
            accessible=accessible,
        ).gid

    def change(
        self,
        resource: str,
        *,
        action: str = "changed",
        field: str | None = None,
        change_action: str | None = None,
        new_value: Value | None = None,
        added_value: Value | None = None,
        removed_value: Value | None = None,
        user: str | None = DEFAULT_USER,
        parent: str | None = None,
        resource_type: str | None = None,
        resource_subtype: str | None = None,
    ) -> dict[str, Any]:
        """Let something change, and begin to tell the webhooks; `settle` waits until they know.

        Args:
            resource: gid of what it happens to. One nobody knows is created below *parent*.
            action: ``changed``, ``added``, ``removed``, ``deleted`` or ``undeleted``.
            field: for ``changed``: which field. Without it the event has no ``change``.
            change_action: ``changed``, ``added`` or ``removed``; by default what fits the value.
            new_value: the new value of the field, if it is a resource: the gid of one, or
                ``{"gid": …, "resource_type": …}``.
            added_value: what was added to the field, likewise.
            removed_value: what was removed from the field, likewise.
            user: gid of who did it, ``None`` for the system.
            parent: gid of where it was added to or removed from; the first of its parents by default.
            resource_type: for a resource that is created: ``task`` by default.
            resource_subtype: the same.

        Returns:
            The event, as it is sent.

        Raises:
            ConfigurationError: this cannot happen; the message says why.
        """
        return self.apply(
            ChangeRequest(
                resource=resource,
                action=action,
                field=field,
                change_action=change_action,
                new_value=new_value,
                added_value=added_value,
                removed_value=removed_value,
                user=user,
                parent=parent,
                resource_type=resource_type,
                resource_subtype=resource_subtype,
            )
        )

    def apply(self, change: ChangeRequest) -> dict[str, Any]:
        """The same as `change`, with its arguments as one object."""
        event, resource, lineage = record_change(self._world, change, now=self.clock.now(), rng=self._rng)
        for webhook in self.webhooks.values():
            hears = reaches(webhook.resource, lineage, resource) and passes(webhook.filters, event)
            if hears and not webhook.quiet:
                webhook.waiting.append(dict(event))
        self._sender.start_due()
        return event

    # Time

    async def settle(self) -> None:
        """Return when nothing is due or under way now, except what is held.

        Do not await it in a target's answer: the delivery waits for that answer.
        """
        self._sender.start_due()
        await self._activity.settled()

    async def advance(self, seconds: float) -> None:
        """Turn the clock, and do everything that falls due on the way, one after another.

        Retries, heartbeats and deletions that is. Deliveries themselves take real time and none of the clock's.

        Args:
            seconds: how far, up to a year.
        """
        end = self.clock.now() + check_advance(seconds)
        await self.settle()
        while (due := self._sender.next_due()) is not None and due[0] <= end:
            self.clock.move_to(due[0])
            self._sender.start(due[1])
            await self._activity.settled()
        self.clock.move_to(end)
        self._sender.wake()
        await self.settle()

    # Mistakes

    def script(self, *faults: Fault) -> None:
        """Let these go wrong, in this order, after those scripted before."""
        self.faults.add(*faults)

    def hold(self, at: str, *, when: str = "before", times: int | None = 1, webhook: str | None = None) -> Hold:
        """Stop requests at one moment until they are let go.

        Args:
            at: an operation id, ``*``, ``oauth_token``, ``handshake``, ``delivery`` or ``heartbeat``.
            when: ``before`` anything is done; for operations and ``oauth_token`` also ``before_answer``; for
                ``createWebhook`` also ``after_handshake``; for ``handshake`` also ``after``.
            times: how many requests; ``None`` for all until it is released.
            webhook: only requests about the webhook with this gid.
        """
        return self.faults.hold(at, when=when, times=times, webhook=webhook)

    async def forge_delivery(
        self,
        gid: str,
        *,
        body: bytes | None = None,
        secret: Secret | str | None = None,
        signature: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int | None:
        """Send a delivery that is not Asana's to the target of a webhook, and return the status it was answered with.

        Args:
            gid: the webhook.
            body: what it says; by default that the webhook's resource was deleted.
            secret: what it is signed with, which may be empty; a random one by default.
            signature: sent as it is instead of a signature; the empty text sends none at all.
            headers: more headers.

        Returns:
            The status, or ``None`` if there was no answer.
        """
        webhook = self.webhook(gid)
        if body is None:
            circumstances = {"created_at": format_time(self.clock.now()), "user": None, "parent": None}
            event = {"action": "deleted", "resource": webhook.resource.compact(), **circumstances}
            body = wire.encode({"events": [event]})
        return await self._sender.forge(
            webhook,
            body,
            secret=secret_of(secret, self._rng),
            signature=signature,
            headers=headers,
        )

    async def stranger_handshake(self, target: str, *, secret: Secret | str | None = None) -> int | None:
        """Post a handshake that is not Asana's to *target*, and return the status it was answered with.

        Args:
            target: any URL on this machine.
            secret: the secret it brings; a random one by default.

        Returns:
            The status, or ``None`` if there was no answer. `handshakes` tells whether the secret was echoed.
        """
        return (await self._handshaker.send(target, secret_of(secret, self._rng), stranger=True)).status

    # What it knows

    def webhook(self, gid: str) -> WebhookRecord:
        """Everything about one webhook.

        Raises:
            ConfigurationError: there is none with this gid, or none any more.
        """
        if gid not in self.webhooks:
            raise ConfigurationError(f"there is no webhook {gid!r:.80} in the fake; it has {len(self.webhooks)}")
        return self.webhooks[gid]

    def secret(self, gid: str) -> Secret:
        """The secret of one webhook."""
        return self.webhook(gid).secret
