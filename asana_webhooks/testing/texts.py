"""What a text must be to go over HTTP: checked where a test says it, so that the mistake shows there."""

import re
from collections.abc import Mapping
from typing import Final

from asana_webhooks.errors import ConfigurationError

__all__ = ["check_header", "check_text", "merge_headers"]

# https://www.rfc-editor.org/rfc/rfc9110#name-tokens and #name-field-values; whatever is beyond ASCII goes out as UTF-8
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
# These say where the answer ends, which the server knows better; a fault can ``truncate`` it instead.
_FRAMING: Final = ("content-length", "transfer-encoding")


def check_text(name: str, text: str) -> None:
    """Check that *text* can be encoded.

    Raises:
        ConfigurationError: it holds half a character; the message calls it *name*.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        # Without the text itself: it may be a secret.
        raise ConfigurationError(f"{name} holds a lone surrogate, which UTF-8 cannot encode") from None


def check_header(name: str, value: str, *, header: str = "X") -> None:
    """Check that *value* can be the value of *header*.

    Raises:
        ConfigurationError: it cannot; the message calls it *name*.
    """
    if not _NAME.fullmatch(header) or header.lower() in _FRAMING:
        raise ConfigurationError(f"{name} cannot hold a header called {header!r:.80}")
    if not _VALUE.fullmatch(value):
        raise ConfigurationError(f"{name} cannot be a header: {value!r:.80}")
    check_text(name, value)


def merge_headers(*layers: Mapping[str, str]) -> dict[str, str]:
    """Put headers together: of the same name, in whatever case, the last one counts."""
    found = {name.lower(): (name, value) for layer in layers for name, value in layer.items()}
    return dict(found.values())
