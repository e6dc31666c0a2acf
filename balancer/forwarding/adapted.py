"""What an instance of another runtime is sent: Ollama's requests translated, all others under its own name
for the model. Made anew for each try, as the next one may go to an Ollama."""

import msgspec

from balancer.clock import Clock
from balancer.core.operation import Dialect, Kind, Operation
from balancer.fleet.instance import Instance
from balancer.protocol.encoding import inflate_zstd
from balancer.protocol.headers import Headers, header
from balancer.protocol.json_body import read_object
from balancer.protocol.translation.requests import translate
from balancer.protocol.translation.served import Served
from balancer.protocol.translation.shapes import context_length_of
from balancer.upstream.client import UpstreamRequest

_KEPT = frozenset({"x-request-id", "user-agent"})
_JSON: Headers = (("Content-Type", "application/json"),)


def adapted(
    request: UpstreamRequest, operation: Operation, instance: Instance, clock: Clock
) -> UpstreamRequest:
    """The request for an instance that is no Ollama.

    Raises:
        Unserved: its runtime has no counterpart for a part of it.
    """
    assert isinstance(request.body, bytes)
    served = _served(operation, instance)
    if operation.dialect is Dialect.OLLAMA:
        translated = translate(operation, request.body, served, clock)
        kept = tuple(each for each in request.headers if each[0].lower() in _KEPT)
        return UpstreamRequest(
            method=translated.method,
            target=translated.target,
            headers=(kept + _JSON) if translated.body else kept,
            body=translated.body,
            translation=translated.answer,
        )
    return _in_its_words(request, request.body, operation, served)


def _served(operation: Operation, instance: Instance) -> Served:
    model = operation.variant.model if operation.variant is not None else None
    row = instance.inventory.models.get(model) if instance.inventory is not None and model else None
    if row is None:
        return Served(runtime=instance.runtime, name=operation.model or "")
    return Served(
        runtime=instance.runtime, name=str(row["name"]), context_length=context_length_of(row), row=row
    )


def _in_its_words(
    request: UpstreamRequest, body: bytes, operation: Operation, served: Served
) -> UpstreamRequest:
    """The same bytes, unless they are compressed, which others than Ollama do not read, or name the model
    in another way than the runtime does: it would not know it."""
    encoded = header(request.headers, "content-encoding") is not None
    respelled = operation.model != served.name and operation.kind is not Kind.TRANSCRIBE
    if not encoded and not respelled:
        return request
    plain = inflate_zstd(body) if encoded else body
    if respelled:
        name = msgspec.Raw(msgspec.json.encode(served.name))
        fields = read_object(plain)
        plain = msgspec.json.encode({key: name if key == "model" else each for key, each in fields.items()})
    headers = tuple(each for each in request.headers if each[0].lower() != "content-encoding")
    return msgspec.structs.replace(request, headers=headers, body=plain)
