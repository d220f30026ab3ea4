"""Secrets at rest: what seals a webhook's secret before a store writes it, and opens it again. Decisions only."""

from typing import Final, Protocol, final

from attrs import field, frozen

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.models import Secret

__all__ = ["PLAIN_TEXT", "KeptSecret", "PlainText", "Safe", "SecretBox"]


class SecretBox(Protocol):
    """Seals the secrets of webhooks before a store writes them, and opens them again.

    `asana_webhooks.store.fernet.FernetBox` is one with keys of yours. For a key management service, write one whose
    methods call its client.

    The methods are called in the store's threads, maybe in two at once, and never while the database is locked. They
    may block, but must end by themselves and soon: a delivery waits for `open`, and Asana gives up after ten seconds.
    Secrets are opened one after the other, once for all who ask for the same at the same time, so a key service that
    takes 50 milliseconds lets the deliveries of 20 webhooks a second through; a box may remember what it has opened.
    Whatever they raise, `SystemExit` and `asyncio.CancelledError` included, becomes a `StoreUnavailableError`, which
    keeps neither the text nor the frames of it; a receiver then answers 503, and Asana sends again.
    """

    @property
    def key_id(self) -> str:
        """The name of the key that seals; it never changes, and is not empty.

        The store keeps it, readable, beside each secret, and errors show it.
        """

    def seal(self, secret: Secret) -> bytes:
        """Return the secret in a form that nobody can read without the key."""

    def open(self, sealed: bytes, key_id: str) -> Secret:
        """Return what was sealed.

        Args:
            sealed: what `seal` returned, maybe of another box and long ago.
            key_id: the `key_id` of that box then.
        """


@final
class PlainText:
    """See `PLAIN_TEXT`."""

    def __repr__(self) -> str:
        return "PLAIN_TEXT"


PLAIN_TEXT: Final = PlainText()
"""Says that secrets may lie in the store's file as plain text: the file is on an encrypted disk, or does not last."""


@frozen
class KeptSecret:
    """A secret as a store keeps it."""

    content: Secret | bytes = field(repr=False)
    """As plain text, or sealed."""
    key_id: str | None
    """The key it is sealed with; ``None``: plain text."""

    @property
    def column(self) -> str | bytes:
        """What is written into the database; use it inside the call that writes."""
        return self.content if isinstance(self.content, bytes) else self.content.reveal()


class Safe:
    """Seals and opens the secrets of one store; all errors of the box end here.

    Args:
        box: ``None`` and `PLAIN_TEXT` write plain text.

    Raises:
        ConfigurationError: this is no `SecretBox`.
    """

    def __init__(self, box: SecretBox | PlainText | None) -> None:
        self._box = None if isinstance(box, PlainText) else box
        self.warns = box is None
        """Whether nobody has said yet that plain text is fine."""
        key_id = None if self._box is None else getattr(self._box, "key_id", None)
        if self._box is not None and not (isinstance(key_id, str) and key_id):
            raise ConfigurationError("secret_box must be a SecretBox whose key_id is a text, and not empty")
        self.key_id: str | None = key_id
        """The key that seals now; ``None``: secrets are written in plain text."""

    def seal(self, secret: Secret) -> KeptSecret:
        """Return a secret as it is to be written.

        Raises:
            StoreUnavailableError: the box failed.
        """
        if self._box is None:
            return KeptSecret(secret, None)
        try:
            sealed = self._box.seal(secret)
        except BaseException as error:  # noqa: BLE001 - here, in the store's threads, an exit is a failure as well
            failure = type(error).__name__
        else:
            if isinstance(sealed, bytes):
                return KeptSecret(sealed, self.key_id)
            failure = f"it returned no bytes but {type(sealed).__name__}"
            del sealed
        # Not inside the except: the error of the box, its frames and what they hold are dropped.
        raise StoreUnavailableError(
            problem=f"the secret box cannot seal a secret with the key {_shown(self.key_id)} ({failure})",
            advice="Check that the box has this key and that its key service answers.",
        )

    def open(self, kept: KeptSecret) -> Secret:
        """Return a secret that was kept; plain text from before there was a box can always be read.

        Raises:
            StoreUnavailableError: the box failed, or there is none.
        """
        if isinstance(kept.content, Secret):
            return kept.content
        key = _shown(kept.key_id)
        if self._box is None:
            raise StoreUnavailableError(
                problem=f"a secret is sealed with the key {key}, and this store has no secret box",
                advice="Give the store the secret_box that has this key.",
            )
        try:
            opened = self._box.open(kept.content, kept.key_id or "")
        except BaseException as error:  # noqa: BLE001 - here, in the store's threads, an exit is a failure as well
            failure = type(error).__name__
        else:
            if isinstance(opened, Secret):
                return opened
            failure = f"it returned no Secret but {type(opened).__name__}"
            del opened
        raise StoreUnavailableError(
            problem=f"the secret box cannot open a secret that is sealed with the key {key} ({failure})",
            advice="Give the box this key, too, and check that its key service answers.",
        )


def _shown(key_id: str | None) -> str:
    return f"{key_id!a:.80}"
