"""A fake Asana, a receiver and a store, as a service has them, and the command line beside it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from asana_webhooks import AsanaSession, EnsuredWebhook, Receiver, SQLiteStore, ensure_webhook
from asana_webhooks.cli.common import parse_filters
from asana_webhooks.testing import FakeAsana, FakeClock, serve_receiver
from tests.cli.cli_process import Ended, call

Fixtures = tuple[Path, pytest.MonkeyPatch, pytest.CaptureFixture[str]]


@define
class Service:
    fake: FakeAsana
    asana: AsanaSession
    store: SQLiteStore
    public_url: str
    receiving: AsyncExitStack
    """Closing it stops the receiver."""
    folder: Path
    """Where commands run."""
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @property
    def environment(self) -> dict[str, str]:
        """What processes need to know."""
        return {
            "ASANA_ACCESS_TOKEN": self.fake.token,
            "ASANA_BASE_URL": self.fake.url,
            "ASANA_WORKSPACE": self.fake.workspace,
            "ASANA_WEBHOOKS_PUBLIC_URL": self.public_url,
            "ASANA_WEBHOOKS_STORE": str(self.folder / "asana.db"),
        }

    @property
    def file(self) -> str:
        return str(self.folder / "webhooks.toml")

    async def ensure(self, resource: str, *filters: str, **options: Any) -> EnsuredWebhook:
        usual = {"public_url": self.public_url, "filters": parse_filters(filters)}
        return await ensure_webhook(self.asana, self.store, resource=resource, **(usual | options))

    def write(self, text: str) -> None:
        """Write ``webhooks.toml``."""
        Path(self.file).write_text(text, encoding="utf-8")

    async def run(self, *arguments: str) -> Ended:
        """Run the command line in a thread of this process."""
        status = await asyncio.to_thread(call, self.monkeypatch, *arguments)
        printed = self.capsys.readouterr()
        assert not any(endpoint in printed.out + printed.err for endpoint in self.endpoints())
        return Ended(status=int(status or 0), out=printed.out, err=printed.err)

    def endpoints(self) -> list[str]:
        return [one.target.rpartition("/")[2] for one in self.fake.webhooks.values()]


@asynccontextmanager
async def service(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *projects: str,
    ago: timedelta = timedelta(0),
) -> AsyncIterator[Service]:
    """Set it up, with a fake whose clock started some time ago, and make the command line find it."""
    clock = FakeClock(start=datetime.now(UTC) - ago)
    async with (
        FakeAsana(projects=projects, clock=clock) as fake,
        AsanaSession(fake.token, base_url=fake.url) as asana,
        SQLiteStore(folder / "asana.db") as store,
        AsyncExitStack() as receiving,
    ):
        public_url = await receiving.enter_async_context(serve_receiver(Receiver(store)))
        made = Service(fake, asana, store, public_url, receiving, folder, monkeypatch, capsys)
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        yield made
