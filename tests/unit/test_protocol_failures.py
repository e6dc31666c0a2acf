"""What texts of error answers tell, as real servers were seen to word them."""

import pytest

from balancer.protocol.failures import CRASH, classify

DIED_UNDER_EMBEDDINGS = (
    "connection refused",
    'do embedding request: Post "http://127.0.0.1:41001/v1/embeddings": EOF',
    'do embedding request: Post "http://127.0.0.1:41001/v1/embeddings": read: connection reset by peer',
    'health resp: Get "http://127.0.0.1:41001/health": EOF',
    'Post "http://127.0.0.1:41001/tokenize": EOF',
    "error reading embed response: unexpected EOF",
    "llama-server process no longer running: unknown",
)


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("text", DIED_UNDER_EMBEDDINGS)
def test_runner_that_died_under_embeddings_is_a_crash(status: int, text: str) -> None:
    assert classify(status, text, has_model=True) is CRASH


@pytest.mark.parametrize("text", ["invalid input", "the input length exceeds the context length", ""])
def test_request_that_is_wrong_is_no_failure_of_an_instance(text: str) -> None:
    assert classify(400, text, has_model=True) is None
