"""The control client: small JSON questions to instances, and to the balancer's own admin listener.

Not for the data path: httpx costs milliseconds a call. Source: encode/httpx issue 3215.
"""

from collections.abc import Mapping

import httpx

from balancer.errors import BadResponse, ConnectFailed, ConnectionLost


class ControlClient:
    """Asks with a deadline of its own for each question; proxies named in the environment are ignored."""

    def __init__(self) -> None:
        # A new connection for each question: a kept one that the other end closed looks like a failure.
        self._client = httpx.AsyncClient(
            trust_env=False, follow_redirects=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def get(self, url: str, path: str, *, timeout_seconds: float) -> Mapping[str, object]:
        """The JSON object at a path. Raises InstanceError."""
        return await self._ask("GET", url, path, None, timeout_seconds)

    async def post(
        self, url: str, path: str, body: Mapping[str, object], *, timeout_seconds: float
    ) -> Mapping[str, object]:
        """The JSON object that a POST answers. Raises InstanceError."""
        return await self._ask("POST", url, path, body, timeout_seconds)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _ask(
        self, method: str, url: str, path: str, body: Mapping[str, object] | None, timeout_seconds: float
    ) -> Mapping[str, object]:
        what = f"{method} {path}"
        try:
            response = await self._client.request(
                method, url.rstrip("/") + path, json=body, timeout=timeout_seconds
            )
            value = response.json() if response.content else {}
        except httpx.ConnectError as error:
            raise ConnectFailed(f"{what}: no connection ({error})", refused=True) from error
        except httpx.TimeoutException as error:
            raise ConnectFailed(f"{what}: no answer in {timeout_seconds:g} s") from error
        except AttributeError as error:
            # anyio asks a uvloop transport for its peer's name, and there is none once the other end
            # has closed the connection that is being opened.
            raise ConnectionLost(f"{what}: closed while it was being opened") from error
        except httpx.HTTPError as error:
            raise ConnectionLost(f"{what}: {type(error).__name__}") from error
        except ValueError as error:
            raise BadResponse(f"{what}: the answer is not JSON") from error
        if response.status_code != httpx.codes.OK or not isinstance(value, dict):
            raise BadResponse(f"{what}: answered {response.status_code}")
        return value
