"""``doctor url`` and ``doctor signature``: what they say, as text and as JSON, and how they end."""

import asyncio
import json
import signal
import socket
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asana_webhooks import MemoryStore, Receiver, RegistrationState, Secret, SQLiteStore, sign_body
from asana_webhooks.store.secret_box import FernetBox
from asana_webhooks.testing import serve_receiver
from tests.cli.cli_process import call, ended, on_terminal, started
from tests.helpers.ports import free_port

BODY = b'{"events": [{"action": "changed"}]}'
OURS, THEIRS = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
KEY = urlsafe_b64encode(b"k" * 32).decode()
CHECKS = ["address", "handshake", "signed body", "long body", "time", "two at once"]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# doctor url


def test_it_serves_a_receiver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --serve it needs neither a store nor a service; each finding is a line, and JSON has their attributes."""
    port = free_port()
    monkeypatch.setenv("ASANA_WEBHOOKS_STORE", "not/there/yet.db")
    url = f"http://127.0.0.1:{port}/hooks/asana?code=k3y"
    assert call(monkeypatch, "doctor", "url", url, "--serve", str(port)) == 0
    printed = capsys.readouterr()
    assert [line.partition(": ")[2].partition(":")[0] for line in printed.out.splitlines()] == CHECKS
    assert printed.out.splitlines()[1].startswith("ok: handshake: answered 200 in ")
    assert printed.err == f"serving a receiver at http://127.0.0.1:{port}/hooks/asana\n"

    monkeypatch.setenv("ASANA_WEBHOOKS_PUBLIC_URL", url)
    assert call(monkeypatch, "doctor", "url", "--serve", str(port), "--json") == 0
    printed = capsys.readouterr()
    assert [one["name"] for one in lines_of(printed.out)] == CHECKS
    assert {tuple(one) for one in lines_of(printed.out)} == {("name", "verdict", "seen", "cause")}
    assert "k3y" not in printed.out + printed.err


def test_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal there is a bar, and the verdicts are coloured; with NO_COLOR they are not."""
    port = free_port()
    arguments = ("doctor", "url", f"http://127.0.0.1:{port}/asana", "--serve", str(port))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr()
    assert ("\x1b[1;32mok\x1b[0m: handshake" in printed.out, "checking" in printed.err) == (True, True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert call(monkeypatch, *arguments) == 0
    assert "32m" not in capsys.readouterr().out


async def test_a_running_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the store of a service, even without its key, it checks the receiver there; with another it fails."""
    where, box = tmp_path / "asana.db", FernetBox({"k": KEY})
    async with SQLiteStore(where, secret_box=box) as store, serve_receiver(Receiver(store)) as url:
        monkeypatch.setenv("ASANA_WEBHOOKS_STORE", str(where))
        monkeypatch.setenv("ASANA_WEBHOOKS_PUBLIC_URL", url)
        assert await asyncio.to_thread(call, monkeypatch, "doctor", "url") == 0
        printed = capsys.readouterr()
        assert "\nok: two at once: " in printed.out
        assert [one.state for one in await store.list_registrations()] == [RegistrationState.CLOSED]

    async with MemoryStore() as other, serve_receiver(Receiver(other)) as theirs:
        assert await asyncio.to_thread(call, monkeypatch, "doctor", "url", theirs, "--json") == 1
        *_, last = lines_of(capsys.readouterr().out)
        assert (last["name"], last["verdict"]) == ("handshake", "failed")
        assert "the receiver uses another store than this check" in last["cause"]


async def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it with 130, and its registration is closed."""
    arrived = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/asana"
    async with SQLiteStore(tmp_path / "asana.db") as store, server:
        await store.list_registrations()  # or there is no file
        async with started("doctor", "url", url, "--store", str(tmp_path / "asana.db")) as process:
            await arrived.wait()
            process.send_signal(signal.SIGINT)
            assert (await ended(process)).status == 130
        assert [one.state for one in await store.list_registrations()] == [RegistrationState.CLOSED]


@pytest.fixture
def taken() -> Iterator[str]:
    """Return a port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def test_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, taken: str
) -> None:
    """Mistakes are one sentence and status 2; a failed check is status 1."""
    url = f"http://127.0.0.1:{free_port()}/asana"
    body = tmp_path / "body.json"
    body.write_bytes(BODY)
    signature = ("doctor", "signature", "--header", "0" * 64, "--body-file")
    for expected, arguments in {
        "pass the service's --store, or --serve PORT": ("doctor", "url", url),
        "there is no store at nowhere.db": ("doctor", "url", url, "--store", "nowhere.db"),
        "public_url must be an http(s) URL": ("doctor", "url", "example.com", "--serve", "0"),
        f"cannot listen on host '127.0.0.1', port {taken}": ("doctor", "url", url, "--serve", taken),
        "pass --secret-env with the name of a variable": (*signature, str(body)),
        "the variable NOT_SET of --secret-env is not set": (*signature, str(body), "--secret-env", "NOT_SET"),
        "cannot read --body-file nowhere.json: No such file": (*signature, "nowhere.json", "--secret-env", "HOME"),
    }.items():
        assert call(monkeypatch, *arguments) == 2, arguments
        printed = capsys.readouterr()
        assert (printed.out, expected in printed.err) == ("", True), printed.err

    assert call(monkeypatch, "doctor", "url", url, "--store", "memory:") == 1
    assert "failed: handshake: cannot connect to 127.0.0.1:" in capsys.readouterr().out


# doctor signature


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Return the path of a store with two webhooks and one that is closed."""

    async def fill() -> None:
        async with SQLiteStore(tmp_path / "asana.db") as store:
            for gid, secret in (("43", OURS), ("44", THEIRS)):
                await store.adopt_registration(
                    gid, resource="8", public_url="http://x/a", label=f"n{gid}", webhook_gid=gid, secret=Secret(secret)
                )

    asyncio.run(fill())
    return str(tmp_path / "asana.db")


def test_signatures(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each case gets its verdict, its webhook if a store knows it, and its cause, in words and in JSON."""
    monkeypatch.setenv("OUR_SECRET", OURS)
    path = tmp_path / "body.json"
    none = "no cause found: "
    added, anew = "a last newline was added", "a proxy or framework parsed the body"
    cases: list[tuple[bytes, str, str | None, str, bool, str]] = [
        # the body, its header, the webhook and the likely cause by the store; valid by --secret-env, and why not
        (BODY, sign_body(BODY, secret=OURS), "43", "", True, ""),
        (BODY, f"X-Hook-Signature: {sign_body(BODY, secret=THEIRS)}", "44", "", False, none),
        (BODY + b"\n", sign_body(BODY, secret=THEIRS), "44", added, False, none),
        (b'{"events":[]}', sign_body('{"events": []}', secret=OURS), "43", anew, False, anew),
        (BODY, "0" * 64, None, none, False, none),
        (BODY, "not hex", None, "the signature is not 64 hex digits", False, "the signature is not 64 hex digits"),
        (BODY, "", None, "the request has no X-Hook-Signature", False, "the request has no X-Hook-Signature"),
    ]
    for body, header, gid, cause, ours, why in cases:
        path.write_bytes(body)
        arguments = ("doctor", "signature", "--body-file", str(path), "--header", header)
        assert call(monkeypatch, *arguments, "--store", store, "--json") == (1 if cause else 0)
        [said] = lines_of(capsys.readouterr().out)
        assert (said["valid"], said["webhook_gid"], said["cause"].startswith(cause)) == (not cause, gid, True)

        assert call(monkeypatch, *arguments, "--store", store) == (1 if cause else 0)
        printed = capsys.readouterr().out
        name = f"webhook {gid} on 8 (label 'n{gid}')"
        expected = (
            f"invalid: {f'for {name}: ' if gid else ''}{cause}" if cause else f"valid: signed with the secret of {name}"
        )
        assert printed.startswith(expected)

        monkeypatch.setenv("ASANA_WEBHOOKS_STORE", store)  # of no account if a secret is named
        assert call(monkeypatch, *arguments, "--secret-env", "OUR_SECRET") == (0 if ours else 1)
        assert capsys.readouterr().out.startswith("valid\n" if ours else f"invalid: {why}")
        monkeypatch.delenv("ASANA_WEBHOOKS_STORE")


async def test_a_store_whose_key_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that the key is missing, and takes it from the environment."""
    where, body = tmp_path / "asana.db", tmp_path / "body.json"
    body.write_bytes(BODY)
    async with SQLiteStore(where, secret_box=FernetBox({"k": KEY})) as store:
        await store.adopt_registration(
            "43", resource="8", public_url="http://x/a", webhook_gid="43", secret=Secret(OURS)
        )
    header = sign_body(BODY, secret=OURS)
    arguments = ("doctor", "signature", "--body-file", str(body), "--header", header, "--store", str(where))
    assert await asyncio.to_thread(call, monkeypatch, *arguments) == 1
    assert "key" in capsys.readouterr().err
    monkeypatch.setenv("ASANA_WEBHOOKS_STORE_KEYS", f"k={KEY}")
    assert await asyncio.to_thread(call, monkeypatch, *arguments) == 0


async def test_a_long_search_can_be_interrupted(store: str, tmp_path: Path) -> None:
    """On a terminal a bar shows how far it is, and one Ctrl-C ends it with 130."""
    async with SQLiteStore(store) as filling:
        for number in range(100, 400):
            await filling.adopt_registration(
                f"{number}", resource=f"{number}", public_url="http://x/a", webhook_gid=f"{number}", secret=Secret("s")
            )
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"events": [{"action": "changed"}] * 20_000}))
    arguments = ("doctor", "signature", "--body-file", str(body), "--header", "0" * 64, "--store", store)
    async with on_terminal(*arguments) as terminal:
        await terminal.until("/302")
        terminal.type("\x03")
        assert await terminal.ended() == 130
