"""What a balancer in virtual time learns from answers: the product's own teacher, told of each lease as the
tries of a request tell it."""

from balancer.accounting.prefix_learner import PrefixLearner
from balancer.accounting.record import RequestRecord
from balancer.accounting.teacher import Teacher
from balancer.core.operation import Dialect, Kind, Operation
from balancer.core.ticket import Lease, Outcome
from balancer.fleet.fleet import Fleet
from balancer.protocol.endings import Counters
from balancer.scheduling.prefix_index import PrefixIndex
from balancer.simulator.virtual.instances import Served
from balancer.simulator.virtual.loop import VirtualClock

_CHAT = Operation(
    kind=Kind.CHAT, dialect=Dialect.OLLAMA, upstream_path="/api/chat", stream=True, needs_slot=True
)
_EMBED = Operation(kind=Kind.EMBED, dialect=Dialect.OLLAMA, upstream_path="/api/embed", needs_slot=True)


class School:
    """Of one fleet; with `immediate` nobody is to find out that slots are ever taken."""

    def __init__(self, fleet: Fleet, index: PrefixIndex, clock: VirtualClock, *, immediate: bool) -> None:
        self._clock = clock
        self._immediate = immediate
        self._asked: dict[int, RequestRecord] = {}
        prefixes = PrefixLearner(index=index, fleet=fleet)
        self._teacher = Teacher(fleet=fleet, prefixes=prefixes, clock=clock)

    def sent(self, lease: Lease) -> None:
        """A request is sent under a lease."""
        record = RequestRecord(
            id=lease.ticket.id,
            request_id="",
            client=lease.ticket.client,
            method="POST",
            route=lease.ticket.path,
            received_at=lease.ticket.queued_at,
            operation=_EMBED if lease.ticket.path == _EMBED.upstream_path else _CHAT,
            leased_at=lease.leased_at,
        )
        self._asked[lease.id] = record
        self._teacher.leased(lease, record)

    def evaluated(self, lease: Lease) -> None:
        """Its prompt is evaluated; the answer begins."""
        if lease.id in self._asked:
            self._teacher.answered(lease)
            self._teacher.evaluated(lease)

    def ended(self, lease: Lease, outcome: Outcome, served: Served | None) -> None:
        """It has ended, and this is what its counters tell."""
        record = self._asked.pop(lease.id)
        if served is not None:
            record.answered_at = served.first_byte_at
            total = self._clock.monotonic() - lease.leased_at
            record.counters = Counters(
                prompt_tokens=lease.ticket.prompt_tokens,
                load_seconds=served.load_seconds,
                prompt_seconds=served.prompt_seconds if served.output_tokens else None,
                generated_tokens=served.output_tokens or None,
                generation_seconds=served.output_seconds if served.output_tokens else None,
                total_seconds=None if self._immediate else total,
            )
        self._teacher.ended(lease, record, outcome)
