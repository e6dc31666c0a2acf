"""Ollama's requests as OpenAI's. A field that has no counterpart is refused by its name."""

from collections.abc import Mapping

import msgspec

from balancer.clock import Clock
from balancer.core.operation import Kind, Operation
from balancer.core.plan import Runtime
from balancer.errors import Unserved
from balancer.protocol.translation.bodies import PlainAnswer
from balancer.protocol.translation.embeddings import EmbeddingsAnswer
from balancer.protocol.translation.generation import GenerationAnswer
from balancer.protocol.translation.messages import Message, chat_messages, folded, text_of, with_images
from balancer.protocol.translation.options import parameters
from balancer.protocol.translation.served import AnswerTranslation, Served, Translated
from balancer.protocol.translation.shapes import loaded, now_of, shown

_CUTTING = ("shift", "truncate")
"""Where a context is too long: others tell so, and are to do so where these are false."""
_LEVELS = frozenset({"low", "medium", "high", "max"})
_CHAT, _TEXT, _EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
Fields = Mapping[str, object]


class _Asked(msgspec.Struct, frozen=True):
    """A request with all that its translation needs; `model` is the client's own spelling."""

    fields: Fields
    operation: Operation
    model: str
    served: Served
    clock: Clock

    @property
    def runtime(self) -> Runtime:
        return self.served.runtime

    def parameters(self) -> dict[str, object]:
        return parameters(self.fields.get("options"), self.served)


def translate(operation: Operation, body: bytes, served: Served, clock: Clock) -> Translated:
    """A request of Ollama's dialect, on one of `core.serving.TRANSLATED_PATHS`, for another runtime.

    Raises:
        Unserved: the runtime has no counterpart for a part of it.
    """
    try:
        fields = folded(msgspec.json.decode(body), "the request")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unserved(f"the request cannot be translated: {error}") from error
    asked = _Asked(fields, operation, operation.model or served.name, served, clock)
    if operation.unload:
        raise Unserved(f"{served.runtime.value} keeps '{asked.model}' in memory for as long as it runs")
    match operation.kind:
        case Kind.SHOW:
            return _ask(shown(served))
        case Kind.EMBED:
            return _embed(asked)
        case Kind.CHAT:
            return _chat(asked)
        case _:
            return _generate(asked)


def _ask(answer: Mapping[str, object]) -> Translated:
    """Nothing is generated: that it lists its models says that it serves."""
    return Translated(method="GET", target="/v1/models", body=b"", answer=PlainAnswer(answer))


def _post(target: str, body: Fields, answer: AnswerTranslation) -> Translated:
    return Translated(method="POST", target=target, body=msgspec.json.encode(body), answer=answer)


def _chat(asked: _Asked) -> Translated:
    _refuse(asked, "_debug_render_only")
    messages = asked.fields.get("messages")
    if not messages:
        return _ask(loaded(asked.model, Kind.CHAT, now_of(asked.clock)))
    return _conversation(asked, chat_messages(messages))


def _generate(asked: _Asked) -> Translated:
    _refuse(asked, "_debug_render_only", "template", "context", "suffix")
    fields = asked.fields
    prompt = text_of(fields.get("prompt"), "'prompt'")
    if not prompt:
        return _ask(loaded(asked.model, Kind.GENERATE, now_of(asked.clock)))
    if fields.get("raw"):
        return _completion(asked, prompt)
    system = text_of(fields.get("system"), "'system'")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": with_images(prompt, fields.get("images"))})
    return _conversation(asked, messages)


def _conversation(asked: _Asked, messages: list[Message]) -> Translated:
    fields, kind = asked.fields, asked.operation.kind
    body: dict[str, object] = {**_common(asked), "messages": messages}
    if kind is Kind.CHAT and fields.get("tools"):
        body["tools"] = fields["tools"]
    body |= _thinking(fields.get("think"), asked.runtime)
    if form := _form(fields.get("format")):
        body["response_format"] = form
    if fields.get("logprobs"):
        body |= {"logprobs": True, "top_logprobs": fields.get("top_logprobs") or 0}
    last = messages[-1]
    if asked.runtime is Runtime.VLLM and last["role"] == "assistant" and "tool_calls" not in last:
        # Its last message is to be gone on with, as Ollama and llama-server do unasked.
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return _post(_CHAT, body, GenerationAnswer(kind, asked.model, asked.clock))


def _completion(asked: _Asked, prompt: str) -> Translated:
    """A raw prompt, past the model's template."""
    _refuse(asked, "system", "images", "think", "logprobs")
    # vLLM takes a count that is not there for 16, and one that is null for no bound.
    unbounded: dict[str, object] = {"max_tokens": None} if asked.runtime is Runtime.VLLM else {}
    body: dict[str, object] = {**unbounded, **_common(asked), "prompt": prompt}
    wanted = asked.fields.get("format")
    form = _form(wanted)
    if form and asked.runtime is Runtime.VLLM:
        body["response_format"] = form
    elif form:
        body["json_schema"] = wanted if isinstance(wanted, dict) else {"type": "object"}
    return _post(_TEXT, body, GenerationAnswer(asked.operation.kind, asked.model, asked.clock))


def _embed(asked: _Asked) -> Translated:
    fields, given = asked.fields, asked.fields.get("input")
    texts = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise Unserved("invalid input type")
    if not texts or given == "":
        return _ask({"model": asked.model, "embeddings": []})
    body: dict[str, object] = {"model": asked.served.name, "input": texts, "encoding_format": "float"}
    if fields.get("dimensions"):
        body["dimensions"] = fields["dimensions"]
    if asked.runtime is Runtime.VLLM and fields.get("truncate") is not False:
        body["truncate_prompt_tokens"] = -1  # what is longer than its context is cut there
    elif asked.runtime is not Runtime.VLLM:
        _refuse(asked, "truncate")
    if named := asked.parameters():
        raise Unserved(f"embedding takes no options ({', '.join(sorted(named))})")
    return _post(_EMBED, body, EmbeddingsAnswer(asked.model, asked.clock))


def _common(asked: _Asked) -> dict[str, object]:
    _refuse(asked, *_CUTTING)
    body: dict[str, object] = {
        "model": asked.served.name,
        "stream": asked.operation.stream,
        **asked.parameters(),
    }
    if asked.operation.stream:
        body["stream_options"] = {"include_usage": True}
    return body


def _refuse(asked: _Asked, *names: str) -> None:
    """A field that is empty, null or false asks for nothing."""
    for name in names:
        if asked.fields.get(name):
            raise Unserved(f"'{name}' has no counterpart in {asked.runtime.value}")


def _thinking(think: object, runtime: Runtime) -> dict[str, object]:
    """Templates know `enable_thinking`, some `thinking`; how hard is a parameter of its own in vLLM."""
    if think is None:
        return {}
    if not isinstance(think, bool) and not (isinstance(think, str) and think in _LEVELS):
        raise Unserved("'think' must be true, false, low, medium, high or max")
    wanted: dict[str, object] = {"enable_thinking": think is not False, "thinking": think is not False}
    if isinstance(think, bool):
        return {"chat_template_kwargs": wanted}
    if runtime is Runtime.VLLM:
        return {"chat_template_kwargs": wanted, "reasoning_effort": think}
    return {"chat_template_kwargs": {**wanted, "reasoning_effort": think}}


def _form(wanted: object) -> dict[str, object] | None:
    """What `format` asks for, as a response_format."""
    if not wanted:
        return None
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, dict):
        schema = {"name": "answer", "schema": wanted, "strict": True}
        return {"type": "json_schema", "json_schema": schema}
    raise Unserved("'format' must be \"json\" or a JSON schema")
