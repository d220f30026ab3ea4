"""``doctor url`` and ``doctor signature``: what they say, as text and as JSON, and how they end."""

import asyncio
import io
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asana_webhooks import MemoryStore, Receiver, RegistrationState, Secret, SQLiteStore, sign_body
from asana_webhooks.testing import serve_receiver
from tests.cli.cli_process import call, ended, run_cli, started
from tests.helpers.ports import free_port

BODY = b'{"events": [{"action": "changed"}]}'
OURS, THEIRS = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
CHECKS = ["address", "handshake", "signed body", "long body", "time", "two at once"]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# doctor url


def test_it_serves_a_receiver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --serve it needs neither a store nor a service; each finding is a line, and JSON has their attributes."""
    port = free_port()
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
    assert {tuple(one) for one in lines_of(printed.out)} == {("name", "ok", "seen", "cause")}
    assert "k3y" not in printed.out + printed.err


def test_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the verdicts are coloured, and with NO_COLOR they are not."""
    port = free_port()
    arguments = ("doctor", "url", f"http://127.0.0.1:{port}/asana", "--serve", str(port))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert call(monkeypatch, *arguments) == 0
    assert "\x1b[1;32mok\x1b[0m: handshake" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert call(monkeypatch, *arguments) == 0
    assert "32m" not in capsys.readouterr().out


async def test_a_running_service(tmp_path: Path) -> None:
    """With the service's store it checks the receiver that runs there; against another store's it fails."""
    where = tmp_path / "asana.db"
    async with SQLiteStore(where) as store, serve_receiver(Receiver(store)) as url:
        done = await run_cli("doctor", "url", ASANA_WEBHOOKS_STORE=str(where), ASANA_WEBHOOKS_PUBLIC_URL=url)
        assert (done.status, done.err) == (0, "")
        assert "\nok: two at once: " in done.out
        assert [one.state for one in await store.list_registrations()] == [RegistrationState.CLOSED]

        async with MemoryStore() as other, serve_receiver(Receiver(other)) as theirs:
            done = await run_cli("doctor", "url", theirs, "--store", str(where), "--json")
            assert (done.status, done.err) == (1, "")
            *_, last = lines_of(done.out)
            assert (last["name"], last["ok"]) == ("handshake", False)
            assert "it uses another store than this check" in last["cause"]


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
        "the variable NOBODY_SET_THIS of --secret-env is not set": (
            *(*signature, str(body)),
            *("--secret-env", "NOBODY_SET_THIS"),
        ),
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


@pytest.mark.parametrize("way", ["--store", "--secret-env", "both"])
def test_signatures(
    way: str, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each case gets its verdict, its webhook and its cause, in words and in JSON, and the status."""
    monkeypatch.setenv("OUR_SECRET", OURS)
    options = {"--store": ("--store", store), "--secret-env": ("--secret-env", "OUR_SECRET")}
    given = options.get(way) or tuple(one for option in options.values() for one in option)
    by_store, mixed_up = way == "--store", way == "both"
    none = "no cause found: "
    cases: list[tuple[bytes, str, bool, str | None, str]] = [
        (BODY, sign_body(BODY, secret=OURS), True, "43" if by_store else None, ""),
        (BODY, f"X-Hook-Signature: {sign_body(BODY, secret=OURS)}", True, "43" if by_store else None, ""),
        (
            *(BODY, sign_body(BODY, secret=THEIRS)),
            *(by_store, "44" if by_store else None),
            "" if by_store else "it was signed with the secret of webhook 44; " if mixed_up else none,
        ),
        (BODY + b"\n", sign_body(BODY, secret=OURS), False, "43" if by_store else None, "a last newline was added"),
        (
            b'{"events":[]}',
            sign_body('{"events": []}', secret=OURS),
            False,
            "43" if by_store else None,
            "a proxy or fr",
        ),
        (BODY, "0" * 64, False, None, none),
        (BODY, "not hex", False, None, "the signature is not 64 hex digits"),
        (BODY, "", False, None, "the request has no X-Hook-Signature"),
    ]
    for body, header, valid, gid, cause in cases:
        path = tmp_path / "body.json"
        path.write_bytes(body)
        arguments = ("doctor", "signature", "--body-file", str(path), "--header", header, *given)
        assert call(monkeypatch, *arguments, "--json") == (0 if valid else 1)
        [said] = lines_of(capsys.readouterr().out)
        assert (said["valid"], said["webhook_gid"]) == (valid, gid)
        assert said["cause"].startswith(cause)
        assert bool(cause) != valid

        assert call(monkeypatch, *arguments) == (0 if valid else 1)
        printed = capsys.readouterr()
        name = f"webhook {gid} on 8 (label 'n{gid}')"
        start = (f"valid: signed with the secret of {name}" if gid else "valid") if valid else "invalid: "
        assert printed.out.startswith(start)
        assert (name in printed.out) == (gid is not None)
        assert cause in printed.out
        assert not {OURS, THEIRS} & set(printed.out.split())


def test_a_body_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    """``-`` is standard input, byte for byte."""
    body = b'{"events":\r\n["\xff"]}\r\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(body)))
    header = sign_body(body, secret=THEIRS)
    assert call(monkeypatch, "doctor", "signature", "--body-file", "-", "--header", header, "--store", store) == 0
    assert capsys.readouterr().out == "valid: signed with the secret of webhook 44 on 8 (label 'n44')\n"
