"""The handshake inside createWebhook, the real one and those of strangers.

Source: https://developers.asana.com/docs/webhooks-guide
"""

import random

from asana_webhooks.models import Secret
from asana_webhooks.testing.answers import ApiError
from asana_webhooks.testing.records import HandshakeRecord
from asana_webhooks.testing.script import FaultScript
from asana_webhooks.testing.signing import secret_of
from asana_webhooks.testing.target_client import Postman, Reply

__all__ = ["Handshaker"]

_SERVER = "The remote server which is intended to receive the webhook"


class Handshaker:
    """Shakes hands with targets, and remembers it.

    Args:
        postman: the way to the targets.
        faults: what is to go wrong.
        rng: where secrets come from.
        records: where handshakes are noted.
    """

    def __init__(
        self, *, postman: Postman, faults: FaultScript, rng: random.Random, records: list[HandshakeRecord]
    ) -> None:
        self._postman = postman
        self._faults = faults
        self._rng = rng
        self._records = records

    async def shake(self, target: str, secret: Secret) -> None:
        """Make sure that *target* wants the webhook.

        Raises:
            ApiError: 400, it does not.
        """
        plan = self._faults.take("handshake")
        if (stranger := plan.find("stranger", "before")) is not None:
            await self.send(target, secret_of(stranger.secret, self._rng), stranger=True)
        await plan.wait("before")
        if plan.find("drop"):
            raise ApiError(400, f"{_SERVER} could not be reached")
        record, reply = await self._post(target, secret, stranger=False)
        if plan.find("duplicate"):
            await self._post(target, secret, stranger=False)
        if (stranger := plan.find("stranger", "after")) is not None:
            await self.send(target, secret_of(stranger.secret, self._rng), stranger=True)
        await plan.wait("after")
        _judge(record, reply)

    async def send(self, target: str, secret: Secret, *, stranger: bool) -> HandshakeRecord:
        """Post a handshake, whatever comes of it."""
        record, _ = await self._post(target, secret, stranger=stranger)
        return record

    async def _post(self, target: str, secret: Secret, *, stranger: bool) -> tuple[HandshakeRecord, Reply]:
        record = HandshakeRecord(target=target, secret=secret, stranger=stranger)
        self._records.append(record)
        # Asana's documentation shows no body; two bytes were seen by receivers.
        reply = await self._postman.post(target, {"X-Hook-Secret": secret.reveal()}, b"{}")
        record.status, record.failure, record.seconds = reply.status, reply.failure, reply.seconds
        record.echoed = reply.headers.get("X-Hook-Secret") == secret.reveal()
        return record, reply


def _judge(record: HandshakeRecord, reply: Reply) -> None:
    if reply.late:
        raise ApiError(400, f"{_SERVER} did not respond in time")
    if reply.status is None:
        raise ApiError(400, f"{_SERVER} could not be reached")
    if not reply.accepted:
        raise ApiError(400, f"{_SERVER} responded with an incorrect status code: {reply.status}")
    if not record.echoed:
        raise ApiError(400, f"{_SERVER} did not respond with the handshake secret")
