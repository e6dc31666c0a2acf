"""A request's body, read once for what routing needs. The bytes themselves are never changed here.

Only top-level keys and `options` are looked at; prompts, messages and images are passed over by the
decoder. A key is read only where the instance reads it, and refused where the two could differ.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from balancer.core.names import canonical_name
from balancer.core.operation import Dialect, Kind, Operation
from balancer.core.variant import RUNNER_OPTIONS, Variant
from balancer.errors import MalformedRequest
from balancer.protocol.encoding import inflate_zstd, multipart_field
from balancer.protocol.json_body import (
    NUMBER_STARTS,
    Fields,
    first_byte,
    read_inner,
    read_object,
    unambiguous,
)
from balancer.protocol.routes import Match, Route, upstream_path

_MODEL_NAME_LIMIT = 512
_ABSENT = msgspec.Raw(b"")


class _Body(msgspec.Struct):
    """The keys that we route on, undecoded."""

    model: msgspec.Raw = _ABSENT
    name: msgspec.Raw = _ABSENT
    source: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    options: msgspec.Raw = _ABSENT
    shift: msgspec.Raw = _ABSENT
    keep_alive: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT


_STREAMING = frozenset({Kind.GENERATE, Kind.CHAT, Kind.RESPONSE, Kind.MANAGE})
_RUNNING = frozenset({Kind.GENERATE, Kind.CHAT, Kind.EMBED})
_NO_TIME = re.compile(r"[-+]?(?:0|(?:(?:0+\.?0*|\.0+)(?:ns|us|µs|μs|ms|s|m|h))+)")
"""Source: Go time.ParseDuration."""
_EMPTY_STARTS = {b"", b"n"}
_LINK_LOCAL = tuple(map(ip_network, ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")))
"""Where clouds keep what a machine may know of itself: no registry is there."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """An operation, the body to forward where it is not the one that came (None: as it came), and the
    top-level keys of a JSON body."""

    operation: Operation
    body: bytes | None = None
    fields: Fields = field(default_factory=dict)


def parse_request(match: Match, body: bytes, *, content_type: str, content_encoding: str) -> Parsed:
    """The operation that a request asks for.

    Raises:
        MalformedRequest: no JSON object, no usable model name where one is needed.
        BodyTooLarge: a compressed body that inflates beyond the bound.
    """
    if match.route.kind is Kind.TRANSCRIBE and content_type.casefold().startswith("multipart/"):
        model = multipart_field(body, content_type, "model")
        return Parsed(_operation(match, model=_required(model)))
    if not match.route.methods or match.route.methods[0] in {"GET", "HEAD"}:
        return Parsed(_operation(match, model=match.parameter))
    if not body:
        raise MalformedRequest("missing request body")
    fields = read_object(inflate_zstd(body) if content_encoding == "zstd" else body)
    rewritten: bytes | None = None
    if match.route.path == "/predict/{model}":
        fields = _predict_fields(match, fields)
        rewritten = msgspec.json.encode(fields)
    return Parsed(_read(match, _routed(fields)), rewritten, fields)


def _read(match: Match, body: _Body) -> Operation:
    route = match.route
    native = route.dialect is Dialect.OLLAMA and route.kind in _RUNNING
    return _operation(
        match,
        model=_required(_model(route, body)),
        options=_options(body.options) if native else None,
        shift=_boolean(body.shift, None) if native else None,
        stream=route.kind in _STREAMING and _stream(body.stream, default=route.default_stream),
        unload=_unloads(route, body),
        keeps_model=not (native and _is_no_time(body.keep_alive)),
    )


def refuse_model_in_query(query: str) -> None:
    """A form is not to be read in two ways: Go's form values come from the query first.
    Source: Go net/http, Request.ParseMultipartForm and FormValue.

    Raises:
        MalformedRequest: the query names a model.
    """
    if any(key == "model" for key, _ in parse_qsl(query, keep_blank_values=True)):
        raise MalformedRequest("the model belongs in the form, not in the query")


def _operation(
    match: Match,
    *,
    model: str | None,
    options: Mapping[str, object] | None = None,
    shift: bool | None = None,
    stream: bool = False,
    unload: bool = False,
    keeps_model: bool = True,
) -> Operation:
    variant = None if model is None else Variant.of(canonical_name(model), options or {}, shift=shift)
    return Operation(
        kind=match.route.kind,
        dialect=match.route.dialect,
        upstream_path=upstream_path(match),
        model=model,
        variant=variant,
        stream=stream,
        unload=unload,
        keeps_model=keeps_model,
        needs_slot=match.route.treatment.value == "leased" and not unload,
    )


def _predict_fields(match: Match, fields: Fields) -> Fields:
    """`/predict/{model}`: a generate request whose model stands in the path, and that streams only
    where it is asked to."""
    asked = _routed(fields)
    model = _required(match.parameter)
    named = _string(asked.model, "model")
    if named and canonical_name(_required(named)) != canonical_name(model):
        raise MalformedRequest(f"the body names another model than the path ('{model}')")
    if not first_byte(asked.prompt):
        raise MalformedRequest('prompt is required: {"prompt": "…"}')
    others = {key: value for key, value in fields.items() if key.casefold() not in {"model", "stream"}}
    stream = b"true" if _stream(asked.stream, default=False) else b"false"
    return {**others, "model": msgspec.Raw(msgspec.json.encode(model)), "stream": msgspec.Raw(stream)}


def _routed(fields: Fields) -> _Body:
    """The keys that we route on, whatever their case, as Go's decoder reads them; it folds the Kelvin
    sign to k and the long s to s too, others do not."""
    found: dict[str, msgspec.Raw] = {}
    for key, value in fields.items():
        name = key.casefold()
        if name in _Body.__struct_fields__:
            if not key.isascii():
                raise MalformedRequest(f"the request body spells '{name}' with characters that are not ASCII")
            found[name] = value
    return _Body(**found)


def _model(route: Route, body: _Body) -> str | None:
    """The model's name, by the key that the instance reads it from. Source: Ollama v0.33 api/types.go."""
    if route.path == "/api/copy":
        return _string(body.source, "source")
    model = _string(body.model, "model")
    reads_name = route.kind in {Kind.MANAGE, Kind.SHOW}
    name = _string(body.name, "name") if reads_name or first_byte(body.name) == b'"' else None
    if model and name and canonical_name(model) != canonical_name(name):
        raise MalformedRequest("'model' and 'name' name two models")
    return model or (name if reads_name else None)


def _required(model: str | None) -> str:
    model = (model or "").strip()
    if not model:
        raise MalformedRequest("model is required")
    return _sound(model)


@lru_cache(maxsize=1024)
def _sound(model: str) -> str:
    """A name that may be one. A host may stand before it where Ollama takes one, but never one that is
    for this machine alone, nor a path out of where models are kept."""
    if len(model) > _MODEL_NAME_LIMIT or any(not each.isprintable() or each.isspace() for each in model):
        raise MalformedRequest("invalid model name")
    scheme, separator, rest = model.rpartition("://")
    parts = rest.split("/")
    if separator and (scheme.casefold() not in {"http", "https"} or len(parts) < 3):
        raise MalformedRequest("invalid model name")
    if "\\" in rest or any(part in {"", ".", ".."} for part in parts):
        raise MalformedRequest("invalid model name")
    if len(parts) > 1 and _is_link_local(parts[0]):
        raise MalformedRequest("invalid model name: no registry is at a link-local address")
    return model


def _is_link_local(authority: str) -> bool:
    host = authority.rpartition("@")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _LINK_LOCAL)


def _string(raw: msgspec.Raw, key: str) -> str | None:
    if first_byte(raw) in _EMPTY_STARTS:
        return None
    try:
        return _decode_text(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"'{key}' must be a string") from error


_decode_text = msgspec.json.Decoder(str).decode
_BOOLEANS = {b"true": True, b"false": False}
_Default = TypeVar("_Default", bool, None)


def _boolean(raw: msgspec.Raw, default: _Default) -> bool | _Default:
    return _BOOLEANS.get(bytes(raw), default)


def _stream(raw: msgspec.Raw, *, default: bool) -> bool:
    if first_byte(raw) not in {b"", b"n", b"t", b"f"}:
        raise MalformedRequest("'stream' must be true or false")
    return _boolean(raw, default)


def _options(raw: msgspec.Raw) -> Mapping[str, object]:
    """Those that make the variant. Their case is not folded, and numbers are cut to whole ones.
    Source: Ollama v0.33 api/types.go, Options.FromMap."""
    if first_byte(raw) != b"{":
        return {}
    pairs = read_inner(raw, "options")
    unambiguous(((key, value) for key, value in pairs if key.casefold() in RUNNER_OPTIONS), of="'options'")
    return {key: _option(key, value) for key, value in pairs if key in RUNNER_OPTIONS}


def _option(key: str, raw: msgspec.Raw) -> object:
    if first_byte(raw) not in NUMBER_STARTS:
        return {b"true": True, b"false": False}.get(bytes(raw))
    number = int(float(bytes(raw)))
    if not -(2**63) <= number < 2**63:
        raise MalformedRequest(f"option '{key}' is out of range")
    return number


def _unloads(route: Route, body: _Body) -> bool:
    """Whether the request only asks to unload its model: nothing to do, and to be kept for no time.
    Source: Ollama v0.33 server/routes.go, GenerateHandler and ChatHandler."""
    match route.dialect, route.kind:
        case Dialect.OLLAMA, Kind.GENERATE:
            content = body.prompt
        case Dialect.OLLAMA, Kind.CHAT:
            content = body.messages
        case _:
            return False
    return _is_empty(content) and _is_no_time(body.keep_alive)


def _is_empty(raw: msgspec.Raw) -> bool:
    kind = first_byte(raw)
    return kind in _EMPTY_STARTS or (kind in b'"[' and not bytes(memoryview(raw)[1:-1]).strip(_BLANKS[kind]))


_BLANKS = {b'"': b"", b"[": b" \t\r\n"}


def _is_no_time(raw: msgspec.Raw) -> bool:
    """Whether a `keep_alive` is 0. Source: Ollama v0.33 api/types.go, Duration.UnmarshalJSON."""
    kind = first_byte(raw)
    if kind in NUMBER_STARTS:
        return 0 <= float(bytes(raw)) < 1e-9
    return kind == b'"' and _NO_TIME.fullmatch(_string(raw, "keep_alive") or "") is not None


def estimate_prompt_tokens(body: bytes) -> int:
    """A rough count of the prompt tokens of an Anthropic messages body: four bytes of text a token,
    three more a message, 1,000 an image. Ollama cannot count without loading the model.

    Raises:
        MalformedRequest: the body is no JSON object.
    """
    try:
        fields = {key: msgspec.json.decode(value) for key, value in read_object(body).items()}
        content = sum(_estimate(fields.get(key)) for key in ("system", "messages", "tools"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the request body is not a JSON object: {error}") from error
    messages = fields.get("messages")
    return max(1, content + 3 * (len(messages) if isinstance(messages, list) else 0))


def _estimate(value: object) -> int:
    match value:
        case str():
            return -(-len(value.encode()) // 4)
        case {"type": "image"}:
            return 1000
        case dict():
            return sum(_estimate(each) for key, each in value.items() if key not in {"type", "cache_control"})
        case list():
            return sum(_estimate(each) for each in value)
        case _:
            return 0
