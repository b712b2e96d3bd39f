"""A real node on a directory, for tests that want the service behind the edge to be the one of production."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from context_node.runtime.node import Node, NodeOptions
from support.edge_api import Api, edge_api


@asynccontextmanager
async def node_api(data_dir: Path, *, shards: int = 4, **options: Any) -> AsyncIterator[Api]:
    """A node with an edge on a free port. A failure that would stop the process fails the test."""
    failures: list[BaseException] = []
    node = Node(
        NodeOptions(str(data_dir), shards=shards),
        now_ms=lambda: time.time_ns() // 10**6,
        random_bytes=os.urandom,
        on_fatal=failures.append,
    )
    await node.start()
    try:
        async with edge_api(node.service, **options) as api:
            yield api
    finally:
        await node.stop()
    assert not failures, failures
