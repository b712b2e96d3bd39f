"""The wire between a node and Postgres, which tests hold and cut: whenever it ends, nothing of it is left to the collector."""

import gc
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from support.tcp_proxy import tcp_proxy

TURNS = 200
HOST = "127.0.0.1"


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says again what it hears."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,), daemon=True))
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server((HOST, 0), backlog=128) as listener:
        threads.append(threading.Thread(target=serve, daemon=True))
        threads[0].start()
        yield listener.getsockname()[1]
        # A thread that waits in accept() hears of the end only so.
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


def test_a_wire_that_ends_while_its_connections_do_leaves_none_open(echo: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left.append(repr(found.exc_value)))
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: left.append(str(message)))
    for turn in range(TURNS):
        with tcp_proxy(echo) as wire, ExitStack() as clients:
            for _ in range(3):
                client = clients.enter_context(closing(socket.create_connection((HOST, wire.port))))
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
            if turn % 2:
                # One that the server has yet to be told of.
                clients.enter_context(closing(socket.create_connection((HOST, wire.port))))
    gc.collect()
    assert not left
