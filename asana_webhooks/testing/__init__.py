"""Test your service without Asana: `FakeAsana` with its faults, clock and records, and events for tests of one
handler.

.. include:: README.md
"""

from asana_webhooks.testing.clock import FakeClock
from asana_webhooks.testing.events import make_delivery, make_event
from asana_webhooks.testing.fake import FakeAsana
from asana_webhooks.testing.faults import Fault, Hold
from asana_webhooks.testing.oauth import DEFAULT_TOKEN, AppRecord
from asana_webhooks.testing.records import DeliveryRecord, HandshakeRecord, RequestRecord, WebhookRecord
from asana_webhooks.testing.serving import serve_receiver

__all__ = [
    "DEFAULT_TOKEN",
    "AppRecord",
    "DeliveryRecord",
    "FakeAsana",
    "FakeClock",
    "Fault",
    "HandshakeRecord",
    "Hold",
    "RequestRecord",
    "WebhookRecord",
    "make_delivery",
    "make_event",
    "serve_receiver",
]
