"""Planted bugs about members, time and who may speak."""

from support.planted import Mutant

REPLICA = "context_node.runtime.replica"
ENGINE = "context_node.runtime.engine"
HOLDINGS = "context_node.runtime.holdings"
MEMBERSHIP = "context_node.runtime.membership"

MUTANTS = (
    Mutant(
        "state is stored with the members that it had before",
        "P8; §2 etcd #7280",
        (
            (
                REPLICA,
                "state_changes(machine, self.applied_index, self.applied_term, self.conf_state)",
                "state_changes(machine, self.applied_index, self.applied_term, self.store.applied().conf_state or self.conf_state)",
            ),
        ),
    ),
    Mutant(
        "a change of members is applied by Raft and not kept",
        "P8",
        (
            (
                REPLICA,
                "                self._take_members(self.group.apply_conf_change(index))\n",
                "                self.group.apply_conf_change(index)\n",
            ),
        ),
    ),
    Mutant(
        "a start takes the members of a state that it does not have yet",
        "P8",
        (
            (
                HOLDINGS,
                "            conf_state=applied.conf_state,\n            applied=applied.index,\n",
                "            conf_state=ConfState(voters=(found.replica_id,)).encode() if applied.conf_state else applied.conf_state,\n"
                "            applied=applied.index,\n",
            ),
        ),
    ),
    Mutant(
        "followers get no time",
        "§2 CockroachDB #26257: quiescence against elections",
        (
            (
                ENGINE,
                "            if replica.is_resting or (not replica.has_peers and replica.leads and not replica.is_waited_for):\n",
                "            if replica.is_resting or not replica.group.is_leader:\n",
            ),
        ),
    ),
    Mutant(
        "messages of a node speak for any replica",
        "P11",
        (
            (
                ENGINE,
                "if node_of(sender) == node and to == replica.group.replica_id and replica.group.step(message):",
                "if replica.group.step(_readdressed(message, to, replica.group.replica_id)):",
            ),
            (
                ENGINE,
                "@dataclass(slots=True)\nclass EngineCounters:",
                "def _readdressed(message, to, replica_id):\n"
                "    def varint(value):\n        out = bytearray()\n        while value >= 0x80:\n"
                "            out.append(value & 0x7F | 0x80)\n            value >>= 7\n        out.append(value)\n        return bytes(out)\n"
                "    return message.replace(b'\\x10' + varint(to), b'\\x10' + varint(replica_id), 1)\n\n\n"
                "@dataclass(slots=True)\nclass EngineCounters:",
            ),
        ),
    ),
    Mutant(
        "what a node that lost its disk held is counted as held by its successor",
        "table row 32; FAQ of OpenRaft: wiped data",
        (
            (
                MEMBERSHIP,
                "        command = RegisterNode(self._now_ms(), member.store,",
                "        command = RegisterNode(self._now_ms(), member.name.partition('.')[0],",
            ),
        ),
    ),
    Mutant(
        "a leadership that is handed over is taken without an election",
        "I1",
        (
            (
                ENGINE,
                "        self._address(replica.shard, ready.messages)\n",
                "        self._address(replica.shard, ready.messages)\n"
                "        if ready.soft_state is not None and ready.soft_state[1] == 1:\n"
                "            replica.group.campaign()\n",
            ),
        ),
    ),
)
