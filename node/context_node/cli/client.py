"""Talking to a node over HTTP, for the commands that need one.

Knows retries: 429, 503 and lost connections are tried again with growing pauses, never sooner than `Retry-After`. Does not know what the
requests mean; whoever sends a write makes it safe to repeat (an idempotency key). Invariants: pauses and attempts are bounded; an answer
that will not change by repeating (any other 4xx) is returned at once; a key that is not accepted ends the command instead of failing each
line.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from context_node.cli.exits import CannotStart, WorkFailed

DEFAULT_URL = "http://127.0.0.1:4000"
ATTEMPTS_MAX = 8
PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 15.0
RETRY_AFTER_MAX_S = 60.0
TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 64 << 20

RETRIED_STATUSES = frozenset({429, 502, 503, 504})


class Refused(Exception):
    """The node said no and will say so again. `code` and `message` are its own; `status` is HTTP's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status = status
        self.code = code
        self.message = message


class GaveUp(Exception):
    """No answer, or only "not now", after all attempts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back with a 2xx, or a 404 that the caller asked to see."""

    status: int
    body: Any


def base_url(given: str) -> str:
    """The node's URL without `/v1` and trailing slashes. Raises CannotStart."""
    url = given.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host)
    except ValueError:
        usable = False
    if not usable:
        raise CannotStart(f"{given!r} is not the URL of a node; give one such as {DEFAULT_URL}.")
    return url


def context_path(context_id: str) -> str:
    """`/v1/contexts/ID`, with everything escaped that a client or proxy might take for a part of the path, dots alone included."""
    escaped = context_id.replace(".", "%2E") if context_id in (".", "..") else quote(context_id, safe="")
    return f"/v1/contexts/{escaped}"


class Client:
    """One node, one key. Made by `connected`; safe for many tasks at once."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives numbers in [0, 1)."""
        self.url = url
        self.retries = 0
        self._session = session
        self._sleep = sleep
        self._jitter = jitter

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        """One request, repeated while that can help. Raises `Refused`, `GaveUp`; WorkFailed if the key is not accepted."""
        sent = dict(headers or {})
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        trouble = ""
        for attempt in range(ATTEMPTS_MAX):
            after_s: float | None = None
            try:
                async with self._session.request(method, self._url(path), data=body, headers=sent) as response:
                    content = await read_bounded(response)
                    if response.status not in RETRIED_STATUSES:
                        return answer_of(response.status, content, missing_ok)
                    after_s = retry_after_s(response.headers.get("Retry-After"))
                    trouble = str(refusal_of(response.status, content))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                trouble = str(error) or type(error).__name__
            self.retries += 1
            if attempt + 1 < ATTEMPTS_MAX:
                await self.pause(attempt, after_s)
        raise GaveUp(f"gave up after {ATTEMPTS_MAX} attempts: {trouble}")

    async def pause(self, attempt: int, after_s: float | None = None) -> None:
        """Wait before the try after `attempt` (from 0); at least `after_s`, up to a minute, if the node said so."""
        backoff = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**attempt)
        # Half fixed and half random, so that clients that were refused together do not come back together.
        backoff *= 0.5 + 0.5 * self._jitter()
        await self._sleep(max(backoff, min(after_s or 0.0, RETRY_AFTER_MAX_S)))

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of a GET as it comes. Raises `Refused`, `GaveUp`; the caller repeats if it can."""
        try:
            async with self._session.get(self._url(path), timeout=aiohttp.ClientTimeout(total=None, sock_read=TIMEOUT_S)) as response:
                if response.status in RETRIED_STATUSES:
                    raise GaveUp(str(refusal_of(response.status, await read_bounded(response))))
                if response.status != 200:
                    answer_of(response.status, await read_bounded(response), False)
                yield response.content
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise GaveUp(str(error) or type(error).__name__) from error

    async def check(self) -> None:
        """Whether somebody answers at all, asked once without patience. Raises CannotStart."""
        try:
            async with self._session.get(self._url("/health/live")) as response:
                await read_bounded(response)
                found = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise CannotStart(f"No node answers at {self.url} ({reason}). Start one with `contextstore dev`, or give --url.") from error
        if found != 200:
            raise CannotStart(f"What answers at {self.url} is not a Context Store node (GET /health/live gave {found}). Check --url.")

    def _url(self, path: str) -> URL:
        # Already escaped: yarl must not normalize an id that looks like a path.
        return URL(self.url + path, encoded=True)


@asynccontextmanager
async def connected(url: str, key: str | None, connections: int) -> AsyncIterator[Client]:
    """A client with a pool of at most `connections`. Raises CannotStart if nobody answers."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
    ) as session:
        client = Client(session, base_url(url))
        await client.check()
        yield client


async def read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body, at most `ANSWER_BYTES_MAX`. Raises aiohttp.ClientPayloadError beyond."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"an answer larger than {ANSWER_BYTES_MAX} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def answer_of(status: int, content: bytes, missing_ok: bool) -> Answer:
    """Raises `Refused` for an error status; WorkFailed for 401 and 403, which every further request would meet too."""
    if 200 <= status < 300:
        return Answer(status, msgspec.json.decode(content) if content else None)
    refusal = refusal_of(status, content)
    if status == 404 and missing_ok and refusal.code == "context_not_found":
        return Answer(status, None)
    if status in (401, 403):
        raise WorkFailed(f"{refusal.message} Give a key with --key or CONTEXTSTORE_API_KEY.")
    raise refusal


def refusal_of(status: int, content: bytes) -> Refused:
    """The error that a body tells; whatever is not one of ours (a proxy's page) is shown by its status alone."""
    try:
        said = msgspec.json.decode(content)
        return Refused(status, str(said["error"]), str(said["message"]))
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return Refused(status, "http_error", f"The answer was HTTP status {status}.")


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a `Retry-After` header; its other form, a date, is not used by our nodes and counts as absent."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
