"""How an instance is started: the plain data that runtimes make and the supervisor runs."""

import msgspec


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One process to start. `environment` is its whole environment; `port` is where it listens on
    127.0.0.1; it is ready once `ready_path` answers 200, for which it has `ready_seconds` from its start.
    Of those on one of the same `devices`, none meaning the CPU, one is started at a time."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    port: int
    ready_path: str
    ready_seconds: float
    devices: tuple[str, ...] = ()
