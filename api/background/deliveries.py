"""Sending one webhook message, signed as Standard Webhooks says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from api.background.egress import EgressRefusedError, make_client, post
from jobs.rows import Delivery
from jobs.settings import Settings


@dataclass(frozen=True)
class Result:
    """What came of a try; `error` is empty when it was delivered."""

    status: int | None
    error: str

    @property
    def delivered(self) -> bool:
        """Whether the receiver said 2xx."""
        return not self.error


class WebhookSender:
    """Sends deliveries through one client."""

    def __init__(self, settings: Settings) -> None:
        self._allow_loopback = settings.allow_loopback_webhooks
        self._client = make_client()

    async def send(self, delivery: Delivery) -> Result:
        """POST a delivery; never raises for what the receiver or the network does."""
        import httpx  # see make_client

        try:
            status = await post(
                self._client,
                delivery.url,
                delivery.payload.encode(),
                signed_headers(delivery),
                allow_loopback=self._allow_loopback,
            )
        except EgressRefusedError as error:
            return Result(None, str(error))
        except TimeoutError:
            return Result(None, "no answer within 15 seconds")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return Result(None, type(error).__name__)  # its text may name an inner address
        return Result(status, "" if 200 <= status < 300 else f"the receiver answered {status}")

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()


def signed_headers(delivery: Delivery, now: datetime | None = None) -> dict[str, str]:
    """The headers of a message; its id stays the same when it is sent again, so receivers can tell."""
    from standardwebhooks import Webhook as Signer

    moment = now or datetime.now(UTC)
    signature = Signer(delivery.secret).sign(delivery.id, moment, delivery.payload)
    return {
        "Content-Type": "application/json",
        "User-Agent": "optipfair-service",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": signature,
    }
