"""``python -m asana_webhooks``: the same as the command ``asana-webhooks``."""

from asana_webhooks.cli import main

if __name__ == "__main__":
    main()
