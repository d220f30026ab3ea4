"""The commands ``doctor url`` and ``doctor signature``: what is wrong with a public URL, or with a signature."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Final

from attrs import asdict
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.text import Text

from asana_webhooks import (
    ConfigurationError,
    MemoryStore,
    Receiver,
    RegistrationState,
    Secret,
    check_public_url,
    explain_signature,
    verify_signature,
)
from asana_webhooks.cli.common import FAILED, Json, Output, PublicUrl, StoreName, named_store, progress, secret_in
from asana_webhooks.receiver.web import serve
from asana_webhooks.subscriptions.rules import named, split_public_url

__all__ = ["doctor"]

Known = tuple[str | None, str, Secret]
"""The gid and name of a webhook, and its secret."""
Port = Annotated[
    int | None,
    Parameter(name="--serve", validator=Number(gte=0, lte=65535), help="Run a receiver on this port meanwhile."),
]
Host = Annotated[str, Parameter(show_default=True, help="The address it listens on; in a container 0.0.0.0.")]
BodyFile = Annotated[str, Parameter(help="A file with the raw body, as it arrived.")]
Header = Annotated[str, Parameter(help="The value of its header X-Hook-Signature.")]
SecretEnv = Annotated[str | None, Parameter(help="The variable with the webhook's secret.")]

_COLOURS: Final = {"ok": "bold green", "warning": "bold yellow", "failed": "bold red"}

doctor = App(name="doctor", help="Find out what is wrong with a public URL or a signature, and why.")


@doctor.command
async def url(
    public_url: PublicUrl, *, store: StoreName = "", port: Port = None, host: Host = "127.0.0.1", json: Json = False
) -> int:
    """Play Asana against the public URL before you create a webhook, and name the likely cause of each failure.

    It sends a handshake, signed bodies and two requests at once through the URL, to a registration of its own that it
    closes at the end. A receiver must run on the same store. With --serve it runs one itself, at the path of the URL,
    and needs no store. The exit status is 0 if all is well, else 1.

    ```text
    asana-webhooks doctor url https://example.com/asana --serve 8080
    ```
    """
    if not store and port is None:
        raise ConfigurationError("pass the service's --store, or --serve PORT to run a receiver meanwhile")
    output = Output(json=json)
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(MemoryStore() if port is not None else named_store(store))
        if port is not None:
            path = split_public_url(public_url)[0].raw_path
            local = await stack.enter_async_context(serve(Receiver(opened), host=host, port=port, path=path))
            output.talk(f"serving a receiver at {local}")
        with progress("checking"):
            report = await check_public_url(opened, public_url)
    for one in report.findings:
        text = Text(f"{one}")
        text.stylize(_COLOURS[one.verdict], 0, len(one.verdict))
        output.show(asdict(one), text)
    return 0 if report.ok else FAILED


@doctor.command
async def signature(
    *, body_file: BodyFile, header: Header, secret_env: SecretEnv = None, store: StoreName = "", json: Json = False
) -> int:
    r"""Say whether a delivery's signature is valid, and the likely cause if it is not.

    Without --secret-env it tries the secret of each webhook in the store, and says whose it is. The exit status is 0 if
    the signature is valid, else 1.

    ```text
    asana-webhooks doctor signature --body-file body.json \
        --header 8f2a91c0 --store asana.db
    ```
    """
    output, body, given = Output(json=json), _read(body_file), header.rpartition(":")[2].strip()
    known = await _webhooks(store) if secret_env is None else [(None, "", secret_in(secret_env))]
    for gid, name, secret in known:
        if verify_signature(body, given, secret=secret):
            text = f"valid{name and f': signed with the secret of {name}'}"
            output.show({"valid": True, "webhook_gid": gid, "cause": ""}, text)
            return 0
    gid, name, cause = await _explain(body, given, known)
    output.show({"valid": False, "webhook_gid": gid, "cause": cause}, f"invalid: {name and f'for {name}: '}{cause}")
    return FAILED


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read --body-file {name}: {error.strerror}") from None


async def _webhooks(store: str) -> list[Known]:
    """Return what is known of each webhook in a store."""
    if not store:
        raise ConfigurationError("pass --secret-env with the name of a variable that holds the secret, or --store")
    known, after = list[Known](), ""
    async with named_store(store) as opened:
        while page := await opened.list_registrations(state=RegistrationState.CONFIRMED, after=after, limit=1000):
            after = page[-1].id
            for one in page:
                if (found := await opened.find_registration(one.id)) and found.secret:
                    known.append((found.webhook_gid, named(found), found.secret))
    return known


async def _explain(body: bytes, given: str, known: Sequence[Known]) -> tuple[str | None, str, str]:
    """Return the gid and name of the webhook for which there is a likely cause, and the cause."""
    if malformed := explain_signature(b"", given, secret="any"):  # noqa: S106 - it says what no secret mends
        return None, "", malformed
    with progress("secrets", len(known)) as bar:
        for gid, name, secret in known:
            if cause := explain_signature(body, given, secret=secret):
                return gid, name, cause
            await asyncio.sleep(0)  # a long body takes 30 ms, so Ctrl-C must end it here
            bar.advance(bar.task_ids[0])
    cause = "no cause found: the secret is another webhook's, the body is not the raw one, or it is not Asana's"
    return None, "", cause
