"""Changes of its API that Asana announces in its answers, and how requests say which side of them they want.

Source: https://developers.asana.com/docs/deprecations
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from inspect import iscoroutinefunction
from typing import Any, Final

from attrs import Attribute, define, field, frozen

from asana_webhooks.errors import ConfigurationError

__all__ = ["Deprecation", "DeprecationLog", "choice_headers", "chosen_changes", "parse_changes"]

_MOST: Final = 100
"""Changes remembered. Asana announces a few at a time; a server that sends ever new ones would fill memory and logs."""

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Deprecation:
    """A change of Asana's API that these requests will meet, or meet already."""

    name: str
    """What *enable* and *disable* of `AsanaSession` call it."""
    info: str | None = None
    """Where Asana explains it."""
    affected: bool = False
    """Whether the request would have been answered differently."""


def parse_changes(values: Iterable[str]) -> tuple[Deprecation, ...]:
    """Read the ``Asana-Change`` headers of an answer, such as ``name=string_ids;info=https://…;affected=true``.

    One header may hold several, with commas between them. What has no name is skipped.
    """
    found = []
    for text in ",".join(values).split(","):
        members = dict(_member(part) for part in text.split(";"))
        if members.get("name"):
            name, info = members["name"], members.get("info") or None
            found.append(Deprecation(name=name, info=info, affected=members.get("affected") == "true"))
    return tuple(found)


def _member(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    printable = "".join(letter for letter in value.strip()[:200] if letter.isprintable())
    return key.strip().lower(), printable


def choice_headers(enable: Iterable[str], disable: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that choose sides: ``Asana-Enable`` and ``Asana-Disable``, as far as they are needed.

    Raises:
        ConfigurationError: they are no names, or contradict each other or the headers *given* already.
    """
    named = {"Asana-Enable": _names("enable", enable), "Asana-Disable": _names("disable", disable)}
    headers = {header: ",".join(names) for header, names in named.items() if names}
    twice = {header.lower() for header in headers} & {header.lower() for header in given}
    if twice:
        raise ConfigurationError(f"headers has {min(twice)} already; name the changes in one place")
    both = _chosen("asana-enable", {**given, **headers}) & _chosen("asana-disable", {**given, **headers})
    if both:
        raise ConfigurationError(f"the change {min(both)!r:.80} cannot be both enabled and disabled")
    return headers


def chosen_changes(headers: Mapping[str, str]) -> frozenset[str]:
    """Return the changes that requests with these headers take a side on."""
    return _chosen("asana-enable", headers) | _chosen("asana-disable", headers)


def _chosen(header: str, headers: Mapping[str, str]) -> frozenset[str]:
    listed = ",".join(text for name, text in headers.items() if name.lower() == header).split(",")
    return frozenset(name.strip() for name in listed if name.strip())


def _names(argument: str, names: Any) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Iterable):  # a text would be taken apart into letters
        raise ConfigurationError(f"{argument} must be a list of names such as ['string_ids'], not {names!r:.80}")
    listed = list(names)
    for name in listed:
        if not isinstance(name, str) or not re.fullmatch(r"[0-9A-Za-z_.-]+", name):
            raise ConfigurationError(f"{argument} must be names such as 'string_ids', not {name!r:.80}")
    return listed


def _check_hook(_: object, _attribute: "Attribute[Any]", value: Any) -> None:
    if value is None:
        return
    if not callable(value) or iscoroutinefunction(value) or iscoroutinefunction(type(value).__call__):
        raise ConfigurationError("on_deprecation must be a plain function that takes a Deprecation; it is not awaited")


@define
class DeprecationLog:
    """Tells of each change once: to the log, and to whoever asked to be told.

    Raises:
        ConfigurationError: the hook is no function, or one that must be awaited.
    """

    hook: Callable[[Deprecation], object] | None = field(default=None, validator=_check_hook)
    chosen: frozenset[str] = frozenset()
    """The changes these requests take a side on; nobody needs to be told of them."""
    _told: set[str] = field(factory=set, init=False)

    def note(self, values: Iterable[str]) -> None:
        """Read the ``Asana-Change`` headers of an answer and tell what is new in them."""
        for change in parse_changes(values):
            known = change.name in self.chosen or change.name in self._told
            if change.affected and not known and len(self._told) < _MOST:
                self._told.add(change.name)
                self._tell(change)

    def _tell(self, change: Deprecation) -> None:
        _log.warning(
            "Asana announces the change %r, which affects these requests; read %r, then choose a side with enable= or "
            "disable= of AsanaSession",
            change.name,
            change.info,
        )
        if self.hook is None:
            return
        try:
            self.hook(change)
        except Exception:  # noqa: BLE001 - a hook that fails is no reason to lose an answer of Asana's
            _log.exception("the hook for the change %r failed", change.name)
