"""The systems that `bench/cluster.py` compares: three nodes of each, how they are started, and how a load reaches them.

Knows processes and addresses. Does not know rounds or figures. Invariant: every process that was started here is gone at the end.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import free_port

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "build" / "peers"
PYTHON_PEERS = ROOT / "bench" / "peers" / "python"
CONTEXTS = 96
BATCH = 10
TEXT = 2 * "A message of an ordinary length, as people and models write them to each other; it says little, but in words. "
NODES = 3
OURS, OURS_IN_ONE = "ours", "ours/1"
READY_S = 60.0
LOG_LINES = 40


@dataclass
class System:
    """Servers under test: how a load reaches those that lead, or any, and the processes whose CPU counts."""

    name: str
    kind: str
    targets: list[str]
    leading: list[list[str]]
    everywhere: list[list[str]]
    bodies: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def cpu_s(self) -> float:
        total = 0
        for process in self.processes:
            rows = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(rows[11]) + int(rows[12])
        return total / os.sysconf("SC_CLK_TCK")


def build_peers(*names: str) -> None:
    """Build what is not built yet, or is older than its source; without names all. Raises SystemExit where Go is missing."""
    folder = ROOT / "bench" / "peers"
    wanted = []
    for name in names or ("etcd", "nats", "load"):
        sources = [path.stat().st_mtime for path in (folder / name).glob("*.go")]
        if not (PEERS / name).exists() or (PEERS / name).stat().st_mtime < max(sources):
            wanted.append(name)
    if not wanted:
        return
    if shutil.which("go") is None:
        raise SystemExit("Go builds what this benchmark needs: https://go.dev/doc/install")
    print(f"building {', '.join(wanted)} (some minutes, once)", file=sys.stderr, flush=True)
    PEERS.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        subprocess.run(["go", "build", "-o", str(PEERS / name), f"./{name}"], cwd=folder, check=True)


def build_python_peers() -> None:
    """Install what is not installed yet, in a folder of its own: raftos pins packages that do not build any more."""
    target = PEERS / "python"
    if not target.exists():
        print("installing pysyncobj and raftos", file=sys.stderr, flush=True)
        locked = ["--require-hashes", "-r", str(PYTHON_PEERS / "requirements.lock")]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *locked], check=True)


def single() -> str:
    return json.dumps({"message": {"role": "user", "content": TEXT}})


def batch() -> str:
    return json.dumps({"messages": [{"role": "user", "content": TEXT}] * BATCH})


# --- the systems ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(
    commands: list[list[str]], folder: Path, name: str, environment: dict[str, str] | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{name}{number}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}))
        yield processes
    except BaseException:
        for number in range(len(processes)):
            _tell_end(folder / f"{name}{number}.log")
        raise
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _tell_end(log: Path) -> None:
    """The last that a server said, for whoever wants to know why the benchmark stopped: its folder is about to be removed."""
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    print(f"--- the end of {log.name}", *lines, sep="\n", file=sys.stderr, flush=True)


def ask(url: str, body: object = None) -> tuple[Any, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer), answer.headers


def until_ready(look: Any, what: str) -> Any:
    end = time.monotonic() + READY_S * 3
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except (OSError, urllib.error.URLError, ValueError, KeyError, subprocess.CalledProcessError):
            pass
        time.sleep(0.3)
    raise SystemExit(f"{what} was not ready in time")


@contextlib.contextmanager
def our_nodes(folder: Path, *settings: str) -> Iterator[tuple[list[int], list[subprocess.Popen[bytes]]]]:
    """Our cluster, whole and empty: the ports of its nodes and their processes."""
    ports, peers = [free_port() for _ in range(NODES)], [free_port() for _ in range(NODES)]
    command = str(Path(sys.executable).parent / "contextstore")
    commands = [
        [command, "serve", "--node-name", f"n{number}", "--data-dir", str(folder / f"ours{number}")]
        + ["--port", str(ports[number]), "--peer-port", str(peers[number])]
        + (["--join", f"127.0.0.1:{peers[0]}"] if number else [])
        + list(settings)
        for number in range(NODES)
    ]
    with started(commands, folder, "ours", {"CONTEXTSTORE_CLUSTER_SECRET": "a secret of a benchmark's nodes"}) as processes:
        url = f"http://127.0.0.1:{ports[0]}"

        def is_whole() -> bool:
            view, _ = ask(f"{url}/v1/cluster")
            return view["shards_healthy"] == view["shards_total"] and all(
                sum(one["is_voter"] for one in shard["replicas"]) == NODES for shard in view["shards"]
            )

        until_ready(is_whole, "our cluster")
        time.sleep(5)  # leaderships find their places
        yield ports, processes


@contextlib.contextmanager
def ours(folder: Path, *settings: str) -> Iterator[System]:
    with our_nodes(folder, *settings) as (ports, processes):
        url = f"http://127.0.0.1:{ports[0]}"
        leading: list[list[str]] = [[] for _ in range(NODES)]
        paths = [f"/v1/contexts/bench-{number}/messages?create=true" for number in range(CONTEXTS)]
        for path in paths:
            _, headers = ask(url + path, {"message": {"role": "user", "content": "first"}})
            leading[int(headers["X-Context-Leader"].removeprefix("n"))].append(path)
        targets = [f"127.0.0.1:{port}" for port in ports]
        yield System(OURS, "http", targets, leading, [paths] * NODES, {"single": single(), "batch": batch()}, processes)


@contextlib.contextmanager
def ours_in_one_group(folder: Path) -> Iterator[System]:
    """With one Raft group, as etcd has, and a stream of JetStream."""
    inner = folder / "one-group"
    inner.mkdir()
    with ours(inner, "--shards", "1") as system:
        system.name = OURS_IN_ONE
        yield system


@contextlib.contextmanager
def etcd(folder: Path) -> Iterator[System]:
    clients, peers = [free_port() for _ in range(NODES)], [free_port() for _ in range(NODES)]
    members = ",".join(f"e{number}=http://127.0.0.1:{peers[number]}" for number in range(NODES))
    commands = []
    for number in range(NODES):
        client, peer = (f"http://127.0.0.1:{ports[number]}" for ports in (clients, peers))
        command = [str(PEERS / "etcd"), "--name", f"e{number}", "--data-dir", str(folder / f"etcd{number}"), "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        commands.append([*command, "--initial-cluster", members, "--initial-cluster-token", "bench", "--initial-cluster-state", "new"])
    with started(commands, folder, "etcd") as processes:

        def leader() -> list[int]:
            for number in range(NODES):
                status, _ = ask(f"http://127.0.0.1:{clients[number]}/v3/maintenance/status", {})
                if status["leader"] == status["header"]["member_id"]:
                    return [number]
            return []

        (leads,) = until_ready(leader, "etcd")
        keys = [f"bench/{number}" for number in range(CONTEXTS)]
        targets = [f"127.0.0.1:{port}" for port in clients]
        leading = [keys if number == leads else [] for number in range(NODES)]
        yield System("etcd", "etcd", targets, leading, [keys] * NODES, {"single": single(), "batch": single()}, processes)


@contextlib.contextmanager
def jetstream(folder: Path) -> Iterator[System]:
    clients, routes = [free_port() for _ in range(NODES)], [free_port() for _ in range(NODES)]
    commands = []
    for number in range(NODES):
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        config = folder / f"nats{number}.conf"
        config.write_text(
            f'server_name: "s{number}"\nlisten: "127.0.0.1:{clients[number]}"\n'
            f'jetstream {{ store_dir: "{folder}/nats{number}", sync_interval: always }}\n'
            f'cluster {{ name: "bench", listen: "127.0.0.1:{routes[number]}", routes: [{others}] }}\n'
        )
        commands.append([str(PEERS / "nats"), "-c", str(config)])
    with started(commands, folder, "nats") as processes:

        def leader() -> list[int]:
            made = subprocess.run([str(PEERS / "load"), "-create-stream", f"127.0.0.1:{clients[0]}"], capture_output=True, check=True)
            return [int(json.loads(made.stdout)["leader"].removeprefix("s"))]

        (leads,) = until_ready(leader, "NATS")
        keys = [f"bench.{number}" for number in range(CONTEXTS)]
        targets = [f"127.0.0.1:{port}" for port in clients]
        leading = [keys if number == leads else [] for number in range(NODES)]
        yield System("NATS R3", "nats", targets, leading, [keys] * NODES, {"single": single(), "batch": single()}, processes)


@contextlib.contextmanager
def pysyncobj(folder: Path) -> Iterator[System]:
    clients, peers = [free_port() for _ in range(NODES)], [free_port() for _ in range(NODES)]
    names = [f"127.0.0.1:{port}" for port in peers]
    commands = [
        [sys.executable, str(PYTHON_PEERS / "pysyncobj_node.py"), str(clients[number]), names[number], str(folder / f"journal{number}")]
        + [name for name in names if name != names[number]]
        for number in range(NODES)
    ]
    with started(commands, folder, "pysyncobj", {"PYTHONPATH": str(PEERS / "python")}) as processes:

        def leader() -> list[int]:
            status, _ = ask(f"http://127.0.0.1:{clients[0]}/leader")
            return [names.index(status["leader"])]

        (leads,) = until_ready(leader, "pysyncobj")
        paths = [f"/bench-{number}" for number in range(CONTEXTS)]
        targets = [f"127.0.0.1:{port}" for port in clients]
        leading = [paths if number == leads else [] for number in range(NODES)]
        yield System("pysyncobj", "http", targets, leading, [paths] * NODES, {"single": single(), "batch": batch()}, processes)


def raftos_outcome() -> str:
    """How far raftos gets, in its own words."""
    done = subprocess.run(
        [sys.executable, str(PYTHON_PEERS / "raftos_node.py")],
        env={**os.environ, "PYTHONPATH": str(PEERS / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip()[-200:]
