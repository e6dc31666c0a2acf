"""Connections to one instance, kept for reuse: the one used last is used first, so that the others
age and go. There is no cap on connections: leases bound what runs."""

import asyncio
import errno
import ssl
from urllib.parse import urlsplit

from balancer.errors import BalancerError, ConnectFailed, NoFiles
from balancer.overdue import Overdue
from balancer.upstream.connection import Connection


class Pool:
    """Connections to one URL. `connects` counts all that were ever opened."""

    def __init__(self, url: str, *, connect_seconds: float, idle_seconds: float) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.authority = parts.netloc
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.connect_seconds = connect_seconds
        self.idle_seconds = idle_seconds
        self._idle: list[Connection] = []
        self._unused: Overdue[Connection] = Overdue(idle_seconds, self._expire)
        self._open: set[Connection] = set()
        self._connecting = 0
        self.connects = 0

    @property
    def idle(self) -> int:
        """Connections that wait for use."""
        return len(self._idle)

    @property
    def in_use(self) -> bool:
        """Whether a connection is open or being opened."""
        return bool(self._open or self._connecting)

    @property
    def open(self) -> int:
        """Connections that are open, in use or not."""
        return len(self._open)

    def take_idle(self) -> Connection | None:
        """A connection that was used before, None where there is none. Its other end may have
        closed it without our knowing yet."""
        while self._idle:
            connection = self._idle.pop()
            self._unused.end(connection)
            if not connection.closed:
                return connection
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises ConnectFailed, and NoFiles where we may open no more."""
        self.connects += 1
        self._connecting += 1
        try:
            async with asyncio.timeout(self.connect_seconds):
                connection = await self._open_connection()
        except TimeoutError as error:
            raise ConnectFailed(f"the instance took no connection in {self.connect_seconds:g} s") from error
        except ConnectionRefusedError as error:
            raise ConnectFailed("the instance refused the connection", refused=True) from error
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise NoFiles(
                    "too many connections are open; try again soon", retry_after_seconds=1.0
                ) from error
            raise ConnectFailed(f"the instance cannot be reached ({type(error).__name__})") from error
        finally:
            self._connecting -= 1
        if not connection.closed:
            self._open.add(connection)
        return connection

    async def _open_connection(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(on_idle=self._keep, on_lost=self._forget), self.host, self.port, ssl=self._tls
        )
        return connection

    def break_off(self, error: BalancerError) -> None:
        """Fail every exchange that is under way."""
        for connection in tuple(self._open):
            connection.break_off(error)

    def close_idle(self) -> None:
        """Close those that wait for use."""
        for connection in tuple(self._idle):
            connection.close()

    def close(self) -> None:
        """Close every connection, in use or not."""
        for connection in tuple(self._open):
            connection.close()

    def _keep(self, connection: Connection) -> None:
        if self.idle_seconds <= 0:
            connection.close()
            return
        self._idle.append(connection)
        self._unused.begin(connection)

    def _expire(self, connection: Connection) -> None:
        self._idle.remove(connection)
        connection.close()

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._unused.end(connection):
            self._idle.remove(connection)
