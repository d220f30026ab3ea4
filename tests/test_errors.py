"""The exception tree: its shape, its sentences, and what must never stand in them."""

import copy
import inspect
import pickle
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from asana_webhooks import errors

TARGET = "https://example.com/asana/very-secret-endpoint"
OFFSET = "eyJ-very-secret-offset"

ANSWERED: dict[str, Any] = {"operation": "getWebhook", "status": 418, "messages": ("no", "never")}
FAILED: dict[str, Any] = {"operation": "getWebhook", "attempts": 3, "problem": "the connection was reset"}

SENTENCES: list[tuple[errors.AsanaError, str]] = [
    (errors.AsanaError("anything"), "anything"),
    (errors.ConfigurationError("page_size must be smaller"), "page_size must be smaller"),
    (
        errors.ResponseError(**ANSWERED),
        "getWebhook: Asana answered 418 after 1 attempt: no; never. See Asana's message for the cause.",
    ),
    (
        errors.BadRequestError(operation="createWebhook", status=400, messages=("resource: Missing input",)),
        "createWebhook: Asana answered 400 after 1 attempt: resource: Missing input. Check the arguments of the call.",
    ),
    (
        errors.NotAuthorizedError(operation="getWebhooks", status=401, messages=("Not Authorized",)),
        (
            "getWebhooks: Asana answered 401 after 1 attempt: Not Authorized. Check the access token: it may be "
            "mistyped, revoked, expired, or its app disabled in this workspace."
        ),
    ),
    (
        errors.TokenRefreshError(
            operation="refreshToken",
            status=400,
            code="invalid_grant",
            messages=("The `refresh_token` provided was invalid.",),
        ),
        (
            "refreshToken: Asana answered 400, invalid_grant: The `refresh_token` provided was invalid. Let the user "
            "authorize the app again; for invalid_client, check client_id and client_secret."
        ),
    ),
    (
        errors.TokenRefreshError(operation="refreshToken", status=401, code="invalid_client"),
        (
            "refreshToken: Asana answered 401, invalid_client: no message. Let the user authorize the app again; for "
            "invalid_client, check client_id and client_secret."
        ),
    ),
    (
        errors.PaymentRequiredError(operation="createWebhook", status=402),
        (
            "createWebhook: Asana answered 402 after 1 attempt: no message. The workspace's plan does not include this "
            "feature; upgrade the plan to use it."
        ),
    ),
    (
        errors.ForbiddenError(
            operation="createWebhook", status=403, messages=("You do not have access to this project",)
        ),
        (
            "createWebhook: Asana answered 403 after 1 attempt: You do not have access to this project. Check that the "
            "token's user can see the resource, and that its scopes include webhooks."
        ),
    ),
    (
        errors.DuplicateWebhookError(operation="createWebhook", status=403, messages=("Duplicated webhook",)),
        (
            "createWebhook: Asana answered 403 after 1 attempt: Duplicated webhook. Delete the old webhook first, or "
            "create this one with another target."
        ),
    ),
    (
        errors.WebhookNotVisibleError(
            operation="getWebhook",
            status=403,
            messages=("Forbidden",),
            webhook_gid="12",
            registration="0123456789abcdef",
        ),
        (
            "getWebhook: Asana answered 403 after 1 attempt: Forbidden. Check that the token's user can see the "
            "resource, and that its scopes include webhooks. The store has webhook 12 (registration 0123456789ab), "
            "which is left as it is. Use a token of the app and user that created it, or another label."
        ),
    ),
    (
        errors.TargetRejectedError(operation="createWebhook", status=400, messages=("incorrect status code: 302.",)),
        (
            "createWebhook: Asana answered 400 after 1 attempt: incorrect status code: 302. The URL is redirected, and "
            "Asana follows no redirect: use the URL to which it leads."
        ),
    ),
    (
        errors.NotFoundError(operation="deleteWebhook", status=404, messages=("webhook: Unknown object: 1",)),
        (
            "deleteWebhook: Asana answered 404 after 1 attempt: webhook: Unknown object: 1. Check the gid: the "
            "object may have been deleted, or belong to another app or user."
        ),
    ),
    (
        errors.RateLimitedError(operation="getWebhooks", status=429, attempts=4, retry_after=30.0),
        (
            "getWebhooks: Asana answered 429 after 4 attempts: no message. Asana asked to wait 30 seconds. Send "
            "fewer requests: give the session a limiter."
        ),
    ),
    (
        errors.RateLimitedError(operation="getWebhooks", status=429, retry_after=0.0),
        (
            "getWebhooks: Asana answered 429 after 1 attempt: no message. Asana asked to wait 0 seconds. Send "
            "fewer requests: give the session a limiter."
        ),
    ),
    (
        errors.ServerError(
            operation="getWebhook", status=500, messages=("Server Error",), phrase="6 sad squid", attempts=4
        ),
        (
            "getWebhook: Asana answered 500 after 4 attempts: Server Error (phrase for Asana's support: '6 sad squid')."
            " Retry later; if the error persists, give the phrase to Asana's support."
        ),
    ),
    (
        errors.UnexpectedResponseError(operation="getWebhook", status=200, attempts=2, problem="not JSON @ $"),
        (
            "getWebhook: Asana's answer with status 200 cannot be used (2 attempts): not JSON @ $. Check that the "
            "base URL is Asana's API and that no proxy answers in its place."
        ),
    ),
    (
        errors.PaginationError(reason="expired", offset=OFFSET, items_so_far=200),
        (
            "getWebhooks: the offset of the next page has expired (items so far: 200). Start over, and take less "
            "time between pages."
        ),
    ),
    (
        errors.PaginationError(reason="repeated", offset=OFFSET, items_so_far=7),
        (
            "getWebhooks: the server sent the same offset twice (items so far: 7). Start over; if it persists, tell "
            "Asana's support."
        ),
    ),
    (
        errors.PaginationError(reason="endless", items_so_far=7),
        "getWebhooks: the list does not end (items so far: 7). Start over; if it persists, tell Asana's support.",
    ),
    (
        errors.NetworkError(**FAILED),
        "getWebhook: the connection was reset (3 attempts). Check the connection to Asana.",
    ),
    (
        errors.ConnectionFailedError(**FAILED),
        "getWebhook: the connection was reset (3 attempts). Check DNS, proxy, firewall and TLS between here and Asana.",
    ),
    (
        errors.DeadlineExceededError(**FAILED, timeout=60.0),
        (
            "getWebhook: no answer within 60 seconds: the connection was reset (3 attempts). Give the session a longer "
            "timeout, or retry later."
        ),
    ),
    (
        errors.CreateOutcomeUnknownError(
            operation="createWebhook",
            attempts=1,
            problem="the connection was reset",
            target=TARGET,
            sent_at=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
        ),
        (
            "createWebhook: the request sent at 2026-01-02T03:04:05Z may have created a webhook, but no answer "
            "confirms it: the connection was reset. Before creating again, list the workspace's webhooks and look for "
            "the target."
        ),
    ),
    (
        errors.HandshakeMismatchError(webhook_gid="12", deleted=True),
        (
            "webhook 12: Asana's answer has no secret from a handshake that the receiver got. Something between Asana "
            "and the receiver may be answering handshakes. The webhook has been deleted; retry."
        ),
    ),
    (
        errors.HandshakeMismatchError(webhook_gid="12", deleted=False),
        (
            "webhook 12: Asana's answer has no secret from a handshake that the receiver got. Something between Asana "
            "and the receiver may be answering handshakes. Deleting the webhook failed: delete it, or Asana does so "
            "after 24 hours of failed deliveries."
        ),
    ),
    (
        errors.RegistrationClosedError(webhook_gid="12", deleted=True),
        (
            "webhook 12: its registration was closed or expired before Asana's answer arrived. Another process closed "
            "it, this one was suspended, or the clock was set forward. The webhook has been deleted; retry."
        ),
    ),
    (
        errors.WebhookExistsError(registration="0123456789abcdef", webhook_gid="12"),
        (
            "the store has a live webhook for this resource and label: 12 (registration 0123456789ab). ensure_webhook "
            "brings it to what you want; a second one needs another label."
        ),
    ),
    (
        errors.WebhookExistsError(registration="0123456789abcdef", webhook_gid=None),
        (
            "a webhook for this resource and label is being created (registration 0123456789ab). If its process was "
            "killed, retry when the registration has expired; ensure_webhook waits for that."
        ),
    ),
    (errors.InvalidSignatureError("the signature is wrong"), "the signature is wrong"),
    (errors.PermanentFailure("the task is gone"), "the task is gone"),
    (errors.HandlerExitError("a handler raised SystemExit(2)"), "a handler raised SystemExit(2)"),
    (errors.UnusableHandlerError("this router has no functions"), "this router has no functions"),
    (errors.PayloadError(problem="not JSON, or cut off", malformed=True), "not JSON, or cut off @ $"),
    (errors.PayloadError(problem="Expected `str`", path="$.data.gid"), "Expected `str` @ $.data.gid"),
    (errors.StoreError(problem="odd"), "odd. Check the store."),
    (
        errors.StoreUnavailableError(problem="disk I/O error"),
        "disk I/O error. Check disk space and permissions, and that no other process locks the database.",
    ),
    (
        errors.SecretUnavailableError(problem="a secret is sealed with the key 'a'", advice="Give the store the key."),
        "a secret is sealed with the key 'a'. Give the store the key.",
    ),
    (
        errors.StoreFullError(problem="1000 deliveries wait"),
        "1000 deliveries wait. Retry later, or raise the limits of the store.",
    ),
]


ERRORS = [error for error, _ in SENTENCES]


def tree_of_classes(base: type[Exception] = errors.AsanaError) -> Iterator[tuple[str, str]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield base.__name__, kind.__name__
            yield from tree_of_classes(kind)


def tree_of_docstring(text: str) -> Iterator[tuple[str, str]]:
    """Read lines such as ``│   ├── NotFoundError    404`` as pairs of parent and child."""
    parents: dict[int, str] = {}
    for line in text.splitlines():
        drawn = line.strip().removeprefix("AsanaError")
        name = drawn.lstrip("│├└─ ").split(" ")[0]
        if line.strip() == "AsanaError":
            parents[0] = "AsanaError"
        elif line.strip().startswith(("│", "├", "└")) or (parents and "── " in line):
            # The text above the tree is indented by four columns, and each floor by four more.
            floor = (line.index("── ") + 3 - 4) // 4
            parents[floor] = name
            yield parents[floor - 1], name


class TestTree:
    def test_every_error_is_under_the_base(self) -> None:
        """One except clause for AsanaError catches whatever this package raises on purpose."""
        kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BaseException)]

        assert len(kinds) > 20
        assert all(issubclass(kind, errors.AsanaError) for kind in kinds)

    def test_drawing_is_the_truth(self) -> None:
        """The tree drawn at the top of the file is the tree of the classes."""
        drawn = list(tree_of_docstring(errors.__doc__ or ""))

        assert len(drawn) == len(set(drawn))
        assert set(drawn) == set(tree_of_classes())

    def test_all_is_complete(self) -> None:
        """`__all__` names every error, in order, and nothing else."""
        names = {name for pair in tree_of_classes() for name in pair}

        assert set(errors.__all__) == names
        assert errors.__all__ == sorted(errors.__all__)

    def test_configuration_error_is_a_value_error(self) -> None:
        """Whoever expects Python's own error for a bad argument gets it."""
        with pytest.raises(ValueError, match="no such thing"):
            raise errors.ConfigurationError("no such thing")

    def test_a_refused_duplicate_is_a_refusal(self) -> None:
        """Code that handles 403 also handles the duplicate; a rejected target is told apart from both."""
        assert issubclass(errors.DuplicateWebhookError, errors.ForbiddenError)
        assert issubclass(errors.WebhookNotVisibleError, errors.ForbiddenError)
        assert not issubclass(errors.TargetRejectedError, errors.ForbiddenError)


class TestSentences:
    def test_text(self) -> None:
        """Each error says what happened and what to do about it, in these words."""
        assert [str(error) for error in ERRORS] == [sentence for _, sentence in SENTENCES]

    @pytest.mark.parametrize(
        ("message", "advice"),
        [
            ("responded with an incorrect status code: 404", "Either the URL does not lead to the receiver's path"),
            ("responded with an incorrect status code: 404.", "the receiver uses another store than ensure_webhook"),
            ("responded with an incorrect status code: 404", "or a proxy in between answered"),
            ("responded with an incorrect status code: 401", "A login page or a gateway in front of the receiver"),
            ("responded with an incorrect status code: 403", "put the gateway's key into the query of the URL"),
            ("responded with an incorrect status code: 301", "Asana follows no redirect"),
            ("responded with an incorrect status code: 308", "Asana follows no redirect"),
            ("responded with an incorrect status code: 202", "Asana accepts only 200 and 204"),
            *(
                (f"responded with an incorrect status code: {status}", "the receiver is stopped or not running")
                for status in (405, 500, 502, 503, 504)
            ),
            ("did not respond with the handshake secret.", "a proxy removes the header X-Hook-Secret"),
            *((text, "Open the port before the create call") for text in ("could not be reached", "too slow", "?", "")),
            ("could not be reached", "no private address, no firewall"),
            ("responded with an incorrect status code: 40404", "Open the port before the create call"),
        ],
    )
    def test_advice_on_a_handshake(self, message: str, advice: str) -> None:
        """What to do about a rejected target follows from Asana's words; other words get the advice that fits all."""
        error = errors.TargetRejectedError(operation="createWebhook", status=400, messages=(message,))

        assert advice in error.advice
        assert str(error).endswith(error.advice)

    def test_table_has_every_class(self) -> None:
        """A new error class cannot be forgotten in the table above."""
        assert {type(error).__name__ for error in ERRORS} == set(errors.__all__)

    def test_is_one_line_that_hides_whose_secret_it_is(self) -> None:
        """Neither text, repr nor traceback shows a target's endpoint or an offset (trap 5: the log shows a token)."""
        for error in ERRORS:
            assert len(str(error).splitlines()) == 1
            for text in (str(error), repr(error), "".join(traceback.format_exception(error))):
                assert "very-secret" not in text

    def test_hidden_fields_are_still_there(self) -> None:
        """What the text hides can be read from the field, to resume or to look for the webhook."""
        expired = errors.PaginationError(reason="expired", offset=OFFSET, items_so_far=1)
        unknown = next(error for error, _ in SENTENCES if isinstance(error, errors.CreateOutcomeUnknownError))

        assert expired.offset == OFFSET
        assert unknown.target == TARGET

    def test_repr_names_class_and_fields(self) -> None:
        """A repr shows the class that was raised, not the one that declares the fields."""
        error = errors.ConnectionFailedError(operation="getWebhook", attempts=1, problem="reset")

        assert repr(error) == "ConnectionFailedError(operation='getWebhook', attempts=1, problem='reset')"


class TestTravel:
    def test_pickles_and_copies(self) -> None:
        """An error crosses a process pool with its class, its text and all its fields; a copy is as good."""
        for error in ERRORS:
            pickled = [pickle.loads(pickle.dumps(error, number)) for number in range(2, pickle.HIGHEST_PROTOCOL + 1)]
            for twin in [*pickled, copy.copy(error), copy.deepcopy(error)]:
                assert twin is not error
                assert type(twin) is type(error)
                assert (str(twin), vars(twin)) == (str(error), vars(error))

    def test_notes_travel(self) -> None:
        """Notes added to an error on its way up are not lost in a pickle."""
        error = errors.ConfigurationError("too long")
        error.add_note("in the night job")

        assert pickle.loads(pickle.dumps(error)).__notes__ == ["in the night job"]

    def test_can_be_raised_and_chained(self) -> None:
        """Errors stay writable enough for Python to hang a traceback and a cause on them."""
        cause = KeyError("inner")
        for error in ERRORS:
            with pytest.raises(type(error)) as caught:
                raise error from cause
            assert caught.value.__cause__ is cause
            error.__cause__ = error.__traceback__ = None

    def test_errors_compare_by_identity(self) -> None:
        """Two errors with the same fields are two errors, and can be put into a set."""
        one, two = (errors.PayloadError(problem="odd") for _ in range(2))

        assert one != two
        assert len({one, two}) == 2

    def test_fields_are_keywords(self) -> None:
        """Fields are given by name, so that adding one breaks nobody."""
        for error, _ in SENTENCES:
            kind = type(error)
            if attrs.has(kind):
                assert all(one.kw_only for one in attrs.fields(kind))
