"""Operations of clients, and the judges of what the clients saw.

Two judges. `check_linearizable` takes any model and searches for an order of the operations that respects real time and that the model
explains (Wing and Gong 1993, with the memory of Lowe 2017, as in Porcupine): exponential at worst, so it has a limit and may say
`UNDECIDED`. `check_log` judges an append-only log with unique message ids against the history that was read at the end, in
O(n log n), and names each violation; on such logs the two agree.

Knows operations, as the clients' own clock saw them, and models. Does not know how they were carried out, nor messages beyond their ids.
Invariants: an operation without an answer may have taken effect at any time after it was called, or never. Two operations are in real-time
order only if one returned strictly before the other was called, so a coarse clock can hide a violation but cannot make one.
"""

import math
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Literal, Protocol, TypeVar

STEPS_MAX = 2_000_000
EXPLAINED_OPERATIONS_MAX = 12


class Mark(Enum):
    """Outputs that are not answers."""

    UNKNOWN = "no answer"
    """It never answered, or so that it may have taken effect all the same (a timeout, a broken connection)."""
    REFUSED = "refused"
    """It answered that it took no effect and never will."""


Unknown = Literal[Mark.UNKNOWN]
Refused = Literal[Mark.REFUSED]

State = TypeVar("State", bound=Hashable)
Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class Operation(Generic[Input, Output]):
    """One call of one client. Times are monotonic nanoseconds of one clock; `returned_at` is None exactly if the output is unknown."""

    client: int | str
    called_at: int
    returned_at: int | None
    input: Input
    output: Output | Unknown = Mark.UNKNOWN

    def __post_init__(self) -> None:
        if (self.returned_at is None) != (self.output is Mark.UNKNOWN):
            raise ValueError(f"an operation returns exactly if its output is known: {self}")
        if self.returned_at is not None and self.returned_at < self.called_at:
            raise ValueError(f"an operation cannot return before it is called: {self}")

    def __str__(self) -> str:
        output = self.output.value if isinstance(self.output, Mark) else repr(self.output)
        until = "..." if self.returned_at is None else self.returned_at
        return f"client {self.client}: {self.input!r} -> {output} [{self.called_at}, {until}]"


# --- Any model ---------------------------------------------------------------------------------------------------------------------------


class Model(Protocol[State, Input, Output]):
    """What one object does when its operations come one after another. States are hashable, and None is none of them."""

    @property
    def initial(self) -> State: ...

    def step(self, state: State, input: Input, output: Output | Unknown) -> State | None:
        """The state after the operation, or None if it cannot answer `output` in `state`. An unknown output stands for any."""

    def partition(self, operations: Sequence[Operation[Input, Output]]) -> Iterable[Sequence[Operation[Input, Output]]]:
        """The operations by object. Linearizability is local: all are linearizable if those of each object are."""


class Outcome(Enum):
    OK = "ok"
    NOT_OK = "not ok"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict(Generic[Input, Output]):
    """What `check_linearizable` found, in `steps` steps of the model.

    If it is not ok, `prefix` is what was known when the first answer came that no order explains: what had not answered by then stands in
    it without an answer. Without that last answer `prefix` is linearizable.
    """

    outcome: Outcome
    steps: int
    prefix: tuple[Operation[Input, Output], ...] = ()
    explanation: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK


def check_linearizable(
    operations: Sequence[Operation[Input, Output]], model: Model[State, Input, Output], steps_max: int = STEPS_MAX
) -> Verdict[Input, Output]:
    """Whether some order of the operations respects real time and is one that `model` allows. `steps_max` holds for each search.

    With n operations of one object, c of them at a time: about n * c steps while the first choices are right, exponential in c and in the
    number of unanswered operations at worst. Each configuration that is remembered takes n bits and a state.
    """
    steps, undecided = 0, False
    for part in model.partition(operations):
        found = _Search(part, model, steps_max).run()
        steps += found.steps
        if found.outcome is Outcome.NOT_OK:
            prefix, last = _smallest_prefix(part, found, model, steps_max)
            return Verdict(Outcome.NOT_OK, steps, tuple(prefix), _explain(last))
        undecided = undecided or found.outcome is Outcome.UNDECIDED
    if undecided:
        return Verdict(Outcome.UNDECIDED, steps, explanation=f"no verdict within {steps_max} steps of the model")
    return Verdict(Outcome.OK, steps)


class _Search(Generic[State, Input, Output]):
    """A depth-first search for an order, without recursion.

    Calls and returns stand in a doubly linked list in the order of their times; an operation that is given its place is lifted out of it.
    Only calls before the first return that is left may come next. Unanswered operations have a list of their own and are tried last: they
    need no place at all, and most of them are not needed. `seen` holds each set of placed operations (bits of an int) with its state.
    """

    def __init__(self, operations: Sequence[Operation[Input, Output]], model: Model[State, Input, Output], steps_max: int) -> None:
        self.operations = sorted(operations, key=lambda operation: operation.called_at)
        self.model = model
        self.steps_max = steps_max
        self.steps = 0
        self.outcome = Outcome.UNDECIDED
        self.returns = sorted(
            (operation.returned_at, index) for index, operation in enumerate(self.operations) if operation.returned_at is not None
        )
        self.furthest = -1
        """The last place in `returns` that the search stood before and never came past."""
        self.furthest_order: list[int] = []
        self.furthest_state: State = model.initial
        self._link()

    def _link(self) -> None:
        """Nodes: i is the call of operation i, n + i its return, 2n the end of the list of the answered, 2n + 1 that of the others."""
        n = len(self.operations)
        self.after, self.before = [0] * (2 * n + 2), [0] * (2 * n + 2)
        self.rank = [0] * (2 * n)
        calls = [(operation.called_at, 0, index) for index, operation in enumerate(self.operations)]
        events = sorted(calls + [(time, 1, index) for time, index in self.returns])
        self.answered = [operation.returned_at is not None for operation in self.operations]
        last = [2 * n, 2 * n + 1]
        for rank, (_, kind, index) in enumerate(events):
            node, which = kind * n + index, 0 if self.answered[index] else 1
            self.rank[node] = rank
            self.after[last[which]], self.before[node] = node, last[which]
            last[which] = node
        for end, node in zip((2 * n, 2 * n + 1), last, strict=True):
            self.after[node], self.before[end] = end, node

    def run(self) -> "_Search[State, Input, Output]":
        """Search until an order is found, none is left, or the limit is reached; `outcome` says which."""
        n, after, rank, answered, step = len(self.operations), self.after, self.rank, self.answered, self.model.step
        state, done, left = self.model.initial, 0, len(self.returns)
        seen: set[tuple[int, State]] = set()
        trail: list[tuple[int, State, int]] = []
        place_of = {n + index: place for place, (_, index) in enumerate(self.returns)}
        node, first_return = after[2 * n], 0
        while left:
            if node < n and (answered[node] or rank[node] < rank[first_return]):
                if self.steps == self.steps_max:
                    return self
                self.steps += 1
                operation = self.operations[node]
                then = step(state, operation.input, operation.output)
                # Whatever an unanswered operation that changes nothing allows is allowed without it.
                if then is not None and (answered[node] or then != state):
                    configuration = (done | 1 << node, then)
                    if configuration not in seen:
                        seen.add(configuration)
                        trail.append((node, state, first_return))
                        self._lift(node)
                        state, done, left = then, configuration[0], left - answered[node]
                        node = after[2 * n]
                        continue
                node = after[node]
            elif n <= node < 2 * n:
                first_return, node = node, after[2 * n + 1]
            else:
                if place_of[first_return] > self.furthest:
                    self.furthest = place_of[first_return]
                    self.furthest_order, self.furthest_state = [placed for placed, _, _ in trail], state
                if not trail:
                    self.outcome = Outcome.NOT_OK
                    return self
                undone, state, first_return = trail.pop()
                self._put_back(undone)
                done, left = done ^ 1 << undone, left + answered[undone]
                node = after[undone]
        self.outcome = Outcome.OK
        return self

    def _lift(self, call: int) -> None:
        for node in (call, call + len(self.operations)) if self.answered[call] else (call,):
            self.after[self.before[node]], self.before[self.after[node]] = self.after[node], self.before[node]

    def _put_back(self, call: int) -> None:
        """Undo `_lift`, in the opposite order: each node still knows its neighbours."""
        for node in (call + len(self.operations), call) if self.answered[call] else (call,):
            self.after[self.before[node]] = self.before[self.after[node]] = node


def _smallest_prefix(
    operations: Sequence[Operation[Input, Output]],
    whole: _Search[State, Input, Output],
    model: Model[State, Input, Output],
    steps_max: int,
) -> tuple[list[Operation[Input, Output]], _Search[State, Input, Output]]:
    """The shortest prefix that fails, with the search in it. A prefix that reaches the limit counts as one that does not fail."""

    def prefix_until(place: int) -> list[Operation[Input, Output]]:
        until, _ = whole.returns[place]
        answered = {index for _, index in whole.returns[: place + 1]}
        return [
            operation if index in answered else Operation(operation.client, operation.called_at, None, operation.input)
            for index, operation in enumerate(whole.operations)
            if operation.called_at <= until
        ]

    # The whole search came up to `furthest` although it knew more, what pending operations would answer; a prefix comes at least so far.
    low, high = whole.furthest, len(whole.returns) - 1
    prefix, search = list(whole.operations), whole
    middle = low
    while low <= high:
        candidate = prefix_until(middle)
        found = _Search(candidate, model, steps_max).run()
        if found.outcome is Outcome.NOT_OK:
            prefix, search, high = candidate, found, middle - 1
        else:
            low = middle + 1
        middle = (low + high) // 2
    return prefix, search


def _explain(search: _Search[State, Input, Output]) -> str:
    """In words: the answer that nothing explains, the order that came furthest, and what could have come next."""
    stuck = search.operations[search.returns[search.furthest][1]]
    until, placed = search.returns[search.furthest][0], set(search.furthest_order)
    order = [str(search.operations[index]) for index in search.furthest_order]
    waiting = [str(operation) for index, operation in enumerate(search.operations) if index not in placed and operation.called_at <= until]
    return "\n".join(
        [
            f"no order explains {stuck}",
            f"the order that comes furthest, {len(order)} operations, ends with:",
            *(f"  {line}" for line in order[-EXPLAINED_OPERATIONS_MAX:]),
            f"which leads to {search.furthest_state!r}; from there the answer above is not reached by any of the {len(waiting)} under way:",
            *(f"  {line}" for line in waiting[:EXPLAINED_OPERATIONS_MAX]),
        ]
    )


# --- Registers by key --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Get:
    """Answers the value, "" if there was none."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Answers True."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Swap:
    """Puts `value` if the key holds `expected`; answers whether it did."""

    key: str
    expected: str
    value: str


KvInput = Get | Put | Swap
KvOutput = str | bool


class KvModel:
    """Registers, each on its own; the state is the value."""

    initial = ""

    def step(self, state: str, input: KvInput, output: KvOutput | Unknown) -> str | None:
        answer: KvOutput
        match input:
            case Get():
                then, answer = state, state
            case Put(_, value):
                then, answer = value, True
            case Swap(_, expected, value):
                then, answer = (value, True) if state == expected else (state, False)
        return then if output is Mark.UNKNOWN or output == answer else None

    def partition(self, operations: Sequence[Operation[KvInput, KvOutput]]) -> Iterable[Sequence[Operation[KvInput, KvOutput]]]:
        parts: dict[str, list[Operation[KvInput, KvOutput]]] = {}
        for operation in operations:
            parts.setdefault(operation.input.key, []).append(operation)
        return parts.values()


# --- The log of a context ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append:
    """Answers the message's seq: the next one, or for an id that is already there the seq that it has."""

    message_id: str
    context: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """Answers the last seq, 0 if there is none."""

    context: str = ""


@dataclass(frozen=True, slots=True)
class Tail:
    """Answers the last `limit` messages as a `Seen`."""

    limit: int
    context: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """The ids of messages, the last of them at `last_seq`."""

    message_ids: tuple[str, ...]
    last_seq: int


LogInput = Append | Read | Tail
LogOutput = int | Seen | Refused
LogOperation = Operation[LogInput, LogOutput]


def by_context(operations: Iterable[LogOperation]) -> dict[str, list[LogOperation]]:
    """The operations of each context, in the order given."""
    parts: dict[str, list[LogOperation]] = {}
    for operation in operations:
        parts.setdefault(operation.input.context, []).append(operation)
    return parts


@dataclass(frozen=True, slots=True, eq=False)
class LogState:
    """A log as its last message and the log before it. A `LogModel` makes each only once, so equal means the same object."""

    last_seq: int = 0
    message_id: str = ""
    before: "LogState | None" = None

    def newest_first(self) -> Iterator["LogState"]:
        state = self
        while state.before is not None:
            yield state
            state = state.before

    def __repr__(self) -> str:
        newest = [state.message_id for state, _ in zip(self.newest_first(), range(EXPLAINED_OPERATIONS_MAX), strict=False)]
        return f"a log of {self.last_seq}, the newest first {newest}"


class LogModel:
    """An append-only log with idempotent appends. It keeps every state that it ever made: use a new one for each check.

    A step is O(1), but for a retry O(distance back to the first try) and for a tail O(its length).
    """

    def __init__(self) -> None:
        self.initial = LogState()
        self._longer: dict[tuple[LogState, str], LogState] = {}
        self._ending_with: dict[str, list[LogState]] = {}

    def step(self, state: LogState, input: LogInput, output: LogOutput | Unknown) -> LogState | None:
        if output is Mark.REFUSED:
            return state
        match input:
            case Append(message_id):
                known = self._seq_of(state, message_id)
                if output is not Mark.UNKNOWN and output != (known or state.last_seq + 1):
                    return None
                return state if known else self._append(state, message_id)
            case Read():
                return state if output is Mark.UNKNOWN or output == state.last_seq else None
            case Tail(limit):
                return state if output is Mark.UNKNOWN or self._is_tail(state, limit, output) else None

    def partition(self, operations: Sequence[LogOperation]) -> Iterable[Sequence[LogOperation]]:
        return by_context(operations).values()

    def _append(self, state: LogState, message_id: str) -> LogState:
        longer = self._longer.get((state, message_id))
        if longer is None:
            longer = self._longer[state, message_id] = LogState(state.last_seq + 1, message_id, state)
            self._ending_with.setdefault(message_id, []).append(longer)
        return longer

    def _seq_of(self, state: LogState, message_id: str) -> int | None:
        seqs = {candidate.last_seq for candidate in self._ending_with.get(message_id, ())}
        if not seqs:
            return None
        lowest = min(seqs)
        for earlier in state.newest_first():
            if earlier.last_seq in seqs and earlier.message_id == message_id:
                return earlier.last_seq
            if earlier.last_seq < lowest:
                return None
        return None

    @staticmethod
    def _is_tail(state: LogState, limit: int, output: LogOutput) -> bool:
        if not isinstance(output, Seen) or output.last_seq != state.last_seq or len(output.message_ids) != min(limit, state.last_seq):
            return False
        pairs = zip(reversed(output.message_ids), state.newest_first(), strict=False)
        return all(message_id == earlier.message_id for message_id, earlier in pairs)


class Rule(Enum):
    """What `check_log` checks, and beside it who can look into the replicas."""

    HOLE = "the seqs of the final history are 1, 2, 3, ..."
    DOUBLED = "no id is in the final history twice"
    PHANTOM = "what is in the final history was appended by an operation"
    REFUSED = "what was refused for certain is not in the final history"
    LOST = "what was acknowledged is in the final history"
    MOVED = "what was acknowledged is at the seq of the answer"
    ORDER = "an append that returned before another was called has the smaller seq"
    STALE = "a read shows everything that was acknowledged before it was called"
    FUTURE = "a read shows nothing that was called after it returned"
    BACKWARDS = "a read shows no less than a read that returned before it was called"
    CONTENT = "what a read shows is the final history up to its last seq"
    REPLICAS = "all replicas of a shard have the same bytes at the same log entry"


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that does not hold, in a sentence, and the operations that show it."""

    rule: Rule
    sentence: str
    operations: tuple[LogOperation, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.rule.name}: {self.sentence}", *(f"  {operation}" for operation in self.operations)])


def check_log(operations: Sequence[LogOperation], final_history: Sequence[tuple[int, str]]) -> list[Violation]:
    """All violations by the operations of one context, beside its history as (seq, message id), read after the last of them.

    `operations` holds all appends that were ever called, since others are phantoms. The order of the log is known, so each message took
    effect between its first call and its first acknowledgement, each read between its call and its return, and points in that order exist
    if and only if no two of these intervals contradict it (ORDER, STALE, FUTURE, BACKWARDS). O((n + m) log (n + m)) for n operations and m
    messages, and linear in the ids that tails showed.
    """
    if len(contexts := {operation.input.context for operation in operations}) > 1:
        raise ValueError(f"check_log judges one context at a time, not {len(contexts)}: see by_context")
    judge = _LogJudge(operations, final_history)
    judge.judge_history()
    judge.judge_appends()
    judge.judge_order()
    judge.judge_reads()
    judge.judge_reads_in_time()
    return judge.violations


@dataclass(slots=True)
class _Attempts:
    """The appends of one id. A refused one took no effect, so it bounds nothing."""

    acknowledged: list[LogOperation] = field(default_factory=list)
    refused: list[LogOperation] = field(default_factory=list)
    first_call: LogOperation | None = None
    first_answer: LogOperation | None = None

    def add(self, operation: LogOperation) -> None:
        if operation.output is Mark.REFUSED:
            self.refused.append(operation)
            return
        if self.first_call is None or operation.called_at < self.first_call.called_at:
            self.first_call = operation
        if operation.returned_at is not None:
            self.acknowledged.append(operation)
            if self.first_answer is None or operation.returned_at < _returned_at(self.first_answer):
                self.first_answer = operation


@dataclass(frozen=True, slots=True)
class _Look:
    """A read or a tail that was answered."""

    operation: LogOperation
    returned_at: int
    last_seq: int


def _called_at(operation: LogOperation | None) -> float:
    return -math.inf if operation is None else operation.called_at


def _returned_at(operation: LogOperation | None) -> float:
    return math.inf if operation is None or operation.returned_at is None else operation.returned_at


class _LogJudge:
    """The rules of `check_log`, in groups, over indexes that are made once."""

    def __init__(self, operations: Sequence[LogOperation], final_history: Sequence[tuple[int, str]]) -> None:
        self.violations: list[Violation] = []
        self.final_history = final_history
        self.last_seq = max((seq for seq, _ in final_history), default=0)
        self.id_at = dict(final_history)
        self.seqs_of: dict[str, list[int]] = {}
        for seq, message_id in final_history:
            self.seqs_of.setdefault(message_id, []).append(seq)
        self.attempts: dict[str, _Attempts] = {}
        self.looks: list[_Look] = []
        for operation in operations:
            if isinstance(operation.input, Append):
                self.attempts.setdefault(operation.input.message_id, _Attempts()).add(operation)
            elif operation.returned_at is not None and not isinstance(operation.output, Mark):
                last_seq = operation.output.last_seq if isinstance(operation.output, Seen) else operation.output
                self.looks.append(_Look(operation, operation.returned_at, last_seq))
        # A second copy of a message is DOUBLED already; its place says nothing about real time.
        self.placed = [(min(seqs), self.attempts.get(message_id, _Attempts())) for message_id, seqs in self.seqs_of.items()]
        self.placed.sort(key=lambda placed: placed[0])
        self.seqs = [seq for seq, _ in self.placed]
        self._index_times()

    def _index_times(self) -> None:
        """`latest_call[i]`: the latest of the first calls of the i lowest seqs; `earliest_answer[i]`: the earliest answer to the others."""
        self.latest_call: list[LogOperation | None] = [None]
        for _, attempts in self.placed:
            self.latest_call.append(max(self.latest_call[-1], attempts.first_call, key=_called_at))
        self.earliest_answer: list[LogOperation | None] = [None]
        for _, attempts in reversed(self.placed):
            self.earliest_answer.append(min(self.earliest_answer[-1], attempts.first_answer, key=_returned_at))
        self.earliest_answer.reverse()

    def judge_history(self) -> None:
        expected = 1
        for seq, message_id in self.final_history:
            if seq != expected:
                self._note(Rule.HOLE, f"{message_id!r} has seq {seq} where {expected} is due")
            expected = seq + 1
        for message_id, seqs in self.seqs_of.items():
            attempts = self.attempts.get(message_id)
            if len(seqs) > 1:
                self._note(Rule.DOUBLED, f"{message_id!r} is in the history {len(seqs)} times, at {seqs}", *self._some(attempts))
            if attempts is None:
                self._note(Rule.PHANTOM, f"{message_id!r} is at seq {seqs[0]}, and nobody appended it")
            elif attempts.first_call is None:
                self._note(Rule.REFUSED, f"{message_id!r} is at seq {seqs[0]}, though it was refused", *attempts.refused[:1])

    def judge_appends(self) -> None:
        for message_id, attempts in self.attempts.items():
            seqs = self.seqs_of.get(message_id)
            for operation in attempts.acknowledged:
                if seqs is None:
                    self._note(Rule.LOST, f"{message_id!r} was acknowledged at seq {operation.output} and is not in the history", operation)
                elif operation.output not in seqs:
                    self._note(Rule.MOVED, f"{message_id!r} was acknowledged at seq {operation.output} and is at {seqs[0]}", operation)

    def judge_order(self) -> None:
        for place, (seq, attempts) in enumerate(self.placed):
            later, first = self.latest_call[place], attempts.first_answer
            if later is not None and first is not None and _returned_at(first) < later.called_at:
                sentence = f"the append at seq {seq} returned before one with a smaller seq was called for the first time"
                self._note(Rule.ORDER, sentence, first, later)

    def judge_reads(self) -> None:
        for look in self.looks:
            self._judge_content(look)
            place = bisect_right(self.seqs, look.last_seq)
            missed, foreseen = self.earliest_answer[place], self.latest_call[place]
            if missed is not None and _returned_at(missed) < look.operation.called_at:
                sentence = f"a read shows {look.last_seq} as the last seq, and a later seq was acknowledged before the read was called"
                self._note(Rule.STALE, sentence, missed, look.operation)
            if foreseen is not None and foreseen.called_at > look.returned_at:
                sentence = f"a read shows {look.last_seq} as the last seq, and one up to there was called only after the read returned"
                self._note(Rule.FUTURE, sentence, look.operation, foreseen)

    def _judge_content(self, look: _Look) -> None:
        if look.last_seq > self.last_seq:
            self._note(Rule.CONTENT, f"a read shows seq {look.last_seq}, and the history ends at {self.last_seq}", look.operation)
            return
        if not (isinstance(look.operation.input, Tail) and isinstance(look.operation.output, Seen)):
            return
        shown = look.operation.output.message_ids
        due = min(look.operation.input.limit, look.last_seq)
        if len(shown) != due:
            self._note(Rule.CONTENT, f"a tail shows {len(shown)} messages where {due} are due", look.operation)
        for seq, message_id in enumerate(shown, look.last_seq - len(shown) + 1):
            if self.id_at.get(seq) != message_id:
                sentence = f"a tail shows {message_id!r} at seq {seq}, and the history has {self.id_at.get(seq)!r} there"
                self._note(Rule.CONTENT, sentence, look.operation)
                return

    def judge_reads_in_time(self) -> None:
        by_return = sorted(self.looks, key=lambda look: look.returned_at)
        furthest, returned = None, 0
        for look in sorted(self.looks, key=lambda look: look.operation.called_at):
            while returned < len(by_return) and by_return[returned].returned_at < look.operation.called_at:
                if furthest is None or by_return[returned].last_seq > furthest.last_seq:
                    furthest = by_return[returned]
                returned += 1
            if furthest is not None and furthest.last_seq > look.last_seq:
                sentence = f"a read shows {look.last_seq} as the last seq after another had shown {furthest.last_seq}"
                self._note(Rule.BACKWARDS, sentence, furthest.operation, look.operation)

    @staticmethod
    def _some(attempts: _Attempts | None) -> list[LogOperation]:
        return [] if attempts is None else (attempts.acknowledged or attempts.refused)[:2]

    def _note(self, rule: Rule, sentence: str, *operations: LogOperation) -> None:
        self.violations.append(Violation(rule, sentence, operations))
