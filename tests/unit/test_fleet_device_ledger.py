"""The device ledger: no device is promised more than it has, idle siblings lend, busy ones keep theirs."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer.core.ticket import InstanceId
from balancer.fleet.device_ledger import DeviceLedger, Holding, Promise, Share

A, B, C, ALL = (InstanceId(each) for each in ("a", "b", "c", "all"))


def ledger() -> DeviceLedger:
    """One device of 24 cut in three, another one whole, and an instance over both."""
    it = DeviceLedger()
    shares = {
        A: Share(devices=("0",), bytes_each=8),
        B: Share(devices=("0",), bytes_each=8),
        C: Share(devices=("1",), bytes_each=24),
        ALL: Share(devices=("0", "1"), bytes_each=0),
    }
    it.use({"0": 24, "1": 24}, shares)
    return it


def holds(instance: InstanceId, used: int = 0, *, busy: bool = False) -> Holding:
    return Holding(instance, used, busy)


def test_idle_siblings_lend_their_shares() -> None:
    it = ledger()

    assert it.promise(A, 20, [holds(A), holds(B)]) is not None
    assert it.promise(B, 5, [holds(A), holds(B)]) is None
    assert it.promise(B, 4, [holds(A), holds(B)]) is not None


def test_busy_siblings_keep_what_they_have_not_used() -> None:
    it = ledger()

    assert it.promise(A, 17, [holds(A), holds(B, 3, busy=True)]) is None
    assert it.promise(A, 16, [holds(A), holds(B, 3, busy=True)]) is not None


def test_what_a_busy_sibling_uses_beyond_its_share_is_its_own_all_the_same() -> None:
    it = ledger()

    assert it.promise(A, 13, [holds(A), holds(B, 12, busy=True)]) is None
    assert it.promise(A, 12, [holds(A), holds(B, 12, busy=True)]) is not None


def test_spanning_instance_takes_an_equal_part_of_each_device() -> None:
    it = ledger()
    promise = it.promise(ALL, 31, [holds(A, 8), holds(C, 8)])

    assert promise is not None
    assert promise.bytes_by_device == (("0", 16), ("1", 16))
    assert it.promise(ALL, 1, [holds(A, 8), holds(C, 8)]) is None
    assert it.siblings(ALL) == {A, B, C}
    assert it.siblings(C) == {ALL}


def test_whoever_was_not_planned_is_granted_everything() -> None:
    it = ledger()
    promise = it.promise(InstanceId("attached"), 1 << 60)

    assert promise is not None
    assert promise.bytes_by_device == ()
    assert it.shrink(InstanceId("attached")) is None


def test_the_end_of_memory_shrinks_what_is_promised_and_good_loads_give_it_back() -> None:
    it = ledger()

    assert it.shrink(A) == 19
    assert it.promise(A, 20, [holds(A)]) is None
    assert it.promise(A, 12, [holds(A, 8)]) is None
    assert it.promise(B, 24, [holds(A)]) is not None
    for _ in range(20):
        last = it.shrink(A)
    assert last == 6, "a quarter of the device at least"
    for _ in range(20):
        it.grow(A)
    assert it.room_bytes(A, "0", [holds(A)]) == 0, "only b's promise stands in the way"


class Devices(RuleBasedStateMachine):
    """Loads that are promised, become memory in use, and end, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.it = ledger()
        self.out: list[tuple[Promise, int]] = []
        self.used: dict[InstanceId, int] = dict.fromkeys((A, B, C, ALL), 0)
        self.busy: set[InstanceId] = set()

    @property
    def holdings(self) -> list[Holding]:
        return [Holding(each, used, each in self.busy) for each, used in self.used.items()]

    @rule(who=st.sampled_from([A, B, C, ALL]), need=st.integers(0, 30))
    def load(self, who: InstanceId, need: int) -> None:
        promise = self.it.promise(who, need, self.holdings)
        if promise is not None:
            self.out.append((promise, need))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), well=st.booleans())
    def load_ends(self, data: st.DataObject, well: bool) -> None:
        promise, need = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.it.settle(promise)
        if well:
            self.used[promise.instance] += need
        self.it.grow(promise.instance) if well else self.it.shrink(promise.instance)

    @rule(who=st.sampled_from([A, B, C, ALL]), busy=st.booleans())
    def serve(self, who: InstanceId, busy: bool) -> None:
        (self.busy.add if busy else self.busy.discard)(who)

    @rule(who=st.sampled_from([A, B, C, ALL]))
    def unload(self, who: InstanceId) -> None:
        self.used[who] = 0

    @invariant()
    def no_device_holds_more_than_it_has(self) -> None:
        for device in ("0", "1"):
            used = sum(
                -(-self.used[each] // (2 if each == ALL else 1))
                for each in (A, B, C, ALL)
                if each == ALL or (each == C) == (device == "1")
            )
            # Loads over two devices are rounded up each, and once when they are in use together.
            assert used + self.it.promised_bytes(device) <= 24


TestDevices = Devices.TestCase


@given(st.lists(st.integers(0, 40), max_size=6))
def test_a_promise_settled_leaves_nothing(needs: list[int]) -> None:
    it = ledger()
    out = [each for need in needs if (each := it.promise(A, need)) is not None]
    for each in out:
        it.settle(each)

    assert it.promised_bytes("0") == 0
