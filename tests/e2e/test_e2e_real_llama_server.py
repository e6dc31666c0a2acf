"""Real llama-server processes behind a balancer: Ollama's client and OpenAI's get what they are for.

The binary is named by LLAMA_SERVER_BINARY, the folder of the models by OLLAMA_TEST_GGUF: the scripted ones
of `real_ollama`, each with a template that its words fit.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from harness import Child, Stack, balancing, child, wait_for

BINARY = os.environ.get("LLAMA_SERVER_BINARY", "")
GGUF = Path(os.environ.get("OLLAMA_TEST_GGUF", "") or "nowhere")
SLOTS = 2
CONTEXT = 512
pytestmark = [
    pytest.mark.llama_server,
    pytest.mark.skipif(
        not os.access(BINARY, os.X_OK) or not Path(BINARY).is_file(),
        reason="LLAMA_SERVER_BINARY names no executable",
    ),
    pytest.mark.skipif(not GGUF.is_dir(), reason="OLLAMA_TEST_GGUF names no folder"),
]

_TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
_CALLS = (
    '{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", '
    '"parameters": {{ c.function.arguments | tojson }}}{% endfor %}'
)
TEMPLATES = {
    "say": _TURNS,
    "think": "{% for m in messages %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
    # By these marks llama-server takes `{"name", "parameters"}` for a call.
    "tool": "{% if tools %}<|start_header_id|>ipython<|end_header_id|>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}"
    + _CALLS
    + "{% endif %}\n{% endfor %}assistant:",
    "e": "",
}
SAID = 'Hello there, café naïve ☃ 😀 line\nbreak "quoted" \\ <b>& done.'
HELLO = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class RealServer:
    """One process, that serves one model."""

    child: Child
    model: str
    url: str

    def is_ready(self) -> bool:
        assert self.child.process.poll() is None, self.child.err.read_text()
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RealServer]]:
    folder = tmp_path_factory.mktemp("llama")
    with ExitStack() as stack:
        started = {}
        for model, template in TEMPLATES.items():
            port = free_port()
            arguments = ["--model", str(GGUF / f"{model}.gguf"), "--alias", model, "--port", str(port)]
            arguments += ["--threads", "1", "--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT)]
            if template:
                (folder / f"{model}.jinja").write_text(template)
                arguments += ["--chat-template-file", str(folder / f"{model}.jinja")]
            else:
                arguments.append("--embeddings")
            process = stack.enter_context(child(model, [BINARY, *arguments], folder))
            started[model] = RealServer(process, model, f"http://127.0.0.1:{port}")
        for each in started.values():
            wait_for(each.is_ready, about=f"a ready llama-server with {each.model}")
        yield started


def behind(servers: dict[str, RealServer], *models: str, **settings: Any) -> Any:
    """A balancer in front of the servers of these models."""
    return balancing([servers[model].url for model in models], runtime="llama-server", **settings)


def client(stack: Stack) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=stack.url, trust_env=False)


@pytest.mark.parametrize("fast_path", [True, False])
async def test_ollamas_client_chats_and_generates(servers: dict[str, RealServer], fast_path: bool) -> None:
    async with behind(servers, "say", fast_path=fast_path) as stack:
        api = client(stack)
        async with api._client:
            parts = [each async for each in await api.chat("say", HELLO, stream=True)]
            whole = await api.chat("say", HELLO)
            generated = await api.generate("say", "hi", options={"temperature": 0, "seed": 1, "top_k": 5})
            raw = [each async for each in await api.generate("say", "hi", raw=True, stream=True)]

    assert "".join(each.message.content or "" for each in parts) == SAID
    assert len(parts) > 3
    assert (whole.message.content, generated.response) == (SAID, SAID)
    assert "".join(each.response for each in raw) == SAID
    for last in (parts[-1], whole, generated, raw[-1]):
        assert (last.done, last.done_reason) == (True, "stop")
        assert last.prompt_eval_count
        assert last.eval_count
        assert last.eval_duration
        assert last.total_duration
    outcomes = {each["outcome"] for each in stack.finished()}
    assert outcomes == {"ok"}


async def test_thinking_comes_apart_from_the_answer(servers: dict[str, RealServer]) -> None:
    async with behind(servers, "think") as stack:
        api = client(stack)
        async with api._client:
            parts = [each async for each in await api.chat("think", HELLO, stream=True, think=True)]
            whole = await api.chat("think", HELLO)

    thought = "".join(each.message.thinking or "" for each in parts)
    answer = "".join(each.message.content or "" for each in parts)
    assert (thought, answer) == ("First I weigh it.", "The answer is 42.")
    assert (whole.message.thinking, whole.message.content) == (thought, answer)


async def test_a_tool_is_called_and_told_its_result(servers: dict[str, RealServer]) -> None:
    async with behind(servers, "tool") as stack:
        api = client(stack)
        async with api._client:
            parts = [each async for each in await api.chat("tool", HELLO, tools=[WEATHER], stream=True)]
            calls = [call for each in parts for call in each.message.tool_calls or ()]
            told: list[Any] = [*HELLO, {"role": "assistant", "content": "", "tool_calls": calls}]
            told.append({"role": "tool", "tool_name": "get_weather", "content": "sunny"})
            whole = await api.chat("tool", told, tools=[WEATHER])

    assert [(each.function.name, each.function.arguments) for each in calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    assert whole.message.tool_calls
    assert parts[-1].done_reason == whole.done_reason == "stop"


async def test_an_embedder_embeds_by_both_paths(servers: dict[str, RealServer]) -> None:
    async with behind(servers, "e") as stack:
        api = client(stack)
        async with api._client, openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="-") as other:
            native = await api.embed("e", ["a", "b"])
            theirs = await other.embeddings.create(model="e", input=["a", "b"], encoding_format="float")

    assert [len(each) for each in native.embeddings] == [384, 384]
    assert [list(each) for each in native.embeddings] == [each.embedding for each in theirs.data]


async def test_a_chat_model_does_not_embed_and_says_so(servers: dict[str, RealServer]) -> None:
    async with behind(servers, "say") as stack:
        api = client(stack)
        async with api._client:
            with pytest.raises(ollama.ResponseError) as caught:
                await api.embed("say", "a")

    assert caught.value.status_code == 501
    assert "does not support embeddings" in caught.value.error


async def test_openais_client_streams_through(servers: dict[str, RealServer]) -> None:
    async with (
        behind(servers, "say") as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="-") as api,
    ):
        stream = await api.chat.completions.create(
            model="say", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        said = [each.choices[0].delta.content or "" async for each in stream if each.choices]
        names = [each.id async for each in api.models.list()]

    assert "".join(said) == SAID
    assert names == ["say"]


async def test_lists_name_models_slots_and_contexts(servers: dict[str, RealServer]) -> None:
    async with behind(servers, "say", "think", "tool") as stack:
        api = client(stack)
        async with api._client:
            names = {each.model for each in (await api.list()).models}
            resident = {each.model: each.context_length for each in (await api.ps()).models}
            shown = await api.show("tool")
            loaded = await api.generate("say")
        rows = [each.inventory for each in stack.balancer.fleet.instances() if each.inventory]
        slots = {name: runner.slots for each in rows for name, runner in each.runners.items()}

    assert names == {"say", "think", "tool"}
    assert resident == dict.fromkeys(names, CONTEXT)
    assert shown.capabilities is not None
    assert set(shown.capabilities) == {"completion", "tools"}
    assert (loaded.done_reason, loaded.response) == ("load", "")
    assert set(slots.values()) == {SLOTS}


async def test_refusals_of_the_runtime_and_of_the_translation_are_told(
    servers: dict[str, RealServer],
) -> None:
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
    cases: list[dict[str, Any]] = [
        {"prompt": "word " * 3000},
        {"prompt": "x", "options": {"num_ctx": CONTEXT + 1}},
        {"prompt": "x", "options": {"mirostat": 1}},
        {"prompt": "x", "images": [picture]},
    ]
    async with behind(servers, "say") as stack:
        api = client(stack)
        errors = []
        async with api._client:
            for case in cases:
                with pytest.raises(ollama.ResponseError) as caught:
                    await api.generate("say", **case)
                errors.append((caught.value.status_code, caught.value.error))
            still = await api.generate("say", "x", options={"num_ctx": CONTEXT, "num_predict": 2})
        breakers = {each.breakers.untroubled for each in stack.balancer.fleet.instances()}

    assert [status for status, _ in errors] == [400, 400, 400, 500]
    assert "context" in errors[0][1]
    assert "num_ctx" in errors[1][1]
    assert "mirostat" in errors[2][1]
    assert "image" in errors[3][1]
    assert (still.done_reason, still.eval_count) == ("length", 2)
    assert breakers == {True}
