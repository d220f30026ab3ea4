"""Fixtures every test may ask for."""

import os
import signal

import pytest
from hypothesis import settings

# The time one example takes says something about the machine, not about the code.
settings.register_profile("asana_webhooks", deadline=None)
settings.load_profile("asana_webhooks")

# Shells let the background jobs of a script ignore Ctrl-C; programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["asana_webhooks.testing.pytest_plugin", "tests.helpers.watching", "tests.helpers.postgres"]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the options of this run from those that tests start; but processes that share its tests need them."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("PYTEST_ADDOPTS", None)
