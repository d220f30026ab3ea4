"""The recipes of the guide to subscriptions, run as printed."""

from pathlib import Path

import pytest

from asana_webhooks.testing import FakeAsana
from tests.helpers.guides import program
from tests.helpers.ports import free_port
from tests.helpers.programs import access, is_running, next_line, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # whole programs


async def test_fastapi_ensures_at_each_start(tmp_path: Path) -> None:
    """The FastAPI service creates its webhook when its port is open, and finds it at the next start; each change is
    handled once.
    """
    port = free_port()
    (tmp_path / "service.py").write_text(program("subscriptions", "FastAPI: ensure at each start"))
    serve = ("-m", "uvicorn", "--no-access-log", "service:app", "--port", str(port))
    async with FakeAsana() as fake:
        project = fake.projects[0]
        where = {"PUBLIC_URL": f"http://127.0.0.1:{port}/asana", "ASANA_PROJECT": project}
        for action in ("created", "unchanged"):
            async with running(tmp_path, *serve, **access(fake), **where) as service:
                while (line := await next_line(service)) == "waiting until /health answers":
                    pass
                assert [line] == [f"{action} {gid}" for gid in fake.webhooks]
                fake.change(project, field="name")
                assert await next_line(service) == f"changed {project}"
        assert [one.operation for one in fake.requests] == ["createWebhook", "getWebhook"]


async def test_fastapi_without_a_way_in(tmp_path: Path) -> None:
    """While nothing answers at the public URL, the FastAPI service asks Asana for nothing, and ends when told to."""
    (tmp_path / "service.py").write_text(program("subscriptions", "FastAPI: ensure at each start"))
    serve = ("-m", "uvicorn", "--no-access-log", "service:app", "--port", str(free_port()))
    async with FakeAsana() as fake:
        where = {"PUBLIC_URL": f"http://127.0.0.1:{free_port()}/asana", "ASANA_PROJECT": fake.projects[0]}
        async with running(tmp_path, *serve, **access(fake), **where) as service:
            await is_running(service)
            for _ in range(2):
                assert await next_line(service) == "waiting until /health answers"
        assert fake.requests == []


async def test_fastapi_refused_by_asana(tmp_path: Path) -> None:
    """If Asana refuses the webhook, the FastAPI service says why, and goes on receiving."""
    port = free_port()
    (tmp_path / "service.py").write_text(program("subscriptions", "FastAPI: ensure at each start"))
    serve = ("-m", "uvicorn", "--no-access-log", "service:app", "--port", str(port))
    async with FakeAsana() as fake:
        project = fake.add_project(accessible=False)
        where = {"PUBLIC_URL": f"http://127.0.0.1:{port}/asana", "ASANA_PROJECT": project}
        async with running(tmp_path, *serve, **access(fake), **where) as service:
            while (line := await next_line(service)) == "waiting until /health answers":
                pass
            assert line.startswith("ensuring the webhook failed: createWebhook: Asana answered 403")
            assert await fake.stranger_handshake(f"{where['PUBLIC_URL']}/unknown") == 404
