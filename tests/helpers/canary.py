"""The canary: it knows the secrets of a test, looks at whatever it is shown, and tells where a secret was.

`tests.helpers.watching` is the pytest plugin that shows it what a whole test does.
"""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from attrs import define, field

import asana_webhooks

PACKAGE = Path(asana_webhooks.__file__).parent
PROGRAMS = {"testing", "cli"}
"""Rooms that play Asana or print what they were asked to; their frames are not looked at."""
DECODERS = PACKAGE / "wire.py"
"""A test that calls a decoder gives it the bytes itself."""
ACCESS_LOGS = {"aiohttp.access", "uvicorn.access"}
"""They print paths because somebody asked them to."""

SHORTEST = 12
"""Characters. What is shorter turns up by chance, and so does what has fewer than four different ones."""
SHORTEST_ENDPOINT = 16
_AT_ONCE = 16 * 1024 * 1024
"""Characters to keep before they are looked through."""


@define(eq=False, repr=False)
class Canary:
    """What is secret, and what was seen. Its repr shows none of it."""

    lasting: dict[str, str] = field(factory=dict)
    """Secrets that were made before any test began, and where each came from."""
    secrets: dict[str, str] = field(factory=dict)
    """Those of the running test, the lasting ones among them."""
    watching: bool = False
    _seen: dict[tuple[str, str], None] = field(factory=dict)
    """Texts with where they were, each once."""
    _size: int = 0
    _found: dict[str, None] = field(factory=dict)

    def begin(self) -> None:
        """Begin a test."""
        self.secrets = dict(self.lasting)
        self._seen, self._size, self._found, self.watching = {}, 0, {}, True

    def end(self) -> list[str]:
        """End it; return what was found, one line for each place."""
        self.watching = False
        self._search()
        return list(self._found)

    # What is secret

    def learn(self, text: object, source: str, *, shortest: int = SHORTEST) -> None:
        """Keep a secret in mind."""
        if isinstance(text, str) and len(text) >= shortest and len(set(text)) >= 4:
            (self.secrets if self.watching else self.lasting).setdefault(text, source)

    def learn_target(self, target: object) -> None:
        """Keep the endpoint of a target in mind."""
        if isinstance(target, str):
            endpoint = target.partition("?")[0].rstrip("/").rpartition("/")[2]
            self.learn(endpoint, "the endpoint of a target", shortest=SHORTEST_ENDPOINT)

    def learn_headers(self, headers: Mapping[str, str]) -> None:
        """Keep in mind what the headers of a request hold."""
        for name, value in headers.items():
            scheme, _, token = str(value).partition(" ")
            if name.lower() == "authorization" and scheme.lower() == "bearer":
                self.learn(token, "a bearer token")
            if name.lower() == "x-hook-secret":
                self.learn(value, "an X-Hook-Secret")

    def learn_form(self, form: object) -> None:
        """Keep in mind what the form of a request for tokens holds."""
        if isinstance(form, Mapping):
            for name in ("client_secret", "refresh_token"):
                self.learn(form.get(name), f"a {name}")

    def learn_answer(self, tree: object) -> None:
        """Keep in mind what JSON of Asana's holds."""
        if not isinstance(tree, dict):
            return
        for name in ("X-Hook-Secret", "access_token", "refresh_token"):
            self.learn(tree.get(name), f"an {name} in JSON")
        data = tree.get("data")
        for one in data if isinstance(data, list) else [data]:
            self.learn_target(one.get("target") if isinstance(one, dict) else None)

    # Where people look

    def see(self, text: str, where: str) -> None:
        """Look at a text."""
        if self.watching and (text, where) not in self._seen:
            self._seen[text, where] = None
            self._size += len(text)
            if self._size > _AT_ONCE:
                self._search()

    def see_record(self, record: logging.LogRecord) -> None:
        """Look at a log record, whether anybody would print it or not."""
        if not self.watching or record.name in ACCESS_LOGS:
            return
        where = f"({record.name}, {record.levelname}, {record.pathname}:{record.lineno})"
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # logging complains about those itself
            message = str(record.msg)
        self.see(message, f"log message {where}")
        self.see(_shown(record.args), f"log arguments {where}")
        if record.exc_info and record.exc_info[1] is not None:
            self.see_exception(record.exc_info[1], f"logged exception {where}")

    def see_exception(self, error: BaseException, where: str) -> None:
        """Look at an exception, at all that hangs on it, and at our frames it came through."""
        if not self.watching:
            return
        for one in _chain(error):
            what = f"{where}: {type(one).__name__}"
            self.see(_shown(one, str), f"text of {what}")
            self.see(_shown(one), f"repr of {what}")
            self.see("\n".join(getattr(one, "__notes__", ())), f"notes of {what}")
            for place, name, value in _locals(one):
                self.see(_shown(value), f"local {name!r} at {place} in the traceback of {what}")

    def _search(self) -> None:
        """Look for every secret in what was seen, and forget that."""
        everything = "\0".join(text for text, _ in self._seen)
        for secret, source in self.secrets.items():
            for form in {secret, repr(secret)[1:-1]}:
                if form in everything:
                    places = (where for text, where in self._seen if form in text)
                    self._found |= dict.fromkeys(f"{source} shows in: {where}" for where in places)
        self._seen, self._size = {}, 0


def _shown(value: object, show: Callable[[object], str] = repr) -> str:
    try:
        return show(value)
    except Exception as error:  # noqa: BLE001 - some objects of tests cannot be shown at all
        return f"<{type(error).__name__}>"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts as far as Python prints them, and the members of groups."""
    waiting, known = [error], set()
    while waiting:
        one = waiting.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        yield one
        context = None if one.__suppress_context__ else one.__context__
        waiting += [other for other in (one.__cause__, context) if other is not None]
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()


def _locals(error: BaseException) -> Iterator[tuple[str, str, object]]:
    """Yield the local variables of our frames as error trackers collect them: where, name and value."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_ours(frame)]
    if frames and Path(frames[0][0].f_code.co_filename) == DECODERS:
        return
    for frame, line in frames:
        place = f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        yield from ((place, name, value) for name, value in frame.f_locals.items())


def _is_ours(frame: FrameType) -> bool:
    file = Path(frame.f_code.co_filename)
    return file.is_relative_to(PACKAGE) and file.relative_to(PACKAGE).parts[0] not in PROGRAMS
