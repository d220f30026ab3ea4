"""What a request to a target means, rule by rule, for every state of the registration."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asana_webhooks.errors import RejectedError
from asana_webhooks.models import Secret
from asana_webhooks.receiver.protocol import (
    MAX_BODY,
    Handshake,
    HookHeaders,
    Signed,
    check_length,
    is_heartbeat,
    prove,
    read_headers,
)
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store.base import NewDelivery, Registration, RegistrationState, candidate_id

GOOD = "b537207f20cbfa02357cf448134da559"
SECRET = Secret(GOOD)
OTHER = Secret("c8ba4ddd7a4ebea8c8ba4ddd7a4ebea8")
THIRD = Secret("0123456789abcdef0123456789abcdef")
HEARTBEAT = b'{"events":[]}'
BODY = b'{"events":[{"action":"added"}]}'
SIGNATURE = sign_body(BODY, secret=SECRET).encode()

Pair = tuple[bytes, bytes]

HOOK_SECRET: Pair = (b"X-Hook-Secret", GOOD.encode())
HOOK_SIGNATURE: Pair = (b"X-Hook-Signature", SIGNATURE)
ORDINARY: list[Pair] = [
    (b"Host", b"example.com"),
    (b"Content-Type", b"application/json"),
    (b"Content-Length", b"31"),
    (b"X-Asana-Request-Signature", b"f" * 64),
    (b"Accept-Encoding", b"gzip, deflate"),
]

PENDING, CONFIRMED, CLOSED = RegistrationState
ALL_STATES = pytest.mark.parametrize("state", list(RegistrationState), ids=lambda state: state.value)
OPEN_STATES = pytest.mark.parametrize("state", [PENDING, CONFIRMED], ids=lambda state: state.value)


def registration(
    state: RegistrationState = PENDING, *, candidates: tuple[Secret, ...] = (), secret: Secret | None = None
) -> Registration:
    return Registration(id="r" * 64, resource="21", state=state, deadline=0.0, candidates=candidates, secret=secret)


def confirmed() -> Registration:
    return registration(CONFIRMED, secret=SECRET)


def read(registration_: Registration, headers: Iterable[Pair], **options: Any) -> Handshake | Signed:
    return read_headers(registration_, HookHeaders.of(headers), **options)


def refusal(registration_: Registration, headers: list[Pair], **options: Any) -> tuple[int, str]:
    with pytest.raises(RejectedError) as caught:
        read(registration_, headers, **options)
    return caught.value.status, caught.value.reason


class TestHandshake:
    def test_pending(self) -> None:
        """A well-formed secret for a pending registration is a handshake."""
        assert read(registration(), [*ORDINARY, HOOK_SECRET]) == Handshake(SECRET)

    def test_second_one(self) -> None:
        """A stranger's handshake does not keep the real one out (trap 8): each is heard while the creation is open."""
        after_a_stranger = registration(candidates=(OTHER, THIRD))

        assert read(after_a_stranger, [HOOK_SECRET]) == Handshake(SECRET)

    @pytest.mark.parametrize("candidates", [(), (SECRET,)])
    def test_confirmed(self, candidates: tuple[Secret, ...]) -> None:
        """Once confirmed, no POST replaces the secret (trap 7), not even with the same one: it is just unsigned."""
        done = registration(CONFIRMED, secret=OTHER, candidates=candidates)

        assert refusal(done, [HOOK_SECRET]) == (401, "no signature")
        assert refusal(confirmed(), [HOOK_SECRET]) == (401, "no signature")

    def test_closed(self) -> None:
        """A closed registration hears nothing."""
        assert refusal(registration(CLOSED), [HOOK_SECRET]) == (404, "closed registration")

    @OPEN_STATES
    @pytest.mark.parametrize("order", [1, -1])
    def test_both_headers(self, state: RegistrationState, order: int) -> None:
        """With a signature beside it a secret is ignored: the rules of deliveries hold, and nothing is proposed."""
        headers = [*ORDINARY, HOOK_SECRET, HOOK_SIGNATURE][::order]

        assert read(registration(state), headers) == Signed(SIGNATURE)

    @OPEN_STATES
    def test_secret_beside_an_empty_signature(self, state: RegistrationState) -> None:
        """An empty signature header is one all the same; it does not make a handshake of the request."""
        signed = read(registration(state), [HOOK_SECRET, (b"x-hook-signature", b"")])

        assert signed == Signed(b"")

    @OPEN_STATES
    def test_secret_beside_two_signatures(self, state: RegistrationState) -> None:
        """Nor do two."""
        assert refusal(registration(state), [HOOK_SECRET, HOOK_SIGNATURE, HOOK_SIGNATURE]) == (
            401,
            "several signatures",
        )

    @pytest.mark.parametrize("second", [HOOK_SECRET, (b"x-hook-secret", b"another-secret-0"), (b"X-HOOK-SECRET", b"")])
    def test_two_secrets(self, second: Pair) -> None:
        """Two secrets are no handshake, even two that are the same."""
        assert refusal(registration(), [HOOK_SECRET, second]) == (400, "malformed handshake")
        assert refusal(registration(), [second, HOOK_SECRET]) == (400, "malformed handshake")

    @pytest.mark.parametrize("length", [16, 17, 32, 64, 255, 256])
    def test_lengths(self, length: int) -> None:
        """A secret is opaque; from 16 to 256 of its characters are taken."""
        text = ("aZ09_-" * 50)[:length]

        assert read(registration(), [(b"X-Hook-Secret", text.encode())]) == Handshake(Secret(text))

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b" ",
            b"a" * 15,
            b"a" * 257,
            b"a" * 9_000,
            b"a" * 16 + b" " + b"a" * 16,
            b"a" * 16 + b"\r\nX-Evil: 1",
            b"a" * 16 + b"\nX-Evil: 1",
            b"a" * 16 + b"\x00" + b"a" * 16,
            b"\x00" + b"a" * 16,
            b"a" * 16 + b"\x00",
            b"a" * 16 + b"\xe9",
            b"\xff" * 32,
            "ä".encode() * 16,
            "٣".encode() * 16,
            b"a" * 16 + b"\x1b[31m",
            b"a" * 16 + b"," + b"a" * 16,
            b"a" * 16 + b"=",
            b'"' + b"a" * 16 + b'"',
            b"a" * 16 + b"%0d%0a",
            b"<script>alert(1)</script>",
        ],
        ids=lambda value: repr(value[:24]),
    )
    def test_malformed(self, value: bytes) -> None:
        """What is no plain token is never echoed: 400, and the refusal does not quote it."""
        assert refusal(registration(), [(b"X-Hook-Secret", value)]) == (400, "malformed handshake")

    @pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\x0b", b"\x0c"], ids=repr)
    def test_line_break_at_the_end(self, end: bytes) -> None:
        """A line break at either end is no blank to trim: such a secret would be echoed altered."""
        assert refusal(registration(), [(b"X-Hook-Secret", GOOD.encode() + end)]) == (400, "malformed handshake")
        assert refusal(registration(), [(b"X-Hook-Secret", end + GOOD.encode())]) == (400, "malformed handshake")

    @pytest.mark.parametrize("value", [b" %b", b"%b ", b"\t%b\t ", b"  %b  "])
    def test_blanks_around_it(self, value: bytes) -> None:
        """Blanks around a value belong to HTTP, not to the value; some front ends leave them."""
        assert read(registration(), [(b"X-Hook-Secret", value % GOOD.encode())]) == Handshake(SECRET)

    def test_is_opaque(self) -> None:
        """A handshake's repr does not show the secret (trap 5)."""
        assert GOOD not in repr(Handshake(SECRET))


class TestDelivery:
    @OPEN_STATES
    def test_signed(self, state: RegistrationState) -> None:
        """One signature makes a request a delivery that has to be proven."""
        assert read(registration(state), [*ORDINARY, HOOK_SIGNATURE]) == Signed(SIGNATURE)

    @pytest.mark.parametrize("candidates", [(), (SECRET,)])
    @pytest.mark.parametrize("secret", [None, SECRET])
    @OPEN_STATES
    def test_unsigned(self, state: RegistrationState, secret: Secret | None, candidates: tuple[Secret, ...]) -> None:
        """Without a signature nothing is accepted (trap 9), whether a secret is stored or not (trap 10)."""
        known = registration(state, secret=secret, candidates=candidates)

        assert refusal(known, ORDINARY) == (401, "no signature")
        assert refusal(known, []) == (401, "no signature")

    @OPEN_STATES
    def test_asanas_other_header_is_no_signature(self, state: RegistrationState) -> None:
        """X-Asana-Request-Signature is undocumented for webhooks; it neither proves nor disturbs."""
        assert refusal(registration(state), [(b"X-Asana-Request-Signature", SIGNATURE)]) == (401, "no signature")

    @pytest.mark.parametrize("count", [2, 3, 50])
    @OPEN_STATES
    def test_several_signatures(self, state: RegistrationState, count: int) -> None:
        """Several signatures are refused, even if they agree: nobody may choose which one counts."""
        assert refusal(registration(state), [HOOK_SIGNATURE] * count) == (401, "several signatures")

    @ALL_STATES
    def test_names_in_any_case(self, state: RegistrationState) -> None:
        """Names of headers have no case."""
        if state is CLOSED:
            assert refusal(registration(state), [(b"x-HOOK-signature", SIGNATURE)])[0] == 404
            return
        assert read(registration(state), [(b"x-HOOK-signature", SIGNATURE)]) == Signed(SIGNATURE)
        assert refusal(registration(state), [(b"CONTENT-ENCODING", b"gzip"), HOOK_SIGNATURE])[0] == 415
        assert refusal(registration(state), [(b"CONTENT-length", b"99999999"), HOOK_SIGNATURE])[0] == 413
        if state is PENDING:
            assert read(registration(state), [(b"x-hook-SECRET", GOOD.encode())]) == Handshake(SECRET)

    @pytest.mark.parametrize("name", [b"X_Hook_Signature", b"X-Hook-Signature ", b"X-Hook-Signature\x00", b"Hook-Sig"])
    def test_names_that_look_alike(self, name: bytes) -> None:
        """A name that only looks like it is another header."""
        assert refusal(confirmed(), [(name, SIGNATURE)]) == (401, "no signature")

    @OPEN_STATES
    def test_headers_may_be_an_iterator(self, state: RegistrationState) -> None:
        """Headers that can be walked over only once are read in full."""
        assert read(registration(state), iter([*ORDINARY, HOOK_SIGNATURE])) == Signed(SIGNATURE)

    def test_signature_is_not_shown(self) -> None:
        """A signature stays out of reprs: with the body it is a delivery anyone could replay."""
        assert SIGNATURE.decode() not in repr(Signed(SIGNATURE))


class TestEncoding:
    @pytest.mark.parametrize(
        "value", [b"gzip", b"GZIP", b"deflate", b"br", b"zstd", b"gzip, gzip", b"identity, gzip", b"*", b"\xff"]
    )
    @pytest.mark.parametrize("headers", [[HOOK_SECRET], [HOOK_SIGNATURE], []])
    @OPEN_STATES
    def test_encoded(self, state: RegistrationState, headers: list[Pair], value: bytes) -> None:
        """An encoded body is refused before anything decodes it: its signature is over other bytes."""
        known = registration(state)

        assert refusal(known, [*headers, (b"Content-Encoding", value)]) == (415, "encoded body")
        assert refusal(known, [(b"content-encoding", b"identity"), (b"Content-Encoding", value), *headers])[0] == 415

    @pytest.mark.parametrize("value", [b"identity", b"IDENTITY", b" identity ", b""])
    @OPEN_STATES
    def test_not_encoded(self, state: RegistrationState, value: bytes) -> None:
        """Identity, and an empty value, mean that nothing is encoded."""
        headers = [(b"Content-Encoding", value), HOOK_SIGNATURE]

        assert read(registration(state), headers) == Signed(SIGNATURE)


class TestLength:
    @pytest.mark.parametrize(
        ("value", "fits"),
        [
            (b"0", True),
            (b"2", True),
            (b"99", True),
            (b"100", True),
            (b" 100 ", True),
            (b"0000000100", True),
            (b"101", False),
            (b"10000000000", False),
            (b"9" * 19, False),
            (b"9" * 20, False),
            (b"9" * 9_000, False),
            (b"-1", False),
            (b"-100", False),
            (b"+5", False),
            (b"5.0", False),
            (b"1e1", False),
            (b"0x5", False),
            (b"5, 5", False),
            (b"1_0", False),
            (b"many", False),
            (b"", False),
            ("٣".encode(), False),
            ("²".encode(), False),
            (b"\xff", False),
            (b"\x00", False),
        ],
        ids=lambda value: repr(value[:16]) if isinstance(value, bytes) else "",
    )
    @OPEN_STATES
    def test_announced(self, state: RegistrationState, value: bytes, fits: bool) -> None:
        """A length above the limit, or none that can be read, is refused before the body is."""
        headers = [(b"Content-Length", value), HOOK_SIGNATURE]
        if fits:
            assert read(registration(state), headers, max_body=100) == Signed(SIGNATURE)
        else:
            assert refusal(registration(state), headers, max_body=100) == (413, "body too long")

    def test_every_length_counts(self) -> None:
        """Of several lengths the longest decides."""
        headers = [(b"Content-Length", b"5"), (b"content-length", b"500"), HOOK_SIGNATURE]

        assert refusal(confirmed(), headers, max_body=100)[0] == 413

    def test_handshakes_have_limits_too(self) -> None:
        """A handshake with a long body is refused like anything else."""
        assert refusal(registration(), [HOOK_SECRET, (b"Content-Length", b"101")], max_body=100)[0] == 413

    def test_default(self) -> None:
        """Without a limit given it is 8 MiB."""
        assert MAX_BODY == 8 * 1024 * 1024
        at_the_limit = (b"Content-Length", str(MAX_BODY).encode())
        above = (b"Content-Length", str(MAX_BODY + 1).encode())

        assert read(confirmed(), [at_the_limit, HOOK_SIGNATURE]) == Signed(SIGNATURE)
        assert refusal(confirmed(), [above, HOOK_SIGNATURE]) == (413, "body too long")

    def test_body_as_it_comes_in(self) -> None:
        """Bytes that were counted are held against the same limit."""
        check_length(0, max_body=0)
        check_length(100, max_body=100)
        with pytest.raises(RejectedError) as caught:
            check_length(101, max_body=100)

        assert (caught.value.status, caught.value.reason) == (413, "body too long")


class TestOrderOfRefusals:
    def test_closed_before_all_else(self) -> None:
        """A closed registration answers 404 to everything, so that nothing can be learnt from it."""
        everything = [
            HOOK_SECRET,
            HOOK_SECRET,
            HOOK_SIGNATURE,
            HOOK_SIGNATURE,
            (b"Content-Encoding", b"gzip"),
            (b"Content-Length", b"9" * 50),
        ]

        assert refusal(registration(CLOSED, secret=SECRET), everything) == (404, "closed registration")

    @OPEN_STATES
    def test_encoding_then_length_then_signature(self, state: RegistrationState) -> None:
        """Then the encoding is looked at, then the length, then who sent it."""
        encoded, long = (b"Content-Encoding", b"gzip"), (b"Content-Length", b"99999999999")

        assert refusal(registration(state), [long, encoded])[0] == 415
        assert refusal(registration(state), [long])[0] == 413
        assert refusal(registration(state), [long, (b"X-Hook-Secret", b"short")])[0] == 413
        assert refusal(registration(state), [])[0] == 401


names = st.sampled_from(
    [b"X-Hook-Secret", b"X-Hook-Signature", b"Content-Length", b"Content-Encoding", b"Host", b"x-hook-secret "]
).flatmap(lambda name: st.sampled_from([name, name.lower(), name.upper(), name.swapcase()]))
values = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([GOOD.encode(), SIGNATURE, b"", b"identity", b"31", b"a" * 257]),
    st.from_regex(rb"[0-9A-Za-z_-]{14,20}", fullmatch=True),
    st.integers().map(lambda number: str(number).encode()),
)
any_headers = st.lists(st.tuples(names | st.binary(max_size=20), values), max_size=6)
any_registration = st.builds(
    registration,
    st.sampled_from(RegistrationState),
    candidates=st.lists(st.sampled_from([SECRET, OTHER]), max_size=4).map(tuple),
    secret=st.none() | st.just(SECRET),
)


class TestAnyRequest:
    @given(any_registration, any_headers)
    @example(registration(), [HOOK_SECRET])
    @example(registration(), [HOOK_SECRET, HOOK_SIGNATURE])
    def test_meaning(self, known: Registration, headers: list[Pair]) -> None:
        """Any headers are a handshake, a delivery or a refusal; a handshake only while pending and unsigned."""
        lowered = [name.lower() for name, _ in headers]
        try:
            meaning = read(known, headers)
        except RejectedError as error:
            refused = error
        else:
            if isinstance(meaning, Handshake):
                assert known.state is PENDING
                assert lowered.count(b"x-hook-secret") == 1
                assert b"x-hook-signature" not in lowered
                assert meaning.secret.reveal().encode() in [value.strip(b" \t") for _, value in headers]
            else:
                assert known.state is not CLOSED
                assert lowered.count(b"x-hook-signature") == 1
            return
        assert refused.status in {400, 401, 404, 413, 415}
        assert (refused.status == 404) is (known.state is CLOSED)
        assert len(refused.reason) < 60

    @given(any_registration, st.binary(max_size=80) | st.just(SIGNATURE), st.binary(max_size=40) | st.just(BODY))
    @example(registration(CONFIRMED, secret=SECRET), SIGNATURE, BODY)
    def test_proof(self, known: Registration, signature: bytes, body: bytes) -> None:
        """Any signature over any body is refused with 401 unless one of the registration's secrets made it."""
        secrets = [known.secret] if known.secret else known.candidates
        fits = signature == SIGNATURE and body == BODY and SECRET in secrets
        if fits:
            assert prove(known, Signed(signature), body).body == body
        else:
            with pytest.raises(RejectedError) as caught:
                prove(known, Signed(signature), body)
            assert caught.value.status == 401


def signed(secret: Secret, body: bytes = BODY) -> Signed:
    return Signed(sign_body(body, secret=secret).encode())


def disproof(known: Registration, proof: Signed, body: bytes = BODY) -> tuple[int, str]:
    with pytest.raises(RejectedError) as caught:
        prove(known, proof, body)
    return caught.value.status, caught.value.reason


class TestProve:
    def test_confirmed(self) -> None:
        """The confirmed secret proves a delivery, and nothing is quarantined."""
        assert prove(confirmed(), signed(SECRET), BODY) == NewDelivery(
            registration="r" * 64, signature=SIGNATURE.decode(), body=BODY, candidate=None
        )

    def test_key_of_duplicates_has_one_spelling(self) -> None:
        """A signature in capitals is the same delivery as one in small letters."""
        assert prove(confirmed(), Signed(SIGNATURE.upper()), BODY).signature == SIGNATURE.decode()

    def test_confirmed_forgets_candidates(self) -> None:
        """Once the 201 has decided, another candidate's signature proves nothing."""
        known = registration(CONFIRMED, secret=SECRET, candidates=(OTHER,))

        assert disproof(known, signed(OTHER)) == (401, "wrong signature")
        assert prove(known, signed(SECRET), BODY).candidate is None

    @pytest.mark.parametrize("order", [1, -1])
    @pytest.mark.parametrize("secret", [SECRET, OTHER, THIRD], ids=["first", "second", "third"])
    def test_candidates_are_tried_in_turn(self, secret: Secret, order: int) -> None:
        """A delivery that comes before the 201 is proven by any candidate (trap 25), and quarantined under that one."""
        known = registration(candidates=(SECRET, OTHER, THIRD)[::order])

        proven = prove(known, signed(secret), BODY)

        assert proven.candidate == candidate_id(secret)
        assert proven.signature == sign_body(BODY, secret=secret)
        assert proven.body == BODY

    def test_quarantine_mark_tells_candidates_apart(self) -> None:
        """The mark is a hash: it names the candidate and does not show its secret."""
        known = registration(candidates=(SECRET, OTHER))
        marks = {prove(known, signed(secret), BODY).candidate for secret in (SECRET, OTHER)}

        assert len(marks) == 2
        assert GOOD not in str(marks)

    def test_other_registrations_secret(self) -> None:
        """Only the secrets of this very registration count: none is taken from another (traps 15 and 16)."""
        assert disproof(confirmed(), signed(OTHER)) == (401, "wrong signature")
        assert disproof(registration(candidates=(SECRET,)), signed(OTHER)) == (401, "wrong signature")

    @OPEN_STATES
    def test_no_secret_yet(self, state: RegistrationState) -> None:
        """Without any secret nothing is proven, not even with an empty key (trap 10)."""
        empty_key = Signed(b"b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad")

        assert disproof(registration(state), empty_key, b"") == (401, "no secret yet")
        assert disproof(registration(state), signed(SECRET)) == (401, "no secret yet")

    def test_empty_secret(self) -> None:
        """A registration that holds an empty secret, from a broken store, verifies nothing."""
        empty_key = Signed(b"b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad")

        assert disproof(registration(CONFIRMED, secret=Secret("")), empty_key, b"") == (401, "wrong signature")
        assert disproof(registration(candidates=(Secret(""),)), empty_key, b"") == (401, "wrong signature")

    def test_heartbeats_need_proof_too(self) -> None:
        """An empty list of events is verified like any other body (trap 11)."""
        assert prove(confirmed(), signed(SECRET, HEARTBEAT), HEARTBEAT).body == HEARTBEAT
        assert disproof(confirmed(), signed(OTHER, HEARTBEAT), HEARTBEAT) == (401, "wrong signature")

    def test_before_it_is_read(self) -> None:
        """A body need not be JSON to be proven: raw bytes are signed, raw bytes are kept (trap 12)."""
        for body in (b"", b"\xff\x00", b'{ "events" : [] }', b"not json"):
            assert prove(confirmed(), signed(SECRET, body), body).body is body

    @pytest.mark.parametrize("signature", [b"", b"\xff" * 64, SIGNATURE[:63], SIGNATURE + b"0", "é".encode() * 32])
    def test_hostile_signatures(self, signature: bytes) -> None:
        """Signatures of a wrong length or outside ASCII are wrong, not an exception (traps 13 and 14)."""
        assert disproof(confirmed(), Signed(signature)) == (401, "wrong signature")

    @pytest.mark.parametrize("wrap", [b" %b", b"%b ", b"\t%b"], ids=["before", "after", "tab"])
    def test_blanks_around_a_signature(self, wrap: bytes) -> None:
        """Blanks that a front end left around the value do not break a true delivery."""
        proof = read(confirmed(), [(b"X-Hook-Signature", wrap % SIGNATURE)])

        assert isinstance(proof, Signed)
        assert prove(confirmed(), proof, BODY).signature == SIGNATURE.decode()


class TestHeartbeat:
    @pytest.mark.parametrize(
        "body",
        [
            HEARTBEAT,
            b'{"events": []}',
            b' { "events" : [ ] } \n',
            b'\r\n{\t"events"\r\n:[\n]}',
        ],
    )
    def test_no_events(self, body: bytes) -> None:
        """A body with an empty list of events, however it is spaced."""
        assert is_heartbeat(body)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{}",
            b"[]",
            BODY,
            b'{"events":[{}]}',
            b'{"events":null}',
            b'{"events":[],"more":1}',
            b'{"more":1,"events":[]}',
            b'{"events":[]}{"events":[]}',
            b'{"events":[]',
            b'{"Events":[]}',
            b"{'events':[]}",
            b'\xef\xbb\xbf{"events":[]}',
            b'{"events":[]}\x00',
            '{\xa0"events":[]}'.encode(),
        ],
    )
    def test_anything_else(self, body: bytes) -> None:
        """Whatever else it is, it is stored: nothing that may hold an event is thrown away as a heartbeat."""
        assert not is_heartbeat(body)

    @given(st.binary())
    def test_any_bytes(self, body: bytes) -> None:
        """Any bytes get an answer."""
        assert is_heartbeat(body) in {True, False}

    def test_long_bodies_are_told_at_once(self) -> None:
        """Blanks by the million do not make the pattern slow."""
        assert not is_heartbeat(b'{"events":[' + b" " * 4_000_000 + b"x]}")
        assert is_heartbeat(b'{"events":[' + b" " * 4_000_000 + b"]}")
