"""`adaptive` through the whole balancer: conversations stay where they are cached, and a resident model is
waited for rather than loaded once more."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from harness import CHAT, THINKER, Stack, fleet, http, quick, until

SYSTEM = "You are a patient teacher of the history of sailing. " * 40


def turn(*said: str) -> dict[str, Any]:
    """A request of a conversation whose turns were these, the last one the user's."""
    roles = ("user", "assistant") * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    options = {"num_predict": 20}
    return {"model": CHAT, "messages": messages, "stream": False, "options": options}


async def load_everywhere(stack: Stack) -> None:
    """The model is in every memory, and the balancer knows."""
    for each in stack.servers:
        async with http(each.url) as direct:
            (await direct.post("/api/generate", json={"model": CHAT})).raise_for_status()
    await stack.balancer.prober.refresh(0.0, 10.0)


async def where(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, str]:
    """Who answered, and what."""
    answer = await client.post("/api/chat", json=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-balancer-instance"], answer.json()["message"]["content"]


async def test_each_conversation_stays_where_it_began() -> None:
    async with fleet(quick(), quick(), quick(), shared=True) as stack, http(stack.url) as client:
        await load_everywhere(stack)
        homes = set()
        for talk in range(6):
            said = [f"{talk} {SYSTEM}"]
            home, answer = await where(client, turn(*said))
            homes.add(home)
            for question in ("And then?", "And after that?"):
                said += [answer, question]
                there, answer = await where(client, turn(*said))
                assert there == home
        request = stack.finished()[-1]["id"]
        async with http(stack.admin) as admin:
            told = (await admin.get(f"/admin/v1/requests/{request}/decision")).json()["decisions"][-1]

    assert len(homes) > 1, "new conversations are spread"
    assert told["strategy"] == "adaptive"
    chosen = next(each for each in told["considered"] if each["instance"] == told["picked"])
    others = [each for each in told["considered"] if each is not chosen]
    assert all(chosen["terms"]["prefill"] < 0.5 * each["terms"]["prefill"] for each in others)


async def test_a_resident_model_is_waited_for_while_the_other_instance_has_work_of_its_own() -> None:
    slow = quick(speed=20, slots=1, load_seconds=10.0)
    async with fleet(slow, slow, shared=True) as stack, http(stack.url) as client:
        one, two = stack.servers
        for server, model in ((one, CHAT), (two, THINKER)):
            async with http(server.url) as direct:
                (await direct.post("/api/generate", json={"model": model})).raise_for_status()
        await stack.balancer.prober.refresh(0.0, 10.0)
        kept_busy = asyncio.create_task(
            client.post("/api/generate", json={"model": THINKER, "prompt": "x", "stream": False})
        )
        await until(lambda: stack.balancer.dispatcher.leases)

        answers = await asyncio.gather(*(where(client, turn(f"{number}?")) for number in range(6)))

        (await kept_busy).raise_for_status()

    assert {home for home, _ in answers} == {"one"}
    assert two.seen.loads == 1
