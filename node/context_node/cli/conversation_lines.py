"""The file that `import` reads and `export` writes: JSON Lines, one conversation a line.

Knows the shape `{"id", "messages": […]}` with an optional configuration beside it, gzip or plain. Does not know the network. Invariants:
memory is bounded by one line of `LINE_BYTES_MAX`; a line that is wrong is a value that says so, not the end of the file.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from context_node.cli.exits import CannotStart

LINE_BYTES_MAX = 256 << 20
"""A conversation of some hundred thousand messages. A longer line is refused by number and skipped."""

GZIP_MAGIC = b"\x1f\x8b"
CONFIG_FIELDS = ("token_budget", "trigger_ratio", "target_ratio", "policy", "tokenizer", "metadata")
# What the store assigns by itself: a message of an export carries them, an append takes none of them.
ASSIGNED_FIELDS = frozenset({"seq", "inserted_at"})


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line: the context's id, its configuration as PUT takes it, and its messages as an append takes them."""

    id: str
    messages: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """Line `number` (from 1) of the file: a conversation, or the sentence that says what is wrong with it."""

    number: int
    conversation: Conversation | None
    problem: str = ""


class Lines:
    """The lines of one file, in order. `position` is how many bytes of the file (compressed, if it is) are read; `size` None if unknown."""

    def __init__(self, file: io.BufferedReader, size: int | None) -> None:
        self.size = size
        self._file = file
        self._number = 0
        self._is_over = False
        is_gzip = file.peek(2)[:2] == GZIP_MAGIC
        self._lines: io.BufferedReader | gzip.GzipFile = gzip.GzipFile(fileobj=file) if is_gzip else file

    @property
    def position(self) -> int:
        return self._file.tell() if self.size is not None else 0

    def next(self) -> Line | None:
        """The next line that is not blank; None at the end. Bytes that are damaged end the file with a line that says so."""
        while not self._is_over:
            try:
                text = self._lines.readline(LINE_BYTES_MAX + 1)
            except (OSError, EOFError, zlib.error) as error:
                self._is_over = True
                return Line(self._number + 1, None, f"The file is damaged from here on ({error}). Fetch it again and run the same command.")
            if not text:
                return None
            self._number += 1
            if len(text) > LINE_BYTES_MAX:
                self._skip_rest(text)
                return Line(self._number, None, f"The line is longer than {LINE_BYTES_MAX >> 20} MiB; split the conversation.")
            if text.strip():
                return parse_line(self._number, text)
        return None

    def _skip_rest(self, text: bytes) -> None:
        while text and not text.endswith(b"\n"):
            text = self._lines.readline(1 << 20)


@contextmanager
def open_lines(name: str) -> Iterator[Lines]:
    """The lines of a file, `-` for standard input; gzip is recognized by its first bytes. Raises CannotStart."""
    if name == "-":
        with open(sys.stdin.fileno(), "rb", closefd=False) as stdin:
            yield Lines(stdin, None)
        return
    try:
        with Path(name).open("rb") as file:
            yield Lines(file, Path(name).stat().st_size)
    except OSError as error:
        raise CannotStart(f"{name} cannot be read: {error.strerror}.") from error


def parse_line(number: int, text: bytes) -> Line:
    """A line's conversation, or what is wrong with it. Only the frame is checked here: the node checks messages and configuration."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Line(number, None, f"The line is not JSON: {error}.")
    if not isinstance(found, dict):
        return Line(number, None, 'The line is not an object; it should look like {"id": "…", "messages": […]}.')
    unknown = sorted(found.keys() - {"id", "messages", *CONFIG_FIELDS})
    if unknown:
        return Line(number, None, f"There is no field {unknown[0]!r}; put what belongs to the conversation into `metadata`.")
    if not isinstance(found.get("id"), str) or not found["id"]:
        return Line(number, None, "`id` must be a string: the context's id.")
    messages = found.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Line(number, None, "`messages` must be a list of messages, each an object with a `role`.")
    stripped = [{name: value for name, value in message.items() if name not in ASSIGNED_FIELDS} for message in messages]
    config = {name: found[name] for name in CONFIG_FIELDS if found.get(name) is not None}
    return Line(number, Conversation(found["id"], stripped, config))
