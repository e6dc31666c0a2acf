"""Who holds a model, looked up once, and when an instance counts as settled."""

from balancer.core.names import canonical_name
from balancer.fleet.fleet import _HOLDING_LIMIT, Fleet
from balancer.fleet.health import Health, HealthPolicy
from tests.unit.unit_support import FakeClock, instance

M = canonical_name("m")


def test_who_holds_a_model_follows_lists_health_and_members() -> None:
    a, b = instance("a", models=("m",)), instance("b", models=None)
    fleet = Fleet([a, b], clock=FakeClock())
    assert fleet.holding(M) == (a, b)  # without lists it is believed to

    fleet.failed(b, "refused", refused=True, incarnation=b.incarnation)
    assert fleet.holding(M) == (a,)
    for _ in range(2):
        fleet.probe_succeeded(b, version="1", incarnation=b.incarnation)
    assert fleet.holding(M) == (a, b)

    fleet.inventory_read(b, models=[{"name": "n"}], runners=None, slots={}, at=1.0)
    assert fleet.holding(M) == (a,)
    fleet.inventory_read(b, models=[{"name": "n"}, {"name": "m"}], runners=None, slots={}, at=2.0)
    assert fleet.holding(M) == (a, b)

    fleet.replace([b])
    assert fleet.holding(M) == (b,)


def test_names_that_clients_make_up_take_a_bounded_place() -> None:
    fleet = Fleet([instance("a")], clock=FakeClock())

    for number in range(3 * _HOLDING_LIMIT):
        assert fleet.holding(canonical_name(f"made-up-{number}")) == ()

    assert len(fleet._holding) <= _HOLDING_LIMIT


def test_one_that_is_spared_is_settled_when_that_is_over_and_a_suspect_is_not() -> None:
    health = Health(HealthPolicy(slow_start_seconds=0.0))
    health.succeeded(0.0)
    assert health.settled_from <= 0.0

    for _ in range(2):
        health.failed("refused", 1.0, refused=True)
        assert health.settled_from == float("inf")
        health.succeeded(2.0)
        health.succeeded(2.0)
    assert health.held_until > 2.0
    assert health.settled_from == health.held_until

    health.failed("late", 3.0, refused=False)
    assert health.settled_from == float("inf")
    health.succeeded(4.0)
    assert health.settled_from == health.held_until
