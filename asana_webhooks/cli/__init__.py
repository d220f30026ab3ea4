"""The command line ``asana-webhooks``. It needs the extra ``cli``; the rest of the package does not.

.. include:: README.md
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line with this process's arguments, and exit."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)  # the status that shells expect after Ctrl-C


def _run() -> None:
    try:
        from asana_webhooks.cli.app import run  # noqa: PLC0415 - reports a missing extra
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("asana_webhooks"):
            raise
        sys.exit(
            f"asana-webhooks: the command line needs {missing.name}, which is not installed; "
            "install it with: pip install 'asana-webhooks[cli]'"
        )
    run()
