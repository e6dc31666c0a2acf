"""`balancer serve`: the balancer in front of instances that run already, or that it starts."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import uvloop

from balancer.app import Addresses, Balancer
from balancer.commands.asking import LONG, plain
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED
from balancer.commands.provision import CannotProvision, Found, find
from balancer.control.config_files import ConfigFiles
from balancer.control.reloader import ConfigSource
from balancer.provisioning.keeper_link import KeeperFailed
from balancer.provisioning.provisioned import NOTHING, Provisioned
from balancer.provisioning.state_folder import FolderTaken, FolderUnusable
from balancer.settings import Fault, Settings, SettingsError, load
from balancer.telemetry.logs import Logger, make_logger

_COLLECT_AFTER = 20_000


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
    # Nothing runs yet that has to be stopped; and the first process of a container is deaf to what it has no
    # handler for.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    try:
        found = await find(settings)
    except CannotProvision as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for sentence in found.sentences:
        print(plain(sentence, characters=LONG))
    return await run_until_stopped(
        found.settings, _adjusted(source, found, settings), provisioned=found.provisioned
    )


async def run_until_stopped(
    settings: Settings,
    source: ConfigSource,
    *,
    provisioned: Provisioned = NOTHING,
    stop: asyncio.Event | None = None,
) -> int:
    """Run a balancer until SIGTERM, SIGINT, or `stop`; a second signal ends it at once. SIGHUP reloads."""
    log = make_logger(level=settings.log.level.value, output_format=settings.log.format.value)
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop, log)
    balancer = Balancer(settings, log=log, source=source, provisioned=provisioned)
    _collect_seldom()
    loop.add_signal_handler(signal.SIGHUP, balancer.reloader.ask)
    try:
        await balancer.run(stop, opened=lambda addresses: announce(balancer, addresses))
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return FAILED
    except (FolderTaken, FolderUnusable, KeeperFailed) as error:
        print(f"cannot hold instances: {error}", file=sys.stderr)
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


def _adjusted(source: ConfigSource, found: Found, before: Settings) -> ConfigSource:
    """As the source, with what was attached and planned at the start."""
    read = source.load

    def load_anew() -> Settings:
        asked = read()
        if before.all_instances and not asked.all_instances:
            # Instances that vanish from a file all at once are a slip rather than a wish.
            fault = Fault("configuration", "instances", "none is left", "at least one instance")
            raise SettingsError([fault])
        return found.adjusted(asked, before=before)

    return replace(source, load=load_anew)


def _stop(stop: asyncio.Event, log: Logger) -> None:
    if stop.is_set():
        log.warning("stopped_at_once")
        sys.stdout.flush()
        os._exit(FAILED)
    stop.set()
