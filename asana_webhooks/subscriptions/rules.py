"""What subscriptions decide, as pure functions: targets, filters, what to do with a webhook, when one may retire, and
how well it is.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import unquote

from yarl import URL

from asana_webhooks._checks import parse_url
from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Webhook, WebhookFilter
from asana_webhooks.store.base import Registration, RegistrationState
from asana_webhooks.store.rules import last_sign

__all__ = [
    "LONGEST_WAIT",
    "Judgement",
    "NormalFilter",
    "Verdict",
    "as_pair",
    "created_at",
    "endpoint_below",
    "judge",
    "judge_move",
    "lost_since",
    "may_retire",
    "named",
    "normal_filters",
    "normal_url",
    "reaches",
    "split_public_url",
    "split_target",
    "verdict_of",
    "verdict_of_stranger",
    "why_unfinished",
]

LONGEST_WAIT: Final = 32_400.0
"""Seconds after which a replaced webhook is deleted, whatever it still has to send: a heartbeat's eight hours, and one
more. Source: https://developers.asana.com/docs/webhooks-guide"""

Judgement = Literal["unchanged", "updated", "replaced"]
Verdict = Literal["ok", "new", "failing", "silent", "deaf", "gone", "inactive", "unknown"]
NormalFilter = tuple[str | None, str | None, str | None, frozenset[str]]


def split_public_url(public_url: str) -> tuple[URL, str]:
    """Return the URL without its query, and the query as it is written, with its question mark.

    Raises:
        ConfigurationError: *public_url* is no such URL.
    """
    text = str(public_url)
    path, mark, query = text.partition("?")
    url = parse_url(path)
    is_plain = text.isprintable() and " " not in text and "#" not in text and query.isascii()
    if not is_plain or url.scheme not in ("http", "https") or not url.host or url.user or url.password:
        # The value is not shown: it may contain a password or a key.
        raise ConfigurationError(
            "public_url must be an http(s) URL without user, password, fragment, spaces or control characters, such as "
            "https://example.com/asana; a query must be ASCII, with other characters percent-encoded"
        )
    return url, mark + query


def split_target(target: str | None) -> tuple[str, str] | None:
    """Return the public URL and the endpoint of a target; ``None`` if its path ends with no segment.

    The endpoint is decoded, as a receiver gets it. One slash after it does not count. A segment with an encoded slash,
    or one that is not UTF-8, counts as none: servers disagree on them.
    """
    path, mark, query = (target or "").partition("#")[0].partition("?")
    url = parse_url(path)
    before, _, last = url.raw_path.removesuffix("/").rpartition("/")
    endpoint = unquote(last)
    is_clear = endpoint and "/" not in endpoint and "\N{REPLACEMENT CHARACTER}" not in endpoint
    if url.scheme not in ("http", "https") or not url.host or not is_clear:
        return None
    return f"{url.scheme}://{url.raw_authority}{before}{mark}{query}", endpoint


def normal_url(text: str) -> tuple[object, ...]:
    """Return a public URL in a form to compare."""
    path, _, query = text.partition("?")
    url = parse_url(path)
    return url.scheme, url.user, url.password, url.host, url.port, url.raw_path.rstrip("/"), query


def endpoint_below(target: str | None, public_url: str) -> str | None:
    """Return the endpoint of a target that is *public_url* and one more segment, with the same query; else ``None``."""
    split = split_target(target)
    return split[1] if split is not None and normal_url(split[0]) == normal_url(public_url) else None


def reaches(registration: Registration, target: str | None, public_url: str) -> bool:
    """Return whether a webhook posts below *public_url*: it was created with it, or its target says so."""
    # Both are asked, so that a target which Asana returns in another spelling is not replaced at every start.
    return (
        normal_url(registration.public_url) == normal_url(public_url) or endpoint_below(target, public_url) is not None
    )


def normal_filters(filters: Iterable[WebhookFilter] | None) -> frozenset[NormalFilter]:
    """Return filters in a form to compare: a set, in which null members are missing ones, and *fields* is a set."""
    return frozenset(
        (one.resource_type, one.resource_subtype, one.action, frozenset(one.fields or ())) for one in filters or ()
    )


def judge(
    registration: Registration, webhook: Webhook, *, public_url: str, filters: Iterable[WebhookFilter]
) -> Judgement:
    """Return what has to be done with a webhook that exists, to have it as wanted."""
    wanted = normal_filters(filters)
    if not reaches(registration, webhook.target, public_url):
        return "replaced"  # an update cannot change the target
    if normal_filters(webhook.filters) == wanted:
        return "unchanged"
    # What Asana does with an update to no filters is undocumented.
    return "updated" if wanted else "replaced"


def as_pair(live: Iterable[Registration]) -> tuple[Registration, Registration]:
    """Return two live registrations as the one that is replaced, and the one that replaces it."""
    one, other = live
    return (other, one) if one.replaces == other.id else (one, other)


def judge_move(
    pair: Iterable[tuple[Registration, Webhook]], *, public_url: str, filters: Iterable[WebhookFilter]
) -> tuple[Registration, Webhook, Judgement]:
    """Return which webhook of a move is the wanted one, and what has to be done with it.

    Raises:
        ConfigurationError: neither has *public_url*, or the one that has cannot be changed to what is wanted now.
    """
    (new, _), (old, _) = both = tuple(pair)
    for one, webhook in both:
        if not reaches(one, webhook.target, public_url):
            continue
        verdict = judge(one, webhook, public_url=public_url, filters=filters)
        if verdict == "replaced":
            raise ConfigurationError(
                f"{named(one)} is being moved, so it cannot be replaced to have no filters; retry when the move is done"
            )
        return one, webhook, verdict
    raise ConfigurationError(
        f"{named(old)} is being moved to {named(new)}, and neither has this public_url; use the public_url of one of "
        "them, or retry when the move is done"
    )


def created_at(registration: Registration, webhook: Webhook) -> float:
    """Return when a webhook was created, in seconds since the epoch."""
    return registration.opened_at if webhook.created_at is None else webhook.created_at.timestamp()


def lost_since(old: Registration, webhook: Webhook | None, *, since: float, now: float) -> datetime | None:
    """Return from when on events may be lost if the old webhook of a move ends now; ``None``: none are.

    None are if its `Registration.retire_after` is over, it has nothing to send again, and something came through it
    after the new one was created, at *since*. *webhook* is Asana's last record of it, if there is one.
    """
    succeeded = None if webhook is None else webhook.last_success_at
    seen = last_sign(old) if succeeded is None else succeeded.timestamp()
    is_idle = webhook is None or webhook.next_attempt_after is None
    if is_idle and seen > since and old.retire_after is not None and now >= old.retire_after:
        return None
    return datetime.fromtimestamp(min(seen, since), UTC)


def may_retire(
    old: Registration, webhook: Webhook, *, since: float, now: float, longest_wait: float = LONGEST_WAIT
) -> bool:
    """Return whether the old webhook of a move may be deleted; see `lost_since` for the arguments.

    It may when `Registration.retire_after` is over, and nothing is lost by that or *longest_wait* seconds have passed
    since the new one was created.
    """
    if old.retire_after is None or now < old.retire_after:
        return False
    return now >= since + longest_wait or lost_since(old, webhook, since=since, now=now) is None


def why_unfinished(old: Registration, alive: Sequence[tuple[Registration, Webhook]], *, now: float) -> str | None:
    """Return why one of two live registrations has to go first; ``None`` if both stay, because *old* is being moved.

    *alive* are those whose webhook exists, the old one first.
    """
    if old.retire_after is None:
        return "replacing it was begun, and not finished"
    if len(alive) < 2:
        return "it was being moved, and one of the two webhooks is gone"
    (_, webhook), (new, new_webhook) = alive
    if may_retire(old, webhook, since=created_at(new, new_webhook), now=now):
        return "it has been moved, and the old webhook can go"
    return None


def verdict_of(
    registration: Registration, webhook: Webhook | None, *, now: float, silent_after: float
) -> tuple[Verdict, str]:
    """Return how well a webhook with a confirmed registration is, and why. *webhook* is Asana's record, if any."""
    if webhook is None:
        return "gone", "Asana or someone has deleted it"
    if webhook.active is False:
        return "inactive", "Asana sends no deliveries"
    until = webhook.failure_deletion_timestamp
    if until is not None or webhook.next_attempt_after is not None:
        end = "" if until is None else f"; Asana deletes it at {_shown(until)} unless one succeeds before"
        return "failing", f"deliveries fail{end}"
    seen, succeeded = last_sign(registration), webhook.last_success_at
    if now - seen >= silent_after:
        reason = f"nothing was stored since {_shown(datetime.fromtimestamp(seen, UTC))}"
        if succeeded is not None and now - succeeded.timestamp() < silent_after:
            reason += ", but Asana says that one succeeded: something else answers in the receivers' place"
        return "silent", f"{reason}; Asana's last successful delivery was at {_shown(succeeded)}"
    if registration.last_heartbeat_at is None and registration.last_delivery_at is None:
        return "new", "nothing has come through it yet"
    return "ok", f"Asana's last successful delivery was at {_shown(succeeded)}"


def verdict_of_stranger(
    known: Registration | None, webhook: Webhook, *, label: str, now: float
) -> tuple[Verdict, str] | None:
    """Return the verdict on a webhook below the public URL that is none of the label's live ones; ``None``: skip it.

    *known* is the registration of its endpoint, if the store has one.
    """
    if known is None:
        return "deaf", "this store does not know its endpoint: another one does, or it was restored from a backup"
    if known.label != label:
        return None
    if known.state is RegistrationState.PENDING:
        return None if now < known.deadline else ("deaf", "the process that created it was killed")
    if known.state is RegistrationState.CLOSED:
        return "deaf", "its registration is closed, so its deliveries are answered 404"
    if known.webhook_gid != webhook.gid:
        return "deaf", f"its endpoint belongs to webhook {known.webhook_gid}, so its deliveries are answered 401"
    return None  # it was confirmed a moment ago


def _shown(moment: datetime | None) -> str:
    return "no known time" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def named(registration: Registration) -> str:
    """Return how logs and errors name a registration: its webhook, resource and label."""
    label = f" (label {registration.label!r:.40})" if registration.label else ""
    gid = f" {registration.webhook_gid:.40}" if registration.webhook_gid else ""
    return f"webhook{gid} on {registration.resource:.40}{label}"
