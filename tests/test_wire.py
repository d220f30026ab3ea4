"""JSON of Asana's to models and back: the documented shapes, and whatever else may come."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asana_webhooks import wire
from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    Request,
    UpdateWebhookRequest,
)
from asana_webhooks.errors import PayloadError
from asana_webhooks.models import (
    Change,
    CreatedWebhook,
    Event,
    ParsedDelivery,
    ResourceRef,
    Secret,
    Webhook,
    WebhookFilter,
)

Decoder = Callable[[bytes], object]

DECODERS: list[Decoder] = [
    wire.decode_delivery,
    wire.decode_resource,
    wire.decode_webhook,
    wire.decode_webhook_list,
    wire.decode_resource_list,
    wire.decode_created_webhook,
    wire.decode_error,
    wire.decode_token_answer,
    wire.decode_token_refusal,
]

USER = '"user":{"gid":"11","resource_type":"user"},"created_at":"2026-01-02T03:04:05.678Z",'
TASK = '"resource":{"gid":"21","resource_type":"task","resource_subtype":"default_task"},'
AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
TASK_REF = ResourceRef(gid="21", resource_type="task", resource_subtype="default_task")
USER_REF = ResourceRef(gid="11", resource_type="user")
OTHER_REF = ResourceRef(gid="12", resource_type="user")


def by_user(action: str = "changed", resource: ResourceRef = TASK_REF, **more: Any) -> Event:
    return Event(user=USER_REF, created_at=AT, action=action, resource=resource, **more)


# The shapes of real deliveries, with other ids.
SHAPES: dict[str, tuple[str, Event]] = {
    "completed": (
        "{" + USER + '"action":"changed",' + TASK + '"parent":null,"change":{"field":"completed","action":"changed"}}',
        by_user(change=Change(field="completed", action="changed")),
    ),
    "assignee": (
        "{" + USER + '"action":"changed",' + TASK + '"parent":null,"change":{"field":"assignee","action":"changed",'
        '"new_value":{"gid":"12","resource_type":"user"}}}',
        by_user(change=Change(field="assignee", action="changed", new_value=OTHER_REF)),
    ),
    "follower added": (
        "{" + USER + '"action":"changed",' + TASK + '"parent":null,"change":{"field":"followers","action":"added",'
        '"added_value":{"gid":"12","resource_type":"user"}}}',
        by_user(change=Change(field="followers", action="added", added_value=OTHER_REF)),
    ),
    "follower removed": (
        "{" + USER + '"action":"changed",' + TASK + '"parent":null,"change":{"field":"followers","action":"removed",'
        '"removed_value":{"gid":"12","resource_type":"user"}}}',
        by_user(change=Change(field="followers", action="removed", removed_value=OTHER_REF)),
    ),
    "comment": (
        "{" + USER + '"action":"added","resource":{"gid":"31","resource_type":"story",'
        '"resource_subtype":"comment_added"},"parent":{"gid":"21","resource_type":"task",'
        '"resource_subtype":"default_task"}}',
        by_user(
            "added",
            ResourceRef(gid="31", resource_type="story", resource_subtype="comment_added"),
            parent=TASK_REF,
        ),
    ),
    "added to a section": (
        "{" + USER + '"action":"added",' + TASK + '"parent":{"gid":"41","resource_type":"section"}}',
        by_user("added", parent=ResourceRef(gid="41", resource_type="section")),
    ),
    "deleted by the system": (
        '{"user":null,"created_at":"2026-01-02T03:04:05.678Z","action":"deleted",' + TASK + '"parent":null}',
        Event(user=None, created_at=AT, action="deleted", resource=TASK_REF),
    ),
    "custom field with an option": (
        "{" + USER + '"action":"changed",' + TASK + '"parent":null,"change":{"field":"custom_fields",'
        '"action":"changed","new_value":{"gid":"51","resource_type":"custom_field","resource_subtype":"enum",'
        '"enum_value":{"gid":"61","resource_type":"enum_option"}}}}',
        by_user(
            change=Change(
                field="custom_fields",
                action="changed",
                new_value=ResourceRef(
                    gid="51",
                    resource_type="custom_field",
                    resource_subtype="enum",
                    other_members={"enum_value": {"gid": "61", "resource_type": "enum_option"}},
                ),
            ),
        ),
    ),
    "unassigned, of 2022": (
        "{" + USER + '"action":"changed",' + TASK + '"change":{"field":"assignee","new_value":null}}',
        by_user(change=Change(field="assignee")),
    ),
    "changed without a change, of 2019": (
        "{" + USER + '"action":"changed","type":"task",' + TASK + '"parent":null}',
        by_user(type="task"),
    ),
    "as the specification draws it": (
        "{" + USER + '"action":"undeleted","resource":{"gid":"21","resource_type":"task","name":"Buy milk"}}',
        by_user("undeleted", ResourceRef(gid="21", resource_type="task", name="Buy milk")),
    ),
    "words and members nobody knows": (
        (
            '{"action":"teleported","resource":{"gid":"9","resource_type":"wormhole","mass":1e3},"zz":[{"a":null}],'
            '"created_at":"2026-01-02T03:04:05.678Z","change":{"field":"place","action":"swapped","by":{"gid":1}}}'
        ),
        Event(
            action="teleported",
            resource=ResourceRef(gid="9", resource_type="wormhole"),
            created_at=AT,
            change=Change(field="place", action="swapped"),
        ),
    ),
}


def refusal(decode: Decoder, body: bytes) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        decode(body)
    return caught.value


def events_of(*events: str) -> bytes:
    return ('{"events":[' + ",".join(events) + "]}").encode()


class TestEvents:
    def test_shapes(self) -> None:
        """Each shape ever seen is read in full, in Asana's order (trap 24: an unknown action or null user crashes)."""
        for text, event in SHAPES.values():
            assert wire.decode_delivery(events_of(text)) == ParsedDelivery(events=(event,))
        texts, events = zip(*SHAPES.values(), strict=True)
        assert wire.decode_delivery(events_of(*texts)) == ParsedDelivery(events=events)

    def test_heartbeat(self) -> None:
        """A heartbeat has no events, and members beside them do not matter."""
        assert wire.decode_delivery(b'{"events":[]}') == ParsedDelivery(events=())
        assert wire.decode_delivery(b' {"events" : [ ], "unreadable": 1}\n') == ParsedDelivery(events=())

    def test_values_that_are_no_resources(self) -> None:
        """A value of a change that is not an object with a gid is kept as parsed JSON."""
        values: list[Any] = [
            "High",
            3,
            2**70,
            0.5,
            False,
            "",
            [],
            [{"gid": "5"}],
            {},
            {"date_value": {"date": "2026-12-01"}},
        ]
        values += [{"gid": 5}, {"gid": None}, {"gid": "5", "resource_type": 5}, {"gid": "5", "name": []}]
        for value in values:
            for name in ("new_value", "added_value", "removed_value"):
                event = '{"gid":"21"},"change":' + json.dumps({"field": "x", name: value}) + "}"
                body = events_of('{"created_at":"2026-01-02T03:04:05Z","action":"changed","resource":' + event)
                (read,) = wire.decode_delivery(body).events
                assert read.change == attrs.evolve(Change(field="x"), **{name: value})

    def test_not_a_delivery(self) -> None:
        """JSON that is no delivery says where it is wrong; it is mistyped, not malformed."""
        for body, problem in {
            b"{}": "Object missing required field `events` @ $",
            b'{"Events":[]}': "Object missing required field `events` @ $",
            b'{"events":null}': "Expected `array`, got `null` @ $.events",
            b'{"events":{}}': "Expected `array`, got `object` @ $.events",
            b'{"events":"[]"}': "Expected `array`, got `str` @ $.events",
            b"[]": "Expected `object`, got `array` @ $",
            b'[{"events":[]}]': "Expected `object`, got `array` @ $",
            b"null": "Expected `object`, got `null` @ $",
            b'"events"': "Expected `object`, got `str` @ $",
            b"true": "Expected `object`, got `bool` @ $",
        }.items():
            error = refusal(wire.decode_delivery, body)
            assert (str(error), error.malformed) == (problem, False)

    def test_one_unreadable_event_does_not_cost_its_neighbours(self) -> None:
        """A wrong type is never converted; the event is kept as it came, with the place of the error, and the others
        are read, those before it and after it.
        """
        text, event = SHAPES["custom field with an option"]
        for old, new, problem in [
            (text, "null", "Expected `object`, got `null` @ $.events[1]"),
            (text, '"1"', "Expected `object`, got `str` @ $.events[1]"),
            (text, "[]", "Expected `object`, got `array` @ $.events[1]"),
            (text, "{}", "Object missing required field `action` @ $.events[1]"),
            (TASK, '"resource":1337,', "Expected `object`, got `int` @ $.events[1].resource"),  # as before 2020
            (TASK, "", "Object missing required field `resource` @ $.events[1]"),
            ('"gid":"21"', '"gid":21', "Expected `str`, got `int` @ $.events[1].resource.gid"),
            ('"gid":"21",', "", "Object missing required field `gid` @ $.events[1].resource"),
            ('"gid":"11"', '"gid":true', "Expected `str`, got `bool` @ $.events[1].user.gid"),
            ('"user":{"gid":"11",', '"user":{', "Object missing required field `gid` @ $.events[1].user"),
            ('"action":"changed","r', '"action":null,"r', "Expected `str`, got `null` @ $.events[1].action"),
            ('"field":"custom_fields"', '"field":[]', "Expected `str`, got `array` @ $.events[1].change.field"),
            ('"field":"custom_fields",', "", "Object missing required field `field` @ $.events[1].change"),
            ('"parent":null', '"parent":[]', "Expected `object | null`, got `array` @ $.events[1].parent"),
            ("2026-01-02T03:04:05.678Z", "yesterday", "Invalid RFC3339 encoded datetime @ $.events[1].created_at"),
            ('"2026-01-02T03:04:05.678Z"', "null", "Expected `datetime`, got `null` @ $.events[1].created_at"),
            ('"2026-01-02T03:04:05.678Z"', "17", "Expected `datetime`, got `int` @ $.events[1].created_at"),
        ]:
            assert old in text
            odd = text.replace(old, new)
            for count in (1, 2):
                parsed = wire.decode_delivery(events_of(text, *[odd] * count, text))
                assert parsed.events == (event, event)
                raws = [json.loads(odd)] * count
                assert [(one.index, one.raw) for one in parsed.unreadable] == list(enumerate(raws, 1))
                assert parsed.unreadable[0].problem == problem
            assert wire.decode_delivery(events_of(odd)).events == ()
            assert parsed.unreadable[1].problem == problem.replace("[1]", "[2]")


# Real answers of 2024, with other ids.
CREATED_2024A = (
    b'{"data":{"gid":"1201","resource_type":"webhook","active":true,"is_workspace_webhook":false,'
    b'"resource":{"gid":"21","resource_type":"project","name":"Launch"},'
    b'"target":"https://example.com/asana/7654?x=1","created_at":"2024-02-03T04:05:06.000Z",'
    b'"last_success_at":"2024-02-03T04:05:06.512Z","last_failure_at":null,"last_failure_content":"",'
    b'"filters":[{"resource_type":"task","resource_subtype":null,"action":"changed","fields":null}]},'
    b'"X-Hook-Secret":"b537207f20cbfa02357cf448134da559"}'
)
CREATED_2024B = (
    b'{"X-Hook-Secret":"c8ba4ddd7a4ebea8","data":{"gid":"1202","active":true,"resource":{"gid":"22",'
    b'"resource_type":"project","name":"Launch"},"target":"https://example.com/","resource_type":"webhook",'
    b'"created_at":"2024-09-03T04:05:06.789Z","last_failure_at":null,"last_failure_content":"",'
    b'"last_success_at":"2024-09-03T04:05:07.456Z","delivery_retry_count":0,"next_attempt_after":null,'
    b'"failure_deletion_timestamp":null,"filters":[],"is_workspace_webhook":false}}'
)


class TestCreated:
    def test_real_answer_of_early_2024(self) -> None:
        """The 201 of February 2024, without retry count, with a stored filter's nulls (trap 1: secret dropped)."""
        created = wire.decode_created_webhook(CREATED_2024A)

        assert created == CreatedWebhook(
            webhook=Webhook(
                gid="1201",
                resource_type="webhook",
                active=True,
                is_workspace_webhook=False,
                resource=ResourceRef(gid="21", resource_type="project", name="Launch"),
                target="https://example.com/asana/7654?x=1",
                created_at=datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC),
                last_success_at=datetime(2024, 2, 3, 4, 5, 6, 512000, tzinfo=UTC),
                last_failure_content="",
                filters=(WebhookFilter(resource_type="task", action="changed"),),
            ),
            secret=Secret("b537207f20cbfa02357cf448134da559"),
        )

    def test_real_answer_of_late_2024(self) -> None:
        """The 201 of September 2024, with retry count and no filters, members in another order."""
        created = wire.decode_created_webhook(CREATED_2024B)

        assert created.secret == Secret("c8ba4ddd7a4ebea8")
        assert created.webhook.delivery_retry_count == 0
        assert created.webhook.filters == ()
        assert created.webhook.failure_deletion_timestamp is None
        assert created.webhook.created_at == datetime(2024, 9, 3, 4, 5, 6, 789000, tzinfo=UTC)

    def test_reference_example(self) -> None:
        """The example of Asana's reference, inactive and without times, is read too."""
        body = b'{"data":{"gid":"1","active":false,"last_success_at":null,"filters":null},"X-Hook-Secret":"s"}'

        created = wire.decode_created_webhook(body)

        assert created == CreatedWebhook(webhook=Webhook(gid="1", active=False), secret=Secret("s"))

    def test_no_secret(self) -> None:
        """A 201 without a secret, or with an empty one, has none: an empty key would verify anything (trap 10)."""
        for member in ["", ',"X-Hook-Secret":null', ',"X-Hook-Secret":""', ',"x-hook-secret":"s"']:
            assert wire.decode_created_webhook(f'{{"data":{{"gid":"1"}}{member}}}'.encode()).secret is None

    def test_secret_of_a_wrong_type(self) -> None:
        """A secret that is no text is an error that does not quote it."""
        for secret in ["5", "true", "[]", '["s"]', "{}", "0", "false"]:
            body = f'{{"data":{{"gid":"1"}},"X-Hook-Secret":{secret}}}'.encode()
            error = refusal(wire.decode_created_webhook, body)
            assert (str(error), error.malformed) == ("Expected `str` @ $.X-Hook-Secret", False)


class TestAnswers:
    def test_webhook(self) -> None:
        """A single record is read from its envelope."""
        assert wire.decode_webhook(b'{"data":{"gid":"1","target":"https://e.com/?a=%20b"}}') == Webhook(
            gid="1", target="https://e.com/?a=%20b"
        )

    def test_wrong_types_name_the_place(self) -> None:
        """Types are strict: "false" is not False, 0.5 is no count, one text is no list of texts."""
        for body, path in {
            b'{"data":null}': "$.data",
            b'{"data":[]}': "$.data",
            b'{"data":{}}': "$.data",
            b'{"data":{"gid":1}}': "$.data.gid",
            b'{"data":{"gid":"1","active":"false"}}': "$.data.active",
            b'{"data":{"gid":"1","delivery_retry_count":"0"}}': "$.data.delivery_retry_count",
            b'{"data":{"gid":"1","delivery_retry_count":0.5}}': "$.data.delivery_retry_count",
            b'{"data":{"gid":"1","filters":{}}}': "$.data.filters",
            b'{"data":{"gid":"1","filters":[{"fields":"due_on"}]}}': "$.data.filters[0].fields",
            b'{"data":{"gid":"1","filters":[{"fields":[1]}]}}': "$.data.filters[0].fields[0]",
            b'{"data":{"gid":"1","resource":"21"}}': "$.data.resource",
            b"{}": "$",
            b'{"errors":[]}': "$",
            b'{"data":{"gid":18446744073709551616}}': "$.data.gid",  # it never becomes a float or a text
        }.items():
            error = refusal(wire.decode_webhook, body)
            assert (error.path, error.malformed) == (path, False)

    def test_last_page(self) -> None:
        """A list ends with next_page null, or without it."""
        assert wire.decode_webhook_list(b'{"data":[],"next_page":null}').next_page is None
        assert wire.decode_webhook_list(b'{"data":[]}').next_page is None

    def test_page_with_a_next_one(self) -> None:
        """Only the offset of next_page is kept; a short page may not be the last (trap 22)."""
        page = wire.decode_webhook_list(
            b'{"data":[],"next_page":{"offset":"eyJ","path":"/webhooks?offset=eyJ","uri":"https://evil.example/"}}'
        )

        assert page.next_page is not None
        assert page.next_page.offset == "eyJ"
        assert "evil" not in repr(page)

    def test_compact_records(self) -> None:
        """Asana's compact records fill what they have; the rest is None."""
        page = wire.decode_webhook_list(
            b'{"data":[{"gid":"1","resource_type":"webhook","active":true,"resource":{"gid":"2"},"target":"https://e"},'
            b'{"gid":"3"}],"next_page":null}'
        )

        assert page.data == (
            Webhook(gid="1", resource_type="webhook", active=True, resource=ResourceRef(gid="2"), target="https://e"),
            Webhook(gid="3"),
        )

    def test_filters(self) -> None:
        """Each webhook of a page has its own filters; equal ones may be one object, for nobody can change it."""
        tasks, stories = '[{"resource_type":"task","action":"added"}]', '[{"resource_type":"story"}]'
        written = [f',"filters":{filters}' for filters in (tasks, stories, tasks, "[]", "null")] + [""]
        page = wire.decode_webhook_list(
            ('{"data":[' + ",".join(f'{{"gid":"{n}"{one}}}' for n, one in enumerate(written)) + "]}").encode()
        )

        found = [webhook.filters for webhook in page.data]
        on_tasks, on_stories = (
            (WebhookFilter(resource_type="task", action="added"),),
            (WebhookFilter(resource_type="story"),),
        )
        assert found == [on_tasks, on_stories, on_tasks, (), None, None]
        assert found[0] is not None
        assert found[2] is not None
        assert found[0][0] is found[2][0]

    def test_next_page_without_an_offset(self) -> None:
        """A next_page that cannot be followed is an error, not the end of the list."""
        for next_page in ['{"offset":null}', '{"offset":1}', "{}", '"eyJ"', "[]", "false"]:
            body = f'{{"data":[],"next_page":{next_page}}}'.encode()
            assert refusal(wire.decode_webhook_list, body).path.startswith("$.next_page")

    def test_error_envelope(self) -> None:
        """All entries of an error answer come out, with what each has, and the sync token of a 412."""
        said = wire.decode_error(
            b'{"errors":[{"message":"Server Error","phrase":"6 sad squid","help":"read","error":"no"},{"message":null},'
            b'{}],"sync":"abc:1"}'
        )

        assert said.errors == (
            wire.ErrorDetail(message="Server Error", phrase="6 sad squid", help="read", error="no"),
            wire.ErrorDetail(),
            wire.ErrorDetail(),
        )
        assert said.sync == "abc:1"
        assert wire.decode_error(b'{"error":"invalid_grant"}') == wire.ErrorAnswer()


class TestTokens:
    def test_real_answer_to_a_refresh(self) -> None:
        """Tokens come out as secrets; the user's name and what else is there is skipped."""
        answer = wire.decode_token_answer(
            b'{"access_token":"canary-1","token_type":"bearer","expires_in":3600,'
            b'"data":{"id":11,"gid":"11","name":"Ada","email":"ada@example.com"}}'
        )

        assert answer == wire.TokenAnswer(access_token=Secret("canary-1"), expires_in=3600.0)
        assert "canary" not in repr(answer)

    def test_answer_to_a_first_exchange(self) -> None:
        """A new refresh token comes out too; lifetimes may have decimals."""
        answer = wire.decode_token_answer(b'{"access_token":"a","refresh_token":"canary-2","expires_in":0.5}')

        assert answer.refresh_token == Secret("canary-2")
        assert answer.expires_in == 0.5
        assert "canary" not in repr(answer)

    def test_what_may_be_missing(self) -> None:
        """No new refresh token, and no word on the lifetime, in each way to say so."""
        for members in ["", ',"refresh_token":null,"expires_in":null', ',"refresh_token":""']:
            answer = wire.decode_token_answer(f'{{"access_token":"a"{members}}}'.encode())
            assert (answer.refresh_token, answer.expires_in) == (None, None)

    def test_wrong_types_name_the_place(self) -> None:
        """An answer that is no documented one is refused, with the place in it."""
        for body, path in {
            b'{"expires_in":3600}': "$",
            b'{"access_token":null}': "$.access_token",
            b'{"access_token":5}': "$.access_token",
            b'{"access_token":["a"]}': "$.access_token",
            b'{"access_token":"a","refresh_token":5}': "$.refresh_token",
            b'{"access_token":"a","expires_in":"3600"}': "$.expires_in",
            b'{"access_token":"a","expires_in":true}': "$.expires_in",
            b'{"data":{"access_token":"a"}}': "$",
            b'[{"access_token":"a"}]': "$",
        }.items():
            assert refusal(wire.decode_token_answer, body).path == path

    def test_real_refusal(self) -> None:
        """OAuth's error, as Asana writes it: its slashes are escapes."""
        refusal = wire.decode_token_refusal(
            b'{"error":"invalid_grant","error_uri":"https:\\u002F\\u002Fexample.com",'
            b'"error_description":"The `refresh_token` provided was invalid. a\\u002Fb"}'
        )

        assert refusal == wire.TokenRefusal(
            error="invalid_grant", error_description="The `refresh_token` provided was invalid. a/b"
        )

    def test_other_errors_are_no_refusals(self) -> None:
        """Asana's usual envelope, and what else is not OAuth's, is told apart."""
        for body in [b'{"errors":[{"message":"Not Authorized"}]}', b'{"error":{"code":5}}', b"null"]:
            refusal(wire.decode_token_refusal, body)


# Deeper than any Python lets C code go: about 1,000 levels in 3.11, 10,000 and more since 3.12.
DEEP = 200_000

MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "cut off": CREATED_2024A[:-1],
    "cut off in a text": CREATED_2024A[:20],
    "something after it": CREATED_2024A + b"x",
    "twice": CREATED_2024A * 2,
    "HTML": b"<html><title>502 Bad Gateway</title></html>",
    "byte order mark": b"\xef\xbb\xbf" + CREATED_2024A,
    "UTF-16": CREATED_2024A.decode().encode("utf-16"),
    "not UTF-8 in a value": b'{"data":{"gid":"\xff"}}',
    "not UTF-8 in a key": b'{"data":{"gid":"1"},"\xff":1}',
    "not UTF-8 beside a page": b'{"data":[],"a":"\xff"}',
    "not UTF-8 outside": b"\xff\xfe",
    "overlong UTF-8": b'{"events":[],"a":"\xc0\x80"}',
    "surrogate in UTF-8": b'{"events":[],"a":"\xed\xa0\x80"}',
    "lone surrogate": b'{"events":[],"a":"\\ud800"}',
    "half a pair": b'{"events":[],"a":"\\ud83d\\u0041"}',
    "NaN": b'{"events":[],"a":NaN}',
    "Infinity": b'{"events":[],"a":-Infinity}',
    "single quotes": b"{'events':[]}",
    "trailing comma": b'{"events":[],}',
    "comment": b'{"events":[]}//',
    "leading zero": b'{"events":[],"a":01}',
    "control character": b'{"events":[],"a":"\x00"}',
    "NUL after it": b'{"events":[]}\x00',
    "arrays without end": b"[" * DEEP,
    "objects without end": b'{"events":' * DEEP,
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "a deep member": b'{"events":[],"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
}

HUGE = b"9" * 5_000

json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
KNOWN = [
    "events",
    "data",
    "errors",
    "next_page",
    "offset",
    "gid",
    "resource",
    "created_at",
    "change",
    "field",
    "action",
]
KNOWN += ["user", "parent", "new_value", "enum_value", "filters", "fields", "message", "X-Hook-Secret", "registration"]
KNOWN += ["access_token", "refresh_token", "expires_in", "error", "error_description"]
near_trees = st.recursive(
    st.none() | st.integers() | st.sampled_from(["1", "2026-01-02T03:04:05.678Z", "changed"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KNOWN), inner, max_size=6),
    max_leaves=25,
)

QUOTABLE = st.recursive(
    st.none() | st.just("CaNaRy") | st.just(4815162342),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KNOWN, "CaNaRy-name"]), inner, max_size=6)
    ),
    max_leaves=25,
)


def read_or_refused(decode: Decoder, body: bytes) -> PayloadError | None:
    """Decode; the error if there was one. Anything but PayloadError fails the test by itself."""
    try:
        decode(body)
    except PayloadError as error:
        return error
    return None


class TestHostileBytes:
    def test_malformed(self) -> None:
        """Bytes that are no JSON are malformed, as asking again may help, and are called by one of three names."""
        said = {}
        for decode in [*DECODERS, wire.parse]:
            for case, body in MALFORMED.items():
                error = refusal(decode, body)
                assert (error.malformed, error.path) == (True, "$")
                assert error.problem in {"not JSON, or cut off", "not UTF-8", "nested too deeply"}
                # The decoder's own exception, whose text may quote the bytes, is not chained.
                assert (error.__cause__, error.__suppress_context__) == (None, True)
                said[case] = error.problem
        assert said["cut off"] == "not JSON, or cut off"
        assert said["not UTF-8 in a value"] == "not UTF-8"
        assert said["deep arrays"] == "nested too deeply"

    def test_depth_inside_a_known_member(self) -> None:
        """Members that nest in themselves end in a model or in PayloadError, at every depth."""
        for depth in [100, 900, 1_000, 1_024, 1_025, 3_000, 50_000]:
            value = b'{"gid":"1","enum_value":' * depth + b"null" + b"}" * depth
            body = b'{"events":[{"action":"a","created_at":"2026-01-02T03:04:05Z","resource":' + value + b"}]}"
            error = read_or_refused(wire.decode_delivery, body)
            assert error is None or error.malformed

    def test_huge_numbers(self) -> None:
        """A number no machine holds is PayloadError or ignored, wherever it stands."""
        for number in [HUGE, b"-" + HUGE, b"1e400", b"0." + HUGE, b"1" + b"0" * 400 + b".5"]:
            for body in (number, b'{"data":%b,"events":%b}' % (number, number), b'{"data":{"gid":%b}}' % number):
                for decode in DECODERS:
                    error = read_or_refused(decode, body)
                    assert error is None or "99999" not in str(error)

    def test_duplicate_members(self) -> None:
        """The last of two members with one name counts, as in every JSON reader."""
        assert wire.decode_webhook(b'{"data":{"gid":"1","gid":"2"}}').gid == "2"

    @given(st.binary(max_size=200))
    @example(b'"\\ud800"')
    @example(b'{"data":[\xf0\x28\x8c\x28]}')
    def test_any_bytes(self, body: bytes) -> None:
        """Whatever the bytes are, only PayloadError comes out, and it says where."""
        for decode in DECODERS:
            error = read_or_refused(decode, body)
            assert error is None or error.path.startswith("$")

    @given(json_trees | near_trees)
    def test_any_json(self, tree: Any) -> None:
        """Whatever the JSON is, only PayloadError comes out, and it is not called malformed without reason."""
        body = json.dumps(tree).encode()
        standard = "NaN" not in body.decode() and "Infinity" not in body.decode() and b"\\ud" not in body
        for decode in DECODERS:
            error = read_or_refused(decode, body)
            assert error is None or not (standard and error.malformed)

    @given(st.data())
    def test_valid_body_with_one_thing_wrong(self, data: st.DataObject) -> None:
        """A true body with any one value replaced, or any one byte changed, gives models or PayloadError."""
        text = data.draw(st.sampled_from([events_of(shape) for shape, _ in SHAPES.values()] + [CREATED_2024A]))
        place = data.draw(st.integers(0, len(text) - 1))
        broken = bytearray(text)
        broken[place] = data.draw(st.integers(0, 255))
        for decode in DECODERS:
            read_or_refused(decode, bytes(broken))
            cut_off = read_or_refused(decode, bytes(text[:place]))
            assert cut_off is not None
            assert cut_off.malformed

    @given(QUOTABLE, st.sampled_from([1, 2]))
    def test_errors_never_quote_the_body(self, tree: Any, part: int) -> None:
        """No text of the body, neither value nor unknown name, stands in an error: bodies hold customers' data."""
        body = json.dumps(tree).encode()
        for decode in DECODERS:
            error = read_or_refused(decode, body[: len(body) // part])
            for text in (str(error), repr(error)):
                assert "CaNaRy" not in text
                assert "4815162342" not in text


names = st.sampled_from(["task", "project", "due_on", "name", "changed", "über", "\U0001f600", 'a"b'])
filters = st.lists(
    st.builds(
        WebhookFilter,
        resource_type=st.none() | names,
        resource_subtype=st.none() | names,
        action=st.just("changed"),
        fields=st.none() | st.lists(names, max_size=3).map(tuple),
    ),
    max_size=3,
).map(tuple)
gids = st.from_regex(r"[0-9]{1,20}", fullmatch=True)
opt_fields = st.none() | st.lists(st.sampled_from(["target", "filters.action", "(a|b).c"]), max_size=2).map(tuple)
requests: st.SearchStrategy[Request[Any]] = st.one_of(
    st.builds(
        CreateWebhookRequest,
        resource=gids,
        target=st.sampled_from(["https://example.com/a?b=%20c", "http://localhost:8080/ü"]),
        filters=filters,
        opt_fields=opt_fields,
        opt_pretty=st.booleans(),
    ),
    st.builds(GetWebhookRequest, webhook_gid=gids, opt_fields=opt_fields, opt_pretty=st.booleans()),
    st.builds(
        GetWebhooksRequest,
        workspace=gids,
        resource=st.none() | gids,
        page_size=st.integers(1, 100),
        offset=st.none() | st.text(st.characters(codec="utf-8"), min_size=1),
        opt_fields=opt_fields,
    ),
    st.builds(UpdateWebhookRequest, webhook_gid=gids, filters=filters, opt_fields=opt_fields),
    st.builds(DeleteWebhookRequest, webhook_gid=gids, opt_pretty=st.booleans()),
)


class TestParts:
    @given(json_trees)
    def test_parse_is_json(self, tree: Any) -> None:
        """What the standard library writes within the standard is read as it was, large numbers included."""
        try:
            body = json.dumps(tree, allow_nan=False).encode()
        except ValueError:  # NaN and infinity are no JSON
            return

        assert wire.parse(body) == tree

    @given(json_trees | near_trees, st.sampled_from([Event, Webhook, WebhookFilter, CreateWebhookRequest]))
    def test_structure(self, tree: Any, kind: type[Any]) -> None:
        """Any tree becomes an object of the class or PayloadError, never malformed: it was JSON."""
        try:
            made: object = wire.structure(tree, kind)
        except PayloadError as error:
            refused = error
        else:
            assert isinstance(made, kind)
            return
        assert not refused.malformed
        assert refused.path.startswith("$")


TREES = json_trees | near_trees | st.sampled_from([json.loads(text) for text, _ in SHAPES.values()])


def outcome(read: Callable[[], object]) -> object:
    """Return what is read, or where it is wrong and how."""
    try:
        return read()
    except PayloadError as error:
        return error.problem, error.path.removeprefix("$").removeprefix(".data").removeprefix(".events[0]")


class TestTheFastWay:
    def test_every_member_is_read(self) -> None:
        """What is read fast has all the members of its model."""
        ref = ResourceRef(gid="1", resource_type="t", resource_subtype="s", name="n")
        value = attrs.evolve(ref, other_members={"enum_value": {"gid": "2", "name": "m"}, "color": "red"})
        change = Change(field="f", action="added", new_value=value, added_value=value, removed_value=value)
        event = Event(action="a", resource=ref, created_at=AT, user=ref, parent=ref, change=change, type="t")
        webhook = Webhook(
            gid="1",
            resource_type="webhook",
            active=False,
            resource=ref,
            target="https://example.com",
            created_at=AT,
            last_success_at=AT,
            last_failure_at=AT,
            last_failure_content="no",
            delivery_retry_count=3,
            next_attempt_after=AT,
            failure_deletion_timestamp=AT,
            filters=(WebhookFilter(resource_type="task", resource_subtype="s", action="changed", fields=("due_on",)),),
            is_workspace_webhook=True,
        )
        for made in (value, change, event, webhook):
            assert not {one.name for one in attrs.fields(type(made)) if getattr(made, one.name) == one.default}
        assert wire.decode_delivery(wire.encode({"events": [event]})).events == (event,)
        assert wire.decode_webhook_list(wire.encode({"data": [webhook]})).data == (webhook,)

    @given(TREES)
    def test_the_fast_way_is_the_plain_way(self, tree: Any) -> None:
        """Webhooks and events are read, or refused, as if they were read by way of dicts and lists."""
        webhook, page, events = (json.dumps(one).encode() for one in ({"data": tree}, tree, {"events": [tree]}))

        assert outcome(lambda: wire.decode_webhook(webhook)) == outcome(lambda: plain(webhook, "data", Webhook))
        assert outcome(lambda: wire.decode_webhook_list(page)) == outcome(lambda: wire.decode(page, wire.WebhookList))
        assert outcome(lambda: one_event(events)) == outcome(lambda: plain_event(events))


def plain(body: bytes, member: str, kind: type[Any]) -> object:
    return wire.structure(wire.parse(body)[member], kind)


def one_event(body: bytes) -> Event:
    parsed = wire.decode_delivery(body)
    for one in parsed.unreadable:
        problem, _, path = one.problem.rpartition(" @ ")
        raise PayloadError(problem=problem, path=path)
    return parsed.events[0]


def plain_event(body: bytes) -> Event:
    """Read an event without the fast way, and the values of its change by themselves."""
    (tree,) = wire.parse(body)["events"]
    event = wire.structure(tree, Event)
    if event.change is None:
        return event
    names = ("new_value", "added_value", "removed_value")
    values = {name: tree["change"].get(name) for name in names}
    refs: dict[str, Any] = {name: ResourceRef.from_json(value) or value for name, value in values.items()}
    return attrs.evolve(event, change=attrs.evolve(event.change, **refs))


class TestEncode:
    def test_compact(self) -> None:
        """JSON is written without blanks and in UTF-8, as Asana writes it."""
        assert wire.encode({"a": [1, None, "ü"]}) == '{"a":[1,null,"ü"]}'.encode()

    def test_models(self) -> None:
        """Models are written by the names of their fields, and read back."""
        webhook = Webhook(gid="1", created_at=AT, filters=(WebhookFilter(action="added"),))

        assert wire.decode(wire.encode(webhook), Webhook) == webhook
        assert wire.decode_webhook(wire.encode({"data": webhook})) == webhook

    @given(requests)
    def test_requests_survive(self, request: Request[Any]) -> None:
        """A request can be queued as JSON and sent later."""
        queued = wire.encode(request)
        read = wire.decode(queued, type(request))

        assert read == request
        assert read.body() == request.body()
        assert read.query() == request.query()

    def test_queued_requests_are_checked_again(self) -> None:
        """A queue cannot smuggle in what the constructor refuses."""
        for text in [b'{"resource":"x","target":"https://e.com/a"}', b'{"resource":"1","target":"ftp://e.com"}']:
            refusal(lambda text: wire.decode(text, CreateWebhookRequest), text)

    def test_secrets_cannot_be_written(self) -> None:
        """There is no way to JSON for a secret, on its own or inside something else."""
        secret = Secret("canary")
        for value in (secret, {"secret": secret}, [secret], CreatedWebhook(webhook=Webhook(gid="1"), secret=secret)):
            with pytest.raises(TypeError) as caught:
                wire.encode(value)
            assert "canary" not in str(caught.value)
