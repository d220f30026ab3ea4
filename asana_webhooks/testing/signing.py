"""The secrets the fake makes, and signatures with any key there is."""

import hashlib
import hmac
import random

from asana_webhooks.models import Secret
from asana_webhooks.testing.texts import check_text

__all__ = ["new_secret", "secret_of", "sign_with"]


def new_secret(rng: random.Random) -> Secret:
    """A fresh secret: 32 hex digits, as Asana has made them since 2021."""
    return Secret(f"{rng.getrandbits(128):032x}")


def secret_of(given: Secret | str | None, rng: random.Random) -> Secret:
    """The secret a test gave, or a fresh one.

    Raises:
        ConfigurationError: the text cannot be encoded.
    """
    if given is None:
        return new_secret(rng)
    if isinstance(given, Secret):
        return given
    check_text("secret", given)
    return Secret(given)


def sign_with(secret: Secret, body: bytes) -> str:
    """Sign as `asana_webhooks.sign_body` does, with an empty secret too: an attacker would try that one."""
    return hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()
