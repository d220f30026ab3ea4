"""What users need to test their own service without Asana: `FakeAsana`, and the words to script it with."""

from asana_webhooks.testing.clock import FakeClock
from asana_webhooks.testing.fake import DEFAULT_TOKEN, FakeAsana
from asana_webhooks.testing.faults import Fault
from asana_webhooks.testing.oauth import AppRecord
from asana_webhooks.testing.proxy import FaultProxy
from asana_webhooks.testing.records import DeliveryRecord, HandshakeRecord, RequestRecord, WebhookRecord
from asana_webhooks.testing.script import Hold
from asana_webhooks.testing.serving import serve_receiver
from asana_webhooks.testing.streams import StreamFault

__all__ = [
    "DEFAULT_TOKEN",
    "AppRecord",
    "DeliveryRecord",
    "FakeAsana",
    "FakeClock",
    "Fault",
    "FaultProxy",
    "HandshakeRecord",
    "Hold",
    "RequestRecord",
    "StreamFault",
    "WebhookRecord",
    "serve_receiver",
]
