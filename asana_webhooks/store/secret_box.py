"""Secrets at rest: what seals a webhook's secret before a store writes it, and opens it again."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from asana_webhooks.errors import ConfigurationError, StoreUnavailableError
from asana_webhooks.models import Secret

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

__all__ = ["FernetBox", "Sealer", "SecretBox", "StoredSecret"]

T = TypeVar("T")


class SecretBox(Protocol):
    """Seals the secrets of webhooks before a store writes them, and opens them again.

    `FernetBox` is one with keys of yours. For a key management service, write one whose methods call its client.

    The methods are called in the store's threads, maybe in two at once, and never while the database is locked. They
    may block, but must end by themselves and soon: a delivery waits for `open`, and Asana gives up after ten seconds.
    Secrets are opened one after the other, once for all who ask for the same at the same time, so a key service that
    takes 50 milliseconds lets the deliveries of 20 webhooks a second through; a box may remember what it has opened.
    Whatever they raise, `SystemExit` and `asyncio.CancelledError` included, becomes a `StoreUnavailableError` without
    the text of that error; a receiver then answers 503, and Asana sends again.
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


class FernetBox:
    """Seals secrets with a Fernet key; give it to a store as *secret_box*. It needs the extra ``fernet``.

    ::

        box = FernetBox({"2026-11": os.environ["ASANA_STORE_KEY"]})
        store = SQLiteStore("asana.db", secret_box=box)

    ``python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"`` makes a key. Keep it
    away from the file, and keep it: without it the secrets are lost, and with them the webhooks.

    To change the key, first let every process know the new one (``{"old": …, "new": …}``), then put it first
    (``{"new": …, "old": …}``) everywhere, and call `SQLiteStore.reseal` once. Then drop the old one.

    A sealed secret is bound to nothing: whoever may write the file can put one webhook's sealed secret in the place of
    another's, though not read it.

    Args:
        keys: Fernet keys by id, 32 bytes in URL-safe base64 each. The first one seals, all of them open. The ids are
            not secret: they stand in the file and in errors.

    Raises:
        ConfigurationError: there is no key, or one of them is not a Fernet key.
        ModuleNotFoundError: cryptography is not installed.
    """

    def __init__(self, keys: Mapping[str, str | Secret]) -> None:
        self.key_id = next(iter(keys), "")
        """The id of the key that seals."""
        self._fernets: dict[str, Fernet] = {}
        for key_id, key in keys.items():
            fernet = _fernet(key) if key_id else None
            if fernet is None:
                raise ConfigurationError(
                    f"the Fernet key {key_id!a:.80} must be 32 bytes in URL-safe base64, as Fernet.generate_key() "
                    "makes them, and have an id"
                )
            self._fernets[key_id] = fernet
        if not self._fernets:
            raise ConfigurationError("FernetBox needs at least one key")

    def __repr__(self) -> str:
        return f"<FernetBox seals with {self.key_id!a:.80}, opens {len(self._fernets)}>"

    def seal(self, secret: Secret) -> bytes:
        """See `SecretBox.seal`."""
        return self._fernets[self.key_id].encrypt(secret.reveal().encode())

    def open(self, sealed: bytes, key_id: str) -> Secret:
        """See `SecretBox.open`.

        Raises:
            ConfigurationError: the box has no key of this id, or another key sealed it, or it was changed.
        """
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - it comes with an extra

        fernet = self._fernets.get(key_id)
        if fernet is None:
            raise ConfigurationError(f"this FernetBox has no key {key_id!a:.80}")
        with suppress(InvalidToken):
            return Secret(fernet.decrypt(sealed).decode())
        raise ConfigurationError(f"this was not sealed with the key {key_id!a:.80}, or was changed since")


def _fernet(key: str | Secret) -> "Fernet | None":
    """Return what seals with a key, or ``None`` if it is not a Fernet key."""
    try:
        from cryptography.fernet import Fernet  # noqa: PLC0415 - it comes with an extra
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "FernetBox needs cryptography; install it with: pip install 'asana-webhooks[fernet]'", name=missing.name
        ) from None
    with suppress(ValueError):  # its text may show the key
        return Fernet((key.reveal() if isinstance(key, Secret) else key).encode())
    return None


class StoredSecret(NamedTuple):
    """A secret as it lies in the database: what the columns ``secret`` and ``key_id`` hold."""

    content: str | bytes
    """As plain text, or sealed."""
    key_id: str | None
    """The key it is sealed with; ``None``: plain text."""

    def __repr__(self) -> str:
        return f"<StoredSecret key_id={self.key_id!a:.80}>"


class Sealer:
    """Seals and opens the secrets of one store; all errors of the box end here.

    Args:
        box: ``None``: secrets are written as plain text.

    Raises:
        ConfigurationError: this is not a `SecretBox`.
    """

    def __init__(self, box: SecretBox | None) -> None:
        self._box = box
        key_id = None if box is None else getattr(box, "key_id", None)
        if box is not None and not (isinstance(key_id, str) and key_id):
            raise ConfigurationError("secret_box must be a SecretBox whose key_id is a text, and not empty")
        self.key_id: str | None = key_id
        """The key that seals now; ``None``: secrets are written as plain text."""

    def seal(self, secret: Secret) -> StoredSecret:
        """Return a secret as it is to be written.

        Raises:
            StoreUnavailableError: the box failed.
        """
        if self._box is None:
            return StoredSecret(secret.reveal(), None)
        sealed, failure = _call(bytes, self._box.seal, secret)
        if sealed is None:
            raise StoreUnavailableError(
                problem=f"the secret box cannot seal a secret with the key {_shown(self.key_id)} ({failure})",
                advice="Check that the box has this key and that its key service answers.",
            )
        return StoredSecret(sealed, self.key_id)

    def open(self, stored: StoredSecret) -> Secret:
        """Return a secret that was stored; plain text can be read with any box, and without one.

        Raises:
            StoreUnavailableError: the box failed, or there is none.
        """
        content, key_id = stored
        if isinstance(content, str):
            return Secret(content)
        if self._box is None:
            raise StoreUnavailableError(
                problem=f"a secret is sealed with the key {_shown(key_id)}, and this store has no secret box",
                advice="Give the store the secret_box that has this key.",
            )
        opened, failure = _call(Secret, self._box.open, content, key_id or "")
        if opened is None:
            raise StoreUnavailableError(
                problem=f"the secret box cannot open a secret that is sealed with the key {_shown(key_id)} ({failure})",
                advice="Give the box this key, too, and check that its key service answers.",
            )
        return opened


def _call(wanted: type[T], method: Callable[..., object], *args: object) -> tuple[T | None, str]:
    """Call a method of a box: what it returned, or ``None`` and what went wrong, without the text of the error."""
    try:
        returned = method(*args)
    except BaseException as error:  # noqa: BLE001 - here, in the store's threads, an exit is a failure as well
        return None, type(error).__name__
    if isinstance(returned, wanted):
        return returned, ""
    return None, f"it returned no {wanted.__name__} but {type(returned).__name__}"


def _shown(key_id: str | None) -> str:
    return f"{key_id!a:.80}"
