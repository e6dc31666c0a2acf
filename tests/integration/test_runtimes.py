"""Models behind vLLM and llama-server are reached by Ollama's paths and by OpenAI's, as an Ollama's are."""

import asyncio
import json
from typing import Any

import pytest
import zstandard

from balancer.core.plan import Runtime
from balancer.core.ticket import InstanceId
from balancer.settings.values import RuntimeName
from tests.fakes.raw_client import Answer
from tests.fakes.running_balancer import Running, balancing
from tests.fakes.runtime_server import CHAT, CONTEXT, RuntimeServer
from tests.fakes.scripted_instance import (
    Close,
    ReadBody,
    ScriptedInstance,
    Send,
    whole,
)

pytestmark = pytest.mark.both_sinks
RUNTIMES = ["vllm", "llama-server"]


def said(answer: Answer) -> str:
    return "".join(each.get("message", {}).get("content", "") for each in answer.records)


@pytest.fixture(params=RUNTIMES)
def server(request: pytest.FixtureRequest) -> RuntimeServer:
    return RuntimeServer("m", runtime=request.param)


async def test_a_chat_streams_in_ollamas_records(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/chat", CHAT)

    told = answer.records
    assert (answer.status, answer.whole) == (200, True)
    assert answer.header("content-type") == "application/x-ndjson"
    assert [each["message"]["content"] for each in told] == ["Hel", "lo", ""]
    assert [each["done"] for each in told] == [False, False, True]
    assert {each["model"] for each in told} == {"m"}
    assert told[-1]["done_reason"] == "stop"
    assert (told[-1]["prompt_eval_count"], told[-1]["eval_count"]) == (7, 2)
    assert told[-1]["total_duration"] > 0


async def test_an_answer_in_one_piece_is_one_record(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        chat = (await running.ask("/api/chat", {**CHAT, "stream": False})).json
        generated = (await running.ask("/api/generate", {"model": "m", "prompt": "x", "stream": False})).json
        predicted = (await running.ask("/predict/m", {"prompt": "x"})).json

    assert (chat["message"], chat["done"]) == ({"role": "assistant", "content": "Hello"}, True)
    assert generated["response"] == predicted["response"] == "Hello"
    assert list(chat)[:6] == ["model", "created_at", "message", "done", "done_reason", "total_duration"]


async def test_counters_reach_the_metrics_as_those_of_an_ollama(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        await running.ask("/api/chat", CHAT)
        (finished,) = running.logged("request_finished")
        (record,) = running.balancer.ledger.recent()

    assert (finished["outcome"], finished["instance"]) == ("ok", "a")
    assert (record.counters.prompt_tokens, record.counters.generated_tokens) == (7, 2)


async def test_openai_paths_pass_byte_for_byte(server: RuntimeServer) -> None:
    body = b'{ "stream" : false,"model":"m",  "messages":[{"role":"user","content":"hi"}]}'
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/v1/chat/completions", body)
        streamed = await running.ask("/v1/chat/completions", {**CHAT, "stream": True})

    assert server.requests[0].body == body
    assert answer.json["choices"][0]["message"]["content"] == "Hello"
    assert streamed.body.endswith(b"data: [DONE]\n\n")


async def test_another_spelling_of_the_model_is_told_in_the_runtimes_own() -> None:
    server = RuntimeServer("Org/Big-Model")
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/v1/chat/completions", {**CHAT, "model": "org/big-model:latest"})
        native = await running.ask("/api/chat", {**CHAT, "model": "org/big-model:latest", "stream": False})

    assert (answer.status, native.status) == (200, 200)
    assert [each["model"] for each in server.bodies] == ["Org/Big-Model"] * 2
    assert native.json["model"] == "org/big-model:latest"


async def test_a_compressed_body_is_inflated_for_those_that_read_none(server: RuntimeServer) -> None:
    body = zstandard.compress(json.dumps(CHAT).encode())
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/v1/chat/completions", body, "Content-Encoding: zstd")

    assert answer.status == 200
    assert server.bodies == [CHAT]
    assert server.requests[0].header("content-encoding") is None


async def test_the_model_stands_in_every_list(server: RuntimeServer) -> None:
    async with (
        server.running(),
        ScriptedInstance("other").running() as other,
        balancing(server, other) as running,
    ):
        tags = (await running.ask("/api/tags", method="GET")).json["models"]
        resident = (await running.ask("/api/ps", method="GET")).json["models"]
        listed = (await running.ask("/v1/models", method="GET")).json["data"]
        shown = await running.ask("/api/show", {"model": "m"})

    assert {each["name"] for each in tags} == {"m", "other"}
    assert {each["name"] for each in resident} == {"m", "other"}
    assert {each["id"] for each in listed} == {"m", "other"}
    (own,) = [each for each in resident if each["name"] == "m"]
    assert own["context_length"] == CONTEXT
    assert own["size"] == own["size_vram"]
    assert shown.json["model_info"][f"{server.runtime}.context_length"] == CONTEXT


async def test_a_fleet_without_ollama_tells_whose_shapes_it_speaks(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        assert (await running.ask("/api/version", method="GET")).json == {"version": "0.33.0"}


async def test_slots_are_what_the_runtime_tells_or_is_known_for() -> None:
    vllm, llama = RuntimeServer("m"), RuntimeServer("m", runtime="llama-server")
    async with vllm.running(), llama.running(), balancing(vllm, llama) as running:
        rows = {each.id: each.inventory for each in running.balancer.fleet.instances()}
        slots = {name: next(iter(each.runners.values())).slots for name, each in rows.items() if each}

    assert slots == {"a": 64, "b": 2}


async def test_nothing_is_ever_loaded_there(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        loaded = await running.ask("/api/generate", {"model": "m"})
        chat = await running.ask("/api/chat", {"model": "m", "messages": []})
        asked = await running.ask("/api/chat", {**CHAT, "keep_alive": 0, "options": {"num_ctx": CONTEXT}})
        resident = (await running.ask("/api/ps", method="GET")).json["models"]
        again = await running.ask("/api/chat", CHAT)

    assert [each["name"] for each in resident] == ["m"]
    assert (loaded.json["done_reason"], loaded.json["response"]) == ("load", "")
    assert (chat.json["done_reason"], chat.json["message"]["content"]) == ("load", "")
    assert (asked.status, again.status) == (200, 200)
    assert [each.target for each in server.requests] == ["/v1/chat/completions"] * 2


async def test_it_is_told_that_nothing_can_be_unloaded(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/generate", {"model": "m", "keep_alive": 0})
        still = (await running.ask("/api/ps", method="GET")).json["models"]

    assert answer.status == 400
    assert answer.json == {"error": f"{server.runtime} keeps 'm' in memory for as long as it runs"}
    assert [each["name"] for each in still] == ["m"]


async def test_a_model_of_both_kinds_is_unloaded_where_it_can_be() -> None:
    server, ollama = RuntimeServer("m"), ScriptedInstance("m")
    async with server.running(), ollama.running(), balancing(server, ollama) as running:
        answers = [await running.ask("/api/generate", {"model": "m", "keep_alive": 0}) for _ in range(3)]

    assert {(each.status, each.header("x-balancer-instance")) for each in answers} == {(200, "b")}
    assert len(ollama.requests) == 6  # told as a resident of it, and asked for the answer
    assert server.requests == []


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"options": {"mirostat": 1}}, "option 'mirostat'"),
        ({"options": {"num_gpu": 99}}, "option 'num_gpu'"),
        ({"options": {"num_ctx": CONTEXT + 1}}, "option 'num_ctx'"),
        ({"shift": True}, "'shift'"),
        ({"format": "xml"}, "'format'"),
        ({"think": "much"}, "'think'"),
    ],
)
async def test_what_has_no_counterpart_is_refused_by_name(
    server: RuntimeServer, more: dict[str, Any], named: str
) -> None:
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/chat", {**CHAT, **more})
        (instance,) = running.balancer.fleet.instances()
        assert instance.breakers.untroubled

    assert answer.status == 400
    assert list(answer.json) == ["error"]
    assert named in answer.json["error"]
    assert server.requests == []


async def test_what_one_kind_cannot_take_goes_to_the_other() -> None:
    server = RuntimeServer("m")
    async with (
        server.running(),
        ScriptedInstance("m").running() as ollama,
        balancing(server, ollama) as running,
    ):
        for _ in range(60):  # more than the budget for tries after failures
            answer = await running.ask("/api/chat", {**CHAT, "options": {"mirostat": 2}})
            assert (answer.status, answer.header("x-balancer-instance")) == (200, "b")

    assert server.requests == []


async def test_paths_that_the_runtime_lacks_are_told_with_501_in_the_callers_dialect() -> None:
    server = RuntimeServer("m")
    async with server.running(), balancing(server) as running:
        embeddings = await running.ask("/api/embeddings", {"model": "m", "prompt": "x"})
        messages = await running.ask("/v1/messages", {**CHAT, "max_tokens": 5})
        pushed = await running.ask("/api/push", {"model": "m"})
        (instance,) = running.balancer.fleet.instances()
        assert instance.breakers.untroubled

    assert pushed.status == 501
    assert (embeddings.status, list(embeddings.json)) == (501, ["error"])
    assert (messages.status, messages.json["type"]) == (501, "error")
    assert [each.target for each in server.requests] == ["/v1/messages"]


async def test_paths_that_the_runtime_lacks_go_to_an_ollama_that_has_the_model() -> None:
    server = RuntimeServer("m")
    async with (
        server.running(),
        ScriptedInstance("m").running() as ollama,
        balancing(server, ollama) as running,
    ):
        for path, body in (("/v1/messages", {**CHAT, "max_tokens": 5}), ("/api/embeddings", CHAT)):
            for _ in range(3):
                answer = await running.ask(path, body)
                assert (answer.status, answer.header("x-balancer-instance")) == (200, "b")


async def test_embeddings_come_in_the_order_of_their_inputs(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/embed", {"model": "m", "input": ["a", "b", "c"]})
        nothing = await running.ask("/api/embed", {"model": "m", "input": []})

    assert answer.json["embeddings"] == [[0.5, 0], [0.5, 1], [0.5, 2]]
    assert answer.json["prompt_eval_count"] == 9
    assert nothing.json == {"model": "m", "embeddings": []}


async def test_a_try_at_the_other_kind_is_translated_anew() -> None:
    ollama, server = ScriptedInstance("m"), RuntimeServer("m")
    ollama.otherwise = lambda _request: (Close(),)
    async with (
        ollama.running(),
        server.running(),
        balancing(ollama, server, strategy="round_robin") as running,
    ):
        answers = [await running.ask("/api/chat", CHAT) for _ in range(3)]

    assert {said(each) for each in answers} == {"Hello"}
    assert any(each.header("x-balancer-attempts") == "2" for each in answers)


async def test_model_changes_never_go_there() -> None:
    server = RuntimeServer("m")
    async with (
        server.running(),
        ScriptedInstance("n").running() as ollama,
        balancing(server, ollama) as running,
    ):
        await running.ask("/api/pull", {"model": "x"})
        gone = await running.ask("/api/delete", {"model": "m"}, method="DELETE")

    assert [each.target for each in ollama.requests] == ["/api/pull"]
    assert gone.status == 404
    assert server.requests == []


async def test_a_server_that_still_loads_its_model_is_not_up() -> None:
    server = RuntimeServer("m", runtime="llama-server")
    server.probe_paths = frozenset({"/v1/models", "/props"})
    server.otherwise = lambda _request: (Send(server.error(503, "Loading model", "unavailable_error")),)
    async with server.running(), balancing(server, up=0) as running:
        await asyncio.wait_for(running.balancer.prober.probed.wait(), 20)
        answer = await running.ask("/api/chat", CHAT)

    assert answer.status == 503
    assert {each.target for each in server.requests} == {"/health"}


async def test_an_ollamas_own_404_passes_whatever_it_says() -> None:
    ollama = ScriptedInstance("m")
    ollama.otherwise = lambda _request: (ReadBody(), Send(whole(b'{"detail":"Not Found"}', status=404)))
    async with ollama.running(), balancing(ollama) as running:
        answer = await running.ask("/api/chat", CHAT)

    assert (answer.status, answer.body) == (404, b'{"detail":"Not Found"}')


async def test_another_runtime_at_the_same_url_is_another_instance() -> None:
    server = RuntimeServer("m")
    async with server.running(), balancing(server) as running:
        before, settings = running.balancer.fleet.get(InstanceId("a")), running.balancer.settings
        each = settings.instances[0].model_copy(update={"runtime": RuntimeName.LLAMA_SERVER})
        running.balancer.apply(settings.model_copy(update={"instances": (each,)}))
        after = running.balancer.fleet.get(InstanceId("a"))
        running.balancer.apply(running.balancer.settings)

        assert after is not before
        assert (before.runtime, after.runtime) == (Runtime.VLLM, Runtime.LLAMA_SERVER)
        assert running.balancer.fleet.get(InstanceId("a")) is after


async def reused(running: Running, server: RuntimeServer) -> int:
    for _ in range(3):
        await running.ask("/api/chat", CHAT)
    return len({id(each.connection) for each in server.requests})


async def test_connections_are_kept_between_translated_answers(server: RuntimeServer) -> None:
    async with server.running(), balancing(server) as running:
        assert await reused(running, server) == 1
