"""What users need to test their own service without Asana: `FakeAsana`, and the words to script it with."""

from asana_webhooks.testing.clock import FakeClock
from asana_webhooks.testing.fake import DEFAULT_TOKEN, FakeAsana
from asana_webhooks.testing.faults import Fault
from asana_webhooks.testing.records import DeliveryRecord, HandshakeRecord, RequestRecord, WebhookRecord
from asana_webhooks.testing.script import Hold
from asana_webhooks.testing.serving import serve_receiver

__all__ = [
    "DEFAULT_TOKEN",
    "DeliveryRecord",
    "FakeAsana",
    "FakeClock",
    "Fault",
    "HandshakeRecord",
    "Hold",
    "RequestRecord",
    "WebhookRecord",
    "serve_receiver",
]
