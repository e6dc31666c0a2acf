"""Arguments and exit codes, nothing else: 0 done, 1 failed while running, 2 bad usage or configuration,
3 something needed is missing."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

from balancer import __version__
from balancer.commands.bench import bench
from balancer.commands.check import check
from balancer.commands.demo import DEFAULT_INSTANCES, demo
from balancer.commands.drain import drain, undrain
from balancer.commands.exit_codes import DONE, FAILED
from balancer.commands.plan import parse_gpus, plan
from balancer.commands.reload import reload
from balancer.commands.replay import STDIN, replay_file
from balancer.commands.restart import restart
from balancer.commands.serve import serve
from balancer.commands.simulate import (
    DEFAULT_SEEDS,
    HELD_OUT,
    STANDARD,
    default_strategies,
    parse_seeds,
    parse_strategies,
    simulate,
)
from balancer.commands.status import status
from balancer.core.device import Device
from balancer.scheduling.replay import FORMULAS
from balancer.settings.scenario import ScenarioModel
from balancer.simulator.virtual.fleets import parse_models

_Value = TypeVar("_Value")

_ADMIN_URL = "http://127.0.0.1:11401"
_CLIENT_URL = "http://127.0.0.1:11400"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `balancer`; ends the process with the command's exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = DONE
    except BrokenPipeError:
        # Whoever read our output has enough of it.
        _write_no_more()
        code = DONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"balancer: cannot write: {error.strerror}", file=sys.stderr)
        _write_no_more()
        code = FAILED
    sys.exit(code)


def _write_no_more() -> None:
    """Nothing may be written at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="balancer", description="One address in front of every Ollama.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ollama-balancer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_demo(commands)
    _add_check(commands)
    _add_plan(commands)
    _add_status(commands)
    _add_drain(commands)
    _add_undrain(commands)
    _add_restart(commands)
    _add_reload(commands)
    _add_bench(commands)
    _add_simulate(commands)
    _add_replay(commands)
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_serve(commands: _Commands) -> None:
    command = commands.add_parser("serve", help="balance over running instances", allow_abbrev=False)
    command.add_argument(
        "urls", nargs="*", metavar="URL", help="running instances, such as http://gpu1:11434"
    )
    _add_server_options(command)
    command.set_defaults(run=lambda parsed: serve(parsed.config, _overrides(parsed)))


def _add_demo(commands: _Commands) -> None:
    command = commands.add_parser("demo", help="the same in front of simulated instances", allow_abbrev=False)
    command.add_argument("--instances", type=_at_least_one, default=DEFAULT_INSTANCES, metavar="N")
    command.add_argument(
        "--speed", type=_above_zero, default=1.0, metavar="X", help="times as fast as a device would be"
    )
    _add_server_options(command)
    command.set_defaults(
        run=lambda parsed: demo(
            parsed.config, _overrides(parsed), instances=parsed.instances, speed=parsed.speed
        )
    )


def _add_server_options(command: argparse.ArgumentParser) -> None:
    _add_config_option(command)
    command.add_argument("--listen", metavar="HOST:PORT", help="for clients (127.0.0.1:11400)")
    command.add_argument("--admin-listen", metavar="HOST:PORT", help="for operators (127.0.0.1:11401)")
    command.add_argument("--strategy", help="how an instance is chosen")
    command.add_argument(
        "--allow-anonymous", action="store_true", default=None, help="listen beyond loopback without keys"
    )
    command.add_argument(
        "--allow-model-changes", action="store_true", default=None, help="let every client change models"
    )


def _add_config_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", action="append", default=[], type=Path, metavar="FILE", help="YAML or INI; repeatable"
    )


def _add_check(commands: _Commands) -> None:
    command = commands.add_parser("check", help="validate configuration files", allow_abbrev=False)
    command.add_argument("files", nargs="+", type=Path, metavar="FILE")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=lambda parsed: check(parsed.files, as_json=parsed.json))


def _add_plan(commands: _Commands) -> None:
    command = commands.add_parser(
        "plan", help="what would be provisioned, starting nothing", allow_abbrev=False
    )
    command.add_argument(
        "--gpus", type=_gpus, metavar="NAME:GIB,…", help="such as 'RTX 4090:24,RTX 3060:12'; those found here"
    )
    _add_config_option(command)
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=lambda parsed: plan(parsed.config, gpus=parsed.gpus, as_json=parsed.json))


def _add_status(commands: _Commands) -> None:
    command = commands.add_parser(
        "status", help="instances, queue and requests under way, once", allow_abbrev=False
    )
    _add_admin_options(command)
    command.set_defaults(run=lambda parsed: status(parsed.admin, as_json=parsed.json))


def _add_drain(commands: _Commands) -> None:
    command = commands.add_parser("drain", help="give an instance no new requests", allow_abbrev=False)
    command.add_argument("instance", metavar="INSTANCE", help="as status names it")
    command.add_argument(
        "--wait", type=_above_zero, metavar="SECONDS", help="until none runs there, at most so long"
    )
    _add_admin_options(command)
    command.set_defaults(
        run=lambda parsed: drain(parsed.admin, parsed.instance, wait_seconds=parsed.wait, as_json=parsed.json)
    )


def _add_undrain(commands: _Commands) -> None:
    command = commands.add_parser("undrain", help="give an instance requests again", allow_abbrev=False)
    command.add_argument("instance", metavar="INSTANCE", help="as status names it")
    _add_admin_options(command)
    command.set_defaults(run=lambda parsed: undrain(parsed.admin, parsed.instance, as_json=parsed.json))


def _add_restart(commands: _Commands) -> None:
    command = commands.add_parser(
        "restart", help="start instances anew that the balancer has started", allow_abbrev=False
    )
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("instance", nargs="?", metavar="INSTANCE", help="as status names it")
    which.add_argument("--all", action="store_true", help="every one, each once the one before is up")
    command.add_argument(
        "--wait", type=_above_zero, default=600.0, metavar="SECONDS", help="at most so long (600)"
    )
    _add_admin_options(command)
    command.set_defaults(
        run=lambda parsed: restart(
            parsed.admin, parsed.instance, wait_seconds=parsed.wait, as_json=parsed.json
        )
    )


def _add_reload(commands: _Commands) -> None:
    command = commands.add_parser("reload", help="load the configuration anew", allow_abbrev=False)
    _add_admin_options(command)
    command.set_defaults(run=lambda parsed: reload(parsed.admin, as_json=parsed.json))


def _add_admin_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--admin", type=_url, default=_ADMIN_URL, metavar="URL", help=f"the admin listener ({_ADMIN_URL})"
    )
    command.add_argument("--json", action="store_true")


def _add_bench(commands: _Commands) -> None:
    command = commands.add_parser("bench", help="load an address and measure", allow_abbrev=False)
    command.add_argument("--url", type=_url, default=_CLIENT_URL)
    command.add_argument("--model", help="the first that can chat")
    command.add_argument("-c", "--concurrency", type=_at_least_one, default=8, metavar="N")
    command.add_argument("-n", "--requests", type=_at_least_one, default=64, metavar="N")
    command.add_argument("--json", action="store_true")
    command.set_defaults(
        run=lambda parsed: bench(
            parsed.url,
            model=parsed.model,
            concurrency=parsed.concurrency,
            requests=parsed.requests,
            as_json=parsed.json,
        )
    )


def _add_simulate(commands: _Commands) -> None:
    command = commands.add_parser(
        "simulate", help="compare strategies and fleets in virtual time", allow_abbrev=False
    )
    command.add_argument(
        "scenario",
        metavar="SCENARIO",
        help=f"a YAML file, one that comes with the balancer, or {STANDARD}: all",
    )
    command.add_argument(
        "--strategies", type=_strategies, metavar="A,B", help="the first is the baseline (all that wait)"
    )
    command.add_argument(
        "--seeds",
        type=_seeds,
        default=DEFAULT_SEEDS,
        metavar="N",
        help=f"1 to N, or {HELD_OUT} ({DEFAULT_SEEDS})",
    )
    command.add_argument("--requests", type=_at_least_one, metavar="N", help="of each run (the scenario's)")
    command.add_argument(
        "--gpus",
        type=_gpus,
        action="append",
        default=[],
        metavar="NAME:GIB,…",
        help="instead of the scenario's, as plan has them; repeatable, to compare fleets",
    )
    command.add_argument(
        "--models",
        type=_models,
        metavar="NAME=SIZE,…",
        help="instead of the scenario's, such as llama3:8b=4.7GB",
    )
    command.add_argument(
        "--jobs", type=_at_least_one, default=len(os.sched_getaffinity(0)), metavar="N", help="runs at once"
    )
    command.add_argument("--json", action="store_true")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots")
    command.set_defaults(
        run=lambda parsed: simulate(
            parsed.scenario,
            strategies=parsed.strategies or default_strategies(),
            seeds=parsed.seeds,
            requests=parsed.requests,
            fleets=parsed.gpus,
            models=parsed.models,
            jobs=parsed.jobs,
            as_json=parsed.json,
            html=parsed.html,
        )
    )


def _add_replay(commands: _Commands) -> None:
    command = commands.add_parser(
        "replay", help="make a recorded decision again from its own facts", allow_abbrev=False
    )
    command.add_argument(
        "file", metavar="FILE", help=f"what /admin/v1/requests/ID/decision answered; {STDIN} for stdin"
    )
    command.add_argument("--strategy", choices=list(FORMULAS), help="another than the recorded one")
    command.add_argument("--json", action="store_true")
    command.set_defaults(
        run=lambda parsed: replay_file(parsed.file, strategy=parsed.strategy, as_json=parsed.json)
    )


def _overrides(parsed: argparse.Namespace) -> dict[str, object]:
    """What the command line says, by the settings' own keys; None where it says nothing."""
    return {
        "instances": getattr(parsed, "urls", None) or None,
        "listen": parsed.listen,
        "admin_listen": parsed.admin_listen,
        "strategy": parsed.strategy,
        "allow_anonymous": parsed.allow_anonymous,
        "allow_model_changes": parsed.allow_model_changes,
    }


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text[:10]) > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def _gpus(text: str) -> tuple[Device, ...]:
    return _parsed(parse_gpus, text)


def _models(text: str) -> tuple[ScenarioModel, ...]:
    return _parsed(parse_models, text)


def _strategies(text: str) -> tuple[str, ...]:
    return _parsed(parse_strategies, text)


def _seeds(text: str) -> tuple[int, ...]:
    return _parsed(parse_seeds, text)


def _parsed(parse: Callable[[str], _Value], text: str) -> _Value:
    """What a parser makes of an argument; its refusal as argparse wants it."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"'{text}' is not a URL such as {_CLIENT_URL}")
    return text
