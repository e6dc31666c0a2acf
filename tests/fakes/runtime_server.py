"""A stand-in for vLLM, or for llama-server, over real HTTP: their paths, shapes, refusals and streams.

It takes no parameter that the real one does not know, so a translation that makes one up is found out.
Sources: vLLM v0.11 and later, vllm/entrypoints/openai (ChatCompletionRequest, CompletionRequest,
ErrorResponse); llama.cpp b11669 tools/server, as observed.
"""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tests.fakes.scripted_instance import (
    END,
    ReadBody,
    Script,
    ScriptedInstance,
    SeenRequest,
    Send,
    Step,
    Turn,
    chunk,
    head,
    whole,
)

HELLO = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "m", "messages": HELLO}
_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed"}
_SHAPE = {"logprobs", "response_format"}
_COMMON = {*_SAMPLING, *_SHAPE, "model", "stream", "stream_options", "stop", "max_tokens"}
_CHAT = {*_COMMON, "messages", "tools", "top_logprobs", "chat_template_kwargs"}
_OF_VLLM = {"repetition_penalty"}
_OF_LLAMA = {"repeat_penalty", "repeat_last_n", "typical_p"}
KNOWN = {
    ("vllm", "/v1/chat/completions"): {
        *_CHAT,
        *_OF_VLLM,
        "reasoning_effort",
        "continue_final_message",
        "add_generation_prompt",
    },
    ("vllm", "/v1/completions"): {*_COMMON, *_OF_VLLM, "prompt"},
    ("vllm", "/v1/embeddings"): {"model", "input", "encoding_format", "dimensions", "truncate_prompt_tokens"},
    ("llama-server", "/v1/chat/completions"): {*_CHAT, *_OF_LLAMA},
    ("llama-server", "/v1/completions"): {*_COMMON, *_OF_LLAMA, "prompt", "json_schema"},
    ("llama-server", "/v1/embeddings"): {"model", "input", "encoding_format", "dimensions"},
}
SSE = head(200, "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")
USAGE = {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2}
TIMINGS = {"cache_n": 0, "prompt_n": 7, "prompt_ms": 1.5, "predicted_n": 2, "predicted_ms": 0.25}
CONTEXT = 4096


def event(data: object) -> bytes:
    """One event as both send it."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


class RuntimeServer(ScriptedInstance):
    """Serves `models` without loading anything. `deltas` are what it says, `reason` why it ends."""

    probe_paths = frozenset({"/health", "/v1/models", "/version", "/props"})

    def __init__(self, *models: str, runtime: str = "vllm") -> None:
        super().__init__(*models)
        self.runtime = runtime
        self.deltas: list[dict[str, Any]] = [{"content": "Hel"}, {"content": "lo"}]
        self.reason = "stop"
        self.otherwise = self._answer
        self.bodies: list[dict[str, Any]] = []

    def _listed(self, target: str) -> bytes:
        if target in self.lies:
            return self.lies[target]
        meta = {"max_model_len": CONTEXT} if self.runtime == "vllm" else {"meta": {"n_ctx": 8192, "size": 99}}
        cards = [{"id": name, "object": "model", "created": 17, **meta} for name in self.models]
        told: dict[str, object] = {
            "/v1/models": {"object": "list", "data": cards},
            "/version": {"version": "0.11.2"},
            "/props": {
                "total_slots": 2,
                "build_info": "b11669",
                "default_generation_settings": {"n_ctx": CONTEXT},
                "modalities": {"vision": True},
                "chat_template_caps": {"supports_tools": True},
            },
        }
        vllm_is_well = target == "/health" and self.runtime == "vllm"
        return b"" if vllm_is_well else json.dumps(told.get(target, {"status": "ok"})).encode()

    def _answer(self, request: SeenRequest) -> Script:
        yield ReadBody()
        if (self.runtime, request.target) not in KNOWN or request.method != "POST":
            yield Send(self._no_such_path())
            return
        body = json.loads(request.body)
        self.bodies.append(body)
        refusal = self._refusal(request.target, body)
        if refusal is not None:
            yield Send(refusal)
        elif request.target == "/v1/embeddings":
            yield Send(whole(json.dumps(self._embedded(body)).encode()))
        elif body.get("stream"):
            yield from self._streamed(request.target, body)
        else:
            yield Send(whole(json.dumps(self._told(request.target, body)).encode()))

    def _no_such_path(self) -> bytes:
        if self.runtime == "vllm":
            return whole(b'{"detail":"Not Found"}', status=404)
        return self.error(404, "File Not Found", "not_found_error")

    def error(self, status: int, message: str, kind: str) -> bytes:
        """An error answer."""
        return whole(self.error_body(status, message, kind), status=status)

    def error_body(self, status: int, message: str, kind: str) -> bytes:
        """The body of one, and what a stream carries instead."""
        return json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()

    def _refusal(self, target: str, body: dict[str, Any]) -> bytes | None:
        unknown = body.keys() - KNOWN[self.runtime, target]
        if unknown:
            return self.error(400, f"unknown parameters: {sorted(unknown)}", "BadRequestError")
        if self.runtime == "vllm" and body["model"] not in self.models:
            return self.error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        for message in body.get("messages", ()):
            if not isinstance(message.get("content"), str | list) or "role" not in message:
                return self.error(400, "a message without content", "BadRequestError")
        return None

    def _streamed(self, target: str, body: dict[str, Any]) -> Iterator[Step]:
        yield Send(SSE)
        opening = {"role": "assistant", "content": None if self.runtime == "llama-server" else ""}
        for delta in ([opening] if "messages" in body else []) + self.deltas:
            yield Send(chunk(event(self._chunk(target, body, delta, None))))
            yield Turn()
        last = self._chunk(target, body, {}, self.reason)
        if self.runtime == "llama-server" and "stream_options" not in body:
            last["timings"] = TIMINGS
        yield Send(chunk(event(last)))
        if "stream_options" in body:
            counted = {"timings": TIMINGS} if self.runtime == "llama-server" else {}
            yield Send(chunk(event({"model": body["model"], "choices": [], "usage": USAGE, **counted})))
        yield Send(chunk(event(b"[DONE]")) + END)

    def _chunk(
        self, target: str, body: dict[str, Any], delta: dict[str, Any], reason: str | None
    ) -> dict[str, Any]:
        said = {name: each for name, each in delta.items() if name != "logprobs"}
        part = {"text": said.get("content", "")} if target == "/v1/completions" else {"delta": said}
        choice = {"index": 0, **part, "logprobs": delta.get("logprobs"), "finish_reason": reason}
        return {"id": "x", "object": "chunk", "created": 17, "model": body["model"], "choices": [choice]}

    def _told(self, target: str, body: dict[str, Any]) -> dict[str, Any]:
        text = "".join(each.get("content") or "" for each in self.deltas)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        for name in ("reasoning", "reasoning_content", "tool_calls"):
            given = [each[name] for each in self.deltas if name in each]
            if given:
                calls = name == "tool_calls"
                message[name] = list(chain.from_iterable(given)) if calls else "".join(given)
        part = {"text": text} if target == "/v1/completions" else {"message": message}
        scores = [each["logprobs"]["content"] for each in self.deltas if "logprobs" in each]
        choice = {"index": 0, **part, "finish_reason": self.reason}
        choice |= {"logprobs": {"content": list(chain.from_iterable(scores))}} if scores else {}
        counted = {"timings": TIMINGS} if self.runtime == "llama-server" else {}
        return {"id": "x", "model": body["model"], "choices": [choice], "usage": USAGE, **counted}

    def _embedded(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        rows = [{"index": index, "embedding": [0.5, index]} for index in range(len(texts))]
        return {"data": rows[::-1], "model": body["model"], "usage": {"prompt_tokens": 3 * len(texts)}}
