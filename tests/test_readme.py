"""README's programs, run as printed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from asana_webhooks import open_store
from asana_webhooks.testing import FakeAsana
from tests.helpers.guides import program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(
    fake: FakeAsana, folder: Path, *command: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command in *folder* against the fake; end it with SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=folder,
        env=os.environ | {"ASANA_ACCESS_TOKEN": fake.token, "ASANA_BASE_URL": fake.url} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.communicate()


async def next_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError((await process.stderr.read()).decode())
    return line.decode().strip()


@pytest.mark.slow
async def test_ask(tmp_path: Path) -> None:
    """The first program counts all webhooks over three pages, changes one's filters, and shows it."""
    async with FakeAsana(webhooks=250) as fake:
        async with running(fake, tmp_path, "-c", program("README", "Ask"), ASANA_WORKSPACE=fake.workspace) as process:
            assert await next_line(process) == "250 webhooks"
            assert "due_on" in await next_line(process)
            assert await process.wait() == 0


@pytest.mark.slow
async def test_with_oauth(tmp_path: Path) -> None:
    """The program with OAuth begins with Asana's own answer, refreshes a token that is refused, and starts with the new
    one next time.
    """
    tokens = tmp_path / "tokens.json"
    async with FakeAsana(webhooks=3) as fake:
        app = fake.register_app()
        form = {"grant_type": "refresh_token", "client_id": app.client_id, "client_secret": app.client_secret}
        async with aiohttp.ClientSession() as http:
            async with http.post(fake.token_url, data=form | {"refresh_token": app.refresh_token}) as response:
                answered = await response.json()
        tokens.write_text(json.dumps(answered | {"refresh_token": app.refresh_token}))  # as at the first time
        fake.revoke_token(answered["access_token"])
        where = {
            "ASANA_CLIENT_ID": app.client_id,
            "ASANA_CLIENT_SECRET": app.client_secret,
            "ASANA_TOKEN_URL": fake.token_url,
            "ASANA_WORKSPACE": fake.workspace,
        }
        for _ in range(2):
            async with running(fake, tmp_path, "-c", program("README", "With OAuth"), **where) as process:
                assert await next_line(process) == "3 webhooks"
                assert await process.wait() == 0

        assert app.refreshes == 2
        assert json.loads(tokens.read_text())["access_token"] != answered["access_token"]


@pytest.mark.slow
async def test_receive_in_aiohttp_and_work(tmp_path: Path) -> None:
    """The second program establishes a webhook and keeps what comes; the worker's program handles it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/asana"
    async with FakeAsana() as fake:
        project = fake.projects[0]
        receive = ("-c", program("README", "Receive, in aiohttp"))
        where = {"PORT": str(port), "PUBLIC_URL": url, "ASANA_PROJECT": project}
        async with running(fake, tmp_path, *receive, **where) as receiver:
            assert (await next_line(receiver)).startswith("listening for webhook ")
            fake.change(project, field="name")
            await fake.settle()
            assert fake.deliveries[-1].status == 200

            async with running(fake, tmp_path, "-c", program("README", "Work through what arrives")) as worker:
                assert (await next_line(worker)).endswith(f"changed project {project}")
                worker.send_signal(signal.SIGTERM)
                assert await worker.wait() == 0


@pytest.mark.slow
async def test_sigterm_ends_the_receiver(tmp_path: Path) -> None:
    """It ends the second program while it serves, and also while Asana does not answer its create request."""
    port = free_port()
    async with FakeAsana() as fake:
        receive = ("-c", program("README", "Receive, in aiohttp"))
        where = {"PORT": str(port), "PUBLIC_URL": f"http://127.0.0.1:{port}/asana", "ASANA_PROJECT": fake.projects[0]}
        for held in (True, False):
            hold = fake.hold("createWebhook") if held else None
            async with running(fake, tmp_path, *receive, **where) as process:
                if hold is not None:
                    await hold.reached()
                else:
                    await next_line(process)
                process.send_signal(signal.SIGTERM)
                _, errors = await process.communicate()
                assert (process.returncode, b"Traceback" in errors) == (0, False), errors
            if hold is not None:
                hold.release()
                await fake.settle()


@pytest.mark.slow
async def test_receive_in_fastapi(tmp_path: Path) -> None:
    """The FastAPI program subscribes by a request of its own and keeps what comes."""
    port = free_port()
    (tmp_path / "service.py").write_text(program("README", "Receive, in FastAPI"))
    async with FakeAsana() as fake:
        serve = ("-m", "uvicorn", "service:app", "--port", str(port))
        async with running(fake, tmp_path, *serve, PUBLIC_URL=f"http://127.0.0.1:{port}/asana") as process:
            assert process.stderr is not None
            async for line in process.stderr:
                if b"Uvicorn running" in line:
                    break
            project = fake.projects[0]
            async with aiohttp.ClientSession() as http:
                async with http.post(f"http://127.0.0.1:{port}/subscriptions/{project}") as response:
                    assert (await response.json())["webhook"] in fake.webhooks
            fake.change(project, field="name")
            await fake.settle()
            assert fake.deliveries[-1].status == 200

    async with open_store(f"sqlite:///{tmp_path}/asana.db") as store:
        assert (await store.health()).waiting == 1


@pytest.mark.slow
def test_testing_with_the_fake(tmp_path: Path) -> None:
    """The test as printed passes in a user's own project, whose conftest asks for the fixture's plugin."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["asana_webhooks.testing.pytest_plugin"]\n')
    (tmp_path / "test_mine.py").write_text(program("README", "Test your service with the fake"))
    options = ["-q", "-W", "error", "--asyncio-mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    command = [sys.executable, "-m", "pytest", *options]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "1 passed" in ended.stdout, ended.stdout + ended.stderr
