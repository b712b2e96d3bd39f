"""The archive: history copied to Postgres behind the writes, never in their way.

`schema` is what stands there, `postgres` the only caller of it, `archiver` decides what is copied when.
"""
