"""Reading a request's body: what routing needs, in every dialect, and nothing that it cannot mean."""

import json

import pytest
import zstandard

from balancer.core.operation import Dialect, Kind, Operation, Wire
from balancer.errors import BodyTooLarge, MalformedRequest
from balancer.protocol.parse import Parsed, parse_request, refuse_model_in_query
from balancer.protocol.routes import ROUTES, Treatment, find_route
from tests.unit.unit_support import recordings

LEASED = sorted(
    route.path for route in ROUTES if route.treatment is Treatment.LEASED and "{" not in route.path
)
JSON_BODIES = [*LEASED, "/api/show", "/api/pull", "/api/push", "/api/create", "/api/copy"]
STREAMED = sorted(
    {*LEASED, "/api/pull", "/api/push", "/api/create"}
    - {"/api/embed", "/api/embeddings", "/v1/embeddings", "/v1/audio/transcriptions"}
)


def parse(
    path: str,
    body: object,
    *,
    method: str = "POST",
    content_type: str = "application/json",
    encoding: str = "",
) -> Parsed:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(find_route(method, path), raw, content_type=content_type, content_encoding=encoding)


def operation(path: str, **body: object) -> Operation:
    return parse(path, {"model": "M", **body}).operation


@pytest.mark.parametrize("path", JSON_BODIES)
def test_a_body_names_its_model_in_every_dialect(path: str) -> None:
    key = "source" if path == "/api/copy" else "model"
    parsed = parse(path, {"x": [{key: "other"}], key: "Qwen3:8B"})

    assert parsed.operation.model == "Qwen3:8B"
    assert str(parsed.operation.variant) == "qwen3:8b"
    assert path == parsed.operation.upstream_path
    assert parsed.body is None
    assert parsed.operation.needs_slot is (path in LEASED)


@pytest.mark.parametrize(
    ("path", "kind", "dialect"),
    [
        ("/api/generate", Kind.GENERATE, Dialect.OLLAMA),
        ("/api/chat", Kind.CHAT, Dialect.OLLAMA),
        ("/api/embed", Kind.EMBED, Dialect.OLLAMA),
        ("/v1/chat/completions", Kind.CHAT, Dialect.OPENAI),
        ("/v1/completions", Kind.GENERATE, Dialect.OPENAI),
        ("/v1/responses", Kind.RESPONSE, Dialect.OPENAI),
        ("/v1/messages", Kind.CHAT, Dialect.ANTHROPIC),
        ("/api/show", Kind.SHOW, Dialect.OLLAMA),
        ("/api/pull", Kind.MANAGE, Dialect.OLLAMA),
    ],
)
def test_kind_and_dialect_come_from_the_route(path: str, kind: Kind, dialect: Dialect) -> None:
    asked = operation(path)

    assert (kind, dialect) == (asked.kind, asked.dialect)


@pytest.mark.parametrize("path", ["/api/show", "/api/pull", "/api/push", "/api/create"])
def test_an_older_client_may_say_name_for_model(path: str) -> None:
    assert parse(path, {"name": "old"}).operation.model == "old"
    assert parse(path, {"name": "library/M", "model": "m:latest"}).operation.model == "m:latest"
    assert parse(path, {"name": "old", "model": ""}).operation.model == "old"


def test_a_name_is_no_model_where_ollama_reads_none() -> None:
    with pytest.raises(MalformedRequest, match="model is required"):
        parse("/api/chat", {"name": "m"})


def test_a_copy_is_routed_by_its_source_and_a_delete_by_its_body() -> None:
    body = {"source": "a", "destination": "b", "model": "c", "name": "d"}
    assert parse("/api/copy", body).operation.model == "a"
    assert parse("/api/delete", {"name": "a"}, method="DELETE").operation.model == "a"


@pytest.mark.parametrize("path", JSON_BODIES)
@pytest.mark.parametrize(
    "body", [b"{}", b'{"model":null}', b'{"model":""}', b'{"model":5}', b'{"model":["a"]}', b'{"model":{}}']
)
def test_a_body_without_a_usable_model_is_malformed(path: str, body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse(path, body)


@pytest.mark.parametrize("name", ["a\nb", "a b", "a\x00", "x" * 513, "a\tb"])
def test_a_name_with_control_characters_or_without_end_is_malformed(name: str) -> None:
    with pytest.raises(MalformedRequest, match="invalid model name"):
        parse("/api/chat", {"model": name})


def test_a_name_of_the_greatest_length_is_taken() -> None:
    assert parse("/api/chat", {"model": "x" * 512}).operation.model == "x" * 512


@pytest.mark.parametrize("path", JSON_BODIES)
@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'"x"',
        b"5",
        b"null",
        b"{",
        b'{"model":"x"',
        b'{"model":"x"}}',
        b"\xff",
        b"{'model':'x'}",
        b'{"model":"x"}{"model":"y"}',
    ],
)
def test_a_body_that_is_no_json_object_is_malformed(path: str, body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="not a JSON object"):
        parse(path, body)


@pytest.mark.parametrize("path", JSON_BODIES)
def test_a_missing_body_is_told_in_ollamas_words(path: str) -> None:
    with pytest.raises(MalformedRequest, match=r"^missing request body$"):
        parse(path, b"")


@pytest.mark.parametrize("path", STREAMED)
def test_a_body_says_whether_its_answer_streams(path: str) -> None:
    default = find_route("POST", path).route.default_stream

    assert operation(path, stream=True).stream is True
    assert operation(path, stream=False).stream is False
    for silent in ({}, {"stream": None}):
        assert default is operation(path, **silent).stream
    for wrong in ("yes", "false", 1, 0, [], {}):
        with pytest.raises(MalformedRequest, match="'stream' must be true or false"):
            operation(path, stream=wrong)


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/v1/embeddings", "/api/show"])
def test_what_never_streams_does_not_stream_when_asked(path: str) -> None:
    assert Wire.JSON is operation(path, stream=True).wire


def test_the_spacing_of_a_body_does_not_matter() -> None:
    asked = parse(
        "/api/generate", b' {\n "model" : "x" , "stream"\t:\tfalse , "keep_alive" : 0 }\r\n'
    ).operation

    assert (asked.model, asked.stream, asked.unload) == ("x", False, True)


def test_keys_mean_the_same_in_any_case() -> None:
    asked = parse("/api/chat", {"Model": "x", "STREAM": False, "Options": {"num_ctx": 1}}).operation

    assert (asked.model, asked.stream, str(asked.variant)) == ("x", False, "x:latest?num_ctx=1")


@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions", "/api/pull", "/predict/allowed"])
@pytest.mark.parametrize("other", ["Model", "MODEL", "mOdel"])
def test_a_body_with_two_spellings_of_one_key_is_ambiguous(path: str, other: str) -> None:
    with pytest.raises(MalformedRequest, match="several spellings"):
        parse(path, {"model": "allowed", other: "other", "prompt": ""})


def test_options_that_reload_make_the_variant() -> None:
    asked = operation("/api/chat", options={"num_ctx": 8192, "temperature": 1, "num_gpu": None})

    assert str(asked.variant) == "m:latest?num_ctx=8192"


@pytest.mark.parametrize("options", [None, {}, {"temperature": 0.1}, [], "x", 5])
def test_without_options_that_reload_the_variant_is_auto(options: object) -> None:
    asked = operation("/api/chat", options=options)

    assert asked.variant is not None
    assert asked.variant.auto


@pytest.mark.parametrize(("number", "kept"), [("8192.0", 8192), ("8.5e3", 8500), ("-1.9", -1), ("1e-9", 0)])
def test_a_number_of_an_option_is_cut_as_ollama_cuts_it(number: str, kept: int) -> None:
    asked = parse("/api/embed", f'{{"model":"m","options":{{"num_ctx":{number}}}}}'.encode()).operation

    assert str(asked.variant) == f"m:latest?num_ctx={kept}"


def test_the_case_of_an_option_counts_as_it_does_in_ollama() -> None:
    assert str(operation("/api/chat", options={"NUM_CTX": 1}).variant) == "m:latest"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/api/show"])
def test_what_an_instance_does_not_read_there_makes_no_variant(path: str) -> None:
    asked = operation(path, options={"num_ctx": 1}, shift=True, keep_alive=0)

    assert (str(asked.variant), asked.keeps_model) == ("m:latest", True)


def test_an_explicit_context_is_never_the_automatic_one() -> None:
    assert operation("/api/chat").variant != operation("/api/chat", options={"num_ctx": 4096}).variant


def test_shift_is_part_of_the_variant_where_it_is_a_boolean() -> None:
    assert str(operation("/api/generate", shift=False).variant) == "m:latest?shift=False"
    assert str(operation("/api/generate", shift="no").variant) == "m:latest"


@pytest.mark.parametrize(
    "options",
    [
        b'{"num_ctx":1e999}',
        b'{"num_ctx":1e300}',
        b'{"num_ctx":9223372036854775808}',
        b'{"temperature":1e999}',
        b'{"num_ctx":1,"num_ctx":2}',
        b'{"num_ctx":1,"NUM_CTX":2}',
        b'{"num_gpu":1,"n\\u0075m_gpu":1}',
    ],
)
def test_options_that_can_be_read_in_two_ways_are_malformed(options: bytes) -> None:
    with pytest.raises(MalformedRequest, match="option"):
        parse("/api/chat", b'{"model":"x","options":' + options + b"}")


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", "0m", "0h", 0.0, -0.0, 1e-12, "0h0m", "-0.0ms", "+0"])
@pytest.mark.parametrize("content", [{}, {"prompt": ""}, {"prompt": None}])
def test_an_empty_generate_that_keeps_for_no_time_unloads(
    keep_alive: object, content: dict[str, object]
) -> None:
    asked = operation("/api/generate", keep_alive=keep_alive, **content)

    assert (asked.unload, asked.needs_slot) == (True, False)


@pytest.mark.parametrize("content", [{}, {"messages": []}, {"messages": None}])
def test_an_empty_chat_that_keeps_for_no_time_unloads(content: dict[str, object]) -> None:
    assert operation("/api/chat", keep_alive=0, **content).unload


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"prompt": "hi", "keep_alive": 0}),
        ("/api/generate", {"prompt": " ", "keep_alive": "0s"}),
        ("/api/generate", {"prompt": ""}),
        ("/api/generate", {"prompt": "", "keep_alive": None}),
        ("/api/generate", {"prompt": "", "keep_alive": "5m"}),
        ("/api/generate", {"prompt": "", "keep_alive": -1}),
        ("/api/generate", {"prompt": "", "keep_alive": False}),
        ("/api/generate", {"prompt": "", "keep_alive": "1s"}),
        ("/api/generate", {"prompt": "", "keep_alive": "0x"}),
        ("/api/generate", {"prompt": "", "keep_alive": -1e-12}),
        ("/api/chat", {"messages": [{"role": "user"}], "keep_alive": 0}),
        ("/api/embed", {"input": "", "keep_alive": 0}),
        ("/v1/completions", {"prompt": "", "keep_alive": 0}),
        ("/v1/chat/completions", {"messages": [], "keep_alive": 0}),
        ("/v1/messages", {"messages": [], "keep_alive": 0}),
    ],
)
def test_what_asks_for_more_than_an_unload_needs_a_slot(path: str, body: dict[str, object]) -> None:
    asked = operation(path, **body)

    assert (asked.unload, asked.needs_slot) == (False, True)


def test_recorded_unloads_and_no_other_recorded_request_are_seen_as_unloads() -> None:
    leased = [
        each
        for each in recordings()
        if each.method == "POST" and each.path in {"/api/generate", "/api/chat"} and each.status == 200
    ]
    assert len(leased) > 50

    for each in leased:
        asked = parse(each.path, each.request_body).operation
        unloaded = b'"done_reason":"unload"' in each.body
        assert asked.unload is unloaded, each.name


def test_predict_rewrites_the_body_with_the_model_of_the_path() -> None:
    parsed = parse("/predict/me%2Fx", {"prompt": "hi", "options": {"num_ctx": 2}, "shift": True})

    assert json.loads(parsed.body or b"") == {
        "prompt": "hi",
        "options": {"num_ctx": 2},
        "shift": True,
        "model": "me/x",
        "stream": False,
    }
    assert str(parsed.operation.variant) == "me/x:latest?num_ctx=2&shift=True"
    assert (
        parsed.operation.stream,
        parsed.operation.needs_slot,
        parsed.operation.upstream_path,
    ) == (False, True, "/api/generate")


def test_predict_streams_only_where_it_is_asked() -> None:
    parsed = parse("/predict/x", {"prompt": "hi", "Stream": True})

    assert parsed.operation.stream
    assert json.loads(parsed.body or b"") == {"prompt": "hi", "model": "x", "stream": True}


def test_predict_can_unload() -> None:
    assert parse("/predict/x", {"prompt": "", "keep_alive": 0}).operation.unload


def test_predict_takes_another_spelling_of_its_model_and_no_other_model() -> None:
    assert parse("/predict/x", {"prompt": "", "model": "library/X:latest"}).operation.model == "x"
    with pytest.raises(MalformedRequest, match="another model"):
        parse("/predict/x", {"prompt": "", "model": "y"})
    with pytest.raises(MalformedRequest, match="invalid model name"):
        parse("/predict/x", {"prompt": "", "model": "x" * 1_000_000})


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"model": "x"}])
def test_predict_wants_a_prompt(body: dict[str, object]) -> None:
    with pytest.raises(MalformedRequest, match="prompt is required"):
        parse("/predict/x", body)


def test_a_question_without_a_body_takes_its_model_from_the_path() -> None:
    assert parse("/v1/models/a%2Fb", b"", method="GET").operation.model == "a/b"
    assert parse("/api/status", b"", method="GET").operation.variant is None


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]
)
def test_a_compressed_body_is_read_and_forwarded_as_it_came(path: str) -> None:
    squeezed = zstandard.ZstdCompressor().compress(b'{"model":"x"}')

    parsed = parse(path, squeezed, encoding="zstd")

    assert (parsed.operation.model, parsed.body) == ("x", None)


def test_a_compressed_body_beyond_the_bound_is_too_large() -> None:
    squeezed = zstandard.ZstdCompressor().compress(b" " * (20 * 1024 * 1024 + 1))

    with pytest.raises(BodyTooLarge):
        parse("/v1/messages", squeezed, encoding="zstd")


def test_a_form_names_its_model_in_a_field() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nWhisper\r\n--b--\r\n'

    asked = parse("/v1/audio/transcriptions", form, content_type="multipart/form-data; boundary=b").operation

    assert (
        asked.model,
        asked.kind,
        asked.needs_slot,
        asked.stream,
    ) == ("Whisper", Kind.TRANSCRIBE, True, False)


def test_a_form_without_a_model_is_malformed() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'

    with pytest.raises(MalformedRequest, match="model is required"):
        parse("/v1/audio/transcriptions", form, content_type="Multipart/Form-Data; boundary=b")


@pytest.mark.parametrize("name", ["t", " t", "t "])
def test_blanks_around_a_name_are_none_of_it(name: str) -> None:
    parsed = parse("/api/show", {"model": name})

    assert parsed.operation.variant is not None
    assert parsed.operation.variant.model == "t:latest"


def test_half_a_character_is_read_as_ollama_reads_it() -> None:
    body = b'{"model": "t", "prompt": "cut \\ud83d emoji", "stream": false}'

    parsed = parse("/api/generate", body)

    assert (parsed.operation.model, parsed.operation.stream, parsed.body) == ("t", False, None)


@pytest.mark.parametrize(
    "body", [b'{"model":"t","x":NaN,"y":"\\ud83d"}', b'["\\ud83d"]', b'{"y":"\\ud83d"} x']
)
def test_half_a_character_excuses_nothing_else(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse("/api/generate", body)


@pytest.mark.parametrize("query", ["model=b", "a=1&model=", "%6dodel=b", "+=&model=b"])
def test_a_form_has_no_second_model_in_the_query(query: str) -> None:
    with pytest.raises(MalformedRequest):
        refuse_model_in_query(query)


def test_other_things_may_stand_in_the_query() -> None:
    refuse_model_in_query("")
    refuse_model_in_query("language=model&x=model%3Db")
