"""POST requests to targets, the fake's only outgoing traffic. Targets must be on this machine."""

import asyncio
import time
from collections.abc import Mapping
from http.client import responses
from ipaddress import ip_address

import aiohttp
from attrs import field, frozen
from yarl import URL

__all__ = ["TargetClient", "TargetResponse", "is_loopback"]

# Bytes of a target's answer to keep for ``last_failure_content``.
MAX_ANSWER = 4096


@frozen(kw_only=True)
class TargetResponse:
    """A target's answer, or the reason there is none."""

    status: int | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    text: str = ""
    failure: str | None = None
    late: bool = False
    """True if the target did not answer within the timeout."""
    seconds: float = 0.0
    """Seconds of real time until the answer or the failure."""

    @property
    def accepted(self) -> bool:
        """Whether Asana counts it as a success: only 200 and 204."""
        # https://developers.asana.com/docs/webhooks-guide
        return self.status in (200, 204)

    @property
    def content(self) -> str:
        """The text of ``last_failure_content``, such as ``500 Server Error`` followed by the body."""
        if self.status is None:
            return self.failure or ""
        phrase = "Server Error" if self.status == 500 else responses.get(self.status, "Unknown")
        return f"{self.status} {phrase}\n\n{self.text}"


def is_loopback(target: str) -> bool:
    """Return whether *target* is on this machine: 127.0.0.0/8, ::1 or localhost."""
    try:
        host = URL(target, encoded=True).host or ""
    except ValueError:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _beginning(response: aiohttp.ClientResponse) -> str:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= MAX_ANSWER:
            break
    return body[:MAX_ANSWER].decode(errors="replace")


class TargetClient:
    """Posts to targets on this machine. It never connects to any other target.

    Args:
        timeout: seconds of real time a target has for its whole answer.
    """

    def __init__(self, *, timeout: float) -> None:
        self.timeout = timeout
        self._http: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Create the HTTP session; needs a running event loop."""
        self._http = aiohttp.ClientSession(
            # A reused connection may be dead, and the delivery would fail because of the fake, not the target.
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Asana documents no User-Agent, so that receivers must not rely on one.
            skip_auto_headers=["User-Agent"],
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close the session."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def post(self, target: str, headers: Mapping[str, str], body: bytes) -> TargetResponse:
        """Send one request and return its answer, or the failure, as a `TargetResponse`."""
        started = time.monotonic()
        if self._http is None or not is_loopback(target):
            return TargetResponse(failure="The target could not be reached")
        try:
            async with (
                asyncio.timeout(self.timeout),
                self._http.post(
                    URL(target, encoded=True),  # send the URL exactly as given, including its query string
                    data=body,
                    headers={"Content-Type": "application/json", **headers},
                    allow_redirects=False,
                ) as response,
            ):
                text = await _beginning(response)
                seconds = time.monotonic() - started
                return TargetResponse(status=response.status, headers=response.headers, text=text, seconds=seconds)
        except TimeoutError:
            failure = f"The target did not answer within {self.timeout:g} seconds"
            return TargetResponse(failure=failure, late=True, seconds=time.monotonic() - started)
        except (aiohttp.ClientError, OSError, ValueError):
            return TargetResponse(failure="The target could not be reached", seconds=time.monotonic() - started)
