"""How a command ends: exit codes, and the two kinds of trouble that end one with a sentence instead of a traceback.

Knows click's way of showing an error. Invariants: 0 means all of it was done; 1 that it ran and something failed; 2 that it could not
start or was asked wrongly (click's own code for usage errors); 128 + signal that a signal cut it short.
"""

import click

WORK_FAILED = 1
CANNOT_START = 2


class WorkFailed(click.ClickException):
    """It ran, and something of it failed. The message says what to do."""

    exit_code = WORK_FAILED


class CannotStart(click.ClickException):
    """It could not begin: a port in use, a bad setting, nobody at the URL. The message says what to do."""

    exit_code = CANNOT_START


def stopped_by(signal_number: int) -> int:
    """The exit code of a command that a signal cut short, as shells show it."""
    return 128 + signal_number
