"""Fixtures every test may ask for."""

import os

os.environ.pop("PYTEST_ADDOPTS", None)  # it is for this run, not for those that tests start

pytest_plugins = ["asana_webhooks.testing.pytest_plugin"]
