"""Opening SQLite files: safe libraries only, typed errors, a node-wide cache budget."""

import errno
from pathlib import Path

import apsw
import pytest

from context_node.runtime.databases import (
    CACHE_BYTES_MIN,
    CacheBudget,
    DatabaseOptions,
    DiskAccess,
    DiskFull,
    StorageFailed,
    check_sqlite_version,
    open_database,
    storage_error,
)


@pytest.mark.parametrize("version", ["3.7.0", "3.40.1", "3.51.2"])
def test_a_library_with_the_wal_reset_bug_is_refused(version: str) -> None:
    """ARCHITECTURE: an older SQLite can corrupt a WAL, so the node does not start on it."""
    with pytest.raises(RuntimeError, match=r"3\.51\.3 or later"):
        check_sqlite_version(version)


@pytest.mark.parametrize("version", ["3.51.3", "3.54.1", "4.0.0"])
def test_a_fixed_library_is_accepted(version: str) -> None:
    check_sqlite_version(version)


def test_the_library_that_is_loaded_is_accepted() -> None:
    check_sqlite_version()


def test_databases_share_the_cache_budget_down_to_a_floor() -> None:
    assert CacheBudget(node_bytes=64 << 20, databases=32).each_bytes == 2 << 20
    assert CacheBudget(node_bytes=1 << 20, databases=1000).each_bytes == CACHE_BYTES_MIN


def test_a_database_is_opened_as_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "a.db")
    connection = open_database(path, DatabaseOptions(synchronous="NORMAL", cache_bytes=1 << 20, secure_delete=True))
    settings = {
        name: connection.pragma(name) for name in ("journal_mode", "synchronous", "cache_size", "page_size", "mmap_size", "temp_store")
    }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 1,
        "cache_size": -1024,
        "page_size": 4096,
        "mmap_size": 0,
        "temp_store": 2,
    }
    assert connection.pragma("wal_autocheckpoint") == 0
    assert connection.pragma("secure_delete") == 1
    connection.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is text and no database " * 200)
    with pytest.raises(StorageFailed, match="not a database"):
        open_database(str(path), DatabaseOptions(synchronous="FULL"))


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="open failed"):
        open_database(str(tmp_path / "missing" / "a.db"), DatabaseOptions(synchronous="FULL"))


def test_the_name_of_a_database_is_durable_when_it_is_open(tmp_path: Path) -> None:
    """The directory is synced before anybody counts on the file."""
    synced: list[str] = []

    class Watched(DiskAccess):
        def sync_directory(self, directory: str) -> None:
            assert (tmp_path / "a.db").exists()
            synced.append(directory)

    open_database(str(tmp_path / "a.db"), DatabaseOptions(synchronous="FULL", disk=Watched())).close()
    assert synced == [str(tmp_path)]


def test_a_rewritten_file_has_the_same_content(tmp_path: Path) -> None:
    path = tmp_path / "a.db-wal"
    content = bytes(range(256)) * 10_000
    path.write_bytes(content)
    DiskAccess().rewrite(str(path))
    DiskAccess().rewrite(str(tmp_path / "missing"))
    assert path.read_bytes() == content


def test_no_space_is_told_from_other_errors() -> None:
    assert isinstance(storage_error("a", "write", apsw.FullError("full")), DiskFull)
    assert isinstance(storage_error("a", "write", OSError(errno.ENOSPC, "full")), DiskFull)
    assert isinstance(storage_error("a", "write", OSError(errno.EIO, "broken")), StorageFailed)
    assert isinstance(storage_error("a", "write", apsw.CorruptError("broken")), StorageFailed)
