"""A shard's contexts as the archive has them, and the way back into another shard.

Knows what rows of the archive hold, and the order in which `contextstore restore` sends them. Does not know Postgres.
"""

from collections.abc import Sequence
from random import Random

import msgspec

from context_node.contexts.commands import CopyPolicy, RestoreContext, RestoredMessage, RestoreEnd
from context_node.contexts.context import read_head
from context_node.contexts.items import info_decoder
from context_node.contexts.policies import policy_decoder
from context_node.contexts.replies import Refused, Reply, RestoredUpTo
from context_node.contexts.restore_parts import held_by
from support.stored_shard import StoredShard
from support.window_messages import RULES

SOURCE = "c" * 32 + ":7"


def copy_policies(old: StoredShard, new: StoredShard, first_generation: int | None = None) -> None:
    """Give `new` the policies of `old`; numbered anew from `first_generation` on, if that is given."""
    old.flush()
    for data in old.policies.values():
        record = policy_decoder.decode(data).record
        if first_generation is not None:
            record = msgspec.structs.replace(record, generation=first_generation)
        new.apply(CopyPolicy(new.at_ms, record))


def parts(old: StoredShard, context_id: str, sizes: Sequence[int], upto: int | None = None) -> list[RestoreContext]:
    """The commands that bring a context back: `sizes` messages in each, in turn. `upto`: the archive has messages up to there only."""
    old.flush()
    ordinal, record = old.records[context_id]
    head = read_head(record)
    last_seq = head.last_seq if upto is None else upto
    ids = {row.seq: (name, row.version, row.estimate, row.digest) for (at, name), row in old.ids.items() if at == ordinal}
    rows = [old.messages[ordinal << 32 | seq] for seq in range(1, last_seq + 1)]
    costs = [(seq, info_decoder.decode(info).tokens) for seq, (_, info) in enumerate(rows, 1)]
    held, rebuild_from = held_by(record, last_seq, reversed(costs))
    messages = [RestoredMessage(body, info, ids.get(seq), seq in held) for seq, (body, info) in enumerate(rows, 1)]
    ref = head.config.policy.ref
    is_current = ref is None or policy_decoder.decode(old.policies[ref]).record.generation == head.policy_generation
    end = RestoreEnd(record, last_seq, rebuild_from, is_current)
    made: list[RestoreContext] = []
    first, turn = 1, 0
    while first <= last_seq:
        size = sizes[turn % len(sizes)]
        made.append(RestoreContext(context_id, old.at_ms, RULES, SOURCE, first, tuple(messages[first - 1 : first - 1 + size])))
        first, turn = first + size, turn + 1
    if made and len(rows) % 2:
        return [*made[:-1], msgspec.structs.replace(made[-1], end=end)]
    return [*made, RestoreContext(context_id, old.at_ms, RULES, SOURCE, last_seq + 1, (), end)]


def restore(new: StoredShard, commands: Sequence[RestoreContext], rng: Random | None = None) -> Reply:
    """Apply them in order; with `rng` some come twice, and in between the shard forgets or restarts. The last reply."""
    reply: Reply | None = None
    for place, command in enumerate(commands):
        if rng is not None:
            rng.choice((new.flush, new.forget, new.restart, lambda: None))()
        reply, _event = new.apply(command)
        assert not isinstance(reply, Refused), reply
        if rng is not None and rng.random() < 0.3:
            for again in commands[max(0, place - 1) : place + 1]:
                known, _event = new.apply(again)
                assert known == reply or place == len(commands) - 1, (known, reply)
    assert isinstance(reply, RestoredUpTo)
    return reply
