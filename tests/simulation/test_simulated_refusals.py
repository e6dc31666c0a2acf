"""What a request may not hold is refused with Ollama's status and the words of Go's decoder."""

from __future__ import annotations

from typing import Any

import pytest
from simulation_support import CHAT, EMBEDDER, simulated

from balancer.simulator.json_syntax import SyntaxProblem, first_value
from balancer.simulator.runner_options import WrongOptionType, check_type

ASKED = [{"role": "user", "content": "hi"}]
UNMARSHAL = "json: cannot unmarshal"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("temperature", "a", "must be of type float32"),
        ("top_p", True, "must be of type float32"),
        ("frequency_penalty", [1], "must be of type float32"),
        ("num_ctx", "a", "must be of type integer"),
        ("num_ctx", True, "must be of type integer"),
        ("draft_num_predict", {}, "must be of type integer"),
        ("use_mmap", 1, "must be of type boolean"),
        ("stop", "x", "must be of type array"),
        ("stop", 3, "must be of type array"),
        ("stop", ["a", 3], "must be of an array of strings"),
        ("stop", [None], "must be of an array of strings"),
    ],
)
def test_options_of_a_wrong_type_are_told_by_name(name: str, value: Any, problem: str) -> None:
    with pytest.raises(WrongOptionType) as raised:
        check_type(name, value)

    assert str(raised.value) == f'option "{name}" {problem}'


@pytest.mark.parametrize(
    ("name", "value"), [("num_ctx", 2048.7), ("temperature", 1), ("temperature", None), ("nonsense", "a")]
)
def test_fractions_nulls_and_unknown_options_are_let_through(name: str, value: Any) -> None:
    check_type(name, value)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"model": CHAT, "prompt": "hi"}),
        ("/api/generate", {"model": CHAT}),
        ("/api/chat", {"model": CHAT, "messages": ASKED, "stream": True}),
        ("/api/embed", {"model": EMBEDDER, "input": "hi"}),
        ("/api/embeddings", {"model": EMBEDDER, "prompt": "hi"}),
    ],
)
async def test_every_native_route_answers_500_to_an_option_of_a_wrong_type(
    path: str, body: dict[str, Any]
) -> None:
    async with simulated() as client:
        response = await client.post(path, {**body, "options": {"temperature": "a"}})
        told = await response.json()

    assert (response.status, response.headers["Content-Type"]) == (500, "application/json; charset=utf-8")
    assert told == {"error": 'option "temperature" must be of type float32'}


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v1/chat/completions", {"messages": ASKED, "temperature": "a"}, "ChatCompletionRequest float64"),
        ("/v1/completions", {"prompt": "hi", "temperature": "a"}, "CompletionRequest float32"),
        (
            "/v1/messages",
            {"messages": ASKED, "max_tokens": 2, "temperature": "a"},
            "MessagesRequest float64",
        ),
        ("/v1/responses", {"input": "hi", "temperature": "a"}, "ResponsesRequest float64"),
    ],
)
async def test_v1_routes_answer_400_to_a_sampling_value_that_is_no_number(
    path: str, body: dict[str, Any], error: str
) -> None:
    go_type, go_name = error.split()
    async with simulated() as client:
        response = await client.post(path, {"model": CHAT, **body})
        told = (await response.json())["error"]["message"]

    assert response.status == 400
    assert told == f"{UNMARSHAL} string into Go struct field {go_type}.temperature of type {go_name}"


async def test_v1_ignores_a_stop_that_is_neither_text_nor_list() -> None:
    body = {"model": CHAT, "messages": ASKED, "max_tokens": 2}
    async with simulated() as client:
        number = await client.post("/v1/chat/completions", {**body, "stop": 3})
        mixed = await client.post("/v1/chat/completions", {**body, "stop": ["zzz", 3]})
        logprobs = await client.post("/v1/chat/completions", {**body, "top_logprobs": 21})

    assert [number.status, mixed.status, logprobs.status] == [200, 200, 400]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"messages": "x"},
            f"{UNMARSHAL} string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            {"messages": ["x"]},
            f"{UNMARSHAL} string into Go struct field ChatRequest.messages of type api.Alias",
        ),
        (
            {"messages": [{"role": 3}]},
            f"{UNMARSHAL} number into Go struct field ChatRequest.messages.role of type string",
        ),
        (
            {"messages": [{"role": "user", "content": ["x"]}]},
            f"{UNMARSHAL} array into Go struct field ChatRequest.messages.content of type string",
        ),
        ({"messages": [{"role": "user", "images": ["%%"]}]}, "illegal base64 data at input byte 0"),
        ({"tools": ["x"]}, f"{UNMARSHAL} string into Go struct field ChatRequest.tools of type api.Tool"),
        (
            {"tools": [{"function": "x"}]},
            f"{UNMARSHAL} string into Go struct field Tool.tools.function of type api.ToolFunction",
        ),
        ({"truncate": "x"}, f"{UNMARSHAL} string into Go struct field ChatRequest.truncate of type bool"),
        ({"think": 3}, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'),
        ({"keep_alive": {}}, "Unsupported type: 'map[string]interface {}'"),
    ],
)
async def test_fields_of_a_wrong_shape_are_refused_and_never_crash(
    fields: dict[str, Any], error: str
) -> None:
    async with simulated() as client:
        response = await client.post("/api/chat", {"model": CHAT, "messages": ASKED, **fields})
        told = (await response.json())["error"]

    assert (response.status, told) == (400, error)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_lists_of_texts_where_objects_belong_are_refused_on_v1(path: str) -> None:
    async with simulated() as client:
        body = {"model": CHAT, "max_tokens": 2, "messages": ["x"], "input": ["x"]}
        response = await client.post(path, body)
        told = (await response.json())["error"]["message"]

    assert response.status == 400
    assert f"{UNMARSHAL} string into Go" in told


async def test_a_format_that_is_no_schema_is_refused_with_500() -> None:
    async with simulated() as client:
        told = [await client.ask(format=wrong) for wrong in (3, True, [1], "xml")]

    given = ('"3"', '"true"', '"[1]"', r'"\"xml\""')
    wanted = 'expected "json" or a valid JSON Schema object'
    assert [one["error"] for one in told] == [f"invalid format: {one}; {wanted}" for one in given]


async def test_older_embeddings_route_answers_500_where_the_newer_tells_more() -> None:
    async with simulated() as client:
        long = await client.post("/api/embeddings", {"model": EMBEDDER, "prompt": "word " * 4000})
        chat = await client.post("/api/embeddings", {"model": CHAT, "prompt": "hi"})
        error = (await long.json())["error"]

    assert (long.status, chat.status) == (500, 500)
    assert error == "the input length exceeds the context length"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a":x}', "invalid character 'x' looking for beginning of value"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b"{'a':1}", r"invalid character '\'' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b'{"a":[1 2]}', "invalid character '2' after array element"),
        (b'{"a":"\x01"}', r"invalid character '\x01' in string literal"),
        (b'{"a":"\\q"}', "invalid character 'q' in string escape code"),
        (b'{"a":tru}', "invalid character '}' in literal true (expecting 'e')"),
        (b'{"a":"b', "unexpected EOF"),
        (b'{"a":', "unexpected EOF"),
        (b"[1,", "unexpected EOF"),
    ],
)
def test_broken_json_is_told_in_gos_words(text: bytes, problem: str) -> None:
    with pytest.raises(SyntaxProblem) as raised:
        first_value(text)

    assert str(raised.value) == problem


@pytest.mark.parametrize(
    ("text", "value"), [(b' {"a":1} x', {"a": 1}), (b'{"a":1}}', {"a": 1}), (b'"\xff"', "\ufffd")]
)
def test_what_follows_the_first_value_and_bad_utf8_do_no_harm(text: bytes, value: object) -> None:
    assert first_value(text) == value


async def test_names_of_fields_match_in_any_letter_case_and_null_is_an_empty_body() -> None:
    async with simulated() as client:
        loaded = await client.post("/api/chat", {"MODEL": CHAT, "Stream": False})
        empty = await client.session.post("/api/chat", data=b"null")
        error = (await empty.json())["error"]

    assert (loaded.status, empty.status, error) == (200, 400, "model is required")
