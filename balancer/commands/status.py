"""`balancer status`: the fleet, the queue and the requests under way, once, as the admin listener tells
them. Where it does not tell of breakers, loads, processes and cooling slots, there are none to show."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from balancer.commands.asking import Admin, ask, plain, print_json
from balancer.commands.exit_codes import DONE
from balancer.commands.tables import age, listed, more, short_table, table

_INSTANCES = ("instance", "state", "running", "models", "loaded", "version", "url")
_QUEUE = ("#", "model", "class", "client", "waited")
_LIVE = ("request", "model", "instance", "age", "stage")
_SHOWN_FAULTS = 5
_FAULT_CHARACTERS = 300
_CLOSED = "closed"
_UP = "up"

_Row: TypeAlias = Mapping[str, Any]
"""One object of the admin API's JSON."""


def status(admin_url: str, *, as_json: bool) -> int:
    """Print it all; fails where no balancer answers."""
    return ask(admin_url, lambda admin: _status(admin, as_json))


async def _status(admin: Admin, as_json: bool) -> int:
    told = {
        "config": await admin.get("config"),
        "instances": await admin.instances(),
        "queue": await admin.get("queue"),
        "live": (await admin.get("requests"))["live"],
        "devices": await admin.get("devices"),
    }
    if as_json:
        print_json(told)
    else:
        print(render(told))
    return DONE


def render(told: _Row) -> str:
    """Tables and lines for people."""
    queue, live = told["queue"], told["live"]
    lines = table(_INSTANCES, [_instance(each) for each in told["instances"]])
    lines += ["", f"{queue['waiting']} of at most {queue['limit']} requests wait"]
    lines += short_table(_QUEUE, [_waiting(each) for each in queue["requests"]])
    lines += ["", f"{len(live)} requests are under way"]
    lines += short_table(_LIVE, [_live(each) for each in live])
    return "\n".join([*lines, "", *_config(told["config"]), *_undetected(told["devices"])])


def _instance(row: _Row) -> tuple[str, ...]:
    loaded = [_loaded(each) for each in row["runners"]]
    loading = [f"{plain(each)} (loading)" for each in row.get("loading", ())]
    return (
        row["id"],
        _state(row),
        str(row["running"]),
        str(len(row["models"])),
        listed(loading + loaded) or "-",
        plain(row["version"] or "-"),
        row["url"],
    )


def _loaded(runner: _Row) -> str:
    on_cpu = runner.get("cpu_percent")
    told = "" if on_cpu is None else f", {on_cpu:g} % on the CPU"
    return f"{plain(runner['model'])} ({runner['running']}/{runner['slots']}{told})"


def _state(row: _Row) -> str:
    """Up or not, and all that keeps requests away though it is up."""
    told = [row["state"]]
    process = (row.get("managed") or {}).get("state", _UP)
    told += [f"process {process}"] if process != _UP else []
    told += ["drained"] if row["drained"] else []
    told += ["suspect"] if row["suspect"] else []
    told += [f"breaker {row['breaker']}"] if row.get("breaker", _CLOSED) != _CLOSED else []
    of_models = [
        f"breaker {state} for {plain(model)}"
        for model, state in row.get("breakers", {}).items()
        if state != _CLOSED
    ]
    told += [listed(of_models)] if of_models else []
    cooling = row.get("cooling", 0)
    cooling = sum(cooling.values()) if isinstance(cooling, Mapping) else cooling
    told += [f"{cooling} slots cooling"] if cooling else []
    told += ["shared"] if row.get("shared") else []
    return ", ".join(told)


def _waiting(row: _Row) -> tuple[str, ...]:
    model, client = plain(row["model"] or "-"), plain(row["client"])
    return (str(row["position"]), model, row["class"], client, age(row["waited_seconds"]))


def _live(row: _Row) -> tuple[str, ...]:
    model, instance = plain(row.get("model", "-")), row.get("instance", "-")
    return (row["id"], model, instance, age(row["age_seconds"]), row["stage"])


def _config(row: _Row) -> list[str]:
    """Which one is in force; and a newer one that was refused is not to be overlooked."""
    lines = [f"configuration {row['config']}, loaded {age(row['loaded_seconds_ago'])} ago"]
    faults = [plain(each, characters=_FAULT_CHARACTERS) for each in row["refused"]]
    if faults:
        lines.append("a newer one is refused:")
        lines += [f"  {each}" for each in faults[:_SHOWN_FAULTS] + more(len(faults) - _SHOWN_FAULTS)]
    return lines


def _undetected(row: _Row) -> list[str]:
    """GPUs that may be there and are not used are not to be overlooked either."""
    why = row.get("undetected")
    return [f"GPUs are not known of: {plain(why, characters=_FAULT_CHARACTERS)}"] if why else []
