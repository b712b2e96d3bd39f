"""Nodes that prove themselves by certificate: who has none of the authority gets nowhere, and files may change while everybody talks."""

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from context_node.runtime.transport import PeerIdentity, PeerUnavailable, Transport, TransportLimits
from context_node.tls import Credentials, TlsError, TlsFiles
from context_operator.certificates import Pair, issue, join, make_authority
from support.loops import Run
from support.waiting import until

HOST = "127.0.0.1"
NOW = datetime.now(UTC)
AUTHORITY, OTHER = make_authority("one", NOW), make_authority("two", NOW)
FAST = TransportLimits(reconnect_min_s=0.01, reconnect_max_s=0.05, handshake_timeout_s=5.0)


class Machine:
    """The files of a node."""

    def __init__(self, folder: Path, signed_by: Pair = AUTHORITY, trusts: str = AUTHORITY.certificate) -> None:
        folder.mkdir()
        self.files = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        self.change(issue(signed_by, [HOST], NOW), trusts)
        self.credentials = Credentials(self.files)

    def change(self, pair: Pair, trusts: str) -> None:
        assert self.files.authority is not None
        for path, text in ((self.files.certificate, pair.certificate), (self.files.key, pair.key), (self.files.authority, trusts)):
            path.with_suffix(".new").write_text(text)
            path.with_suffix(".new").replace(path)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Machine]]:
    yield [Machine(tmp_path / str(number)) for number in range(3)]


def transport(stack: AsyncExitStack, number: int, credentials: Credentials | None) -> Transport:
    async def answer(_peer: PeerIdentity, payload: bytes) -> bytes:
        return b"re: " + payload

    made = Transport(
        PeerIdentity("c" * 32, number, f"{number:032x}", f"node-{number}"),
        b"s" * 32,
        random_bytes=os.urandom,
        limits=FAST,
        on_message=lambda _peer, _payload: None,
        on_request=answer,
        on_peer=lambda _node, _connected: None,
        tls=credentials,
    )
    stack.push_async_callback(made.close)
    return made


def test_nodes_of_one_authority_talk(run: Run, three: list[Machine]) -> None:

    async def check(stack: AsyncExitStack) -> None:
        one, two = (transport(stack, number, three[number].credentials) for number in (1, 2))
        port = await two.listen(HOST, 0)
        one.connect(2, HOST, port, "")
        await until(lambda: one.is_connected(2), "they are connected")
        large = bytes(3 << 20)
        assert await one.request(2, large, 30.0) == b"re: " + large

    run(check)


@pytest.mark.parametrize("kind", ["no TLS", "another authority"])
def test_the_secret_alone_lets_nobody_in(run: Run, three: list[Machine], tmp_path: Path, kind: str) -> None:

    async def check(stack: AsyncExitStack) -> None:
        two = transport(stack, 2, three[2].credentials)
        port = await two.listen(HOST, 0)
        # It trusts the other, and knows the secret; it is not trusted.
        stranger = None if kind == "no TLS" else Machine(tmp_path / "stranger", OTHER).credentials
        one = transport(stack, 1, stranger)
        with pytest.raises(PeerUnavailable):
            await one.request_address(HOST, port, b"hello", 5.0)

    run(check)


def test_a_certificate_of_another_host_is_not_believed(run: Run, three: list[Machine]) -> None:

    async def check(stack: AsyncExitStack) -> None:
        one, two = (transport(stack, number, three[number].credentials) for number in (1, 2))
        three[2].change(issue(AUTHORITY, ["elsewhere.example"], NOW), AUTHORITY.certificate)
        assert three[2].credentials.reload_if_changed()
        with pytest.raises(PeerUnavailable, match=r"(?i)certificate"):
            await one.request_address(HOST, await two.listen(HOST, 0), b"hello", 5.0)

    run(check)


def test_an_authority_is_changed_while_nodes_talk(run: Run, three: list[Machine]) -> None:
    """As the operator does it: trust both, show the new one, trust the new one alone; machines read their files one after the other."""
    old, new, both = AUTHORITY.certificate, OTHER.certificate, join(AUTHORITY.certificate, OTHER.certificate)
    stages = [(AUTHORITY, both), (OTHER, both), (OTHER, new)]

    async def check(stack: AsyncExitStack) -> None:
        nodes = [transport(stack, number + 1, machine.credentials) for number, machine in enumerate(three)]
        ports = [await node.listen(HOST, 0) for node in nodes]

        async def everybody_talks() -> None:
            for asking in nodes:
                for port in ports:
                    assert await asking.request_address(HOST, port, b"x", 10.0) == b"re: x"

        await everybody_talks()
        for signed_by, trusts in stages:
            for machine in three:
                machine.change(issue(signed_by, [HOST], NOW), trusts)
                assert machine.credentials.reload_if_changed()
                await everybody_talks()
        # The listeners have been there all the while; what only the old authority signed is out now.
        left_behind = Machine(three[0].files.certificate.parent / "old", AUTHORITY, both)
        late = transport(stack, 9, left_behind.credentials)
        with pytest.raises(PeerUnavailable):
            await late.request_address(HOST, ports[0], b"x", 5.0)
        assert old not in trusts

    run(check)


def test_files_that_cannot_be_used_replace_nothing(run: Run, three: list[Machine]) -> None:

    async def check(stack: AsyncExitStack) -> None:
        one, two = (transport(stack, number, three[number].credentials) for number in (1, 2))
        port = await two.listen(HOST, 0)
        good = Pair(three[2].files.certificate.read_text(), three[2].files.key.read_text())
        for bad in (Pair("nonsense", good.key), Pair(good.certificate, OTHER.key), Pair(good.certificate, "")):
            three[2].change(bad, AUTHORITY.certificate)
            with pytest.raises(TlsError, match=r"tls\.crt"):
                three[2].credentials.reload_if_changed()
            assert await one.request_address(HOST, port, b"x", 10.0) == b"re: x"
        three[2].change(good, "no certificate")
        with pytest.raises(TlsError, match=r"ca\.crt"):
            three[2].credentials.reload_if_changed()
        three[2].change(good, AUTHORITY.certificate)
        assert three[2].credentials.reload_if_changed()
        assert not three[2].credentials.reload_if_changed()

    run(check)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one")
    machine.files.key.unlink()
    with pytest.raises(TlsError, match=r"tls\.key cannot be read: No such file"):
        Credentials(machine.files)


def test_without_an_authority_nodes_speak_no_tls_to_each_other(tmp_path: Path) -> None:
    files = Machine(tmp_path / "one").files
    credentials = Credentials(TlsFiles(files.certificate, files.key))
    assert credentials.for_peers is None
    assert credentials.to_peers is None
    assert credentials.for_clients.verify_mode is ssl.CERT_NONE


def test_a_dial_that_is_given_up_leaves_nothing_behind(run: Run, three: list[Machine]) -> None:
    """In the middle of a TLS handshake that never ends."""

    async def check(stack: AsyncExitStack) -> None:
        # The kernel takes the connection, and nobody ever reads from it.
        silent = stack.enter_context(socket.create_server((HOST, 0)))
        one = transport(stack, 1, three[1].credentials)
        port = int(silent.getsockname()[1])
        for _ in range(20):
            with pytest.raises(PeerUnavailable):
                await one.request_address(HOST, port, b"x", 0.02)
        one.connect(2, HOST, port, "")
        await asyncio.sleep(0)
        await one.close()

    run(check)
