"""`plan` and `apply`: compare the webhooks that a file names with those there are, and make them so."""

import asyncio
import logging
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

from attrs import asdict, field, frozen
from cyclopts import Parameter
from rich.text import Text

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    PlanStep,
    StepResult,
    WantedWebhook,
    WebhookFilter,
    WebhookPlan,
    apply_plan,
    get_projects,
    plan_webhooks,
)
from asana_webhooks.cli.common import (
    DIFFERENT,
    FAILED,
    AtOnce,
    BaseUrl,
    Json,
    Label,
    Output,
    PublicUrl,
    StoreName,
    Workspace,
    Yes,
    confirm,
    filter_text,
    named_store,
    parse_filters,
    progress,
    session,
)

__all__ = ["File", "Place", "Prune", "Settings", "apply", "logs_from", "named_wanted", "plan", "read_settings"]

_FILE: Final = Path("webhooks.toml")
_KEYS: Final = ("public_url", "workspace", "label", "webhook")
_WEBHOOK_KEYS: Final = ("resource", "every", "filters")
_LOOKS: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "create": ("+", "+", "green", "to create"),
    "update": ("~", "~", "yellow", "to change"),
    "replace": ("±", "-/+", "yellow", "to replace"),
    "delete": ("-", "-", "red", "to delete"),
    "in progress": ("…", "...", "dim", "in progress elsewhere"),
    "unchanged": ("=", "=", "", "as wanted"),
}
"""By action: the sign, the same in ASCII, the colour, and the word in the counts."""

File = Annotated[Path | None, Parameter(help="The file that names the webhooks. [default: webhooks.toml]")]
Prune = Annotated[
    bool, Parameter(name="--prune", negative=(), help="Delete the label's webhooks that the file does not name.")
]


@Parameter(name="*")
@frozen(kw_only=True)
class Place:
    """Where the webhooks are. What is not given here, the file says."""

    store: StoreName
    public_url: PublicUrl = field(default="", repr=False)
    workspace: Workspace = ""
    label: Label | None = None
    base_url: BaseUrl = None


# The file


@frozen(kw_only=True)
class Settings:
    """What the options and the file say together."""

    public_url: str = field(repr=False)
    workspace: str
    label: str
    named: Mapping[str, tuple[WebhookFilter, ...]]
    """The filters of the resources that the file names."""
    every: tuple[WebhookFilter, ...] | None
    """The filters of all other projects; ``None``: they are not wanted."""


def read_settings(file: Path | None, place: Place, *, needed: bool = True) -> Settings:
    """Return what *file* says, where *place* says nothing else. Without *needed*, there may be no file.

    Raises:
        ConfigurationError: the file cannot be read; it says something else than it may; or something is missing.
    """
    path = file or _FILE
    tree = _read(path) if needed or file or path.exists() else {}
    _refuse_others(tree, _KEYS, f"{path}")
    given = {"public_url": place.public_url or None, "workspace": place.workspace or None, "label": place.label}
    found = {key: _text(tree.get(key, ""), f"{path}: {key}") if one is None else one for key, one in given.items()}
    for key in ("public_url", "workspace"):
        if not found[key]:
            raise ConfigurationError(f"there is no {key}: pass --{key.replace('_', '-')}, or write it into {path}")
    webhooks = tree.get("webhook", [])
    if not isinstance(webhooks, list) or (needed and not webhooks):
        raise ConfigurationError(f"{path} must name webhooks, each below a line [[webhook]]")
    named, every = dict[str, tuple[WebhookFilter, ...]](), list[tuple[WebhookFilter, ...]]()
    for number, webhook in enumerate(webhooks, 1):
        where = f"{path}: [[webhook]] number {number}"
        filters = _filters(webhook, where)
        if (webhook.get("every"), len(every)) == ("project", 0) and "resource" not in webhook:
            every.append(filters)
        elif "every" in webhook:
            raise ConfigurationError(f'{where}: every must be "project", in one [[webhook]], and without resource')
        for gid in () if "every" in webhook else _gids(webhook.get("resource"), where):
            if gid in named:
                raise ConfigurationError(f"{where}: resource {gid} is wanted twice; give the second one another label")
            named[gid] = filters
    return Settings(**found, named=named, every=every[0] if every else None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None


def _refuse_others(tree: Mapping[str, object], keys: tuple[str, ...], where: str) -> None:
    for key in tree.keys() - set(keys):
        raise ConfigurationError(f"{where}: unknown key {key!r:.40}; its keys are {', '.join(keys)}")


def _text(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):  # gids may be written as numbers
        raise ConfigurationError(f"{where} must be text in quotes")
    return str(value)


def _gids(value: object, where: str) -> list[str]:
    gids = [_text(one, f"{where}: resource") for one in (value if isinstance(value, list) else [value])]
    if not gids or not all(gid.isascii() and gid.isdigit() for gid in gids):
        raise ConfigurationError(f'{where}: resource must be a gid such as "8675309", or a list of gids')
    return gids


def _filters(webhook: object, where: str) -> tuple[WebhookFilter, ...]:
    if not isinstance(webhook, dict):
        raise ConfigurationError(f"{where} must be a table, below a line [[webhook]]")
    _refuse_others(webhook, _WEBHOOK_KEYS, where)
    texts = webhook.get("filters", [])
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise ConfigurationError(f'{where}: filters must be a list, such as ["task:changed:due_on"]')
    try:
        return parse_filters(texts)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


async def named_wanted(asana: AsanaSession, settings: Settings) -> list[WantedWebhook]:
    """Return the webhooks that are wanted. Filters of a resource that is named win over those of every project."""
    wanted = dict(settings.named)
    if settings.every is not None:
        projects = [one.gid async for one in get_projects(asana, workspace=settings.workspace)]
        if not projects:  # a token that sees nothing must not delete everything
            raise ConfigurationError(f"workspace {settings.workspace} has no project that this token may see")
        for project in projects:
            wanted.setdefault(project, settings.every)
    return [WantedWebhook(resource, filters) for resource, filters in wanted.items()]


# The commands


async def plan(
    file: File = None,
    /,
    *,
    place: Place,
    prune: Prune = False,
    check: Annotated[bool, Parameter(negative=(), help="End with status 3 if there is something to do.")] = False,
    json: Json = False,
) -> int:
    """Show what has to be done to have the webhooks that a file names. Nothing is changed.

    ```text
    # webhooks.toml
    public_url = "https://example.com/asana"
    workspace = "1331"

    [[webhook]]
    resource = ["8675309", "8675310"]
    filters = ["task:changed:due_on,due_at"]

    [[webhook]]              # all other projects
    every = "project"
    filters = ["task:added"]

    asana-webhooks plan --store asana.db --prune
    ```

    Options and the environment win over the file. Status: 0; 3 with --check if there is something to do; 1 if a
    webhook cannot be planned.
    """
    settings, output = read_settings(file, place), Output(json=json)
    async with session(place.base_url) as asana, named_store(place.store) as store:
        with logs_from(logging.ERROR, "plan"), progress("planning"):
            found = await _planned(asana, store, settings, prune=prune)
    _show_plan(output, found)
    if found.problems:
        return FAILED
    return DIFFERENT if check and found.steps else 0


async def apply(
    file: File = None,
    /,
    *,
    place: Place,
    prune: Prune = False,
    at_once: AtOnce = 10,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Do what `plan` shows: create, change, replace and delete webhooks until they are as a file says.

    ```text
    asana-webhooks apply --store asana.db --prune
    ```

    It shows the plan and asks once. Receivers must be running. A step that fails does not stop the others; apply again
    for those. Status: 0; 1 if a step failed or a webhook cannot be planned.
    """
    settings, output = read_settings(file, place), Output(json=json, keep_going=True)
    async with session(place.base_url) as asana, named_store(place.store) as store:
        with logs_from(logging.ERROR, "plan", "apply"):
            with progress("planning"):
                found = await _planned(asana, store, settings, prune=prune)
            if not json:
                _show_plan(output, found)
            if not found.steps:
                return FAILED if found.problems else 0
            confirm(f"Apply this plan ({len(found.steps)} steps)?", yes=yes)
            with progress("applying", len(found.steps)) as bar:

                def tell(result: StepResult) -> None:
                    if bar is not None:
                        bar.advance(bar.task_ids[0])
                    if json:
                        output.show(_result_data(result), "")
                    if result.error is not None:
                        output.talk(f"to {result.step.action} {result.step.resource} failed: {result.error}")

                try:
                    done = await apply_plan(asana, store, found, at_once=at_once, on_step=tell)
                except asyncio.CancelledError:
                    output.talk("interrupted; apply again for the rest")
                    raise
    counts = {**done.counts, **({"problem": len(found.problems)} if found.problems else {})}
    output.show({"counts": counts}, ", ".join(f"{number} {action}" for action, number in counts.items()))
    return FAILED if done.failed or found.problems else 0


async def _planned(asana: AsanaSession, store: Any, settings: Settings, *, prune: bool) -> WebhookPlan:
    return await plan_webhooks(
        asana,
        store,
        await named_wanted(asana, settings),
        public_url=settings.public_url,
        workspace=settings.workspace,
        label=settings.label,
        prune=prune,
    )


@contextmanager
def logs_from(level: int, *modules: str) -> Iterator[None]:
    """Print what these modules of subscriptions log from *level* on: the rest is shown by the command, or details."""
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


# What they show


def _show_plan(output: Output, found: WebhookPlan) -> None:
    for step in found.steps:
        output.show(asdict(step), _step_text(step, ascii_only=output.is_ascii))
    for resource, error in found.problems.items():
        output.show({"resource": resource, "problem": str(error)}, Text(f"! {resource}: {error}", "red"))
    for warning in found.warnings:
        output.show({"warning": warning}, Text(f"warning: {warning}", "yellow"))
    counts = Counter(one.action for one in (*found.steps, *found.unchanged))
    data = {action: counts[action] for action in _LOOKS}  # type: ignore[index]
    output.show({"counts": {**data, "problem": len(found.problems)}}, _counts(found))


def _counts(found: WebhookPlan) -> str:
    """Return such as ``2 to create, 1 to change, 497 as wanted``."""
    counts: Counter[str] = Counter(one.action for one in found.steps)
    texts = [f"{counts[action]} {looks[3]}" for action, looks in _LOOKS.items() if counts[action]]
    problems = [f"{len(found.problems)} with a problem"] if found.problems else []
    return ", ".join([*texts, *problems, f"{len(found.unchanged)} as wanted"])


def _result_data(result: StepResult) -> dict[str, Any]:
    gid = result.step.webhook_gid if result.ensured is None else result.ensured.webhook_gid
    error = None if result.error is None else str(result.error)
    return {"step": asdict(result.step), "action": result.action, "webhook_gid": gid, "error": error}


def _step_text(step: PlanStep, *, ascii_only: bool) -> Text:
    sign, ascii_sign, style, said = _LOOKS[step.action]
    verb, why = (said, "") if step.action == "in progress" else (step.action, f" ({step.reason})")
    if step.action == "update":
        why = f" {_difference(step)}"
    elif step.reason == "there is none":
        why = ""
    return Text(f"{ascii_sign if ascii_only else sign} {verb} {step.resource}{why}", style)


def _difference(step: PlanStep) -> str:
    """Return such as ``task:changed:due_on -> +due_at``: what changes in the filters."""
    added, texts = list(step.added), list[str]()
    for old in step.removed:
        new = next((one for one in added if _kind(one) == _kind(old)), None)
        if new is None:
            texts.append(f"-{filter_text(old)}")
            continue
        added.remove(new)
        before, after = old.fields or (), new.fields or ()
        fields = [f"+{one}" for one in after if one not in before] + [f"-{one}" for one in before if one not in after]
        texts.append(f"{filter_text(old)} -> {','.join(fields) if before and after else filter_text(new)}")
    return ", ".join([*texts, *(f"+{filter_text(one)}" for one in added)])


def _kind(one: WebhookFilter) -> tuple[str | None, ...]:
    return one.resource_type, one.resource_subtype, one.action
