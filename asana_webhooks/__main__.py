"""``python -m asana_webhooks``: runs the command ``asana-webhooks``."""

from asana_webhooks.cli import main

if __name__ == "__main__":
    main()
