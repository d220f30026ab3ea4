"""What is known about one call while it goes on."""

import asyncio

from attrs import define, field

from asana_webhooks._tasks import is_being_cancelled
from asana_webhooks.client.auth import FixedToken, TokenProvider, check_token
from asana_webhooks.client.gate import Pause
from asana_webhooks.client.retry import Outcome
from asana_webhooks.client.transport import Sendings
from asana_webhooks.errors import AsanaError, ConfigurationError
from asana_webhooks.models import Secret

__all__ = ["Call", "Patience"]


@define
class Call:
    """One call of a session's ``send``, with all its attempts."""

    deadline: float
    """By the policy's clock."""
    sendings: Sendings = field(factory=Sendings)
    attempts: int = 0
    undone: int = 0
    """How many of the sendings Asana has certainly not executed."""
    token: Secret | None = None
    """The one that was sent last."""
    rejected: Secret | None = None
    """The one that Asana did not accept, if another was asked for then."""
    renewal_due: bool = False
    """Whether the provider has yet to be told that it was not accepted."""
    rejection: Outcome | None = None
    """What Asana said to it."""
    waited_for: Pause | None = None
    """The pause of the session that the call has sat out."""

    @property
    def maybe_done(self) -> bool:
        """Whether Asana may have executed a sending before the last one."""
        return self.sendings.count - self.undone > 1

    def count(self, outcome: Outcome) -> None:
        """Count an attempt, if it was one."""
        if outcome.kind != "held" and outcome is not self.rejection:
            self.attempts += 1

    def renew(self, rejection: Outcome) -> None:
        """Have the next attempt ask for another token."""
        self.rejected, self.rejection, self.renewal_due = self.token, rejection, True

    async def ask_token(self, provider: TokenProvider) -> Secret:
        """Return a token of *provider*, which is told before if its last one was not accepted.

        Raises:
            AsanaError: whatever of our own the provider raises.
            ConfigurationError: it raises anything else, or its token cannot be sent.
        """
        if type(provider) is FixedToken:  # checked when it was made; what derives from it may do anything
            return provider.token
        try:
            renew = getattr(provider, "renew", None)
            if self.renewal_due and self.rejected is not None and renew is not None:
                await renew(self.rejected.reveal())
            self.renewal_due = False
            token = Secret(await provider())
            check_token(token.reveal())
        except AsanaError:
            raise
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            problem = "CancelledError"
        except Exception as error:  # noqa: BLE001 - a provider may raise anything, and in it may be the token
            problem = type(error).__name__
        else:
            return token
        raise ConfigurationError(f"the token provider failed with {problem}")


@define
class Patience:
    """What an attempt waits for, and since when, by the event loop's clock in seconds."""

    waiting_for: str
    """In words that say what has not come."""
    began: float

    def lost(self, end: float, *, sent: bool) -> Outcome:
        """Return what comes of the attempt when it is cancelled at its *end*, with the request *sent* or not."""
        problem = f"{self.waiting_for} within {max(end - self.began, 0):.1f} seconds"
        return Outcome(kind="lost" if sent else "not_sent", problem=problem)
