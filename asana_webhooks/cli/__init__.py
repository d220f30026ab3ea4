"""The command line: ``asana-webhooks``. Its framework comes with the extra ``cli``; nothing else here needs it."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of this process, and exit."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)  # what shells expect of a process that Ctrl-C has ended


def _run() -> None:
    try:
        from asana_webhooks.cli.app import run  # noqa: PLC0415 - the extra may be missing, and then we can say so
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("asana_webhooks"):
            raise
        sys.exit(
            f"asana-webhooks: the command line needs {missing.name}, which is not installed; "
            "install it with: pip install 'asana-webhooks[cli]'"
        )
    run()
