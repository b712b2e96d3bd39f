"""What commands that talk to a node share: the options that say which node, and how a signal ends them.

Knows click. Does not know what the commands do.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from context_node.cli.exits import stopped_by

DEFAULT_URL = "http://127.0.0.1:4000"


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that talks to a node."""
    key = click.option(
        "--key",
        envvar="CONTEXTSTORE_API_KEY",
        metavar="KEY",
        help="API key; better in CONTEXTSTORE_API_KEY: lists of processes show flags.",
    )
    url = click.option(
        "--url", envvar="CONTEXTSTORE_URL", default=DEFAULT_URL, show_default=True, metavar="URL", help="The node. [env: CONTEXTSTORE_URL]"
    )
    return url(key(command))


def interruptible(work: Callable[[], Coroutine[Any, Any, None]], said: str) -> None:
    """Run the work; Ctrl-C ends it with a sentence instead of a traceback."""
    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        click.echo(said, err=True)
        sys.exit(stopped_by(signal.SIGINT))
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing to tell and nobody to tell it to.
        sys.stderr.close()
        sys.exit(stopped_by(signal.SIGPIPE))
