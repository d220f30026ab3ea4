"""The programs of README and of the guides, run as printed."""

import asyncio
import base64
import json
import re
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.fernet import Fernet

from asana_webhooks import (
    AsanaSession,
    Delivery,
    Receiver,
    Worker,
    create_webhook,
    establish_webhook,
    open_store,
    sign_body,
)
from asana_webhooks.testing import FakeAsana, Fault, serve_receiver
from tests.helpers.guides import program
from tests.helpers.ports import free_port
from tests.helpers.programs import access, is_running, next_line, run, running, start
from tests.helpers.raw import later

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # whole programs, and many of them


async def test_a_whole_service(tmp_path: Path) -> None:
    """README's service creates one webhook, handles what changes, ends on SIGTERM, and starts again twice with the same
    webhook: each change is handled once.
    """
    async with FakeAsana() as fake:
        where = service_on(free_port(), fake)
        for start in (1, 2, 3):
            async with running(tmp_path, "-c", program("README", "A whole service"), **where) as service:
                said = await next_line(service)
                assert said == f"ready: {'created' if start == 1 else 'unchanged'} {''.join(fake.webhooks)}"
                fake.change(fake.projects[0], field="name")
                await fake.settle()
                assert await next_line(service) == f"changed project {fake.projects[0]}"
                async with aiohttp.ClientSession() as http, http.get(where["PUBLIC_URL"] + "/health") as health:
                    assert (await health.json())["webhooks"] == 1
                service.send_signal(signal.SIGTERM)
                assert (await service.communicate())[0] == b""  # nothing was handled twice
        assert len(fake.webhooks) == 1
        assert sum(one.events for one in fake.deliveries) == 3


def service_on(port: int, fake: FakeAsana) -> dict[str, str]:
    """Return the variables that README's service reads."""
    where = {"PORT": str(port), "PUBLIC_URL": f"http://127.0.0.1:{port}/asana", "ASANA_PROJECT": fake.projects[0]}
    return access(fake) | where


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
@pytest.mark.parametrize("busy", ["creating", "told to wait", "waiting for another"])
async def test_signals_before_it_is_ready(tmp_path: Path, number: signal.Signals, busy: str) -> None:
    """README's service ends at once while Asana creates its webhook or makes it wait, and while it waits for another
    process that creates the webhook. The next start has one webhook.
    """
    other = "a" * 64
    async with FakeAsana() as fake, open_store(f"sqlite:///{tmp_path}/asana.db") as store:
        where = service_on(free_port(), fake)
        if busy == "told to wait":
            fake.script(Fault(at="createWebhook", status=429, retry_after=500))
        if busy == "waiting for another":
            project = fake.projects[0]
            await store.open_registration(other, resource=project, public_url=where["PUBLIC_URL"], ttl=500)
        creating = fake.hold("createWebhook", when="before_answer")
        async with running(tmp_path, "-c", program("README", "A whole service"), **where) as service:
            if busy == "waiting for another":
                assert service.stderr is not None
                assert b"another process is creating the webhook" in await service.stderr.readline()
            else:
                await creating.reached()
            if busy == "told to wait":
                creating.release()
            service.send_signal(number)
            async with asyncio.timeout(10):
                await service.wait()
        creating.release()
        await store.close_registration(other)
        async with running(tmp_path, "-c", program("README", "A whole service"), **where) as service:
            assert (await next_line(service)).startswith("ready: created")
        assert (await store.health()).webhooks == 1


async def test_killed_while_it_creates(tmp_path: Path) -> None:
    """README's service is killed during the create call, and started again at once: it says how long it waits, and then
    creates a webhook. What changes is handled once.
    """
    async with FakeAsana() as fake, open_store(f"sqlite:///{tmp_path}/asana.db") as store:
        where = service_on(free_port(), fake)
        creating = fake.hold("createWebhook", when="before_answer")
        killed = await start(tmp_path, "-c", program("README", "A whole service"), **where)
        await creating.reached()
        killed.kill()
        await killed.communicate()
        creating.release()
        async with running(tmp_path, "-c", program("README", "A whole service"), **where) as service:
            assert service.stderr is not None
            assert re.search(rb"expires in \d+ seconds$", await service.stderr.readline())
            [pending] = await store.list_registrations()
            await store.close_registration(pending.id)  # as if those seconds had passed
            assert (await next_line(service)).startswith("ready: created")
            fake.change(fake.projects[0], field="name")
            await fake.settle()
            assert await next_line(service) == f"changed project {fake.projects[0]}"
            service.send_signal(signal.SIGTERM)
            assert (await service.communicate())[0] == b""
        answers = sorted(one.status or 0 for one in fake.deliveries if one.events)
        assert answers == [200, 404]  # the killed one left a webhook, too


async def test_ctrl_c_ends_the_service(tmp_path: Path) -> None:
    """README's service ends on Ctrl-C with status 0 and without a traceback."""
    async with FakeAsana() as fake:
        where = service_on(free_port(), fake)
        async with running(tmp_path, "-c", program("README", "A whole service"), **where) as service:
            assert (await next_line(service)).startswith("ready")
            service.send_signal(signal.SIGINT)
            _, errors = await service.communicate()
            assert errors == b""


async def test_projects_without_a_webhook(tmp_path: Path) -> None:
    """The client guide's program prints each project that has no webhook, with its name, and no archived one."""
    async with FakeAsana(webhooks=3) as fake:
        fake.add_project("12", name="Bugs")
        fake.add_project(archived=True)
        lines = await run(tmp_path, program("client", "List the projects"), **access(fake))
        assert lines == ["12 Bugs", f"{fake.projects[0]} project {fake.projects[0]}"]


async def test_ask_asana(tmp_path: Path) -> None:
    """README's second program lists every webhook."""
    async with FakeAsana(webhooks=3) as fake:
        lines = await run(tmp_path, program("README", "Ask Asana"), **access(fake))
        assert [line.split()[0] for line in lines] == list(fake.webhooks)


def test_tests_with_the_fake(tmp_path: Path) -> None:
    """The printed tests pass in a user's own project, whose conftest asks for the fixture."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["asana_webhooks.testing.pytest_plugin"]\n')
    (tmp_path / "test_readme.py").write_text(program("README", "Test it without Asana"))
    (tmp_path / "test_first.py").write_text(program("testing", "Testing: a fake Asana"))
    (tmp_path / "test_faults.py").write_text(program("testing", "Faults"))
    (tmp_path / "test_handler.py").write_text(program("testing", "One handler, without a server"))
    options = ["-q", "-W", "error", "--asyncio-mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    command = [sys.executable, "-m", "pytest", *options]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "4 passed" in ended.stdout, ended.stdout + ended.stderr


async def test_the_fake_as_a_process(tmp_path: Path) -> None:
    """README's shell commands start the fake and the service, and the service prints the change that curl makes."""
    (tmp_path / "service.py").write_text(program("README", "A whole service"))
    fake_port, service_port = str(free_port()), str(free_port())
    lines = (
        program("README", "Test it without Asana", language="sh")
        .replace("8081", fake_port)
        .replace("8080", service_port)
    )
    serve, export, service_line, curl = lines.splitlines()
    assert (serve[-2:], service_line[-2:], export[:7]) == (" &", " &", "export ")
    environment = dict(re.findall(r"(\w+)=(\S+)", export + " " + service_line))

    async with running(tmp_path, "-m", "asana_webhooks", *serve.removesuffix(" &").split()[1:]) as fake:
        assert json.loads(await next_line(fake))["url"] == environment["ASANA_BASE_URL"]
        async with running(tmp_path, "service.py", PORT=service_port, **environment) as service:
            assert (await next_line(service)).startswith("ready")
            change, url = re.findall(r"curl -d '(.*)' (\S+)", curl)[0]  # a machine may have no curl
            async with aiohttp.ClientSession() as http, http.post(url, data=change) as response:
                assert response.status == 202
            assert await next_line(service) == "changed project 8675309"


async def test_client(tmp_path: Path) -> None:
    """The client's program counts all webhooks over three pages, changes one's filters, and shows it."""
    async with FakeAsana(webhooks=250) as fake:
        counted, changed = await run(tmp_path, program("client", "Client: ask Asana"), **access(fake))
        assert counted == "250 webhooks"
        assert "due_on" in changed


async def test_oauth(tmp_path: Path) -> None:
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
        }
        for _ in range(2):
            assert await run(tmp_path, program("client", "OAuth"), **access(fake), **where) == ["3 webhooks"]

        assert app.refreshes == 2
        assert json.loads(tokens.read_text())["access_token"] != answered["access_token"]


@pytest.mark.long
async def test_oauth_in_two_processes(tmp_path: Path) -> None:
    """The program whose calls have a loop each runs twice at once: both processes send the same refresh token, which is
    good for one of them, and the other uses what that one saves.
    """
    code = program("client", "One event loop for each call")
    async with FakeAsana(webhooks=3) as fake:
        app = fake.register_app(rotate=True)
        where = {
            "ASANA_CLIENT_ID": app.client_id,
            "ASANA_CLIENT_SECRET": app.client_secret,
            "ASANA_REFRESH_TOKEN": app.refresh_token,
            "ASANA_TOKEN_URL": fake.token_url,
        }
        hold = fake.hold("oauth_token", times=2)
        processes = [asyncio.create_task(run(tmp_path, code, **access(fake), **where)) for _ in range(2)]
        await hold.reached(2)
        hold.release()
        for printed in (*await asyncio.gather(*processes), await run(tmp_path, code, **access(fake), **where)):
            assert printed == ["3 webhooks"] * 2

        statuses = [one.status for one in fake.requests if one.operation == "oauth_token"]
        assert (app.refreshes, statuses) == (1, [200, 400])


async def test_liveness(tmp_path: Path) -> None:
    """The probe answers 200, and 503 once a handler has run for too long; the worker ends on SIGTERM all the same."""
    port = free_port()
    source = (
        program("worker", "Liveness")
        .replace("TOO_LONG = 600.0", "TOO_LONG = 0.5")
        .replace("    print(delivery.id, flush=True)", "    await asyncio.Event().wait()")
        .replace("Worker(store, handle)", "Worker(store, handle, stop_timeout=0)")
    )

    async with (
        FakeAsana() as fake,
        running(tmp_path, "-c", source, PORT=str(port)),
        aiohttp.ClientSession() as http,
    ):

        async def probed() -> tuple[int, dict[str, object]]:
            with suppress(aiohttp.ClientConnectionError):  # it has not begun to listen
                async with http.get(f"http://127.0.0.1:{port}/live") as response:
                    return response.status, await response.json()
            return 0, {}

        while (answer := await probed())[0] != 200:
            await later(0.02)
        assert set(answer[1]) == {"running", "handling", "oldest_attempt_seconds", "last_claim_at"}
        await stored_delivery(fake, tmp_path / "asana.db")
        while (answer := await probed())[0] != 503:
            await later(0.02)
        assert answer[1]["handling"] == 1


async def test_routing_events(tmp_path: Path) -> None:
    """The router's filters let the six usual events pass, and no others; each function prints its event."""
    service = tmp_path / "service.py"
    service.write_text(program("worker", "Routing events"))
    filters = runpy.run_path(str(service))["router"].filters
    async with FakeAsana() as fake:
        async with (
            open_store(f"sqlite:///{tmp_path}/asana.db") as store,
            AsanaSession(fake.token, base_url=fake.url) as asana,
            serve_receiver(Receiver(store)) as public_url,
        ):
            project = fake.projects[0]
            await establish_webhook(asana, store, public_url=public_url, resource=project, filters=filters)
            section, task = fake.add_resource("section", parents=[project]), fake.add_task(parent=project)
            for field in ("completed", "completed_at", "due_at", "name"):
                fake.change(task, field=field)
            fake.change(task, action="added", parent=section)
            fake.change("777", action="added", parent=project)
            fake.change("888", action="added", resource_type="story", parent=task)
            fake.change("999", action="added", resource_type="story", resource_subtype="assigned", parent=task)
            option = {"gid": "61", "resource_type": "enum_option"}
            chosen = {"gid": "51", "resource_type": "custom_field", "resource_subtype": "enum", "enum_value": option}
            fake.change(task, field="custom_fields", new_value=chosen)
            fake.change(task, field="custom_fields", new_value=chosen | {"enum_value": None})
            await fake.settle()
        assert sum(delivery.events for delivery in fake.deliveries) == 7

        async with running(tmp_path, "service.py") as worker:
            assert {await next_line(worker) for _ in range(6)} == {
                f"task {task}: completed or reopened",
                f"task {task}: due_at changed",
                f"task {task}: moved to section {section}",
                f"task 777: added to project {project}",
                f"task {task}: comment 888",
                f"task {task}: option 61 in field 51",
            }


async def test_duplicates(tmp_path: Path) -> None:
    """The handler that remembers fingerprints handles an event once that comes twice."""
    twice = """
import asyncio
from asana_webhooks.testing import make_delivery, make_event
for _ in range(2):
    asyncio.run(handle(make_delivery(make_event(field="name", gid="21"))))
"""
    assert await run(tmp_path, program("worker", "Duplicates") + twice) == ["changed 21"]


async def test_fastapi(tmp_path: Path) -> None:
    """The FastAPI program subscribes by a request of its own, and handles what comes."""
    port = free_port()
    (tmp_path / "service.py").write_text(program("receiver", "FastAPI"))
    async with FakeAsana() as fake:
        serve = ("-m", "uvicorn", "--no-access-log", "service:app", "--port", str(port))
        async with running(tmp_path, *serve, **access(fake), PUBLIC_URL=f"http://127.0.0.1:{port}/asana") as process:
            await is_running(process)
            project = fake.projects[0]
            async with aiohttp.ClientSession() as http:
                async with http.post(f"http://127.0.0.1:{port}/subscriptions/{project}") as response:
                    assert (await response.json())["webhook"] in fake.webhooks
            fake.change(project, field="name")
            assert await next_line(process) == f"changed {project}"


async def receive(folder: Path, port: int) -> None:
    """Ensure a webhook with the receiver that runs on *port*: it stores a delivery and refuses a forged one, and
    accepts a slash after the endpoint. Then handle what it stored in another process.
    """
    async with FakeAsana() as fake:
        project = fake.projects[0]
        where = {"ASANA_PROJECT": project, "PUBLIC_URL": f"http://127.0.0.1:{port}/asana"}
        await run(folder, program("subscriptions", "Subscriptions: have the webhook you want"), **access(fake), **where)
        (gid,) = fake.webhooks
        task = fake.add_task(parent=project)
        fake.change(task, field="name")
        await fake.settle()
        assert [one.status for one in fake.deliveries if one.events] == [200]
        assert await fake.forge_delivery(gid) == 401
        assert await fake.stranger_handshake(f"{fake.webhook(gid).target}/") == 401  # the framework's own is 404
    async with running(folder, "-c", program("worker", "Worker: work through the deliveries")) as worker:
        assert (await next_line(worker)).endswith(f"changed task {task}")


async def test_flask(tmp_path: Path) -> None:
    """The Flask program receives under Flask's threaded server, and a worker beside it handles what it stored."""
    port = free_port()
    (tmp_path / "service.py").write_text(program("receiver", "Flask and other WSGI frameworks"))
    async with running(tmp_path, "-m", "flask", "--app", "service", "run", "--port", str(port)) as server:
        await is_running(server)
        await receive(tmp_path, port)


async def test_django(tmp_path: Path) -> None:
    """The Django program receives under ASGI behind Django's check of CSRF tokens, and a worker handles it."""
    port = free_port()
    (tmp_path / "urls.py").write_text(program("receiver", "Django"))
    (tmp_path / "settings.py").write_text(
        "SECRET_KEY, ROOT_URLCONF, ALLOWED_HOSTS = 'x', 'urls', ['*']\n"
        "MIDDLEWARE = ['django.middleware.common.CommonMiddleware', 'django.middleware.csrf.CsrfViewMiddleware']\n"
    )
    serve = ("-m", "uvicorn", "--no-access-log", "--lifespan", "off", "--port", str(port), "--factory")
    application = "django.core.asgi:get_asgi_application"
    async with running(tmp_path, *serve, application, DJANGO_SETTINGS_MODULE="settings") as server:
        await is_running(server)
        await receive(tmp_path, port)


def loaded(folder: Path, code: str) -> dict[str, Any]:
    """Run a program that only defines functions; return its names."""
    (folder / "module.py").write_text(code)
    return runpy.run_path(str(folder / "module.py"))


async def test_without_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The function echoes the handshake until it has a secret, and gets a delivery resent that came before; then it
    handles what is signed, plain or in base64, and refuses what is not, another handshake included.
    """
    handler = loaded(tmp_path, program("receiver", "AWS Lambda, or without a store"))["handler"]
    gateway = {"isBase64Encoded": False}

    async def invoke(request: web.Request) -> web.Response:
        """Call the function as a gateway does."""
        content = await request.read()
        body = base64.b64encode(content) if gateway["isBase64Encoded"] else content
        answer = handler({"headers": dict(request.headers), "body": body.decode() or None, **gateway}, None)
        return web.Response(status=answer["statusCode"], headers=answer.get("headers"))

    app = web.Application()
    app.router.add_post("/", invoke)
    async with TestServer(app) as server, FakeAsana() as fake, AsanaSession(fake.token, base_url=fake.url) as asana:
        project, target = fake.projects[0], str(server.make_url("/"))
        created = await create_webhook(asana, resource=project, target=target)
        fake.change(project, field="name")
        await fake.settle()
        assert fake.deliveries[-1].status == 503
        assert created.secret is not None
        monkeypatch.setenv("ASANA_WEBHOOK_SECRET", created.secret.reveal())
        for encoded in (False, True):
            gateway["isBase64Encoded"] = encoded
            await fake.advance(600)  # the first is resent
            fake.change(project, field="name")
            await fake.settle()
            assert fake.deliveries[-1].status == 200
        assert capsys.readouterr().out.splitlines() == [f"changed {project}"] * 3
        odd = '{"events":[null]}'
        signed = {"X-Hook-Signature": sign_body(odd, secret=created.secret)}
        assert handler({"headers": signed, "body": odd}, None) == {"statusCode": 200}
        assert capsys.readouterr().out == "Expected `object`, got `null` @ $.events[0]\n"
        assert await fake.forge_delivery(created.webhook.gid) == 401
        assert await fake.stranger_handshake(target) == 401


async def test_fetching_the_resource_of_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The client's handler prints the name of what changed, and copes with what is gone."""
    handle = loaded(tmp_path, program("client", "Fetch the resource of an event"))["handle"]
    async with FakeAsana() as fake:
        await stored_delivery(fake, tmp_path / "asana.db")
        async with (
            open_store(f"sqlite:///{tmp_path}/asana.db") as store,
            AsanaSession(fake.token, base_url=fake.url) as asana,
        ):

            async def twice(delivery: Delivery) -> None:
                await handle(asana, delivery)
                fake.change(fake.projects[0], action="deleted")
                await handle(asana, delivery)

            await Worker(store, twice).drain()
    assert capsys.readouterr().out.splitlines() == [
        f"changed project {fake.projects[0]}",
        "changed a resource that is gone",
    ]


async def stored_delivery(fake: FakeAsana, database: Path) -> None:
    """Make a database with one webhook and one delivery."""
    async with (
        open_store(f"sqlite:///{database}") as store,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        serve_receiver(Receiver(store)) as public_url,
    ):
        await establish_webhook(asana, store, public_url=public_url, resource=fake.projects[0])
        fake.change(fake.projects[0], field="name")
        await fake.settle()


async def test_store(tmp_path: Path) -> None:
    """The store's program shows a dead letter and makes it wait again."""

    async def fail(_: Delivery) -> None:
        raise ValueError("no calendar")

    async with FakeAsana() as fake:
        await stored_delivery(fake, tmp_path / "asana.db")
    async with open_store(f"sqlite:///{tmp_path}/asana.db") as store:
        await Worker(store, fail, attempts=1).drain()

    health, letter = await run(tmp_path, program("store", "Store: what must survive"))
    assert health == "0 waiting 0 leased 1 dead letters"
    assert letter.endswith("1 attempts: ValueError: no calendar")

    async with open_store(f"sqlite:///{tmp_path}/asana.db") as store:
        assert (await store.health()).waiting == 1


async def test_secrets_at_rest(tmp_path: Path) -> None:
    """The program with keys seals the one secret that the database holds as plain text."""
    async with FakeAsana() as fake:
        await stored_delivery(fake, tmp_path / "asana.db")
    keys = {"NEW_KEY": Fernet.generate_key().decode(), "OLD_KEY": Fernet.generate_key().decode()}
    assert await run(tmp_path, program("store", "Secrets at rest"), **keys) == [
        "1 secrets encrypted with the first key"
    ]
