"""The archive: history copied to Postgres behind the writes, never in their way.

`schema` is what stands there, `postgres` what nodes ask of it, `archiver` decides what is copied when, `cold` reads back what was trimmed.
`reading` goes through an archive as a whole, for the commands that restore and compare.
"""
