"""Names and ports for planned instances, handed out in order, past those that are in use."""

from collections.abc import Collection, Iterator
from itertools import count

from balancer.settings import Fault, Settings, SettingsError

_LAST_PORT = 65535


class Addresses:
    """Names and ports that no instance and no listener of the configuration has, each given once."""

    def __init__(
        self, settings: Settings, *, taken_names: Collection[str] = (), taken_ports: Collection[int] = ()
    ) -> None:
        listeners = (settings.listen, settings.admin_listen, settings.metrics_listen)
        self._names = {each.name for each in settings.all_instances} | set(taken_names)
        self._ports = {each.port for each in settings.all_instances} | set(taken_ports)
        self._ports |= {each.port for each in listeners if each is not None}
        self._next = settings.provisioning.first_port

    def name(self, wanted: str) -> str:
        """The name that is wanted, with a number behind it where it is in use."""
        names = (wanted if number == 1 else f"{wanted}-{number}" for number in count(1))
        found = next(name for name in names if name not in self._names)
        self._names.add(found)
        return found

    def port(self) -> int:
        """The next free port. Raises: SettingsError where none is left."""
        found = next(port for port in count(self._next) if port not in self._ports)
        if found > _LAST_PORT:
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
