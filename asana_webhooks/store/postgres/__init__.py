"""A store in PostgreSQL, which several machines may share. It needs the extra ``postgres``."""

from asana_webhooks.store.postgres.schema import postgres_schema
from asana_webhooks.store.postgres.store import PostgresStore

__all__ = ["PostgresStore", "postgres_schema"]
