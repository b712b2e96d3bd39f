"""The file that import reads: what a line may be, and what is said about one that may not."""

import gzip
import io
import json
from pathlib import Path

import pytest

from context_node.cli import conversation_lines
from context_node.cli.conversation_lines import Lines, open_lines, parse_line
from context_node.cli.exits import CannotStart


def lines_of(content: bytes) -> list[conversation_lines.Line]:
    lines = Lines(io.BufferedReader(io.BytesIO(content)), len(content))
    found = []
    while (line := lines.next()) is not None:
        found.append(line)
    return found


def test_a_line_is_a_conversation_with_its_configuration() -> None:
    line = parse_line(3, b'{"id":"a","messages":[{"role":"user","content":"Hi"}],"token_budget":4000,"metadata":{"team":1},"policy":null}')
    assert line.conversation is not None
    assert line.conversation.id == "a"
    assert line.conversation.messages == [{"role": "user", "content": "Hi"}]
    assert line.conversation.config == {"token_budget": 4000, "metadata": {"team": 1}}


def test_what_a_store_assigns_is_left_to_the_new_store() -> None:
    line = parse_line(
        1, b'{"id":"a","messages":[{"seq":7,"role":"user","parts":[],"inserted_at":"2024-01-01T00:00:00.000Z","token_count":9}]}'
    )
    assert line.conversation is not None
    assert line.conversation.messages == [{"role": "user", "parts": [], "token_count": 9}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b'{"messages":[]}', "`id` must be a string"),
        (b'{"id":7,"messages":[]}', "`id` must be a string"),
        (b'{"id":"a"}', "`messages` must be a list"),
        (b'{"id":"a","messages":["Hi"]}', "`messages` must be a list"),
        (b'{"id":"a","messages":[],"mesages":[]}', "no field 'mesages'"),
        (b'{"id":"\xff","messages":[]}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(text: bytes, said: str) -> None:
    line = parse_line(5, text)
    assert line.conversation is None and line.number == 5
    assert said in line.problem


def test_blank_lines_are_skipped_but_counted() -> None:
    assert [line.number for line in lines_of(b'\n\n{"id":"a","messages":[]}\n  \n{"id":"b","messages":[]}')] == [3, 5]


def test_gzip_is_recognized_by_its_bytes_whatever_the_name() -> None:
    found = lines_of(gzip.compress(b'{"id":"a","messages":[]}\n{"id":"b","messages":[]}\n'))
    assert [line.conversation.id for line in found if line.conversation] == ["a", "b"]


def test_a_damaged_gzip_file_ends_with_a_line_that_says_so() -> None:
    content = "".join(json.dumps({"id": f"c-{n}", "messages": [{"role": "user", "content": str(n) * n}]}) + "\n" for n in range(500))
    found = lines_of(gzip.compress(content.encode())[:-2000])
    assert found[-1].conversation is None and "damaged" in found[-1].problem
    assert found[0].conversation is not None


def test_a_line_that_is_too_long_is_skipped_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_lines, "LINE_BYTES_MAX", 100)
    found = lines_of(b'{"id":"' + b"a" * 5000 + b'"}\n{"id":"b","messages":[]}\n')
    assert "longer than" in found[0].problem
    assert found[1].conversation is not None and found[1].number == 2


def test_a_file_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(CannotStart, match="cannot be read: No such file"), open_lines("nowhere.jsonl"):
        pass


def test_the_position_is_that_of_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id":"a","messages":[]}\n')
    with open_lines(str(tmp_path / "a.jsonl")) as lines:
        lines.next()
        assert lines.next() is None
        assert lines.position == lines.size
