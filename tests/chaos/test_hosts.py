"""Hosts in namespaces of this machine: cuts cut, in the direction that was asked for, and nothing is left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.netns import NEEDED, PREFIX, Hosts, can_make_hosts, ip, remove_leftovers

pytestmark = pytest.mark.skipif(not can_make_hosts(), reason=NEEDED)

ROOT = Path(__file__).resolve().parents[2]
LISTEN = """
import socket
listening = socket.socket(type=socket.SOCK_DGRAM)
listening.bind(("0.0.0.0", 5000))
print("up", flush=True)
while True:
    print(listening.recv(99).decode(), flush=True)
"""
SAY = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 5000))"


class Listener:
    """What a host hears."""

    def __init__(self, hosts: Hosts, host: int) -> None:
        self._process = subprocess.Popen([*hosts.inside(host), sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
        assert self.hears() == "up"

    def hears(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def say(hosts: Hosts, source: int, target: int, text: str) -> None:
    subprocess.run([*hosts.inside(source), sys.executable, "-c", SAY, hosts.address(target), text], check=True)


def test_a_cut_is_one_way_silent_and_ends_with_heal() -> None:
    hosts = Hosts(3)
    listeners = [Listener(hosts, host) for host in range(3)]
    try:
        for source, target in ((0, 1), (1, 0), (2, 0)):
            say(hosts, source, target, f"{source} before")
            assert listeners[target].hears() == f"{source} before"
        hosts.cut([(0, 1)])
        hosts.cut([(0, 1)])
        say(hosts, 0, 1, "cut off")
        say(hosts, 2, 1, "not cut off")
        assert listeners[1].hears() == "not cut off"
        say(hosts, 1, 0, "the other way")
        assert listeners[0].hears() == "the other way"
        hosts.heal()
        say(hosts, 0, 1, "healed")
        assert listeners[1].hears() == "healed"
    finally:
        for listener in listeners:
            listener.close()
        hosts.close()
    assert hosts.router not in ip("netns", "list")


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_has_is_not() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = f"{PREFIX}{ended.pid}h0"
    ip("netns", "add", left)
    hosts = Hosts(1)
    try:
        remove_leftovers()
        names = ip("netns", "list")
        assert left not in names
        assert hosts.name(0) in names
    finally:
        hosts.close()


@pytest.mark.slow
@pytest.mark.crash
def test_s3_cuts_and_full_disks_lose_nothing() -> None:
    command = [sys.executable, str(ROOT / "bench" / "chaos.py"), "--nodes", "3", "--seconds", "3", "partition", "one way", "full disk"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said, complaints = run.communicate(timeout=240)
    finally:
        run.kill()
    assert run.returncode == 0, said + complaints
    assert "0 violations" in said
    assert f"{PREFIX}{run.pid}" not in ip("netns", "list"), "its own; another run may have some"
