"""Planted bugs about the archive: what is copied, noted, trimmed, erased and read back (H6; docs/archive.md)."""

from support.planted import Mutant

ARCHIVER = "context_node.archive.archiver"
COPYING = "context_node.archive.copying"
BATCHES = "context_node.archive.batches"
COLD = "context_node.archive.cold"
ARCHIVING = "context_node.contexts.archiving"
CHANGES = "context_node.contexts.changes"
CONTEXT = "context_node.contexts.context"
HISTORIES = "context_node.runtime.histories"
STORING = "context_node.runtime.storing"

_WRITE = "            await self._archive.write(replica.shard, led.term, batch.messages, batch.contexts)\n"
_NOTE = "        accepted(await replica.propose(NoteArchived(self._now_ms(), tuple(batch.marks))))\n"
_ERASE = "            await self._archive.erase(replica.shard, led.term, purged)\n"
_ERASED = "            accepted(await replica.propose(NoteArchived(self._now_ms(), erased=tuple(purged))))\n"

MUTANTS = (
    Mutant(
        "a batch is noted before Postgres has committed it",
        "H6: the hole of the original system",
        ((COPYING, _WRITE, "    " + _NOTE + _WRITE), (COPYING, "trimmed (H6).\n" + _NOTE, "trimmed (H6).\n")),
    ),
    Mutant(
        "a batch is noted although Postgres refused it",
        "H6: the hole of the original system",
        (
            (
                COPYING,
                "        except Behind as error:\n",
                "        except ArchiveError:\n            pass\n        except Behind as error:\n",
            ),
        ),
    ),
    Mutant(
        "a mark tells the end of a context that was copied in part",
        "H6",
        (
            (
                BATCHES,
                "Archived(context.id, head.incarnation, copied, head.revision, trim_to)",
                "Archived(context.id, head.incarnation, last, head.revision, trim_to)",
            ),
        ),
    ),
    Mutant(
        "a leader goes on where it believes that it was, not where the log says",
        "H6: a new leader goes on exactly behind what was confirmed",
        (
            (
                BATCHES,
                "        copied = self._take(replica, context, held, last, limits.bytes)\n",
                "        head.archived_seq = copied = self._take(replica, context, held, last, limits.bytes)\n",
            ),
        ),
    ),
    Mutant(
        "what the archive lost is looked for behind where it was believed to end",
        "H6: the archive has everything, also after it was brought back from a backup",
        (
            (
                BATCHES,
                "batch.add(replica, context, limits, again.get(context_id, archived_upto(context.head, epoch)))",
                "batch.add(replica, context, limits, archived_upto(context.head, epoch))",
            ),
        ),
    ),
    Mutant(
        "an erasure is noted before it is done",
        "SEMANTICS, Life of a context: purge reaches the archive",
        ((COPYING, _ERASE + _ERASED, _ERASED + _ERASE),),
    ),
    Mutant(
        "what is to be erased is forgotten with the process",
        "SEMANTICS, Life of a context: archive erasure is queued as replicated state",
        ((STORING, "        tuple(machine.erasures),\n", "        (),\n"),),
    ),
    Mutant(
        "every replica copies, and with the term that it has heard of",
        "the fence: only the present leader changes anything",
        (
            (ARCHIVER, "    return replica.leads\n", "    return replica.failure is None\n"),
            (ARCHIVER, "if is_led(one) and one.applied_term == one.group.term}", "if is_led(one)}"),
        ),
    ),
    Mutant(
        "a trim depends on what a replica has stored already",
        "W5: rows follow from the log alone",
        (
            (
                ARCHIVING,
                "upto = min(mark.trimmed_seq, head.archived_seq)",
                "upto = min(mark.trimmed_seq, head.archived_seq, context.tail_from - 1)",
            ),
        ),
    ),
    Mutant(
        "a trim passes what is confirmed",
        "H6",
        (
            (ARCHIVING, "upto = min(mark.trimmed_seq, head.archived_seq)", "upto = mark.trimmed_seq"),
            (BATCHES, "max(head.trimmed_seq, min(archived_seq, head.last_seq - keep))", "max(head.trimmed_seq, head.last_seq - keep)"),
        ),
    ),
    Mutant(
        "the first message behind the boundary is looked for in the hot store",
        "H6: a read still finds it",
        (
            (
                CONTEXT,
                "return min(self.head.trimmed_seq, self.head.last_seq - len(self.tail))",
                "return min(self.head.trimmed_seq, self.head.last_seq - len(self.tail)) - 1",
            ),
        ),
    ),
    Mutant(
        "messages that the archive lacks are left out of a page",
        "H6: a hole is an error, never a shorter history",
        (
            (COLD, "    if not found or [one.seq for one in found] != list(wanted[: len(found)]):\n", "    if False:\n"),
            (
                BATCHES,
                "for one in hot_rows(replica, context, held + 1, last):",
                "for one in hot_rows(replica, context, held + 1 + (held % 5 == 4), last):",
            ),
        ),
    ),
)
