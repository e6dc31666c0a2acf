"""The prefix index: which prompts each runner is believed to have cached, told by the marks of their
beginnings.

No runner tells what it has cached. What it was asked is known, and that it keeps the prompts and answers of
late, the least recently used ones leaving first; so the index keeps what it was asked in the same way, and is
corrected by how long evaluations took. Marks are looked up for all runners of a model at once. Tokens are
those of `Ticket.prefix`. Pure and synchronous; it knows no time.
"""

from array import array
from collections import OrderedDict
from collections.abc import Mapping
from functools import reduce
from operator import or_

from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId, Prefix
from balancer.core.variant import Variant

RUNNER_TOKENS = 2**18
"""What a runner is taken to keep at first. Its prompt cache has 8192 MiB, which is 65,536 tokens of a model
with 128 KiB each, four times as many of a smaller one, and an estimate of tokens may be twice too high.
Source: llama.cpp, tools/server, `--cache-ram`."""
RUNNER_MARKS = 2**15

_MARK_BYTES = 200
"""Of one mark at one runner: an item of each of two dicts, and the numbers in them."""
_CHAIN_BYTES = 400
_CHAIN_MARK_BYTES = 8
_RUNNER_BYTES = 2000

_FIRST_MARKS = 10
"""Who shares any of a prompt has one of its first marks: all but 9 are where every prompt has one, as
`protocol.prefix` sets them."""
_LONG_SHARE = 0.5
"""A prediction of less of a prompt is not held against what was measured: too much else takes time."""
_MISS_SHARE = 0.1
_HIT_SHARE = 0.5
_MISSES = 2
_CREDIT_STEP = 0.2
_GROWTH = 1.05


class _Chain:
    """A prompt that was evaluated, and how long its answer was."""

    __slots__ = ("answer_tokens", "marks", "tokens")

    def __init__(self, prefix: Prefix, answer_tokens: int) -> None:
        self.marks = array("Q", [mark for mark, _ in prefix])
        self.answer_tokens = answer_tokens
        self.tokens = prefix[-1][1] + answer_tokens


class _Runner:
    """Of one model at one instance: its chains by their last marks, the one used longest ago first.
    `holders` tells by a bit for each instance who has a mark; it is one for all runners of a model."""

    def __init__(self, instance: InstanceId, holders: dict[int, int], bit: int) -> None:
        self.instance = instance
        self.chains: OrderedDict[int, _Chain] = OrderedDict()
        self.uses: dict[int, int] = {}
        """How many of the chains have a mark."""
        self.tokens = 0
        self.most_tokens = RUNNER_TOKENS
        self.credit = 1.0
        self.misses = 0
        self._chain_marks = 0
        self._holders = holders
        self._bit = bit

    @property
    def bytes(self) -> int:
        """What it takes in memory, about."""
        return (
            _RUNNER_BYTES
            + _MARK_BYTES * len(self.uses)
            + _CHAIN_BYTES * len(self.chains)
            + _CHAIN_MARK_BYTES * self._chain_marks
        )

    def believed(self, mark: int, tokens: int, prompt_tokens: int) -> int:
        """How many tokens of a prompt are cached that has so many, and this mark after `tokens`: where an
        earlier prompt ended there, it goes on with the answer to that."""
        chain = self.chains.get(mark)
        return tokens if chain is None else min(tokens + chain.answer_tokens, prompt_tokens)

    def add(self, chain: _Chain) -> None:
        """Hold a chain in place of those that it begins with; what is too much leaves."""
        extended = [known for mark in chain.marks if (known := self.chains.pop(mark, None)) is not None]
        self.chains[chain.marks[-1]] = chain
        self.tokens += chain.tokens
        self._chain_marks += len(chain.marks)
        uses, holders = self.uses, self._holders
        for mark in chain.marks:
            count = uses.get(mark, 0)
            uses[mark] = count + 1
            if not count:
                holders[mark] = holders.get(mark, 0) | self._bit
        for known in extended:
            self._release(known)
        self.drop_excess()

    def drop_excess(self) -> None:
        """Forget the oldest chains as long as there is too much; one is always held."""
        while len(self.chains) > 1 and (self.tokens > self.most_tokens or len(self.uses) > RUNNER_MARKS):
            self.drop_oldest()

    def drop_oldest(self) -> None:
        """Forget the chain that was used longest ago."""
        self._release(self.chains.popitem(last=False)[1])

    def drop_all(self) -> None:
        """Forget everything."""
        while self.chains:
            self.drop_oldest()

    def _release(self, chain: _Chain) -> None:
        self.tokens -= chain.tokens
        self._chain_marks -= len(chain.marks)
        uses, holders = self.uses, self._holders
        for mark in chain.marks:
            uses[mark] -= 1
            if uses[mark]:
                continue
            del uses[mark]
            holders[mark] ^= self._bit
            if not holders[mark]:
                del holders[mark]


class _Model:
    """The runners of one model by the bits of their instances, and who has which mark."""

    def __init__(self) -> None:
        self.runners: dict[int, _Runner] = {}
        self.holders: dict[int, int] = {}


class PrefixIndex:
    """Takes at most `limit_bytes` of memory, about; with 0 it remembers nothing. Where that is too little,
    the runner that takes most of it forgets what it was asked longest ago."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._models: dict[ModelName, _Model] = {}
        self._bits: dict[InstanceId, int] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Memory in use, about."""
        return self._bytes

    @property
    def limit_bytes(self) -> int:
        """The most that it takes."""
        return self._limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit: int) -> None:
        self._limit_bytes = limit
        self._shrink()

    def cached_tokens(self, instance: InstanceId, variant: Variant, prefix: Prefix) -> int:
        """How many tokens of a prompt need no evaluation there, by what is believed, times how far that
        runner was found to be right. It tells of the model's last runner: where the variant is not in
        memory, nothing is cached."""
        runner = self._runner(instance, variant.model)
        if runner is None:
            return 0
        return int(runner.credit * self.believed_tokens(instance, variant, prefix))

    def believed_tokens(self, instance: InstanceId, variant: Variant, prefix: Prefix) -> int:
        """The same, however right it was before; to be corrected by `correct`."""
        runner = self._runner(instance, variant.model)
        if runner is not None:
            for mark, tokens in reversed(prefix):
                if mark in runner.uses:
                    return runner.believed(mark, tokens, prefix[-1][1])
        return 0

    def cached_tokens_everywhere(self, variant: Variant, prefix: Prefix) -> Mapping[InstanceId, int]:
        """As `cached_tokens`, for all instances where anything is believed to be cached."""
        found: dict[InstanceId, int] = {}
        model = self._models.get(variant.model)
        if model is None or not prefix:
            return found
        holders, runners, prompt_tokens, left = model.holders, model.runners, prefix[-1][1], 0
        for mark, _ in prefix[:_FIRST_MARKS]:
            left |= holders.get(mark, 0)
        for mark, tokens in reversed(prefix):
            if not left:
                break
            new = holders.get(mark, 0) & left
            left ^= new
            while new:
                bit = new & -new
                new ^= bit
                runner = runners[bit]
                cached = runner.believed(mark, tokens, prompt_tokens)
                found[runner.instance] = cached if runner.credit == 1.0 else int(runner.credit * cached)
        return found

    def remember(
        self, instance: InstanceId, variant: Variant, prefix: Prefix, *, answer_tokens: int = 0
    ) -> None:
        """A prompt was evaluated there, and an answer of so many tokens generated. It stands in for those
        that it begins with."""
        if not prefix or not self._limit_bytes:
            return
        runner = self._runner(instance, variant.model) or self._begin(instance, variant.model)
        before = runner.bytes
        runner.add(_Chain(prefix, answer_tokens))
        self._bytes += runner.bytes - before
        self._shrink()

    def correct(
        self,
        instance: InstanceId,
        variant: Variant,
        *,
        prompt_tokens: float,
        believed_tokens: float,
        inferred_tokens: float,
    ) -> None:
        """Of a prompt of so many tokens so many were believed to be cached there (as `believed_tokens` told),
        and its evaluation says that it were so many, maybe less than 0.

        Where more than half was believed and less than a tenth was so, twice in a row, the runner keeps less
        than it is taken to: the older half of what it holds is forgotten, it holds no more than that for a
        while, and counts for less. Where it was so, it counts for more, and may hold more again.
        """
        runner = self._runner(instance, variant.model)
        if runner is None or believed_tokens <= _LONG_SHARE * prompt_tokens:
            return
        if inferred_tokens >= _HIT_SHARE * believed_tokens:
            runner.misses = 0
            runner.credit += _CREDIT_STEP * (1.0 - runner.credit)
            runner.most_tokens = min(RUNNER_TOKENS, int(runner.most_tokens * _GROWTH) + 1)
        elif inferred_tokens < _MISS_SHARE * prompt_tokens:
            runner.misses += 1
            if runner.misses == _MISSES:
                runner.misses = 0
                runner.credit -= _CREDIT_STEP * runner.credit
                before = runner.bytes
                runner.most_tokens = runner.tokens // 2
                runner.drop_excess()
                self._bytes += runner.bytes - before

    def forget(self, instance: InstanceId, model: ModelName | None = None) -> None:
        """The model's runner there has ended, and its cache with it; None: all of the instance's have."""
        for name in self.models_at(instance) if model is None else [model]:
            runner = self._runner(instance, name)
            if runner is None:
                continue
            self._bytes -= runner.bytes
            runner.drop_all()
            of_model = self._models[name]
            del of_model.runners[self._bits[instance]]
            if not of_model.runners:
                del self._models[name]
        if not self.models_at(instance):
            self._bits.pop(instance, None)

    def models_at(self, instance: InstanceId) -> list[ModelName]:
        """The models of which something is remembered there."""
        bit = self._bits.get(instance, 0)
        return [name for name, model in self._models.items() if bit in model.runners]

    def instances(self) -> list[InstanceId]:
        """Those of which something is remembered."""
        return list(self._bits)

    def _runner(self, instance: InstanceId, name: ModelName) -> _Runner | None:
        model = self._models.get(name)
        return model.runners.get(self._bits.get(instance, 0)) if model is not None else None

    def _begin(self, instance: InstanceId, name: ModelName) -> _Runner:
        model = self._models.setdefault(name, _Model())
        bit = self._bit(instance)
        runner = model.runners[bit] = _Runner(instance, model.holders, bit)
        self._bytes += runner.bytes
        return runner

    def _bit(self, instance: InstanceId) -> int:
        """That of the instance, the lowest that no other has."""
        bit = self._bits.get(instance)
        if bit is None:
            free = ~reduce(or_, self._bits.values(), 0)
            bit = self._bits[instance] = free & -free
        return bit

    def _shrink(self) -> None:
        """Whoever takes most gives way."""
        while self._bytes > self._limit_bytes:
            _, name, bit = max(
                (runner.bytes, name, bit)
                for name, model in self._models.items()
                for bit, runner in model.runners.items()
            )
            runner = self._models[name].runners[bit]
            others = self._bytes - runner.bytes
            while runner.chains and others + runner.bytes > self._limit_bytes:
                runner.drop_oldest()
            self._bytes = others + runner.bytes
            if not runner.chains:
                self.forget(runner.instance, name)
