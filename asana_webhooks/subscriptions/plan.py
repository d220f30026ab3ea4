"""Plans: see first what has to be done to have hundreds of webhooks as wanted, and then do it.

Planning sends only GETs. `apply_plan` does the steps.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from attrs import define, field, frozen

from asana_webhooks._checks import check_session_and_store, kind_of
from asana_webhooks._tasks import for_each
from asana_webhooks.client.operations import get_webhooks
from asana_webhooks.client.requests import filters_of
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import AsanaError, ConfigurationError, SecretUnavailableError, WebhookNotVisibleError
from asana_webhooks.models import Webhook, WebhookFilter
from asana_webhooks.store.base import Registration, RegistrationState, Store, registration_id
from asana_webhooks.store.rules import check_label
from asana_webhooks.subscriptions.ensure import look_at
from asana_webhooks.subscriptions.establish import Wanted, live_registrations
from asana_webhooks.subscriptions.orphans import is_orphan
from asana_webhooks.subscriptions.rules import (
    Judgement,
    as_pair,
    endpoint_below,
    judge,
    judge_move,
    named,
    normal_filters,
    reaches,
    split_public_url,
    why_unfinished,
)

__all__ = ["PlanStep", "WantedWebhook", "WebhookPlan", "check_wanted", "plan_webhooks"]

_AT_ONCE: Final = 10
"""How many resources `plan_webhooks` looks at at the same time."""
_PER_USER: Final = 10_000
_PER_RESOURCE: Final = 1000
"""How many webhooks Asana allows an app. Source: https://developers.asana.com/docs/webhooks-guide"""
_NEARLY: Final = 0.9

Filters = tuple[WebhookFilter, ...]
Action = Literal["create", "update", "replace", "delete", "in progress", "unchanged"]
_STEPS: Final[Mapping[Judgement, tuple[Action, str]]] = {
    "unchanged": ("unchanged", "it is as wanted"),
    "updated": ("update", "it has other filters"),
    "replaced": ("replace", "it has filters, and none are wanted"),
}

_log = logging.getLogger(__name__)


@frozen
class WantedWebhook:
    """A webhook that you want: the gid of the resource it watches, and its filters; see `ensure_webhook`."""

    resource: str
    filters: Filters = field(default=(), converter=filters_of)


@frozen(kw_only=True)
class PlanStep:
    """What has to be done about one webhook. Its `str` is a line to show."""

    action: Action
    """``in progress``: another process is creating it. ``unchanged``: only in `WebhookPlan.unchanged`."""
    resource: str
    reason: str
    """Why, in words."""
    webhook_gid: str | None = None
    """The webhook that exists, or existed; ``None`` if there is none."""
    registration: str = ""
    """The id of its registration."""
    filters: Filters = ()
    """The wanted filters."""
    added: Filters = ()
    """For ``update``: the filters it lacks."""
    removed: Filters = ()
    """For ``update``: the filters it has, and should not have."""

    def __str__(self) -> str:
        gid = f" (webhook {self.webhook_gid})" if self.webhook_gid else ""
        added = "".join(f"\n    + {_shown(one)}" for one in self.added)
        removed = "".join(f"\n    - {_shown(one)}" for one in self.removed)
        return f"{self.action} {self.resource}{gid}: {self.reason}{added}{removed}"


@frozen(kw_only=True)
class WebhookPlan:
    """What has to be done to have the wanted webhooks. Its `str` is a report to show."""

    label: str
    public_url: str = field(repr=False)
    workspace: str
    steps: tuple[PlanStep, ...]
    """What `apply_plan` does, in this order: deletions first, because Asana limits how many webhooks there are."""
    unchanged: tuple[PlanStep, ...] = ()
    """Those that are as wanted."""
    problems: Mapping[str, AsanaError] = field(factory=dict)
    """By resource: why a wanted webhook has no step. It is the error that `ensure_webhook` would raise."""
    warnings: tuple[str, ...] = ()
    """What else an operator should know; it is logged, too."""

    def __str__(self) -> str:
        problems = [f"problem {resource}: {error}" for resource, error in self.problems.items()]
        counts = f"{len(self.steps)} to do, {len(self.unchanged)} unchanged, {len(problems)} with a problem"
        return "\n".join([counts, *map(str, self.steps), *problems, *(f"warning: {one}" for one in self.warnings)])


async def plan_webhooks(
    asana: AsanaSession,
    store: Store,
    wanted: Iterable[WantedWebhook],
    *,
    public_url: str,
    workspace: str,
    label: str = "",
    prune: bool = False,
) -> WebhookPlan:
    """Return what has to be done to have exactly the wanted webhooks for *label*. Nothing is changed.

    It sends one list call per 100 webhooks, and one GET for each webhook of the store that the list lacks. Webhooks
    with another label, and those of other programs, are left alone. A webhook below *public_url* whose registration is
    closed, such as that of a killed process, is to be deleted.

    ::

        wanted = [WantedWebhook(project, router.filters) for project in projects]
        plan = await plan_webhooks(asana, store, wanted, public_url=url, workspace=workspace)
        print(plan)
        result = await apply_plan(asana, store, plan)

    Args:
        asana: the session to ask with.
        store: the store the receivers use.
        wanted: the webhooks that you want, one for each resource.
        public_url: the URL where Asana reaches the receivers; see `establish_webhook`.
        workspace: the workspace whose webhooks are listed. All wanted resources must be in it.
        label: their label; see `ensure_webhook`.
        prune: True to delete also this label's webhooks on resources that are not wanted, if they are in this workspace
            or Asana has deleted them already. Their public URL does not matter: services that share a store and want
            different resources need different labels.

    Returns:
        The plan. A webhook that the token may not see, whose secret cannot be opened, or that is being moved from and
        to other URLs than *public_url*, is in `WebhookPlan.problems`, and is not touched. If the token sees, or will
        see, more than 90 % of the 10,000 webhooks that Asana allows an app for each user, or of the 1,000 for each
        resource, `WebhookPlan.warnings` says so.

    Raises:
        ConfigurationError: an argument is invalid, or a resource is wanted twice.
        StoreError: the store failed.
        AsanaError: any other error of `get_webhooks` or `get_webhook`.
    """
    check_session_and_store(asana, store)
    base, query = split_public_url(public_url)
    planning = _Planning(asana, store, f"{base}{query}", check_label(label))
    todo = check_wanted(asana, store, wanted, public_url=public_url, workspace=workspace, label=label)
    pager = get_webhooks(asana, workspace=workspace)  # checks it
    for registration in await live_registrations(store, label=label):
        planning.live[registration.resource].append(registration)
    async for webhook in pager:
        planning.webhooks[webhook.gid] = webhook
    await for_each(planning.webhooks.values(), planning.look_for_orphan, at_once=_AT_ONCE)
    if prune:
        live = (one for resource in planning.live.keys() - todo.keys() for one in planning.live[resource])
        unwanted = [one for one in live if one.state is RegistrationState.CONFIRMED]
        await for_each(unwanted, planning.look_at_unwanted, at_once=_AT_ONCE)
    await for_each(todo.values(), planning.look_at_wanted, at_once=_AT_ONCE)
    return planning.finish(todo, workspace=workspace)


def check_wanted(
    asana: AsanaSession, store: Store, wanted: object, *, public_url: str, workspace: str, label: str
) -> dict[str, Wanted]:
    """Return the wanted webhooks by resource; raise `ConfigurationError` if one is invalid, or wanted twice."""
    todo = dict[str, Wanted]()
    if not isinstance(wanted, Iterable):
        raise ConfigurationError(f"wanted must be a list of WantedWebhook objects, not {kind_of(wanted)}")
    for one in wanted:
        if not isinstance(one, WantedWebhook):
            raise ConfigurationError(f"wanted must be WantedWebhook objects, not {kind_of(one)}")
        if one.resource in todo:
            raise ConfigurationError(f"resource {one.resource:.40} is wanted twice; give the second one another label")
        options = {"public_url": public_url, "workspace": workspace, "label": label}
        todo[one.resource] = Wanted.checked(asana, store, resource=one.resource, filters=one.filters, **options)
    return todo


@define
class _Planning:
    """What a plan is made of: what the store and Asana say, and what follows from it."""

    asana: AsanaSession
    store: Store = field(repr=False)
    public_url: str = field(repr=False)
    label: str
    live: dict[str, list[Registration]] = field(factory=lambda: defaultdict(list))
    """The live registrations of this label, by resource."""
    webhooks: dict[str, Webhook] = field(factory=dict)
    """The webhooks that the token can see, by gid."""
    deletions: list[PlanStep] = field(factory=list)
    decided: dict[str, PlanStep | AsanaError] = field(factory=dict)
    """What has to be done about the wanted webhooks, or why nothing can be done, by resource."""
    warnings: list[str] = field(factory=list)

    async def look_for_orphan(self, webhook: Webhook) -> None:
        """Look whether a webhook below the public URL belongs to a closed registration of this label."""
        endpoint = endpoint_below(webhook.target, self.public_url)
        resource = webhook.resource.gid if webhook.resource else ""
        if endpoint is None or webhook.gid in {one.webhook_gid for one in self.live.get(resource, ())}:
            return
        id = registration_id(endpoint)
        orphan = await is_orphan(self.store, webhook.gid, id, label=self.label)
        if orphan is None:
            self.warnings.append(f"webhook {webhook.gid} on {resource} is unknown to this store; it is left alone")
        elif orphan:
            self.delete(resource, webhook.gid, id, "its registration is closed, so its deliveries are refused")

    async def look_at_unwanted(self, one: Registration) -> None:
        """Look whether the webhook of a resource that is not wanted is in this workspace, or gone."""
        try:
            if one.webhook_gid not in self.webhooks and await look_at(self.asana, one) is not None:
                return  # in another workspace
        except WebhookNotVisibleError:
            self.warn(f"{named(one)} is not wanted, but this token may not see it; it is left alone")
        else:
            self.delete(one.resource, one.webhook_gid, one.id, "it is not wanted")

    async def look_at_wanted(self, wanted: Wanted) -> None:
        """Look at what there is for a wanted webhook, and decide what has to be done about it."""
        live, found = self.live.get(wanted.resource, []), dict[str, Webhook | None]()
        try:
            for one in live:
                if one.state is RegistrationState.CONFIRMED:
                    found[one.id] = self.webhooks.get(one.webhook_gid or "") or await look_at(self.asana, one)
            step = self.decided[wanted.resource] = _decide(wanted, live, found, now=time.time())
            if isinstance(step, PlanStep) and (webhook := found.get(step.registration)) is not None:
                await self.store.find_registration(step.registration)  # opens its secret, or raises
                if webhook.active is False:
                    self.warn(f"webhook {webhook.gid} on {wanted.resource} is inactive: Asana sends no deliveries")
        except (WebhookNotVisibleError, SecretUnavailableError) as error:
            self.decided[wanted.resource] = error

    def delete(self, resource: str, gid: str | None, registration: str, reason: str) -> None:
        self.deletions.append(
            PlanStep(action="delete", resource=resource, webhook_gid=gid, registration=registration, reason=reason)
        )

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        _log.warning("%s", text)

    def finish(self, todo: Iterable[str], *, workspace: str) -> WebhookPlan:
        """Return the plan, in the order of the wanted resources."""
        decided = {resource: self.decided[resource] for resource in todo}
        steps = [one for one in decided.values() if isinstance(one, PlanStep)]
        problems = {resource: one for resource, one in decided.items() if isinstance(one, AsanaError)}
        for resource, error in problems.items():
            _log.warning("the webhook on resource %s cannot be planned: %s", resource, error)
        created = [one.resource for one in steps if one.action == "create"]
        existing = [one.resource.gid for one in self.webhooks.values() if one.resource is not None]
        counts = [("user", _PER_USER, len(self.webhooks) + len(created))]
        counts += [(f"resource ({gid})", _PER_RESOURCE, n) for gid, n in Counter(existing + created).items()]
        for scope, most, number in counts:
            if number > _NEARLY * most:
                self.warn(f"{number} webhooks, of at most {most} that Asana allows an app for each {scope}")
        return WebhookPlan(
            label=self.label,
            public_url=self.public_url,
            workspace=workspace,
            steps=(*sorted(self.deletions, key=str), *(one for one in steps if one.action != "unchanged")),
            unchanged=tuple(one for one in steps if one.action == "unchanged"),
            problems=problems,
            warnings=tuple(self.warnings),
        )


def _decide(
    wanted: Wanted, live: Sequence[Registration], found: Mapping[str, Webhook | None], *, now: float
) -> PlanStep | ConfigurationError:
    """Return the step for a wanted webhook. *found* are Asana's records of its live registrations, by their ids."""

    def step(action: Action, reason: str, one: Registration | None = None, **differences: Filters) -> PlanStep:
        return PlanStep(
            action=action,
            resource=wanted.resource,
            reason=reason,
            webhook_gid=one.webhook_gid if one is not None else None,
            registration=one.id if one is not None else "",
            filters=wanted.filters,
            **differences,
        )

    if not live:
        return step("create", "there is none")
    for one in live:
        if one.state is RegistrationState.PENDING:
            return step("in progress", "another process is creating it", one)
    pair = live if len(live) == 1 else as_pair(live)
    alive = [(one, webhook) for one in pair if (webhook := found[one.id]) is not None]
    if not alive:
        return step("create", "Asana or someone has deleted it", pair[-1])
    if len(pair) > 1 and (reason := why_unfinished(pair[0], alive, now=now)) is not None:
        return step("replace", reason, alive[-1][0])
    one, webhook = alive[0]
    try:
        if len(alive) > 1:
            one, webhook, verdict = judge_move(alive[::-1], public_url=wanted.public_url, filters=wanted.filters)
        else:
            verdict = judge(one, webhook, public_url=wanted.public_url, filters=wanted.filters)
    except ConfigurationError as error:
        return error
    action, reason = _STEPS[verdict]
    if not reaches(one, webhook.target, wanted.public_url):
        reason = "it has another public URL"
    added, removed = _without(wanted.filters, webhook.filters), _without(webhook.filters, wanted.filters)
    return step(action, reason, one, added=added, removed=removed)


def _without(filters: Filters | None, others: Filters | None) -> Filters:
    normal = normal_filters(others)
    return tuple(one for one in filters or () if not normal_filters([one]) <= normal)


def _shown(one: WebhookFilter) -> str:
    members = (one.resource_type, one.resource_subtype, one.action, *(one.fields or ()))
    return " ".join(member for member in members if member) or "everything"
