"""The ways a simulated request fails, each with Ollama's status and text.

    SimulatedError
    ├─ Refusal          answered with a status and an error body
    └─ RunnerDied       the runner's process ended under a running request

Raised by scheduler, runner and the route handlers; turned into bytes of the
caller's dialect in one place, web/exchange.py.
"""

from __future__ import annotations

# Source: Ollama v0.33 server/sched.go; the two spaces are Ollama's.
QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
# Source: observed on Ollama 0.33 when llama-server is killed.
RUNNER_GONE = "llama-server process no longer running: unknown "
RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"
EMBEDDING_DIED = 'do embedding request: Post "http://127.0.0.1:40000/v1/embeddings": EOF'
# Source: Ollama v0.33 llm/llama_server.go, with a CUDA line as llama-server prints it.
LOAD_OUT_OF_MEMORY = "llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory"
RUN_OUT_OF_MEMORY = "an error was encountered while running the model: CUDA error: out of memory"
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
# llama-server's own error body, passed on as a string that contains JSON.
NOT_MULTIMODAL = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal '
    'requests.","type":"invalid_request_error"}}'
)
LONGER_THAN_CONTEXT = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)
INPUT_TOO_LONG = "the input length exceeds the context length"


class SimulatedError(Exception):
    """Any way in which a simulated request fails."""


class Refusal(SimulatedError):
    """A request that gets an error status; `message` is the text before any dialect wraps it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RunnerDied(SimulatedError):
    """The runner ended while it worked on this request."""

    def __init__(self, message: str = RUNNER_DIED) -> None:
        super().__init__(message)
        self.message = message
