"""Applying plans: the steps of `plan_webhooks`, several at a time, each by the code of `ensure_webhook`.

Each step but a deletion looks anew at what is there. So a plan may be applied twice, in two processes, or only half.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import inspect
import logging
from collections import Counter
from collections.abc import Callable
from typing import Literal

from attrs import frozen

from asana_webhooks._checks import check_count, check_session_and_store
from asana_webhooks._tasks import for_each
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    ConfigurationError,
    NotAuthorizedError,
    SecretUnavailableError,
    StoreError,
)
from asana_webhooks.store.base import Store
from asana_webhooks.subscriptions.ensure import EnsuredWebhook, ensure_wanted
from asana_webhooks.subscriptions.establish import Wanted, live_registrations
from asana_webhooks.subscriptions.orphans import close_overdue, ensure_deleted
from asana_webhooks.subscriptions.plan import PlanStep, WebhookPlan

__all__ = ["PlanResult", "StepResult", "apply_plan"]

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class StepResult:
    """What became of one step."""

    step: PlanStep
    action: Literal["unchanged", "created", "updated", "replaced", "adopted", "deleted", "failed"]
    """What was done: see `EnsuredWebhook.action`."""
    ensured: EnsuredWebhook | None = None
    """The webhook, unless it was deleted or the step failed."""
    error: AsanaError | None = None
    """Why it failed."""


@frozen(kw_only=True)
class PlanResult:
    """What became of a plan."""

    results: tuple[StepResult, ...]
    """One for each step, in the plan's order."""

    @property
    def failed(self) -> tuple[StepResult, ...]:
        """The steps that failed. Plan and apply again for those."""
        return tuple(one for one in self.results if one.action == "failed")

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each action."""
        return dict(Counter(one.action for one in self.results))


async def apply_plan(
    asana: AsanaSession,
    store: Store,
    plan: WebhookPlan,
    *,
    at_once: int = 10,
    on_step: Callable[[StepResult], object] | None = None,
) -> PlanResult:
    """Do what a plan says. Each step but a deletion looks anew at what is there, and does only what is still needed.

    So apply a plan soon: it deletes what it says, also if that has become wanted since.

    A receiver must be listening at the plan's public URL; see `ensure_webhook`. A step that fails does not stop the
    others, and is in `PlanResult.failed`. A step that is in progress elsewhere waits for that, as `ensure_webhook`
    does, and a replaced webhook may still exist for a minute. If this is cancelled or killed, plan and apply again. If
    it is cancelled, all steps under way are cancelled, which may take 20 seconds.

    Args:
        asana: the session to ask and create with.
        store: the store the receivers use.
        plan: what `plan_webhooks` returned. Its problems are left as they are.
        at_once: how many steps are done at the same time.
        on_step: a plain function, called with each step's result at once, such as to show progress. If it raises an
            error, all steps under way are cancelled, and this raises the error.

    Raises:
        NotAuthorizedError: the token was refused; the rest is left.
        StoreError: the store failed; the rest is left.
        ConfigurationError: an argument is invalid, or the session or the store is closed.
    """
    check_session_and_store(asana, store)
    check_count("at_once", at_once)
    if inspect.iscoroutinefunction(on_step):
        raise ConfigurationError("on_step must be a plain function, not an async one")
    await close_overdue(store)
    results = dict[int, StepResult]()

    async def take(numbered: tuple[int, PlanStep]) -> None:
        number, step = numbered
        results[number] = result = await _apply(asana, store, plan, step)
        if result.error is not None:
            _log.warning("to %s the webhook on resource %s failed: %s", step.action, step.resource, result.error)
        if on_step is not None:
            on_step(result)

    await for_each(tuple(enumerate(plan.steps)), take, at_once=at_once)
    return PlanResult(results=tuple(results[number] for number in sorted(results)))


async def _apply(asana: AsanaSession, store: Store, plan: WebhookPlan, step: PlanStep) -> StepResult:
    try:
        if step.action == "delete":
            await ensure_deleted(asana, step.webhook_gid or "")
            await store.close_registration(step.registration)
            return StepResult(step=step, action="deleted")
        wanted = Wanted.checked(
            asana,
            store,
            resource=step.resource,
            public_url=plan.public_url,
            filters=step.filters,
            workspace=plan.workspace,
            label=plan.label,
        )
        ensured = await ensure_wanted(wanted)
        return StepResult(step=step, action=ensured.action, ensured=ensured)
    except AsanaError as error:
        stops = isinstance(error, (NotAuthorizedError, StoreError)) and not isinstance(error, SecretUnavailableError)
        if isinstance(error, ConfigurationError):
            # A move concerns only its own webhook; a session or store that is closed concerns all.
            stops = len(await live_registrations(store, resource=step.resource, label=plan.label)) < 2
        if stops:
            raise
        return StepResult(step=step, action="failed", error=error)
