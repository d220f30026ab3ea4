"""Async-first SDK for Asana's webhooks: ask, be called, keep, and try it all without Asana.

The names below are the public ones. Beside them stand the doors, imported from where they are:
`asana_webhooks.receiver.web` (aiohttp), `asana_webhooks.receiver.asgi` (FastAPI, Starlette, any ASGI) and
`asana_webhooks.testing` (a fake Asana).

Each name is imported from its room when it is first asked for. So a service that only receives never imports aiohttp,
and one that only asks no store.
"""

from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from asana_webhooks.version import __version__

if TYPE_CHECKING:
    from asana_webhooks.backoff import Backoff
    from asana_webhooks.client.auth import OAuthToken, RenewingTokenProvider, TokenProvider
    from asana_webhooks.client.deprecations import Deprecation
    from asana_webhooks.client.operations import (
        create_webhook,
        delete_webhook,
        get_webhook,
        get_webhooks,
        update_webhook,
    )
    from asana_webhooks.client.pages import WebhookPage, WebhookPager
    from asana_webhooks.client.requests import (
        CreateWebhookRequest,
        DeleteWebhookRequest,
        GetWebhookRequest,
        GetWebhooksRequest,
        UpdateWebhookRequest,
    )
    from asana_webhooks.client.retry import RetryPolicy
    from asana_webhooks.client.session import AsanaSession
    from asana_webhooks.client.tokens import TokenSet
    from asana_webhooks.errors import (
        AsanaError,
        BadRequestError,
        ConfigurationError,
        ConnectionFailedError,
        CreateOutcomeUnknownError,
        DeadlineExceededError,
        DuplicateWebhookError,
        ForbiddenError,
        HandshakeMismatchError,
        NetworkError,
        NotAuthorizedError,
        NotFoundError,
        PaginationError,
        PaginationExpiredError,
        PaginationRepeatedError,
        PayloadError,
        PaymentRequiredError,
        RateLimitedError,
        RejectedError,
        ResponseError,
        ServerError,
        StoreError,
        StoreFullError,
        StoreUnavailableError,
        TargetRejectedError,
        TokenRefreshError,
        UnexpectedResponseError,
    )
    from asana_webhooks.models import (
        Change,
        CreatedWebhook,
        Delivery,
        Event,
        ResourceRef,
        Secret,
        Webhook,
        WebhookFilter,
    )
    from asana_webhooks.receiver.receiver import Receiver, Reply
    from asana_webhooks.receiver.signature import sign, verify
    from asana_webhooks.retention import Retention
    from asana_webhooks.store.base import DeadLetter, Store, StoreHealth, registration_id
    from asana_webhooks.store.memory import MemoryStore
    from asana_webhooks.store.opening import open_store
    from asana_webhooks.store.secret_box import PLAIN_TEXT, SecretBox
    from asana_webhooks.store.sqlite import SQLiteStore
    from asana_webhooks.subscriptions.establish import EstablishedWebhook, establish_webhook
    from asana_webhooks.subscriptions.orphans import sweep_registrations
    from asana_webhooks.worker import Worker

__all__ = [
    "PLAIN_TEXT",
    "AsanaError",
    "AsanaSession",
    "Backoff",
    "BadRequestError",
    "Change",
    "ConfigurationError",
    "ConnectionFailedError",
    "CreateOutcomeUnknownError",
    "CreateWebhookRequest",
    "CreatedWebhook",
    "DeadLetter",
    "DeadlineExceededError",
    "DeleteWebhookRequest",
    "Delivery",
    "Deprecation",
    "DuplicateWebhookError",
    "EstablishedWebhook",
    "Event",
    "ForbiddenError",
    "GetWebhookRequest",
    "GetWebhooksRequest",
    "HandshakeMismatchError",
    "MemoryStore",
    "NetworkError",
    "NotAuthorizedError",
    "NotFoundError",
    "OAuthToken",
    "PaginationError",
    "PaginationExpiredError",
    "PaginationRepeatedError",
    "PayloadError",
    "PaymentRequiredError",
    "RateLimitedError",
    "Receiver",
    "RejectedError",
    "RenewingTokenProvider",
    "Reply",
    "ResourceRef",
    "ResponseError",
    "Retention",
    "RetryPolicy",
    "SQLiteStore",
    "Secret",
    "SecretBox",
    "ServerError",
    "Store",
    "StoreError",
    "StoreFullError",
    "StoreHealth",
    "StoreUnavailableError",
    "TargetRejectedError",
    "TokenProvider",
    "TokenRefreshError",
    "TokenSet",
    "UnexpectedResponseError",
    "UpdateWebhookRequest",
    "Webhook",
    "WebhookFilter",
    "WebhookPage",
    "WebhookPager",
    "Worker",
    "__version__",
    "create_webhook",
    "delete_webhook",
    "establish_webhook",
    "get_webhook",
    "get_webhooks",
    "open_store",
    "registration_id",
    "sign",
    "sweep_registrations",
    "update_webhook",
    "verify",
]

# For every name of the block above, the module it comes from. Importing them all at once takes a quarter as long as
# aiohttp, attrs, cattrs and msgspec together, most of it for making the classes that attrs makes.
_HOMES: Final = {
    name: f"{__name__}.{home}"
    for home, names in {
        "backoff": "Backoff",
        "client.auth": "OAuthToken RenewingTokenProvider TokenProvider",
        "client.deprecations": "Deprecation",
        "client.operations": "create_webhook delete_webhook get_webhook get_webhooks update_webhook",
        "client.pages": "WebhookPage WebhookPager",
        "client.requests": (
            "CreateWebhookRequest DeleteWebhookRequest GetWebhookRequest GetWebhooksRequest UpdateWebhookRequest"
        ),
        "client.retry": "RetryPolicy",
        "client.session": "AsanaSession",
        "client.tokens": "TokenSet",
        "errors": (
            "AsanaError BadRequestError ConfigurationError ConnectionFailedError CreateOutcomeUnknownError "
            "DeadlineExceededError DuplicateWebhookError ForbiddenError HandshakeMismatchError NetworkError "
            "NotAuthorizedError NotFoundError PaginationError PaginationExpiredError PaginationRepeatedError "
            "PayloadError PaymentRequiredError RateLimitedError RejectedError ResponseError ServerError "
            "StoreError StoreFullError StoreUnavailableError TargetRejectedError TokenRefreshError "
            "UnexpectedResponseError"
        ),
        "models": "Change CreatedWebhook Delivery Event ResourceRef Secret Webhook WebhookFilter",
        "receiver.receiver": "Receiver Reply",
        "receiver.signature": "sign verify",
        "retention": "Retention",
        "store.base": "DeadLetter Store StoreHealth registration_id",
        "store.memory": "MemoryStore",
        "store.opening": "open_store",
        "store.secret_box": "PLAIN_TEXT SecretBox",
        "store.sqlite": "SQLiteStore",
        "subscriptions.establish": "EstablishedWebhook establish_webhook",
        "subscriptions.orphans": "sweep_registrations",
        "worker": "Worker",
    }.items()
    for name in names.split()
}


_importing: Final = RLock()
"""Held while a name is imported: two threads that import from one package at once can get in each other's way."""


if not TYPE_CHECKING:  # to type checkers it would mean that every name exists

    def __getattr__(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with _importing:
            value = globals()[name] = _imported(name)
        return value

    def _imported(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        room = f"{__name__}.{name}"
        try:
            return import_module(room)
        except ModuleNotFoundError as error:
            if error.name != room:
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
