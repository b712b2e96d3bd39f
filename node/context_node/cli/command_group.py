"""A click group that other packages can add commands to.

Knows the entry-point group `contextstore.commands`. Invariants: a command of another package never hides one of ours; one that cannot be
loaded says so when it is called and breaks nothing else.
"""

from importlib.metadata import EntryPoint, entry_points

import click

ENTRY_POINT_GROUP = "contextstore.commands"


class CommandGroup(click.Group):
    """Our commands in the order in which they are added, then those of other packages by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *sorted(name for name in added() if name not in self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = self.commands.get(cmd_name)
        if own is not None:
            return own
        entry = added().get(cmd_name)
        return None if entry is None else loaded(entry)


def added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def loaded(entry: EntryPoint) -> click.Command:
    """The command, or one in its place that tells why it cannot be loaded."""
    reason = "it is not a click command"
    try:
        command = entry.load()
    except Exception as error:  # whatever the other package's import raises
        reason, command = f"{type(error).__name__}: {error}", None
    if isinstance(command, click.Command):
        return command
    text = f"`{entry.name}` ({entry.value}) cannot be loaded: {reason}"

    @click.command(entry.name, short_help="(cannot be loaded)", context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1)
    def broken(rest: tuple[str, ...]) -> None:
        raise click.ClickException(text)

    return broken
