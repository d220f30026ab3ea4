"""What Asana's answers mean, in Asana's own words where they are known."""

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asana_webhooks import errors
from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    Request,
    UpdateWebhookRequest,
)
from asana_webhooks.client.responses import changes_of, error_of, hide, outcome_of, secrets_of, unknown_outcome
from asana_webhooks.client.retry import Outcome
from asana_webhooks.models import Secret, Webhook
from asana_webhooks.wire import ErrorDetail

TOKEN = "2/11/22:0123456789abcdef-canary"
ENDPOINT = "canary-endpoint-0123456789"
TARGET = f"https://example.com/asana/{ENDPOINT}"
READ_ON = "For more information on API status codes and how to handle them, read the docs on errors"
SENT_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

CREATE = CreateWebhookRequest(resource="21", target=TARGET)
GET = GetWebhookRequest(webhook_gid="7")
LIST = GetWebhooksRequest(workspace="1")
UPDATE = UpdateWebhookRequest(webhook_gid="7", filters=())
DELETE = DeleteWebhookRequest(webhook_gid="7")
REQUESTS: list[Request[Any]] = [CREATE, GET, LIST, UPDATE, DELETE]
EACH = pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: one.operation)

DUPLICATED = (
    "Duplicated webhook. You already have an existing webhook for the given resource and target. Delete the old one "
    "before creating another."
)
WRONG_STATUS = "The remote server which is intended to receive the webhook responded with an incorrect status code: 401"
NO_ECHO = "The remote server which is intended to receive the webhook did not respond with the handshake secret."


def refused(status: int, *messages: str, **more: Any) -> bytes:
    return json.dumps({"errors": [{"message": one, "help": READ_ON, **more} for one in messages]}).encode()


def error_for(
    request: Request[Any],
    status: int,
    body: bytes | None = b"",
    *,
    attempts: int = 1,
    retry_after: tuple[str, ...] = (),
) -> errors.AsanaError:
    outcome = outcome_of(request, status, body, retry_after=retry_after)
    return error_of(request, outcome, attempts=attempts, timeout=60.0, time_left=30.0)


class TestOutcome:
    @pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
    def test_good_answer(self, status: int) -> None:
        """Any 2xx with a body that can be used is an answer."""
        outcome = outcome_of(GET, status, b'{"data":{"gid":"7"}}')

        assert (outcome.kind, outcome.status, outcome.answer) == ("answered", status, Webhook(gid="7"))

    def test_created_with_its_secret(self) -> None:
        """The 201's secret is part of the answer (trap 1), and not of the outcome's repr (trap 5)."""
        outcome = outcome_of(CREATE, 201, b'{"data":{"gid":"7"},"X-Hook-Secret":"s3cret"}')

        assert outcome.answer.secret == Secret("s3cret")
        assert "s3cret" not in repr(outcome)

    @pytest.mark.parametrize("body", [b"", b"{}", b'{"data":{}}', b"gone"])
    def test_deleted(self, body: bytes) -> None:
        """A 2xx to a delete is an answer whatever it holds."""
        assert outcome_of(DELETE, 200, body).kind == "answered"

    @pytest.mark.parametrize(
        ("body", "malformed", "problem"),
        [
            (b"", True, "not JSON, or cut off @ $"),
            (b'{"data":{"gid":"7"', True, "not JSON, or cut off @ $"),
            (b"<html><body>Sign in to the hotel's network</body></html>", True, "not JSON, or cut off @ $"),
            (b'{"data":{"gid":"\xff"}}', True, "not UTF-8 @ $"),
            pytest.param(b"[" * 200_000, True, "nested too deeply @ $", id="deep"),
            (b"{}", False, "Object missing required field `data` @ $"),
            (b'{"data":{"gid":7}}', False, "Expected `str`, got `int` @ $.data.gid"),
        ],
    )
    def test_garbled(self, body: bytes, malformed: bool, problem: str) -> None:
        """A 2xx with another body is told apart: no JSON may be mended by asking again, a wrong type may not."""
        outcome = outcome_of(GET, 200, body)

        assert (outcome.kind, outcome.status, outcome.malformed, outcome.problem) == (
            "garbled",
            200,
            malformed,
            problem,
        )

    @EACH
    def test_cut_off(self, request_: Request[Any]) -> None:
        """A 2xx whose body was cut off is garbled for every operation."""
        outcome = outcome_of(request_, 200, None)

        assert (outcome.kind, outcome.malformed) == ("garbled", True)
        assert outcome.problem == "its body was cut off or too long"

    @pytest.mark.parametrize("status", [100, 199, 300, 301, 304, 400, 401, 404, 429, 499, 500, 503, 599, 700])
    def test_refused(self, status: int) -> None:
        """Everything outside 2xx is a refusal with Asana's words."""
        outcome = outcome_of(GET, status, refused(status, "one", "two"))

        assert (outcome.kind, outcome.status, outcome.problem) == ("refused", status, f"Asana answered {status}")
        assert outcome.details == (
            ErrorDetail(message="one", help=READ_ON),
            ErrorDetail(message="two", help=READ_ON),
        )

    @pytest.mark.parametrize(
        "body",
        [
            None,
            b"",
            b"<html><head><title>502 Bad Gateway</title></head></html>",
            b"\xff\xfe",
            b"[]",
            b'"no"',
            b'{"errors":"no"}',
            b'{"errors":[5]}',
            b'{"errors":[{"message":5}]}',
            pytest.param(b"[" * 200_000, id="deep"),
        ],
    )
    def test_refused_in_other_words(self, body: bytes | None) -> None:
        """A proxy's page in place of Asana's envelope leaves the status to speak."""
        outcome = outcome_of(GET, 502, body)

        assert (outcome.kind, outcome.status, outcome.details) == ("refused", 502, ())

    def test_retry_after(self) -> None:
        """Retry-After is read against the answer's own Date, on any refusal."""
        assert outcome_of(GET, 429, b"", retry_after=("30",)).retry_after == 30.0
        assert outcome_of(GET, 503, b"", retry_after=("30", "30")).retry_after is None
        assert outcome_of(GET, 429, b"").retry_after is None
        dated = outcome_of(
            GET,
            429,
            b"",
            retry_after=("Fri, 02 Jan 2026 03:04:35 GMT",),
            date="Fri, 02 Jan 2026 03:04:05 GMT",
        )
        assert dated.retry_after == 30.0

    @given(st.integers(100, 999), st.none() | st.binary(max_size=60), st.sampled_from(REQUESTS))
    def test_any_answer(self, status: int, body: bytes | None, request: Request[Any]) -> None:
        """No status and no bytes make it raise, and every outcome but an answer has an error to its name."""
        outcome = hide(outcome_of(request, status, body), (TOKEN,))

        if outcome.kind != "answered":
            error = error_of(request, outcome, attempts=1, timeout=60.0, time_left=1.0)
            assert isinstance(error, errors.ResponseError)
            assert error.status == status


BY_STATUS: dict[int, type[errors.ResponseError]] = {
    400: errors.BadRequestError,
    401: errors.NotAuthorizedError,
    402: errors.PaymentRequiredError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    429: errors.RateLimitedError,
    **dict.fromkeys((405, 409, 410, 412, 424, 451, 499), errors.ResponseError),
    **dict.fromkeys((500, 501, 502, 503, 504, 599), errors.ServerError),
    **dict.fromkeys((100, 101, 199, 301, 302, 303, 304, 307, 308, 399, 600, 999), errors.UnexpectedResponseError),
}


class TestErrorOfAStatus:
    @EACH
    def test_class(self, request_: Request[Any]) -> None:
        """Each status has its class, for every operation."""
        assert {status: type(error_for(request_, status)) for status in BY_STATUS} == BY_STATUS

    def test_fields(self) -> None:
        """Everything Asana said is on the error."""
        body = refused(500, "Server Error", "", "again", phrase="6 sad squid snuggle softly")

        error = error_for(GET, 500, body, attempts=4, retry_after=("7",))

        assert isinstance(error, errors.ServerError)
        assert error.operation == "getWebhook"
        assert error.status == 500
        assert error.messages == ("Server Error", "again")
        assert error.help == READ_ON
        assert error.phrase == "6 sad squid snuggle softly"
        assert error.attempts == 4
        assert error.retry_after == 7.0

    def test_first_phrase_and_help_win(self) -> None:
        """Of several entries the first that has a phrase or a help gives it."""
        body = b'{"errors":[{"message":"a"},{"phrase":"p1"},{"phrase":"p2","help":"h"}]}'

        error = error_for(GET, 500, body)

        assert isinstance(error, errors.ServerError)
        assert (error.messages, error.phrase, error.help) == (("a",), "p1", "h")

    def test_silent(self) -> None:
        """An error page that is none of Asana's gives an error without messages."""
        error = error_for(GET, 503, b"<html>down</html>")

        assert isinstance(error, errors.ServerError)
        assert (error.messages, error.help, error.phrase, error.retry_after) == ((), None, None, None)
        assert "down" not in str(error)

    @EACH
    def test_redirect(self, request_: Request[Any]) -> None:
        """A redirect is named as what it is, and where it points is not shown."""
        error = error_for(request_, 307, b"https://canary.example", attempts=2)

        assert isinstance(error, errors.UnexpectedResponseError)
        assert error.problem == "it is a redirect; redirects are not followed"
        assert (error.status, error.attempts, error.operation) == (307, 2, request_.operation)
        assert "canary" not in repr(error)

    def test_garbled(self) -> None:
        """A 2xx that cannot be used says where in the JSON it is wrong."""
        error = error_for(GET, 200, b'{"data":{"gid":7}}', attempts=3)

        assert isinstance(error, errors.UnexpectedResponseError)
        assert (error.problem, error.status, error.attempts) == ("Expected `str`, got `int` @ $.data.gid", 200, 3)

    def test_messages_are_bounded(self) -> None:
        """An answer with thousands of errors does not flood a log."""
        error = error_for(GET, 400, refused(400, *(f"no {number}" for number in range(5000))))

        assert isinstance(error, errors.BadRequestError)
        assert error.messages == tuple(f"no {number}" for number in range(10))


class TestErrorOfCreate:
    @pytest.mark.parametrize(
        ("status", "message", "kind"),
        [
            (403, DUPLICATED, errors.DuplicateWebhookError),
            (403, DUPLICATED.upper(), errors.DuplicateWebhookError),
            (400, WRONG_STATUS, errors.TargetRejectedError),
            (400, NO_ECHO, errors.TargetRejectedError),
            (400, NO_ECHO.rstrip("."), errors.TargetRejectedError),
            (403, NO_ECHO, errors.TargetRejectedError),
            (403, "Invalid hostname: localhost", errors.TargetRejectedError),
            (400, "target: Missing input", errors.TargetRejectedError),
            (403, "You do not have access to this project.", errors.ForbiddenError),
            (403, "You do not have access to this task.", errors.ForbiddenError),
            (400, "resource: Not a recognized ID: 12", errors.BadRequestError),
            (400, "You should specify one of resource", errors.BadRequestError),
            (400, "filters: Missing input", errors.BadRequestError),
            (400, "Could not parse request data, invalid JSON", errors.BadRequestError),
            (404, "resource: Unknown object: 12", errors.NotFoundError),
            (401, "Not Authorized", errors.NotAuthorizedError),
            (401, WRONG_STATUS, errors.NotAuthorizedError),
            (402, WRONG_STATUS, errors.PaymentRequiredError),
            (404, WRONG_STATUS, errors.NotFoundError),
            (429, "You've made too many requests and hit a rate limit.", errors.RateLimitedError),
            (500, WRONG_STATUS, errors.ServerError),
            (400, DUPLICATED, errors.TargetRejectedError),
        ],
    )
    def test_asanas_words(self, status: int, message: str, kind: type[errors.AsanaError]) -> None:
        """403 means four things; Asana's real texts tell them apart."""
        assert type(error_for(CREATE, status, refused(status, message))) is kind

    def test_code_and_sync_token(self) -> None:
        """An error keeps the code of the first entry that has one, and a 412 its sync token; both may be any JSON."""
        error: Any = error_for(GET, 412, b'{"errors":[{"message":"a"},{"error":"too_old"}],"sync":"0a1b:2"}')
        assert (error.messages, error.code, error.sync) == (("a",), "too_old", "0a1b:2")
        assert "0a1b:2" not in repr(error)

        odd: Any = error_for(GET, 400, b'{"errors":[{"message":"a","error":{"b":1}}],"sync":[3]}')
        assert (odd.messages, odd.code, odd.sync) == (("a",), None, None)

    def test_another_base_url(self) -> None:
        """A 404 for the path, not for an object, names a base URL without Asana's path."""
        for body, base_url, is_named in (
            (refused(404, "No matching route for request"), "https://app.asana.com", True),
            (b"<html>Not found</html>", "https://app.asana.com/api", True),
            (refused(404, "No matching route for request"), "https://app.asana.com/api/1.0", False),
            (refused(404, "webhook: Not a recognized ID: 7"), "https://gateway.example/asana", False),
        ):
            outcome = outcome_of(GET, 404, body)
            error = error_of(GET, outcome, attempts=1, timeout=60.0, time_left=30.0, base_url=base_url)
            assert (f"{base_url} lacks /api/1.0" in str(error)) is is_named, base_url

    def test_words_in_a_later_entry(self) -> None:
        """The telling words count wherever they stand in the answer."""
        assert isinstance(error_for(CREATE, 403, refused(403, "No.", DUPLICATED)), errors.DuplicateWebhookError)

    def test_only_create(self) -> None:
        """The same words in answer to anything else mean nothing special."""
        for request in (GET, LIST, UPDATE, DELETE):
            for message in (DUPLICATED, WRONG_STATUS, NO_ECHO):
                assert type(error_for(request, 403, refused(403, message))) is errors.ForbiddenError

    @pytest.mark.parametrize(
        ("status", "message", "kind"),
        [(403, DUPLICATED, errors.DuplicateWebhookError), (400, WRONG_STATUS, errors.TargetRejectedError)],
    )
    def test_hiding_the_target_hides_no_meaning(self, status: int, message: str, kind: type[errors.AsanaError]) -> None:
        """A target such as https://example.com/webhook, cut out of the words, does not hide what they say."""
        for endpoint in ("webhook", "duplicated", "remote", "server", "target", "e"):
            target = f"https://example.com/{endpoint}"
            request = CreateWebhookRequest(resource="21", target=target)
            outcome = hide(outcome_of(request, status, refused(status, message)), (TOKEN, target, endpoint))

            assert type(error_of(request, outcome, attempts=1, timeout=60.0, time_left=30.0)) is kind


class TestErrorOfTheNetwork:
    @EACH
    def test_deadline_or_connection(self, request_: Request[Any]) -> None:
        """With no time left it is the deadline's error, else the connection's; both say what went wrong last."""
        problem = "the connection was reset"
        for time_left in (30.0, 0.001, 0.0, -0.5):
            wanted = errors.ConnectionFailedError if time_left > 0 else errors.DeadlineExceededError
            for outcome in (Outcome(kind="lost", problem=problem), Outcome(kind="not_sent", problem=problem)):
                error: Any = error_of(request_, outcome, attempts=3, timeout=60.0, time_left=time_left)

                assert type(error) is wanted
                assert (error.operation, error.attempts, error.problem) == (request_.operation, 3, problem)

    def test_deadline_names_the_timeout(self) -> None:
        """The deadline's error tells how long the call was allowed to take."""
        error = error_of(GET, Outcome(kind="lost"), attempts=1, timeout=2.5, time_left=0.0)

        assert isinstance(error, errors.DeadlineExceededError)
        assert error.timeout == 2.5

    def test_an_answer_is_not_a_deadline(self) -> None:
        """What Asana said last matters more than that the time has run out."""
        outcome = outcome_of(GET, 429, b"", retry_after=("3600",))

        error = error_of(GET, outcome, attempts=1, timeout=60.0, time_left=0.0)

        assert isinstance(error, errors.RateLimitedError)
        assert error.retry_after == 3600.0


class TestUnknown:
    def test_without_an_answer(self) -> None:
        """An unknown creation holds what is needed to look for it, and does not show the target."""
        outcome = Outcome(kind="lost", problem="the connection was reset")

        error = unknown_outcome(CREATE, outcome, attempts=2, sent_at=SENT_AT)

        assert (error.operation, error.attempts, error.problem) == ("createWebhook", 2, "the connection was reset")
        assert (error.target, error.sent_at) == (TARGET, SENT_AT)
        assert "canary" not in repr(error) + str(error)

    def test_with_asanas_words(self) -> None:
        """A 500 adds what Asana said."""
        outcome = outcome_of(CREATE, 500, refused(500, "Server Error", "", "sorry"))

        assert (
            unknown_outcome(CREATE, outcome, attempts=1, sent_at=SENT_AT).problem
            == "Asana answered 500: Server Error; sorry"
        )


def hidden(message: str, *secrets: str) -> str:
    (detail,) = hide(outcome_of(GET, 400, refused(400, message)), secrets).details
    assert detail.message is not None
    return detail.message


class TestHide:
    def test_secrets_are_cut_out(self) -> None:
        """Token, target and endpoint are cut out of whatever Asana repeats of them (trap 5)."""
        text = f"bad token {TOKEN}; cannot reach {TARGET}?a=1 ({ENDPOINT}, {ENDPOINT})"

        assert hidden(text, TOKEN, TARGET, ENDPOINT) == "bad token ***; cannot reach ***?a=1 (***, ***)"

    @pytest.mark.parametrize("request_", [GET, CREATE], ids=lambda one: one.operation)
    def test_as_they_look_in_urls(self, request_: Request[Any]) -> None:
        """A front end that quotes them percent-encoded shows them no more than one that does not."""
        quoted = " ".join(quote(one, safe="") for one in (TOKEN, CREATE.target))
        text = f"{TOKEN} {quoted}" if request_ is CREATE else f"{TOKEN} {quote(TOKEN, safe='')}"

        assert set(hidden(text, *secrets_of(request_, TOKEN)).split()) == {"***"}

    def test_the_query_of_a_target(self) -> None:
        """A gateway's key is cut out with the target, alone, with its name, encoded and decoded; short values stay."""
        request = CreateWebhookRequest(resource="1", target=f"{TARGET}?code=k%2Fey%3D%3D&v=2")
        text = f"{request.target}; code=k%2Fey%3D%3D&v=2; k%2Fey%3D%3D; k/ey==; v=2"

        assert hidden(text, *secrets_of(request, TOKEN)) == "***; ***; ***; ***; v=2"

    def test_a_query_that_is_written_anew(self) -> None:
        """A key is cut out in other percent-encodings, with spaces for plus signs, in another order, without a name."""
        request = CreateWebhookRequest(resource="1", target=f"{TARGET}?code=k%2fey%3d&pass=A+b%20c&bare-key&empty-key=")
        text = "k%2Fey%3D; k/ey=; A b c; A%20b%20c; A%2Bb%20c; pass=a+B%20c; bare-key&pass; empty-key="

        assert hidden(text, *secrets_of(request, TOKEN)) == "***; ***; ***; ***; ***; pass=***; ***&pass; ***"

    def test_in_every_part(self) -> None:
        """Help and phrase are cleaned like the message, in every entry."""
        body = json.dumps({"errors": [{"message": TOKEN}, {"help": TOKEN}, {"phrase": TOKEN}]}).encode()

        details = hide(outcome_of(GET, 500, body), (TOKEN,)).details

        assert details == (ErrorDetail(message="***"), ErrorDetail(help="***"), ErrorDetail(phrase="***"))

    def test_the_rest_stays(self) -> None:
        """Only the words change."""
        outcome = outcome_of(GET, 429, refused(429, "slow down"), retry_after=("5",))

        assert hide(outcome, (TOKEN,)) == outcome

    @pytest.mark.parametrize("kind", ["answered", "lost", "not_sent", "garbled"])
    def test_nothing_to_hide(self, kind: Any) -> None:
        """An outcome without words is returned as it is."""
        outcome = Outcome(kind=kind)

        assert hide(outcome, (TOKEN,)) is outcome

    def test_long_texts_are_cut(self) -> None:
        """A message is 500 characters at the most, and a secret at the cut is gone as a whole."""
        assert hidden("x" * 2_000) == "x" * 500
        assert "canary" not in hidden("x" * 480 + TOKEN, TOKEN)

    def test_other_languages_stay(self) -> None:
        """Letters, signs and faces of any language stay as they are."""
        assert hidden("Größe 日本語 \U0001f600 עברית") == "Größe 日本語 \U0001f600 עברית"

    def test_what_cannot_be_printed(self) -> None:
        """Control characters and line separators would break a record's line; direction marks reorder what one sees."""
        invisible = [0x2028, 0x2029, 0x200E, 0x202E, 0x2066, 0x2069, 0xFEFF, 0xE0041]
        for code in [*range(0x20), *range(0x7F, 0xA0), *invisible]:
            assert hidden(f"a{chr(code)}b") == "a b"

    @given(st.text(st.characters(codec="utf-8")), st.sampled_from([400, 403, 500]))
    @example("two\u2028lines", 400)
    def test_any_message(self, message: str, status: int) -> None:
        """Whatever Asana says, its error is one short line without control characters."""
        outcome = hide(outcome_of(GET, status, refused(status, message)), (TOKEN,))
        text = str(error_of(GET, outcome, attempts=1, timeout=1.0, time_left=1.0))

        assert len(text) < 1_000
        assert not any(unicodedata.category(letter) == "Cc" for letter in text)
        assert len(text.splitlines()) == 1

    @given(st.text(max_size=5), st.text(max_size=5), st.sampled_from([TOKEN, TARGET, ENDPOINT]))
    def test_wherever_it_stands(self, before: str, after: str, secret: str) -> None:
        """No secret is left in an error, whatever stands around it."""
        text = (before + secret + after).encode("utf-8", "replace").decode()
        outcome = hide(outcome_of(CREATE, 403, refused(403, text)), (TOKEN, TARGET, ENDPOINT))
        error = error_of(CREATE, outcome, attempts=1, timeout=1.0, time_left=1.0)
        unknown = unknown_outcome(CREATE, outcome, attempts=1, sent_at=SENT_AT)

        for shown in (str(error), repr(error), str(unknown), repr(unknown)):
            assert "canary" not in shown


class TestChanges:
    def test_as_documented(self) -> None:
        """Several headers, several changes in one, any case and spaces; each by its name."""
        documented = "name=string_ids;info=https://asa.na/api/string-ids;affected=true"
        values = [f"{documented}, Name = b ; Affected = true ", "name=c=d;affected=true"]

        assert changes_of(values) == {"string_ids": "https://asa.na/api/string-ids", "b": "", "c=d": ""}

    def test_what_says_nothing(self) -> None:
        """What has no name, or does not affect the request, is passed over."""
        assert changes_of([]) == {}
        assert changes_of(["", ",,;,=,", "name=a", "name=a;affected=false", "name=a;affected=1"]) == {}
        assert (
            changes_of(["affected=true;info=x", "name=;affected=true", "name;affected=true", "=a;affected=true"]) == {}
        )

    @given(st.lists(st.text() | st.text("nameinfoaffectedtrue=;, \n"), max_size=4))
    @example(["name=a\r\nERROR b\x1b[31m\u202e;info=\x00x" + "y" * 5000 + ";affected=true"])
    def test_any_text(self, values: list[str]) -> None:
        """Nothing can forge a line of a log or colour a terminal, and nothing fills it."""
        for name, info in changes_of(values).items():
            assert name
            assert f"{name}{info}".isprintable()
            assert len(f"{name}{info}") <= 400
