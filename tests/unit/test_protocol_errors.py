"""Errors in the words of each dialect, as a body and as the last record of a stream."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.operation import Dialect, Kind, Operation, Wire
from balancer.protocol.endings import Ending, judge
from balancer.protocol.errors import error_body, error_record
from tests.unit.unit_support import fed

STATUSES = [400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 500, 502, 503, 504]


@pytest.mark.parametrize("status", STATUSES)
def test_a_native_error_is_its_message_alone(status: int) -> None:
    assert json.loads(error_body(Dialect.OLLAMA, status, "no 'x'", "id")) == {"error": "no 'x'"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (502, "api_error"),
        (503, "api_error"),
    ],
)
def test_an_openai_error_has_message_type_param_and_code(status: int, kind: str) -> None:
    told = json.loads(error_body(Dialect.OPENAI, status, "no", "id"))

    assert {"error": {"message": "no", "type": kind, "param": None, "code": None}} == told


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_anthropic_error_has_a_type_and_the_request(status: int, kind: str) -> None:
    told = json.loads(error_body(Dialect.ANTHROPIC, status, "no", "id-1"))

    assert {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "id-1"} == told


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_record_is_one_line_whatever_the_message(message: str) -> None:
    line = error_record(Dialect.OLLAMA, Wire.NDJSON, message, "id")

    assert line.endswith(b"\n")
    assert {"error": message} == json.loads(line)
    assert line.count(b"\n") == 1


def test_a_record_has_the_layout_of_its_stream() -> None:
    openai = error_record(Dialect.OPENAI, Wire.SSE, "no", "id")
    anthropic = error_record(Dialect.ANTHROPIC, Wire.SSE, "no", "id")

    assert openai == b'data: {"error":{"message":"no","type":"api_error","param":null,"code":null}}\n\n'
    assert anthropic.startswith(b'event: error\ndata: {"type":"error","error":{"type":"api_error",')
    assert anthropic.endswith(b"}\n\n")


@pytest.mark.parametrize("dialect", list(Dialect))
def test_half_a_json_body_gets_no_record(dialect: Dialect) -> None:
    assert error_record(dialect, Wire.JSON, "no", "id") == b""


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("begun", [b"", b'{"response":"a","done":false}\n', b"data: {}\n\n"])
def test_a_stream_that_ends_with_our_record_is_judged_an_error(dialect: Dialect, begun: bytes) -> None:
    operation = Operation(kind=Kind.CHAT, dialect=dialect, upstream_path="/", stream=True)
    record = error_record(dialect, operation.wire, "the instance failed", "id")

    assert judge(operation, fed(begun + record)) is Ending.ERROR


@pytest.mark.parametrize("dialect", Dialect)
def test_a_message_that_quotes_what_is_no_text_can_be_told(dialect: Dialect) -> None:
    """Header bytes and paths are text with surrogates for bytes that are none."""
    assert b"no path '/?'" in error_body(dialect, 404, "no path '/\udcff'", "id")
    assert b"no path '/?'" in error_record(dialect, Wire.NDJSON, "no path '/\udcff'", "id")
