"""What runs on this machine already, as far as `serve` heeds it: instances that `gpu_instances` name, what a
balancer before this one has left, what other balancers hold, and Ollamas that no setting names. Nothing is
started or changed here.
"""

import asyncio
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from balancer.errors import InstanceError
from balancer.provisioning.existing import Situation, look_around
from balancer.provisioning.last_plan import left_running
from balancer.provisioning.sockets import ports_of
from balancer.provisioning.state_folder import state_path
from balancer.settings import Settings
from balancer.upstream.control_client import ControlClient

OLLAMA_URL = "http://127.0.0.1:11434"
_LOOK_SECONDS = 2.0
_BESIDE = "what runs is left alone: provisioning.attach_existing is false"


@dataclass(frozen=True, slots=True)
class Running:
    """`named` are the `gpu_instances` that answer, by name. `attached` are the URLs of Ollamas that no
    setting names and that are served in place of what would be started; `stores` are the real paths of the
    models of what runs, `sentences` tell of it."""

    named: frozenset[str] = frozenset()
    attached: tuple[str, ...] = ()
    stores: frozenset[str] = frozenset()
    sentences: tuple[str, ...] = ()


async def look(settings: Settings) -> Running:
    """What runs. Takes some seconds where something listens and does not answer."""
    folder = state_path(settings.state_dir, os.environ)
    left = await asyncio.to_thread(_left_ports, folder)
    situation = await asyncio.to_thread(look_around, gpus=True, managed=left, folder=str(folder.resolve()))
    held = left.union(*(each.ports for each in situation.managed))
    told = {each.name: each.as_instance().url for each in settings.gpu_instances}
    answering = await _answering(list(told.values()), held)
    named = frozenset(name for name, url in told.items() if url in answering)
    stores = _stores(situation)
    if settings.all_instances:
        return Running(named=named, stores=stores)
    if not settings.provisioning.attach_existing:
        beside = (_BESIDE,) if situation.found else ()
        return Running(stores=stores, sentences=(*situation.sentences, *beside))
    urls = dict.fromkeys((OLLAMA_URL, *(each.url for each in situation.found if each.url)))
    answering = await _answering(list(urls), held)
    attached = tuple(each for each in urls if each in answering)
    return Running(attached=attached, stores=stores, sentences=situation.sentences)


def _stores(situation: Situation) -> frozenset[str]:
    others = (*situation.found, *situation.managed)
    return frozenset(os.path.realpath(each.models_dir) for each in others if each.models_dir)


def _left_ports(folder: Path) -> frozenset[int]:
    """Where instances listen that a balancer before this one has left: those are adopted, not attached."""
    return ports_of(left_running(folder))


async def _answering(every: Sequence[str], held: Collection[int]) -> set[str]:
    """Those at which an Ollama answers that no balancer holds."""
    urls = [each for each in every if urlsplit(each).port not in held]
    if not urls:
        return set()
    client = ControlClient()

    async def answers(url: str) -> bool:
        try:
            await client.get(url, "/api/version", timeout_seconds=_LOOK_SECONDS)
        except InstanceError:
            return False
        return True

    try:
        told = await asyncio.gather(*map(answers, urls))
    finally:
        await client.close()
    return {url for url, there in zip(urls, told, strict=True) if there}
