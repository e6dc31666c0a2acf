"""Names and ports for planned instances, handed out in order, past those that are in use."""

from collections.abc import Callable, Collection, Iterator
from itertools import count

from balancer.settings import Fault, Settings, SettingsError

_LAST_PORT = 65535


class Addresses:
    """Names and ports that no instance and no listener of the configuration has, each given once. `is_free`
    is asked of each port before it is given."""

    def __init__(
        self,
        settings: Settings,
        *,
        taken_names: Collection[str] = (),
        taken_ports: Collection[int] = (),
        is_free: Callable[[int], bool] = lambda port: True,
    ) -> None:
        listeners = (settings.listen, settings.admin_listen, settings.metrics_listen)
        self._names = {each.name for each in settings.all_instances} | set(taken_names)
        self._ports = {each.port for each in settings.all_instances} | set(taken_ports)
        self._ports |= {each.port for each in listeners if each is not None}
        self._next = settings.provisioning.first_port
        self._is_free = is_free

    def name(self, wanted: str) -> str:
        """The name that is wanted, with a number behind it where it is in use."""
        names = (wanted if number == 1 else f"{wanted}-{number}" for number in count(1))
        found = next(name for name in names if name not in self._names)
        self._names.add(found)
        return found

    def port(self) -> int:
        """The next free port. Raises: SettingsError where none is left."""
        ports = (port for port in range(self._next, _LAST_PORT + 1) if port not in self._ports)
        found = next(filter(self._is_free, ports), None)
        if found is None:
            key = "provisioning.first_port"
            raise SettingsError(
                [Fault("this machine", key, f"no port is left up to {_LAST_PORT}", "a lower one")]
            )
        self._next = found + 1
        return found

    def ports(self) -> Iterator[int]:
        """The free ports, one after the other. Raises: SettingsError where none is left."""
        while True:
            yield self.port()
