"""The face that `http/` sees: everything that can be asked of this node's contexts.

Reading is in `reads`, writing in `writes`, what comes from an archive in `restores`, policies in `named_policies`. Every method raises a
`Refusal` for what is refused, and nothing else for what a client can cause.
"""

from context_node.runtime.named_policies import NamedPolicies
from context_node.runtime.reads import Reads
from context_node.runtime.restores import Restores
from context_node.runtime.writes import Writes


class Service:
    """See `Reads`, `Writes`, `Restores` and `NamedPolicies` for what each method does."""

    def __init__(self, reads: Reads, writes: Writes, restores: Restores, policies: NamedPolicies, node: "NodeState") -> None:
        self.append = writes.append
        self.put_context = writes.put_context
        self.create_context = writes.create_context
        self.patch_metadata = writes.patch_metadata
        self.delete_context = writes.delete_context
        self.purge_context = writes.purge_context
        self.compact = writes.compact
        self.pin = writes.pin
        self.restore_context = restores.restore_context
        self.get_context = reads.get_context
        self.list_contexts = reads.list_contexts
        self.list_shard = reads.list_shard
        self.page = reads.page
        self.tail = reads.tail
        self.window = reads.window
        self.subscribe = reads.subscribe
        self.export = reads.export
        self.put_policy = policies.put_policy
        self.get_policy = policies.get_policy
        self.delete_policy = policies.delete_policy
        self.list_policies = policies.list_policies
        self._node = node

    def ready(self) -> tuple[bool, str]:
        """Whether this node serves, and why not."""
        return self._node.ready()

    def leader_of(self, context_id: str) -> str:
        """The node that leads the context's shard."""
        return self._node.name


class NodeState:
    """What the service tells about its node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reason = "The node is starting."
        self.is_ready = False

    def ready(self) -> tuple[bool, str]:
        return self.is_ready, "" if self.is_ready else self.reason

    def open(self) -> None:
        self.is_ready, self.reason = True, ""

    def close(self, reason: str) -> None:
        self.is_ready, self.reason = False, reason
