"""Ollama's requests as OpenAI's: pairs of what comes and what goes out, and all that is refused by name."""

import base64
import json
from typing import Any

import pytest

from balancer.core.plan import Runtime
from balancer.errors import Unserved
from balancer.protocol.parse import parse_request
from balancer.protocol.routes import find_route
from balancer.protocol.translation.options import COUNTERPARTS
from balancer.protocol.translation.requests import translate
from balancer.protocol.translation.served import Served, Translated
from tests.unit.unit_support import FakeClock

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(40)).decode()
WEBP = base64.b64encode(b"RIFF\x01\x02\x03\x04WEBP" + bytes(40)).decode()
HELLO = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
VLLM, LLAMA = Runtime.VLLM, Runtime.LLAMA_SERVER
BOTH = pytest.mark.parametrize("runtime", [VLLM, LLAMA])
STREAMS: dict[str, Any] = {"model": "org/M", "stream": True, "stream_options": {"include_usage": True}}
WHOLE: dict[str, Any] = {"model": "org/M", "stream": False}
OPTIONS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.3,
    "seed": 7,
    "num_predict": 12,
    "repeat_penalty": 1.1,
    "repeat_last_n": 64,
    "typical_p": 0.7,
}
UNMAPPED = [
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "mirostat",
    "temperatur",
]


def made(path: str, body: dict[str, Any], runtime: Runtime, context: int | None = 4096) -> Translated:
    raw = json.dumps({"model": "m", **body}).encode()
    match = find_route("POST", path)
    operation = parse_request(match, raw, content_type="", content_encoding="").operation
    served = Served(runtime=runtime, name="org/M", context_length=context)
    return translate(operation, raw, served, FakeClock())


def sent(path: str, body: dict[str, Any], runtime: Runtime = VLLM, **more: Any) -> tuple[str, Any]:
    translated = made(path, body, runtime, **more)
    assert translated.method == "POST"
    return translated.target, json.loads(translated.body)


def chat(runtime: Runtime = VLLM, *messages: dict[str, Any], **more: Any) -> Any:
    target, body = sent(
        "/api/chat", {"messages": list(messages) or [HELLO], "stream": False, **more}, runtime
    )
    assert target == "/v1/chat/completions"
    return body


def refusal(path: str, body: dict[str, Any], runtime: Runtime = VLLM, **more: Any) -> str:
    with pytest.raises(Unserved) as caught:
        made(path, body, runtime, **more)
    assert caught.value.status == 400
    return str(caught.value)


@BOTH
def test_a_chat_goes_out_with_its_messages_and_streams_unless_told_otherwise(runtime: Runtime) -> None:
    asked = {
        "messages": [{"role": "system", "content": "be brief"}, HELLO],
        "keep_alive": "5m",
        "shift": False,
    }
    target, body = sent("/api/chat", asked, runtime)

    assert target == "/v1/chat/completions"
    assert body == {**STREAMS, "messages": asked["messages"]}


def test_keys_are_read_whatever_their_case_as_ollama_reads_them() -> None:
    target, body = sent("/api/chat", {"Messages": [{"Role": "user", "CONTENT": "hi"}], "Stream": False})

    assert (target, body) == ("/v1/chat/completions", {**WHOLE, "messages": [HELLO]})


def test_a_prompt_becomes_a_chat_with_its_system_text_and_images() -> None:
    asked = {"prompt": "what is this", "system": "be brief", "images": [PNG, JPEG, WEBP], "stream": False}
    target, body = sent("/api/generate", asked)

    system, user = body["messages"]
    assert target == "/v1/chat/completions"
    assert system == {"role": "system", "content": "be brief"}
    assert user["content"][0] == {"type": "text", "text": "what is this"}
    assert [each["image_url"]["url"] for each in user["content"][1:]] == [
        f"data:image/png;base64,{PNG}",
        f"data:image/jpeg;base64,{JPEG}",
        f"data:image/webp;base64,{WEBP}",
    ]


@BOTH
def test_a_raw_prompt_is_completed_past_the_template(runtime: Runtime) -> None:
    target, body = sent("/api/generate", {"prompt": "<s>x", "raw": True, "stream": False}, runtime)

    unbounded = {"max_tokens": None} if runtime is VLLM else {}  # else vLLM would end after 16 tokens
    assert (target, body) == ("/v1/completions", {**WHOLE, **unbounded, "prompt": "<s>x"})
    bound = {"prompt": "x", "raw": True, "options": {"num_predict": 3}}
    assert sent("/api/generate", bound, runtime)[1]["max_tokens"] == 3


def test_a_raw_prompt_with_a_format_is_told_in_each_runtimes_words() -> None:
    asked = {"prompt": "x", "raw": True, "format": SCHEMA, "stream": False}
    _, to_vllm = sent("/api/generate", asked, VLLM)
    _, to_llama = sent("/api/generate", asked, LLAMA)

    assert to_vllm["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (to_llama["json_schema"], "response_format" in to_llama) == (SCHEMA, False)


@BOTH
def test_formats_become_response_formats(runtime: Runtime) -> None:
    assert chat(runtime, format="json")["response_format"] == {"type": "json_object"}
    wanted = chat(runtime, format=SCHEMA)["response_format"]
    assert (wanted["type"], wanted["json_schema"]["schema"]) == ("json_schema", SCHEMA)
    assert all("response_format" not in chat(runtime, format=none) for none in ("", None))


def test_thinking_is_asked_for_through_the_template_and_its_level_as_each_runtime_takes_it() -> None:
    def asked(runtime: Runtime, think: object) -> tuple[object, object]:
        body = chat(runtime, think=think)
        return body.get("chat_template_kwargs"), body.get("reasoning_effort")

    on, off = {"enable_thinking": True, "thinking": True}, {"enable_thinking": False, "thinking": False}
    assert asked(VLLM, True) == asked(LLAMA, True) == (on, None)
    assert asked(VLLM, False) == asked(LLAMA, False) == (off, None)
    assert asked(VLLM, None) == asked(LLAMA, None) == (None, None)
    assert asked(VLLM, "high") == (on, "high")
    assert asked(LLAMA, "high") == ({**on, "reasoning_effort": "high"}, None)


def test_tools_their_calls_and_their_results_pair_up_without_ids() -> None:
    calls = [{"function": {"name": name, "arguments": {"n": n}}} for n, name in enumerate("fgf")]
    results = [
        {"role": "tool", "tool_name": "g", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3", "tool_name": "f"},
    ]
    body = chat(
        VLLM, HELLO, {"role": "assistant", "content": "", "tool_calls": calls}, *results, tools=[TOOL]
    )

    called = body["messages"][1]["tool_calls"]
    assert body["tools"] == [TOOL]
    assert [each["id"] for each in called] == ["call_0", "call_1", "call_2"]
    assert called[1]["function"] == {"name": "g", "arguments": '{"n":1}'}
    assert {each["type"] for each in called} == {"function"}
    assert [each["tool_call_id"] for each in body["messages"][2:]] == ["call_1", "call_0", "call_2"]


def test_ids_of_tool_calls_are_kept() -> None:
    call = {"id": "abc", "function": {"name": "f", "arguments": {}}}
    result = {"role": "tool", "tool_call_id": "abc", "content": "1"}
    body = chat(VLLM, HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}, result)

    assert (body["messages"][1]["tool_calls"][0]["id"], body["messages"][2]["tool_call_id"]) == ("abc", "abc")


def test_earlier_thinking_is_told() -> None:
    body = chat(VLLM, HELLO, {"role": "assistant", "content": "a", "thinking": "hm"}, HELLO)

    assert body["messages"][1] == {"role": "assistant", "content": "a", "reasoning_content": "hm"}


def test_a_last_message_of_the_assistant_is_gone_on_with() -> None:
    begun = {"role": "assistant", "content": "The answer is"}

    assert chat(VLLM, HELLO, begun)["continue_final_message"] is True
    assert chat(VLLM, HELLO, begun)["add_generation_prompt"] is False
    assert "continue_final_message" not in chat(VLLM, HELLO)
    assert "continue_final_message" not in chat(LLAMA, HELLO, begun)


def test_log_probabilities_are_asked_for() -> None:
    assert (chat(logprobs=True)["logprobs"], chat(logprobs=True)["top_logprobs"]) == (True, 0)
    assert chat(logprobs=True, top_logprobs=3)["top_logprobs"] == 3


@BOTH
def test_every_option_of_the_table_goes_out_under_its_counterpart(runtime: Runtime) -> None:
    table = COUNTERPARTS[runtime]
    body = chat(runtime, options={name: OPTIONS[name] for name in table})

    assert {name: body[name] for name in table.values()} == {table[each]: OPTIONS[each] for each in table}


def test_what_stands_for_no_bound_is_left_to_the_runtime() -> None:
    for runtime in (VLLM, LLAMA):
        body = chat(runtime, options={"num_predict": -1, "seed": -1, "temperature": None, "stop": []})
        assert body == {**WHOLE, "messages": [HELLO]}

    assert chat(VLLM, options={"top_k": 0})["top_k"] == -1
    assert chat(LLAMA, options={"top_k": 0})["top_k"] == 0
    assert chat(LLAMA, options={"repeat_last_n": -1})["repeat_last_n"] == 4096
    assert chat(options={"stop": "x"})["stop"] == ["x"]


@BOTH
@pytest.mark.parametrize("option", UNMAPPED)
def test_an_option_without_a_counterpart_is_refused_by_its_name(runtime: Runtime, option: str) -> None:
    told = refusal("/api/chat", {"messages": [HELLO], "options": {option: 1}}, runtime)

    assert told == f"option '{option}' has no counterpart in {runtime.value}"


def test_options_that_only_one_runtime_has_are_refused_at_the_other() -> None:
    for option in ("repeat_last_n", "typical_p"):
        assert option in refusal("/api/chat", {"messages": [HELLO], "options": {option: 1}}, VLLM)


@pytest.mark.parametrize(("length", "context"), [(4097, 4096), (1, None)])
def test_a_context_beyond_what_is_served_is_refused(length: int, context: int | None) -> None:
    asked = {"messages": [HELLO], "options": {"num_ctx": length}}

    assert "num_ctx" in refusal("/api/chat", asked, context=context)
    assert chat(options={"num_ctx": 4096}) == {**WHOLE, "messages": [HELLO]}


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/api/chat", {"shift": True}),
        ("/api/chat", {"truncate": True}),
        ("/api/chat", {"_debug_render_only": True}),
        ("/api/generate", {"template": "{{ .Prompt }}"}),
        ("/api/generate", {"context": [1, 2]}),
        ("/api/generate", {"suffix": "}"}),
    ],
)
@BOTH
def test_a_field_without_a_counterpart_is_refused_by_its_name(
    runtime: Runtime, path: str, more: dict[str, Any]
) -> None:
    told = refusal(path, {"messages": [HELLO], "prompt": "x", **more}, runtime)

    assert told == f"'{next(iter(more))}' has no counterpart in {runtime.value}"


@pytest.mark.parametrize("field", ["system", "images", "think", "logprobs"])
def test_a_raw_prompt_takes_nothing_that_needs_the_template(field: str) -> None:
    assert field in refusal("/api/generate", {"prompt": "x", "raw": True, field: ["x"]})


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"options": []}, "options"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"temperature": True}}, "temperature"),
        ({"options": {"num_ctx": "long"}}, "num_ctx"),
        ({"options": {"stop": [1]}}, "stop"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "message"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"messages": [{**HELLO, "images": "x"}]}, "images"),
        ({"messages": [{**HELLO, "images": ["!"]}]}, "image"),
        ({"messages": [{**HELLO, "images": ["AAAA"]}]}, "image"),
        ({"messages": [{"role": "assistant", "tool_calls": {}, "content": ""}, {"role": 3}]}, "role"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "x"}}]}]},
            "arguments",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "function"),
        ({"format": 3}, "format"),
        ({"think": "deeply"}, "think"),
        ({"think": ["low"]}, "think"),
        ({"think": {}}, "think"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(more: dict[str, Any], named: str) -> None:
    assert named in refusal("/api/chat", {"messages": [HELLO], **more})


@BOTH
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": []}),
        ("/api/generate", {}),
        ("/api/embed", {}),
        ("/api/show", {}),
    ],
)
def test_what_asks_for_no_work_only_asks_whether_the_model_is_there(
    runtime: Runtime, path: str, body: dict[str, Any]
) -> None:
    translated = made(path, body, runtime)

    assert (translated.method, translated.target, translated.body) == ("GET", "/v1/models", b"")


@pytest.mark.parametrize(("path", "nothing"), [("/api/chat", {"messages": []}), ("/api/generate", {})])
def test_to_unload_is_refused(path: str, nothing: dict[str, Any]) -> None:
    assert "keeps 'm' in memory" in refusal(path, {**nothing, "keep_alive": 0})


def test_embeddings_are_asked_for_and_cut_as_ollama_cuts_them_where_that_can_be_said() -> None:
    asked: dict[str, Any] = {"input": ["a", "b"], "dimensions": 8}
    common = {"model": "org/M", "input": ["a", "b"], "encoding_format": "float", "dimensions": 8}

    assert sent("/api/embed", asked) == ("/v1/embeddings", {**common, "truncate_prompt_tokens": -1})
    assert sent("/api/embed", {**asked, "truncate": False}) == ("/v1/embeddings", common)
    assert sent("/api/embed", asked, LLAMA) == ("/v1/embeddings", common)
    assert "truncate" in refusal("/api/embed", {**asked, "truncate": True}, LLAMA)
    assert "temperature" in refusal("/api/embed", {**asked, "options": {"temperature": 1}})
    assert "invalid input type" in refusal("/api/embed", {"input": [[1, 2]]})
    assert sent("/api/embed", {"input": "a"}, LLAMA)[1]["input"] == ["a"]
