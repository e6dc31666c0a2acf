"""What the device watch tells of readings: metrics, events, word of what is lost, health of instances."""

import io
import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import pytest

from balancer.control.device_watch import DeviceWatch
from balancer.control.instance_health import InstanceHealth
from balancer.core.detection import DeviceReading
from balancer.core.ticket import InstanceId
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from balancer.fleet.offload import offloads
from balancer.telemetry.logs import make_logger
from balancer.telemetry.metrics import Metrics
from tests.fakes.gpu_machine import GIB, device
from tests.unit.unit_support import FakeClock, instance

ONE, OTHER = device(0).key, device(1).key


class Watched:
    """A watch over two devices, and all that it told."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.text = io.StringIO()
        self.log = make_logger(level="info", output_format="json", stream=self.text)
        self.lost: list[str] = []
        self.back: list[str] = []
        self.watch = DeviceWatch(
            [device(0), device(1)],
            metrics=self.metrics,
            clock=self.clock,
            log=self.log,
            on_lost=self.lost.append,
            on_back=self.back.append,
        )

    def read(self, *readings: DeviceReading, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(1)
            self.watch.take(readings)

    def events(self) -> list[tuple[str, str | None]]:
        lines = map(json.loads, self.text.getvalue().splitlines())
        return [(each["event"], each.get("device") or each.get("model")) for each in lines]

    def logged(self) -> list[Mapping[str, Any]]:
        return [json.loads(line) for line in self.text.getvalue().splitlines()]

    def faults(self, key: str, kind: str) -> float:
        return self.metrics.gpu_faults.labels(key, kind).value


@pytest.fixture
def watched() -> Watched:
    return Watched()


def health_at(watched: Watched, devices: Sequence[str]) -> float:
    return prod(watched.watch.factors_of(devices).values())


def good(key: str, **facts: Any) -> DeviceReading:
    return DeviceReading(key=key, **facts)


def lost(key: str) -> DeviceReading:
    return DeviceReading(key=key, lost="GPU is lost")


def test_good_readings_tell_nothing(watched: Watched) -> None:
    watched.read(good(ONE), good(OTHER), times=5)

    assert watched.events() == []


def test_a_lost_device_is_told_once_to_all_and_the_other_is_left_alone(watched: Watched) -> None:
    watched.read(good(ONE), good(OTHER))
    watched.read(good(ONE), lost(OTHER), times=3)

    assert (watched.lost, watched.back) == ([OTHER], [])
    assert watched.events() == [("device_fault", OTHER), ("device_lost", OTHER)]
    assert watched.logged()[1]["level"] == "error"
    assert watched.faults(OTHER, "lost") == 1
    assert (health_at(watched, [ONE]), health_at(watched, [OTHER])) == (1.0, 0.0)


def test_a_device_that_is_listed_no_more_is_lost(watched: Watched) -> None:
    watched.read(good(ONE), good(OTHER))
    watched.read(good(ONE))

    assert watched.lost == [OTHER]


def test_a_device_that_is_back_is_told_once(watched: Watched) -> None:
    watched.read(good(ONE), lost(OTHER))
    watched.read(good(ONE), good(OTHER), times=5)

    assert (watched.lost, watched.back) == ([OTHER], [OTHER])
    assert watched.events()[-1] == ("device_back", OTHER)
    assert health_at(watched, [OTHER]) == 1.0


def test_a_driver_that_does_not_answer_loses_no_device(watched: Watched) -> None:
    watched.read(good(ONE), good(OTHER))
    for _ in range(3):
        watched.clock.advance(2)
        watched.watch.missed("the driver hangs")
    watched.read(good(ONE), good(OTHER))

    assert (watched.lost, watched.back) == ([], [])
    assert watched.events() == [
        ("devices_unread", None),
        ("device_degraded", ONE),
        ("device_degraded", OTHER),
        ("devices_read_again", None),
        ("device_recovered", ONE),
        ("device_recovered", OTHER),
    ]


def test_another_reason_for_no_reading_is_told(watched: Watched) -> None:
    for problem in ("it hangs", "it hangs", "it crashed", "it hangs"):
        watched.watch.missed(problem)

    told = [each["error"] for each in watched.logged() if each["event"] == "devices_unread"]
    assert told == ["it hangs", "it crashed", "it hangs"]


def test_faults_are_counted_and_told(watched: Watched) -> None:
    watched.read(good(ONE, xids=(31, 48)), good(OTHER))

    assert watched.faults(ONE, "xid") == watched.faults(ONE, "xid_application") == 1
    assert [each["kind"] for each in watched.logged() if each["event"] == "device_fault"] == [
        "xid",
        "xid_application",
    ]
    assert ("device_degraded", ONE) in watched.events()


def test_a_reading_of_an_unknown_device_is_passed_over(watched: Watched) -> None:
    watched.read(good(ONE), good(OTHER), lost("GPU-of-someone-else"))

    assert watched.events() == []
    assert [each.key for each in watched.watch.devices()] == [ONE, OTHER]


def test_the_worst_device_of_several_counts_and_unknown_ones_do_not(watched: Watched) -> None:
    watched.read(good(ONE), good(OTHER, temperature_celsius=90, limit_celsius=90))

    hot = health_at(watched, [OTHER])
    assert 0 < hot < 1
    assert health_at(watched, [ONE, OTHER]) == hot
    assert health_at(watched, ["1"]) == hot
    assert health_at(watched, ["0"]) == health_at(watched, []) == health_at(watched, ["9"]) == 1


# -- instances


def on(name: str, *runners: tuple[str, object, object], **spec: Any) -> Instance:
    one = instance(name, cold=True, **spec)
    show(one, *runners)
    return one


def show(one: Instance, *runners: tuple[str, object, object]) -> None:
    rows = [
        {"name": model, "size": size, "size_vram": on_device, "digest": model}
        for model, size, on_device in runners
    ]
    one.read_inventory(models=None, runners=rows, slots={}, at=1.0)


def health_of(watched: Watched, *instances: Instance) -> tuple[InstanceHealth, Fleet]:
    fleet = Fleet(instances, clock=watched.clock)
    return InstanceHealth(fleet=fleet, devices=watched.watch, clock=watched.clock, log=watched.log), fleet


@pytest.mark.parametrize(
    ("size", "on_device", "cpu_share"),
    [
        *((10, 10, None), (10, 0, 1.0), (10, 5, 0.5), (10, 11, None), (0, 0, None), (10, -1, None)),
        *((10, None, None), (None, 5, None), ("10", 5, None), (10, "5", None), (True, False, None)),
        *((10.0, 5, None), (1 << 70, 5, None)),
    ],
)
def test_a_runner_below_its_size_is_on_the_cpu(
    size: object, on_device: object, cpu_share: float | None
) -> None:
    found = offloads(on("a", ("m:latest", size, on_device)))

    assert [each.cpu_share for each in found] == ([] if cpu_share is None else [cpu_share])


def test_a_model_of_the_cloud_is_nowhere_here() -> None:
    assert offloads(on("a", ("m:cloud", 10, 0))) == ()


def test_an_instance_that_is_known_to_be_on_the_cpu_is_healthy(watched: Watched) -> None:
    one = on("a", ("m:latest", 10, 0), devices=())
    health, fleet = health_of(watched, one)

    fleet.inventory_read(one, models=None, runners=None, slots={}, at=2.0)

    assert health.of(one) == 1.0
    assert watched.events() == []


@pytest.mark.parametrize("devices", [None, (ONE,), ("0",)])
def test_health_falls_with_what_is_on_the_cpu(watched: Watched, devices: tuple[str, ...] | None) -> None:
    watched.read(good(ONE), good(OTHER))
    healths = []
    for on_device in (100, 95, 50, 0):
        one = on("a", ("m:latest", 100, on_device), ("other:latest", 10, 10), devices=devices)
        healths.append(health_of(watched, one)[0].of(one))

    assert healths == pytest.approx([1.0, 0.588, 0.125, 0.067], abs=0.001)


def test_a_device_in_trouble_takes_its_instance_along(watched: Watched) -> None:
    watched.read(good(ONE), lost(OTHER))
    here, there, both = (
        on("a", devices=(ONE,)),
        on("b", devices=(OTHER,)),
        on("c", devices=(ONE, OTHER)),
    )
    health, _ = health_of(watched, here, there, both)

    assert [health.of(each) for each in (here, there, both)] == [1.0, 0.0, 0.0]


def test_an_instance_that_does_not_answer_has_no_health(watched: Watched) -> None:
    one = instance("a", up=False)

    assert health_of(watched, one)[0].of(one) == 0.0


def test_a_fall_to_the_cpu_is_told_once_for_each_change(watched: Watched) -> None:
    one = on("a")
    _, fleet = health_of(watched, one)
    for on_device in (10 * GIB, 5 * GIB, 5 * GIB, 0, 10 * GIB, 10 * GIB, 0):
        rows = [{"name": "m", "size": 10 * GIB, "size_vram": on_device}]
        fleet.inventory_read(one, models=None, runners=rows, slots={}, at=2.0)

    assert watched.events() == [
        ("runner_fell_to_cpu", "m:latest"),
        ("runner_fell_to_cpu", "m:latest"),
        ("runner_left_cpu", "m:latest"),
        ("runner_fell_to_cpu", "m:latest"),
    ]
    assert [each.get("cpu_percent") for each in watched.logged()] == [50.0, 100.0, None, 100.0]
    assert watched.logged()[0]["instance"] == "a"


def test_a_model_that_stays_on_the_cpu_is_not_told_again_when_another_falls(watched: Watched) -> None:
    one = on("a", devices=(ONE,))
    _, fleet = health_of(watched, one)
    first, second = ({"name": name, "size": 10, "size_vram": 0} for name in "mn")
    for rows in ([first], [first, second], [second]):
        fleet.inventory_read(one, models=None, runners=rows, slots={}, at=2.0)

    assert watched.events() == [
        ("runner_fell_to_cpu", "m:latest"),
        ("runner_fell_to_cpu", "n:latest"),
        ("runner_left_cpu", "m:latest"),
    ]


def test_what_was_told_of_an_instance_goes_with_it(watched: Watched) -> None:
    rows = [{"name": "m", "size": 10, "size_vram": 5}]
    _, fleet = health_of(watched, on("a"))
    for _ in range(2):
        fleet.inventory_read(fleet.get(InstanceId("a")), models=None, runners=rows, slots={}, at=2.0)
        fleet.replace([])
        fleet.replace([on("a")])

    assert watched.events() == [("runner_fell_to_cpu", "m:latest")] * 2


def test_an_instance_that_was_seen_on_the_cpu_alone_is_told_once_and_healthy(watched: Watched) -> None:
    """It may be on a machine without any GPU."""
    one = on("a")
    health, fleet = health_of(watched, one)
    for name in "mn":
        rows = [{"name": name, "size": 10, "size_vram": 0}]
        fleet.inventory_read(one, models=None, runners=rows, slots={}, at=2.0)

    assert [each.cpu_share for each in offloads(one)] == [1.0]
    assert health.of(one) == 1.0
    assert [(each["event"], each["instance"]) for each in watched.logged()] == [("instance_on_cpu", "a")]


def test_once_it_was_seen_on_a_gpu_the_cpu_is_a_fall(watched: Watched) -> None:
    one = on("a")
    health, fleet = health_of(watched, one)
    healths = []
    for on_device in (0, 10, 0):
        rows = [{"name": "m", "size": 10, "size_vram": on_device}]
        fleet.inventory_read(one, models=None, runners=rows, slots={}, at=2.0)
        healths.append(round(health.of(one), 3))

    assert healths == [1.0, 1.0, 0.067]
    assert [each["event"] for each in watched.logged()] == ["instance_on_cpu", "runner_fell_to_cpu"]


def test_another_instance_of_the_name_has_been_seen_on_nothing(watched: Watched) -> None:
    health, fleet = health_of(watched, on("a", ("m:latest", 10, 10)))
    fleet.inventory_read(fleet.get(InstanceId("a")), models=None, runners=None, slots={}, at=2.0)
    other = on("a", ("m:latest", 10, 0))

    fleet.replace([other])

    assert health.of(other) == 1.0
