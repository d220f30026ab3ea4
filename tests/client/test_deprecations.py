"""Changes of Asana's API: read from any header, told once, and chosen by headers of ours."""

import logging
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asana_webhooks import __version__
from asana_webhooks.client.deprecations import (
    Deprecation,
    DeprecationLog,
    choice_headers,
    chosen_changes,
    parse_changes,
)
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import ConfigurationError, NotFoundError
from tests.helpers.raw import CALLS, GET, TOKEN, Call, session
from tests.helpers.servers import answer, errors, scripted_server

DOCUMENTED = "name=string_ids;info=https://asa.na/api/string-ids;affected=true"
STRING_IDS = Deprecation(name="string_ids", info="https://asa.na/api/string-ids", affected=True)
LOGGER = "asana_webhooks.client.deprecations"
WEBHOOK = {"data": {"gid": "43214"}}
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)


def change(name: str, affected: str = "true") -> str:
    return f"name={name};affected={affected}"


class TestParsing:
    def test_as_documented(self) -> None:
        """The header of Asana's documentation."""
        assert parse_changes([DOCUMENTED]) == (STRING_IDS,)

    @pytest.mark.parametrize(
        ("values", "names"),
        [
            ([], []),
            ([""], []),
            ([change("a"), change("b")], ["a", "b"]),
            ([change("a") + "," + change("b")], ["a", "b"]),
            ([change("a") + ", " + change("b"), change("c")], ["a", "b", "c"]),
            ([change("a") + ",,;,=,"], ["a"]),
            (["info=https://asa.na/x;affected=true"], []),
            (["name=;affected=true"], []),
            (["name;affected=true"], []),
            (["name= ;affected=true"], []),
            (["=string_ids"], []),
            ([" Name = a ; INFO = b ; Affected = true "], ["a"]),
            (["name=a=b"], ["a=b"]),
        ],
        ids=str,
    )
    def test_values(self, values: list[str], names: list[str]) -> None:
        """Several headers, several changes in one, any case and spaces; what has no name is skipped."""
        assert [one.name for one in parse_changes(values)] == names

    @pytest.mark.parametrize(
        ("text", "affected"),
        [("true", True), (" true ", True), ("false", False), ("", False), ("1", False), ("maybe", False)],
    )
    def test_affected(self, text: str, affected: bool) -> None:
        """Only what says so affects a request."""
        assert parse_changes([change("a", text)])[0].affected is affected

    def test_only_a_name(self) -> None:
        """Nothing else is needed."""
        assert parse_changes(["name=a"]) == (Deprecation(name="a"),)

    def test_control_characters(self) -> None:
        """Nothing can forge a line of a log or colour a terminal, and nothing fills it."""
        [found] = parse_changes(["name=a\r\nERROR b\x1b[31m\u202e;info=\x00x" + "y" * 5000])

        assert found.name == "aERROR b[31m"
        assert found.info is not None
        assert found.info.isprintable()
        assert len(found.info) <= 200

    @given(st.lists(st.text() | st.text("nameinfoaffectedtrue=;, \n"), max_size=4))
    @example(["name=\udcff;info=\udcff"])
    def test_any_text(self, values: list[str]) -> None:
        """Whatever comes: no error, and only names and addresses that can be printed."""
        for found in parse_changes(values):
            assert found.name
            assert f"{found.name}{found.info or ''}".isprintable()
            assert len(found.name) <= 200

    @settings(max_examples=50)
    @given(st.lists(st.tuples(NAMES, NAMES, st.booleans()), max_size=5), st.booleans())
    def test_what_was_written_is_read(self, changes: list[tuple[str, str, bool]], in_one: bool) -> None:
        """Every change comes out as it went in, in one header or several."""
        values = [f"name={name};info={info};affected={str(affected).lower()}" for name, info, affected in changes]

        assert parse_changes([",".join(values)] if in_one else values) == tuple(
            Deprecation(name=name, info=info, affected=affected) for name, info, affected in changes
        )


class TestTelling:
    def test_once_for_each_name(self, caplog: pytest.LogCaptureFixture) -> None:
        """The log and the hook are told of each change once, however often it comes, in whatever words."""
        told: list[Deprecation] = []
        log = DeprecationLog(told.append)
        for _ in range(3):
            log.note([DOCUMENTED, change("b")])
            log.note(["name=string_ids;info=elsewhere;affected=true"])

        assert told == [STRING_IDS, Deprecation(name="b", affected=True)]
        warnings = [one for one in caplog.records if one.name == LOGGER]
        assert [one.levelname for one in warnings] == ["WARNING", "WARNING"]
        assert "'string_ids'" in warnings[0].getMessage()
        assert "'https://asa.na/api/string-ids'" in warnings[0].getMessage()

    def test_what_does_not_affect_us(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody is told of a change that changes nothing here; when it does, they are."""
        told: list[Deprecation] = []
        log = DeprecationLog(told.append)
        log.note([change("a", "false"), "name=b"])
        assert (told, caplog.records) == ([], [])

        log.note([change("a")])
        assert [one.name for one in told] == ["a"]

    def test_what_was_chosen(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody needs to be told of a change they have taken a side on."""
        told: list[Deprecation] = []
        DeprecationLog(told.append, chosen=frozenset({"a"})).note([change("a"), change("b")])

        assert [one.name for one in told] == ["b"]
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("kind", [RuntimeError, LookupError, TypeError])
    def test_a_hook_that_fails(self, kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
        """It is logged, costs no answer, and is not called again for the same change."""
        calls = []

        def hook(found: Deprecation) -> None:
            calls.append(found.name)
            raise kind("no such queue")

        log = DeprecationLog(hook)
        log.note([change("a"), change("b")])
        log.note([change("a")])

        assert calls == ["a", "b"]
        assert [one.levelname for one in caplog.records] == ["WARNING", "ERROR"] * 2
        assert caplog.records[1].exc_info is not None

    def test_without_a_hook(self, caplog: pytest.LogCaptureFixture) -> None:
        """The log is told all the same."""
        DeprecationLog().note([DOCUMENTED])

        assert len(caplog.records) == 1

    def test_no_end_of_names(self, caplog: pytest.LogCaptureFixture) -> None:
        """A server that sends ever new ones fills neither memory nor the log."""
        told: list[Deprecation] = []
        log = DeprecationLog(told.append)
        for start in range(0, 300, 3):
            log.note([change(f"change-{start + number}") for number in range(3)])

        assert len(told) == len(caplog.records) == 100
        assert [one.name for one in told[:2]] == ["change-0", "change-1"]

    @settings(max_examples=30)
    @given(st.lists(st.integers(0, 150).map(str), max_size=200))
    def test_any_names(self, names: list[str]) -> None:
        """Told are the first hundred different ones, each once."""
        told: list[Deprecation] = []
        logging.disable(logging.ERROR)
        try:
            DeprecationLog(told.append).note([change(name) for name in names])
        finally:
            logging.disable(logging.NOTSET)

        assert [one.name for one in told] == list(dict.fromkeys(names))[:100]


class TestChoosing:
    def test_headers(self) -> None:
        """Only what is chosen is sent."""
        assert choice_headers([], [], {}) == {}
        assert choice_headers(["a", "b"], (), {}) == {"Asana-Enable": "a,b"}
        assert choice_headers((), {"c"}, {}) == {"Asana-Disable": "c"}
        assert choice_headers(iter("ab"), iter("c"), {}) == {"Asana-Enable": "a,b", "Asana-Disable": "c"}

    @pytest.mark.parametrize(
        ("enable", "disable", "given", "match"),
        [
            (["a", "b"], ["b"], {}, "'b' cannot be both enabled and disabled"),
            (["a"], [], {"Asana-Disable": "a"}, "'a' cannot be both enabled and disabled"),
            ([], ["a"], {"asana-enable": "b, a"}, "'a' cannot be both enabled and disabled"),
            ([], [], {"asana-enable": "a", "ASANA-DISABLE": "a"}, "'a' cannot be both enabled and disabled"),
            (["a"], [], {"asana-enable": "b"}, "headers has asana-enable already"),
            ([], ["a"], {"Asana-Disable": "a"}, "headers has asana-disable already"),
        ],
    )
    def test_contradictions(self, enable: list[str], disable: list[str], given: dict[str, str], match: str) -> None:
        """Both sides of a change, or one header from two places, are a mistake and not sent."""
        with pytest.raises(ConfigurationError, match=match):
            AsanaSession(TOKEN, enable=enable, disable=disable, headers=given)

    def test_hooks_that_could_not_be_called(self) -> None:
        """What is no function, or would have to be awaited, is found out before Asana announces anything."""

        async def later(_: Deprecation) -> None: ...

        class Later:
            async def __call__(self, _: Deprecation) -> None: ...

        hooks: list[Any] = ["print", 5, later, Later()]
        for hook in hooks:
            with pytest.raises(ConfigurationError, match="on_deprecation must be a plain function"):
                AsanaSession(TOKEN, on_deprecation=hook)

    @pytest.mark.parametrize("argument", ["enable", "disable"])
    @pytest.mark.parametrize(
        "names",
        ["string_ids", b"string_ids", None, 5, [""], ["a,b"], ["a b"], ["a\r\nX: y"], [5], [None], ["\u00fc"], [b"a"]],
        ids=repr,
    )
    def test_what_is_no_list_of_names(self, argument: str, names: Any) -> None:
        """A text would be taken apart into letters; a name with a comma would be two."""
        with pytest.raises(ConfigurationError, match=rf"^{argument} must be "):
            AsanaSession(TOKEN, **{argument: names})

    def test_chosen(self) -> None:
        """Names come from either header in whatever case; other headers say nothing."""
        headers = {"asana-ENABLE": "a, b,", "Asana-Disable": " c ", "X-Other": "d"}

        assert chosen_changes(headers) == {"a", "b", "c"}
        assert chosen_changes({}) == frozenset()


class TestSession:
    @pytest.mark.parametrize("call", CALLS, ids=str)
    async def test_headers_go_with_every_request(self, call: Call) -> None:
        """Each attempt of each operation says which side it wants, and who asks."""
        good = answer(call.status, call.good)
        async with scripted_server(errors(429, "Slow down"), good) as server:
            async with session(server.url, enable=["a", "b"], disable=["c"]) as asana:
                await asana.send(call.request)

        assert len(server.requests) == 2
        for seen in server.requests:
            assert seen.headers["asana-enable"] == "a,b"
            assert seen.headers["asana-disable"] == "c"
            assert seen.headers["user-agent"] == f"asana-webhooks/{__version__}"
            library = {name: text for name, [text] in parse_qs(seen.headers["x-asana-client-lib"]).items()}
            assert library["library"] == "asana-webhooks"
            assert library["version"] == __version__
            assert library["language"] == "Python"
            assert set(library) == {"library", "version", "language", "language_version"}

    async def test_neither_is_sent_when_nothing_is_chosen(self) -> None:
        """Asana decides then."""
        async with scripted_server(answer(200, WEBHOOK)) as server, session(server.url) as asana:
            await asana.send(GET.request)

        assert not {"asana-enable", "asana-disable"} & set(server.requests[0].headers)

    async def test_headers_may_be_replaced(self) -> None:
        """User-Agent and X-Asana-Client-Lib are the user's if they say so, in any case."""
        headers = {"user-agent": "shop/1.0", "X-ASANA-CLIENT-LIB": "language=Python&library=shop"}
        async with scripted_server(answer(200, WEBHOOK)) as server:
            async with session(server.url, headers=headers) as asana:
                await asana.send(GET.request)

        [seen] = server.requests
        assert seen.headers["user-agent"] == "shop/1.0"
        assert seen.headers["x-asana-client-lib"] == "language=Python&library=shop"

    async def test_told_by_answers(self, caplog: pytest.LogCaptureFixture) -> None:
        """Whatever Asana answers, good or bad, its announcements are read; each is told once for a session."""
        told: list[Deprecation] = []
        headers = {"Asana-Change": f"{DOCUMENTED}, {change('chosen')}, {change('other', 'false')}"}
        bad, good = errors(404, "No", headers=headers), answer(200, WEBHOOK, headers=headers)
        async with scripted_server(bad, good) as server:
            async with session(server.url, on_deprecation=told.append, disable=["chosen"]) as asana:
                with pytest.raises(NotFoundError):
                    await asana.send(GET.request)
                assert told == [STRING_IDS]
                for _ in range(3):
                    await asana.send(GET.request)

        assert told == [STRING_IDS]
        assert len([one for one in caplog.records if one.name == LOGGER]) == 1

    async def test_several_headers(self) -> None:
        """Each of them is read."""
        told: list[Deprecation] = []
        headers = {"Asana-Change": change("a"), "asana-change": change("b")}
        async with scripted_server(answer(200, WEBHOOK, headers=headers)) as server:
            async with session(server.url, on_deprecation=told.append) as asana:
                await asana.send(GET.request)

        assert [one.name for one in told] == ["a", "b"]

    @pytest.mark.parametrize("header", ["Asana-Enable", "asana-disable"])
    async def test_sides_taken_in_headers(self, header: str) -> None:
        """A side taken by headers= is as good as one taken by enable= or disable=."""
        told: list[Deprecation] = []
        good = answer(200, WEBHOOK, headers={"Asana-Change": DOCUMENTED})
        async with scripted_server(good) as server:
            async with session(server.url, on_deprecation=told.append, headers={header: "string_ids"}) as asana:
                await asana.send(GET.request)

        assert told == []
        assert server.requests[0].headers[header.lower()] == "string_ids"

    async def test_a_hook_that_fails_costs_no_answer(self) -> None:
        """The call goes on as if nothing had happened."""

        def hook(_: Deprecation) -> None:
            raise RuntimeError("no such queue")

        async with scripted_server(answer(200, WEBHOOK, headers={"Asana-Change": DOCUMENTED})) as server:
            async with session(server.url, on_deprecation=hook) as asana:
                assert (await asana.send(GET.request)).gid == "43214"
