"""What all commands share: options and their environment variables, output, progress, questions and exit statuses."""

import json as json_module
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final, NoReturn, TextIO

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from asana_webhooks import (
    AsanaSession,
    ConfigurationError,
    Event,
    PostgresStore,
    Secret,
    Store,
    WebhookFilter,
    open_store,
)
from asana_webhooks.client.auth import token_provider

__all__ = [
    "DIFFERENT",
    "FAILED",
    "INTERRUPTED",
    "UNAUTHORIZED",
    "USAGE",
    "AtOnce",
    "BaseUrl",
    "Filters",
    "Json",
    "Label",
    "Output",
    "PublicUrl",
    "Reveal",
    "StoreName",
    "Workspace",
    "Yes",
    "confirm",
    "discard_output",
    "event_text",
    "fail",
    "filter_text",
    "lasting",
    "named_store",
    "parse_filters",
    "progress",
    "secret_in",
    "session",
    "store_url",
]

FAILED: Final = 1
USAGE: Final = 2
DIFFERENT: Final = 3
UNAUTHORIZED: Final = 4
INTERRUPTED: Final = 130
_FILTER: Final = re.compile(r"([^:/]+)(?:/([^:/]+))?(?::([^:]+)(?::([^:,]+(?:,[^:,]+)*))?)?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, among them those that end a line or turn the direction of text."""
_COLOURS: Final = {"added": "green", "undeleted": "green", "changed": "yellow", "removed": "red", "deleted": "red"}


# Options


def parse_filters(texts: Iterable[str]) -> tuple[WebhookFilter, ...]:
    """Return the filters that *texts* mean: ``type[/subtype][:action[:field,...]]``, such as ``task:changed:due_on``.

    Raises:
        ConfigurationError: one means none.
    """
    return tuple(map(_parse_filter, texts))


def _parse_filter(text: str) -> WebhookFilter:
    found = _FILTER.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"the filter {text!r:.80} must look like type[/subtype][:action[:field,...]], such as task:changed:due_on"
        )
    kind, subtype, action, fields = found.groups()
    names = None if fields is None else tuple(fields.split(","))
    return WebhookFilter(resource_type=kind, resource_subtype=subtype, action=action, fields=names)


def filter_text(one: WebhookFilter) -> str:
    """Return a filter as `parse_filters` reads it, with ``*`` for a type or action that it does not name."""
    kind = "/".join(part for part in (one.resource_type or "*", one.resource_subtype) if part)
    fields = ",".join(one.fields or ())
    return ":".join(part for part in (kind, one.action or ("*" if fields else ""), fields) if part)


Json = Annotated[bool, Parameter(help="Print JSON, one object on a line.")]
Yes = Annotated[bool, Parameter(name=("--yes", "-y"), help="Do not ask.")]
Reveal = Annotated[bool, Parameter(help="Show endpoints and secrets, which are *** otherwise.")]
BaseUrl = Annotated[str | None, Parameter(env_var="ASANA_BASE_URL", help="Asana's API, if it is not the real one.")]
Workspace = Annotated[str, Parameter(env_var="ASANA_WORKSPACE", help="The workspace's gid; see `workspaces`.")]
StoreName = Annotated[
    str,
    Parameter(
        env_var="ASANA_WEBHOOKS_STORE",
        help="The store of the service: a path, sqlite:///path, or postgresql://user@host/database.",
    ),
]
PublicUrl = Annotated[
    str,
    Parameter(env_var="ASANA_WEBHOOKS_PUBLIC_URL", help="Where Asana reaches you, such as https://example.com/asana."),
]
Label = Annotated[str, Parameter(help="The label of the webhooks.")]
AtOnce = Annotated[
    int, Parameter(show_default=True, validator=Number(gte=1, lte=100), help="How many to work on at the same time.")
]
Filters = Annotated[
    tuple[str, ...],
    Parameter(name="--filter", help="type[/subtype][:action[:field,...]]. Repeat it for several filters."),
]


def session(base_url: str | None) -> AsanaSession:
    """Return a session with ``ASANA_ACCESS_TOKEN``; exit if that is missing or no token.

    Raises:
        ConfigurationError: *base_url* is invalid.
    """
    if not (token := os.environ.get("ASANA_ACCESS_TOKEN")):
        fail("there is no access token: set ASANA_ACCESS_TOKEN", UNAUTHORIZED)
    try:
        token_provider(token)
    except ConfigurationError as error:
        fail(f"ASANA_ACCESS_TOKEN: {error}", UNAUTHORIZED)
    return AsanaSession(base_url=base_url)


def secret_in(variable: str) -> Secret:
    """Return the secret in a variable of the environment, as named by ``--secret-env``.

    Raises:
        ConfigurationError: it is not set, or empty.
    """
    if not (value := os.environ.get(variable)):
        raise ConfigurationError(f"the variable {variable} of --secret-env is not set")
    return Secret(value)


def store_url(named: str) -> str:
    """Return the URL of a store that is named by a URL or a path."""
    return named if ":" in named.partition("/")[0] else f"sqlite:///{named}"


def named_store(named: str) -> Store:
    """Return the store that is named by a URL or a path.

    ``ASANA_WEBHOOKS_STORE_KEYS`` may hold its Fernet keys by id, ``2026-11=KEY,2026-05=KEY``; the first one seals.

    Raises:
        ConfigurationError: this names no store, its file does not exist, or a key is invalid.
    """
    url, keys = store_url(named), os.environ.get("ASANA_WEBHOOKS_STORE_KEYS")
    path = url.removeprefix("sqlite:///")
    if path != url and path and not os.path.exists(path):  # noqa: PTH110 - as SQLite takes it
        raise ConfigurationError(f"there is no store at {path}; give the file of the service with --store")
    postgres = url.startswith(("postgresql://", "postgres://"))
    store: Callable[..., Store] = partial(PostgresStore, url, create=False) if postgres else partial(open_store, url)
    if not keys:
        return store()
    from asana_webhooks.store.secret_box import FernetBox  # noqa: PLC0415 - needs the extra fernet

    pairs = (one.partition("=") for one in keys.split(","))
    try:
        box = FernetBox({key_id.strip(): key.strip() for key_id, _, key in pairs})
    except ConfigurationError:  # its text has what should be an id, and is the key itself if the id was left out
        problem = "ASANA_WEBHOOKS_STORE_KEYS must hold Fernet keys by their ids, such as 2026-11=KEY,2026-05=KEY"
        raise ConfigurationError(problem) from None
    return store(secret_box=box)


# Output


def event_text(event: Event) -> Text:
    """Return an event as a line of 80 columns: ``2026-11-30 12:00:00 changed   task 12 due_on``. The time is UTC."""
    parts = [event.resource.resource_type or "resource", event.resource.gid, event.field]
    if event.parent is not None:
        where = {"added": "to", "removed": "from"}.get(event.action, "in")
        parts += [where, event.parent.resource_type, event.parent.gid]
    return Text.assemble(
        (f"{event.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} ", "dim"),
        (f"{event.action:<9} ", _COLOURS.get(event.action, "")),
        " ".join(filter(None, parts)),
    )


def lasting(seconds: float) -> str:
    """Return a duration for people, such as ``3 h 12 min``."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"


class Output:
    """Where a command prints. Data goes to standard output, talk to standard error; neither shows control characters.

    Standard output closed early, as by ``| head``, ends the command with status 0.

    Args:
        json: whether data is JSON, one object on each line.
        keep_going: for commands that change things: print nothing more, and go on.
    """

    def __init__(self, *, json: bool, keep_going: bool = False) -> None:
        self.json = json
        self._keep_going = keep_going
        self._out = Console(highlight=False, markup=False, emoji=False)

    def show(self, data: Mapping[str, Any], text: str | Text) -> None:
        """Print *data* as a line of JSON, or *text*."""
        if self.json:
            ascii_only = self._out.options.ascii_only
            self._write(_harmless(json_module.dumps(data, ensure_ascii=ascii_only, default=_plain)))
        else:
            self._print(_as_text(text))

    def talk(self, text: str) -> None:
        """Print text for a person to standard error. If that was closed, nothing is printed, and nothing ends."""
        _write(sys.stderr, _harmless(text))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        """Print a table that fits the terminal. Without one, or if it is too narrow, print lines with tabs, in full."""
        if not self._out.is_terminal or self._out.width < 12 * len(columns):
            for row in rows:
                self._write("\t".join(_harmless(str(cell)) for cell in row))
            return
        first, *others = columns  # what is too long is folded, and never cut; the first column, a gid or so, is neither
        heads = (Column(first, no_wrap=True), *(Column(name, overflow="fold") for name in others))
        table = Table(*heads, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*map(_as_text, row))
        self._print(table)

    def _print(self, what: Text | Table) -> None:
        with self._out.capture() as captured:
            self._out.print(what, soft_wrap=isinstance(what, Text))
        self._write(captured.get().removesuffix("\n"))

    def _write(self, line: str) -> None:
        if not _write(sys.stdout, line) and not self._keep_going:
            raise SystemExit(0)


def _harmless(text: str) -> str:
    """Return text with control characters escaped: names at Asana may steer a terminal. JSON means the same by them."""
    return _CONTROL.sub(lambda one: one[0].encode("unicode_escape").decode().replace("\\x", "\\u00"), text)


def _as_text(text: str | Text) -> Text:
    if isinstance(text, str):
        return Text(_harmless(text))
    text.plain = _harmless(text.plain)
    return text


def _write(stream: TextIO, line: str) -> bool:
    """Write a line, and return whether anyone reads it."""
    try:
        stream.write(f"{line}\n")
        stream.flush()
    except BrokenPipeError:
        discard_output(stream)
        return False
    except OSError as error:  # such as a full disk
        discard_output(stream)
        fail(f"the output cannot be written: {error.strerror}", FAILED)
    return True


def _plain(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


def fail(problem: str, status: int) -> NoReturn:
    """Say what is wrong in one line on standard error, and exit with *status*."""
    _write(sys.stderr, f"asana-webhooks: {_harmless(problem)}")
    raise SystemExit(status)


def discard_output(stream: TextIO) -> None:
    """Write nothing more to a stream that was closed; not when Python exits, either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """Show a progress bar on standard error, if it is a terminal, while the block runs.

    Yields the bar, for its one task ``bar.task_ids[0]``.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # What is redirected goes where the bar is, above it: right for another terminal, wrong for a file or a pipe.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    bar.add_task(what, total=total)
    with bar if console.is_terminal and not console.is_dumb_terminal else nullcontext():
        yield bar


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal, unless *yes*; exit with status 1 after a no. Ctrl-C raises `KeyboardInterrupt`.

    Raises:
        ConfigurationError: there is no terminal, and not *yes*.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigurationError(f"{question} There is no terminal to ask on: pass --yes")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would wait for the answer
    try:
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, handler)
    if answer.strip().lower() not in ("y", "yes"):
        raise SystemExit(FAILED)
