"""gzip and zstd for those who ask.

Knows `Accept-Encoding` and the two coders. Does not know what it compresses. Levels are the cheap ones: a window of 16 KiB costs well
under a tenth of a millisecond with zstd. Invariant: a large body is compressed beside the event loop; streams never come here.
"""

import asyncio
import gzip

import zstandard

from context_node.http.replies import Reply

ZSTD_LEVEL = 1
GZIP_LEVEL = 1
THREAD_ABOVE_BYTES = 64 * 1024


async def compressed(reply: Reply, accept_encoding: str) -> Reply:
    """The reply, compressed if the client takes a coding that we have and it makes the body smaller. Always says that it varies."""
    coding = choose(accept_encoding) if accept_encoding else ""
    if coding and reply.body:
        if len(reply.body) > THREAD_ABOVE_BYTES:
            body = await asyncio.get_running_loop().run_in_executor(None, compress, coding, reply.body)
        else:
            body = compress(coding, reply.body)
        if len(body) < len(reply.body):
            # Another coding is another representation, so a strong ETag would be wrong.
            headers = tuple((name, _weak(value) if name == "ETag" else value) for name, value in reply.headers)
            return Reply(reply.status, body, reply.content_type, (*headers, ("Content-Encoding", coding), ("Vary", "Accept-Encoding")))
    reply.headers += (("Vary", "Accept-Encoding"),)
    return reply


def compress(coding: str, body: bytes) -> bytes:
    if coding == "zstd":
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)
    return gzip.compress(body, GZIP_LEVEL, mtime=0)


def choose(accept_encoding: str) -> str:
    """The coding to use (RFC 9110, 12.5.3): zstd before gzip where the client likes both the same; "" for none."""
    quality = {"zstd": -1.0, "gzip": -1.0}
    rest = -1.0
    for item in accept_encoding.lower().split(","):
        name, _, parameter = item.strip().partition(";")
        weight = _weight(parameter)
        name = name.strip()
        if name in quality:
            quality[name] = weight
        elif name == "*":
            rest = weight
    best = max(quality, key=lambda name: (quality[name] if quality[name] >= 0 else rest, name == "zstd"))
    return best if (quality[best] if quality[best] >= 0 else rest) > 0 else ""


def _weight(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def _weak(etag: str) -> str:
    return etag if etag.startswith("W/") else f"W/{etag}"
