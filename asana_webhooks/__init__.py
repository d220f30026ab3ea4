"""Async-first SDK for Asana's webhooks: create them, receive and process deliveries, and test without Asana.

The names exported here are public. Three public modules are imported by their full names:
`asana_webhooks.receiver.web` (aiohttp), `asana_webhooks.receiver.asgi` (FastAPI, Starlette, any ASGI) and
`asana_webhooks.testing` (a fake Asana).
"""

__version__ = "0.1.0"  # before the imports: `client.transport` sends it to Asana

from asana_webhooks.client.auth import TokenProvider
from asana_webhooks.client.oauth import OAuthToken, TokenSet
from asana_webhooks.client.operations import (
    create_webhook,
    delete_webhook,
    get_projects,
    get_webhook,
    get_webhooks,
    get_workspaces,
    read_resource,
    update_webhook,
)
from asana_webhooks.client.pages import WebhookPage, WebhookPager
from asana_webhooks.client.requests import (
    CreateWebhookRequest,
    DeleteWebhookRequest,
    GetProjectsRequest,
    GetWebhookRequest,
    GetWebhooksRequest,
    GetWorkspacesRequest,
    ReadResourceRequest,
    UpdateWebhookRequest,
)
from asana_webhooks.client.retry import RetryPolicy
from asana_webhooks.client.session import AsanaSession
from asana_webhooks.errors import (
    AsanaError,
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    CreateOutcomeUnknownError,
    DeadlineExceededError,
    DuplicateWebhookError,
    ForbiddenError,
    HandlerExitError,
    HandshakeMismatchError,
    InvalidSignatureError,
    NetworkError,
    NotAuthorizedError,
    NotFoundError,
    PaginationError,
    PayloadError,
    PaymentRequiredError,
    PermanentFailure,
    RateLimitedError,
    RegistrationClosedError,
    ResponseError,
    SecretUnavailableError,
    ServerError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    TargetRejectedError,
    TokenRefreshError,
    UnexpectedResponseError,
    UnusableHandlerError,
    WebhookExistsError,
    WebhookNotVisibleError,
)
from asana_webhooks.models import (
    Change,
    CreatedWebhook,
    Delivery,
    Event,
    ParsedDelivery,
    ResourceRef,
    Secret,
    UnreadableEvent,
    Webhook,
    WebhookFilter,
)
from asana_webhooks.receiver.receiver import Receiver, Reply
from asana_webhooks.receiver.signature import explain_signature, parse_delivery, sign_body, verify_signature
from asana_webhooks.store import open_store
from asana_webhooks.store.base import (
    DeliveryState,
    Registration,
    RegistrationState,
    Store,
    StoredDelivery,
    StoreHealth,
)
from asana_webhooks.store.memory import MemoryStore
from asana_webhooks.store.postgres import PostgresStore
from asana_webhooks.store.secret_box import SecretBox
from asana_webhooks.store.sqlite import SQLiteStore
from asana_webhooks.subscriptions.adopt import adopt_webhook
from asana_webhooks.subscriptions.apply import PlanResult, StepResult, apply_plan
from asana_webhooks.subscriptions.ensure import EnsuredWebhook, ensure_webhook
from asana_webhooks.subscriptions.establish import EstablishedWebhook, establish_webhook
from asana_webhooks.subscriptions.health import Gap, WebhookChange, WebhookHealth, check_webhooks, watch_webhooks
from asana_webhooks.subscriptions.move import ReplacedWebhook, replace_webhook
from asana_webhooks.subscriptions.plan import PlanStep, WantedWebhook, WebhookPlan, plan_webhooks
from asana_webhooks.subscriptions.public_url import PublicUrlFinding, PublicUrlReport, check_public_url
from asana_webhooks.subscriptions.remove import remove_webhook, remove_webhooks
from asana_webhooks.worker.processing import Backoff
from asana_webhooks.worker.retention import Retention
from asana_webhooks.worker.router import EventRouter
from asana_webhooks.worker.worker import Worker, WorkerHealth

__all__ = [
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
    "DeadlineExceededError",
    "DeleteWebhookRequest",
    "Delivery",
    "DeliveryState",
    "DuplicateWebhookError",
    "EnsuredWebhook",
    "EstablishedWebhook",
    "Event",
    "EventRouter",
    "ForbiddenError",
    "Gap",
    "GetProjectsRequest",
    "GetWebhookRequest",
    "GetWebhooksRequest",
    "GetWorkspacesRequest",
    "HandlerExitError",
    "HandshakeMismatchError",
    "InvalidSignatureError",
    "MemoryStore",
    "NetworkError",
    "NotAuthorizedError",
    "NotFoundError",
    "OAuthToken",
    "PaginationError",
    "ParsedDelivery",
    "PayloadError",
    "PaymentRequiredError",
    "PermanentFailure",
    "PlanResult",
    "PlanStep",
    "PostgresStore",
    "PublicUrlFinding",
    "PublicUrlReport",
    "RateLimitedError",
    "ReadResourceRequest",
    "Receiver",
    "Registration",
    "RegistrationClosedError",
    "RegistrationState",
    "ReplacedWebhook",
    "Reply",
    "ResourceRef",
    "ResponseError",
    "Retention",
    "RetryPolicy",
    "SQLiteStore",
    "Secret",
    "SecretBox",
    "SecretUnavailableError",
    "ServerError",
    "StepResult",
    "Store",
    "StoreError",
    "StoreFullError",
    "StoreHealth",
    "StoreUnavailableError",
    "StoredDelivery",
    "TargetRejectedError",
    "TokenProvider",
    "TokenRefreshError",
    "TokenSet",
    "UnexpectedResponseError",
    "UnreadableEvent",
    "UnusableHandlerError",
    "UpdateWebhookRequest",
    "WantedWebhook",
    "Webhook",
    "WebhookChange",
    "WebhookExistsError",
    "WebhookFilter",
    "WebhookHealth",
    "WebhookNotVisibleError",
    "WebhookPage",
    "WebhookPager",
    "WebhookPlan",
    "Worker",
    "WorkerHealth",
    "__version__",
    "adopt_webhook",
    "apply_plan",
    "check_public_url",
    "check_webhooks",
    "create_webhook",
    "delete_webhook",
    "ensure_webhook",
    "establish_webhook",
    "explain_signature",
    "get_projects",
    "get_webhook",
    "get_webhooks",
    "get_workspaces",
    "open_store",
    "parse_delivery",
    "plan_webhooks",
    "read_resource",
    "remove_webhook",
    "remove_webhooks",
    "replace_webhook",
    "sign_body",
    "update_webhook",
    "verify_signature",
    "watch_webhooks",
]
