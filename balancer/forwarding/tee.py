"""One upload to several readers, in step with the slowest; nothing of it is kept."""

import asyncio
from collections.abc import AsyncIterator

_PIECES_AHEAD = 4


class Tee:
    """Splits a source that can be read only once. `run` must go on beside the branches; a branch that
    is closed early does not hold up the others."""

    def __init__(self, source: AsyncIterator[bytes], branches: int) -> None:
        self._source = source
        self._queues: list[asyncio.Queue[bytes | None] | None] = [
            asyncio.Queue(_PIECES_AHEAD) for _ in range(branches)
        ]

    async def run(self) -> None:
        """Hand on every piece until the source ends or no branch is left."""
        async for piece in self._source:
            await self._put(piece)
            if not any(self._queues):
                return
        await self._put(None)

    async def branch(self, index: int) -> AsyncIterator[bytes]:
        """The pieces for one reader."""
        queue = self._queues[index]
        assert queue is not None
        while (piece := await queue.get()) is not None:
            yield piece

    def close(self, index: int) -> None:
        """This reader wants no more."""
        queue, self._queues[index] = self._queues[index], None
        while queue is not None and not queue.empty():
            queue.get_nowait()

    async def _put(self, piece: bytes | None) -> None:
        for queue in tuple(self._queues):
            if queue is not None:
                await queue.put(piece)
