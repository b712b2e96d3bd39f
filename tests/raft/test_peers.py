"""What peers send: arbitrary bytes never break a replica, and what no correct peer sends changes nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context_node.raft import BadMessage, MessageKind, ReplicaPanicked, peek_message
from support.raft_cluster import Cluster
from support.raft_messages import LOCAL_KINDS, entry, message, varint

GROUPS = varint(20 << 3 | 3) * 300_000
"""Field 20, which eraftpb has not, as a group in a group in a group: a parser that recurses runs out of stack."""

ONE_GROUP = varint(20 << 3 | 3) + varint(20 << 3 | 4)
"""The same field as one empty group: harmless, and no correct peer sends it."""


def led() -> Cluster:
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(b"a", b"b")
    cluster.tick(3)
    return cluster


def test_a_proposal_from_a_peer_is_refused() -> None:
    cluster = led()
    last = cluster[1].last_index
    with pytest.raises(BadMessage, match="MsgPropose"):
        cluster[1].step(message(LOCAL_KINDS["propose"], to=1, sender=2, entries=(entry(0, 0, b"x"),)))
    assert cluster[1].last_index == last


@pytest.mark.parametrize("kind", sorted(LOCAL_KINDS))
def test_what_stays_inside_a_replica_is_not_taken_from_a_peer(kind: str) -> None:
    cluster = led()
    for term in (0, cluster[2].term, 99):
        with pytest.raises(BadMessage):
            cluster[2].step(message(LOCAL_KINDS[kind], to=2, sender=1, term=term))
    assert cluster[2].term == cluster[1].term


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(message(MessageKind.HEARTBEAT, to=3, sender=1, term=2), id="for another replica"),
        pytest.param(message(MessageKind.HEARTBEAT, sender=1, term=2), id="for nobody"),
        pytest.param(message(MessageKind.HEARTBEAT, to=2, term=2), id="from nobody"),
        pytest.param(message(MessageKind.HEARTBEAT, to=2, sender=2, term=2), id="from itself"),
        pytest.param(message(MessageKind.HEARTBEAT, to=2, sender=1), id="without a term"),
        pytest.param(message(MessageKind.REQUEST_VOTE, to=2, sender=1), id="a vote without a term"),
        pytest.param(message(MessageKind.REQUEST_VOTE, to=2, sender=1, term=2**63), id="a term that would overflow"),
        pytest.param(message(MessageKind.APPEND, to=2, sender=1, term=2, index=2**64 - 1), id="an overflow"),
        pytest.param(message(MessageKind.APPEND, to=2, sender=1, term=2, index=1, log_term=1, entries=(entry(3, 2),)), id="a gap"),
        pytest.param(
            message(MessageKind.APPEND, to=2, sender=1, term=2, index=1, log_term=1, entries=(entry(2, 3),)),
            id="an entry of the future",
        ),
        pytest.param(
            message(MessageKind.APPEND, to=2, sender=1, term=2, index=2, log_term=2, entries=(entry(3, 1),)),
            id="a term that falls",
        ),
        pytest.param(b"\x08\xff\xff", id="cut off"),
        pytest.param(GROUPS, id="groups in groups"),
        pytest.param(message(MessageKind.HEARTBEAT, to=2, sender=1, term=2) + ONE_GROUP, id="a group at the end"),
        pytest.param(b"\x3a" + varint(len(GROUPS)) + GROUPS, id="groups inside an entry"),
    ],
)
def test_what_no_correct_peer_sends_is_refused_and_changes_nothing(bad: bytes) -> None:
    """RUSTSEC-2024-0437 for the groups: a stack overflow could not be caught."""
    cluster = led()
    before = repr(cluster[2].status())
    with pytest.raises(BadMessage) as refused:
        cluster[2].step(bad)
    assert refused.value.reason
    assert (refused.value.group_id, refused.value.replica_id) == (9, 2)
    assert repr(cluster[2].status()) == before
    assert not cluster[2].has_ready()


def test_an_acknowledgement_of_entries_that_do_not_exist_is_refused() -> None:
    cluster = led()
    term, last = cluster[1].term, cluster[1].last_index
    with pytest.raises(BadMessage, match="acknowledges"):
        cluster[1].step(message(MessageKind.APPEND_RESPONSE, to=1, sender=2, term=term, index=last + 1))


def test_an_answer_of_a_stranger_changes_nothing() -> None:
    cluster = led()
    term = cluster[1].term
    assert cluster[1].step(message(MessageKind.APPEND_RESPONSE, to=1, sender=77, term=term, index=1)) is False
    assert cluster[1].step(message(MessageKind.HEARTBEAT_RESPONSE, to=1, sender=77, term=term + 5)) is False
    assert cluster[1].term == term


def test_a_message_can_be_peeked_at() -> None:
    sent = message(MessageKind.HEARTBEAT, to=2, sender=1, term=7)
    assert peek_message(sent) == (MessageKind.HEARTBEAT, 1, 2, 7)
    with pytest.raises(BadMessage):
        peek_message(b"\x0b")


@given(noise=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_harmless(noise: bytes) -> None:
    group = Cluster()[1]
    try:
        group.step(noise)
    except BadMessage:
        pass
    assert not group.poisoned


NUMBERS = st.integers(0, 6) | st.integers(0, 2**64 - 1)
ENTRIES = st.lists(st.builds(entry, NUMBERS, NUMBERS, st.binary(max_size=4), st.integers(0, 3)), max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_well_formed_nonsense_never_breaks_the_process(data: st.DataObject) -> None:
    """A replica may end by a broken invariant (its data would be wrong otherwise); then it says so, and stays ended."""
    cluster = led()
    group = cluster[data.draw(st.sampled_from([1, 2]))]
    for _ in range(data.draw(st.integers(1, 8))):
        names = ("term", "log_term", "index", "commit", "commit_term", "reject", "reject_hint", "request_snapshot")
        numbers = {name: data.draw(NUMBERS) for name in names if data.draw(st.booleans())}
        sent = message(
            data.draw(st.integers(0, 20)),
            to=group.replica_id,
            sender=3,
            entries=tuple(data.draw(ENTRIES)),
            context=data.draw(st.none() | st.binary(max_size=4)),
            **numbers,
        )
        try:
            group.step(sent)
            cluster.members[group.replica_id].settle()
        except BadMessage:
            assert not group.poisoned
        except ReplicaPanicked:
            assert group.poisoned
            with pytest.raises(ReplicaPanicked):
                group.tick()
            return


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_message_never_breaks_the_process(data: st.DataObject) -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster[1].propose(b"some data")
    cluster.members[1].turn()
    to, sent = cluster.members[1].outbox[-1]
    damaged = bytearray(sent)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    group = cluster[to]
    try:
        group.step(bytes(damaged))
        cluster.members[to].settle()
    except BadMessage:
        assert not group.poisoned
    except ReplicaPanicked:
        assert group.poisoned
