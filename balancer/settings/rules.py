"""Rules between several settings, each checked on the merged configuration: listeners that exclude each
other or open too far, instances that are the same, and an instance that is the balancer itself. A rule
stays silent where a value that it needs was refused already.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from balancer.settings.faults import Fault, SettingsError
from balancer.settings.schema import InstanceSettings, Settings
from balancer.settings.tree import Entry, Path, size_text
from balancer.settings.values import Address, is_loopback, shown

_LISTENERS = ("listen", "admin_listen", "metrics_listen")
_FIXED = (*_LISTENERS, "log", "state_dir")
_PLANNED_BY = ("gpu_instances", "provision", "provisioning", "runtimes")
_VAGUE = frozenset(("localhost", "0.0.0.0", "::"))


@dataclass(frozen=True, slots=True)
class Origins:
    """Where each value of the merged configuration was said, and which values were refused."""

    entries: Mapping[Path, Entry]
    broken: frozenset[Path]

    def sound(self, *names: str) -> bool:
        """Whether none of these top-level settings was refused."""
        return not any((name,) in self.broken for name in names)

    def given(self, path: Path) -> bool:
        """Whether a source says it, so that it is no default."""
        return path in self.entries

    def fault(
        self, path: Path, problem: str, allowed: str, *, item: int | None = None, part: str = ""
    ) -> Fault:
        """A fault at a setting, or at a part of an item of a list."""
        entry = self.entries.get(path) or Entry(path, None, "default", ".".join(path))
        rest: tuple[int | str, ...] = () if item is None else (entry.original(item),)
        return Fault(entry.source, entry.label((*rest, part) if part else rest), problem, allowed)

    def label(self, path: Path, item: int) -> str:
        """How an item of a list is called in a message."""
        entry = self.entries[path]
        return entry.label((entry.original(item),))


def broken_rules(settings: Settings, origins: Origins) -> list[Fault]:
    """Every rule that the configuration breaks."""
    return [
        *_listeners(settings, origins),
        *_exposure(settings, origins),
        *_instances(settings, origins),
        *_limits(settings, origins),
        *_health(settings, origins),
        *_memory_shares(settings, origins),
        *_devices(settings, origins),
    ]


def refuse_fixed_changes(running: Settings, wanted: Settings, *, provisioned: bool = False) -> None:
    """Raise SettingsError where a setting differs that is fixed while the balancer runs; where it has
    started instances, what they were planned by is fixed too."""
    faults = [
        Fault(
            "reload",
            name,
            f"{_told(getattr(running, name))} cannot become {_told(getattr(wanted, name))} while it runs",
            "the same as before, or a restart",
        )
        for name in (*_FIXED, *(_PLANNED_BY if provisioned else ()))
        if getattr(running, name) != getattr(wanted, name)
    ]
    if faults:
        raise SettingsError(faults)


def _told(value: object) -> str:
    return "null" if value is None else shown(value)


def _listeners(settings: Settings, origins: Origins) -> Iterator[Fault]:
    addresses = {name: address for name in _LISTENERS if (address := getattr(settings, name))}
    names = list(addresses)
    for index, later in enumerate(names):
        for earlier in names[:index]:
            if not origins.sound(earlier, later) or not _clash(addresses[earlier], addresses[later]):
                continue
            here, other = (later, earlier) if origins.given((later,)) else (earlier, later)
            yield origins.fault(
                (here,),
                f"{shown(addresses[here])} is taken by {other} ({shown(addresses[other])})",
                "an address and port of its own",
            )


def _exposure(settings: Settings, origins: Origins) -> Iterator[Fault]:
    open_to_all = not settings.listen.loopback and not settings.allow_anonymous
    if origins.sound("listen", "allow_anonymous") and open_to_all:
        yield origins.fault(
            ("listen",),
            f"{shown(settings.listen)} can be reached from other machines, and anyone there could use it",
            "a loopback address, or allow_anonymous: true (--allow-anonymous) if that is meant",
        )
    if origins.sound("admin_listen") and not settings.admin_listen.loopback:
        yield origins.fault(
            ("admin_listen",),
            f"{shown(settings.admin_listen)} can be reached from other machines",
            "a loopback address such as 127.0.0.1:11401 (metrics_listen serves metrics elsewhere)",
        )


def _instances(settings: Settings, origins: Origins) -> Iterator[Fault]:
    names: dict[str, str] = {}
    places: dict[tuple[str, int], str] = {}
    listeners = [(name, getattr(settings, name)) for name in _LISTENERS if origins.sound(name)]
    for path, index, instance in _with_places(settings):
        label = origins.label(path, index)
        part = "url" if path == ("instances",) else "port"
        place = _place(instance)
        same = places.get(place)
        if same is not None:
            problem = f"{shown(instance.url)} is the address of {same} already"
            yield origins.fault(path, problem, "each instance once", item=index, part=part)
        named = names.get(instance.name)
        # A name made from the address repeats with it; that is told once.
        if named is not None and (same is None or instance.name not in instance.url):
            problem = f"{shown(instance.name)} is the name of {named} already"
            yield origins.fault(path, problem, "a name of its own", item=index, part="name")
        names.setdefault(instance.name, label)
        places.setdefault(place, label)
        for name, address in listeners:
            if address is not None and _reaches(instance, address):
                problem = f"{shown(instance.url)} is the balancer itself ({name} is {shown(address)})"
                yield origins.fault(path, problem, "the address of an instance", item=index, part=part)


def _limits(settings: Settings, origins: Origins) -> Iterator[Fault]:
    limits = settings.limits
    for small, large in (("body_bytes", "body_memory_bytes"), ("header_bytes", "headers_bytes")):
        paths = (("limits", small), ("limits", large))
        least, most = getattr(limits, small), getattr(limits, large)
        if most is not None and least > most and not any(path in origins.broken for path in paths):
            here = paths[1] if origins.given(paths[1]) else paths[0]
            yield origins.fault(
                here,
                f"limits.{large} is {size_text(most)}, below limits.{small}, {size_text(least)}",
                "at least as much",
            )


def _health(settings: Settings, origins: Origins) -> Iterator[Fault]:
    """Who is back at once would be ejected again."""
    below, above = settings.health.eject_below, settings.health.restore_above
    paths = (("health", "eject_below"), ("health", "restore_above"))
    if above < below and not any(path in origins.broken for path in paths):
        yield origins.fault(
            paths[1] if origins.given(paths[1]) else paths[0],
            f"health.restore_above is {above:g}, below health.eject_below, {below:g}",
            "at least as much",
        )


def _memory_shares(settings: Settings, origins: Origins) -> Iterator[Fault]:
    """Shares of one GPU, as far as the text alone tells that it is one. Those of vLLM alone are checked
    here, since it takes its share at once; the rest is checked where the GPUs are known."""
    path = ("runtimes", "vllm", "models")
    taken: dict[str, float] = {}
    for index, model in enumerate(settings.runtimes.vllm.models):
        for device in model.devices if model.memory_share else ():
            taken[device] = round(taken.get(device, 0.0) + (model.memory_share or 0.0), 6)
            if taken[device] >= 1.0:
                problem = f"the shares of GPU {shown(device)} come to {taken[device]:.2f} with this one"
                yield origins.fault(path, problem, "less than 1 together", item=index, part="memory_share")


def _devices(settings: Settings, origins: Origins) -> Iterator[Fault]:
    path = ("provisioning", "devices")
    first: dict[int, int] = {}
    for index, device in enumerate(settings.provisioning.devices):
        if device.gpu_id in first:
            problem = f"GPU {device.gpu_id} is told of in {origins.label(path, first[device.gpu_id])} already"
            yield origins.fault(path, problem, "each GPU once", item=index, part="gpu_id")
        first.setdefault(device.gpu_id, index)


def _with_places(settings: Settings) -> Iterator[tuple[Path, int, InstanceSettings]]:
    for index, instance in enumerate(settings.instances):
        yield ("instances",), index, instance
    for index, gpu_instance in enumerate(settings.gpu_instances):
        yield ("gpu_instances",), index, gpu_instance.as_instance()


def _place(instance: InstanceSettings) -> tuple[str, int]:
    """Host and port, the names of this machine's loopback address taken together."""
    return ("127.0.0.1" if instance.host in ("localhost", "::1") else instance.host), instance.port


def _clash(one: Address, other: Address) -> bool:
    if one.port != other.port or one.port == 0:
        return False
    hosts = {"127.0.0.1" if each.host.lower() == "localhost" else each.host.lower() for each in (one, other)}
    return len(hosts) == 1 or one.wildcard or other.wildcard


def _reaches(instance: InstanceSettings, address: Address) -> bool:
    """Whether a request to the instance would arrive at the listener, as far as the text alone tells."""
    if instance.port != address.port:
        return False
    there, here = instance.host, address.host.lower()
    # 127.0.0.2 is another place than 127.0.0.1; localhost and the wildcards may be either.
    vague = not _VAGUE.isdisjoint((there, here))
    return there == here or (vague and _is_here(there) and _is_here(here))


def _is_here(host: str) -> bool:
    return is_loopback(host) or host in _VAGUE
