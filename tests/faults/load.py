"""Clients in numbers: mixed traffic from many connections, every request with an id and a marker."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from random import Random

from tests.faults.client import Client, Leaving, Seen, View
from tests.faults.talks import MIXED, Talk

_FRESH_SHARE = 0.2
"""So many requests come on a connection of their own."""
_SULK_SECONDS = 0.1
"""How long a client waits after an answer that is none, that a fleet that is down is not asked in a loop."""

LeavingChoice = Callable[[Random], Leaving | None]


def stays(_random: Random) -> Leaving | None:
    """The clients of most rows: none goes away."""
    return None


class Load:
    """All requests to one balancer. `views` has every one of them from the moment it is sent."""

    def __init__(self, port: int, *, name: str, seed: int, patience_seconds: float) -> None:
        self.views: list[View] = []
        self._port = port
        self._name = name
        self._random = Random(seed)
        self._patience_seconds = patience_seconds
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()

    def client(self, pace: Callable[[], float | None] = lambda: None) -> Client:
        """A client with a connection of its own."""
        return Client(self._port, patience_seconds=self._patience_seconds, pace=pace)

    async def ask(
        self,
        talk: Talk,
        *,
        client: Client | None = None,
        leaving: Leaving | None = None,
        model: str = "",
        tokens: int | None = None,
    ) -> View:
        """One request, on a connection of its own unless a client is given."""
        own = client or self.client()
        view, request = self.prepare(talk, model=model, tokens=tokens)
        await own.ask(view, request, leaving)
        if client is None:
            await own.close()
        return view

    def prepare(self, talk: Talk, *, model: str = "", tokens: int | None = None) -> tuple[View, bytes]:
        """The view and the bytes of a request that is about to be sent."""
        number = next(self._numbers)
        marker = f"marker-{self._random.getrandbits(64):016x}"
        request_id = f"{self._name}-{number:06d}"
        view = View(request_id=request_id, marker=marker, talk=talk, sent_at=time.monotonic())
        self.views.append(view)
        return view, talk.request(request_id, marker, model=model, tokens=tokens)

    async def run(
        self, clients: int, *, leaving: LeavingChoice = stays, talks: Sequence[Talk] = MIXED
    ) -> None:
        """Ask without a pause until told to stop; returns when the last answer is in."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(Random(self._random.random()), leaving, talks))

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    async def _client(self, random: Random, leaving: LeavingChoice, talks: Sequence[Talk]) -> None:
        client = self.client()
        while not self._stopping.is_set():
            view = await self.ask(random.choice(talks), client=client, leaving=leaving(random))
            if view.seen in {Seen.TOLD, Seen.DROPPED, Seen.FOREIGN}:
                await asyncio.sleep(_SULK_SECONDS)
            if random.random() < _FRESH_SHARE:
                await client.close()
        await client.close()
