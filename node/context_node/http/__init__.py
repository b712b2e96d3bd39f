"""The edge: HTTP in, typed requests out, bytes back.

A request's way, followed through the files: `app` builds the table of routes and hands every request to `edge`, which gives it an id,
finds its route (`routing`), checks its key (`auth`), bounds it (`limits`) and calls a handler (`messages`, `contexts`, `window`,
`streams`, `policies`, `health`). A handler parses (`codec` for bodies, `queries` for query strings; the shapes are in `schemas`), calls
the `service`, and answers with a `replies.Reply`. Whatever is refused on the way becomes a status in one table: `problems`.

Invariants: nothing reaches the service that was not validated; `codec` is the only JSON parser; no answer carries a stack trace.
"""
