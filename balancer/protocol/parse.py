"""A request's body, read once for what routing needs. The bytes themselves are never changed here.

Only top-level keys are decoded; prompts, messages and images are skipped over by the decoder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import msgspec

from balancer.core.names import canonical_name
from balancer.core.operation import Dialect, Kind, Operation
from balancer.core.variant import Variant
from balancer.errors import MalformedRequest
from balancer.protocol.encoding import inflate_zstd, multipart_field
from balancer.protocol.routes import Match, Route, upstream_path

_MODEL_NAME_LIMIT = 512


_Fields: TypeAlias = dict[str, msgspec.Raw]
_ABSENT = msgspec.Raw(b"")
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


class _Body(msgspec.Struct):
    """The keys that we route on, undecoded: a wrong type is the instance's to refuse, in its words."""

    model: msgspec.Raw = _ABSENT
    name: msgspec.Raw = _ABSENT
    source: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    options: msgspec.Raw = _ABSENT
    shift: msgspec.Raw = _ABSENT
    keep_alive: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_STREAMING = frozenset({Kind.GENERATE, Kind.CHAT, Kind.RESPONSE, Kind.MANAGE})
_EMPTY = {b"", b'""', b"[]", b"null"}
_ZERO = {b"0", b'"0"', b'"0s"', b"0.0", b'"0m"', b'"0h"', b"-0"}


@dataclass(frozen=True, slots=True)
class Parsed:
    """An operation, and the body to forward where it is not the one that came (None: as it came)."""

    operation: Operation
    body: bytes | None = None


def parse_request(match: Match, body: bytes, *, content_type: str, content_encoding: str) -> Parsed:
    """The operation that a request asks for.

    Raises:
        MalformedRequest: no JSON object, no usable model name where one is needed.
        BodyTooLarge: a compressed body that inflates beyond the bound.
    """
    if match.route.kind is Kind.TRANSCRIBE and content_type.casefold().startswith("multipart/"):
        return Parsed(_operation(match, model=_required(multipart_field(body, content_type, "model"))))
    if not match.route.methods or match.route.methods[0] in {"GET", "HEAD"}:
        return Parsed(_operation(match, model=match.parameter))
    if not body:
        raise MalformedRequest("missing request body")
    fields = _decode(inflate_zstd(body) if content_encoding == "zstd" else body)
    rewritten: bytes | None = None
    if match.route.path == "/predict/{model}":
        fields = _predict_fields(match, fields)
        rewritten = msgspec.json.encode(fields)
    decoded = _routed(fields)
    model = (
        _string(decoded.model, "model") or _string(decoded.name, "name") or _string(decoded.source, "source")
    )
    return Parsed(
        _operation(
            match,
            model=_required(model),
            options=_options(decoded.options),
            shift=_boolean(decoded.shift, None),
            stream=match.route.kind in _STREAMING and _boolean(decoded.stream, match.route.default_stream),
            unload=_unloads(match.route, decoded),
            keeps_model=bytes(decoded.keep_alive) not in _ZERO,
        ),
        rewritten,
    )


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


def _predict_fields(match: Match, fields: _Fields) -> _Fields:
    """`/predict/{model}`: a generate request whose model stands in the path, and that streams only
    where it is asked to."""
    asked = _routed(fields)
    model = _required(match.parameter)
    named = _string(asked.model, "model")
    if named and canonical_name(named) != canonical_name(model):
        raise MalformedRequest(f"the body names another model than the path ('{model}')")
    if not bytes(asked.prompt):
        raise MalformedRequest('prompt is required: {"prompt": "…"}')
    others = {key: value for key, value in fields.items() if key.casefold() not in {"model", "stream"}}
    stream = b"true" if _boolean(asked.stream, False) else b"false"
    return {**others, "model": msgspec.Raw(msgspec.json.encode(model)), "stream": msgspec.Raw(stream)}


def _decode(body: bytes) -> _Fields:
    try:
        return _decode_fields(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if _HALF_CHARACTER.search(body) is None:
            raise MalformedRequest(f"the request body is not a JSON object: {error}") from error
    return _decode_fields(_decode_half_characters(body))


def _decode_half_characters(body: bytes) -> bytes:
    """A body in which a character beyond the first plane was cut in two, as JavaScript's strings are:
    the halves replaced, as Ollama reads them. Only for reading; the body itself goes on as it came."""
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
        text = json.dumps(fields, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"the request body is not a JSON object: {error}") from error
    if not isinstance(fields, dict):
        raise MalformedRequest("the request body is not a JSON object")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _routed(fields: _Fields) -> _Body:
    """The keys that we route on, whatever their case, as Go's decoder reads them: where it would take
    the last of several spellings, the request could be understood in two ways."""
    found: dict[str, msgspec.Raw] = {}
    for key, value in fields.items():
        name = key.casefold()
        if name in found:
            raise MalformedRequest(f"the request body names '{name}' in several spellings")
        if name in _Body.__struct_fields__:
            found[name] = value
    return _Body(**found)


def _required(model: str | None) -> str:
    model = (model or "").strip()
    if not model:
        raise MalformedRequest("model is required")
    if len(model) > _MODEL_NAME_LIMIT or any(ord(character) < 0x21 for character in model):
        raise MalformedRequest("invalid model name")
    return model


def _string(raw: msgspec.Raw, key: str) -> str | None:
    if bytes(raw) in {b"", b"null"}:
        return None
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"'{key}' must be a string") from error


_Default = TypeVar("_Default", bool, None)


def _boolean(raw: msgspec.Raw, default: _Default) -> bool | _Default:
    return {b"true": True, b"false": False}.get(bytes(raw), default)


def _options(raw: msgspec.Raw) -> Mapping[str, object]:
    if not bytes(raw).startswith(b"{"):
        return {}
    try:
        return msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"'options' cannot be read: {error}") from error


def _unloads(route: Route, body: _Body) -> bool:
    """Whether the request only asks to unload its model: nothing to do, and to be kept for no time.
    Source: Ollama v0.33 server/routes.go, GenerateHandler and ChatHandler."""
    match route.dialect, route.kind:
        case Dialect.OLLAMA, Kind.GENERATE:
            content = bytes(body.prompt)
        case Dialect.OLLAMA, Kind.CHAT:
            content = bytes(body.messages)
        case _:
            return False
    return content in _EMPTY and bytes(body.keep_alive) in _ZERO


def estimate_prompt_tokens(body: bytes) -> int:
    """A rough count of the prompt tokens of an Anthropic messages body: four bytes of text a token,
    three more a message, 1,000 an image. Ollama cannot count without loading the model.

    Raises:
        MalformedRequest: the body is no JSON object.
    """
    try:
        fields = {key: msgspec.json.decode(value) for key, value in _decode(body).items()}
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
