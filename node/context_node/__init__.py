"""One node of Context Store: conversations kept whole, windows kept under a token budget, over HTTP.

One write, followed through the files. `POST /v1/contexts/{id}/messages` is parsed and validated in `http/messages.py`
(`http/codec.py` is the only place that reads JSON bodies). `runtime/writes.py` hashes the id to a shard, has `tokens/` count and
`contexts/commands.py` draft the messages, and proposes the command (`runtime/replica.py`); `raft/` says what to persist and send;
`runtime/engine.py` commits one fsynced batch for all shards of the node (`runtime/log_store.py`); only then is the entry applied by
`contexts/machine.py`, which is pure, and the reply leaves. `contexts/compaction.py` evicts where the window grew too large;
`runtime/upkeep.py` stores the effects behind. A refusal becomes a status in `http/problems.py`.

One read. `GET /v1/contexts/{id}/context` comes through `http/window.py` to `runtime/reads.py`, which waits for what was acknowledged before
and joins the window's messages (`contexts/render.py`), kept in memory as ready JSON bytes. Its cost follows the window, never the history.

In a cluster `runtime/routing.py` takes a write to the shard's leader (`runtime/calls.py` over `runtime/transport.py`) before all this, and
`runtime/cluster.py` carries Raft's messages: an entry is committed when a majority of the shard's replicas has it in the log. A follower
answers reads after `replica.read_barrier`. `runtime/moving.py` lets replicas come, go and catch up; who should hold what is decided outside
(`operator/context_operator/placement.py`).

Imports point downwards only: `cli` > `http` > `runtime` > `tokens` > `contexts` | `raft`; import-linter enforces it.
`settings` and `api_keys` are leaves that the upper layers share.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("contextstore")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
