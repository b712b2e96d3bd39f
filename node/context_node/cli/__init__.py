"""The command line `contextstore`, and the only place that wires the parts of a node together.

`main` is the entry point; `commands` lists the commands; `node_process` is a node's life as a process, from the first signal handler to
exit 0; `wiring` maps settings onto what each part asks for; `importing` and `exporting` talk to a node over HTTP like any client
(`client`). Clock, randomness, signals and event loop enter here and nowhere below.
"""

from context_node.cli.commands import main

__all__ = ["main"]
