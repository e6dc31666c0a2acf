"""`python -m balancer.simulator`: arguments, signals and the one line that says where it listens."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence

from balancer.simulator.configuration import VERSION, ServerConfig
from balancer.simulator.faults import FaultKind
from balancer.simulator.models import DEFAULT_MODELS, parse_size, parse_spec
from balancer.simulator.server import SimulatedOllama
from balancer.simulator.service_model import ServiceRates


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or, if asked for, the end of stdin. Returns the exit code."""
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    try:
        config = config_of(chosen)
    except ValueError as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(config, faults=chosen.fault, exit_with_stdin=chosen.exit_with_stdin))
    except OSError as error:
        print(f"cannot listen on {config.host}:{config.port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line, with the server's own defaults."""
    default = ServerConfig()
    parser = argparse.ArgumentParser(
        prog="python -m balancer.simulator",
        description=f"A simulated Ollama server, {VERSION}. All seconds are simulated ones.",
    )
    add = parser.add_argument
    add("--host", default=default.host)
    add("--port", type=int, default=default.port, help="0 takes any free port")
    add("--name", default=default.name, help="shown in /simulator/state and in the first line")
    add("--model", action="append", type=parse_spec, metavar="NAME[:SIZE[:KIND]]", help="repeatable")
    add("--slots", type=int, default=default.slots, help="requests a runner works on at once")
    add("--max-loaded-models", type=int, default=default.max_loaded_models)
    add("--max-queue", type=int, default=default.max_queue, help="requests that may wait for a load")
    add(
        "--memory",
        type=_memory,
        default=default.memory_bytes,
        help="device memory, such as 24GiB; 0 is no GPU",
    )
    add("--context-length", type=int, default=default.context_length, help="0 takes the tier of the memory")
    add("--seed", type=int, default=default.seed)
    add("--speed", type=float, default=default.speed, help="simulated seconds per second")
    add("--load-seconds", type=float, default=None, help="every load takes this long")
    add(
        "--bandwidth",
        type=parse_size,
        default=int(default.rates.load_bytes_per_second),
        help="of a load, per second",
    )
    add(
        "--prefill-rate",
        type=float,
        default=default.rates.prefill_tokens_per_second,
        help="tokens per second",
    )
    add("--decode-rate", type=float, default=default.rates.decode_tokens_per_second, help="tokens per second")
    add("--keep-alive", type=float, default=default.keep_alive_seconds, help="seconds; negative is for ever")
    add("--answer-tokens", type=int, default=default.answer_tokens, help="natural length of an answer, about")
    add("--fault", action="append", type=json.loads, default=[], help=f"JSON; kinds: {', '.join(FaultKind)}")
    add("--exit-with-stdin", action="store_true", help="exit when stdin ends, and so with the parent")
    return parser


def config_of(chosen: argparse.Namespace) -> ServerConfig:
    """The configuration of a parsed command line. Raises: ValueError."""
    if chosen.speed <= 0 or chosen.slots < 1:
        raise ValueError("--speed must be above 0 and --slots at least 1")
    rates = ServiceRates(
        prefill_tokens_per_second=chosen.prefill_rate,
        decode_tokens_per_second=chosen.decode_rate,
        load_bytes_per_second=chosen.bandwidth,
    )
    return ServerConfig(
        host=chosen.host,
        port=chosen.port,
        name=chosen.name,
        models=tuple(chosen.model or DEFAULT_MODELS),
        slots=chosen.slots,
        max_loaded_models=chosen.max_loaded_models,
        max_queue=chosen.max_queue,
        memory_bytes=chosen.memory,
        context_length=chosen.context_length,
        seed=chosen.seed,
        speed=chosen.speed,
        rates=rates,
        load_seconds=chosen.load_seconds,
        keep_alive_seconds=float("inf") if chosen.keep_alive < 0 else chosen.keep_alive,
        answer_tokens=chosen.answer_tokens,
        may_kill_process=True,
    )


async def _serve(config: ServerConfig, *, faults: Sequence[dict[str, object]], exit_with_stdin: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = SimulatedOllama(config)
    for fault in faults:
        server.faults.add(fault)
    async with server.running():
        line = {"event": "listening", "url": server.url, "name": config.name, "version": VERSION}
        print(json.dumps(line), flush=True)
        if exit_with_stdin:
            try:
                loop.add_reader(sys.stdin.fileno(), _read_stdin, ended)
            except PermissionError:
                # A file or /dev/null cannot be waited on: it has its end already.
                ended.set()
        await ended.wait()


def _read_stdin(ended: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        ended.set()


def _memory(text: str) -> int:
    return 0 if text == "0" else parse_size(text)


if __name__ == "__main__":
    sys.exit(main())
