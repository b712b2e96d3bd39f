"""The judges of what clients saw find each kind of violation, accept what is right, and agree with trying every order."""

import heapq
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.histories import (
    Append,
    Get,
    KvModel,
    LogInput,
    LogModel,
    LogOperation,
    Mark,
    Model,
    Operation,
    Outcome,
    Put,
    Read,
    Rule,
    Seen,
    Swap,
    Tail,
    by_context,
    check_linearizable,
    check_log,
)

History = list[tuple[int, str]]


def op(client: int, called_at: int, returned_at: int | None, asked: Any, answer: Any = Mark.UNKNOWN) -> Operation[Any, Any]:
    return Operation(client, called_at, returned_at, asked, answer)


def with_final_read(operations: Sequence[LogOperation], history: History) -> list[LogOperation]:
    """What `check_log` is given, as operations alone: a tail of everything after all others."""
    end = 1 + max((max(operation.called_at, operation.returned_at or 0) for operation in operations), default=0)
    seen = Seen(tuple(message_id for _, message_id in history), len(history))
    return [*operations, Operation("the end", end, end, Tail(len(history) + 1), seen)]


def rules(operations: Sequence[LogOperation], history: History) -> set[str]:
    return {violation.rule.name for violation in check_log(operations, history)}


def numbered(message_ids: Sequence[str]) -> History:
    return list(enumerate(message_ids, 1))


# --- By hand: registers ------------------------------------------------------------------------------------------------------------------

GOOD_REGISTERS = {
    "nothing": [],
    "one after another": [op(1, 0, 1, Put("x", "a"), True), op(2, 2, 3, Get("x"), "a")],
    "a read during a write sees the old value": [op(1, 0, 10, Put("x", "a"), True), op(2, 2, 3, Get("x"), "")],
    "a read during a write sees the new value": [op(1, 0, 10, Put("x", "a"), True), op(2, 2, 3, Get("x"), "a")],
    "a return at the time of a call is no order": [op(1, 0, 5, Put("x", "a"), True), op(2, 5, 6, Get("x"), "")],
    "an unanswered write that took effect late": [
        op(1, 0, None, Put("x", "a")),
        op(2, 10, 11, Get("x"), ""),
        op(2, 20, 21, Get("x"), "a"),
    ],
    "an unanswered write that never did": [op(1, 0, None, Put("x", "a")), op(2, 10, 11, Get("x"), ""), op(2, 20, 21, Get("x"), "")],
    "an unanswered write that took effect after later ones": [
        op(1, 0, None, Put("x", "a")),
        op(2, 10, 11, Put("x", "b"), True),
        op(2, 20, 21, Get("x"), "b"),
        op(2, 30, 31, Get("x"), "a"),
    ],
    "an unanswered swap that can only have failed": [op(1, 0, None, Swap("x", "no", "a")), op(2, 10, 11, Get("x"), "")],
    "keys are apart": [op(1, 0, 1, Put("x", "a"), True), op(1, 2, 3, Get("y"), ""), op(1, 4, 5, Get("x"), "a")],
    "of two swaps one fails": [op(1, 0, 9, Swap("x", "", "a"), True), op(2, 1, 8, Swap("x", "", "b"), False)],
}

BAD_REGISTERS = {
    "a stale read": ([op(1, 0, 1, Put("x", "a"), True), op(2, 2, 3, Get("x"), ""), op(2, 4, 5, Get("x"), "a")], 2),
    "a lost update": ([op(1, 0, 9, Swap("x", "", "a"), True), op(2, 1, 8, Swap("x", "", "b"), True), op(1, 20, 21, Get("x"), "b")], 2),
    "a value from nowhere": ([op(1, 0, 1, Get("x"), "a")], 1),
    "a value before its write was called": ([op(1, 0, 1, Get("x"), "a"), op(1, 2, 3, Put("x", "a"), True)], 1),
    "two reads during a write go back": (
        [op(1, 0, 100, Put("x", "a"), True), op(2, 10, 20, Get("x"), "a"), op(3, 30, 40, Get("x"), "")],
        3,
    ),
    "an unanswered write was seen and is gone": (
        [op(1, 0, None, Put("x", "a")), op(2, 10, 11, Get("x"), "a"), op(3, 20, 21, Get("x"), "")],
        3,
    ),
    "an unanswered write took effect twice": (
        [
            op(1, 0, None, Put("x", "a")),
            op(2, 10, 11, Get("x"), "a"),
            op(2, 12, 13, Put("x", "b"), True),
            op(2, 14, 15, Get("x"), "a"),
        ],
        4,
    ),
}


@pytest.mark.parametrize("name", GOOD_REGISTERS)
def test_what_some_order_explains_is_accepted(name: str) -> None:
    assert check_linearizable(GOOD_REGISTERS[name], KvModel()).ok


@pytest.mark.parametrize("name", BAD_REGISTERS)
def test_what_no_order_explains_is_refused_with_the_smallest_prefix(name: str) -> None:
    operations, prefix_length = BAD_REGISTERS[name]
    verdict = check_linearizable(operations, KvModel())
    assert verdict.outcome is Outcome.NOT_OK
    assert len(verdict.prefix) == prefix_length
    assert verdict.explanation.startswith("no order explains client")
    assert_smallest(verdict.prefix, KvModel())


def assert_smallest(prefix: Sequence[Operation[Any, Any]], model: Model[Any, Any, Any]) -> None:
    """`prefix` fails as it stands, and no longer once its last answer is not known."""
    assert check_linearizable(prefix, model).outcome is Outcome.NOT_OK
    last = max((operation.returned_at, index) for index, operation in enumerate(prefix) if operation.returned_at is not None)[1]
    unknown = replace(prefix[last], returned_at=None, output=Mark.UNKNOWN)
    assert check_linearizable([*prefix[:last], unknown, *prefix[last + 1 :]], model).ok


def test_the_prefix_hides_what_was_not_yet_answered() -> None:
    slow, stale = op(1, 0, 100, Put("x", "a"), True), op(3, 30, 40, Get("x"), "")
    verdict = check_linearizable([slow, op(2, 10, 20, Get("x"), "a"), stale, op(2, 50, 60, Get("x"), "zzz")], KvModel())
    assert verdict.prefix == (replace(slow, returned_at=None, output=Mark.UNKNOWN), op(2, 10, 20, Get("x"), "a"), stale)
    assert str(stale) in verdict.explanation


def test_a_search_that_reaches_its_limit_is_undecided_and_another_key_still_convicts() -> None:
    hard = [op(client, client, 1000 + client, Put("x", str(client)), True) for client in range(12)] + [op(99, 2000, 2001, Get("x"), "no")]
    verdict = check_linearizable(hard, KvModel(), steps_max=500)
    assert verdict.outcome is Outcome.UNDECIDED
    assert "500" in verdict.explanation
    assert not verdict.ok
    assert check_linearizable([*hard, op(1, 0, 1, Get("y"), "a")], KvModel(), steps_max=500).outcome is Outcome.NOT_OK


def test_a_long_history_needs_no_recursion() -> None:
    operations = [op(1, 10 * i, 10 * i + 25, Append(str(i)), i + 1) for i in range(5_000)]
    assert check_linearizable(operations, LogModel()).ok


def test_many_unanswered_appends_that_never_took_effect_cost_no_search() -> None:
    operations: list[LogOperation] = []
    for i in range(200):
        operations += [op(1, 10 * i, None, Append(f"unknown-{i}")), op(2, 10 * i + 1, 10 * i + 2, Append(f"known-{i}"), i + 1)]
    verdict = check_linearizable(operations, LogModel())
    assert verdict.ok
    assert verdict.steps == 200


def test_an_operation_returns_exactly_if_its_output_is_known() -> None:
    for returned_at, output in ((5, Mark.UNKNOWN), (None, 1), (-1, 1)):
        with pytest.raises(ValueError):
            op(1, 0, returned_at, Append("a"), output)


# --- By hand: logs -----------------------------------------------------------------------------------------------------------------------

A1, B2 = op(1, 0, 1, Append("a"), 1), op(1, 2, 3, Append("b"), 2)
LOST_AGAIN = [A1, op(2, 2, None, Append("b")), op(3, 10, 11, Read(), 2), op(4, 20, 21, Read(), 1)]

GOOD_LOGS: dict[str, tuple[list[LogOperation], list[str]]] = {
    "nothing": ([], []),
    "one after another": ([A1, B2, op(1, 4, 5, Read(), 2), op(1, 6, 7, Tail(1), Seen(("b",), 2))], ["a", "b"]),
    "overlapping appends in either order": ([op(1, 0, 9, Append("a"), 2), op(2, 1, 8, Append("b"), 1)], ["b", "a"]),
    "a read during an append sees it": ([op(1, 0, 9, Append("a"), 1), op(2, 1, 2, Tail(9), Seen(("a",), 1))], ["a"]),
    "a read during an append misses it": ([op(1, 0, 9, Append("a"), 1), op(2, 1, 2, Tail(9), Seen((), 0))], ["a"]),
    "two overlapping reads go back": ([op(1, 0, 9, Append("a"), 1), op(2, 1, 4, Read(), 1), op(3, 3, 5, Read(), 0)], ["a"]),
    "a return at the time of a call is no order": ([op(1, 0, 5, Append("a"), 2), op(2, 5, 6, Append("b"), 1)], ["b", "a"]),
    "unanswered and late": ([op(1, 0, None, Append("a")), op(2, 9, 10, Read(), 0), op(2, 20, 21, Read(), 1)], ["a"]),
    "unanswered and never": ([op(1, 0, None, Append("a")), op(2, 9, 10, Read(), 0)], []),
    "unanswered and behind one that was called later": ([op(1, 0, None, Append("a")), op(2, 9, 10, Append("b"), 1)], ["b", "a"]),
    "a retry answers the same seq": ([A1, B2, op(1, 4, 5, Append("a"), 1)], ["a", "b"]),
    "a retry after no answer": ([op(1, 0, None, Append("a")), op(2, 1, 2, Append("b"), 1), op(1, 4, 5, Append("a"), 2)], ["b", "a"]),
    "a retry whose first try was late": ([op(1, 0, None, Append("a")), op(1, 4, 5, Append("a"), 1), B2], ["a", "b"]),
    "refused and absent": ([op(1, 0, 1, Append("a"), Mark.REFUSED), op(1, 2, 3, Read(), 0)], []),
    "refused, then accepted": ([op(1, 0, 1, Append("a"), Mark.REFUSED), op(1, 2, 3, Append("a"), 1)], ["a"]),
    "refused although a try is still under way": ([op(1, 0, None, Append("a")), op(1, 2, 3, Append("a"), Mark.REFUSED)], ["a"]),
    "a refused read": ([A1, op(1, 2, 3, Read(), Mark.REFUSED), op(1, 4, None, Read())], ["a"]),
}

BAD_LOGS: dict[str, tuple[list[LogOperation], list[str], set[str]]] = {
    "an acknowledged message is gone": ([A1], [], {"LOST"}),
    "an acknowledged message is gone and another has its seq": ([A1, op(2, 0, None, Append("b"))], ["b"], {"LOST"}),
    "a message is there twice": ([A1], ["a", "a"], {"DOUBLED"}),
    "a message is at another seq": ([op(1, 0, 9, Append("a"), 1), op(2, 0, None, Append("b"))], ["b", "a"], {"MOVED"}),
    "a retry was told another seq": ([A1, B2, op(1, 4, 5, Append("a"), 3)], ["a", "b"], {"MOVED"}),
    "two messages were told the same seq": ([op(1, 0, 9, Append("a"), 1), op(2, 0, 9, Append("b"), 1)], ["a", "b"], {"MOVED"}),
    "a message from nowhere": ([A1], ["a", "b"], {"PHANTOM"}),
    "a refused message is there": ([op(1, 0, 1, Append("a"), Mark.REFUSED)], ["a"], {"REFUSED"}),
    "seqs against real time": ([op(1, 0, 1, Append("a"), 2), op(2, 2, 3, Append("b"), 1)], ["b", "a"], {"ORDER"}),
    "before an unanswered append was called": ([op(1, 0, 1, Append("a"), 2), op(2, 2, None, Append("b"))], ["b", "a"], {"ORDER"}),
    "before a refused one was called again": (
        [op(1, 0, 1, Append("b"), Mark.REFUSED), op(1, 2, 3, Append("a"), 2), op(2, 4, 5, Append("b"), 1)],
        ["b", "a"],
        {"ORDER"},
    ),
    "a stale read": ([A1, B2, op(2, 4, 5, Read(), 1)], ["a", "b"], {"STALE"}),
    "seqs against real time, and a retry later": (
        [op(1, 0, 1, Append("a"), 2), op(2, 2, 3, Append("b"), 1), op(1, 4, 5, Append("a"), 2)],
        ["b", "a"],
        {"ORDER"},
    ),
    "a stale read before a retry": ([A1, op(2, 2, 3, Read(), 0), op(1, 4, 5, Append("a"), 1)], ["a"], {"STALE"}),
    "a stale tail": ([A1, B2, op(2, 4, 5, Tail(5), Seen(("a",), 1))], ["a", "b"], {"STALE"}),
    "a read of the future": ([op(2, 0, 1, Read(), 1), op(1, 2, 3, Append("a"), 1)], ["a"], {"FUTURE"}),
    "reads go back": (
        [op(1, 0, 100, Append("a"), 1), op(2, 10, 11, Read(), 1), op(3, 20, 21, Read(), 0)],
        ["a"],
        {"BACKWARDS"},
    ),
    "reads of one client go back": (
        [op(1, 0, None, Append("a")), op(2, 10, 11, Read(), 1), op(2, 20, 21, Read(), 0)],
        ["a"],
        {"BACKWARDS"},
    ),
    "an unanswered append was seen and is gone": (LOST_AGAIN, ["a"], {"CONTENT", "BACKWARDS"}),
    "a tail shows another order": ([A1, B2, op(1, 4, 5, Tail(2), Seen(("b", "a"), 2))], ["a", "b"], {"CONTENT"}),
    "a tail shows what is not there": ([A1, op(1, 4, 5, Tail(2), Seen(("x",), 1))], ["a"], {"CONTENT"}),
    "a tail shows too little": ([A1, B2, op(1, 4, 5, Tail(2), Seen(("b",), 2))], ["a", "b"], {"CONTENT"}),
    "a tail shows too much": ([A1, B2, op(1, 4, 5, Tail(1), Seen(("a", "b"), 2))], ["a", "b"], {"CONTENT"}),
    "a tail shows more than its last seq": ([A1, op(1, 4, 5, Tail(2), Seen(("a", "a"), 1))], ["a"], {"CONTENT"}),
    "a read shows more than there is": ([A1, op(1, 4, 5, Read(), 2)], ["a"], {"CONTENT"}),
}


@pytest.mark.parametrize("name", GOOD_LOGS)
def test_a_right_log_is_accepted_by_both_judges(name: str) -> None:
    operations, message_ids = GOOD_LOGS[name]
    assert check_log(operations, numbered(message_ids)) == []
    assert check_linearizable(with_final_read(operations, numbered(message_ids)), LogModel()).ok


@pytest.mark.parametrize("name", BAD_LOGS)
def test_a_wrong_log_is_refused_by_both_judges_and_the_rule_is_named(name: str) -> None:
    operations, message_ids, broken = BAD_LOGS[name]
    history = numbered(message_ids)
    assert rules(operations, history) == broken
    verdict = check_linearizable(with_final_read(operations, history), LogModel())
    assert verdict.outcome is Outcome.NOT_OK
    assert_smallest(verdict.prefix, LogModel())


def test_seqs_with_a_hole_are_named() -> None:
    assert rules([A1, op(1, 2, 3, Append("b"), 3)], [(1, "a"), (3, "b")]) == {"HOLE"}
    assert rules([op(1, 0, 1, Append("a"), 2)], [(2, "a")]) == {"HOLE"}
    assert rules([op(1, 0, 9, Append("a"), 1), op(2, 0, 9, Append("b"), 1)], [(1, "a"), (1, "b")]) == {"HOLE"}
    assert "HOLE" in rules([A1, B2], [(2, "b"), (1, "a")])


def test_every_rule_has_a_history_that_breaks_it() -> None:
    assert {"HOLE"}.union(*(broken for _, _, broken in BAD_LOGS.values())) == {rule.name for rule in Rule} - {"REPLICAS"}


def test_a_violation_says_which_operations_show_it() -> None:
    stale = op(2, 4, 5, Read(), 1)
    (violation,) = check_log([A1, B2, stale], numbered(["a", "b"]))
    assert violation.operations == (B2, stale)
    assert str(violation).splitlines()[1:] == [f"  {B2}", f"  {stale}"]


def test_contexts_are_judged_one_by_one() -> None:
    operations = [op(1, 0, 1, Append("a", "left"), 1), op(1, 2, 3, Append("a", "right"), 1), op(1, 4, 5, Read("left"), 1)]
    assert check_linearizable(operations, LogModel()).ok
    with pytest.raises(ValueError, match="by_context"):
        check_log(operations, [])
    assert all(check_log(part, [(1, "a")]) == [] for part in by_context(operations).values())


# --- At random: a log that is linearizable by construction -------------------------------------------------------------------------------


@dataclass(slots=True)
class SimulatedLog:
    """Clients that overlap, each with one operation at a time; what they are told is decided at one point within it."""

    rng: Random
    clients: int
    unanswered: float
    message_ids: list[str] = field(default_factory=list)
    seq_of: dict[str, int] = field(default_factory=dict)
    operations: list[LogOperation] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)

    def run(self, count: int) -> History:
        """`count` operations; afterwards `operations` holds them."""
        turns = [(self.rng.randrange(9), client) for client in range(self.clients)]
        heapq.heapify(turns)
        effects: list[tuple[int, int, int, int, int | None, LogInput]] = []
        for number in range(count):
            called_at, client = heapq.heappop(turns)
            point = called_at + self.rng.randrange(12)
            asked = self._ask(number)
            returned_at: int | None = None
            if self.rng.random() < self.unanswered:
                heapq.heappush(turns, (called_at + self.rng.randrange(1, 20), client))
                point = called_at + self.rng.randrange(100)
                if isinstance(asked, Append) and self.rng.random() < 0.5:
                    self.retries.append(asked.message_id)
                if self.rng.random() < 0.4:
                    self.operations.append(Operation(client, called_at, None, asked))
                    continue
            else:
                returned_at = point + self.rng.randrange(12)
                heapq.heappush(turns, (returned_at + self.rng.randrange(1, 9), client))
            effects.append((point, number, client, called_at, returned_at, asked))
        for _, number, client, called_at, returned_at, asked in sorted(effects, key=lambda effect: effect[:2]):
            answer = self._perform(asked)
            if returned_at is not None and self.rng.random() < 0.05:
                self.operations.append(Operation("refused", called_at, returned_at, Append(f"refused-{number}"), Mark.REFUSED))
            self.operations.append(Operation(client, called_at, returned_at, asked, Mark.UNKNOWN if returned_at is None else answer))
        self.rng.shuffle(self.operations)
        return numbered(self.message_ids)

    def _ask(self, number: int) -> LogInput:
        if self.retries and self.rng.random() < 0.5:
            return Append(self.retries.pop())
        return self.rng.choice((Append(f"m{number}"), Append(f"m{number}"), Read(), Tail(self.rng.randrange(1, 5))))

    def _perform(self, asked: LogInput) -> int | Seen:
        match asked:
            case Append(message_id):
                if message_id not in self.seq_of:
                    self.message_ids.append(message_id)
                    self.seq_of[message_id] = len(self.message_ids)
                return self.seq_of[message_id]
            case Read():
                return len(self.message_ids)
            case Tail(limit):
                return Seen(tuple(self.message_ids[-limit:]), len(self.message_ids))


def simulated(seed: int, count: int, clients: int = 4, unanswered: float = 0.1) -> tuple[list[LogOperation], History]:
    log = SimulatedLog(Random(seed), clients, unanswered)
    history = log.run(count)
    return log.operations, history


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS, count=st.integers(1, 60), clients=st.integers(1, 6), unanswered=st.sampled_from((0.0, 0.05, 0.2)))
def test_what_a_linearizable_log_answers_is_accepted_by_both_judges(seed: int, count: int, clients: int, unanswered: float) -> None:
    operations, history = simulated(seed, count, clients, unanswered)
    assert check_log(operations, history) == []
    assert check_linearizable(operations, LogModel()).ok
    assert check_linearizable(with_final_read(operations, history), LogModel()).ok


def acknowledged(operations: Sequence[LogOperation]) -> dict[str, LogOperation]:
    return {o.input.message_id: o for o in operations if isinstance(o.input, Append) and isinstance(o.output, int)}


def drop(rng: Random, operations: list[LogOperation], history: History) -> tuple[History, set[str]] | None:
    """An acknowledged message goes, and what follows moves up."""
    known = sorted(acknowledged(operations))
    if not known:
        return None
    gone = rng.choice(known)
    return numbered([message_id for _, message_id in history if message_id != gone]), {"LOST"}


def swap(rng: Random, operations: list[LogOperation], history: History) -> tuple[History, set[str]] | None:
    """An acknowledged message and another change places."""
    known = acknowledged(operations)
    places = [place for place, (_, message_id) in enumerate(history) if message_id in known]
    if not places or len(history) < 2:
        return None
    one = rng.choice(places)
    other = rng.choice([place for place in range(len(history)) if place != one])
    message_ids = [message_id for _, message_id in history]
    message_ids[one], message_ids[other] = message_ids[other], message_ids[one]
    return numbered(message_ids), {"MOVED"}


def double(rng: Random, operations: list[LogOperation], history: History) -> tuple[History, set[str]] | None:
    """A message is stored a second time, at the end."""
    if not history:
        return None
    return [*history, (len(history) + 1, rng.choice(history)[1])], {"DOUBLED"}


def go_stale(rng: Random, operations: list[LogOperation], history: History) -> tuple[History, set[str]] | None:
    """A read answers as if the last message that was acknowledged before it had not been there."""
    known = acknowledged(operations).values()
    for index in rng.sample(range(len(operations)), len(operations)):
        read = operations[index]
        if isinstance(read.input, Append) or read.returned_at is None:
            continue
        before = [o.output for o in known if o.returned_at is not None and o.returned_at < read.called_at and isinstance(o.output, int)]
        if before:
            last_seq = rng.randrange(max(before))
            message_ids = [message_id for _, message_id in history[:last_seq]]
            shown = Seen(tuple(message_ids[-read.input.limit :]), last_seq) if isinstance(read.input, Tail) else last_seq
            operations[index] = replace(read, output=shown)
            return history, {"STALE"}
    return None


MUTATIONS = (drop, swap, double, go_stale)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS, count=st.integers(4, 40), mutation=st.sampled_from(MUTATIONS))
def test_what_a_wrong_log_answers_is_refused_by_both_judges(seed: int, count: int, mutation: Any) -> None:
    operations, history = simulated(seed, count, unanswered=0.05)
    mutated = mutation(Random(seed), operations, history)
    if mutated is None:
        return
    wrong, broken = mutated
    assert broken <= rules(operations, wrong)
    assert check_linearizable(with_final_read(operations, wrong), LogModel()).outcome is Outcome.NOT_OK


def test_200_000_operations_are_judged_in_one_sweep() -> None:
    """Quadratic judges would need hours here; the deadline of the suite would end them."""
    operations, history = simulated(1, 200_000, clients=64)
    assert check_log(operations, history) == []
    wrong, broken = drop(Random(1), operations, history) or ([], set())
    assert broken <= rules(operations, wrong)


# --- At random: beside every order -------------------------------------------------------------------------------------------------------


def some_order_explains(operations: Sequence[Operation[Any, Any]], model: Model[Any, Any, Any]) -> bool:
    """Linearizability by its definition: for each choice of unanswered operations that took effect, each order, one by one."""
    answered = [operation for operation in operations if operation.returned_at is not None]
    unanswered = [operation for operation in operations if operation.returned_at is None]
    return any(
        respects_real_time(order) and is_allowed(order, model)
        for count in range(len(unanswered) + 1)
        for chosen in combinations(unanswered, count)
        for order in permutations([*answered, *chosen])
    )


def respects_real_time(order: Sequence[Operation[Any, Any]]) -> bool:
    return not any(later.returned_at is not None and later.returned_at < earlier.called_at for earlier, later in combinations(order, 2))


def is_allowed(order: Sequence[Operation[Any, Any]], model: Model[Any, Any, Any]) -> bool:
    state: Hashable = model.initial
    for operation in order:
        state = model.step(state, operation.input, operation.output)
        if state is None:
            return False
    return True


def interval(rng: Random) -> tuple[int, int | None]:
    called_at = rng.randrange(12)
    return called_at, None if rng.random() < 0.2 else called_at + rng.randrange(8)


def any_registers(rng: Random) -> Iterator[Operation[Any, Any]]:
    """Operations with answers at random from few values, so that some are right by chance."""
    for client in range(rng.choice((1, 2, 3, 4, 4, 5, 5, 6))):
        called_at, returned_at = interval(rng)
        value = rng.choice("ab")
        asked, answers = rng.choice(
            ((Get("x"), ("", "a", "b")), (Put("x", value), (True,)), (Swap("x", rng.choice(("", "a", "b")), value), (True, False)))
        )
        yield op(client, called_at, returned_at, asked, Mark.UNKNOWN if returned_at is None else rng.choice(answers))


def any_log(rng: Random, operations_max: int) -> tuple[list[LogOperation], History]:
    """A log that some order explains but for about one answer, and a history that may be another."""
    log = SimulatedLog(rng, rng.choice((1, 2, 3, 5)), 0.25)
    history = log.run(rng.randrange((operations_max + 1) // 2, operations_max + 1))
    operations = log.operations[:operations_max]
    for index, operation in enumerate(operations):
        if operation.returned_at is None or rng.random() > 2 / operations_max:
            continue
        match operation.output:
            case int(seq):
                operations[index] = replace(operation, output=rng.choice((seq, max(seq - 1, isinstance(operation.input, Append)), seq + 1)))
            case Seen(seen, last_seq):
                shown = list(seen)
                rng.shuffle(shown)
                operations[index] = replace(operation, output=Seen(tuple(shown), rng.choice((last_seq, last_seq, len(shown)))))
        if rng.random() < 0.3:
            operations[index] = replace(operations[index], called_at=operation.returned_at)
    message_ids = [message_id for _, message_id in history]
    if rng.random() < 0.3:
        rng.shuffle(message_ids)
    if message_ids and rng.random() < 0.1:
        message_ids.pop()
    return operations, numbered(message_ids)


@pytest.mark.parametrize("seed", range(4))
def test_the_search_agrees_with_trying_every_order_of_registers(seed: int) -> None:
    verdicts = {True: 0, False: 0}
    for number in range(2_500):
        operations = list(any_registers(Random(f"{seed}/{number}")))
        right = some_order_explains(operations, KvModel())
        verdict = check_linearizable(operations, KvModel())
        assert verdict.ok == right, (seed, number, operations)
        if not right:
            assert verdict.outcome is Outcome.NOT_OK
            assert_smallest(verdict.prefix, KvModel())
        verdicts[right] += 1
    assert min(verdicts.values()) > 500


@pytest.mark.parametrize("seed", range(4))
def test_both_judges_agree_with_trying_every_order_of_a_log(seed: int) -> None:
    verdicts = {True: 0, False: 0}
    for number in range(2_500):
        operations, history = any_log(Random(f"{seed}/{number}"), 5)
        everything = with_final_read(operations, history)
        right = some_order_explains(everything, LogModel())
        verdict = check_linearizable(everything, LogModel())
        assert verdict.ok == right, (seed, number, operations, history)
        assert (check_log(operations, history) == []) == right, (seed, number, operations, history)
        if not right:
            assert_smallest(verdict.prefix, LogModel())
        verdicts[right] += 1
    assert min(verdicts.values()) > 500


def test_both_judges_agree_on_logs_that_are_too_long_for_every_order() -> None:
    verdicts = {True: 0, False: 0}
    for number in range(700):
        operations, history = any_log(Random(number), 24)
        verdict = check_linearizable(with_final_read(operations, history), LogModel())
        assert verdict.outcome is not Outcome.UNDECIDED
        assert (check_log(operations, history) == []) == verdict.ok, (number, operations, history)
        verdicts[verdict.ok] += 1
    assert min(verdicts.values()) > 100
