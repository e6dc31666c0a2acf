"""What a request will be told, decided before any time passes.

A Script is a pure function of the seed, the model and the request: the prompt's
tokens and the steps of the answer. How long the steps take is the runner's
affair (runner.py), how they look the dialects'. Called by inference.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from balancer.simulator import text
from balancer.simulator.answers import Part, ToolCall
from balancer.simulator.errors import LONGER_THAN_CONTEXT, NOT_MULTIMODAL, Refusal
from balancer.simulator.models import Model
from balancer.simulator.requests import InferenceRequest

_THINKING_SHARE = 0.5
_LONGEST_ANSWER = 100_000
# Ollama's default of num_keep, and the marker that the tokeniser puts before it.
_KEPT_TOKENS, _BEGIN_TOKENS = 4, 1
_CALL_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One part and the tokens that must be decoded before it can be sent."""

    tokens: tuple[int, ...]
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The whole of an answer. `done_reason` is `stop`, or `length` when it was cut."""

    prompt: tuple[int, ...]
    steps: tuple[Step, ...]
    done_reason: str

    @property
    def answer(self) -> tuple[int, ...]:
        return tuple(token for step in self.steps for token in step.tokens)


def write_script(
    request: InferenceRequest, model: Model, *, num_ctx: int, seed: int, answer_tokens: int
) -> Script:
    """Decide the answer.

    An unknown option `simulated_tokens` (real servers ignore it) sets the
    natural length; else it varies around `answer_tokens`.

    Raises: Refusal 400 when the prompt may not be cut to fit the context or holds images
    that the model cannot see, 500 for a format of an unknown kind.
    """
    if not model.weights.is_multimodal and _has_images(request):
        raise Refusal(400, NOT_MULTIMODAL)
    if request.format not in (None, "", "json") and not isinstance(request.format, Mapping):
        given = json.dumps(json.dumps(request.format, separators=(",", ":")))
        raise Refusal(500, f'invalid format: {given}; expected "json" or a valid JSON Schema object')
    prompt = _fitting_prompt(request, model, num_ctx)
    source = text.seeded(seed, model.weights.digest, prompt, request.options.get("seed"))
    wanted = request.options.get("simulated_tokens")
    if isinstance(wanted, int):
        wanted = min(wanted, _LONGEST_ANSWER)
    if not isinstance(wanted, int) or wanted <= 0:
        wanted = max(1, int(answer_tokens * (0.5 + source.random())))
    steps = [*_thinking_steps(request, model, source, wanted), *_answer_steps(request, model, source, wanted)]
    limit = request.options.get("num_predict")
    return _limited(prompt, steps, limit if isinstance(limit, int) and limit > 0 else None)


def _fitting_prompt(request: InferenceRequest, model: Model, num_ctx: int) -> tuple[int, ...]:
    """The prompt as evaluated; one that stays too long loses its middle, as in a context shift.

    Source: Ollama v0.33 server/prompt.go, llm/llama_server.go completionPromptForRequest.
    """
    prompt = _chat_prompt(request, model, num_ctx) if request.is_chat else _generate_prompt(request, model)
    if not request.truncate or _has_images(request):
        if len(prompt) > num_ctx:
            raise Refusal(400, _too_long(len(prompt), num_ctx))
        return prompt
    if len(prompt) < num_ctx:
        return prompt
    if request.shift is False:
        raise Refusal(400, LONGER_THAN_CONTEXT)
    wanted = request.options.get("num_keep")
    keep = _KEPT_TOKENS if wanted is None else int(wanted)
    keep = min(keep + _BEGIN_TOKENS if keep >= 0 else num_ctx, num_ctx - 1)
    tail = num_ctx - (num_ctx - keep) // 2 - keep
    return (*prompt[:keep], *prompt[len(prompt) - tail :])


def _chat_prompt(request: InferenceRequest, model: Model, num_ctx: int) -> tuple[int, ...]:
    messages = [*model.messages, *request.messages]
    if model.system and request.messages[0].get("role") != "system":
        messages = [{"role": "system", "content": model.system}, *messages]
    rendered = [text.render_message(message) for message in messages]
    tools = text.encode(json.dumps(request.tools, sort_keys=True)) if request.tools else []
    system = [tokens for tokens, message in zip(rendered, messages, strict=True) if _is_system(message)]
    others = [tokens for tokens, message in zip(rendered, messages, strict=True) if not _is_system(message)]
    # Oldest messages go first; the last one stays, however long it is.
    while request.truncate and len(others) > 1 and _length(tools, system, others) > num_ctx:
        others.pop(0)
    kept = rendered if len(system) + len(others) == len(rendered) else [*system, *others]
    return (*tools, *(token for tokens in kept for token in tokens), text.ASSISTANT_TURN)


def _generate_prompt(request: InferenceRequest, model: Model) -> tuple[int, ...]:
    tokens = list(request.context)
    system = request.system or model.system
    if system and not request.raw:
        tokens += text.render_message({"role": "system", "content": system})
    for image in request.images:
        tokens += text.image_tokens(str(image))
    return (*tokens, *text.encode(request.prompt), *text.encode(request.suffix))


def _thinking_steps(
    request: InferenceRequest, model: Model, source: random.Random, wanted: int
) -> list[Step]:
    if "thinking" not in model.weights.capabilities or request.think is False or request.raw:
        return []
    thought = text.thinking_text(source, max(3, int(wanted * _THINKING_SHARE)))
    return [Step(tokens=(text.token_id(piece),), part=Part(thinking=piece)) for piece in text.pieces(thought)]


def _answer_steps(request: InferenceRequest, model: Model, source: random.Random, wanted: int) -> list[Step]:
    if request.tools and request.messages[-1].get("role") != "tool":
        return [_tool_step(request.tools[0], source)]
    name = request.model
    if request.format in (None, ""):
        answer = text.answer_text(source, name, wanted)
    else:
        answer = text.formatted_text(source, name, request.format)
    answer = text.cut_at_stop(answer, _stops(request.options))
    return [_text_step(piece, request, source) for piece in text.pieces(answer)]


def _text_step(piece: str, request: InferenceRequest, source: random.Random) -> Step:
    logprobs = (text.log_probabilities(piece, source, request.top_logprobs),) if request.logprobs else ()
    return Step(tokens=(text.token_id(piece),), part=Part(content=piece, logprobs=logprobs))


def _tool_step(tool: Mapping[str, Any], source: random.Random) -> Step:
    """A call of the first tool, with arguments that satisfy its schema."""
    function = tool.get("function") or {}
    arguments = text.instance_of({"type": "object", **(function.get("parameters") or {})}, source)
    call = ToolCall(
        id="call_" + "".join(source.choices(_CALL_ID_CHARACTERS, k=8)),
        index=0,
        name=str(function.get("name", "")),
        arguments=arguments,
    )
    spoken = text.encode(json.dumps({"name": call.name, "arguments": arguments}))
    return Step(tokens=tuple(spoken), part=Part(tool_calls=(call,)))


def _limited(prompt: tuple[int, ...], steps: Sequence[Step], limit: int | None) -> Script:
    kept: list[Step] = []
    spoken = 0
    for step in steps:
        if limit is not None and spoken + len(step.tokens) > limit:
            if room := step.tokens[: limit - spoken]:
                # The beginning of a tool call costs its tokens and says nothing.
                kept.append(Step(tokens=room, part=Part()))
            return Script(prompt=prompt, steps=tuple(kept), done_reason="length")
        kept.append(step)
        spoken += len(step.tokens)
    return Script(prompt=prompt, steps=tuple(kept), done_reason="stop")


def _stops(options: Mapping[str, Any]) -> list[str]:
    return list(options.get("stop") or ())


def _has_images(request: InferenceRequest) -> bool:
    return bool(request.images) or any(message.get("images") for message in request.messages)


def _is_system(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "system"


def _length(*groups: Sequence[Any]) -> int:
    tools, system, others = groups
    return len(tools) + sum(map(len, system)) + sum(map(len, others)) + 1


def _too_long(prompt_tokens: int, num_ctx: int) -> str:
    """llama-server's own error body, which Ollama passes on as a string that contains JSON."""
    return json.dumps(
        {
            "error": {
                "code": 400,
                "message": f"request ({prompt_tokens} tokens) exceeds the available context size "
                f"({num_ctx} tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": prompt_tokens,
                "n_ctx": num_ctx,
            }
        },
        separators=(",", ":"),
    )
