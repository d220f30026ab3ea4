"""Fixtures every test may ask for."""

import gc
import os
import signal
import sys

import pytest
from hypothesis import settings

# The time one example takes says something about the machine, not about the code.
settings.register_profile("asana_webhooks", deadline=None)
settings.load_profile("asana_webhooks")

# Shells let the background jobs of a script ignore Ctrl-C; programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start programs by the hundred. None compiles the package again, or reads the certificates of the system.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["SSL_CERT_FILE"] = os.devnull

pytest_plugins = ["asana_webhooks.testing.pytest_plugin", "tests.helpers.watching", "tests.helpers.postgres"]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the options of this run from those that tests start; but processes that share its tests need them."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("PYTEST_ADDOPTS", None)


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone, from now on, what pytest itself keeps: a million objects."""
    gc.collect()
    gc.freeze()
