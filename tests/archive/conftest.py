"""A Postgres for all tests of the archive, each of which has a database of its own."""

import asyncio
import itertools
from collections.abc import Iterator

import asyncpg
import pytest

from support.postgres import PostgresServer, postgres_server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server that the test may stop and spoil."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def dsn(server: PostgresServer) -> str:
    """The URI of an empty database."""
    name = f"test_{next(_numbers)}"

    async def create() -> None:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(create())
    return server.dsn.replace("/postgres?", f"/{name}?")
