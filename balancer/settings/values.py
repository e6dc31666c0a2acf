"""The value types of the settings: addresses, URLs, origins, sizes, names and switches as people
write them, turned into what the code works with. Each parser is pure, accepts its own result, and
refuses by raising `refusal(problem, allowed)`, which the loader turns into a fault. Nothing here
resolves a name or opens a socket.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

REFUSAL = "balancer_refusal"
_SHOWN_CHARACTERS = 60
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE_FORM = (
    "bytes as a whole number, or a number with kB, MB, GB (powers of 1000), KiB, MiB or GiB (powers of 1024)"
)
_ADDRESS_FORM = "host:port with a port from 0 to 65535, such as 127.0.0.1:11400 or [::1]:11400"
_URL_FORM = "http://host:port or https://host:port"
_ORIGIN_FORM = "scheme://host or scheme://host:port, such as https://chat.example"
_NAME_FORM = "1 to 64 printable ASCII characters without '/' and without spaces at the ends"
_MODEL_FORM = "a model name such as llama3.2:3b, at most 512 characters, none of them blank"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})\Z")
_NUMBERS_AS_HOST = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)(\.(0[xX][0-9A-Fa-f]*|[0-9]+))*\.?\Z")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\Z")
_NAME = re.compile(r"(?=[!-~])[ -.0-~]{1,64}(?<=[!-~])\Z")
_METADATA_ADDRESS = ipaddress.ip_address("fd00:ec2::254")


class Strategy(StrEnum):
    """How an instance is chosen among those that can serve a request."""

    ADAPTIVE = "adaptive"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    LEAST_CONNECTIONS = "least_connections"
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    POWER_OF_TWO = "power_of_two"


class RuntimeName(StrEnum):
    """What answers at an instance's URL."""

    OLLAMA = "ollama"
    VLLM = "vllm"
    LLAMA_SERVER = "llama-server"


class LogLevel(StrEnum):
    """The least severe events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How an event is written."""

    JSON = "json"
    CONSOLE = "console"
    AUTO = "auto"


class Provision(StrEnum):
    """Whether instances are started for the devices found."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener binds; port 0 takes any free port. `str()` is `host:port`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than localhost counts as not."""
        return is_loopback(self.host)

    @property
    def wildcard(self) -> bool:
        """Whether it takes in every interface."""
        address = _ip(self.host)
        return address is not None and address.is_unspecified


def refusal(problem: str, allowed: str) -> PydanticCustomError:
    """The error by which a parser refuses a value: what is wrong, and what is allowed.

    An empty `allowed` leaves it to the bounds of the field.
    """
    return PydanticCustomError(REFUSAL, "{problem}, {allowed}", {"problem": problem, "allowed": allowed})


def shown(value: object) -> str:
    """The value as a message quotes it: on one line, printable, and cut when long."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)[:_SHOWN_CHARACTERS]
    text = str(value)
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return f"'{cut}'" if cut.isprintable() else ascii(cut)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own: localhost, 127.0.0.0/8 or ::1."""
    address = _ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def parse_address(value: object) -> Address:
    """An address to listen on, from `host:port`."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise refusal(f"{shown(value)} is not an address", _ADDRESS_FORM)
    host, colon, port = value.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    known = _ip(host)
    if not colon or (known is not None and (known.version == 6) != bracketed):
        raise refusal(f"{shown(value)} is not an address", _ADDRESS_FORM)
    if known is None and (bracketed or not _HOST.match(host) or _NUMBERS_AS_HOST.match(host)):
        raise refusal(f"{shown(value)} has no valid host", _ADDRESS_FORM)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise refusal(f"{shown(value)} has no valid port", _ADDRESS_FORM)
    return Address(host if known is None else str(known), int(port))


def parse_url(value: object) -> str:
    """An instance's URL, brought to the one form `scheme://host:port`.

    Refused are schemes but http and https, credentials (they would end up in logs and metrics),
    a path, a query or a fragment, and link-local addresses (they reach cloud metadata services).
    """
    parts = _split(value, "URL", _URL_FORM)
    if parts.scheme not in ("http", "https"):
        raise refusal(f"{shown(value)} has the scheme {shown(parts.scheme)}", _URL_FORM)
    if parts.path not in ("", "/") or "?" in str(value) or "#" in str(value):
        raise refusal(f"{shown(value)} has a path, query or fragment", f"{_URL_FORM} with nothing after it")
    host = _host(parts, value, _URL_FORM)
    port = _port(parts, value, _URL_FORM)
    if port == 0:
        raise refusal(f"{shown(value)} has port 0", "a port from 1 to 65535")
    return f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else 80)}"


def parse_origin(value: object) -> str:
    """A web origin in the form that a browser sends: lower case, no default port."""
    parts = _split(value, "origin", _ORIGIN_FORM)
    if parts.path or "?" in str(value) or "#" in str(value) or not _SCHEME.match(parts.scheme):
        raise refusal(f"{shown(value)} is not an origin", _ORIGIN_FORM)
    host = _host(parts, value, _ORIGIN_FORM)
    port = _port(parts, value, _ORIGIN_FORM)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if port in (None, default) else f":{port}")


def parse_size(value: object) -> object:
    """A size in bytes, from a whole number or a text such as `7GB` (7·10⁹) or `64 MiB` (64·2²⁰)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.match(value.strip()) if isinstance(value, str) else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or (unit == 1 and "." in match[1]):
        raise refusal(f"{shown(value)} is not a size", _SIZE_FORM)
    whole, _, fraction = match[1].partition(".")
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def parse_strategy(value: object) -> object:
    """A strategy by name, in snake case or camel case alike."""
    if isinstance(value, str):
        plain = _plain(value)
        for strategy in Strategy:
            if _plain(strategy) == plain:
                return strategy
    names = ", ".join(Strategy)
    raise refusal(f"{shown(value)} is not a strategy", f"one of {names}")


def camel(name: str) -> str:
    """The camel case spelling of a name in snake case."""
    return "".join(part.capitalize() for part in name.split("_"))


def parse_path(value: object) -> object:
    """A path on this machine; nothing is looked up."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise refusal(f"{shown(value)} is not a path", "a path, or a list of paths")
    return value


def parse_name(value: object) -> object:
    """A name that can stand in a header, a metric label and a path; a whole number is taken as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not _NAME.match(value):
        raise refusal(f"{shown(value)} is not a usable name", _NAME_FORM)
    return value


def parse_model(value: object) -> object:
    """A model's name as clients write it."""
    if not isinstance(value, str) or not 0 < len(value) <= 512 or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise refusal(f"{shown(value)} is not a model name", _MODEL_FORM)
    return value


def refuse_switch(value: object) -> object:
    """The value, unless it is true or false: `port: yes` must not become port 1."""
    if isinstance(value, bool):
        raise refusal(f"{shown(value)} is not a number", "")
    return value


def lower(value: object) -> object:
    """Text in lower case, and anything else as it is; YAML reads `off` as false, which is undone here."""
    if value is False:
        return "off"
    return value.strip().lower() if isinstance(value, str) else value


def one_or_many(value: object) -> object:
    """A list, also from a single text."""
    return [value] if isinstance(value, str) else value


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _split(value: object, noun: str, form: str) -> SplitResult:
    article = "an" if noun == "origin" else "a"
    if not isinstance(value, str):
        raise refusal(f"{shown(value)} is not {article} {noun}", form)
    # The value is not quoted here: it may hold a password.
    if "@" in value:
        raise refusal(f"the {noun} holds credentials or an '@'", f"{form} without user and password")
    if not value.isascii() or not value.isprintable() or " " in value or "\\" in value:
        raise refusal(f"{shown(value)} holds blanks or characters that {article} {noun} cannot hold", form)
    try:
        parts = urlsplit(value)
    except ValueError:
        raise refusal(f"{shown(value)} is not {article} {noun}", form) from None
    if not parts.scheme or not parts.netloc:
        raise refusal(f"{shown(value)} is not {article} {noun}", form)
    return parts


def _host(parts: SplitResult, value: object, form: str) -> str:
    host = (parts.hostname or "").lower()
    address = _ip(host)
    if address is None and (not _HOST.match(host) or _NUMBERS_AS_HOST.match(host)):
        raise refusal(f"{shown(value)} has no valid host", form)
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped is not None and (mapped.is_link_local or mapped == _METADATA_ADDRESS):
        raise refusal(
            f"{shown(value)} is a link-local address (cloud metadata services live there)",
            "a routable address or a host name",
        )
    if mapped is not None and mapped.is_multicast:
        raise refusal(f"{shown(value)} is a multicast address", "the address of one host")
    if address is not None and address.version == 6:
        return f"[{address}]"
    return host


def _port(parts: SplitResult, value: object, form: str) -> int | None:
    try:
        port = parts.port
    except ValueError:
        raise refusal(f"{shown(value)} has no valid port", "a port from 1 to 65535") from None
    if port is None and parts.netloc.endswith(":"):
        raise refusal(f"{shown(value)} has no port after the ':'", form)
    return port


ListenAddress = Annotated[
    Address,
    PlainValidator(parse_address),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^.+:[0-9]{1,5}$"}),
]
InstanceUrl = Annotated[
    str, PlainValidator(parse_url), WithJsonSchema({"type": "string", "pattern": r"^https?://[^/?#@\s]+/?$"})
]
Origin = Annotated[
    str,
    PlainValidator(parse_origin),
    WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z].*://[^/?#@\s]+$"}),
]
Size = Annotated[int, BeforeValidator(parse_size)]
Count = Annotated[int, BeforeValidator(refuse_switch)]
Number = Annotated[float, BeforeValidator(refuse_switch)]
StrategyName = Annotated[
    Strategy,
    BeforeValidator(parse_strategy),
    WithJsonSchema({"type": "string", "enum": [*Strategy, *(camel(name) for name in Strategy)]}),
]
Name = Annotated[
    str, BeforeValidator(parse_name), WithJsonSchema({"type": ["string", "integer"], "maxLength": 64})
]
ModelName = Annotated[str, BeforeValidator(parse_model)]
Path = Annotated[str, BeforeValidator(parse_path)]
Paths = Annotated[
    tuple[Path, ...],
    BeforeValidator(one_or_many),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
