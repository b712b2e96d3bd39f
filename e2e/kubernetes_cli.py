"""kubectl and helm, as a user types them, and waiting for what they show."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any


class Failed(AssertionError):
    """A command failed; the message is what it printed."""


def run(*command: str, stdin: str | None = None, timeout_s: float = 120.0) -> str:
    """The output of a command. Raises `Failed`."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def kubectl(*arguments: str, stdin: str | None = None, timeout_s: float = 120.0) -> str:
    return run("kubectl", *arguments, stdin=stdin, timeout_s=timeout_s)


def apply(*objects: dict[str, Any], namespace: str) -> str:
    return kubectl("-n", namespace, "apply", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in objects))


def get(kind: str, name: str, namespace: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(kubectl("-n", namespace, "get", kind, name, "-o", "json"))
    return value


def condition(value: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition of a resource; empty if it is not there yet."""
    conditions = (value.get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind), {})


def until(what: str, check: Callable[[], Any], deadline_s: float = 180.0) -> Any:
    """Wait for something true and give it back. A failing command counts as not yet."""
    end = time.monotonic() + deadline_s
    last: object = None
    while time.monotonic() < end:
        try:
            if last := check():
                return last
        except (Failed, KeyError, subprocess.TimeoutExpired) as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not within {deadline_s:g} s: {what}; last seen: {last!r}\n{_situation()}")


def _situation() -> str:
    try:
        return kubectl("get", "contextclusters,pods,pvc", "-A") + kubectl("get", "events", "-A", "--sort-by=.lastTimestamp")[-4000:]
    except Failed as error:
        return str(error)


def use(kubeconfig: str, folder: str) -> None:
    """Have the commands speak to this cluster, with the tools of this folder first."""
    os.environ["KUBECONFIG"] = kubeconfig
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
