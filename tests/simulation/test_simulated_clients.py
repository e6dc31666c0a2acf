"""The public clients of each dialect read the simulated server without complaint."""

from __future__ import annotations

import anthropic
import ollama
import openai
from simulation_support import CHAT, EMBEDDER, SEER, THINKER, simulated


async def test_ollama_client_chats_embeds_and_lists() -> None:
    async with simulated() as client:
        api = ollama.AsyncClient(host=client.server.url)
        async with api._client:
            parts = [
                part async for part in await api.chat(CHAT, [{"role": "user", "content": "hi"}], stream=True)
            ]
            vectors = await api.embed(EMBEDDER, ["a", "b"])
            names = {model.model for model in (await api.list()).models}
            shown = await api.show(CHAT)
            resident = await api.ps()

    assert parts[-1].done
    assert len(vectors.embeddings) == 2
    assert {CHAT, THINKER, EMBEDDER, SEER} == names
    assert "completion" in (shown.capabilities or [])
    assert {model.name for model in resident.models} == {CHAT, EMBEDDER}


async def test_openai_client_chats_and_uses_responses() -> None:
    async with (
        simulated() as client,
        openai.AsyncOpenAI(base_url=f"{client.server.url}/v1", api_key="-") as api,
    ):
        answer = await api.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "hi"}])
        response = await api.responses.create(model=CHAT, input="hi")
        stream = await api.responses.create(model=CHAT, input="hi", stream=True)
        kinds = [event.type async for event in stream]
        vectors = await api.embeddings.create(model=EMBEDDER, input="a")

    assert answer.choices[0].finish_reason == "stop"
    assert response.output_text.startswith("[simulated")
    assert kinds[-1] == "response.completed"
    assert len(vectors.data[0].embedding) == 768


async def test_anthropic_client_streams_thinking_and_text() -> None:
    async with (
        simulated() as client,
        anthropic.AsyncAnthropic(base_url=client.server.url, api_key="-") as api,
        api.messages.stream(
            model=THINKER, max_tokens=400, messages=[{"role": "user", "content": "hi"}]
        ) as stream,
    ):
        message = await stream.get_final_message()

    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.stop_reason == "end_turn"
