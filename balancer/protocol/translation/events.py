"""Server-sent events, cut anywhere, as the data that they carry.

Source: the HTML standard, server-sent events; runtimes send one `data` line an event, and comments that
keep a connection alive.
"""

from collections.abc import Iterator

from balancer.errors import BadResponse

_LINE_BYTES = 8 * 1024 * 1024


class Events:
    """Holds no more than a line that is not complete."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of each event that these bytes complete. Raises BadResponse for an endless line."""
        first, *more = data.split(b"\n")
        self._hold(first)
        for line in more:
            complete = b"".join(self._rest)
            self._rest.clear()
            self._rest_bytes = 0
            self._hold(line)
            if complete.startswith(b"data:"):
                yield complete[5:].strip()

    def _hold(self, piece: bytes) -> None:
        self._rest_bytes += len(piece)
        if self._rest_bytes > _LINE_BYTES:
            raise BadResponse(f"the runtime sent a line of more than {_LINE_BYTES} bytes")
        if piece:
            self._rest.append(piece)
