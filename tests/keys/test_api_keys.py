"""API keys: what is kept at rest, who is let in, and what happens to a file that changes, breaks or is shared."""

import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_node.api_keys import (
    KEY,
    Identity,
    KeyFileError,
    KeyNotFound,
    KeyRing,
    Scope,
    create_key,
    keys_from_environment,
    list_keys,
    revoke_key,
)

SECRET = "q" * 43


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "api_keys.jsonl"


def noon() -> datetime:
    return datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


def test_a_new_key_lets_its_owner_in_with_its_scopes(path: Path) -> None:
    created = create_key(path, "ci", [Scope.ADMIN, Scope.READ], now=noon)
    expected = Identity(created.stored.id, "ci", frozenset({Scope.READ, Scope.ADMIN}))
    assert KeyRing(path).verify(f"Bearer {created.plain}") == expected
    assert created.stored.created == "2026-05-01T12:00:00Z"
    assert created.stored.scopes == (Scope.READ, Scope.ADMIN)


def test_s5_without_a_right_key_nobody_gets_in(path: Path) -> None:
    """S5: without a key nobody reads or writes."""
    plain = create_key(path, "app").plain
    ring = KeyRing(path)
    wrong_end = plain[:-1] + ("a" if plain[-1] != "a" else "b")
    headers = [
        None, "", "Bearer", "Bearer ", plain, f"Basic {plain}", f"Bearer {plain[:-1]}", f"Bearer {wrong_end}",
        f"Bearer {plain}x", f"Bearer {plain} x", f"Bearer {plain.upper()}", f"Bearer cs_000000000000_{SECRET}",
        f"Bearer {plain.replace('cs_', 'cs-')}", f"Bearer {plain}\n{plain}", "Bearer " + "é" * 50,
        "Bearer \ud800", "Bearer cs_" + "a" * 100_000,
    ]  # fmt: skip
    assert [header for header in headers if ring.verify(header) is not None] == []
    assert ring.verify(f"bearer {plain}") is not None  # RFC 9110 §11.1: the scheme's case does not matter


@given(st.text(max_size=200))
def test_no_text_but_the_key_itself_is_let_in(text: str) -> None:
    ring = KeyRing(given=keys_from_environment([f"cs_app_{SECRET}"]))
    assert (ring.verify(f"Bearer {text}") is not None) == (text.strip() == f"cs_app_{SECRET}")


def test_the_file_never_holds_a_secret_and_only_its_owner_can_read_it(path: Path) -> None:
    created = create_key(path, "app")
    match = KEY.fullmatch(created.plain)
    assert match is not None and len(match[2]) == 43  # 32 bytes in base64url
    assert match[2] not in path.read_text()
    assert match[2] not in repr(created.stored)
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()} == {0o600}


def test_no_two_keys_share_an_id_even_if_randomness_repeats(path: Path) -> None:
    draws = iter([b"\0" * 6, b"\1" * 32, b"\0" * 6, b"\2" * 6, b"\3" * 32])
    first = create_key(path, "a", random=lambda _: next(draws))
    second = create_key(path, "b", random=lambda _: next(draws))
    assert (first.stored.id, second.stored.id) == ("00" * 6, "02" * 6)


def test_a_revoked_key_stops_working_at_the_next_reload_and_stays_listed(path: Path) -> None:
    kept, lost = create_key(path, "kept"), create_key(path, "lost")
    ring = KeyRing(path)
    assert ring.verify(f"Bearer {lost.plain}") is not None
    revoked = revoke_key(path, lost.stored.id, now=noon)
    assert ring.reload_if_changed() and not ring.reload_if_changed()
    assert ring.verify(f"Bearer {lost.plain}") is None
    assert ring.verify(f"Bearer {kept.plain}") is not None
    assert len(ring) == 1
    assert revoked.revoked == "2026-05-01T12:00:00Z"
    assert [(key.name, key.active) for key in list_keys(path)] == [("kept", True), ("lost", False)]


def test_revoking_twice_keeps_the_first_time_and_an_unknown_id_is_said(path: Path) -> None:
    key_id = create_key(path, "app").stored.id
    revoke_key(path, key_id, now=noon)
    assert revoke_key(path, key_id, now=lambda: noon() + timedelta(days=1)).revoked == "2026-05-01T12:00:00Z"
    with pytest.raises(KeyNotFound, match="holds no key with the id 'nobody'"):
        revoke_key(path, "nobody")


def test_a_key_that_is_added_while_the_node_runs_works_after_the_reload(path: Path) -> None:
    create_key(path, "first")
    ring = KeyRing(path)
    added = create_key(path, "second")
    assert ring.verify(f"Bearer {added.plain}") is None
    assert ring.reload_if_changed()
    assert ring.verify(f"Bearer {added.plain}") is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "line 1: "),
        ('\n\n{"id": "a"}', "line 3: "),
        ("[]", "line 1: "),
        ("\udcff", "line 1: "),
        ('{"id":"a","name":"a","scopes":["root"],"hash":"sha256:00","created":""}', "root"),
        ('{"id":"a","name":"a","scopes":["read"],"hash":"md5:00","created":""}', "the hash is not"),
        ('{"id":"a","name":"a","scopes":["read"],"hash":"sha256:00","created":"","extra":1}', "extra"),
    ],
)
def test_a_broken_file_stops_a_start_but_leaves_a_running_node_the_keys_it_had(path: Path, content: str, reason: str) -> None:
    plain = create_key(path, "app").plain
    ring = KeyRing(path)
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(KeyFileError, match=re.escape(reason)):
        KeyRing(path)
    with pytest.raises(KeyFileError):
        ring.reload_if_changed()
    assert ring.verify(f"Bearer {plain}") is not None


def test_an_id_that_is_there_twice_is_refused(path: Path) -> None:
    create_key(path, "app")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(KeyFileError, match=r"line 2: the id .* is there twice"):
        KeyRing(path)


def test_s5_a_missing_file_is_an_error_and_no_open_door(path: Path) -> None:
    """S5: without a key nobody reads or writes."""
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyRing(path)
    assert list_keys(path) == []
    path.parent.mkdir()
    path.write_text("")
    assert KeyRing(path).verify(f"Bearer cs_a_{SECRET}") is None


def test_two_writers_at_once_lose_none_of_their_keys(path: Path) -> None:
    threads = [threading.Thread(target=lambda: [create_key(path, "app") for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_keys(path)) == 40
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


def test_the_file_is_synced_before_it_is_renamed_and_its_directory_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def fsync_seen(descriptor: int) -> None:
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def replace_seen(source: str, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync_seen)
    monkeypatch.setattr(os, "replace", replace_seen)
    create_key(path, "app")
    assert steps == ["sync file", "rename", "sync directory"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path, "app")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="cannot be written: No space left on device"):
        create_key(path, "other")
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]


@pytest.mark.parametrize("name", ["", "a" * 129, "a\nb", "\x1b[31m"])
def test_a_name_that_would_spoil_a_list_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        create_key(path, name)
    assert not path.exists()


def test_a_key_without_scopes_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="at least one scope"):
        create_key(path, "app", [])


def test_times_are_kept_in_utc(path: Path) -> None:
    berlin = timezone(timedelta(hours=2))
    created = create_key(path, "app", now=lambda: datetime(2026, 5, 1, 14, 0, 0, tzinfo=berlin))
    assert created.stored.created == "2026-05-01T12:00:00Z"


def test_keys_of_the_environment_work_beside_those_of_the_file_and_survive_a_reload(path: Path) -> None:
    from_file = create_key(path, "app").plain
    given_keys = keys_from_environment([f"cs_ops_{SECRET}=read+admin", f"cs_app2_{SECRET}"])
    ring = KeyRing(path, given_keys)
    create_key(path, "later")
    assert ring.reload_if_changed()
    assert ring.verify(f"Bearer {from_file}") is not None
    operator, app = ring.verify(f"Bearer cs_ops_{SECRET}"), ring.verify(f"Bearer cs_app2_{SECRET}")
    assert operator is not None and operator.scopes == {Scope.READ, Scope.ADMIN}
    assert app is not None and app.scopes == {Scope.READ, Scope.WRITE}


@pytest.mark.parametrize("entry", ["secret", "cs_a_short", f"cs_a_{SECRET}=root", f"cs_a_{SECRET}=read,write", f"cs_a_{SECRET}=read+"])
def test_a_bad_key_of_the_environment_is_refused_without_repeating_it(entry: str) -> None:
    with pytest.raises(ValueError, match="API key number 2") as refusal:
        keys_from_environment([f"cs_b_{SECRET}", entry])
    assert SECRET not in str(refusal.value) and "short" not in str(refusal.value)


def test_the_same_id_twice_in_the_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="same id"):
        keys_from_environment([f"cs_b_{SECRET}", f"cs_b_{SECRET}z"])


def test_the_cache_of_right_headers_is_bounded(path: Path) -> None:
    plain = create_key(path, "app").plain
    ring = KeyRing(path)
    for spaces in range(5000):
        assert ring.verify("Bearer " + " " * spaces + plain) is not None
    assert len(ring._cache) <= 4096
