"""The answer of `/v1/embeddings` as that of `/api/embed`. Numbers pass as they stand."""

import msgspec

from balancer.clock import Clock
from balancer.errors import BadResponse
from balancer.protocol.translation.bodies import WholeAnswer

_NANOSECONDS = 1e9


class _Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class EmbeddingsAnswer(WholeAnswer):
    """Its vectors in the order of their inputs."""

    def __init__(self, model: str, clock: Clock) -> None:
        super().__init__()
        self._model = model
        self._clock = clock
        self._began_at = clock.monotonic()

    def whole(self, body: bytes) -> bytes:
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadResponse("the runtime answered with what is no list of embeddings") from error
        vectors = [each.embedding for each in sorted(answer.data, key=lambda each: each.index)]
        told: dict[str, object] = {"model": self._model, "embeddings": vectors}
        told["total_duration"] = int((self._clock.monotonic() - self._began_at) * _NANOSECONDS)
        if answer.usage.prompt_tokens:
            told["prompt_eval_count"] = answer.usage.prompt_tokens
        return msgspec.json.encode(told)
