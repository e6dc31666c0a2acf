"""What error answers say: every text that was seen of a real Ollama, and every error recorded of one."""

import json

import pytest

from balancer.core.ticket import Blame, Verdict
from balancer.protocol.failures import (
    BUSY,
    CRASH,
    LOAD_FAILED,
    MODEL_MISSING,
    OUT_OF_MEMORY,
    REQUEST,
    STATUS,
    Failure,
    Retry,
    classify,
    error_message,
    tells_of_no_path,
)
from tests.unit.unit_support import Recorded, recordings

UNEXPECTED_EOF = "an error was encountered while running the model: unexpected EOF"
FULL = "server busy, please try again.  maximum pending requests exceeded"
EMBED_EOF = 'do embedding request: Post "http://127.0.0.1:40001/v1/embeddings": EOF'
EMBED_RESET = "read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer"

SEEN: list[tuple[int, str, Failure | None]] = [
    (503, FULL, BUSY),
    (503, "Server Busy, please try again.", BUSY),
    (503, "the model is being pulled", STATUS),
    (404, "model 'nope' not found", MODEL_MISSING),
    (404, 'model "nope" not found, try pulling it first', MODEL_MISSING),
    (404, "404 page not found", None),
    (404, "The model `nope` does not exist.", MODEL_MISSING),
    (500, "The model produced output that does not match the expected peg-native format", REQUEST),
    (500, "image input is not supported - hint: you may need to provide the mmproj", REQUEST),
    (500, "audio input is not supported - hint: you may need to provide the mmproj", REQUEST),
    (500, "Failed to parse tools: Expected 'tools' to be an array, got 5; tools = 5", REQUEST),
    (500, 'Failed to parse tools: Missing tool type: "out of memory"; tools = []', REQUEST),
    (500, "Failed to parse messages: Missing tool call type: 5", REQUEST),
    (500, "input (10002 tokens) is too large to process. increase the physical batch size", REQUEST),
    (500, "the current context does not support logits computation. skipping", REQUEST),
    (500, "'messages' is required", REQUEST),
    (404, "", None),
    (400, "model 'nope' not found", None),
    (500, "model requires more system memory (9.1 GiB) than is available (3.0 GiB)", OUT_OF_MEMORY),
    (
        500,
        "llama-server process has terminated: exit status 2 cudaMalloc failed: out of memory",
        OUT_OF_MEMORY,
    ),
    (500, "llama-server process has terminated: signal: killed", LOAD_FAILED),
    (500, "llama-server process no longer running: unknown ", CRASH),
    (500, "llama-server process no longer running: unknown", CRASH),
    (500, "llama-server process no longer running: 137 last words of it", CRASH),
    (400, "llama-server process no longer running: unknown", CRASH),
    (500, UNEXPECTED_EOF, CRASH),
    (400, EMBED_EOF, CRASH),
    (500, EMBED_EOF, CRASH),
    (400, EMBED_RESET, CRASH),
    (500, "connection refused", CRASH),
    (500, "timed out waiting for llama-server to start: context canceled", LOAD_FAILED),
    (500, "unable to load model: /models/blobs/sha256-0", LOAD_FAILED),
    (500, "this model may be incompatible with your version of Ollama", LOAD_FAILED),
    (500, 'option "num_ctx" must be of type integer', REQUEST),
    (500, "template: :1: unclosed action", REQUEST),
    (500, 'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object', REQUEST),
    (501, "This server does not support embeddings. Start it with `--embeddings`", REQUEST),
    (400, '"e" does not support generate', None),
    (400, "the input length exceeds the context length", None),
    (500, "", STATUS),
    (500, "something that nobody has seen", STATUS),
    (502, "", STATUS),
    (504, "a gateway's page", STATUS),
    (599, "", STATUS),
    (403, "ollama cloud is disabled: remote model is unavailable", None),
    (429, "slow down", None),
    (499, "", None),
]

RECORDED = [each for each in recordings() if each.status >= 400]
MISTAKES = {"refused/format", "refused/option type", "refused/template", "embed/by a chat model"}
"""Recorded with a status of 500 or more, though the request is to blame."""


def in_dialect(text: str, dialect: str) -> bytes:
    error = {
        "native": text,
        "openai": {"message": text, "type": "api_error", "param": None, "code": None},
        "anthropic": {"type": "api_error", "message": text},
    }[dialect]
    more = {"type": "error", "request_id": "req_1"} if dialect == "anthropic" else {}
    return json.dumps({**more, "error": error}).encode()


@pytest.mark.parametrize("dialect", ["native", "openai", "anthropic"])
@pytest.mark.parametrize(("status", "text", "expected"), SEEN)
def test_a_text_is_known_in_every_dialect(
    status: int, text: str, expected: Failure | None, dialect: str
) -> None:
    message = error_message(in_dialect(text, dialect))

    assert classify(status, message, has_model=True) is expected


@pytest.mark.parametrize("text", [FULL, UNEXPECTED_EOF, 'MODEL "X" NOT FOUND'])
def test_letter_case_does_not_matter(text: str) -> None:
    status = {FULL: 503, UNEXPECTED_EOF: 500}.get(text, 404)

    assert classify(status, text.upper(), has_model=True) is classify(status, text.lower(), has_model=True)
    assert classify(status, text.upper(), has_model=True) is not None


@pytest.mark.parametrize(
    ("status", "text"), [(404, "model 'x' not found"), (500, "out of memory"), (500, "error loading model")]
)
def test_no_models_fault_where_no_model_was_asked_for(status: int, text: str) -> None:
    assert classify(status, text, has_model=False) is None


def test_a_status_that_tells_nothing_is_a_fault_whether_or_not_a_model_was_asked_for() -> None:
    for status in (500, 502, 599):
        assert classify(status, "x", has_model=False) is STATUS


@pytest.mark.parametrize(("status", "text"), [(500, UNEXPECTED_EOF), (400, EMBED_EOF)])
def test_no_runners_fault_where_no_model_of_the_instance_was_asked_for(status: int, text: str) -> None:
    assert classify(status, text, has_model=False) is None
    assert classify(status, text, has_model=True) is CRASH


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [(503, FULL, BUSY), (501, "it does not support embeddings", REQUEST), (500, "template: x", REQUEST)],
)
def test_what_blames_nobody_is_known_without_a_model(status: int, text: str, expected: Failure) -> None:
    assert classify(status, text, has_model=False) is expected


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda each: each.name)
def test_a_recorded_error_blames_whom_it_should(recorded: Recorded) -> None:
    """The requests of the recordings were made to be refused: no instance was at fault, but for models
    that were not there and files or hosts that could not be reached."""
    message = error_message(recorded.body)

    told = classify(recorded.status, message, has_model=True)

    if recorded.name in MISTAKES:
        assert told is REQUEST
    elif recorded.status == 404:
        assert told is (None if message == "404 page not found" else MODEL_MISSING)
    elif recorded.status >= 500:
        assert told in {STATUS, CRASH}
        assert recorded.path in {"/api/create", "/api/pull", "/api/push"} or "malformed" in recorded.name
    else:
        assert told is None


def test_there_are_recordings_of_each_kind() -> None:
    assert {each.name for each in RECORDED} >= MISTAKES
    assert len(RECORDED) > 100


@pytest.mark.parametrize(
    ("failure", "verdict", "blames", "retry"),
    [
        (MODEL_MISSING, Verdict.FAILURE, Blame.MODEL, Retry.COUNTED),
        (OUT_OF_MEMORY, Verdict.FAILURE, Blame.VARIANT, Retry.COUNTED),
        (LOAD_FAILED, Verdict.FAILURE, Blame.VARIANT, Retry.COUNTED),
        (CRASH, Verdict.FAILURE, Blame.RUNNER, Retry.COUNTED),
        (STATUS, Verdict.FAILURE, Blame.RUNNER, Retry.COUNTED),
    ],
)
def test_what_each_failure_means(failure: Failure, verdict: Verdict, blames: Blame, retry: Retry) -> None:
    outcome = failure.outcome("why")

    assert (outcome.verdict, outcome.blames, failure.retry) == (verdict, blames, retry)
    assert (outcome.kind, outcome.error) == (failure.kind, "why")


@pytest.mark.parametrize(("told", "retry"), [(BUSY, Retry.FREE), (REQUEST, Retry.NO)])
def test_what_blames_nobody_is_neutral(told: Failure, retry: Retry) -> None:
    outcome = told.outcome("why")

    assert (outcome.verdict, told.retry) == (Verdict.NEUTRAL, retry)
    assert (outcome.kind, outcome.error) == (told.kind, "why")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":"plain"}', "plain"),
        (b'{"error":{"message":"nested","type":"api_error"}}', "nested"),
        (b'{"error":"two\\nlines "}', "two lines"),
        (b'{"error":"three\\r\\n\\rlines"}', "three  lines"),
        (b'{"error":"a  name\\n with  spaces "}', "a  name  with  spaces"),
        (b'{"error":7}', '{"error":7}'),
        (b'{"error":{"message":null}}', '{"error":{"message":null}}'),
        (b"<html>\n<b>502</b></html>", "<html> <b>502</b></html>"),
        (b"\xff\xfe", "��"),
        (b"[" * 5000, "[" * 299 + "…"),
        (b'{"error":"' + b"x" * 400 + b'"}', "x" * 299 + "…"),
        (b"", ""),
        (None, ""),
    ],
)
def test_the_message_of_an_error_is_one_short_line(body: bytes | None, message: str) -> None:
    assert error_message(body) == message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"detail":"Not Found"}'),
        (405, b'{"detail":"Method Not Allowed"}'),
        (404, b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}'),
    ],
)
def test_a_path_that_a_runtime_has_not_got_is_told_from_a_model_that_it_has_not(
    status: int, body: bytes
) -> None:
    message = error_message(body)

    assert tells_of_no_path(status, message)
    assert not tells_of_no_path(400, message)
    assert not tells_of_no_path(404, "The model `m` does not exist.")
    assert not tells_of_no_path(501, message)
