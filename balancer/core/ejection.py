"""An ejection: an instance whose health stays low is left alone for a while, where others can serve."""

import msgspec


class Ejection(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` is what its `health` (0 to 1) was low for; `slow` says that nothing but latency was. It may be
    back from `until` on (monotonic seconds)."""

    reason: str
    slow: bool
    health: float
    until: float
