"""The commands ``doctor url`` and ``doctor signature``: what is wrong with a public URL, or with a signature."""

import os
import sys
from collections.abc import Mapping
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
    PublicUrlFinding,
    Receiver,
    Registration,
    RegistrationState,
    Secret,
    SecretUnavailableError,
    check_public_url,
    explain_signature,
    verify_signature,
)
from asana_webhooks.cli.common import FAILED, Json, Output, PublicUrl, StoreName, named_store
from asana_webhooks.receiver.web import serve
from asana_webhooks.subscriptions.rules import named, split_public_url

__all__ = ["doctor"]

_PAGE: Final = 100
_NO_CAUSE: Final = "no cause found: the secret is another webhook's, the body is not the raw one, or it is not Asana's"

doctor = App(name="doctor", help="Find out what is wrong with a public URL or a signature, and why.")


@doctor.command
async def url(
    public_url: PublicUrl,
    *,
    store: StoreName = "",
    port: Annotated[
        int | None,
        Parameter(name="--serve", validator=Number(gte=0, lte=65535), help="Serve a receiver on this port meanwhile."),
    ] = None,
    host: Annotated[
        str, Parameter(show_default=True, help="The address to serve on; in a container 0.0.0.0.")
    ] = "127.0.0.1",
    json: Json = False,
) -> int:
    """Play Asana against the public URL before you create a webhook, and name the likely cause of each failure.

    It sends a handshake, signed bodies and two requests at once through the URL, to a registration of its own that is
    closed at the end. A receiver must be running on the same store; or let it serve one itself with --serve, at the
    path of the URL. It then needs no store. The exit status is 0 if all is well, else 1.

    ```text
    asana-webhooks doctor url https://example.com/asana --serve 8080
    ```
    """
    if not store and port is None:
        raise ConfigurationError("pass the service's --store, or --serve PORT to serve a receiver meanwhile")
    output = Output(json=json)
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(named_store(store) if store else MemoryStore())
        if port is not None:
            path = split_public_url(public_url)[0].raw_path
            local = await stack.enter_async_context(serve(Receiver(opened), host=host, port=port, path=path))
            output.talk(f"serving a receiver at {local}")
        report = await check_public_url(opened, public_url)
    for one in report.findings:
        output.show(asdict(one), _coloured(one))
    return 0 if report.ok else FAILED


def _coloured(finding: PublicUrlFinding) -> Text:
    text = Text(f"{finding}")
    colour = "red" if not finding.ok else "yellow" if finding.cause else "green"
    text.stylize(f"bold {colour}", 0, text.plain.index(":"))
    return text


@doctor.command
async def signature(
    *,
    body_file: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="The raw body, as it arrived; - is standard input.")
    ],
    header: Annotated[str, Parameter(help="The value of its header X-Hook-Signature.")],
    secret_env: Annotated[
        str | None, Parameter(help="The variable with the secret of the webhook that it came for.")
    ] = None,
    store: StoreName = "",
    json: Json = False,
) -> int:
    r"""Say whether a delivery's signature is valid, and the likely cause if it is not.

    With --store it tries the secret of each webhook in the store, and says whose it is. The exit status is 0 if the
    signature is valid, else 1.

    ```text
    asana-webhooks doctor signature --body-file body.json \
        --header 8f2a… --store asana.db
    ```
    """
    if not store and secret_env is None:
        raise ConfigurationError("pass --secret-env with the name of a variable that holds the secret, or --store")
    output, body = Output(json=json), _read(body_file)
    known = await _webhooks(store, output) if store else {}
    secrets = {gid: one.secret for gid, one in known.items() if one.secret is not None}
    own, others = ({"": _secret(secret_env)}, secrets) if secret_env is not None else (secrets, {})
    valid, gid, cause = _judge(body, header.rpartition(":")[2].strip(), own, others)
    whose = named(known[gid]) if gid else ""
    if valid:
        text = f"valid{whose and f': signed with the secret of {whose}'}"
    else:
        text = f"invalid: {whose and f'for {whose}: '}{cause}"
    output.show({"valid": valid, "webhook_gid": gid or None, "cause": cause}, text)
    return 0 if valid else FAILED


def _judge(body: bytes, given: str, own: Mapping[str, Secret], others: Mapping[str, Secret]) -> tuple[bool, str, str]:
    """Return whether a signature is valid for a secret of *own*, the gid it belongs to, and the likely cause if not."""
    if malformed := explain_signature(b"", given, secret="any"):  # noqa: S106 - it says what no secret mends
        return False, "", malformed
    for gid, secret in own.items():
        if verify_signature(body, given, secret=secret):
            return True, gid, ""
    for gid, secret in own.items():
        if cause := explain_signature(body, given, secret=secret, others=others):
            return False, gid, cause
    return False, "", _NO_CAUSE


async def _webhooks(name: str, output: Output) -> dict[str, Registration]:
    """Return the webhooks of a store by their gids, with their secrets, where these can be opened."""
    found: dict[str, Registration] = {}
    after: str | None = ""
    async with named_store(name) as store:
        while after is not None:
            page = await store.list_registrations(state=RegistrationState.CONFIRMED, after=after, limit=_PAGE)
            for one in page:
                try:
                    opened = await store.find_registration(one.id)
                except SecretUnavailableError as error:
                    output.talk(f"{named(one)}: {error}")
                    continue
                if opened is not None:
                    found[opened.webhook_gid or ""] = opened
            after = page[-1].id if len(page) == _PAGE else None
    return found


def _secret(variable: str) -> Secret:
    if not (value := os.environ.get(variable)):
        raise ConfigurationError(f"the variable {variable} of --secret-env is not set")
    return Secret(value)


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read --body-file {name}: {error.strerror}") from None
