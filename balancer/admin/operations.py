"""What an operator may change through the admin listener, as callables: the listener does not know how."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from balancer.control.reloader import Reloaded
from balancer.control.supervisor import refuse_restart
from balancer.core.ticket import InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """`drain(instance, drained)` takes an instance out or puts it back and raises KeyError where there
    is none of that id; `reload()` raises SettingsError where the configuration is refused. `restart`
    begins the restart of a managed instance, and raises NotManaged for any other; `restart_all` begins
    that of all, one after the other. Without them no instance is managed."""

    drain: Callable[[InstanceId, bool], None]
    reload: Callable[[], Awaitable[Reloaded]]
    restart: Callable[[InstanceId], None] = refuse_restart
    restart_all: Callable[[], None] = lambda: None
