"""One simulated Ollama server: builds the parts, listens, and cuts everything when it stops.

The composition root of the simulator, for tests in process and for
`python -m balancer.simulator`. It decides nothing about requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import deque
from collections.abc import AsyncIterator

from aiohttp import web

from balancer.simulator.clock import ScaledClock
from balancer.simulator.configuration import ServerConfig
from balancer.simulator.errors import SimulatedError
from balancer.simulator.faults import FaultKind, Faults
from balancer.simulator.inference import InferenceCore
from balancer.simulator.models import Model
from balancer.simulator.observations import Observations
from balancer.simulator.scheduler import Scheduler
from balancer.simulator.service_model import ServiceRates
from balancer.simulator.store import ModelStore
from balancer.simulator.web.catalogue import CatalogueRoutes
from balancer.simulator.web.control import ControlRoutes
from balancer.simulator.web.embeddings import EmbeddingRoutes
from balancer.simulator.web.gate import gate, name_origin
from balancer.simulator.web.inference import InferenceRoutes
from balancer.simulator.web.parts import ServerParts
from balancer.simulator.web.registry import RegistryRoutes

_LARGEST_BODY_BYTES = 1 << 30
_IDLE_CONNECTION_SECONDS = 3600.0
_BACKLOG = 1024


class NotRunning(SimulatedError):
    """The server was asked for its address while it does not listen."""


class SimulatedOllama:
    """A simulated server on one port. Start it once; for a restart make a new one on the same port.

    Servers that are given the same `store` share a models directory.
    """

    def __init__(self, config: ServerConfig | None = None, store: ModelStore | None = None) -> None:
        self.config = config or ServerConfig()
        self.clock = ScaledClock(self.config.speed)
        self.store = store if store is not None else ModelStore(self.config.models)
        self.seen = Observations(recent=deque(maxlen=self.config.remembered_requests))
        self.faults = Faults()
        self.scheduler = Scheduler(
            self.config, self.clock, self.seen, rates=self._rates, load_fails=self._load_fails
        )
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._refusals: asyncio.Queue[float] = asyncio.Queue()
        self._port = self.config.port

    @property
    def url(self) -> str:
        """Where it listens. Raises: NotRunning before the start."""
        if self._runner is None:
            raise NotRunning("the simulated server does not listen; start it first")
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SimulatedOllama]:
        """Listen for the length of a `with` block."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Listen, and answer from now on. Raises: OSError when the port is taken."""
        runner = web.AppRunner(
            self._application(),
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=_IDLE_CONNECTION_SECONDS,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        self._runner = runner
        self._listener = await self._listen()
        self._tasks = [
            asyncio.create_task(self.scheduler.run(), name="simulated-scheduler"),
            asyncio.create_task(self._refuse_on_demand(), name="simulated-refusals"),
        ]

    async def stop(self) -> None:
        """Cut every connection at once, as Ollama does on SIGTERM: streams get no proper end."""
        if self._runner is None:
            return
        if self._listener is not None:
            self._listener.close()
        self._cut_connections()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            # Anything but the cancel above is a bug of the simulator, and must be heard of.
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._runner.cleanup()
        self._runner = None

    def _application(self) -> web.Application:
        core = InferenceCore(
            config=self.config,
            clock=self.clock,
            store=self.store,
            scheduler=self.scheduler,
            faults=self.faults,
            seen=self.seen,
        )
        parts = ServerParts(
            config=self.config,
            clock=self.clock,
            store=self.store,
            scheduler=self.scheduler,
            core=core,
            faults=self.faults,
            seen=self.seen,
            ids=random.Random(self.config.seed),
            refuse=self._refusals.put_nowait,
            connections_open=lambda: len(self._connections()),
        )
        application = web.Application(middlewares=[gate(parts)], client_max_size=_LARGEST_BODY_BYTES)
        application.on_response_prepare.append(name_origin)
        for group in (InferenceRoutes, EmbeddingRoutes, CatalogueRoutes, RegistryRoutes, ControlRoutes):
            application.add_routes(group(parts).routes())
        return application

    async def _listen(self) -> asyncio.Server:
        family = socket.AF_INET6 if ":" in self.config.host else socket.AF_INET
        listening = socket.create_server((self.config.host, self._port), family=family, backlog=_BACKLOG)
        if self.config.send_buffer_bytes is not None:
            # Accepted sockets inherit it.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.config.send_buffer_bytes)
        self._port = listening.getsockname()[1]
        loop = asyncio.get_running_loop()
        return await loop.create_server(self._accept, sock=listening, backlog=_BACKLOG)

    def _accept(self) -> asyncio.Protocol:
        if self._runner is None or self._runner.server is None:
            raise NotRunning("a connection arrived after the stop")
        self.seen.connections_accepted += 1
        return self._runner.server()

    async def _refuse_on_demand(self) -> None:
        """Stop listening for a while whenever asked to; open connections are left alone."""
        while True:
            seconds = await self._refusals.get()
            if self._listener is not None:
                self._listener.close()
            await self.clock.sleep_until(self.clock.now() + seconds)
            self._listener = await self._listen()

    def _connections(self) -> list[web.RequestHandler]:
        if self._runner is None or self._runner.server is None:
            return []
        return self._runner.server.connections

    def _cut_connections(self) -> None:
        for connection in self._connections():
            if isinstance(connection.transport, asyncio.WriteTransport):
                connection.transport.abort()

    def _rates(self, model: Model) -> ServiceRates:
        factor = self.faults.slow_factor(model.name.display())
        return self.config.rates if factor == 1.0 else self.config.rates.scaled(factor)

    def _load_fails(self, model: Model) -> bool:
        fault = self.faults.peek(FaultKind.OUT_OF_MEMORY, model=model.name.display())
        if fault is None or fault.after_tokens is not None:
            return False
        self.faults.take(FaultKind.OUT_OF_MEMORY, model=model.name.display())
        return True
