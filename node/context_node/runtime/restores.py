"""Parts of a restore: from what an archive holds to commands in the log.

Knows the checks that a leader makes before it proposes (S1). Does not know archives: `contextstore restore` reads one and sends what it
finds. Invariant: what was restored already costs no command, so that a restore may be repeated at will.
"""

from collections.abc import Callable
from typing import cast

from context_node import tokens
from context_node.contexts.commands import RestoreContext, Rules
from context_node.contexts.refusals import Unprocessable
from context_node.contexts.replies import RestoredUpTo
from context_node.contexts.restore_checks import check_messages, parse_record
from context_node.contexts.restoring import Restore, check_goes_on, is_restored
from context_node.runtime.shards import ShardDirectory, accepted


class Restores:
    """The restoring part of the service."""

    def __init__(self, shards: ShardDirectory, rules: Rules, now_ms: Callable[[], int]) -> None:
        self._shards, self._rules, self._now_ms = shards, rules, now_ms

    async def restore_context(self, context_id: str, request: Restore) -> RestoredUpTo:
        """Add messages of an archived context to what is here of it, and make it whole with its record. Raises `Unprocessable` for what is
        damaged, `VersionConflict` for a gap or where another context has the id, `Unavailable`."""
        check_messages(request.first_seq, request.messages)
        if request.end is not None:
            tokenizer = parse_record(request.end.record).head.config.tokenizer
            if tokenizer not in tokens.TOKENIZERS:
                raise Unprocessable(f"This version has no tokenizer {tokenizer!r}.", field="tokenizer")
        replica = self._shards.replica_of(context_id)
        await replica.read_barrier()
        context = replica.context(context_id)
        if context is not None and is_restored(context, request.end):
            return RestoredUpTo(context.head.last_seq, True)
        check_goes_on(context, request.source, request.first_seq)
        command = RestoreContext(context_id, self._now_ms(), self._rules, request.source, request.first_seq, request.messages, request.end)
        return cast(RestoredUpTo, accepted(await replica.propose(command)))
