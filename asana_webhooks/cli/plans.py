"""`plan` and `apply`: compare the webhooks that a file names with those there are, and make them so."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from attrs import asdict, evolve, field, frozen
from cyclopts import Parameter
from rich.text import Text

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    PlanStep,
    StepResult,
    WantedWebhook,
    WebhookPlan,
    apply_plan,
    get_projects,
    plan_webhooks,
)
from asana_webhooks.cli import common

__all__ = ["File", "NamedWebhook", "Options", "Place", "apply", "logs_from", "plan", "read_file", "wanted_webhooks"]

_FILE: Final = Path("webhooks.toml")
_LOOKS: Final[Mapping[str, tuple[str, str, str]]] = {
    "create": ("+", "green", "to create"),
    "update": ("~", "yellow", "to change"),
    "replace": ("±", "yellow", "to replace"),
    "delete": ("-", "red", "to delete"),
    "in progress": ("…", "dim", "in progress elsewhere"),
    "problem": ("!", "red", "with a problem"),
}
"""By action: the sign, the colour, and the word in the counts."""

File = Annotated[Path | None, Parameter(help="The file that names the webhooks. [default: webhooks.toml]")]
Prune = Annotated[bool, Parameter(help="Delete the label's webhooks that the file does not name.")]
Check = Annotated[bool, Parameter(help="End with status 3 if there is something to do.")]


@Parameter(name="*")
@frozen(kw_only=True)
class Options:
    """What the commands on many webhooks have in common."""

    store: common.StoreName
    label: common.Label | None = None
    base_url: common.BaseUrl = None
    json: common.Json = False


@Parameter(name="*")
@frozen(kw_only=True)
class Place(Options):
    """Where the webhooks are. What is not given here, the file says."""

    public_url: common.PublicUrl = field(default="", repr=False)
    workspace: common.Workspace = ""


class NamedWebhook(msgspec.Struct, forbid_unknown_fields=True):
    """A ``[[webhook]]`` of the file."""

    resource: tuple[str, ...] = ()
    every: Literal["project"] | None = None  # all projects that no other one names
    filters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.resource) == bool(self.every):
            raise ValueError('give either resource = ["8675309"] or every = "project"')
        common.parse_filters(self.filters)


Named = tuple[NamedWebhook, ...]


class _Contents(msgspec.Struct, forbid_unknown_fields=True):
    public_url: str = ""
    workspace: str = ""
    label: str = ""
    webhook: Named = ()


def read_file(file: Path | None, place: Place, *, needed: bool = True) -> tuple[Named, dict[str, Any]]:
    """Return the webhooks that *file* names, and its public_url, workspace and label, where *place* has no others.

    Without *needed*, there may be no file.

    Raises:
        ConfigurationError: the file cannot be read, or is not as it must be; or something is missing.
    """
    path, found = file or _FILE, _Contents()
    if needed or file or path.exists():
        try:
            found = msgspec.toml.decode(path.read_bytes(), type=_Contents)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigurationError(f"{path}: {error}") from None
    if needed and not found.webhook:
        raise ConfigurationError(f"{path} names no webhook; each stands below a line [[webhook]]")
    where = {
        "public_url": place.public_url or found.public_url,
        "workspace": place.workspace or found.workspace,
        "label": found.label if place.label is None else place.label,
    }
    for key in ("public_url", "workspace"):
        if not where[key]:
            raise ConfigurationError(f"there is no {key}: pass --{key.replace('_', '-')}, or write it into {path}")
    return found.webhook, where


async def wanted_webhooks(asana: AsanaSession, named: Named, workspace: str) -> list[WantedWebhook]:
    """Return the webhooks that are wanted: those on resources that are named, and on all other projects."""
    others = list[str]()
    if any(one.every for one in named):
        projects = [one.gid async for one in get_projects(asana, workspace=workspace)]
        if not projects:  # a token that sees nothing must not delete everything
            raise ConfigurationError(f"workspace {workspace} has no project that this token may see")
        others = [gid for gid in projects if not any(gid in one.resource for one in named)]
    return [
        WantedWebhook(gid, common.parse_filters(one.filters))
        for one in named
        for gid in (others if one.every else one.resource)
    ]


async def plan(file: File = None, /, *, place: Place, prune: Prune = False, check: Check = False) -> int:
    """Show what has to be done to have the webhooks that a file names. Nothing is changed.

    ```text
    asana-webhooks plan webhooks.toml --store asana.db --prune
    ```

    The file, for example:

    ```text
    public_url = "https://example.com/asana"
    workspace = "1331"
    [[webhook]]
    resource = ["8675309", "8675310"]
    filters = ["task:changed:due_on,due_at"]
    [[webhook]]              # all other projects
    every = "project"
    ```

    Options and the environment win over the file. Status: 0; 3 with --check if there is something to do; 1 if a
    webhook cannot be planned.
    """
    named, where = read_file(file, place)
    async with common.session(place.base_url) as asana, common.named_store(place.store) as store:
        with logs_from(logging.ERROR, "plan"), common.progress("planning"):
            wanted = await wanted_webhooks(asana, named, where["workspace"])
            found = await plan_webhooks(asana, store, wanted, prune=prune, **where)
    _show_plan(common.Output(json=place.json), found)
    if found.problems:
        return common.FAILED
    return common.DIFFERENT if check and found.steps else 0


async def apply(
    file: File = None,
    /,
    *,
    place: Place,
    prune: Prune = False,
    check: Check = False,
    at_once: common.AtOnce = 10,
    yes: common.Yes = False,
) -> int:
    """Do what `plan` shows: create, change, replace and delete webhooks until they are as a file says.

    ```text
    asana-webhooks apply --store asana.db --prune
    ```

    It shows the plan and asks once. Receivers must be running. A step that fails does not stop the others. Apply again
    for those, or after Ctrl-C. With --check it changes nothing, as `plan --check`. Status: 0; 1 if a step failed or a
    webhook cannot be planned; 3 with --check if there is something to do.
    """
    if check:
        return await plan(file, place=place, prune=prune, check=True)
    (named, where), output = read_file(file, place), common.Output(json=place.json, keep_going=True)
    async with common.session(place.base_url) as asana, common.named_store(place.store) as store:
        with logs_from(logging.ERROR, "plan", "apply"):
            with common.progress("planning"):
                wanted = await wanted_webhooks(asana, named, where["workspace"])
                found = await plan_webhooks(asana, store, wanted, prune=prune, **where)
            _show_plan(output, found)
            if not found.steps:
                return common.FAILED if found.problems else 0
            common.confirm("Apply this plan?", yes=yes)
            with common.progress("applying", len(found.steps)) as bar:

                def tell(result: StepResult) -> None:
                    step, error = result.step, result.error
                    bar.advance(bar.task_ids[0])
                    if place.json:
                        gid = (result.ensured or step).webhook_gid
                        data = {"resource": step.resource, "action": result.action, "webhook_gid": gid, "error": error}
                        output.show(data, "")
                    if error is not None:
                        output.talk(f"to {step.action} {step.resource} failed: {error}")

                done = await apply_plan(asana, store, found, at_once=at_once, on_step=tell)
    output.show({"done": done.counts}, ", ".join(f"{number} {action}" for action, number in done.counts.items()))
    return common.FAILED if done.failed or found.problems else 0


@contextmanager
def logs_from(level: int, *modules: str) -> Iterator[None]:
    """Print what these modules of subscriptions log from *level* on. The commands show the rest themselves."""
    loggers = [logging.getLogger(f"asana_webhooks.subscriptions.{name}") for name in modules]
    handler = logging.StreamHandler()  # to standard error, above a progress bar
    for one in loggers:
        one.setLevel(level)
        one.addHandler(handler)
    try:
        yield
    finally:
        for one in loggers:
            one.removeHandler(handler)
            one.setLevel(logging.NOTSET)


def _show_plan(output: common.Output, found: WebhookPlan) -> None:
    """Show the steps, the problems, and such as ``2 to create, 1 to change, 497 as wanted``."""
    for step in found.steps:
        output.show(asdict(step), _step_text(step))
    for resource, error in found.problems.items():
        output.show({"resource": resource, "problem": str(error)}, Text(f"! {resource} {error}", "red"))
    for warning in found.warnings:
        output.show({"warning": warning}, Text(f"warning: {warning}", "yellow"))
    steps: Counter[str] = Counter(one.action for one in found.steps)
    steps["problem"] = len(found.problems)
    counts = {action: steps[action] for action in _LOOKS}
    texts = [f"{number} {_LOOKS[action][2]}" for action, number in counts.items() if number]
    text = ", ".join([*texts, f"{len(found.unchanged)} as wanted"])
    output.show({"counts": counts | {"unchanged": len(found.unchanged)}}, text)


def _step_text(step: PlanStep) -> Text:
    sign, style, said = _LOOKS[step.action]
    if step.action == "in progress":
        return Text(f"{sign} {said} {step.resource}", style)
    why = _difference(step) if step.action == "update" else f"({step.reason})"
    return Text(f"{sign} {step.action} {step.resource} {why}", style)


def _difference(step: PlanStep) -> str:
    """Return such as ``task:changed:due_on -> +due_at``: what changes in the filters."""
    added, texts = list(step.added), list[str]()
    for old in step.removed:
        near = (one for one in added if one.fields and old.fields and evolve(one, fields=old.fields) == old)
        if (new := next(near, None)) is None:
            texts.append(f"-{common.filter_text(old)}")
            continue
        added.remove(new)
        before, after = set(old.fields or ()), set(new.fields or ())
        fields = [f"+{one}" for one in sorted(after - before)] + [f"-{one}" for one in sorted(before - after)]
        texts.append(f"{common.filter_text(old)} -> {','.join(fields)}")
    return ", ".join([*texts, *(f"+{common.filter_text(one)}" for one in added)])
