"""Loads, slots, evictions and the prefix cache behave as a real server's do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from simulation_support import CHAT, EMBEDDER, FOREVER, THINKER, Client, fast, simulated, steady, until

from balancer.simulator import Kind, ModelSpec, ServiceRates

SMALL = tuple(ModelSpec(name=f"{letter}:latest", size_bytes=10**9) for letter in "abcd")
PREFILL_SLOWLY = ServiceRates(prefill_tokens_per_second=100, decode_tokens_per_second=1e6)
LONG_TEXT = "word " * 1200
BRIEF = {"num_predict": 1}


async def test_warm_model_queues_without_bound_and_in_order() -> None:
    """The queue limit does not count requests that a resident runner can serve."""
    async with simulated(steady(max_queue=1)) as client:
        finished: list[int] = []

        async def ask(number: int) -> None:
            await client.ask(options=BRIEF, text=str(number))
            finished.append(number)

        async with client.held():
            (runner,) = client.server.scheduler.runners
            tasks = []
            for number in range(5):
                tasks.append(asyncio.create_task(ask(number)))
                await until(lambda expected=number + 1: runner.slots.waiting == expected)  # type: ignore[misc]
        await asyncio.gather(*tasks)

    assert finished == [0, 1, 2, 3, 4]


async def test_cold_requests_over_the_queue_limit_get_503() -> None:
    async with simulated(fast(max_queue=1, speed=1, load_seconds=0.3)) as client:
        body = {"model": CHAT, "messages": []}
        responses = await asyncio.gather(*(client.post("/api/chat", body) for _ in range(6)))
        texts = {(await response.json()).get("error") for response in responses}

    assert sorted(response.status for response in responses) == [200, 200, 503, 503, 503, 503]
    assert "server busy, please try again.  maximum pending requests exceeded" in texts


async def test_loading_model_is_invisible_and_warm_models_still_answer() -> None:
    async with simulated(steady(load_seconds=0)) as client:
        await client.ask(options=BRIEF)
    async with simulated(fast(speed=1, load_seconds=0.3)) as client:
        loading = client.background(options=BRIEF)
        await until(lambda: client.server.scheduler.loading == CHAT)
        during = await client.resident()
        await loading
        after = await client.resident()

    assert (during, after) == ([], [CHAT])


async def test_load_is_aborted_when_its_requester_leaves_and_followers_load_anew() -> None:
    async with simulated(fast(speed=1, load_seconds=0.4)) as client:
        leader = client.background(options=BRIEF)
        await until(lambda: client.server.scheduler.loading == CHAT)
        follower = client.background(options=BRIEF)
        await until(lambda: client.server.scheduler.pending == 1)
        leader.cancel()
        answer = await follower

        assert answer["done"] is True
        assert (client.server.seen.load_aborts, client.server.seen.loads) == (1, 1)


async def test_loads_are_serial() -> None:
    async with simulated(fast(models=SMALL, max_loaded_models=4, speed=1, load_seconds=0.05)) as client:
        tasks = [client.background(f"{letter}:latest", options=BRIEF) for letter in "abc"]
        residents = []
        for count in (1, 2, 3):
            await until(lambda expected=count: len(client.server.scheduler.runners) >= expected)  # type: ignore[misc]
            residents.append(len(client.server.scheduler.runners))
        await asyncio.gather(*tasks)

    assert residents == [1, 2, 3]


async def test_full_server_evicts_the_shortest_keep_alive() -> None:
    async with simulated(fast(models=SMALL, max_loaded_models=2)) as client:
        await client.ask("a:latest", keep_alive="1h")
        await client.ask("b:latest", keep_alive="20h")
        await client.ask("c:latest")
        resident = await client.resident()

    assert {"b:latest", "c:latest"} == set(resident)


async def test_memory_evicts_where_the_count_would_not() -> None:
    big = tuple(ModelSpec(name=name, size_bytes=8 * 10**9) for name in ("a:latest", "b:latest"))
    async with simulated(fast(models=big, memory_bytes=12 * 10**9)) as client:
        await client.ask("a:latest")
        await client.ask("b:latest")
        resident, evictions = await client.resident(), client.server.seen.evictions

    assert (resident, evictions) == (["b:latest"], 1)


async def test_model_larger_than_the_device_is_offloaded_in_part() -> None:
    async with simulated(fast(memory_bytes=10**9)) as client:
        await client.ask()
        (process,) = (await client.get("/api/ps"))["models"]

    assert 0 < process["size_vram"] < process["size"]


async def test_eviction_waits_for_busy_runners_and_overlapping_traffic_starves_it() -> None:
    """Only a gap with nothing in flight lets the other model in."""
    config = steady(models=SMALL, max_loaded_models=1, slots=2)
    async with simulated(config) as client, contextlib.AsyncExitStack() as second:
        async with client.held("a:latest"):
            starving = client.background("b:latest", options=BRIEF)
            await until(lambda: client.server.seen.evictions == 1)
            await second.enter_async_context(client.held("a:latest"))
        await until(lambda: client.server.seen.running == 1)
        await client.ask("a:latest", options=BRIEF)
        assert not starving.done()

        await second.aclose()

        assert (await starving)["done"] is True


async def test_one_starving_load_blocks_every_other_cold_model() -> None:
    async with simulated(steady(models=SMALL, max_loaded_models=1)) as client:
        async with client.held("a:latest"):
            tasks = [client.background(f"{letter}:latest", options=BRIEF) for letter in "bc"]
            await until(lambda: client.server.seen.evictions == 1)
            await until(lambda: client.server.scheduler.pending == 1)
        answers = await asyncio.gather(*tasks)

    assert all(answer["done"] for answer in answers)


async def test_changed_runner_options_reload_and_sampling_options_do_not() -> None:
    async with simulated(fast(context_length=4096)) as client:
        reloads = []
        for options in (
            {},
            {"num_ctx": 4096},
            {"temperature": 0.1, "seed": 3, "num_keep": 5},
            {"num_ctx": 2048},
            {"num_ctx": 2048},
            {},
            {"num_thread": 2},
            {"num_batch": 64},
        ):
            await client.ask(options=options)
            reloads.append(client.server.seen.reloads)
        await client.ask(options={"num_batch": 64}, shift=False)

        assert reloads == [0, 0, 0, 1, 1, 2, 3, 4]
        assert client.server.seen.reloads == 5


async def test_openai_request_reloads_a_runner_with_another_context() -> None:
    async with simulated() as client:
        await client.ask(options={"num_ctx": 2048})
        body = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}]}
        await client.post("/v1/chat/completions", body)
        (process,) = (await client.get("/api/ps"))["models"]

    assert process["context_length"] == 4096


async def test_context_over_the_trained_one_equals_it() -> None:
    async with simulated() as client:
        for num_ctx in (4096, 2048):
            body = {"model": EMBEDDER, "input": "x", "options": {"num_ctx": num_ctx}}
            await client.post("/api/embed", body)

        assert client.server.seen.reloads == 0


async def test_aliases_share_one_runner_under_the_first_name() -> None:
    async with simulated() as client:
        await client.post("/api/copy", {"source": CHAT, "destination": "alias"})
        await client.ask()
        answer = await client.ask("alias")
        resident, loads = await client.resident(), client.server.seen.loads

    assert (answer["model"], resident, loads) == ("alias", [CHAT], 1)


async def test_keep_alive_ends_an_idle_runner_and_sticks_to_it() -> None:
    async with simulated(fast(speed=100)) as client:
        await client.ask(keep_alive="1s")
        await client.ask()
        await until(lambda: client.server.seen.unloads == 1)

        assert await client.resident() == []


async def test_unload_waits_for_running_requests() -> None:
    async with simulated(steady()) as client:
        async with client.held():
            await client.post("/api/generate", {"model": CHAT, "keep_alive": 0})
            during = await client.resident()
        await until(lambda: not client.server.scheduler.runners)

    assert during == [CHAT]


async def test_prefix_cache_shortens_the_duration_and_not_the_count() -> None:
    async with simulated() as client:
        cold = await client.ask(text=LONG_TEXT)
        other = await client.ask(text="unlike " * 1200)
        again = await client.ask(text=LONG_TEXT)
        longer = await client.ask(text=LONG_TEXT + "and more")

    assert cold["prompt_eval_count"] == again["prompt_eval_count"]
    assert other["prompt_eval_duration"] > 30 * again["prompt_eval_duration"], "copied back from memory"
    assert cold["prompt_eval_duration"] > 50 * longer["prompt_eval_duration"]


async def test_conversation_finds_its_own_answer_in_the_cache() -> None:
    question = {"role": "user", "content": LONG_TEXT}
    async with simulated() as client:
        first = await client.ask(messages=[question])
        turns = [question, first["message"], {"role": "user", "content": "go on"}]
        second = await client.ask(messages=turns)

    assert second["prompt_eval_count"] > first["prompt_eval_count"] + first["eval_count"]
    assert first["prompt_eval_duration"] > 50 * second["prompt_eval_duration"]


async def test_prefix_cache_dies_with_its_runner() -> None:
    async with simulated() as client:
        first = await client.ask(text=LONG_TEXT)
        await client.post("/api/generate", {"model": CHAT, "keep_alive": 0})
        second = await client.ask(text=LONG_TEXT)

    assert first["prompt_eval_duration"] == second["prompt_eval_duration"]


async def test_busy_slots_slow_each_other_down() -> None:
    async with simulated(steady(slots=2)) as client:
        alone = await client.ask(options={"num_predict": 2})
        async with client.held():
            shared = await client.ask(options={"num_predict": 2}, text="other")

    assert shared["eval_duration"] > alone["eval_duration"]


async def test_embedding_batch_blocks_singles_for_its_whole_length() -> None:
    """Observed on a real server; reading its source suggests the opposite."""
    rates = ServiceRates(prefill_tokens_per_second=200)
    async with simulated(fast(speed=1, load_seconds=0, rates=rates, slots=4)) as client:
        finished: list[str] = []

        async def embed(name: str, given: Any) -> None:
            await client.post("/api/embed", {"model": EMBEDDER, "input": given})
            finished.append(name)

        await embed("load", [])
        (runner,) = client.server.scheduler.runners
        batch = asyncio.create_task(embed("batch", [f"text {n}" for n in range(12)]))
        await until(lambda: runner.slots.waiting == 11)
        await embed("single", "text")
        await batch

    assert runner.slots.capacity == 1
    assert finished == ["load", "batch", "single"]


async def _leave(client: Client, **fields: Any) -> None:
    """Start a request, see it run, and leave it."""
    task = client.background(**fields)
    await until(lambda: client.server.seen.running == 1)
    task.cancel()
    await until(lambda: client.server.seen.cancelled == 1)


async def test_leaving_in_prefill_keeps_the_slot_until_the_batch_ends() -> None:
    config = fast(speed=10, load_seconds=0, rates=PREFILL_SLOWLY)
    async with simulated(config) as client:
        await _leave(client, text=LONG_TEXT)
        (runner,) = client.server.scheduler.runners
        cooling = (runner.refs, runner.slots.free)
        await until(lambda: runner.slots.free == 1)
        remembered = runner.cache.held_tokens

    assert cooling == (0, 0)
    assert remembered == 0


async def test_leaving_in_decode_frees_the_slot_at_once() -> None:
    async with simulated(steady()) as client:
        await _leave(client, options=FOREVER)
        (runner,) = client.server.scheduler.runners

        assert runner.slots.free == 1


async def test_leaving_the_line_never_reaches_the_runner() -> None:
    async with simulated(steady()) as client, client.held():
        waiting = client.background()
        (runner,) = client.server.scheduler.runners
        await until(lambda: runner.slots.waiting == 1)
        waiting.cancel()
        await until(lambda: client.server.seen.cancelled == 1)

        assert (runner.slots.waiting, client.server.seen.running) == (0, 1)


async def test_crashed_runner_stays_listed_and_the_next_request_reloads() -> None:
    async with simulated(steady()) as client:
        async with client.held():
            waiting = client.background()
            (runner,) = client.server.scheduler.runners
            await until(lambda: runner.slots.waiting == 1)
            runner.crash()
            refused = await waiting
            listed = await client.resident()
        answer = await client.ask(options=BRIEF)

    assert refused["error"] == "llama-server process no longer running: unknown "
    assert listed == [CHAT]
    assert answer["done"] is True


async def test_thinking_and_embedding_models_live_side_by_side() -> None:
    models = (ModelSpec(name=THINKER, kind=Kind.THINKING), ModelSpec(name=EMBEDDER, kind=Kind.EMBEDDING))
    async with simulated(fast(models=models)) as client:
        await client.ask(THINKER)
        await client.post("/api/embed", {"model": EMBEDDER, "input": "x"})

        assert {THINKER, EMBEDDER} == set(await client.resident())
