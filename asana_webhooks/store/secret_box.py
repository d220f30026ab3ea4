"""Secrets at rest: seal (encrypt) a webhook's secret before a store writes it, and open it again."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from asana_webhooks._checks import is_encodable
from asana_webhooks.errors import ConfigurationError, SecretUnavailableError
from asana_webhooks.models import Secret

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

__all__ = ["FernetBox", "Sealer", "SecretBox", "StoredSecret"]

T = TypeVar("T")

_LOST: Final = "If the key is lost for good, call remove_webhook, which needs no secret, and then ensure_webhook."


class SecretBox(Protocol):
    """Seals (encrypts) the secrets of webhooks before a store writes them, and opens (decrypts) them again.

    `FernetBox` uses keys that you provide. For a key management service, write a box whose methods call its client.

    A store calls the methods in one thread, one at a time, and never while it locks the database; stores that share a
    box may call it concurrently. The methods may block, but need a short timeout: a delivery waits for `open`, and
    Asana gives up after ten seconds. With calls of 50 milliseconds, a store looks up 20 registrations a second;
    concurrent lookups of one registration share a call. A box may cache opened secrets. Any exception, even
    `SystemExit` or `asyncio.CancelledError`, becomes a `SecretUnavailableError` without its text; the receiver then
    answers 503.
    """

    @property
    def key_id(self) -> str:
        """The id of the key that seals. It must not be empty, and must never change.

        The store writes it as plain text beside each secret, and errors show it.
        """

    def seal(self, secret: Secret) -> bytes:
        """Return the secret, encrypted with the key `key_id`."""

    def open(self, sealed: bytes, key_id: str) -> Secret:
        """Return the secret that was sealed.

        Args:
            sealed: the result of `seal`, perhaps of an earlier box.
            key_id: the `key_id` of the box that sealed it.
        """


class FernetBox:
    """A `SecretBox` with Fernet keys; give it to a store as *secret_box*. It needs the extra ``fernet``.

    ::

        box = FernetBox({"2026-11": os.environ["ASANA_STORE_KEY"]})
        store = SQLiteStore("asana.db", secret_box=box)

    ``python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"`` creates a key. Keep
    it safe, and apart from the database file. Without the key the secrets are lost, and with them the webhooks.

    To rotate the key, first add the new one in every process (``{"old": …, "new": …}``). Then put it first everywhere
    (``{"new": …, "old": …}``), and call `SQLiteStore.reseal` once. Then remove the old one.

    A sealed secret is not bound to its webhook: someone who can write to the file can replace one webhook's sealed
    secret with another's, but cannot read either.

    Args:
        keys: Fernet keys by id, each 32 bytes in URL-safe base64, as text or bytes. The first one seals, all of them
            open. The ids are not secret: the file and errors show them.

    Raises:
        ConfigurationError: there is no key, one of them is not a Fernet key, or an id is empty.
        ModuleNotFoundError: cryptography is not installed.
    """

    def __init__(self, keys: Mapping[str, str | bytes | Secret]) -> None:
        given: Any = keys  # callers may ignore the type hints
        if not isinstance(given, Mapping):
            raise ConfigurationError('FernetBox takes keys by their ids, such as {"2026-11": key}')
        self.key_id = next(iter(keys), "")
        """The id of the key that seals."""
        self._fernets: dict[str, Fernet] = {}
        for key_id, key in keys.items():
            fernet = _fernet(key) if key_id else None
            if fernet is None:
                raise ConfigurationError(
                    f"the Fernet key {key_id!a:.80} must have an id and be 32 bytes in URL-safe base64; "
                    "create one with Fernet.generate_key()"
                )
            self._fernets[key_id] = fernet
        if not self._fernets:
            raise ConfigurationError("FernetBox needs at least one key")

    def __repr__(self) -> str:
        return f"<FernetBox key_id={self.key_id!a:.80} keys={len(self._fernets)}>"

    def seal(self, secret: Secret) -> bytes:
        """See `SecretBox.seal`."""
        return self._fernets[self.key_id].encrypt(secret.reveal().encode())

    def open(self, sealed: bytes, key_id: str) -> Secret:
        """See `SecretBox.open`.

        Raises:
            ConfigurationError: the box has no key with this id, another key sealed the secret, or it was changed since.
        """
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - it comes with an extra

        fernet = self._fernets.get(key_id)
        if fernet is None:
            raise ConfigurationError(f"this FernetBox has no key {key_id!a:.80}; add it to its keys")
        with suppress(InvalidToken):
            return Secret(fernet.decrypt(sealed).decode())
        raise ConfigurationError(f"the secret was not sealed with the key {key_id!a:.80}, or was changed since")


def _fernet(key: str | bytes | Secret) -> "Fernet | None":
    """Return the `Fernet` of a key, or ``None`` if it is not a Fernet key."""
    try:
        from cryptography.fernet import Fernet  # noqa: PLC0415 - it comes with an extra
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "FernetBox needs cryptography; install it with: pip install 'asana-webhooks[fernet]'", name=missing.name
        ) from None
    with suppress(TypeError, ValueError):  # their texts may show the key, so do not chain them
        return Fernet(key.reveal() if isinstance(key, Secret) else key)
    return None


class StoredSecret(NamedTuple):
    """A secret as stored in the database: the columns ``secret`` and ``key_id``."""

    content: str | bytes
    """Plain text, or sealed bytes."""
    key_id: str | None
    """The id of the key that sealed it; ``None``: plain text."""

    def __repr__(self) -> str:
        return f"<StoredSecret key_id={self.key_id!a:.80}>"


class Sealer:
    """Seals and opens the secrets of one store. Every error of the box becomes a `SecretUnavailableError`.

    Args:
        box: seals and opens; ``None``: secrets are written as plain text.

    Raises:
        ConfigurationError: *box* is not a `SecretBox`.
    """

    def __init__(self, box: SecretBox | None) -> None:
        self._box = box
        key_id = None if box is None else getattr(box, "key_id", None)
        if box is not None and not (isinstance(key_id, str) and key_id):
            raise ConfigurationError("secret_box must be a SecretBox whose key_id is a non-empty string")
        self.key_id: str | None = key_id
        """The id of the key that seals; ``None``: secrets are written as plain text."""

    def seal(self, secret: Secret) -> StoredSecret:
        """Return a secret in the form to write.

        Raises:
            SecretUnavailableError: the box failed.
        """
        if self._box is None:
            return StoredSecret(secret.reveal(), None)
        sealed, failure = _call(bytes, self._box.seal, secret)
        if sealed is None:
            raise SecretUnavailableError(
                problem=f"the secret box cannot seal a secret with the key {_shown(self.key_id)} ({failure})",
                advice="Check that the box has this key and that its key service answers.",
            )
        return StoredSecret(sealed, self.key_id)

    def open(self, stored: StoredSecret) -> Secret:
        """Return a stored secret. Plain text needs no box.

        Raises:
            SecretUnavailableError: the box failed, or there is none.
        """
        content, key_id = stored
        if isinstance(content, str):
            return Secret(content)
        if self._box is None:
            raise SecretUnavailableError(
                problem=f"a secret is sealed with the key {_shown(key_id)}, but this store has no secret_box",
                advice=f"Give the store a secret_box that has this key. {_LOST}",
            )
        opened, failure = _call(Secret, self._box.open, content, key_id or "")
        if opened is not None and not (opened.reveal() and is_encodable(opened.reveal())):
            opened, failure = None, "it returned an empty Secret, or one with a lone surrogate"
        if opened is None:
            raise SecretUnavailableError(
                problem=f"the secret box cannot open a secret sealed with the key {_shown(key_id)} ({failure})",
                advice=f"Check that the box has this very key under this id, and that its key service answers. {_LOST}",
            )
        return opened

    def open_or_note(self, stored: StoredSecret, failed: dict[str | None, str]) -> Secret | None:
        """Open a secret. If that fails, note the error under its key; return ``None`` for every secret of that key."""
        if stored.key_id not in failed:  # opening more secrets of a failed key would only take time
            try:
                return self.open(stored)
            except SecretUnavailableError as error:
                failed[stored.key_id] = str(error)
        return None


def _call(wanted: type[T], method: Callable[..., object], *args: object) -> tuple[T | None, str]:
    """Call a method of a box. Return its result, or ``None`` and the kind of failure, without the error's text."""
    try:
        returned = method(*args)
    except BaseException as error:  # noqa: BLE001 - in the store's threads, an exit is a failure too
        return None, type(error).__name__
    if isinstance(returned, wanted):
        return returned, ""
    return None, f"it returned {type(returned).__name__} instead of {wanted.__name__}"


def _shown(key_id: str | None) -> str:
    return f"{key_id!a:.80}"
