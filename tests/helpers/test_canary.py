"""The canary itself: each way a secret gets out is found, what is harmless is let be, and no secret is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LEAKS = Path(__file__).with_name("leaks.py")
NAMES = re.findall(r"^(?:async )?def (test_\w+)", LEAKS.read_text(), re.MULTILINE)

SAID = {
    "test_leak_message": "a Secret shows in: log message (asana_webhooks.leaky, DEBUG, ",
    "test_leak_argument": "a Secret shows in: log arguments (asana_webhooks.leaky, DEBUG, ",
    "test_leak_before_it_is_known": "log message",
    "test_leak_in_a_fixture": "log message",
    "test_leak_foreign_logger": "log message (aiohttp.client, DEBUG, ",
    "test_leak_logged_exception": "leaky.py:2 run in the traceback of logged exception (asana_webhooks.leaky, DEBUG, ",
    "test_leak_task": "in the traceback of logged exception (asyncio, ERROR, ",
    "test_leak_text": "a Secret shows in: text of pytest.raises: ValueError",
    "test_leak_called": "local 'text' at ",
    "test_leak_repr": "a Secret shows in: repr of pytest.raises: Opaque",
    "test_leak_escaped": "a Secret shows in: repr of pytest.raises: Opaque",
    "test_leak_note": "a Secret shows in: notes of pytest.raises: ValueError",
    "test_leak_local": "leaky.py:2 run in the traceback of pytest.raises: ValueError",
    "test_leak_room": "leaky.py:2 run in the traceback of pytest.raises: ValueError",
    "test_leak_decoder_called_by_us": "wire.py:2 run in the traceback of pytest.raises: ValueError",
    "test_leak_bytes": "leaky.py:2 run in the traceback of pytest.raises: ValueError",
    "test_leak_cause": "a Secret shows in: repr of pytest.raises: KeyError",
    "test_leak_context": "a Secret shows in: repr of pytest.raises: KeyError",
    "test_leak_group": "a Secret shows in: repr of pytest.raises: KeyError",
    "test_leak_cancelled": "leaky.py:2 run in the traceback of pytest.raises: CancelledError",
    "test_leak_warning": "a Secret shows in: warning",
    "test_leak_session": "of AsanaSession.send: CancelledError",
    "test_leak_receiver": "of Receiver.receive: CancelledError",
    "test_leak_bearer_token": "a bearer token shows in",
    "test_leak_bearer_token_of_a_request": "a bearer token shows in",
    "test_leak_hook_secret": "an X-Hook-Secret shows in",
    "test_leak_client_secret": "a client_secret shows in",
    "test_leak_target_of_a_request": "the endpoint of a target shows in",
    "test_leak_json": "shows in: log message",
    "test_leak_webhook": "the endpoint of a target shows in",
    "test_leak_page": "the endpoint of a target shows in",
    "test_leak_endpoint": "the endpoint of a registration shows in",
    "test_leak_endpoint_of_a_request": "the endpoint of a registration shows in",
    "test_leak_none_though_marked": "must say why, and must reveal something",
    "test_leak_marked_without_a_reason": "must say why, and must reveal something",
}


@pytest.fixture(scope="module")
def report() -> str:
    """What pytest says of the leaking tests, in a run of its own with this project's settings."""
    options = ["-q", "-rA", "--show-capture=no", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command = [sys.executable, "-m", "pytest", *options, str(LEAKS)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=ROOT).stdout


def _errors(report: str) -> dict[str, str]:
    """Return what is said of each test that fails at its end; of all its cases together."""
    said: dict[str, str] = {}
    for name, text in re.findall(r"ERROR at teardown of (\w+)[^\n]*\n(.*?)(?=\n_{3,} |\n={3,} )", report, re.DOTALL):
        said[name] = said.get(name, "") + text
    return said


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("test_leak")])
def test_is_found(report: str, name: str) -> None:
    """The test fails at its end, and is told where its secret shows and what the secret is."""
    assert SAID[name] in _errors(report)[name]


def test_every_case_is_found(report: str) -> None:
    """Each kind of JSON is looked into, and the frames of each room are ours."""
    assert len(re.findall("ERROR at teardown of test_leak_json", report)) == 4
    assert len(re.findall("ERROR at teardown of test_leak_room", report)) == 6


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("test_fine")])
def test_is_let_be(report: str, name: str) -> None:
    """A test that shows no secret, or is allowed to, passes from beginning to end."""
    assert f"PASSED {LEAKS.relative_to(ROOT)}::{name}" in report
    assert name not in _errors(report)


def test_no_test_fails_otherwise(report: str) -> None:
    """The leaks themselves work: nothing fails but at the end."""
    assert "FAILED" not in report


def test_is_silent(report: str) -> None:
    """A secret that is found is not printed."""
    (text,) = re.findall(r'^TEXT = "(.+)"$', LEAKS.read_text(), re.MULTILINE)

    assert text not in report
