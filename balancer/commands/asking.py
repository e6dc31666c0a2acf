"""What the commands that ask a running balancer have in common: its admin API as questions, and what is
said where nobody answers or the answer is a refusal."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

from balancer.commands.exit_codes import FAILED
from balancer.errors import InstanceError
from balancer.upstream.control_client import ControlClient

ANSWER_SECONDS = 5.0
OK = 200
NOT_FOUND = 404
CONFLICT = 409
_SHOWN_CHARACTERS = 48
LONG = 1000
"""Characters of a sentence, rather than a name, that are shown."""


class Admin:
    """The admin API of a running balancer. Every question raises InstanceError where none answers."""

    def __init__(self, client: ControlClient, url: str) -> None:
        self._client = client
        self._url = url

    async def get(self, path: str) -> Mapping[str, object]:
        """What a path below `/admin/v1/` tells."""
        return await self._client.get(self._url, f"/admin/v1/{path}", timeout_seconds=ANSWER_SECONDS)

    async def post(
        self, path: str, *, timeout_seconds: float = ANSWER_SECONDS
    ) -> tuple[int, Mapping[str, object]]:
        """The status of a change without arguments, and what is told with it."""
        return await self._client.try_post(
            self._url, f"/admin/v1/{path}", {}, timeout_seconds=timeout_seconds
        )

    async def instances(self) -> list[Mapping[str, object]]:
        """Every instance."""
        told = (await self.get("instances"))["instances"]
        assert isinstance(told, list)
        return told


def ask(admin_url: str, talk: Callable[[Admin], Awaitable[int]]) -> int:
    """Talk to a balancer; the exit code that comes of it, 1 with advice where none answers."""

    async def talked() -> int:
        client = ControlClient()
        try:
            return await talk(Admin(client, admin_url))
        finally:
            await client.close()

    try:
        return asyncio.run(talked())
    except InstanceError as error:
        print(
            f"no balancer answers on {admin_url}: {error}; name its admin listener with --admin",
            file=sys.stderr,
        )
        return FAILED


def segment(name: str) -> str:
    """A name as one segment of a path. Dots are encoded too, else `..` would mean the segment above."""
    return quote(name, safe="").replace(".", "%2E")


def refusal_of(status: int, answer: Mapping[str, object]) -> str:
    """Why the admin listener did not do what it was asked for."""
    return plain(answer.get("error") or f"the balancer answered {status}", characters=2000)


def print_json(value: object) -> None:
    """For programs."""
    print(json.dumps(value, indent=2))


def plain(value: object, *, characters: int = _SHOWN_CHARACTERS) -> str:
    """Text that clients may have made up, fit for a terminal: printable, on one line, not too long."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= characters else text[: characters - 1] + "…"
