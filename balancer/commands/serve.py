"""`balancer serve`: the balancer in front of instances that run already."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import uvloop

from balancer.app import Addresses, Balancer
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED, MISSING
from balancer.control.config_files import ConfigFiles
from balancer.control.reloader import ConfigSource
from balancer.errors import InstanceError
from balancer.settings import Fault, InstanceSettings, Settings, SettingsError, load
from balancer.telemetry.logs import Logger, make_logger
from balancer.upstream.control_client import ControlClient

OLLAMA_URL = "http://127.0.0.1:11434"
_COLLECT_AFTER = 20_000
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
    source = config_source(files, overrides)
    try:
        settings = source.load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    return uvloop.run(_serve(settings, source))


def config_source(files: Sequence[Path], overrides: Mapping[str, object]) -> ConfigSource:
    """The files, `.env`, the environment and the command line, to be read at the start and again."""
    dotenv = Path(".env")
    return ConfigSource(
        load=lambda: load(files, environ=os.environ, overrides=overrides, dotenv=dotenv),
        files=ConfigFiles((*files, dotenv)),
    )


async def _serve(settings: Settings, source: ConfigSource) -> int:
    outlive_hangups()
    if settings.all_instances:
        return await run_until_stopped(settings, _changed(source, _not_empty))
    if not await _answers(OLLAMA_URL):
        print(_NOTHING_FOUND, file=sys.stderr)
        return MISSING
    return await run_until_stopped(_with_local(settings), _changed(source, _with_local))


async def run_until_stopped(
    settings: Settings, source: ConfigSource, *, stop: asyncio.Event | None = None
) -> int:
    """Run a balancer until SIGTERM, SIGINT, or `stop`; a second signal ends it at once. SIGHUP reloads."""
    log = make_logger(level=settings.log.level.value, output_format=settings.log.format.value)
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop, log)
    balancer = Balancer(settings, log=log, source=source)
    _collect_seldom()
    loop.add_signal_handler(signal.SIGHUP, balancer.reloader.ask)
    try:
        await balancer.run(stop, opened=lambda addresses: announce(balancer, addresses))
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return FAILED
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        outlive_hangups()
    log.info("stopped")
    return DONE


def _collect_seldom() -> None:
    """Requests leave few cycles behind, so the collector need not look at what they allocate as often as
    by default, nor ever again at what was made for good."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 10, 10)


def outlive_hangups() -> None:
    """Let SIGHUP, which is sent for a reload, end nothing while there is nothing to reload."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)


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


def _changed(source: ConfigSource, change: Callable[[Settings], Settings]) -> ConfigSource:
    read = source.load
    return replace(source, load=lambda: change(read()))


def _with_local(settings: Settings) -> Settings:
    """With the Ollama of this machine where no instance is named, as at the start."""
    if settings.all_instances:
        return settings
    return settings.model_copy(update={"instances": (InstanceSettings(url=OLLAMA_URL),)})


def _not_empty(settings: Settings) -> Settings:
    """Instances that vanish from a file all at once are a slip rather than a wish."""
    if not settings.all_instances:
        raise SettingsError([Fault("configuration", "instances", "none is left", "at least one instance")])
    return settings


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
