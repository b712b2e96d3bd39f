"""A node's admin API over HTTP, with the calls that the balancer takes its steps by.

Knows the routes under `/v1/cluster`. Does not know what the steps are for. A refusal becomes an `AdminError` with the node's own sentence.
"""

from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

TIMEOUT_S = 60.0


class AdminError(Exception):
    """The node refused, or cannot be reached. The message is for people."""


class HttpAdmin:
    """An asynchronous context manager; any node will do."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/cluster"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> "HttpAdmin":
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def look(self) -> Any:
        """The whole cluster, as decoded JSON."""
        return await self._ask("GET", "")

    async def add_learner(self, shard: int, node: int) -> None:
        """See `POST /v1/cluster/shards/{shard}/learners`."""
        await self._ask("POST", f"/shards/{shard}/learners", {"node": node})

    async def change_members(self, shard: int, promote: tuple[int, ...], remove: tuple[int, ...]) -> None:
        """See `POST /v1/cluster/shards/{shard}/members`."""
        await self._ask("POST", f"/shards/{shard}/members", {"promote": list(promote), "remove": list(remove)})

    async def transfer_leader(self, shard: int, node: int) -> None:
        """See `POST /v1/cluster/shards/{shard}/leader`."""
        await self._ask("POST", f"/shards/{shard}/leader", {"node": node})

    async def mark_node(self, node: str, **wished: bool) -> None:
        """See `PATCH /v1/cluster/nodes/{node}`."""
        await self._ask("PATCH", f"/nodes/{quote(node, safe='')}", wished)

    async def set_replication(self, factor: int) -> None:
        """See `PATCH /v1/cluster`."""
        await self._ask("PATCH", "", {"replication_factor": factor})

    async def raise_level(self, level: int) -> None:
        """See `PATCH /v1/cluster`."""
        await self._ask("PATCH", "", {"feature_level": level})

    async def compare(self, shard: int) -> Any:
        """See `POST /v1/cluster/shards/{shard}/compare`."""
        return await self._ask("POST", f"/shards/{shard}/compare")

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            async with self._session.request(method, self._url + path, json=body) as answer:
                if answer.status == 204:
                    return None
                value = await answer.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AdminError(f"{self._url} cannot be asked: {error}") from error
        except TimeoutError:
            raise AdminError(f"{self._url} did not answer within {TIMEOUT_S:g} s.") from None
        if answer.status >= 400:
            raise AdminError(value.get("message", f"HTTP {answer.status}") if isinstance(value, dict) else f"HTTP {answer.status}")
        return value
