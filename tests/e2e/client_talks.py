"""What the public client libraries are made to ask, and their answers in a form that can be compared.

Each library has a blocking and an asynchronous client with the same methods, so every operation is
written once. An answer is plain data without what differs from one request to the next by right:
times, durations and made-up ids. An exception is an answer too.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import anthropic
import ollama
import openai
from langchain_ollama import ChatOllama, OllamaEmbeddings
from pydantic import BaseModel

_TIMES = frozenset(
    {
        "created_at",
        "completed_at",
        "expires_at",
        "total_duration",
        "load_duration",
        "prompt_eval_duration",
        "eval_duration",
    }
)
_IDS = frozenset({"id", "item_id", "created", "request_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """The models to ask, and options that make their answers the same each time."""

    chat: str
    tools: str
    thinker: str
    embedder: str
    options: Mapping[str, Any] = field(
        default_factory=lambda: {"seed": 1, "temperature": 0, "num_predict": 12}
    )


Operation = Callable[[Any, Cast], Any]


@dataclass(frozen=True, slots=True)
class Talker:
    """One client class of one library, and what it is made to ask."""

    name: str
    open: Callable[[str], Any]
    operations: Mapping[str, Operation]
    long_answer: Operation
    blocking: bool


_SAID = [{"role": "user", "content": "What is the weather in Paris?"}]
_PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_FUNCTION = {"name": "get_weather", "description": "Tells the weather of a city.", "parameters": _PLACE}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_ANTHROPIC_TOOLS = [{"name": "get_weather", "description": "Tells the weather.", "input_schema": _PLACE}]
_UNKNOWN = "nosuch:1b"

OLLAMA: Mapping[str, Operation] = {
    "list": lambda client, _: client.list(),
    "show": lambda client, cast: client.show(cast.chat),
    "chat": lambda client, cast: client.chat(cast.chat, _SAID, options=cast.options),
    "stream": lambda client, cast: client.chat(cast.chat, _SAID, options=cast.options, stream=True),
    "tools": lambda client, cast: client.chat(cast.tools, _SAID, tools=_TOOLS),
    "tools_stream": lambda client, cast: client.chat(cast.tools, _SAID, tools=_TOOLS, stream=True),
    "think": lambda client, cast: client.chat(cast.thinker, _SAID, think=True, stream=True),
    "generate": lambda client, cast: client.generate(cast.chat, "Hello", options=cast.options),
    "generate_stream": lambda client, cast: client.generate(
        cast.chat, "Hello", options=cast.options, stream=True
    ),
    "embed": lambda client, cast: client.embed(cast.embedder, ["one", "two"]),
    "unknown": lambda client, _: client.chat(_UNKNOWN, _SAID),
    "unknown_stream": lambda client, _: client.generate(_UNKNOWN, "Hello", stream=True),
    "unknown_show": lambda client, _: client.show(_UNKNOWN),
}


def _openai_chat(client: Any, model: str, cast: Cast, **fields: Any) -> Any:
    sampling = {"temperature": cast.options["temperature"], "seed": cast.options["seed"]}
    return client.chat.completions.create(
        model=model, messages=_SAID, max_tokens=cast.options["num_predict"], **sampling, **fields
    )


OPENAI: Mapping[str, Operation] = {
    "list": lambda client, _: client.models.list(),
    "show": lambda client, cast: client.models.retrieve(cast.chat),
    "chat": lambda client, cast: _openai_chat(client, cast.chat, cast),
    "stream": lambda client, cast: _openai_chat(
        client, cast.chat, cast, stream=True, stream_options={"include_usage": True}
    ),
    "tools": lambda client, cast: client.chat.completions.create(
        model=cast.tools, messages=_SAID, tools=_TOOLS
    ),
    "tools_stream": lambda client, cast: client.chat.completions.create(
        model=cast.tools, messages=_SAID, tools=_TOOLS, stream=True
    ),
    "generate": lambda client, cast: client.completions.create(
        model=cast.chat, prompt="Hello", max_tokens=12, temperature=0, seed=1
    ),
    "embed": lambda client, cast: client.embeddings.create(model=cast.embedder, input=["one", "two"]),
    "respond": lambda client, cast: client.responses.create(
        model=cast.chat, input="Hello", max_output_tokens=12, temperature=0
    ),
    "unknown": lambda client, cast: _openai_chat(client, _UNKNOWN, cast),
    "unknown_stream": lambda client, cast: _openai_chat(client, _UNKNOWN, cast, stream=True),
    "unknown_show": lambda client, _: client.models.retrieve(_UNKNOWN),
}


def _message(client: Any, model: str, **fields: Any) -> Any:
    sampling = {"temperature": 0}
    return client.messages.create(
        **{"model": model, "messages": _SAID, "max_tokens": 12, "extra_body": sampling, **fields}
    )


_THINKING = {"type": "enabled", "budget_tokens": 1024}

ANTHROPIC: Mapping[str, Operation] = {
    "list": lambda client, _: client.models.list(),
    "chat": lambda client, cast: _message(client, cast.chat),
    "stream": lambda client, cast: _message(client, cast.chat, stream=True),
    "tools": lambda client, cast: _message(client, cast.tools, tools=_ANTHROPIC_TOOLS, max_tokens=400),
    "tools_stream": lambda client, cast: _message(
        client, cast.tools, tools=_ANTHROPIC_TOOLS, max_tokens=400, stream=True
    ),
    "think": lambda client, cast: _message(
        client, cast.thinker, thinking=_THINKING, max_tokens=2000, stream=True
    ),
    "unknown": lambda client, _: _message(client, _UNKNOWN),
    "unknown_stream": lambda client, _: _message(client, _UNKNOWN, stream=True),
}


class _LangChain:
    """The models of langchain-ollama at one address, as if they were one client."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: list[Any] = []

    def chat(self, model: str, cast: Cast) -> ChatOllama:
        made = ChatOllama(model=model, base_url=self._url, **cast.options)
        self._opened.append(made)
        return made

    def embeddings(self, model: str) -> OllamaEmbeddings:
        made = OllamaEmbeddings(model=model, base_url=self._url)
        self._opened.append(made)
        return made

    async def __aenter__(self) -> _LangChain:
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self._opened:
            each._client.close()
            await each._async_client.close()


LANGCHAIN: Mapping[str, Operation] = {
    "chat": lambda client, cast: client.chat(cast.chat, cast).ainvoke("Hello"),
    "chat_blocking": lambda client, cast: asyncio.to_thread(client.chat(cast.chat, cast).invoke, "Hello"),
    "stream": lambda client, cast: client.chat(cast.chat, cast).astream("Hello"),
    "tools": lambda client, cast: (
        client.chat(cast.tools, cast).bind_tools(_TOOLS).ainvoke("What is the weather in Paris?")
    ),
    "embed": lambda client, cast: client.embeddings(cast.embedder).aembed_documents(["one", "two"]),
    "unknown": lambda client, cast: client.chat(_UNKNOWN, cast).ainvoke("Hello"),
}


def _long(client: Any, cast: Cast) -> Any:
    return client.chat(cast.chat, _SAID, stream=True, options={**cast.options, "num_predict": 4000})


def _openai_long(client: Any, cast: Cast) -> Any:
    return client.chat.completions.create(model=cast.chat, messages=_SAID, stream=True, max_tokens=4000)


def _anthropic_long(client: Any, cast: Cast) -> Any:
    return _message(client, cast.chat, stream=True, max_tokens=4000)


def _langchain_long(client: Any, cast: Cast) -> Any:
    longer = Cast(
        chat=cast.chat,
        tools=cast.tools,
        thinker=cast.thinker,
        embedder=cast.embedder,
        options={**cast.options, "num_predict": 4000},
    )
    return client.chat(cast.chat, longer).astream("Hello")


def _openai(kind: Any) -> Callable[[str], Any]:
    return lambda url: kind(base_url=f"{url}/v1", api_key="-", max_retries=0)


def _anthropic(kind: Any) -> Callable[[str], Any]:
    return lambda url: kind(base_url=url, api_key="-", max_retries=0)


TALKERS = (
    Talker("ollama", lambda url: ollama.Client(host=url), OLLAMA, _long, True),
    Talker("ollama-async", lambda url: ollama.AsyncClient(host=url), OLLAMA, _long, False),
    Talker("openai", _openai(openai.OpenAI), OPENAI, _openai_long, True),
    Talker("openai-async", _openai(openai.AsyncOpenAI), OPENAI, _openai_long, False),
    Talker("anthropic", _anthropic(anthropic.Anthropic), ANTHROPIC, _anthropic_long, True),
    Talker("anthropic-async", _anthropic(anthropic.AsyncAnthropic), ANTHROPIC, _anthropic_long, False),
    Talker("langchain", _LangChain, LANGCHAIN, _langchain_long, False),
)


def conversations(*names: str) -> Iterator[tuple[Talker, str]]:
    """Every operation of these talkers, or of all."""
    for talker in TALKERS:
        if not names or talker.name in names:
            yield from ((talker, operation) for operation in talker.operations)


async def talk(talker: Talker, operation: str, url: str, cast: Cast) -> Any:
    """Have one operation done at an address; its whole answer as plain data."""
    ask, client = talker.operations[operation], talker.open(url)
    if talker.blocking:
        with client:
            return await asyncio.to_thread(_blocking_answer, ask, client, cast)
    async with client:
        try:
            answer = await _awaited(ask(client, cast))
            return plain([part async for part in answer] if _streams(answer) else answer)
        except (ollama.ResponseError, openai.APIError, anthropic.APIError) as error:
            return _failure(error)


async def leave(talker: Talker, url: str, cast: Cast, *, after: int = 3) -> None:
    """Have a long answer begun, and leave after so many parts of it."""
    client = talker.open(url)
    if talker.blocking:
        with client:
            await asyncio.to_thread(_leave_blocking, talker.long_answer, client, cast, after)
        return
    async with client:
        parts = await _awaited(talker.long_answer(client, cast))
        iterator = aiter(parts)
        for _ in range(after):
            await anext(iterator)
        # One that is a generator ends its request when it is closed, a stream has a close of its own.
        await (parts.aclose() if inspect.isasyncgen(parts) else parts.close())


def plain(value: Any) -> Any:
    """As JSON-like data, without times, durations and made-up ids."""
    match value:
        case BaseModel():
            return plain(value.model_dump())
        case Mapping():
            named = value.get("object") == "model"
            return {
                key: plain(each)
                for key, each in value.items()
                if key not in _TIMES and (named or key not in _IDS)
            }
        case list() | tuple():
            return [plain(each) for each in value]
        case _:
            return value


def _blocking_answer(ask: Operation, client: Any, cast: Cast) -> Any:
    try:
        answer = ask(client, cast)
        return plain(answer if isinstance(answer, BaseModel) else list(answer))
    except (ollama.ResponseError, openai.APIError, anthropic.APIError) as error:
        return _failure(error)


def _leave_blocking(ask: Operation, client: Any, cast: Cast, after: int) -> None:
    parts = ask(client, cast)
    iterator = iter(parts)
    for _ in range(after):
        next(iterator)
    parts.close()


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _streams(value: Any) -> bool:
    return hasattr(value, "__aiter__") and not isinstance(value, BaseModel)


def _failure(error: Any) -> dict[str, Any]:
    """The kind, status and message of an error; the balancer adds to a message after a semicolon."""
    body = getattr(error, "body", None)
    while isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    message = body["message"] if isinstance(body, Mapping) else getattr(error, "error", str(error))
    return {
        "failure": type(error).__name__,
        "status": error.status_code,
        "type": body.get("type") if isinstance(body, Mapping) else None,
        "message": message.partition(";")[0],
    }
