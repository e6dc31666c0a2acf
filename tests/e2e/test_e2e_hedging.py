"""A simulated instance that hesitates: a second one answers in its place, and it is rid of the request."""

from balancer.simulator import ServiceRates
from tests.e2e.harness import CHAT, fleet, http, quick, until

SHORT = {
    "model": CHAT,
    "prompt": "why is the sky blue?",
    "stream": False,
    "options": {"temperature": 0, "num_predict": 8},
}
RATES = ServiceRates(decode_tokens_per_second=50, prefill_tokens_per_second=2000)
ENOUGH = 20


async def test_where_one_instance_becomes_slow_the_other_answers_and_the_first_is_cancelled() -> None:
    config = quick(speed=100, rates=RATES, load_seconds=0)
    hedging = {"enabled": True, "max_share": 0.2}
    async with (
        fleet(config, config, shared=True, strategy="round_robin", hedging=hedging) as stack,
        http(stack.url) as client,
    ):
        for _ in range(2 * ENOUGH):
            assert (await client.post("/api/generate", json=SHORT)).status_code == 200
        assert min(stack.asked("/api/generate")) > 0
        slow = stack.servers[0]
        slow.faults.add({"kind": "slow", "factor": 1e6})

        answers = [
            await client.post("/api/generate", json=SHORT) for _ in range(2)
        ]  # one of them begins there

        assert [each.json()["done"] for each in answers] == [True, True]
        assert [each.headers["x-balancer-instance"] for each in answers] == ["two", "two"]
        hedged = [each for each in stack.finished()[-2:] if each.get("hedge") == "won"]
        assert hedged
        await until(lambda: slow.seen.cancelled >= len(hedged))
        assert stack.balancer.dispatcher.leases == ()
