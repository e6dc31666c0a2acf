"""Small scenarios to draw workloads from."""

from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.scenario_file import checked
from balancer.simulator.virtual.work import Session


def scenario_of(
    *populations: dict[str, object],
    requests: int = 4000,
    context_length: int = 8192,
    devices: int = 2,
    models: tuple[str, ...] = ("a", "b", "c"),
    **workload: object,
) -> Scenario:
    listed = [{"name": name, "size_bytes": (3 + 2 * place) * 10**9} for place, name in enumerate(models)]
    return checked(
        Scenario.model_validate(
            {
                "name": "drawn",
                "requests": requests,
                "devices": [{"gpu": "RTX 4090", "count": devices, "memory_bytes": "1TiB"}],
                "models": [*listed, {"name": "e", "size_bytes": 10**9, "embeds": True}],
                "instances": {"context_length": context_length},
                "workload": {"populations": list(populations), **workload},
            }
        ),
        "drawn",
    )


def own(all_sessions: list[Session]) -> list[Session]:
    return [session for session in all_sessions if session.foreign is None]


def request_count(some: list[Session]) -> int:
    return sum(len(session.turns) for session in some)
