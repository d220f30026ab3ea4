"""A fixture for pytest: ``fake_asana``, a running `FakeAsana`.

A ``conftest.py`` says ``pytest_plugins = ["asana_webhooks.testing.pytest_plugin"]``. The fixture is a coroutine's, so
an async plugin is needed: pytest-asyncio in either mode, or anyio's own (``@pytest.mark.anyio``) where pytest-asyncio
is not installed.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asana_webhooks.testing.fake import FakeAsana

__all__ = ["fake_asana"]


def _async_fixture(function: Callable[[], AsyncIterator[FakeAsana]]) -> Any:
    try:
        import pytest_asyncio  # noqa: PLC0415
    except ImportError:
        return pytest.fixture(function)
    # In its strict mode pytest-asyncio runs only the fixtures that were made with its own decorator.
    return pytest_asyncio.fixture(function)


@_async_fixture
async def fake_asana() -> AsyncIterator[FakeAsana]:
    """A `FakeAsana` that runs for one test: one workspace, one project, a frozen clock."""
    async with FakeAsana() as fake:
        yield fake
