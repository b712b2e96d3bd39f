"""Commands in the log: they come back as they went, and their bytes are those that earlier versions wrote."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_node.contexts.cluster import AdvanceEpoch, MarkNode, RaiseLevel, RegisterNode, RegisterNode1, SetReplication
from context_node.contexts.commands import (
    AppendMessages,
    Archived,
    Command,
    Compare,
    CopyPolicy,
    Defaults,
    DeletePolicyCommand,
    Draft,
    KeyUse,
    NoteArchived,
    PatchMetadataCommand,
    PinMessage,
    PolicyRecord,
    PolicySpec,
    Purge,
    PurgeEverywhere,
    PutConfig,
    PutPolicyCommand,
    RebuildWindow,
    Recount,
    RestoreContext,
    Restored,
    RestoredMessage,
    RestoreEnd,
    RewriteWindow,
    Rules,
    Tombstone,
    UseArchive,
    decode_command,
    draft,
    encode_command,
)
from context_node.contexts.items import Info, info_decoder, info_encoder
from context_node.contexts.parts import CALL, TEXT, Mark
from context_node.contexts.requests import NewMessage

DRAFT = Draft("user", b'"role":"user"', 9, (Mark(TEXT, "text", 5),), b"d" * 16, "m", True)
RULES = Rules(1, 2, 3, 4)
KEY = KeyUse("k", b"k" * 16)
RECORD = PolicyRecord("p", 3, "last_n", b"{}", 5, 0.5, 0.25, "o200k_base", True, 6, 7, True)

GOLDEN: list[tuple[Command, str]] = [
    (
        AppendMessages("c", 1, RULES, (DRAFT,), True, 2, 3, Defaults(4, 0.5, 0.25, "t", "p"), KEY),
        "9aa8617070656e642f31a16301940102030491"
        "97a475736572c40d22726f6c65223a22757365722209919800a47465787405a0a0c2c200c41064646464646464646464646464646464a16dc3"
        "c302039504cb3fe0000000000000cb3fd0000000000000a174a17092a16bc4106b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b",
    ),
    (
        PutConfig("c", 1, RULES, Defaults(), 5, 0.5, 0.25, PolicySpec("last_n", b"{}"), "t", b"{}", (Recount(0, 1, (2,)),), KEY),
        (
            "9da57075742f31a16301940102030495cd2000cb3fe6666666666666c0aa6f3230306b5f62617365c005cb3fe0000000000000cb3fd000"
            "000000000093a66c6173745f6ec4027b7dc0a174c4027b7d91930001910292a16bc4106b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"
        ),
    ),
    (
        PatchMetadataCommand("c", 1, RULES, b"{}", KEY),
        ("96a770617463682f31a163019401020304c4027b7d92a16bc4106b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"),
    ),
    (Tombstone("c", 1, RULES), ("94ab746f6d6273746f6e652f31a163019401020304")),
    (Purge("c", 1, RULES), ("94a770757267652f31a163019401020304")),
    (PurgeEverywhere("c", 1, RULES), ("94af70757267652d617263686976652f31a163019401020304")),
    (UseArchive(1, "a"), ("93a9617263686976652f3101a161")),
    (NoteArchived(1, (Archived("c", 2, 3, 4, 1),), (("d", 4),)), ("94aa61726368697665642f31019195a163020304019192a16404")),
    (
        RewriteWindow("c", 1, RULES, (DRAFT,), (1, 2), 3, 4, KEY),
        (
            "99a9726577726974652f31a1630194010203049197a475736572c40d22726f6c65223a22757365722209919800a47465787405a0a0c2c2"
            "00c41064646464646464646464646464646464a16dc3920102030492a16bc4106b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"
        ),
    ),
    (
        RebuildWindow("c", 1, RULES, (Restored(1, b"b", b"i"),), 2, 3, KEY),
        ("98a972656275696c642f31a163019401020304919301c40162c40169020392a16bc4106b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"),
    ),
    (PinMessage("c", 1, RULES, 2, True, (Restored(1, b"b", b"i"),)), ("97a570696e2f31a16301940102030402c3919301c40162c40169")),
    (
        RestoreContext("c", 1, RULES, "s", 2, (RestoredMessage(b"b", b"i", ("m", 3, 4, b"d"), True),), RestoreEnd(b"r", 2, 1, False)),
        "98a9726573746f72652f31a163019401020304a173029194c40162c4016994a16d0304c40164c394c401720201c2",
    ),
    (
        PutPolicyCommand(1, RECORD),
        (
            "93ac706f6c6963792d7075742f31019ca17003a66c6173745f6ec4027b7d05cb3fe0000000000000cb3fd0000000000000aa6f3230306b"
            "5f62617365c30607c3"
        ),
    ),
    (DeletePolicyCommand(1, "p"), ("93af706f6c6963792d64656c6574652f3101a170")),
    (
        CopyPolicy(1, RECORD),
        (
            "93ad706f6c6963792d636f70792f31019ca17003a66c6173745f6ec4027b7d05cb3fe0000000000000cb3fd0000000000000aa6f323030"
            "6b5f62617365c30607c3"
        ),
    ),
    (RegisterNode1(1, "s", "n", "p:1", "c:1", "z"), "97af6e6f64652d72656769737465722f3101a173a16ea3703a31a3633a31a17a"),
    (RegisterNode(1, "s", "n", "p:1", "c:1", "z", 2), "98af6e6f64652d72656769737465722f3201a173a16ea3703a31a3633a31a17a02"),
    (RaiseLevel(1, 2, 3), "94ad6c6576656c2d72616973652f31010203"),
    (AdvanceEpoch(1, 2), "93af65706f63682d616476616e63652f310102"),
    (Compare(1, "m"), "93a9636f6d706172652f3101a16d"),
    (MarkNode(1, 2, 3, True, False, True), "97ab6e6f64652d6d61726b2f31010203c3c2c3"),
    (SetReplication(1, 2, 3), "94b17265706c69636174696f6e2d7365742f31010203"),
]
"""One command of each kind with every field set, and its bytes. They are in logs: a change here needs a new tag instead."""


@pytest.mark.parametrize(("command", "expected"), GOLDEN, ids=[type(command).__name__ for command, _ in GOLDEN])
def test_w5_the_bytes_of_a_command_never_change(command: Command, expected: str) -> None:
    assert encode_command(command).hex() == expected
    assert decode_command(bytes.fromhex(expected)) == command


def test_every_kind_of_command_has_its_golden_bytes() -> None:
    assert {type(command) for command, _ in GOLDEN} == set(get_args(Command))


def test_a_message_row_keeps_its_bytes() -> None:
    info = Info("assistant", 9, (Mark(CALL, "tool_call", 5, "a", "search"),), 3)
    expected = "94a9617373697374616e7409919802a9746f6f6c5f63616c6c05a161a6736561726368c2c20003"
    assert info_encoder.encode(info).hex() == expected
    assert info_decoder.decode(bytes.fromhex(expected)) == info


text = st.text(max_size=8)
small = st.integers(0, 2**31)
mark = st.builds(Mark, st.integers(0, 5), text, small, text, text, st.booleans(), st.booleans(), small)
made_draft = st.builds(
    Draft,
    text,
    st.binary(max_size=20),
    small,
    st.lists(mark, max_size=3).map(tuple),
    st.binary(max_size=16),
    st.none() | text,
    st.booleans(),
)
drafts = st.lists(made_draft, max_size=3).map(tuple)
rules = st.builds(Rules, small, small, small, small)
key = st.none() | st.builds(KeyUse, text, st.binary(max_size=16))
version = st.none() | small
ratio = st.none() | st.floats(0, 1)
spec = st.none() | st.builds(PolicySpec, st.none() | text, st.binary(max_size=9), st.none() | text)
defaults = st.builds(Defaults, small, st.floats(0, 1), ratio, text, st.none() | text)
restored = st.lists(st.builds(Restored, small, st.binary(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple)
message_id = st.none() | st.tuples(text, small, small, st.binary(max_size=16))
restored_message = st.builds(RestoredMessage, st.binary(max_size=9), st.binary(max_size=9), message_id, st.booleans())
restored_messages = st.lists(restored_message, max_size=3).map(tuple)
restore_end = st.builds(RestoreEnd, st.binary(max_size=9), small, small, st.booleans())
recounts = st.lists(st.builds(Recount, small, small, st.lists(small, max_size=3).map(tuple)), max_size=2).map(tuple)
commands: st.SearchStrategy[Any] = st.one_of(
    st.builds(AppendMessages, text, small, rules, drafts, st.booleans(), version, version, st.none() | defaults, key),
    st.builds(
        PutConfig,
        text,
        small,
        rules,
        defaults,
        version,
        ratio,
        ratio,
        spec,
        st.none() | text,
        st.none() | st.binary(max_size=9),
        recounts,
        key,
    ),
    st.builds(RewriteWindow, text, small, rules, drafts, st.none() | st.tuples(small, small), version, version, key),
    st.builds(RebuildWindow, text, small, rules, restored, small, version, key),
    st.builds(RestoreContext, text, small, rules, text, small, restored_messages, st.none() | restore_end),
    st.builds(PinMessage, text, small, rules, small, st.booleans(), restored),
    st.builds(PatchMetadataCommand, text, small, rules, st.binary(max_size=9), key),
)


@given(commands)
def test_a_command_comes_back_as_it_went(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x90", b"\x92\xa8append/9\x01", encode_command(Tombstone("c", 1, RULES))[:-1]])
def test_bytes_that_are_no_command_are_told_so(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(data)


def test_a_drafts_digest_depends_on_what_the_client_said_alone() -> None:
    message = NewMessage("user", [{"type": "text", "text": "hi"}], id="m")
    assert draft(message, [1]).digest == draft(message, [2]).digest
    changed = [
        NewMessage("user", [{"type": "text", "text": "ho"}], id="m"),
        NewMessage("assistant", [{"type": "text", "text": "hi"}], id="m"),
        NewMessage("user", [{"type": "text", "text": "hi"}], {"a": 1}, id="m"),
        NewMessage("user", [{"type": "text", "text": "hi"}], token_count=1, id="m"),
        NewMessage("user", [{"type": "text", "text": "hi"}], id="m", pinned=True),
    ]
    assert len({draft(each, [1]).digest for each in [message, *changed]}) == 6


def test_a_clients_token_count_is_the_whole_cost() -> None:
    message = NewMessage("user", [{"type": "text", "text": "hi"}], token_count=7)
    assert draft(message, [7]).tokens == 7
    assert draft(NewMessage("user", message.parts), [7]).tokens == 11
