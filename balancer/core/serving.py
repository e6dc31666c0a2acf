"""What each runtime can be asked for: the paths that go to it as they are, and those that are translated."""

from balancer.core.plan import Runtime

TRANSLATED_PATHS = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/show"})
"""Ollama's own, for which a runtime of another make is asked through its OpenAI paths."""
_OWN_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/audio/transcriptions",
        "/v1/messages",
    }
)
"""Which of them a server has depends on its version and on its model; it says so itself where it has not.
Sources: vLLM v0.11 and later, vllm/entrypoints (openai, anthropic); llama.cpp b11669, tools/server."""


def served_by_all(path: str) -> bool:
    """Whether instances of every runtime may be sent it."""
    return path in TRANSLATED_PATHS or path in _OWN_PATHS


def serves(runtime: Runtime, path: str) -> bool:
    """Whether an instance of the runtime may be sent a request that has this path at an Ollama."""
    return runtime is Runtime.OLLAMA or served_by_all(path)
