"""What is replicated: contexts, their messages and windows, and the state machine that changes them. Pure.

Read in this order: `requests` (what a caller asks), `commands` (what the log holds), `machine` (what a command does), then a
window's life: `window` (how an item joins), `units` (what belongs together), `compaction` (what leaves, and when: eviction
lives there), `strategies/`, `rewriting` with `ranges` and `pinning` (by hand), `fitting` (for one read), `render` (the answer).
`parts`, `items` and `context` are the values they work on; `changes` is what has yet to be stored. Nothing here knows a clock,
I/O, asyncio, or Raft. What exists once per message is frozen and made of older values, so it can be in no cycle, and the cyclic collector
is told to leave it alone (`gc=False`): it would look at each again and again. DESIGN.md holds the decisions where SEMANTICS.md leaves a
choice.
"""
