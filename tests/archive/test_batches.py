"""What goes to the archive together, while others write."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from context_node.archive.backlog import Backlog
from context_node.archive.batches import Batch, BatchLimits, next_batch


def head(last_seq: int, archived_seq: int) -> SimpleNamespace:
    return SimpleNamespace(archive_epoch=1, archived_seq=archived_seq, last_seq=last_seq, archived_revision=1, revision=1, trimmed_seq=0)


def test_h6_what_comes_for_a_context_just_found_idle_waits_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "idle" lacks nothing and is taken from the backlog; before the batch is whole a message comes for it."""
    contexts: dict[str, Any] = {name: SimpleNamespace(id=name, head=head(3, seq)) for name, seq in (("idle", 3), ("behind", 1))}
    replica: Any = SimpleNamespace(machine=SimpleNamespace(archive_epoch=1), context=contexts.get)
    limits = BatchLimits()
    backlog = Backlog(lambda: 0, limits.is_behind)
    for name in contexts:
        backlog.came(name, ())

    def add(batch: Batch, _replica: object, context: Any, _limits: object, _held: int) -> None:
        batch.marks.append(context.id)
        # Runs when the batch lets others in.
        asyncio.get_running_loop().call_soon(lambda: backlog.came("idle", [b"new"]))

    monkeypatch.setattr(Batch, "add", add)
    batch = asyncio.run(next_batch(replica, list(backlog), limits, {}, backlog.drop))
    assert batch.marks == ["behind"]
    assert "idle" in list(backlog) and backlog.messages == 1
