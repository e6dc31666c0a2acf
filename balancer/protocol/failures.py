"""What an error answer of an instance says: of the instance, of the model there, or of the request.

Ollama tells most of it in its text alone, so there is one table of texts, each with where it comes
from. A rule is matched by the status and by what the body contains, in any letter case; the first that
fits decides. What no rule knows is told to the client as it is.
Sources: Ollama v0.33 server/routes.go, server/sched.go, llm/status.go, llm/server.go, and what was
observed of it with children killed, memory used up and queues filled. Of other runtimes: vLLM v0.11 and
later, vllm/entrypoints; llama.cpp b11669 tools/server, as observed.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from balancer.core.ticket import Blame, Outcome, Verdict


class Retry(StrEnum):
    """Whether the same request may do better at another instance, and whether that is counted."""

    NO = "no"
    COUNTED = "counted"
    FREE = "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """`kind` is a bounded word for metrics, `blames` what it is the fault of."""

    kind: str
    verdict: Verdict = Verdict.FAILURE
    blames: Blame = Blame.RUNNER
    retry: Retry = Retry.COUNTED

    def outcome(self, text: str) -> Outcome:
        """The outcome of a lease that ended with it."""
        return Outcome(verdict=self.verdict, kind=self.kind, error=text, blames=self.blames)


BUSY = Failure(kind="busy", verdict=Verdict.NEUTRAL, retry=Retry.FREE)
MODEL_MISSING = Failure(kind="model_missing", blames=Blame.MODEL)
OUT_OF_MEMORY = Failure(kind="oom", blames=Blame.VARIANT)
LOAD_FAILED = Failure(kind="load", blames=Blame.VARIANT)
CRASH = Failure(kind="crash")
STATUS = Failure(kind="status")
REQUEST = Failure(kind="rejected", verdict=Verdict.NEUTRAL, retry=Retry.NO)
UNSERVED = Failure(kind="unserved", verdict=Verdict.NEUTRAL, retry=Retry.FREE)

RUNTIME_LACKS = "the runtime does not serve the model in this way"
_NO_SUCH_PATH = frozenset({'{"detail":"Not Found"}', '{"detail":"Method Not Allowed"}', "File Not Found"})

_RULES: tuple[tuple[frozenset[int], Failure, tuple[str, ...]], ...] = (
    # llama.cpp b11669, common/chat.cpp; first, as they repeat what the client sent, whatever that says.
    (frozenset({500}), REQUEST, ("failed to parse tools: ", "failed to parse messages: ")),
    # server/sched.go ErrMaxQueue: the scheduler's queue is full, which says that loads wait there.
    (frozenset({503}), BUSY, ("maximum pending requests exceeded", "server busy")),
    # server/routes.go: the model, or a file of it, is not in this instance's store. vLLM, ErrorResponse.
    (frozenset({404}), MODEL_MISSING, ("' not found", '" not found', "no such file", "` does not exist")),
    # llm/status.go, isOutOfMemory; server/sched.go and llm/server.go for the estimate before a load.
    (
        frozenset({500}),
        OUT_OF_MEMORY,
        (
            "out of memory",
            "out-of-memory",
            "out of device memory",
            "cudamalloc failed",
            "hipmalloc failed",
            "failed to allocate",
            "allocation failed",
            "not enough memory",
            "insufficient memory",
            "vk_error_out_of_device_memory",
            "erroroutofmemory",
            "requires more system memory",
        ),
    ),
    # llm/llama_server.go: a runner that is gone while a request holds it; observed: once more it would
    # run. Embeddings tell it with status 400, in the words of whichever step met it: the question
    # whether the runner is well, the count of tokens, the embedding itself.
    (
        frozenset({400, 500}),
        CRASH,
        (
            "connection refused",
            "connection reset by peer",
            "health resp:",
            "read health response",
            '/tokenize": eof',
            "do embedding request",
            "error reading embed response",
            "llama-server process no longer running",
            "model runner has unexpectedly stopped",
            "an error was encountered while running the model",
            "error reading llama-server response",
        ),
    ),
    # llm/server.go: a runner that never began to serve.
    (
        frozenset({500}),
        LOAD_FAILED,
        (
            "llama-server process has terminated",
            "timed out waiting for llama-server to start",
            "error starting llama-server",
            "llama-server binary not found",
            "may be incompatible with your version of ollama",
            "error loading model",
            "unable to load model",
        ),
    ),
    # The model cannot do what is asked, wherever it is.
    (frozenset({501}), REQUEST, ("does not support",)),
    # api/types.go, server/prompt.go, template: the request, or the model's template, would fail anywhere.
    # The last of them are llama-server's own, as observed of llama.cpp b11669.
    (
        frozenset({500}),
        REQUEST,
        (
            'option "',
            "invalid option",
            "invalid format: ",
            "invalid tool call arguments",
            "error parsing tool call",
            "template: ",
            "failed to parse grammar",
            "invalid json schema",
            "invalid image input",
            "input is not supported",
            "the model produced output that does not match",
            "cannot unmarshal",
            "is too large to process",
            "does not support logits computation",
            "' is required",
        ),
    ),
)


def classify(status: int, text: str, *, has_model: bool) -> Failure | None:
    """The failure that an answer tells, None where it is no failure of the instance's. `text` is its
    message; `has_model` is whether a model was asked for."""
    text = text.casefold()
    for statuses, failure, texts in _RULES:
        if status in statuses and any(each in text for each in texts):
            return failure if has_model or failure.verdict is Verdict.NEUTRAL else None
    return STATUS if status >= 500 else None


def tells_of_no_path(status: int, message: str) -> bool:
    """Whether a runtime of another make has not got the path that it was asked for, in its version or for
    its model; translated answers tell it in our words. Sources: FastAPI; llama.cpp b11669 tools/server."""
    return message == RUNTIME_LACKS if status == 501 else status in {404, 405} and message in _NO_SUCH_PATH


def error_message(body: bytes | None, *, limit: int = 300) -> str:
    """The message in an error's body of any dialect, or the body as it is; on one line, shortened.
    Empty where the body could not be read."""
    raw = body or b""
    try:
        told = msgspec.json.decode(raw, type=dict[str, object]).get("error")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = None
    if isinstance(told, dict):
        told = told.get("message")
    text = " ".join((told if isinstance(told, str) else raw.decode("utf-8", "replace")).splitlines()).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
