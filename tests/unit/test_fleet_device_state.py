"""What the readings of one device come to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.detection import DeviceReading
from balancer.fleet.device_state import (
    FAULTY_SECONDS,
    STALE_SECONDS,
    DeviceState,
    Fault,
    FaultKind,
    WatchedDevice,
)
from tests.fakes.gpu_machine import GIB, device

SILENT = DeviceReading(key=device().key)
"""Of a card that tells nothing at all."""


def reading(**facts: Any) -> DeviceReading:
    values = {
        "memory_used_bytes": 4 * GIB,
        "memory_total_bytes": 24 * GIB,
        "temperature_celsius": 50,
        "limit_celsius": 90,
        "throttled": (),
        "ecc_uncorrected": 7,
        **facts,
    }
    return DeviceReading(key=device().key, **values)


def watched(*readings: DeviceReading, every: float = 1.0) -> tuple[WatchedDevice, float]:
    """A device with these readings, and the time of the last."""
    one, now = WatchedDevice(device(), 0.0), 0.0
    for each in readings:
        now += every
        one.take(each, now)
    return one, now


def test_a_device_that_was_never_read_is_stale_and_has_no_age() -> None:
    one, now = watched()

    assert (one.state(now), one.age_seconds(now), one.reading) == (DeviceState.STALE, None, None)


@pytest.mark.parametrize("first", [reading(), SILENT])
def test_a_device_that_was_read_is_ok_and_healthy(first: DeviceReading) -> None:
    one, now = watched(first)

    assert (one.state(now), one.health(now), one.age_seconds(now + 2)) == (DeviceState.OK, 1.0, 2.0)


def test_a_reading_that_did_not_come_makes_the_last_one_stale_at_once() -> None:
    one, now = watched(reading())

    one.missed()

    assert (one.state(now), one.reading) == (DeviceState.STALE, reading())


def test_a_reading_grows_stale_by_itself_and_health_falls_with_its_age() -> None:
    one, now = watched(reading())

    assert one.state(now + STALE_SECONDS) is DeviceState.OK
    assert one.state(now + STALE_SECONDS + 0.1) is DeviceState.STALE
    assert 1 > one.health(now + 6) > one.health(now + 12) > one.health(now + 60) > 0.3


def test_the_next_reading_ends_staleness() -> None:
    one, now = watched(reading())
    one.missed()

    one.take(reading(), now + 1)

    assert one.state(now + 1) is DeviceState.OK


def test_a_lost_device_is_lost_at_once_and_told_once() -> None:
    one, now = watched(reading())
    lost = DeviceReading(key=one.key, lost="GPU is lost")

    assert one.take(lost, now + 1) == [Fault(FaultKind.LOST, 1, "GPU is lost")]
    assert one.take(lost, now + 2) == []
    assert (one.state(now + 2), one.health(now + 2), one.lost) == (DeviceState.LOST, 0.0, "GPU is lost")


def test_a_lost_device_is_back_after_three_good_readings_in_a_row() -> None:
    one, now = watched(reading())
    states = []
    for good in (False, True, True, False, True, True, True):
        now += 1
        if good:
            one.take(reading(), now)
        else:
            one.gone("unlisted")
        states.append(one.state(now))

    assert states == [DeviceState.LOST] * 6 + [DeviceState.OK]


def test_a_lost_device_stays_lost_while_no_reading_comes() -> None:
    one, now = watched(reading())
    one.gone("unlisted")

    one.missed()

    assert one.state(now + 3600) is DeviceState.LOST


@pytest.mark.parametrize("xid", [48, 62, 63, 74, 79, 94, 95, 119, 999])
def test_an_xid_of_the_device_makes_it_faulty_for_a_while(xid: int) -> None:
    one, now = watched(reading(), reading())

    assert one.take(reading(xids=(xid, xid)), now) == [Fault(FaultKind.XID, 2, f"Xid {xid}")]
    assert one.state(now + STALE_SECONDS) is DeviceState.FAULTY
    assert 0 < one.health(now) < 0.2

    one.take(reading(), now + FAULTY_SECONDS)

    assert one.state(now + FAULTY_SECONDS) is DeviceState.OK


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 68, 109])
def test_an_xid_of_a_program_is_counted_and_changes_nothing(xid: int) -> None:
    one, now = watched(reading())

    assert one.take(reading(xids=(xid,)), now) == [Fault(FaultKind.XID_APPLICATION, 1, f"Xid {xid}")]
    assert (one.state(now), one.health(now)) == (DeviceState.OK, 1.0)


def test_xids_of_both_kinds_are_told_apart() -> None:
    one, now = watched(reading())

    told = one.take(reading(xids=(31, 79, 63, 31)), now)

    assert told == [
        Fault(FaultKind.XID, 2, "Xid 79, 63"),
        Fault(FaultKind.XID_APPLICATION, 2, "Xid 31"),
    ]


def test_the_xid_of_a_device_that_is_lost_by_it_is_told_too() -> None:
    one, now = watched(reading())

    told = one.take(DeviceReading(key=one.key, lost="gone", xids=(79,)), now)

    assert [each.kind for each in told] == [FaultKind.XID, FaultKind.LOST]


def test_uncorrected_errors_count_from_the_first_reading_on() -> None:
    one, now = watched(reading(ecc_uncorrected=7))

    assert one.take(reading(ecc_uncorrected=7), now) == []
    assert one.state(now) is DeviceState.OK

    (fault,) = one.take(reading(ecc_uncorrected=9), now)

    assert (fault.kind, fault.count) == (FaultKind.ECC, 2)
    assert one.state(now) is DeviceState.FAULTY


@pytest.mark.parametrize("after", [0, None])
def test_a_count_of_errors_that_begins_anew_is_no_fault(after: int | None) -> None:
    one, now = watched(reading(ecc_uncorrected=7))

    assert one.take(reading(ecc_uncorrected=after), now) == []
    assert one.take(reading(ecc_uncorrected=7 if after is None else 0), now) == []


def test_a_device_is_hot_near_its_limit_until_it_is_well_below() -> None:
    one, now = watched(reading())
    states = []
    for celsius in (86, 87, 83, 86, 82, 81, 86, 95):
        one.take(reading(temperature_celsius=celsius), now)
        states.append(one.state(now))

    ok, hot = DeviceState.OK, DeviceState.HOT
    assert states == [ok, hot, hot, hot, ok, ok, ok, hot]


def test_heat_costs_health() -> None:
    one, now = watched(reading(temperature_celsius=89))

    assert 0.3 < one.health(now) < 0.9


def test_a_device_that_was_slowed_down_counts_as_throttled_for_half_a_minute() -> None:
    one, now = watched(reading(throttled=("thermal",)))
    states = []
    for _ in range(32):
        now += 1
        one.take(reading(), now)
        states.append(one.state(now))

    assert states == [DeviceState.THROTTLED] * 30 + [DeviceState.OK] * 2


def test_health_falls_with_the_time_in_which_it_was_slowed_down() -> None:
    calm, slow = reading(), reading(throttled=("power_brake",))
    healths = [
        one.health(now)
        for one, now in (watched(*[calm] * 30), watched(*[calm] * 27, *[slow] * 3), watched(*[slow] * 30))
    ]

    assert healths[0] == 1.0
    assert healths == sorted(healths, reverse=True)
    assert healths[2] < 0.3


@pytest.mark.parametrize(
    ("used", "health"), [(0, 1.0), (22 * GIB, 1.0), (24 * GIB, 0.607), (25 * GIB, 0.607), (None, 1.0)]
)
def test_a_full_memory_costs_health(used: int | None, health: float) -> None:
    one, now = watched(reading(memory_used_bytes=used))

    assert one.health(now) == pytest.approx(health, abs=0.01)


NUMBERS = st.none() | st.integers(min_value=0, max_value=1 << 48)
READINGS = st.builds(
    DeviceReading,
    key=st.just(device().key),
    lost=st.none() | st.just("gone"),
    memory_used_bytes=NUMBERS,
    memory_total_bytes=NUMBERS,
    temperature_celsius=NUMBERS,
    limit_celsius=NUMBERS,
    throttled=st.none() | st.just(()) | st.just(("thermal",)),
    ecc_uncorrected=NUMBERS,
    xids=st.lists(st.integers(min_value=0, max_value=200), max_size=3).map(tuple),
)


@given(st.lists(st.tuples(READINGS, st.floats(min_value=0, max_value=100)), max_size=20))
def test_health_is_between_0_and_1_and_0_only_where_the_device_is_lost(
    steps: list[tuple[DeviceReading, float]],
) -> None:
    one, now = WatchedDevice(device(), 0.0), 0.0
    for each, pause in steps:
        now += pause
        one.take(each, now)

        assert 0 <= one.health(now) <= 1
        assert (one.health(now) == 0) is (one.state(now) is DeviceState.LOST)
