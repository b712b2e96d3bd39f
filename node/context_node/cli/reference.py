"""The page docs/cli.md, made from the commands' own help, so that it cannot say something else.

`python -m context_node.cli.reference docs/cli.md` writes it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from context_node.cli.commands import main

HEAD = """# Command line

<!-- Made from the commands' help by `python -m context_node.cli.reference docs/cli.md`; do not edit. -->

`contextstore` is installed by `make setup` into `.venv/bin`; `python -m context_node` is the same. Exit codes: 0 done; 1 something
failed while it ran; 2 could not start, or asked wrongly; 130 stopped by Ctrl-C. Results go to standard output, everything else to
standard error.

Other packages may add commands through the entry-point group `contextstore.commands`; they are listed by `contextstore --help`.

"""
WIDTH = 100


def pages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """The help of a command and of those below it, as Markdown. Commands of other packages are left out."""
    named = command.context_settings.get("help_option_names")
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=named)
    if parent is not None:
        yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for below, one in command.commands.items():
            yield from pages(one, below, context)


def reference() -> str:
    return HEAD + "\n".join(pages(main, "contextstore"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())
