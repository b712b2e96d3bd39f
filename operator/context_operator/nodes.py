"""The nodes of a cluster on Kubernetes: the operator's only way to them.

Knows how a pod's admin API is reached and that any node will do for most. Does not know what for. A node that does not answer is left out
quickly, so that one that hangs holds up no pass.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from context_operator import balancer
from context_operator.http_admin import AdminError, HttpAdmin, Tls
from context_operator.resources import names
from context_operator.view import ClusterView, NodePolicies, SelfView, view_of

SELF_TIMEOUT_S, LOOK_TIMEOUT_S = 3.0, 5.0
STEP_TIMEOUT_S = 20.0


class Admin(balancer.Admin, Protocol):
    """The balancer's steps and those of the operator, as `http_admin.HttpAdmin` takes them."""

    async def mark_node(self, node: str, **wished: bool) -> None: ...
    async def set_replication(self, factor: int) -> None: ...
    async def node_policies(self) -> Any: ...
    async def list_policies(self) -> Any: ...
    async def put_policy(self, name: str, body: dict[str, Any]) -> Any: ...
    async def delete_policy(self, name: str) -> None: ...


class HttpNodes:
    """The nodes of one cluster, with the operator's key and epoch. With `trust` (PEM) they are asked by HTTPS and must show a certificate
    of it for `host`. `close` it."""

    def __init__(self, key: str, epoch: int, trust: str = "", host: str = "") -> None:
        self._key, self._epoch = key, epoch
        self._tls = Tls(ssl.create_default_context(cadata=trust), host) if trust else None
        self._open: dict[str, HttpAdmin] = {}

    async def selves(self, addresses: dict[int, str]) -> dict[int, SelfView]:
        """By ordinal what each node says of itself; those that do not answer are left out."""

        async def ask(ordinal: int, address: str) -> tuple[int, SelfView] | None:
            try:
                async with asyncio.timeout(SELF_TIMEOUT_S):
                    value = await (await self._admin(address)).look_at_self()
                return ordinal, msgspec.convert(value, SelfView)
            except (AdminError, TimeoutError, msgspec.ValidationError):
                return None

        answers = await asyncio.gather(*(ask(ordinal, address) for ordinal, address in addresses.items()))
        return dict(answer for answer in answers if answer is not None)

    async def look(self, addresses: dict[int, str]) -> tuple[Admin, ClusterView] | None:
        """The cluster as a node sees it, and that node; None if none answers. Of several views the one that reaches most members: a node
        that is cut off sees all others away."""

        async def ask(address: str) -> tuple[Admin, ClusterView] | None:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    admin = await self._admin(address)
                    return admin, view_of(await admin.look())
            except (AdminError, TimeoutError, msgspec.ValidationError):
                return None

        best: tuple[Admin, ClusterView] | None = None
        asking = [asyncio.ensure_future(ask(address)) for address in addresses.values()]
        try:
            # One after the other as they answer: where all is well the first is enough, and one that hangs holds up nobody.
            for answer in asyncio.as_completed(asking):
                found = await answer
                if found is None or not found[1].nodes:
                    continue
                if _reached(found[1]) == len(found[1].nodes):
                    return found
                if best is None or _reached(found[1]) > _reached(best[1]):
                    best = found
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return best

    def speak_after(self, epoch: int) -> None:
        """Take steps as the successor of whoever took one with this epoch: clocks of machines differ."""
        if epoch >= self._epoch:
            self._epoch = epoch + 1
            for admin in self._open.values():
                admin.speak_as(self._epoch)

    async def begin(self, address: str, cluster_id: str) -> None:
        """Have a node begin the cluster. Raises `AdminError`."""
        await (await self._admin(address)).begin(cluster_id)

    async def _admin(self, address: str) -> HttpAdmin:
        if address not in self._open:
            url = f"{'http' if self._tls is None else 'https'}://{address}:{names.CLIENT_PORT}"
            self._open[address] = await HttpAdmin(url, self._key, self._epoch, STEP_TIMEOUT_S, self._tls).__aenter__()
        return self._open[address]

    async def keep_only(self, addresses: Iterable[str]) -> None:
        """Close the connections to all others."""
        for address in set(self._open) - set(addresses):
            await self._open.pop(address).__aexit__(None, None, None)

    async def close(self) -> None:
        await self.keep_only(())


def _reached(view: ClusterView) -> int:
    return sum(node.is_alive for node in view.nodes)


def policies_of(value: Any) -> list[NodePolicies]:
    """Decoded JSON of `node_policies`. Raises `msgspec.ValidationError`."""
    return msgspec.convert(value["nodes"], list[NodePolicies])
