"""The control client: small JSON questions to instances, and to the balancer's own admin listener.

Not for the data path: httpx costs milliseconds a call. Source: encode/httpx issue 3215.
"""

import asyncio
from collections.abc import Mapping, Sequence

import httpx
import msgspec

from balancer.errors import BadResponse, ConnectFailed, ConnectionLost

_ANSWER_LIMIT_BYTES = 1 << 24


class ControlClient:
    """Asks with a deadline of its own for each question; proxies named in the environment are ignored."""

    def __init__(self) -> None:
        # A new connection for each question: a kept one that the other end closed looks like a failure.
        self._client = httpx.AsyncClient(
            trust_env=False, follow_redirects=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def get(self, url: str, path: str, *, timeout_seconds: float) -> Mapping[str, object]:
        """The JSON object at a path. Raises InstanceError."""
        return await self._good("GET", url, path, None, timeout_seconds)

    async def get_rows(
        self, url: str, path: str, *, timeout_seconds: float
    ) -> Sequence[Mapping[str, object]]:
        """The JSON array of objects at a path. Raises InstanceError."""
        status, content = await self._ask("GET", url, path, None, timeout_seconds)
        if status != httpx.codes.OK:
            raise BadResponse(f"GET {path}: answered {status}")
        try:
            return msgspec.json.decode(content, type=list[dict[str, object]])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadResponse(f"GET {path}: no JSON array of objects") from error

    async def post(
        self, url: str, path: str, body: Mapping[str, object], *, timeout_seconds: float
    ) -> Mapping[str, object]:
        """The JSON object that a POST answers. Raises InstanceError."""
        return await self._good("POST", url, path, body, timeout_seconds)

    async def try_post(
        self, url: str, path: str, body: Mapping[str, object], *, timeout_seconds: float
    ) -> tuple[int, Mapping[str, object]]:
        """The status that a POST answers, whatever it is, and the JSON object that comes with it: for
        those whose errors say what to do. Raises InstanceError."""
        status, content = await self._ask("POST", url, path, body, timeout_seconds)
        return status, _object(f"POST {path}", status, content)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _good(
        self, method: str, url: str, path: str, body: Mapping[str, object] | None, timeout_seconds: float
    ) -> Mapping[str, object]:
        status, content = await self._ask(method, url, path, body, timeout_seconds)
        if status != httpx.codes.OK:
            raise BadResponse(f"{method} {path}: answered {status}")
        return _object(f"{method} {path}", status, content)

    async def _ask(
        self, method: str, url: str, path: str, body: Mapping[str, object] | None, timeout_seconds: float
    ) -> tuple[int, bytes]:
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._exchange(method, url.rstrip("/") + path, body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ConnectFailed(f"{what}: no answer in {timeout_seconds:g} s") from error
        except httpx.ConnectError as error:
            raise ConnectFailed(f"{what}: no connection ({error})", refused=_is_refusal(error)) from error
        except AttributeError as error:
            # anyio asks a uvloop transport for its peer's name, and there is none once the other end
            # has closed the connection that is being opened.
            raise ConnectionLost(f"{what}: closed while it was being opened") from error
        except httpx.HTTPError as error:
            raise ConnectionLost(f"{what}: {type(error).__name__}") from error

    async def _exchange(self, method: str, url: str, body: Mapping[str, object] | None) -> tuple[int, bytes]:
        content = bytearray()
        async with self._client.stream(method, url, json=body) as response:
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > _ANSWER_LIMIT_BYTES:
                    raise BadResponse(
                        f"{method} {url}: the answer is larger than {_ANSWER_LIMIT_BYTES} bytes"
                    )
        return response.status_code, bytes(content)


def _object(what: str, status: int, content: bytes) -> Mapping[str, object]:
    try:
        return msgspec.json.decode(content, type=dict[str, object]) if content else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadResponse(f"{what}: answered {status}, and no JSON object") from error


def _is_refusal(error: BaseException) -> bool:
    """Whether a chain of causes begins with a refusal; httpx wraps what the sockets said twice."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_refusal(each) for each in error.exceptions)
    cause = error.__cause__ or error.__context__
    return (
        isinstance(error, ConnectionRefusedError | ConnectionResetError)
        if cause is None
        else _is_refusal(cause)
    )
