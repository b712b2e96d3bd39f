"""A node's admin API over HTTP, with the calls that the balancer takes its steps by.

Knows the routes under `/v1/cluster` and `/v1/policies`.
Does not know what the steps are for. A refusal becomes an `AdminError` with the node's own sentence.
"""

import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

TIMEOUT_S = 60.0


class AdminError(Exception):
    """The node refused, or cannot be reached. `status` is HTTP's, 0 where there was no answer. The message is for people."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust, and the name that a node's certificate must hold (None: that of the URL)."""

    context: ssl.SSLContext
    host: str | None = None


class HttpAdmin:
    """An asynchronous context manager; any node will do. `epoch` goes with every step: a node refuses one that is older than the newest
    it has seen; 0 is nobody's."""

    def __init__(self, url: str, key: str | None, epoch: int = 0, timeout_s: float = TIMEOUT_S, tls: Tls | None = None) -> None:
        self._root = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._epoch = {"epoch": epoch} if epoch else {}
        self._timeout_s = timeout_s
        self._tls: dict[str, Any] = {} if tls is None else {"ssl": tls.context, "server_hostname": tls.host}
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> "HttpAdmin":
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def look(self) -> Any:
        """The whole cluster, as decoded JSON."""
        return await self._ask("GET", "/cluster")

    async def look_at_self(self) -> Any:
        """The node that is asked, as decoded JSON."""
        return await self._ask("GET", "/cluster/self")

    async def begin(self, cluster_id: str) -> None:
        """See `POST /v1/cluster`."""
        await self._ask("POST", "/cluster", {"cluster_id": cluster_id})

    async def node_policies(self) -> Any:
        """Which named policies each node follows, as decoded JSON."""
        return await self._ask("GET", "/cluster/policies")

    async def put_policy(self, name: str, body: dict[str, Any]) -> Any:
        """See `PUT /v1/policies/{name}`."""
        return await self._ask("PUT", f"/policies/{quote(name, safe='')}", body)

    async def list_policies(self) -> Any:
        """See `GET /v1/policies`."""
        return await self._ask("GET", "/policies")

    async def delete_policy(self, name: str) -> None:
        """See `DELETE /v1/policies/{name}`."""
        await self._ask("DELETE", f"/policies/{quote(name, safe='')}")

    async def add_learner(self, shard: int, node: int) -> None:
        """See `POST /v1/cluster/shards/{shard}/learners`."""
        await self._ask("POST", f"/cluster/shards/{shard}/learners", {"node": node, **self._epoch})

    async def change_members(self, shard: int, promote: tuple[int, ...], remove: tuple[int, ...]) -> None:
        """See `POST /v1/cluster/shards/{shard}/members`."""
        await self._ask("POST", f"/cluster/shards/{shard}/members", {"promote": list(promote), "remove": list(remove), **self._epoch})

    async def transfer_leader(self, shard: int, node: int) -> None:
        """See `POST /v1/cluster/shards/{shard}/leader`."""
        await self._ask("POST", f"/cluster/shards/{shard}/leader", {"node": node, **self._epoch})

    async def mark_node(self, node: str, **wished: bool) -> None:
        """See `PATCH /v1/cluster/nodes/{node}`."""
        await self._ask("PATCH", f"/cluster/nodes/{quote(node, safe='')}", {**wished, **self._epoch})

    async def set_replication(self, factor: int) -> None:
        """See `PATCH /v1/cluster`."""
        await self._ask("PATCH", "/cluster", {"replication_factor": factor, **self._epoch})

    def speak_as(self, epoch: int) -> None:
        """Steps from now on carry this epoch."""
        self._epoch = {"epoch": epoch}

    async def raise_level(self, level: int) -> None:
        """See `PATCH /v1/cluster`."""
        await self._ask("PATCH", "/cluster", {"feature_level": level, **self._epoch})

    async def compare(self, shard: int) -> Any:
        """See `POST /v1/cluster/shards/{shard}/compare`."""
        return await self._ask("POST", f"/cluster/shards/{shard}/compare")

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            async with self._session.request(method, self._root + path, json=body, **self._tls) as answer:
                if answer.status == 204:
                    return None
                value = await answer.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AdminError(f"{self._root} cannot be asked: {error}") from error
        except TimeoutError:
            raise AdminError(f"{self._root} did not answer within {self._timeout_s:g} s.") from None
        if answer.status >= 400:
            message = value.get("message") if isinstance(value, dict) else None
            raise AdminError(message or f"HTTP {answer.status}", answer.status)
        return value
