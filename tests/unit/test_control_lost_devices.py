"""What becomes of instances whose device is lost, and when they serve again."""

from __future__ import annotations

from dataclasses import replace

from balancer.control.lost_devices import LostDevices
from balancer.core.ticket import InstanceId
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance_spec import DrainedBy
from tests.fakes.gpu_machine import device
from tests.unit.unit_support import instance

FIRST, SECOND = device(0).key, device(1).key


class Rig:
    """Instances on two GPUs, one over both and one on the CPU."""

    def __init__(self) -> None:
        on = {"one": (FIRST,), "two": ("1",), "both": (FIRST, SECOND), "cpu": ()}
        self.fleet = Fleet(instance(name, devices=devices) for name, devices in on.items())
        self.restarted: list[str] = []
        self.lost_devices = LostDevices(
            devices=[device(0), device(1)],
            fleet=self.fleet,
            drain=self.drain,
            restart=self.restarted.append,
        )

    def drain(self, name: InstanceId, drained: bool) -> None:
        self.fleet.drain(self.fleet.get(name), drained=drained, by=DrainedBy.LOST_DEVICE)

    @property
    def drained(self) -> set[str]:
        return {each.id for each in self.fleet.instances() if each.drained}


def test_instances_of_a_lost_device_are_drained_and_start_anew_once_it_is_back() -> None:
    rig = Rig()

    rig.lost_devices.lost(SECOND)
    assert rig.drained == {"two", "both"}
    assert rig.restarted == []

    rig.lost_devices.back(SECOND)
    assert rig.drained == set()
    assert sorted(rig.restarted) == ["both", "two"]


def test_an_instance_over_two_lost_devices_waits_for_both() -> None:
    rig = Rig()
    rig.lost_devices.lost(FIRST)
    rig.lost_devices.lost(SECOND)

    rig.lost_devices.back(FIRST)
    assert rig.drained == {"two", "both"}
    assert rig.restarted == ["one"]

    rig.lost_devices.back(SECOND)
    assert rig.drained == set()
    assert sorted(rig.restarted) == ["both", "one", "two"]


def test_one_that_an_operator_drained_before_is_left_so_and_starts_anew() -> None:
    """An Ollama that ran on a lost device finds it only after a restart, whoever has drained it."""
    rig = Rig()
    rig.fleet.drain(rig.fleet.get(InstanceId("one")), drained=True)

    rig.lost_devices.lost(FIRST)
    rig.lost_devices.back(FIRST)

    assert rig.drained == {"one"}
    assert sorted(rig.restarted) == ["both", "one"]


def test_one_that_an_operator_drained_meanwhile_is_left_so() -> None:
    rig = Rig()
    rig.lost_devices.lost(FIRST)

    rig.fleet.drain(rig.fleet.get(InstanceId("one")), drained=True)
    rig.lost_devices.back(FIRST)

    assert rig.drained == {"one"}


def test_an_operator_puts_no_instance_back_on_a_device_that_is_lost() -> None:
    rig = Rig()
    rig.lost_devices.lost(FIRST)

    rig.fleet.drain(rig.fleet.get(InstanceId("one")), drained=False)
    assert "one" in rig.drained

    rig.lost_devices.back(FIRST)
    assert rig.drained == set()


def test_one_that_is_moved_from_a_lost_device_serves_there_and_one_that_is_moved_to_it_does_not() -> None:
    rig = Rig()
    rig.lost_devices.lost(FIRST)
    one, two = (rig.fleet.get(InstanceId(name)) for name in ("one", "two"))

    one.spec, two.spec = replace(one.spec, devices=("1",)), replace(two.spec, devices=("0",))
    rig.fleet.replace(rig.fleet.instances())
    assert rig.drained == {"two", "both"}
    assert rig.restarted == ["one"]

    rig.lost_devices.back(FIRST)
    assert rig.drained == set()


def test_an_instance_that_comes_while_its_device_is_lost_waits_for_it() -> None:
    rig = Rig()
    rig.lost_devices.lost(FIRST)

    rig.fleet.replace([*rig.fleet.instances(), instance("late", devices=("0",))])
    assert rig.drained == {"one", "both", "late"}

    rig.lost_devices.back(FIRST)
    assert rig.drained == set()
