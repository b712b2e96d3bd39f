"""Writes on their way through one shard's log: who waits for which entry.

Each waits until its entry is applied here, or another's in its place. A leader that ceases to lead keeps them for a while: whoever leads
next has what a majority has, so that most are committed after all, and applying them here answers them as if nothing had happened. Knows
places in the log and futures. Does not know Raft, nor what a command does. Invariants: every future is answered, at last as
`outcome_unknown`; only the entry of the same index and term answers a write with a reply (P4, P13).
"""

import asyncio
from dataclasses import dataclass

from context_node.contexts.commands import Command
from context_node.contexts.refusals import OutcomeUnknown
from context_node.contexts.replies import Reply

OUTLIVE_ELECTIONS = 3
"""So many election timeouts a write waits for its entry after its leader ceased to lead: somebody leads by then, if there is a majority
that does not split its votes again and again."""


@dataclass(slots=True)
class Proposal:
    """The term that a command was proposed in, its size in the log, and who waits for the reply. `since`: the tick at which its leader
    ceased to lead."""

    term: int
    command: Command
    size: int
    reply: "asyncio.Future[Reply]"
    since: int | None = None


class Proposals:
    """By index in the log. `queued_bytes`: of those that were proposed while this replica led and leads."""

    def __init__(self) -> None:
        self.queued_bytes = 0
        self._waiting: dict[int, Proposal] = {}
        self._have_outlived = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, index: int, proposal: Proposal) -> None:
        """A leader put a command into its log. What waited for that place before was proposed in an earlier term and cut off."""
        if (replaced := self._waiting.get(index)) is not None:
            _give_up(replaced)
        self._waiting[index] = proposal
        self.queued_bytes += proposal.size

    def at(self, index: int) -> Proposal | None:
        """The write that waits for this entry. It stays until `done`, so that `give_up` answers it if applying raises."""
        return self._waiting.get(index)

    def done(self, index: int, proposal: Proposal) -> None:
        """The entry in its place was applied. If that did not answer it, it was another leader's (P13)."""
        _give_up(proposal)
        del self._waiting[index]
        if proposal.since is None:
            self.queued_bytes -= proposal.size

    def outlive(self, tick: int) -> None:
        """This replica leads no more: whoever leads next may commit them, or replace them."""
        for proposal in self._waiting.values():
            if proposal.since is None:
                proposal.since = tick
                self._have_outlived = True
        self.queued_bytes = 0

    def tick(self, tick: int, election_ticks: int) -> None:
        """Give up those that have waited for long enough since: nobody else may commit anything, and then nobody would hear of them."""
        if not self._have_outlived:
            return
        limit = OUTLIVE_ELECTIONS * election_ticks
        late = [index for index, one in self._waiting.items() if one.since is not None and tick - one.since >= limit]
        for index in late:
            _give_up(self._waiting.pop(index))
        self._have_outlived = any(one.since is not None for one in self._waiting.values())

    def give_up(self) -> None:
        """Answer all: it will not be known here what becomes of them."""
        for proposal in self._waiting.values():
            _give_up(proposal)
        self._waiting.clear()
        self.queued_bytes = 0


def _give_up(proposal: Proposal) -> None:
    if not proposal.reply.done():
        proposal.reply.set_exception(outcome_unknown())


def outcome_unknown() -> OutcomeUnknown:
    return OutcomeUnknown("The write may or may not have been kept; retry with the same Idempotency-Key to find out.")
