"""What an app saw of a cluster, judged by the checkers of `make chaos` (tests/support/histories.py)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from support.histories import Append, LogModel, LogOperation, Mark, Operation, Outcome, Read, by_context, check_linearizable, check_log

STEPS_MAX = 500_000


@dataclass
class Told:
    """Times in seconds. `slowest_s`: the longest that an append took with all its tries; `gap_s`: the longest in which no append to some
    context was acknowledged, though somebody tried all the while."""

    operations: int = 0
    acknowledged: int = 0
    slowest_s: float = 0.0
    gap_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.operations} operations, {self.acknowledged} appends acknowledged, slowest {self.slowest_s:.2f} s, "
            f"longest gap of a context {self.gap_s:.2f} s; {len(self.wrong)} violations"
        )


def judge(text: str) -> Told:
    """`text`: what load.py wrote, a JSON array a line."""
    told = Told()
    operations, histories = _parsed(text.splitlines(), told)
    told.operations = len(operations)
    appends = [one for one in operations if isinstance(one.input, Append) and one.returned_at is not None]
    told.acknowledged = len(appends)
    told.slowest_s = max((_took_s(one) for one in appends), default=0.0)
    for context, part in by_context(operations).items():
        if context not in histories:
            told.wrong.append(f"{context} was not read back")
            continue
        told.wrong += [str(one) for one in check_log(part, histories[context])]
        # The two agree (tests/chaos/test_histories.py); this one knows no rules, only what a log does.
        if check_linearizable(part, LogModel(), STEPS_MAX).outcome is Outcome.NOT_OK:
            told.wrong.append(f"{context}: no order of the operations explains the answers")
        begun = min(one.called_at for one in part)
        ends = sorted(one.returned_at for one in part if isinstance(one.input, Append) and one.returned_at is not None)
        told.gap_s = max([told.gap_s, *((later - at) / 1e9 for at, later in pairwise([begun, *ends]))])
    return told


def _parsed(lines: Iterable[str], told: Told) -> tuple[list[LogOperation], dict[str, list[tuple[int, str]]]]:
    operations: list[LogOperation] = []
    histories: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        match json.loads(line):
            case ["append", client, context, message_id, called, returned, seq]:
                output = Mark.UNKNOWN if returned is None else seq
                operations.append(Operation(client, called, returned, Append(message_id, context), output))
            case ["read", client, context, called, returned, last_seq]:
                operations.append(Operation(client, called, returned, Read(context), last_seq))
            case ["history", context, found]:
                histories[context] = [(seq, message_id) for seq, message_id in found]
            case ["wrong", sentence]:
                told.wrong.append(sentence)
            case other:
                raise ValueError(f"a line that nobody writes: {other}")
    return operations, histories


def _took_s(operation: LogOperation) -> float:
    return ((operation.returned_at or operation.called_at) - operation.called_at) / 1e9
