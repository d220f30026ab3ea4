"""The programs of the guide to subscriptions, run as printed."""

import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asana_webhooks import AsanaSession, Receiver, RegistrationState, create_webhook, open_store
from asana_webhooks.testing import FakeAsana, serve_receiver
from tests.helpers.guides import program
from tests.helpers.ports import free_port
from tests.helpers.programs import access, is_running, next_line, run, running
from tests.helpers.servers import answer, scripted_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # whole programs


async def test_receiver_subscriptions_and_worker(tmp_path: Path) -> None:
    """The receiver's program serves, that of subscriptions ensures a webhook beside it, whatever it finds, and the
    worker's handles what was stored.
    """
    port = free_port()
    async with FakeAsana() as fake:
        project = fake.projects[0]
        async with running(
            tmp_path, "-c", program("receiver", "Receiver: be called by Asana"), PORT=str(port)
        ) as receiver:
            assert await next_line(receiver) == f"listening on http://127.0.0.1:{port}/asana"
            ensure = program("subscriptions", "Subscriptions: have the webhook you want")
            where = {"ASANA_PROJECT": project, "PUBLIC_URL": f"http://127.0.0.1:{port}/asana"}
            for action in ("created", "unchanged", "updated", "replaced", "created"):
                match action:
                    case "updated":
                        ensure = ensure.replace('action="changed"', 'action="added"')
                    case "replaced":
                        where["PUBLIC_URL"] = f"http://localhost:{port}/asana"
                    case "created":
                        fake.webhooks.clear()
                lines = await run(tmp_path, ensure, **access(fake), **where)
                assert lines == [f"{action} {gid}" for gid in fake.webhooks]
            task = fake.add_task(parent=project)
            fake.change(task, action="added", parent=project)
            await fake.settle()
            assert fake.deliveries[-1].status == 200

        async with open_store(f"sqlite:///{tmp_path}/asana.db") as store:
            live = await store.list_registrations(state=RegistrationState.CONFIRMED)
            assert [one.webhook_gid for one in live] == list(fake.webhooks)
        async with running(tmp_path, "-c", program("worker", "Worker: work through the deliveries")) as worker:
            assert (await next_line(worker)).endswith(f"added task {task}")


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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
async def test_hundreds_of_webhooks(tmp_path: Path) -> None:
    """The program shows what it would do and does nothing; with --apply it does it, deletes what is not wanted, and
    names what failed.
    """
    code = program("subscriptions", "Hundreds of webhooks")
    async with (
        FakeAsana(projects=("1", "2", "3")) as fake,
        open_store(f"sqlite:///{tmp_path}/asana.db") as store,
        serve_receiver(Receiver(store)) as public_url,
    ):
        fake.add_project("4", accessible=False)

        async def apply(projects: str, *arguments: str) -> list[str]:
            where = access(fake) | {"PUBLIC_URL": public_url, "ASANA_PROJECTS": projects}
            return await run(tmp_path, code, *arguments, **where)

        def watched() -> list[str]:
            return sorted(one.resource.gid for one in fake.webhooks.values())

        assert (await apply("1 2"))[0] == "2 to do, 0 unchanged, 0 with a problem"
        assert watched() == []
        assert (await apply("1 2", "--apply"))[-1] == "{'created': 2}"
        lines = await apply("2 3 4", "--apply")
        assert "3 to do, 1 unchanged, 0 with a problem" in lines
        assert lines[-1].startswith("failed: create 4")
        assert watched() == ["2", "3"]
        assert (await apply("2 3"))[0] == "0 to do, 2 unchanged, 0 with a problem"


async def test_every_project_of_a_workspace(tmp_path: Path) -> None:
    """The service has a webhook on the workspace and on each project, also on one that is created while it runs, and
    finds them at the next start.
    """
    port = free_port()
    code = program("subscriptions", "Every project of a workspace")
    async with FakeAsana(projects=("1", "2", "3")) as fake:
        where = {"PORT": str(port), "PUBLIC_URL": f"http://127.0.0.1:{port}/asana"}
        async with running(tmp_path, "-c", code, **access(fake), **where) as service:
            assert await next_line(service) == "3 projects {'created': 3}"
            fake.change("4", action="added", resource_type="project", parent=fake.workspace)
            assert await next_line(service) == "project 4 created"
            for project in ("1", "4"):
                task = fake.add_task(parent=project)
                fake.change(task, field="name")
                assert await next_line(service) == f"task {task} changed"
        async with running(tmp_path, "-c", code, **access(fake), **where) as service:
            assert await next_line(service) == "4 projects {}"
        watched = sorted(one.resource.gid for one in fake.webhooks.values())
        assert watched == sorted(["1", "2", "3", "4", fake.workspace])


@pytest.mark.long
async def test_a_saas_app(tmp_path: Path) -> None:
    """Two tenants watch one project, each through its own webhook and token; when one leaves, only its webhook goes.
    A new start finds the other's.
    """
    port = free_port()
    (tmp_path / "service.py").write_text(program("subscriptions", "A SaaS app"))
    serve = ("-m", "uvicorn", "--no-access-log", "service:app", "--port", str(port))
    async with FakeAsana() as fake, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        project = fake.projects[0]
        apps = {user: fake.register_app("7", user=user, rotate=True) for user in ("12", "13")}
        where = {
            "PUBLIC_URL": f"http://127.0.0.1:{port}/asana",
            "ASANA_BASE_URL": fake.url,
            "ASANA_CLIENT_ID": "7",
            "ASANA_CLIENT_SECRET": apps["12"].client_secret,
            "ASANA_TOKEN_URL": fake.token_url,
        }

        async def connect(user: str, action: str) -> None:
            body = {"refresh_token": first[user]}
            async with http.put(f"/tenants/{user}/{project}", json=body) as response:
                [(done, gid)] = (await response.json()).items()
            assert (done, fake.webhook(gid).user) == (action, user)

        first = {user: app.refresh_token for user, app in apps.items()}
        async with running(tmp_path, *serve, **where) as service:
            await is_running(service)
            for user in apps:
                await connect(user, "created")
            fake.change(project, field="name")
            lines = {await next_line(service) for _ in apps}
            assert lines == {f"tenant {user} changed {project}" for user in apps}
            async with http.delete("/tenants/13") as response:
                assert await response.json() == {"removed": 1}
        async with running(tmp_path, *serve, **where) as service:
            await is_running(service)
            await connect("12", "unchanged")
            fake.change(project, field="name")
            assert await next_line(service) == f"tenant 12 changed {project}"
        assert len(fake.webhooks) == 1


@pytest.mark.long
async def test_a_tunnel_in_development(tmp_path: Path) -> None:
    """The service asks the tunnel for its URL, and has one webhook there at each start, whatever the URL was before."""
    code = program("subscriptions", "A tunnel in development")
    before = 0
    async with FakeAsana() as fake:
        project = fake.projects[0]
        for action in ("created", "replaced", "unchanged"):
            port = before if action == "unchanged" else free_port()
            listed = answer(200, {"tunnels": [{"public_url": f"http://127.0.0.1:{port}"}]})
            async with scripted_server(listed) as ngrok:
                where = {"PORT": str(port), "TUNNELS": f"http://127.0.0.1:{ngrok.port}", "ASANA_PROJECT": project}
                async with running(tmp_path, "-c", code, **access(fake), **where) as service:
                    line = await next_line(service)
                    assert [line] == [f"{action} {gid}" for gid in fake.webhooks]
                    fake.change(project, field="name")
                    assert await next_line(service) == f"changed {project}"
            before = port


async def test_coming_from_the_official_client(tmp_path: Path) -> None:
    """Of two webhooks that another server made, the one whose secret is known is adopted, and the other one is created
    anew and deleted; nothing more happens the second time. What the old server did not answer arrives.
    """
    port = free_port()
    public_url = f"http://127.0.0.1:{port}/receive-webhook"

    async def old_server(request: web.Request) -> web.Response:
        return web.Response(headers={"X-Hook-Secret": request.headers.get("X-Hook-Secret", "")})

    async with FakeAsana(projects=("1", "2", "3")) as fake:
        app = web.Application()
        app.router.add_post("/{anything:.*}", old_server)
        async with TestServer(app, port=port), AsanaSession(fake.token, base_url=fake.url) as asana:
            known, unknown, elsewhere = [
                await create_webhook(asana, resource=resource, target=target)
                for resource, target in (
                    ("1", f"{public_url}/7654"),
                    ("2", f"{public_url}/7655"),
                    ("3", f"http://127.0.0.1:{port}/other/7654"),
                )
            ]
        fake.change("1", field="name")
        await fake.settle()
        assert known.secret is not None
        (tmp_path / "secrets.json").write_text(json.dumps({known.webhook.gid: known.secret.reveal()}))
        receiver = program("receiver", "Receiver: be called by Asana")
        receiver = receiver.replace('path="/asana"', 'path="/receive-webhook"')
        async with running(tmp_path, "-c", receiver, PORT=str(port)) as process:
            assert await next_line(process) == f"listening on {public_url}"
            code = program("subscriptions", "Coming from the official client")
            lines = await run(tmp_path, code, **access(fake), PUBLIC_URL=public_url)
            kept = [gid for gid in fake.webhooks if gid not in (known.webhook.gid, elsewhere.webhook.gid)]
            assert lines == [f"adopted {known.webhook.gid} on 1", *(f"created {gid} on 2" for gid in kept)]
            assert unknown.webhook.gid not in fake.webhooks
            assert await run(tmp_path, code, **access(fake), PUBLIC_URL=public_url) == []
            fake.change("2", field="name")
            await fake.advance(3600)  # the first change is resent
            assert [one.status for one in fake.deliveries if one.events] == [None, 200, 200]
