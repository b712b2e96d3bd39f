"""Nodes with an archive, as tests write to them and watch them."""

import re
import urllib.request
from typing import Any

from support.cluster_calls import call
from support.contextstore_process import RunningNode
from support.waiting import wait_until

QUICK = ("--archive-flush-s", "0.05")


def append(node: RunningNode, context_id: str, *texts: str) -> int:
    """The seq of the last message; tried until it is acknowledged, as clients do."""
    messages = [{"role": "user", "content": text, "id": text[:200]} for text in texts]
    answers: list[Any] = []

    def is_kept() -> bool:
        answers.append(call(f"{node.url}/v1/contexts/{context_id}/messages?create=true", "POST", {"messages": messages}))
        return bool(answers[-1][0] == 201)

    wait_until(is_kept, "the append to be acknowledged")
    return int(answers[-1][1]["last_seq"])


def history(node: RunningNode, context_id: str) -> list[bytes]:
    """The messages as the export gives them, byte for byte."""
    with urllib.request.urlopen(f"{node.url}/v1/contexts/{context_id}/export", timeout=30) as answer:
        return [line for line in answer.read().splitlines() if line]


def metric(node: RunningNode, name: str) -> float:
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as answer:
        found = re.findall(rf"^contextstore_{name}(?:{{[^}}]*}})? (\S+)$", answer.read().decode(), re.MULTILINE)
    return sum(map(float, found))
