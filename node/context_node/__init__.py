"""One node of Context Store: conversations kept whole, windows kept under a token budget, over HTTP.

One write, followed through the folders. `POST /v1/contexts/{id}/messages` is parsed and validated in `http/`, which
is the only place that reads JSON. `tokens/` counts it. `runtime/` hashes the id to a shard, hydrates what the command
names and proposes it; `raft/` says what to persist and send; `runtime/` commits one fsynced batch for all shards of
the node; only then is the entry applied by `contexts/`, which is pure, and the reply leaves.

One read. `GET /v1/contexts/{id}/context` asks `runtime/` for a read index, then joins the window's messages, which are
kept in memory as ready JSON bytes. Its cost follows the window, never the history.

Imports point downwards only: `cli` > `http` > `runtime` > `tokens` > `contexts` | `raft`; import-linter enforces it.
`settings` and `api_keys` are leaves that the upper layers share.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("contextstore")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
