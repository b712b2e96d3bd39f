"""A rolling upgrade between two versions whose state machines differ: replicas stay byte-identical, there is a way back until its end, and
afterwards nobody of the version before gets in."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support import next_version
from support.cluster_calls import FAST, call
from support.clusters import free_port
from support.contextstore_process import COMMAND, RunningNode, run_command, running_process
from support.waiting import wait_until

NEXT = (sys.executable, next_version.__file__)
NAMES = ("n1", "n2", "n3")
CONTEXTS = 6


class Fleet:
    """Three nodes that are stopped and started again on their own data, each by either version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        assert run_command("cluster", "init", str(self.secret)).returncode == 0
        self.ports = {name: free_port() for name in NAMES}
        self.nodes: dict[str, RunningNode] = {}
        self._stacks: dict[str, ExitStack] = {}

    def words(self, name: str, port: int, version: tuple[str, ...]) -> list[str]:
        join = [] if name == "n1" else ["--join", f"127.0.0.1:{self.ports['n1']}"]
        known = ["--cluster-secret-file", str(self.secret), "--node-name", name, "--peer-port", str(port), *join]
        return [*version, "serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(self.folder / name), *known, *FAST]

    def start(self, name: str, version: tuple[str, ...]) -> None:
        self._stacks[name] = ExitStack()
        self.nodes[name] = self._stacks[name].enter_context(running_process(self.words(name, self.ports[name], version)))

    def stop(self, name: str) -> None:
        assert self.nodes.pop(name).stop() == 0
        self._stacks.pop(name).close()

    def replace(self, name: str, version: tuple[str, ...]) -> None:
        """As an upgrade does: stop the node in order, start the other version on its data, and wait until nothing is under-replicated."""
        self.stop(name)
        self.start(name, version)
        self.wait_whole()

    def wait_whole(self) -> None:
        def is_whole() -> bool:
            view = call(f"{self.any.url}/v1/cluster")[1]
            voters = [[one for one in shard["replicas"] if one["is_voter"]] for shard in view["shards"]]
            alive = all(node["is_ready"] for node in view["nodes"])
            return bool(alive and view["shards_healthy"] == view["shards_total"] and all(len(each) == 3 for each in voters))

        wait_until(is_whole, "every shard to have three voters", 60.0)

    @property
    def any(self) -> RunningNode:
        return next(iter(self.nodes.values()))

    def run(self, *words: str) -> tuple[int, str]:
        done = run_command("cluster", *words, "--url", self.any.url)
        return done.returncode, (done.stdout + done.stderr).decode()

    def close(self) -> None:
        for stack in self._stacks.values():
            stack.close()


class Talk:
    """Clients with ordinary retries, all the time, on whichever node is up. `said` is what was acknowledged, by context."""

    def __init__(self, fleet: Fleet) -> None:
        self.said: dict[str, list[str]] = {f"talk-{number}": [] for number in range(CONTEXTS)}
        self._fleet = fleet
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._talk, args=(name,), daemon=True) for name in self.said]

    def __enter__(self) -> "Talk":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _talk(self, name: str) -> None:
        number = 0
        while not self._stop.is_set():
            text = f"{name} says {number}"
            node = list(self._fleet.nodes.values())[number % max(1, len(self._fleet.nodes))]
            try:
                status, _ = call(
                    f"{node.url}/v1/contexts/{name}/messages?create=true",
                    "POST",
                    {"message": {"role": "user", "content": text, "id": text}},
                )
            except OSError:
                continue
            if status == 201:
                self.said[name].append(text)
                number += 1

    def wait_for_more(self) -> None:
        before = {name: len(texts) for name, texts in self.said.items()}
        wait_until(lambda: all(len(texts) > before[name] + 3 for name, texts in self.said.items()), "every client to be served", 60.0)


@contextmanager
def fleet_of(folder: Path) -> Iterator[Fleet]:
    fleet = Fleet(folder)
    try:
        for name in NAMES:
            fleet.start(name, COMMAND)
        fleet.wait_whole()
        yield fleet
    finally:
        fleet.close()


def assert_identical(fleet: Fleet) -> int:
    """All replicas of all shards have the same bytes at the same entry. Returns how many were compared."""
    code, text = fleet.run("compare", "--json")
    assert code == 0, text
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(found) == 5  # four shards and the system group
    for one in found:
        assert one["is_equal"], one
        assert len({replica["digest"] for replica in one["replicas"]}) == 1
    return sum(len(one["replicas"]) for one in found)


def messages_of(node: RunningNode, name: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    while True:
        page = call(f"{node.url}/v1/contexts/{name}/messages?from_seq={len(found) + 1}&limit=500")[1]
        found += page["messages"]
        if not page["messages"] or len(page["messages"]) < 500:
            return found


def test_w5_s4_replicas_of_two_versions_stay_byte_identical_through_a_rolling_upgrade(tmp_path: Path) -> None:
    compared = 0
    with fleet_of(tmp_path) as fleet, Talk(fleet) as talk:
        talk.wait_for_more()
        compared += assert_identical(fleet)
        for name in NAMES[:2]:
            fleet.replace(name, NEXT)
            talk.wait_for_more()
            compared += assert_identical(fleet)
        code, text = fleet.run("finalize")
        assert (code, "n3" in text) == (1, True), text
        # There is a way back until the end.
        fleet.replace("n2", COMMAND)
        talk.wait_for_more()
        compared += assert_identical(fleet)
        for name in NAMES[1:]:
            fleet.replace(name, NEXT)
        talk.wait_for_more()
        compared += assert_identical(fleet)
        assert all(next_version.MEMBER not in one for name in talk.said for one in messages_of(fleet.any, name))
        assert "`contextstore cluster finalize`" in fleet.run("status")[1]

        code, text = fleet.run("finalize")
        assert (code, "Feature level 1 → 2" in text) == (0, True), text
        talk.wait_for_more()
        wait_until(
            lambda: all(next_version.MEMBER in messages_of(fleet.any, name)[-1] for name in talk.said), "the new commands to be used"
        )
        compared += assert_identical(fleet)
        talk.end()
        for node in fleet.nodes.values():
            for name, texts in talk.said.items():
                history = [one["parts"][0]["text"] for one in messages_of(node, name)]  # type: ignore[index]
                assert [one for one in history if one in set(texts)] == texts
                assert len(set(history)) == len(history)

        # Nobody of the version before gets in any more: neither with its own data, nor as a newcomer.
        fleet.stop("n3")
        with running_process(fleet.words("n3", fleet.ports["n3"], COMMAND), ready=False) as old:
            assert old.wait_end() == 2
            assert "needs a version of feature level 2" in "".join(old.errors)
        with running_process(fleet.words("n4", free_port(), COMMAND), ready=False) as newcomer:
            assert newcomer.wait_end() != 0
            assert "feature level 2" in "".join(newcomer.errors)
    acknowledged = sum(map(len, talk.said.values()))
    print(f"{acknowledged} messages acknowledged through 5 replacements, none lost; {compared} digests compared, none differed")
