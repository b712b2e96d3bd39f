"""How a node's data directory and a cluster come together: being taken in, beginning one, and refusing what does not belong together.

Knows what the log says of itself, what an administrator asks for, and who may take the node in (`membership` asks them). Does not know the
order of a start: that is `node`'s. Invariant: a store belongs to one cluster for good.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from context_node.contexts.refusals import Unprocessable
from context_node.runtime.admin import SelfView
from context_node.runtime.calls import Welcome
from context_node.runtime.cluster import Cluster
from context_node.runtime.databases import StorageFailed
from context_node.runtime.holdings import FIRST_NODE
from context_node.runtime.log_rows import RecoveredShard
from context_node.runtime.log_store import LogStore
from context_node.runtime.membership import StoreRemoved
from context_node.runtime.not_here import NotHere
from context_node.runtime.shards import SYSTEM_SHARD, node_of

if TYPE_CHECKING:
    from context_node.runtime.node import Node

logger = logging.getLogger("contextstore.node")


class Entry:
    """See the module's docstring. One for all lives of a node."""

    def __init__(self, node: "Node", loop: asyncio.AbstractEventLoop) -> None:
        self._node = node
        self._options = node.options
        self._loop = loop
        self._begins: asyncio.Future[str] | None = None
        """While the node waits to be taken in: whether it shall begin a cluster instead, and of which id."""

    async def enter(self, cluster: Cluster, log: LogStore, recovered: dict[int, RecoveredShard]) -> dict[int, RecoveredShard]:
        """Listen for peers; be taken in by a cluster if this store is in none, or begin one if an administrator says so. Gives the replicas
        that the store holds then. Raises `StorageFailed` for data that cannot belong there, and `StoreRemoved`."""
        notes = log.notes
        numbers = {node_of(found.replica_id) for found in recovered.values()}
        if len(numbers) > 1:
            raise StorageFailed(
                self._options.data_dir, "start", "it was made by a version that knew no clusters; export and import its contexts"
            )
        await cluster.start(notes.identity.store_uuid, notes.identity.cluster_id, numbers.pop() if numbers else 0, notes.nodes)
        if recovered and cluster.options.join:
            logger.info("%s belongs to a cluster already (%s); --join was not needed", self._options.data_dir, notes.identity.cluster_id)
        if not recovered:
            welcome = await self._welcome(cluster, log)
            if welcome is None:
                recovered = self._node.holdings.bootstrap(log)
                cluster.become(FIRST_NODE, notes.identity.cluster_id)
                return recovered
            if welcome.shards != self._options.shards:
                what = (
                    f"the cluster has {welcome.shards} shards, not {self._options.shards}; start this node with --shards {welcome.shards}"
                )
                raise StorageFailed(self._options.data_dir, "join", what)
            if notes.shards is not None and notes.identity.cluster_id != welcome.cluster_id:
                own = notes.identity.cluster_id
                what = f"it belongs to cluster {own}, the nodes of --join to {welcome.cluster_id}; give another directory"
                raise StorageFailed(self._options.data_dir, "join", what)
            if (notes.identity.cluster_id, notes.shards) != (welcome.cluster_id, welcome.shards):
                log.adopt_cluster(welcome.cluster_id, welcome.shards)
            cluster.become(welcome.number, welcome.cluster_id)
        return recovered

    async def _welcome(self, cluster: Cluster, log: LogStore) -> Welcome | None:
        """Ask to be taken in until a cluster does; None if an administrator has this node begin one instead. Raises `StoreRemoved`."""
        self._begins = self._loop.create_future()
        joining = asyncio.ensure_future(cluster.membership.be_taken_in())
        either: list[asyncio.Future[Any]] = [joining, self._begins]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                log.begin_cluster(self._begins.result())
                return None
            welcome = joining.result()
            if cluster.options.cluster_id not in ("", welcome.cluster_id):
                what = f"the nodes of --join belong to cluster {welcome.cluster_id}, and this node to {cluster.options.cluster_id}"
                raise StorageFailed(self._options.data_dir, "join", what)
            return welcome
        except StoreRemoved:
            log.notes.note_removed()
            log.commit()
            raise
        finally:
            self._begins = None
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)

    def describe(self) -> SelfView:
        """This node as it stands now, also while it waits for a cluster."""
        log, cluster = self._node.log, self._node.cluster
        is_ready, reason = self._node.state.ready()
        number = cluster.number if cluster is not None else 0
        is_member = log is not None and (log.notes.shards is not None or number != 0)
        return SelfView(
            name=self._options.name,
            number=number,
            store=log.notes.identity.store_uuid if log is not None else "",
            cluster_id=log.notes.identity.cluster_id if log is not None and is_member else "",
            state="starting" if log is None else "member" if is_member else "waiting" if self._begins is not None else "starting",
            replicas=len(self._node.engine.replicas) if self._node.engine is not None else 0,
            is_ready=is_ready,
            reason=reason,
            version=self._options.version,
            archive=self._node.archive_health(),
        )

    def begin_cluster(self, cluster_id: str) -> None:
        """Have this node begin a cluster of this id, if it waits to be taken in and its store was never in one; nothing happens if it has
        begun it already. Raises `Unprocessable`, and `NotHere` while the node is starting."""
        log, cluster = self._node.log, self._node.cluster
        if log is None or cluster is None:
            raise NotHere("The node is starting or stopping; try again shortly.", retry_after_s=1)
        if cluster.options.cluster_id not in ("", cluster_id):
            raise Unprocessable(f"This node may begin cluster {cluster.options.cluster_id} only, not {cluster_id}.", cluster_id=cluster_id)
        if log.notes.shards is not None or cluster.number:
            if log.notes.identity.cluster_id == cluster_id:
                return
            raise Unprocessable(f"This node's data belongs to cluster {log.notes.identity.cluster_id} already.", cluster_id=cluster_id)
        if self._begins is None:
            raise NotHere("The node does not wait for a cluster now; try again shortly.", retry_after_s=1)
        if not self._begins.done():
            self._begins.set_result(cluster_id)

    def check_cluster(self, log: LogStore, has_replicas: bool) -> None:
        """A node that is told its cluster's id takes no data of another one, and begins none of another id. Raises `StorageFailed`."""
        wanted = self._node.cluster.options.cluster_id if self._node.cluster is not None else ""
        if not wanted or log.notes.identity.cluster_id == wanted:
            return
        if has_replicas or log.notes.shards is not None:
            what = f"it belongs to cluster {log.notes.identity.cluster_id}, not {wanted}; give another directory or the right --cluster-id"
            raise StorageFailed(self._options.data_dir, "start", what)
        if self._node.cluster is not None and not self._node.cluster.options.join:
            log.begin_cluster(wanted)

    def check_shards(self, log: LogStore, recovered: dict[int, RecoveredShard]) -> None:
        """The number of shards never changes. Raises `StorageFailed` for another one than the data's."""
        # A member of a cluster may hold any number of them; a directory of an earlier version does not say how many there are.
        count = log.notes.shards or len(recovered) - (SYSTEM_SHARD in recovered)
        if recovered and count != self._options.shards:
            raise StorageFailed(
                self._options.data_dir, "start", f"it holds {count} shards, not {self._options.shards}; the number of shards never changes"
            )

    def check_level(self, log: LogStore) -> None:
        """Before anything of the log is read by a version that may not understand it. Raises `StorageFailed` for one that does not."""
        revision = self._options.revision
        if log.notes.level > revision:
            what = f"its log needs a version of feature level {log.notes.level}, and this one understands {revision}; start a newer version"
            raise StorageFailed(self._options.data_dir, "start", what)
        if self._node.cluster is None and log.notes.level < revision:
            # A node alone is all of its cluster: nobody has to agree.
            log.notes.note_level(revision)
            log.commit()
