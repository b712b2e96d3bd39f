"""A next version of Context Store, for tests of upgrades: this one, with a second revision of the state machine planted into it.

Knows which pieces of the source a new revision touches, as `contexts/revisions.py` asks of developers: a command type of its own, proposed
only from its feature level on. As a program it is that version's `contextstore`. Its appends write one more member into each message, so
that who applied what can be seen in the histories, and a wrong byte in the digests.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.planted import Mutant, plant

MEMBER = "written_as"
"""The member of a message that only the next version writes."""

NEXT_VERSION = Mutant(
    "a second revision of the state machine",
    "ARCHITECTURE.md, feature level",
    (
        ("context_node.contexts.revisions", "NEWEST: Final = 1\n", "NEWEST: Final = 2\n"),
        (
            "context_node.contexts.revisions",
            "SINCE: Final[Mapping[type, int]] = {}\n",
            "from context_node.contexts.commands import AppendMessages2\nSINCE: Final[Mapping[type, int]] = {AppendMessages2: 2}\n",
        ),
        (
            "context_node.contexts.commands",
            "ContextCommand = (\n    AppendMessages\n",
            "class AppendMessages2(AppendMessages, frozen=True, gc=False, array_like=True, tag='append/2'):\n"
            "    pass\n\n\n"
            "ContextCommand = (\n    AppendMessages2\n    | AppendMessages\n",
        ),
        (
            "context_node.contexts.machine",
            "            if type(command) is AppendMessages:\n",
            "            if isinstance(command, AppendMessages):\n",
        ),
        (
            "context_node.contexts.machine",
            "        for draft in command.drafts:\n            item = self._record_message(context, draft)\n",
            "        for draft in command.drafts:\n"
            "            if type(command) is not AppendMessages:\n"
            f"                draft = msgspec.structs.replace(draft, fields=draft.fields + b',\"{MEMBER}\":2')\n"
            "            item = self._record_message(context, draft)\n",
        ),
        (
            "context_node.runtime.replica",
            "        if self.write_refusal is not None:\n",
            "        if type(command) is AppendMessages and self.level() >= 2:\n"
            "            from context_node.contexts.commands import AppendMessages2\n"
            "            command = AppendMessages2(*(getattr(command, name) for name in AppendMessages.__struct_fields__))\n"
            "        if self.write_refusal is not None:\n",
        ),
        (
            "context_node.runtime.replica",
            "        is_append = type(command) is AppendMessages\n",
            "        is_append = isinstance(command, AppendMessages)\n",
        ),
    ),
)

if __name__ == "__main__":
    plant(NEXT_VERSION)
    from context_node.cli import main

    main(prog_name="contextstore")
