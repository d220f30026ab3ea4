"""A `SecretBox` with keys of one's own: Fernet, out of ``cryptography``. It comes with the extra ``fernet``."""

from collections.abc import Mapping
from contextlib import suppress

from asana_webhooks.errors import ConfigurationError
from asana_webhooks.models import Secret

try:
    from cryptography.fernet import Fernet, InvalidToken
except ModuleNotFoundError as missing:  # say what to do, as the command line does
    raise ModuleNotFoundError(
        "FernetBox needs cryptography; install it with: pip install 'asana-webhooks[fernet]'", name=missing.name
    ) from None

__all__ = ["FernetBox"]


class FernetBox:
    """Seals secrets with a Fernet key; give it to a store as *secret_box*.

    ::

        box = FernetBox({"2026-11": os.environ["ASANA_STORE_KEY"]})
        store = SQLiteStore("asana.db", secret_box=box)

    ``python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"`` makes a key. Keep it
    away from the file, and keep it: without it the secrets are lost, and with them the webhooks.

    To change the key, first let every process know the new one (``{"old": …, "new": …}``), then put it first
    (``{"new": …, "old": …}``). A store that opens then seals all its secrets anew. When that has happened, and no
    process seals with the old key any more, drop it.

    A sealed secret is bound to nothing: whoever may write the file can put one webhook's sealed secret in the place of
    another's, though not read it.

    Args:
        keys: Fernet keys by id, 32 bytes in URL-safe base64 each. The first one seals, all of them open. The ids are
            no secrets: they stand in the file and in errors.

    Raises:
        ConfigurationError: there is no key, or one that is none.
    """

    def __init__(self, keys: Mapping[str, str | Secret]) -> None:
        self.key_id = next(iter(keys), "")
        """The id of the key that seals."""
        self._fernets: dict[str, Fernet] = {}
        for key_id, fernet in [(key_id, _fernet(key_id, key)) for key_id, key in keys.items()]:
            if fernet is None:
                del keys  # error trackers show the locals of a frame that raises
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
        fernet = self._fernets.get(key_id)
        if fernet is None:
            raise ConfigurationError(f"this FernetBox has no key {key_id!a:.80}")
        with suppress(InvalidToken):
            return Secret(fernet.decrypt(sealed).decode())
        raise ConfigurationError(f"this was not sealed with the key {key_id!a:.80}, or was changed since")


def _fernet(key_id: str, key: str | Secret) -> Fernet | None:
    """Return ``None`` for a key that is none; nothing is raised from here, for the key is in the frame."""
    with suppress(ValueError):
        return Fernet((key.reveal() if isinstance(key, Secret) else key).encode()) if key_id else None
    return None
