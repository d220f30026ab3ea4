"""The pytest fixture ``fake_asana``, a running `FakeAsana`.

Enable it in ``conftest.py`` with ``pytest_plugins = ["asana_webhooks.testing.pytest_plugin"]``. The fixture is async,
so it needs a pytest plugin: pytest-asyncio in either mode or, where that is not installed, anyio's
(``@pytest.mark.anyio``).
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
    # In strict mode pytest-asyncio runs only fixtures made with its decorator.
    return pytest_asyncio.fixture(function)


@_async_fixture
async def fake_asana() -> AsyncIterator[FakeAsana]:
    """A running `FakeAsana` for one test: one workspace, one project, a frozen clock."""
    async with FakeAsana() as fake:
        yield fake
