"""Signatures: Asana's way of signing, and every way of getting it wrong."""

import hashlib
import itertools
import json
import re
import shutil
import subprocess
import traceback
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from asana_webhooks import (
    ConfigurationError,
    InvalidSignatureError,
    ParsedDelivery,
    PayloadError,
    Secret,
    parse_delivery,
    sign_body,
    verify_signature,
)
from asana_webhooks.receiver.signature import explain_signature

# Two vectors, computed by the algorithm that a real delivery proves.
SECRET = Secret("0123456789abcdef0123456789abcdef")
HEARTBEAT = b'{"events":[]}'
HEARTBEAT_SIGNATURE = "b8e5e1612f52653b9177d6a1b25773f910e9317fb1f3df63f0d0cf2efdfc02a3"
DELIVERY = (
    b'{"events":[{"user":null,"created_at":"2026-01-02T03:04:05.678Z","action":"deleted","resource":{"gid":"2002",'
    b'"resource_type":"task","resource_subtype":"default_task"},"parent":null}]}'
)
DELIVERY_SIGNATURE = "54c8dde9546bb0e224feb173ecc637736b44e96e38166bd9bdc0b82088e21437"
VECTORS = [(HEARTBEAT, HEARTBEAT_SIGNATURE), (DELIVERY, DELIVERY_SIGNATURE)]

OPENSSL = shutil.which("openssl")

secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=300)


def hmac_by_hand(key: bytes, body: bytes) -> str:
    """HMAC-SHA256 as RFC 2104 writes it down, from hashlib alone."""
    key = hashlib.sha256(key).digest() if len(key) > 64 else key
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + body).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()


class TestSign:
    def test_vectors(self) -> None:
        """Known bodies have known signatures: the secret's text is the key, it is not hex-decoded."""
        for body, signature in VECTORS:
            assert sign_body(body, secret=SECRET) == signature
            assert verify_signature(body, signature.encode(), secret=SECRET)

    @given(secrets, st.binary())
    @example("x" * 64, b"")
    @example("x" * 65, b"")
    def test_against_the_definition(self, secret: str, body: bytes) -> None:
        """Signatures are those of RFC 2104, for keys shorter and longer than a block."""
        assert sign_body(body, secret=Secret(secret)) == hmac_by_hand(secret.encode(), body)

    @pytest.mark.skipif(OPENSSL is None, reason="there is no openssl on this machine")
    def test_against_openssl(self) -> None:
        """Another implementation agrees."""
        for secret, body in itertools.product(
            ["k", SECRET.reveal(), "long-" * 50], [b"", DELIVERY, bytes(range(256)) * 9]
        ):
            command = [str(OPENSSL), "dgst", "-sha256", "-hmac", secret, "-r"]
            said = subprocess.run(command, input=body, capture_output=True, check=True, timeout=30)
            assert said.stdout.split()[0].decode() == sign_body(body, secret=Secret(secret))


class TestVerify:
    @given(secrets, st.binary())
    def test_what_was_signed(self, secret: str, body: bytes) -> None:
        """Whatever `sign_body` made is accepted, in lower, upper and mixed case."""
        signature = sign_body(body, secret=Secret(secret))

        for written in (signature, signature.upper(), signature[:32].upper() + signature[32:]):
            assert verify_signature(body, written.encode(), secret=Secret(secret))

    @given(st.binary(min_size=1), st.data())
    def test_one_bit_of_the_body(self, body: bytes, data: st.DataObject) -> None:
        """A body with one bit turned is another body."""
        signature = sign_body(body, secret=SECRET).encode()
        place = data.draw(st.integers(0, len(body) * 8 - 1))
        turned = bytearray(body)
        turned[place // 8] ^= 1 << place % 8

        assert not verify_signature(bytes(turned), signature, secret=SECRET)

    @given(st.binary(), st.integers(0, 64 * 8 - 1))
    def test_one_bit_of_the_header(self, body: bytes, place: int) -> None:
        """A header with one bit turned is refused, unless the bit only changes the case of a letter."""
        signature = bytearray(sign_body(body, secret=SECRET).encode())
        original = bytes(signature)
        signature[place // 8] ^= 1 << place % 8
        assume(bytes(signature).lower() != original)

        assert not verify_signature(body, bytes(signature), secret=SECRET)

    @given(secrets, st.binary(), st.data())
    def test_one_bit_of_the_secret(self, secret: str, body: bytes, data: st.DataObject) -> None:
        """A secret with one bit turned verifies nothing."""
        place = data.draw(st.integers(0, len(secret) - 1))
        bit = data.draw(st.integers(0, 6))
        other = secret[:place] + chr(ord(secret[place]) ^ 1 << bit) + secret[place + 1 :]
        # HMAC fills short keys up with NUL, so a key and the same key with NUL after it are one key.
        assume(other.rstrip("\0") != secret)

        assert not verify_signature(body, sign_body(body, secret=Secret(secret)).encode(), secret=Secret(other))

    @given(st.binary(), st.binary())
    def test_longer_and_shorter_bodies(self, body: bytes, more: bytes) -> None:
        """A body with something added is another body."""
        assume(more)
        signature = sign_body(body, secret=SECRET).encode()

        assert not verify_signature(body + more, signature, secret=SECRET)
        assert not verify_signature(more + body, signature, secret=SECRET) or more + body == body

    @given(st.binary(max_size=200))
    def test_any_header(self, header: bytes) -> None:
        """Whatever bytes the header holds, the answer is no, and never an exception."""
        assert verify_signature(HEARTBEAT, header, secret=SECRET) is False

    def test_bad_headers(self) -> None:
        """Empty, short, long, doubled, prefixed, padded, raw or outside ASCII: no."""
        true = HEARTBEAT_SIGNATURE.encode()
        for header in (
            *(b"", b" ", b"g" * 64, b"0" * 64, b"a" * 8192, b"\xff" * 64, "٣".encode() * 64),
            *(true[:63], true + b"0", true * 2, true + b"," + true, b" " + true, true + b"\n", true + b"\0"),
            *(b"sha256=" + true, b"0x" + true[2:], "é".encode("latin-1") + true[1:], b"\xed\xb3\xbf" + true[3:]),
            *(bytes.fromhex(HEARTBEAT_SIGNATURE), HEARTBEAT_SIGNATURE.encode("utf-16")),
        ):
            assert verify_signature(HEARTBEAT, header, secret=SECRET) is False, header

    def test_key_is_not_decoded(self) -> None:
        """A signature made with the hex-decoded secret is not Asana's."""
        forged = hmac_by_hand(bytes.fromhex(SECRET.reveal()), HEARTBEAT)

        assert not verify_signature(HEARTBEAT, forged.encode(), secret=SECRET)

    def test_raw_bytes_count(self) -> None:
        """The same JSON written anew is another body."""
        again = json.dumps(json.loads(DELIVERY)).encode()

        assert json.loads(again) == json.loads(DELIVERY)
        assert not verify_signature(again, DELIVERY_SIGNATURE.encode(), secret=SECRET)

    def test_plain_hash_is_no_signature(self) -> None:
        """Hashing key and body one after the other does not sign."""
        forged = hashlib.sha256(SECRET.reveal().encode() + HEARTBEAT).hexdigest()

        assert not verify_signature(HEARTBEAT, forged.encode(), secret=SECRET)

    def test_comparison_takes_constant_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The comparison is compare_digest's, over bytes of equal length: a wrong guess costs the same everywhere."""
        calls: list[tuple[object, object]] = []

        def noted(one: bytes, two: bytes) -> bool:
            calls.append((one, two))
            return one == two

        monkeypatch.setattr("asana_webhooks.receiver.signature.hmac.compare_digest", noted)

        assert verify_signature(HEARTBEAT, HEARTBEAT_SIGNATURE.upper().encode(), secret=SECRET)
        assert not verify_signature(HEARTBEAT, b"0" * 64, secret=SECRET)
        assert calls == [
            (HEARTBEAT_SIGNATURE.encode(), HEARTBEAT_SIGNATURE.encode()),
            (HEARTBEAT_SIGNATURE.encode(), b"0" * 64),
        ]


texts = st.text(st.characters(), max_size=40)  # lone surrogates included
view: Any = memoryview  # its type parameter confuses the checker
anything: st.SearchStrategy[Any] = st.one_of(
    *(
        texts,
        texts.map(Secret),
        st.binary(max_size=40),
        st.binary(max_size=40).map(bytearray),
        st.none(),
        st.integers(),
    ),
    *(
        st.binary(max_size=40).map(view),
        st.lists(st.binary()),
        st.dictionaries(texts, texts),
        st.floats(),
    ),
    *(st.just(Secret(5)), st.just(memoryview(b"abcdef")[::2]), st.just(HEARTBEAT_SIGNATURE)),  # type: ignore[arg-type]
)


def released() -> memoryview:
    view = memoryview(HEARTBEAT)
    view.release()
    return view


class TestArguments:
    """What frameworks and environment variables provide, and the caller's mistakes."""

    @given(st.text(), secrets)
    def test_text_and_bytes_are_alike(self, body: str, secret: str) -> None:
        """A body, a header and a secret work as text and as any kind of bytes, in every combination."""
        signature = sign_body(body.encode(), secret=Secret(secret))
        raw = body.encode()
        header = signature.encode()
        bodies: list[Any] = [body, raw, bytearray(raw), memoryview(raw), memoryview(raw[::-1])[::-1]]
        headers: list[Any] = [signature, header, bytearray(header), memoryview(header)]
        keys: list[Any] = [secret, secret.encode(), Secret(secret)]
        for content, header, key in itertools.product(bodies, headers, keys):
            assert verify_signature(content, header, secret=key) is True
            assert sign_body(content, secret=key) == signature

    @given(anything, anything, anything)
    @example(HEARTBEAT, HEARTBEAT_SIGNATURE, SECRET)
    @example(released(), None, "x")
    @example(b"", released(), "x")
    def test_nothing_else_is_raised(self, body: Any, signature: Any, secret: Any) -> None:
        """With any arguments, the functions return a documented result or raise a documented error."""
        for mistakes, call in (
            ((), lambda: verify_signature(body, signature, secret=secret) in (True, False)),
            ((), lambda: re.fullmatch("[0-9a-f]{64}", sign_body(body, secret=secret))),
            (
                (InvalidSignatureError,),
                lambda: isinstance(parse_delivery(body, signature, secret=secret), ParsedDelivery),
            ),
        ):
            try:
                assert call()
            except (ConfigurationError, *mistakes):
                pass

    @pytest.mark.parametrize(
        ("argument", "value", "match"),
        [
            ("body", {"events": []}, "^body must be the raw body of the request.*, not dict$"),
            ("body", None, "^body .*, not NoneType$"),
            ("body", "\ud800", "^body .*; this str has a lone surrogate$"),
            ("body", released(), "^body .*; this memoryview was released$"),
            ("signature", [HEARTBEAT_SIGNATURE], "^signature must be the value of the X-Hook-Signature.*, not list$"),
            ("secret", None, "^secret must be the webhook's X-Hook-Secret.*, not NoneType$"),
            ("secret", "\ud800", "^secret .*; this str has a lone surrogate$"),
            ("secret", Secret("\ud800"), "^secret .*; this str has a lone surrogate$"),
            ("secret", "", "^secret must not be empty"),
            ("secret", b"", "^secret must not be empty"),
            ("secret", Secret(""), "^secret must not be empty"),
        ],
    )
    def test_mistakes_are_named(self, argument: str, value: Any, match: str) -> None:
        """A wrong type, an empty secret or a lone surrogate is a ConfigurationError that names the argument, even if
        the signature is malformed as well.
        """
        arguments: dict[str, Any] = {"body": HEARTBEAT, "signature": "malformed", "secret": SECRET, argument: value}
        for function in (verify_signature, parse_delivery):
            with pytest.raises(ConfigurationError, match=match):
                function(**arguments)
        if argument != "signature":
            del arguments["signature"]
            with pytest.raises(ConfigurationError, match=match):
                sign_body(**arguments)

    @given(texts)
    @example("é" * 64)
    @example("\udcff" * 64)
    @example(HEARTBEAT_SIGNATURE[:-1] + "\u0662")  # an Arabic digit
    def test_any_header_text(self, header: str) -> None:
        """The header comes from the peer: any text returns False, and none raises."""
        assert verify_signature(HEARTBEAT, header, secret=SECRET) is False

    def test_missing_header(self) -> None:
        """A request without the header is not verified."""
        assert verify_signature(HEARTBEAT, None, secret=SECRET) is False


class TestParse:
    """One delivery, without a store."""

    def test_events(self) -> None:
        """A delivery is verified and read; a heartbeat has no events."""
        (event,) = parse_delivery(DELIVERY.decode(), DELIVERY_SIGNATURE, secret=SECRET.reveal()).events

        assert (event.action, event.resource.gid, event.user) == ("deleted", "2002", None)
        assert parse_delivery(HEARTBEAT, HEARTBEAT_SIGNATURE.encode(), secret=SECRET) == ParsedDelivery(events=())

    @pytest.mark.parametrize(
        ("signature", "problem"),
        [
            (None, "the request has no X-Hook-Signature"),
            ("", "the request has no X-Hook-Signature"),
            (DELIVERY_SIGNATURE[1:], "the signature is not 64 hex digits"),
            ("é" * 64, "the signature is not 64 hex digits"),
            (HEARTBEAT_SIGNATURE, "the signature does not match the body"),
        ],
    )
    def test_refusal(self, signature: str | None, problem: str) -> None:
        """The error says what is wrong and what to check, and neither it nor its causes show what was given."""
        with pytest.raises(InvalidSignatureError, match=f"^{problem}. Check that the body is the raw one") as caught:
            parse_delivery(DELIVERY, signature, secret=SECRET)

        shown = "".join(traceback.format_exception_only(caught.value))
        assert "the one of this webhook" in shown
        assert caught.value.__context__ is None
        assert not [one for one in (signature, SECRET.reveal(), "2002", DELIVERY_SIGNATURE) if one and one in shown]

    @given(st.binary().filter(lambda body: b"events" not in body))  # it has found {"events":[],"":""}
    @example(b"")
    @example(b"\xff")
    @example(b"[]")
    @example(b'{"events":{}}')
    @example(b"[" * 10_000)
    def test_signed_nonsense(self, body: bytes) -> None:
        """A signed body that is not JSON, or has no list of events, is a PayloadError."""
        with pytest.raises(PayloadError):
            parse_delivery(body, sign_body(body, secret=SECRET), secret=SECRET)

    def test_the_signature_comes_first(self) -> None:
        """Nothing is decoded before the signature is verified."""
        with pytest.raises(InvalidSignatureError):
            parse_delivery(b"no JSON", HEARTBEAT_SIGNATURE, secret=SECRET)

    def test_mistakes_chain_no_secret(self) -> None:
        """The encoder's error contains the secret, so it is not chained."""
        with pytest.raises(ConfigurationError) as caught:
            parse_delivery(DELIVERY, DELIVERY_SIGNATURE, secret="canary\ud800")

        assert caught.value.__context__ is None
        assert "canary" not in str(caught.value)


MIXED_UP = "it was signed with the secret of webhook 43214; two webhooks or their URLs are mixed up"
ADDED = "a last newline was added to the body on the way"
REMOVED = "a last newline of the body was removed on the way"
REWRITTEN = "a proxy or framework parsed the body on the way and wrote its JSON anew; keep the raw bytes"
DECODED = "the signer decoded the secret from hex, but the key is the secret's text itself"
OTHERS = {"43213": Secret("a" * 32), "43214": Secret("b" * 32)}

# No integers of thousands of digits: Python does not read those.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
event_lists = st.lists(st.dictionaries(texts, values, max_size=4), max_size=3).map(lambda events: {"events": events})


def written(tree: Any, *, ascii_only: bool, compact: bool, slashes: bool) -> bytes:
    """Write JSON in one of the ways that parsers and frameworks have."""
    text = json.dumps(tree, ensure_ascii=ascii_only, separators=(",", ":") if compact else None)
    return (text.replace("/", "\\/") if slashes else text).encode("utf-8", "surrogatepass")


written_anyhow = st.builds(
    lambda ascii_only, compact, slashes: {"ascii_only": ascii_only, "compact": compact, "slashes": slashes},
    *(st.booleans(), st.booleans(), st.booleans()),
)


class TestExplain:
    """Why a signature does not match its body."""

    @given(event_lists, written_anyhow, written_anyhow)
    @example(
        {"events": [{"name": "\xe9/"}]},
        {"ascii_only": False, "compact": True, "slashes": False},
        {"ascii_only": True, "compact": False, "slashes": True},
    )
    @example(
        {"events": [{"name": "\xe9/"}]},
        {"ascii_only": True, "compact": False, "slashes": True},
        {"ascii_only": False, "compact": True, "slashes": False},
    )
    def test_json_written_anew(self, tree: Any, before: dict[str, bool], after: dict[str, bool]) -> None:
        """Whatever the events, a body that was parsed and written in another usual way is recognized."""
        signed, arrived = written(tree, **before), written(tree, **after)
        signature = sign_body(signed, secret=SECRET)

        assert explain_signature(arrived, signature, secret=SECRET) == ("" if signed == arrived else REWRITTEN)

    @given(event_lists, written_anyhow, st.data())
    def test_the_other_causes(self, tree: Any, form: dict[str, bool], data: st.DataObject) -> None:
        """Another webhook's secret, a newline too many or too few, and a decoded secret are each named."""
        body = written(tree, **form)
        newline = data.draw(st.sampled_from([b"\n", b"\r\n"]))
        decoded = bytes.fromhex(SECRET.reveal())
        for arrived, signature, cause in (
            (body, sign_body(body, secret=OTHERS["43214"]), MIXED_UP),
            (body + newline, sign_body(body, secret=SECRET), ADDED),
            (body, sign_body(body + newline, secret=SECRET), REMOVED),
            (body, sign_body(body, secret=decoded), DECODED),
            (body, sign_body(body, secret="c" * 32), ""),
            (body, sign_body(body, secret=SECRET), ""),
        ):
            assert explain_signature(arrived, signature.upper(), secret=SECRET, others=OTHERS) == cause

    @given(st.binary() | event_lists.map(json.dumps).map(str.encode), st.binary(min_size=1, max_size=40))
    @example(b"[" * 65_536, b"x")
    @example(b'{"a":' * 10_000, b"x")
    @example(b"1" * 65_536, b"x")
    @example(b"-1e" + b"9" * 400, b"x")
    @example(b'["\\ud800", NaN, -Infinity]', b"x")
    @example(b"\xef\xbb\xbf{}", b"x")
    @example(b"\xff\xfe{\x00", b"x")
    def test_no_body_makes_it_raise(self, body: bytes, secret: bytes) -> None:
        """Any bytes, JSON of any depth and size included, have a cause or none."""
        assert explain_signature(body, "0" * 64, secret=secret, others=OTHERS) == ""

    def test_what_is_no_signature(self) -> None:
        """A header that cannot be a signature is a cause too; mistakes of the caller are errors as everywhere."""
        assert explain_signature(DELIVERY, None, secret=SECRET) == "the request has no X-Hook-Signature"
        assert explain_signature(DELIVERY, b"abc", secret=SECRET) == "the signature is not 64 hex digits"
        with pytest.raises(ConfigurationError, match="secret must not be empty"):
            explain_signature(DELIVERY, DELIVERY_SIGNATURE, secret="")

    def test_every_comparison_takes_constant_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each suspect is compared as a signature is verified."""
        calls: list[tuple[object, object]] = []

        def noted(one: bytes, two: bytes) -> bool:
            calls.append((one, two))
            return False

        monkeypatch.setattr("asana_webhooks.receiver.signature.hmac.compare_digest", noted)

        assert explain_signature(DELIVERY + b"\n", DELIVERY_SIGNATURE, secret=SECRET, others=OTHERS) == ""
        assert [two for _, two in calls] == [DELIVERY_SIGNATURE.encode()] * len(calls)
        assert len(calls) == 1 + 2 + 3 + 1 + 2
