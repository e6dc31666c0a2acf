"""A request's body, read once for what routing needs. The bytes themselves are never changed here.

Only top-level keys are decoded; prompts, messages and images are skipped over by the decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from balancer.core.names import canonical_name
from balancer.core.operation import Kind, Operation
from balancer.core.variant import Variant
from balancer.errors import MalformedRequest
from balancer.protocol.encoding import inflate_zstd, multipart_field
from balancer.protocol.routes import Match, upstream_path

_MODEL_NAME_LIMIT = 512


_ABSENT = msgspec.Raw(b"")


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


_decode_body = msgspec.json.Decoder(_Body).decode
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
    plain = inflate_zstd(body) if content_encoding == "zstd" else body
    if match.route.path == "/predict/{model}":
        return _parse_predict(match, plain)
    decoded = _decode(plain)
    model = (
        _string(decoded.model, "model") or _string(decoded.name, "name") or _string(decoded.source, "source")
    )
    return Parsed(
        _operation(
            match,
            model=_required(model),
            options=_options(decoded.options),
            shift=_boolean(decoded.shift, None),
            stream=_boolean(decoded.stream, match.route.default_stream),
            unload=_unloads(match.route.kind, decoded),
        )
    )


def _operation(
    match: Match,
    *,
    model: str | None,
    options: Mapping[str, object] | None = None,
    shift: bool | None = None,
    stream: bool = False,
    unload: bool = False,
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
        needs_slot=match.route.treatment.value == "leased" and not unload,
    )


def _parse_predict(match: Match, body: bytes) -> Parsed:
    """`/predict/{model}`: a generate request whose model stands in the path, and that streams only
    where it is asked to."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise MalformedRequest(f"the request body is not a JSON object: {error}") from error
    model = _required(match.parameter)
    if "model" in fields and canonical_name(_string(fields["model"], "model") or "") != canonical_name(model):
        raise MalformedRequest(f"the body names another model than the path ('{model}')")
    if "prompt" not in fields:
        raise MalformedRequest('prompt is required: {"prompt": "…"}')
    stream = _boolean(fields.get("stream", _ABSENT), False)
    forwarded = {**fields, "model": model, "stream": stream}
    options = _options(fields.get("options", _ABSENT))
    return Parsed(
        _operation(match, model=model, options=options, stream=stream), msgspec.json.encode(forwarded)
    )


def _decode(body: bytes) -> _Body:
    try:
        return _decode_body(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the request body is not a JSON object: {error}") from error


def _required(model: str | None) -> str:
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
    decoded: dict[str, object] = msgspec.json.decode(raw)
    return decoded


def _unloads(kind: Kind, body: _Body) -> bool:
    """Whether the request only asks to unload its model: nothing to do, and to be kept for no time.
    Source: Ollama v0.33 server/routes.go, GenerateHandler and ChatHandler."""
    match kind:
        case Kind.GENERATE:
            content = bytes(body.prompt)
        case Kind.CHAT:
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
        fields = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the request body is not a JSON object: {error}") from error
    messages = fields.get("messages")
    count = 3 * (len(messages) if isinstance(messages, list) else 0)
    return max(1, count + sum(_estimate(fields.get(key)) for key in ("system", "messages", "tools")))


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
