"""What `contextstore dev` says once it is ready: where it is, where its data is, and a line to try."""

from context_node import __version__
from context_node.settings import Settings


def text(settings: Settings, url: str, contexts: int, *, is_all: bool) -> str:
    """The banner. `contexts` were counted; `is_all` tells whether there are no more."""
    held = f"{contexts:,}" if is_all else f"more than {contexts - 1:,}"
    word = "context" if contexts == 1 and is_all else "contexts"
    who = "anyone on this machine (no API key)" if settings.open_mode and settings.on_loopback else ""
    who = who or ("anyone who can reach it: --open" if settings.open_mode else "holders of an API key")
    key = "" if settings.open_mode else " -H 'Authorization: Bearer '$KEY"
    return f"""
Context Store {__version__} is ready.

  URL    {url}  (pages to read: {url}/docs)
  Data   {settings.data_dir.resolve()}, {held} {word}
  For    {who}

Try it:

  curl -X POST '{url}/v1/contexts/hello/messages?create=true'{key} \\
    -H 'Content-Type: application/json' -d '{{"message": {{"role": "user", "content": "Hi there"}}}}'
  curl {url}/v1/contexts/hello/context{key}

Ctrl-C stops it.
"""
