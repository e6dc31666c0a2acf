"""`balancer serve`: the balancer in front of instances that run already."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import uvloop

from balancer.app import Addresses, Balancer
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED, MISSING
from balancer.errors import InstanceError
from balancer.settings import InstanceSettings, Settings, SettingsError, load
from balancer.telemetry.logs import Logger, make_logger
from balancer.upstream.control_client import ControlClient

OLLAMA_URL = "http://127.0.0.1:11434"
_LOOK_SECONDS = 2.0
_NOTHING_FOUND = (
    f"no instance is configured, and no Ollama answers on {OLLAMA_URL}\n"
    "install Ollama (see ollama.com/download) and start it, name running instances:\n"
    "    balancer serve http://gpu1:11434 http://gpu2:11434\n"
    "or try the balancer without any Ollama:\n"
    "    balancer demo"
)


def serve(files: Sequence[Path], overrides: Mapping[str, object]) -> int:
    """Serve until told to stop. Faults in the configuration exit 2 and start nothing."""
    try:
        settings = load(files, environ=os.environ, overrides=overrides, dotenv=Path(".env"))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    return uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    if not settings.all_instances:
        if not await _answers(OLLAMA_URL):
            print(_NOTHING_FOUND, file=sys.stderr)
            return MISSING
        settings = settings.model_copy(update={"instances": (InstanceSettings(url=OLLAMA_URL),)})
    return await run_until_stopped(settings)


async def run_until_stopped(settings: Settings, *, stop: asyncio.Event | None = None) -> int:
    """Run a balancer until SIGTERM, SIGINT, or `stop`; a second signal ends it at once."""
    log = make_logger(level=settings.log.level.value, output_format=settings.log.format.value)
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop, log)
    loop.add_signal_handler(signal.SIGHUP, log.info, "hangup_ignored")
    balancer = Balancer(settings, log=log)
    try:
        await balancer.run(stop, opened=lambda addresses: announce(balancer, addresses))
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return FAILED
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
    log.info("stopped")
    return DONE


def announce(balancer: Balancer, addresses: Addresses) -> None:
    """Say where the balancer listens, on standard output."""
    names = ", ".join(each.id for each in balancer.fleet.instances())
    with suppress(OSError):  # nobody has to read it
        print(f"ollama-balancer listens on {addresses.clients}, admin on {addresses.admin}")
        print(f"instances: {names}; strategy {balancer.settings.strategy.value}")
        print(f"point a client at it:  export OLLAMA_HOST={addresses.clients}", flush=True)
    balancer.log.info(
        "listening", clients=addresses.clients, admin=addresses.admin, metrics=addresses.metrics
    )


def _stop(stop: asyncio.Event, log: Logger) -> None:
    if stop.is_set():
        log.warning("stopped_at_once")
        sys.stdout.flush()
        os._exit(FAILED)
    stop.set()


async def _answers(url: str) -> bool:
    client = ControlClient()
    try:
        await client.get(url, "/api/version", timeout_seconds=_LOOK_SECONDS)
    except InstanceError:
        return False
    finally:
        await client.close()
    return True
