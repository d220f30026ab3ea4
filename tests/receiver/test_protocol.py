"""What a request to a target means, rule by rule, for every state of the registration."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asana_webhooks import Reply
from asana_webhooks.models import Secret
from asana_webhooks.receiver.protocol import (
    MAX_BODY,
    Handshake,
    HookHeaders,
    ReceiveResult,
    RefusedError,
    Signed,
    check_length,
    is_heartbeat,
    plain_signature,
    read_headers,
    verify_delivery,
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
UNKEYED = b"b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad"
"""The HMAC of nothing with an empty key."""

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
OPEN_STATES = pytest.mark.parametrize("state", [PENDING, CONFIRMED], ids=lambda state: state.value)


def registration(
    state: RegistrationState = PENDING, *, candidates: tuple[Secret, ...] = (), secret: Secret | None = None
) -> Registration:
    return Registration(id="r" * 64, resource="21", state=state, deadline=0.0, candidates=candidates, secret=secret)


def confirmed() -> Registration:
    return registration(CONFIRMED, secret=SECRET)


def read(known: Registration, headers: Iterable[Pair], *, max_body: int = MAX_BODY) -> Handshake | Signed:
    return read_headers(known, HookHeaders.of(headers), max_body=max_body)


def refusal(known: Registration, headers: Iterable[Pair], *, max_body: int = MAX_BODY) -> tuple[int, str]:
    with pytest.raises(RefusedError) as caught:
        read(known, headers, max_body=max_body)
    return caught.value.result.status, caught.value.result


def test_every_result_has_its_status() -> None:
    """Success is 200, what cannot be verified is 401, and what Asana should send again is 503."""
    statuses: dict[int, list[str]] = {}
    for result in ReceiveResult:
        statuses.setdefault(result.status, []).append(result)

    assert statuses == {
        200: ["handshake echoed", "stored", "quarantined", "duplicate", "heartbeat"],
        404: ["unknown endpoint", "closed registration"],
        415: ["unsupported Content-Encoding"],
        400: ["both Content-Length and chunked", "body cut off", "malformed handshake"],
        413: ["body too large"],
        408: ["body timed out"],
        401: [
            "handshake too late, or too many",
            "no signature",
            "several signatures",
            "no secret yet",
            "invalid signature",
        ],
        503: [
            "stopping",
            "too many requests or bytes in flight",
            "store full",
            "store unavailable",
            "not stored in time",
        ],
    }
    assert str(RefusedError(ReceiveResult.INVALID_SIGNATURE)) == "refused with 401: invalid signature"


def test_no_repr_shows_a_secret_or_a_signature() -> None:
    """With the body a signature is a delivery that anyone could replay; a handshake's reply holds the secret."""
    headers = HookHeaders.of([HOOK_SECRET, HOOK_SIGNATURE])
    reply = Reply(status=200, headers=(HOOK_SECRET,))
    shown = repr([Handshake(SECRET), Signed(SIGNATURE), headers, reply])

    assert GOOD not in shown
    assert SIGNATURE.decode() not in shown


class TestHandshake:
    def test_pending(self) -> None:
        """A well-formed secret for a pending registration is a handshake, whoever came before."""
        assert read(registration(), [*ORDINARY, HOOK_SECRET]) == Handshake(SECRET)
        assert read(registration(candidates=(OTHER, THIRD)), [HOOK_SECRET]) == Handshake(SECRET)

    def test_not_pending(self) -> None:
        """Once confirmed, no POST replaces the secret, not even with the same one; a closed one hears nothing."""
        for candidates in ((), (SECRET,)):
            done = registration(CONFIRMED, secret=OTHER, candidates=candidates)
            assert refusal(done, [HOOK_SECRET]) == (401, "no signature")
        assert refusal(confirmed(), [HOOK_SECRET]) == (401, "no signature")
        assert refusal(registration(CLOSED), [HOOK_SECRET]) == (404, "closed registration")

    @OPEN_STATES
    def test_beside_a_signature(self, state: RegistrationState) -> None:
        """With a signature beside it, an empty one too, a secret is ignored: the rules of deliveries hold."""
        known = registration(state)

        assert read(known, [*ORDINARY, HOOK_SECRET, HOOK_SIGNATURE]) == Signed(SIGNATURE)
        assert read(known, [HOOK_SIGNATURE, HOOK_SECRET]) == Signed(SIGNATURE)
        assert read(known, [HOOK_SECRET, (b"x-hook-signature", b"")]) == Signed(b"")
        assert refusal(known, [HOOK_SECRET, HOOK_SIGNATURE, HOOK_SIGNATURE]) == (401, "several signatures")

    def test_two_secrets(self) -> None:
        """Two secrets are no handshake, even two that are the same."""
        for second in (HOOK_SECRET, (b"x-hook-secret", b"another-secret-0"), (b"X-HOOK-SECRET", b"")):
            assert refusal(registration(), [HOOK_SECRET, second]) == (400, "malformed handshake")
            assert refusal(registration(), [second, HOOK_SECRET]) == (400, "malformed handshake")

    def test_lengths(self) -> None:
        """A secret is opaque: 1 to 256 visible ASCII characters, whichever they are."""
        visible = "".join(map(chr, range(0x21, 0x7F)))
        for text in (*visible, visible, *((visible * 3)[:length] for length in (2, 16, 32, 255, 256))):
            assert read(registration(), [(b"X-Hook-Secret", text.encode())]) == Handshake(Secret(text))

    def test_malformed(self) -> None:
        """What is longer, or not visible ASCII, is never echoed: 400, and the refusal does not quote it."""
        good = b"a" * 16
        values = [
            *(b"", b" ", b"a" * 257, b"a" * 9_000),
            *(good + between + good for between in (b" ", b"\x00", b"\t", b"\x7f", b"\r\n", b"\n")),
            *(good + b"\r\nX-Evil: 1", good + b"\nX-Evil: 1", good + b"\x1b[31m"),
            *(b"\x00" + good, good + b"\x00", good + b"\xe9"),
            *(b"\xff" * 32, "ä".encode() * 16, "٣".encode() * 16),
            # A line break at either end is no blank to trim: such a secret would be echoed altered.
            *(GOOD.encode() + end for end in (b"\r", b"\n", b"\r\n", b"\x0b", b"\x0c")),
            *(start + GOOD.encode() for start in (b"\r", b"\n", b"\r\n", b"\x0b", b"\x0c")),
        ]
        for value in values:
            assert refusal(registration(), [(b"X-Hook-Secret", value)]) == (400, "malformed handshake"), value

    def test_blanks_around_it(self) -> None:
        """Blanks around a value belong to HTTP, not to the value; some front ends leave them."""
        for value in (b" %b", b"%b ", b"\t%b\t ", b"  %b  "):
            assert read(registration(), [(b"X-Hook-Secret", value % GOOD.encode())]) == Handshake(SECRET)


class TestDelivery:
    @OPEN_STATES
    def test_signed(self, state: RegistrationState) -> None:
        """One signature makes a request a delivery that has to be verified; headers may be an iterator."""
        assert read(registration(state), [*ORDINARY, HOOK_SIGNATURE]) == Signed(SIGNATURE)
        assert read(registration(state), iter([*ORDINARY, HOOK_SIGNATURE])) == Signed(SIGNATURE)

    @OPEN_STATES
    def test_unsigned(self, state: RegistrationState) -> None:
        """Without a signature nothing is accepted, whether a secret is stored or not."""
        for secret in (None, SECRET):
            for candidates in ((), (SECRET,)):
                known = registration(state, secret=secret, candidates=candidates)
                assert refusal(known, ORDINARY) == (401, "no signature")
                assert refusal(known, []) == (401, "no signature")

    @OPEN_STATES
    def test_asanas_other_header_is_no_signature(self, state: RegistrationState) -> None:
        """X-Asana-Request-Signature is undocumented for webhooks; it neither proves nor disturbs."""
        assert refusal(registration(state), [(b"X-Asana-Request-Signature", SIGNATURE)]) == (401, "no signature")

    @OPEN_STATES
    def test_several_signatures(self, state: RegistrationState) -> None:
        """Several signatures are refused, even if they agree: nobody may choose which one counts."""
        for count in (2, 3, 50):
            assert refusal(registration(state), [HOOK_SIGNATURE] * count) == (401, "several signatures")

    @OPEN_STATES
    def test_names_in_any_case(self, state: RegistrationState) -> None:
        """Names of headers have no case."""
        assert read(registration(state), [(b"x-HOOK-signature", SIGNATURE)]) == Signed(SIGNATURE)
        assert refusal(registration(state), [(b"CONTENT-ENCODING", b"gzip"), HOOK_SIGNATURE])[0] == 415
        assert refusal(registration(state), [(b"CONTENT-length", b"99999999"), HOOK_SIGNATURE])[0] == 413
        assert read(registration(), [(b"x-hook-SECRET", GOOD.encode())]) == Handshake(SECRET)

    def test_names_that_look_alike(self) -> None:
        """A name that only looks like it is another header."""
        for name in (b"X_Hook_Signature", b"X-Hook-Signature ", b"X-Hook-Signature\x00", b"Hook-Sig"):
            assert refusal(confirmed(), [(name, SIGNATURE)]) == (401, "no signature")


class TestBody:
    @OPEN_STATES
    def test_encoded(self, state: RegistrationState) -> None:
        """An encoded body is refused before anything decodes it: its signature is over other bytes."""
        known = registration(state)
        for value in (b"gzip", b"GZIP", b"deflate", b"br", b"zstd", b"gzip, gzip", b"identity, gzip", b"*", b"\xff"):
            encoding = (b"Content-Encoding", value)
            for headers in ([HOOK_SECRET], [HOOK_SIGNATURE], []):
                assert refusal(known, [*headers, encoding]) == (415, "unsupported Content-Encoding")
                assert refusal(known, [(b"content-encoding", b"identity"), encoding, *headers])[0] == 415

    @OPEN_STATES
    def test_not_encoded(self, state: RegistrationState) -> None:
        """Identity, and an empty value, mean that nothing is encoded."""
        for value in (b"identity", b"IDENTITY", b" identity ", b""):
            assert read(registration(state), [(b"Content-Encoding", value), HOOK_SIGNATURE]) == Signed(SIGNATURE)

    @OPEN_STATES
    def test_announced_length(self, state: RegistrationState) -> None:
        """A length above the limit, or none that can be read, is refused before the body is."""
        known = registration(state)
        for value in (b"0", b"2", b"99", b"100", b" 100 ", b"0000000100"):
            assert read(known, [(b"Content-Length", value), HOOK_SIGNATURE], max_body=100) == Signed(SIGNATURE)
        too_long = [b"101", b"10000000000", b"9" * 19, b"9" * 20, b"9" * 9_000]
        no_number = [b"-1", b"-100", b"+5", b"5.0", b"1e1", b"0x5", b"5, 5", b"1_0", b"many", b"", b"\xff", b"\x00"]
        for value in (*too_long, *no_number, "٣".encode(), "²".encode()):
            headers = [(b"Content-Length", value), HOOK_SIGNATURE]
            assert refusal(known, headers, max_body=100) == (413, "body too large"), value

    def test_every_length_counts(self) -> None:
        """Of several lengths the longest decides, and a handshake's counts as well."""
        headers = [(b"Content-Length", b"5"), (b"content-length", b"500"), HOOK_SIGNATURE]

        assert refusal(confirmed(), headers, max_body=100)[0] == 413
        assert refusal(registration(), [HOOK_SECRET, (b"Content-Length", b"101")], max_body=100)[0] == 413

    def test_default_limit(self) -> None:
        """Without a limit given it is 8 MiB."""
        headers = HookHeaders.of([(b"Content-Length", b"%d" % (8 * 1024**2)), HOOK_SIGNATURE])
        assert read_headers(confirmed(), headers) == Signed(SIGNATURE)
        with pytest.raises(RefusedError, match="413"):
            read_headers(confirmed(), HookHeaders.of([(b"Content-Length", b"%d" % (8 * 1024**2 + 1))]))

    def test_bytes_that_came_in(self) -> None:
        """Bytes that were counted are held against the same limit."""
        check_length(0, max_body=0)
        check_length(100, max_body=100)
        with pytest.raises(RefusedError, match="413: body too large"):
            check_length(101, max_body=100)

    @OPEN_STATES
    def test_length_and_chunks(self, state: RegistrationState) -> None:
        """Both a length and chunks are refused: a proxy in front may have believed the other one."""
        both = [(b"Content-Length", b"31"), (b"Transfer-Encoding", b"chunked")]

        assert refusal(registration(state), [*both, HOOK_SIGNATURE]) == (400, "both Content-Length and chunked")
        assert read(registration(state), [both[1], HOOK_SIGNATURE]) == Signed(SIGNATURE)

    @OPEN_STATES
    def test_order_of_refusals(self, state: RegistrationState) -> None:
        """Closed before all else, so that nothing can be learnt; then encoding, length, and who sent it."""
        encoded, long = (b"Content-Encoding", b"gzip"), (b"Content-Length", b"99999999999")

        everything = [HOOK_SECRET, HOOK_SECRET, HOOK_SIGNATURE, HOOK_SIGNATURE, encoded, long]
        assert refusal(registration(CLOSED, secret=SECRET), everything) == (404, "closed registration")
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
    def test_meaning(self, known: Registration, headers: list[Pair]) -> None:
        """Any headers are a handshake, a delivery or a refusal; a handshake only while pending and unsigned."""
        try:
            meaning = read(known, headers)
        except RefusedError as error:
            status = error.result.status
        else:
            self.check(known, headers, meaning)
            return
        assert status in {400, 401, 404, 413, 415}
        assert (status == 404) is (known.state is CLOSED)

    def check(self, known: Registration, headers: list[Pair], meaning: Handshake | Signed) -> None:
        lowered = [name.lower() for name, _ in headers]
        if isinstance(meaning, Handshake):
            assert known.state is PENDING
            assert lowered.count(b"x-hook-secret") == 1
            assert b"x-hook-signature" not in lowered
            assert meaning.secret.reveal().encode() in [value.strip(b" \t") for _, value in headers]
        else:
            assert known.state is not CLOSED
            assert lowered.count(b"x-hook-signature") == 1

    @given(any_registration, st.binary(max_size=80) | st.just(SIGNATURE), st.binary(max_size=40) | st.just(BODY))
    def test_signature(self, known: Registration, signature: bytes, body: bytes) -> None:
        """Any signature over any body is refused with 401 unless one of the registration's secrets made it."""
        secrets = [known.secret] if known.secret else known.candidates
        if signature == SIGNATURE and body == BODY and SECRET in secrets:
            assert verify_delivery(known, Signed(signature), body).body == body
        else:
            assert failure(known, Signed(signature), body)[0] == 401


def signed(secret: Secret, body: bytes = BODY) -> Signed:
    return Signed(sign_body(body, secret=secret).encode())


def failure(known: Registration, signature: Signed, body: bytes = BODY) -> tuple[int, str]:
    with pytest.raises(RefusedError) as caught:
        verify_delivery(known, signature, body)
    return caught.value.result.status, caught.value.result


class TestVerifying:
    def test_confirmed(self) -> None:
        """The confirmed secret proves a delivery, and nothing is quarantined; the key of duplicates is lower case."""
        for signature in (SIGNATURE, SIGNATURE.upper()):
            assert verify_delivery(confirmed(), Signed(signature), BODY) == NewDelivery(
                registration="r" * 64, signature=SIGNATURE.decode(), body=BODY, candidate=None
            )

    def test_confirmed_forgets_candidates(self) -> None:
        """Once the 201 has decided, another candidate's signature proves nothing."""
        known = registration(CONFIRMED, secret=SECRET, candidates=(OTHER,))

        assert failure(known, signed(OTHER)) == (401, "invalid signature")
        assert verify_delivery(known, signed(SECRET), BODY).candidate is None

    def test_candidates_are_tried_in_turn(self) -> None:
        """A delivery that comes before the 201 is verified by any candidate, and quarantined under that one's hash."""
        for candidates in ((SECRET, OTHER, THIRD), (THIRD, OTHER, SECRET)):
            for secret in candidates:
                verified = verify_delivery(registration(candidates=candidates), signed(secret), BODY)
                assert verified.candidate == candidate_id(secret)
                assert secret.reveal() not in str(verified.candidate)
                assert verified.signature == sign_body(BODY, secret=secret)

    def test_other_registrations_secret(self) -> None:
        """Only the secrets of this very registration count: none is taken from another."""
        assert failure(confirmed(), signed(OTHER)) == (401, "invalid signature")
        assert failure(registration(candidates=(SECRET,)), signed(OTHER)) == (401, "invalid signature")

    @OPEN_STATES
    def test_no_secret(self, state: RegistrationState) -> None:
        """Without a secret, or with an empty one from a broken store, nothing is verified."""
        assert failure(registration(state), Signed(UNKEYED), b"") == (401, "no secret yet")
        assert failure(registration(state), signed(SECRET)) == (401, "no secret yet")
        assert failure(registration(CONFIRMED, secret=Secret("")), Signed(UNKEYED), b"") == (401, "invalid signature")
        assert failure(registration(candidates=(Secret(""),)), Signed(UNKEYED), b"") == (401, "invalid signature")

    def test_any_body(self) -> None:
        """A body need not be JSON to be verified: raw bytes are signed, raw bytes are kept; heartbeats are no other."""
        for body in (b"", b"\xff\x00", b'{ "events" : [] }', b"not json", HEARTBEAT):
            assert verify_delivery(confirmed(), signed(SECRET, body), body).body is body
            assert failure(confirmed(), signed(OTHER, body), body) == (401, "invalid signature")

    def test_hostile_signatures(self) -> None:
        """Signatures of a wrong length or outside ASCII are wrong, not an exception."""
        for signature in (b"", b"\xff" * 64, SIGNATURE[:63], SIGNATURE + b"0", "é".encode() * 32):
            assert failure(confirmed(), Signed(signature)) == (401, "invalid signature")

    def test_blanks_around_a_signature(self) -> None:
        """Blanks that a front end left around the value do not break a true delivery."""
        for value in (b" %b", b"%b ", b"\t%b"):
            assert read(confirmed(), [(b"X-Hook-Signature", value % SIGNATURE)]) == Signed(SIGNATURE)


class TestHeartbeat:
    def test_no_events(self) -> None:
        """A body with an empty list of events, however it is spaced."""
        for body in (HEARTBEAT, b'{"events": []}', b' { "events" : [ ] } \n', b'\r\n{\t"events"\r\n:[\n]}'):
            assert is_heartbeat(body)

    def test_anything_else(self) -> None:
        """Whatever else it is, it is stored: nothing that may hold an event is thrown away as a heartbeat."""
        for body in (
            *(b"", b"{}", b"[]", BODY, b'{"events":[{}]}', b'{"events":null}', b'{"Events":[]}', b"{'events':[]}"),
            *(b'{"events":[],"more":1}', b'{"more":1,"events":[]}', b'{"events":[]}{"events":[]}', b'{"events":[]'),
            *(b'\xef\xbb\xbf{"events":[]}', b'{"events":[]}\x00', '{\xa0"events":[]}'.encode(), b'{"events":\x0c[]}'),
        ):
            assert not is_heartbeat(body), body

    def test_long_bodies_are_told_at_once(self) -> None:
        """Blanks by the million do not make the pattern slow."""
        assert not is_heartbeat(b'{"events":[' + b" " * 4_000_000 + b"x]}")
        assert is_heartbeat(b'{"events":[' + b" " * 4_000_000 + b"]}")


UNUSUAL: list[Pair] = [
    *((b"Content-Length", value) for value in (b"0", b" 100 ", b"101", b"9" * 20, b"-1", b"many")),
    *((b"Content-Encoding", value) for value in (b"gzip", b"identity", b"5")),
    (b"Transfer-Encoding", b"chunked"),
    (b"x-HOOK-signature", b" %b " % SIGNATURE),
    (b"X-Hook-Signature", b""),
    HOOK_SECRET,
    HOOK_SIGNATURE,
]


def test_plain_headers() -> None:
    """The usual headers need no second look."""
    assert plain_signature([*ORDINARY, HOOK_SIGNATURE]) == plain_signature((HOOK_SIGNATURE,)) == Signed(SIGNATURE)


@given(st.lists(st.sampled_from([*ORDINARY, *UNUSUAL]), max_size=6))
def test_plain_headers_mean_the_same(headers: list[Pair]) -> None:
    """What the short way accepts, the long way accepts as well, and both find the same signature."""
    signed = plain_signature(headers, max_body=100)

    assert signed is None or read(confirmed(), headers, max_body=100) == signed


def test_headers_that_are_no_list_of_bytes() -> None:
    """The long way decides about them: it raises for what is a mistake, and reads what can be read only once."""
    text = [("X-Hook-Signature", "f" * 64)]
    for headers in (text, [(b"X-Hook-Signature", "f" * 64)], [b"X-Hook-Signature"], dict(text), iter([HOOK_SIGNATURE])):
        assert plain_signature(headers) is None  # type: ignore[arg-type]
