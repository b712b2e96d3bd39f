"""P10 on a real full disk: a small tmpfs, the operating system's own VFS, no model."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from context_node.runtime.databases import DiskFull, StorageFailed
from context_node.runtime.log_store import LogStore
from context_node.runtime.state_rows import Applied, StateChanges, place
from context_node.runtime.state_store import StateStore
from support.log_model import CODEC, IDENTITY, record, view_of

pytestmark = pytest.mark.needs_tmpfs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, half of it taken by the file `ballast`."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        (tmp_path / "ballast").write_bytes(bytes(2 << 20))
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_log_on_a_full_disk_acknowledges_nothing_it_did_not_keep(small_disk: Path) -> None:
    store = LogStore(str(small_disk / "log.db"), IDENTITY, CODEC)
    store.recover()
    store.install(1, 7, "g", (1, 0, 0), 0, 0)
    store.commit()
    index = 0
    with pytest.raises(DiskFull):
        while True:
            store.append([(1, record(index + 1, [index + 1], padding=50_000))])
            store.commit()
            index += 1
    with pytest.raises(StorageFailed):
        store.commit()
    store.close()
    assert index > 10
    (small_disk / "ballast").unlink()
    again = LogStore(str(small_disk / "log.db"), IDENTITY, CODEC)
    assert view_of(again.recover())[1].entries == tuple((at, at) for at in range(1, index + 1))
    again.append([(1, record(index + 1, [0]))])
    again.commit()
    again.close()


def test_a_state_database_on_a_full_disk_takes_the_same_flush_later(small_disk: Path) -> None:
    store = StateStore(str(small_disk / "state.db"), 1)

    def changes(index: int) -> StateChanges:
        rows = [(place(1, index * 100 + n), bytes([index % 256]) * 1000, b"") for n in range(100)]
        return StateChanges(Applied(index, 1, b"", 0), messages=rows)

    index = 0
    with pytest.raises(DiskFull):
        while True:
            store.flush(changes(index + 1))
            index += 1
    assert index > 3
    assert store.applied().index == index
    (small_disk / "ballast").unlink()
    store.flush(changes(index + 1))
    assert store.checkpoint().complete
    assert len(store.messages(1, [(0, 1 << 31)])) == 100 * (index + 1)
    store.close()
