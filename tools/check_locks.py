"""Checks, without the network, that the lock files still answer pyproject.toml.

Knows: pyproject.toml's dependency tables and the four lock files. Does not know what newer versions exist.
Invariants checked: every direct dependency is locked at a version its range allows; every locked line carries a
hash; the runtime lock is a subset of the development lock, at equal versions; no lock names a host or a path.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")


def pins(lock: Path) -> dict[str, set[str]]:
    """Name → locked versions (more than one where markers split by Python version or platform)."""
    found: dict[str, set[str]] = {}
    for line in lock.read_text().splitlines():
        if match := PIN.match(line):
            found.setdefault(canonicalize_name(match[1]), set()).add(match[2])
    return found


def unanswered(requirements: list[str], lock: Path) -> Iterator[str]:
    locked = pins(lock)
    for text in requirements:
        requirement = Requirement(text)
        versions = locked.get(canonicalize_name(requirement.name), set())
        if not versions:
            yield f"{lock.name}: {requirement.name} is not locked; run `make lock`"
        for version in sorted(versions):
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"{lock.name}: {requirement.name}=={version} is outside {requirement.specifier}; run `make lock`"


def unclean(lock: Path) -> Iterator[str]:
    lines = lock.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if "://" in line or re.search(r"(^|\s)/\w", line):
            yield f"{lock.name}:{number}: names a host or a path: {line.strip()}"
        if PIN.match(line) and not (number < len(lines) and "--hash=sha256:" in lines[number]):
            yield f"{lock.name}:{number}: has no hash: {line.strip()}"


def problems() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime: list[str] = project["project"]["dependencies"]
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    build: list[str] = project["build-system"]["requires"]
    names = ("requirements.lock", "requirements-operator.lock", "requirements-dev.lock", "requirements-uv.lock")
    base, operator, dev, uv = (ROOT / name for name in names)
    yield from unanswered(runtime, base)
    yield from unanswered([*runtime, *extras["operator"]], operator)
    yield from unanswered([*runtime, *extras["dev"], *build], dev)
    dev_pins = pins(dev)
    for subset in (base, operator, uv):
        for name, versions in pins(subset).items():
            if not versions <= dev_pins.get(name, set()):
                yield f"{subset.name}: {name} {sorted(versions)} differs from {dev.name}; run `make lock`"
    for lock in (base, operator, dev, uv):
        yield from unclean(lock)


def main() -> int:
    found = list(problems())
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print("lock files: fresh")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
