"""`balancer demo`: the same server in front of simulated instances, each a process of its own.

The processes end with this one, however it ends: each reads a pipe that only we hold open.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from balancer.commands.exit_codes import BAD_USAGE, FAILED
from balancer.commands.serve import config_source, outlive_hangups, run_until_stopped
from balancer.settings import SettingsError

DEFAULT_INSTANCES = 3
_SLOTS = 2
_START_SECONDS = 30.0


class DemoError(Exception):
    """A simulated instance did not start."""


def demo(files: Sequence[Path], overrides: Mapping[str, object], *, instances: int, speed: float) -> int:
    """Serve in front of `instances` simulated ones that run `speed` times as fast as a device would."""
    try:
        config_source(files, overrides).load()
        return uvloop.run(_demo(files, overrides, instances=instances, speed=speed))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    except DemoError as error:
        print(error, file=sys.stderr)
        return FAILED


async def _demo(
    files: Sequence[Path], overrides: Mapping[str, object], *, instances: int, speed: float
) -> int:
    outlive_hangups()
    async with simulated_instances(instances, speed=speed) as attached:
        source = config_source(files, {**overrides, "instances": attached})
        settings = source.load()
        print("these instances are simulated: their answers are made up, and say so")
        return await run_until_stopped(settings, source)


@asynccontextmanager
async def simulated_instances(count: int, *, speed: float) -> AsyncIterator[list[dict[str, object]]]:
    """So many simulated instances, as items of the setting `instances`. Raises DemoError."""
    names = [f"simulated-{index}" for index in range(1, count + 1)]
    processes: list[asyncio.subprocess.Process] = []
    try:
        for name in names:
            process = await _start(name, speed)
            processes.append(process)
        urls = await asyncio.gather(*(_url_of(each) for each in processes))
        yield [{"name": name, "url": url, "slots": _SLOTS} for name, url in zip(names, urls, strict=True)]
    finally:
        await asyncio.gather(*(_end(each) for each in processes))


async def _start(name: str, speed: float) -> asyncio.subprocess.Process:
    arguments = ["--name", name, "--port", "0", "--slots", str(_SLOTS), "--speed", str(speed)]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "balancer.simulator", "--exit-with-stdin", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the balancer, which then ends them in order
    )


async def _url_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            line = await process.stdout.readline()
    except TimeoutError as error:
        raise DemoError(f"a simulated instance did not start in {_START_SECONDS:g} s") from error
    if not line:
        raise DemoError("a simulated instance ended before it listened")
    return str(json.loads(line)["url"])


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if process.returncode is None:
        process.terminate()
    await process.wait()
