"""What `serve` starts on this machine: who runs here already is attached, else devices are looked for, a plan
is made, and each of its instances becomes a launch. Nothing is started here.
"""

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from balancer.commands.exit_codes import BAD_USAGE, FAILED, MISSING
from balancer.commands.running import Running, look
from balancer.core.detection import Detection
from balancer.core.plan import Plan, PlannedInstance
from balancer.provisioning.devices import detect
from balancer.provisioning.last_plan import keep_plan, last_plan
from balancer.provisioning.planning import DETECT_SECONDS, planned
from balancer.provisioning.provisioned import NOTHING, Provisioned
from balancer.provisioning.runtimes import CannotLaunch, Host, launches
from balancer.provisioning.state_folder import FolderTaken, FolderUnusable, StateFolder, state_path
from balancer.settings import InstanceSettings, Provision, Settings, SettingsError

_ADVICE = (
    "name running instances instead:\n"
    "    balancer serve http://gpu1:11434 http://gpu2:11434\n"
    "or try the balancer without any Ollama:\n"
    "    balancer demo"
)

_NOT_BESIDE = (
    "the models of runtimes are not started beside an Ollama that no setting names: name it in instances"
)


class CannotProvision(Exception):
    """Nothing can be served; `exit_code` says whose fault that is."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Found:
    """`settings` name what is attached, `provisioned` is what is to be started, `sentences` tell of both."""

    settings: Settings
    provisioned: Provisioned = NOTHING
    sentences: tuple[str, ...] = ()

    def adjusted(self, asked: Settings, *, before: Settings) -> Settings:
        """Settings that were read anew, with the same attached as at the start. Other `gpu_instances` than
        those planned by are left in them, so that whoever takes the settings over sees the change."""
        if self.provisioned.launches and asked.gpu_instances == before.gpu_instances:
            asked = asked.model_copy(update={"gpu_instances": self.settings.gpu_instances})
        if asked.all_instances or self.provisioned.launches or before.all_instances:
            return asked
        return asked.model_copy(update={"instances": self.settings.instances})


async def find(settings: Settings) -> Found:
    """What is attached and what is to be started. Raises CannotProvision."""
    if settings.provision is Provision.OFF:
        if not settings.all_instances:
            raise CannotProvision(
                f"provision is off, and no instance is configured\n{_ADVICE}", exit_code=BAD_USAGE
            )
        return Found(settings)
    running = await look(settings)
    if running.attached:
        instances = tuple(InstanceSettings(url=each) for each in running.attached)
        sentences = (*running.sentences, _NOT_BESIDE) if _alone(settings) else running.sentences
        return Found(settings.model_copy(update={"instances": instances}), sentences=sentences)
    unanswered = len(running.named) < len(settings.gpu_instances)
    if settings.all_instances and not unanswered and not _alone(settings):
        return Found(settings)
    return await _provisioned(settings, running)


async def _provisioned(settings: Settings, running: Running) -> Found:
    detection = await detect(DETECT_SECONDS)
    host = Host(detection.devices, os.environ, settings)
    named = running.named
    try:
        plan = await asyncio.to_thread(_plan, settings, detection, host, running)
        plan = _without(plan, lambda each: each.name in named or not _wanted(each, settings, named))
        started = launches(plan.instances, host)
    except FolderTaken as error:
        raise CannotProvision(f"cannot hold instances: {error}", exit_code=FAILED) from error
    except SettingsError as error:
        told = detection.sentences if detection.failed else ()
        raise CannotProvision("\n".join([*told, str(error)]), exit_code=BAD_USAGE) from error
    except CannotLaunch as error:
        told = detection.sentences
        raise CannotProvision("\n".join([*told, str(error), _ADVICE]), exit_code=MISSING) from error
    attached = tuple(each for each in settings.gpu_instances if each.name in named)
    return Found(
        settings.model_copy(update={"gpu_instances": attached}),
        Provisioned(
            devices=detection.devices,
            plan=plan,
            launches=started,
            undetected=detection.reason if detection.failed else "",
        ),
        (*running.sentences, *detection.sentences, *plan.notes),
    )


def _plan(settings: Settings, detection: Detection, host: Host, running: Running) -> Plan:
    """That of before, where its instances still live; else a new one, which is kept. Raises FolderTaken, lest
    the plan of a balancer that runs be lost."""
    folder = state_path(settings.state_dir, os.environ)
    with suppress(FolderUnusable):
        StateFolder.open(folder).close()
    kept = last_plan(folder, settings, detection.devices)
    if kept is not None:
        return kept
    plan = planned(settings, host, others_stores=running.stores)
    keep_plan(folder, settings, detection.devices, plan)
    return plan


def _wanted(each: PlannedInstance, settings: Settings, answering: Collection[str]) -> bool:
    """Beside instances that are named and run already only what is named too is started."""
    named = {own.name for own in settings.gpu_instances}
    others = not settings.instances and (not named or not named <= set(answering))
    return others or each.name in named or bool(each.model_path)


def _alone(settings: Settings) -> bool:
    """Whether models get a process of their own."""
    runtimes = settings.runtimes
    of_vllm = runtimes.vllm.models if runtimes.vllm.enabled else ()
    return bool(runtimes.models or runtimes.llama_server.models or of_vllm)


def _without(plan: Plan, left_out: Callable[[PlannedInstance], bool]) -> Plan:
    devices = tuple(
        msgspec.structs.replace(
            device, instances=tuple(each for each in device.instances if not left_out(each))
        )
        for device in plan.devices
    )
    spanning = tuple(each for each in plan.spanning if not left_out(each))
    return msgspec.structs.replace(plan, devices=devices, spanning=spanning)
