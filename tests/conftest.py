"""Fixtures every test may ask for."""

import os

from hypothesis import settings

# The time one example takes says something about the machine, not about the code.
settings.register_profile("asana_webhooks", deadline=None)
settings.load_profile("asana_webhooks")

pytest_plugins = ["asana_webhooks.testing.pytest_plugin", "tests.helpers.watching"]

os.environ.pop("PYTEST_ADDOPTS", None)  # it is for this run, not for those that tests start
