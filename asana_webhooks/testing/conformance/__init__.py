"""Every promise of `asana_webhooks.store.Store` as a test: a store that passes `StoreConformance` is a store.

::

    class TestMyStore(StoreConformance):
        def make_store(self, tmp_path, clock):
            return MyStore(tmp_path / "my.db", clock=clock)

It needs pytest, and no plugin for asyncio.
"""

from asana_webhooks.testing.conformance.suite import StoreConformance
from asana_webhooks.testing.conformance.tools import SettableClock

__all__ = ["SettableClock", "StoreConformance"]
