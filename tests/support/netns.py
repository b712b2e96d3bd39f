"""Hosts on this machine: a network namespace each, joined by one that routes, so that what passes between two of them can be cut.

Knows iproute2. Does not know what runs on the hosts. A cut is a rule of the router (`from A to B blackhole`): packets of that direction
vanish, those of connections that are open already too, and nobody is told. Invariants: names carry the process that made them, and what a
process that is gone left behind is removed by the next; `close` leaves nothing.
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress

PREFIX = "csx"
CLONE_NEWNET = 0x40000000
"""`sched.h`: the namespace is one of networks."""

NEEDED = "network namespaces need root and iproute2 (`apt-get install iproute2`)"


def can_make_hosts() -> bool:
    """Whether this process may make hosts."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"{PREFIX}{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "del", name)
    return made


def ip(*words: str) -> str:
    """Run `ip`. Raises RuntimeError with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Hosts:
    """Hosts 0, 1, 2, … with the addresses 10.77.N.2, each behind the router's 10.77.N.1."""

    def __init__(self, count: int) -> None:
        remove_leftovers()
        self.count = 0
        self._base = f"{PREFIX}{os.getpid()}"
        self._cuts: list[tuple[int, int]] = []
        ip("netns", "add", self.router)
        try:
            ip("-n", self.router, "link", "set", "lo", "up")
            subprocess.run([*self.inside_router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
            for _ in range(count):
                self._add()
        except BaseException:
            self.close()
            raise

    @property
    def router(self) -> str:
        return f"{self._base}r"

    @property
    def inside_router(self) -> list[str]:
        """The words that run a command where every host can be reached."""
        return ["ip", "netns", "exec", self.router]

    def enter_router(self) -> None:
        """Let this process, which has one thread, be where every host can be reached. Raises OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(f"/var/run/netns/{self.router}", os.O_RDONLY)
        try:
            if libc.setns(descriptor, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def name(self, host: int) -> str:
        return f"{self._base}h{host}"

    def inside(self, host: int) -> list[str]:
        """The words that run a command on a host."""
        return ["ip", "netns", "exec", self.name(host)]

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.{host}.2"

    def _add(self) -> None:
        host, name = self.count, self.name(self.count)
        ip("netns", "add", name)
        self.count += 1
        here, there = f"v{host}", f"w{host}"
        ip("-n", self.router, "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("-n", self.router, "addr", "add", f"10.77.{host}.1/24", "dev", here)
        ip("-n", self.router, "link", "set", here, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{self.address(host)}/24", "dev", there),
            ("link", "set", there, "up"),
            ("route", "add", "default", "via", f"10.77.{host}.1"),
        ):
            ip("-n", name, *words)

    # --- cuts ---------------------------------------------------------------------------------------------------------

    def cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Let nothing pass from the first to the second of each pair."""
        for source, target in pairs:
            if (source, target) not in self._cuts:
                ip("-n", self.router, "rule", "add", *self._rule(source, target))
                self._cuts.append((source, target))

    def heal(self) -> None:
        """Let everything pass again."""
        while self._cuts:
            ip("-n", self.router, "rule", "del", *self._rule(*self._cuts.pop()))

    def _rule(self, source: int, target: int) -> list[str]:
        preference = 1000 + 100 * source + target
        return ["pref", str(preference), "from", self.address(source), "to", self.address(target), "blackhole"]

    def close(self) -> None:
        """Remove all hosts; what still runs on them keeps its namespace until it ends."""
        for name in (self.router, *(self.name(host) for host in range(self.count))):
            with suppress(RuntimeError):
                ip("netns", "del", name)


def remove_leftovers() -> None:
    """Remove the hosts of processes that are gone."""
    for line in ip("netns", "list").splitlines():
        made = re.match(rf"({PREFIX}(\d+)[rht]\S*)", line)
        if made is not None and not os.path.exists(f"/proc/{made[2]}"):
            with suppress(RuntimeError):
                ip("netns", "del", made[1])
