"""Where registrations and deliveries are kept."""

from asana_webhooks.store.base import (
    MAX_CANDIDATES,
    DeadLetter,
    Lease,
    NewDelivery,
    PutResult,
    Registration,
    RegistrationState,
    Store,
    StoreHealth,
    candidate_id,
    registration_id,
)
from asana_webhooks.store.memory import MemoryStore
from asana_webhooks.store.opening import open_store
from asana_webhooks.store.secret_box import PLAIN_TEXT, SecretBox
from asana_webhooks.store.sqlite import SQLiteStore

__all__ = [
    "MAX_CANDIDATES",
    "PLAIN_TEXT",
    "DeadLetter",
    "Lease",
    "MemoryStore",
    "NewDelivery",
    "PutResult",
    "Registration",
    "RegistrationState",
    "SQLiteStore",
    "SecretBox",
    "Store",
    "StoreHealth",
    "candidate_id",
    "open_store",
    "registration_id",
]
