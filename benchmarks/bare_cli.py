"""The command line's framework alone: an app with the commands of ours that do nothing."""

from typing import Annotated

from cyclopts import App, Parameter

app = App(name="asana-webhooks", help="Try Asana's webhooks without Asana.", version="0", help_format="markdown")


@app.command
def demo(
    *,
    store: Annotated[str | None, Parameter(help="Where to keep things.")] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print nothing but the summary.")] = False,
) -> None:
    """See everything this package does, in a few seconds and on this machine alone."""


@app.command
def fake(
    *,
    port: Annotated[int, Parameter(help="Where to listen; 0 takes a free port.")] = 0,
    token: Annotated[str | None, Parameter(help="The access token that is good.")] = None,
) -> None:
    """Serve a fake Asana on 127.0.0.1 until it is stopped by Ctrl-C or SIGTERM."""


if __name__ == "__main__":
    app()
