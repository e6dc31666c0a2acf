"""Which variants are resident while loads of the balancer's own come and go."""

from balancer.core.names import canonical_name
from balancer.core.variant import Variant
from balancer.fleet.residency import Inventory, Residency, Runner

M = canonical_name("m")
AUTO = Variant(M)
SMALL, LARGE = Variant(M, (("num_ctx", 1024),)), Variant(M, (("num_ctx", 4096),))


def listed(*, at: float, context: int) -> Inventory:
    """What an instance tells that has the model loaded with such a context."""
    row = {"name": M, "context_length": context}
    return Inventory(read_at=at, models={M: row}, runners={M: Runner(M, "1", 1, None, row)})


def test_what_is_loaded_is_cold_while_other_options_are_loaded() -> None:
    residency, lists = Residency(), listed(at=0.0, context=1024)
    assert residency.warm(SMALL, lists)

    residency.began(LARGE)

    assert not residency.warm(SMALL, lists)
    assert not residency.warm(AUTO, lists)

    residency.ended(LARGE)  # it failed

    assert residency.warm(SMALL, lists)


def test_another_model_stays_warm_during_a_load() -> None:
    residency = Residency()
    residency.began(Variant(canonical_name("n")))

    assert residency.warm(AUTO, listed(at=0.0, context=2048))


def test_list_older_than_a_load_tells_nothing_of_its_runner() -> None:
    residency, before = Residency(), listed(at=1.0, context=1024)
    residency.began(LARGE)
    residency.ended(LARGE)
    residency.loaded(LARGE, at=2.0)

    assert residency.warm(LARGE, before)
    assert not residency.warm(SMALL, before)

    after = listed(at=3.0, context=4096)
    residency.lists_read(after)

    assert residency.warm(LARGE, after)
    assert not residency.warm(SMALL, after)
