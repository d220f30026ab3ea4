"""Handshake and deliveries through every framework and server that the receiver's guide names."""

import ssl
from pathlib import Path

import pytest
import trustme

from asana_webhooks import AsanaSession, MemoryStore, Receiver, establish_webhook
from asana_webhooks.receiver.signature import sign_body
from asana_webhooks.store import SQLiteStore
from asana_webhooks.store.base import registration_id
from asana_webhooks.testing import FakeAsana
from tests.frameworks.doors import DOORS, REVEAL, in_quart, served_by_hypercorn
from tests.helpers.stores import ENDPOINT, SECRET, body, event

pytestmark = pytest.mark.frameworks


@pytest.mark.parametrize(
    "door", [pytest.param(one, marks=[pytest.mark.reveals(REVEAL[one])] if one in REVEAL else []) for one in DOORS]
)
async def test_handshake_and_deliveries_pass(door: str, tmp_path: Path) -> None:
    """A webhook is established and its deliveries are stored, also right after a forged request is refused."""
    path = tmp_path / "asana.db"
    async with (
        FakeAsana() as fake,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        SQLiteStore(path) as store,
        DOORS[door](path) as public_url,
    ):
        [project] = fake.projects
        established = await establish_webhook(asana, store, public_url=public_url, resource=project)
        fake.change(project, field="name")
        await fake.settle()
        await fake.forge_delivery(established.webhook_gid)
        fake.change(project, field="notes")
        await fake.settle()
        await fake.stranger_handshake(fake.webhook(established.webhook_gid).target)
        fake.change(project, field="due_on")
        await fake.settle()

        assert [one.status for one in fake.handshakes] == [200, 401]
        assert [one.status for one in fake.deliveries] == [200, 200, 401, 200, 200]  # the first is a heartbeat
        leases = await store.claim(9, lease=60)
        assert [lease.webhook_gid for lease in leases] == [established.webhook_gid] * 3


@pytest.mark.reveals("httpx and hpack log paths and headers, which are the client's here")
async def test_answers_leave_an_http2_connection_alone(tmp_path: Path) -> None:
    """A handshake and a refusal, whose bodies nobody needs, do not cost the next requests their connection."""
    import httpx  # noqa: PLC0415

    authority, trusting = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trusting)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    first, second = body(event()), body(event())
    registration = registration_id(ENDPOINT)
    async with (
        MemoryStore() as store,
        served_by_hypercorn(in_quart(Receiver(store)), certfile=str(certificate), keyfile=str(key)) as url,
        httpx.AsyncClient(http2=True, verify=trusting) as client,
    ):
        opened = {"resource": "8675309", "public_url": "https://example.com/asana"}
        assert await store.open_registration(registration, **opened, ttl=60)

        async def post(content: bytes, headers: dict[str, str]) -> tuple[int, str, object]:
            answer = await client.post(f"{url}/asana/{ENDPOINT}", content=content, headers=headers)
            connection = answer.extensions["network_stream"].get_extra_info("client_addr")
            return answer.status_code, answer.http_version, connection

        answers = [await post(b"{}", {"X-Hook-Secret": SECRET.reveal()})]
        await store.confirm_registration(registration, webhook_gid="43214", secret=SECRET)
        answers.append(await post(first, {"X-Hook-Signature": sign_body(first, secret=SECRET)}))
        answers.append(await post(second, {}))
        answers.append(await post(second, {"X-Hook-Signature": sign_body(second, secret=SECRET)}))

    statuses, versions, connections = zip(*answers, strict=True)
    assert statuses == (200, 200, 401, 200)
    assert set(versions) == {"HTTP/2"}
    assert len(set(connections)) == 1
