"""The loads of the benchmarks: wrk with a small script each, and what has to be there before it runs."""

import re
import subprocess
import tempfile
from dataclasses import dataclass

import aiohttp

CONTEXTS = 512
"""Appends spread over so many contexts, so over all shards."""

TEXT = (
    "I would like to change the second leg of my trip: is there an earlier flight from Denver to Newark on the same day, "
    "and would my bag allowance stay as it is? My reservation is under the same account as before."
)
MESSAGE = f'{{"role":"user","parts":[{{"type":"text","text":"{TEXT}"}}],"metadata":{{"source":"web"}}}}'


@dataclass(frozen=True, slots=True)
class Load:
    """A wrk run: what it asks, over how many connections; `weight` is how many things one request does."""

    url: str
    script: str
    connections: int
    weight: int = 1

    def run(self, seconds: int) -> float:
        """Things done per second. Raises if any answer was an error: a rate of refusals is no rate."""
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(self.script)
            script.flush()
            threads = "1"
            command = ["wrk", "-t", threads, "-c", str(self.connections), "-d", f"{seconds}s", "-s", script.name, self.url]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in output or "Socket errors" in output:
            raise RuntimeError(f"the load met errors:\n{output}")
        found = re.search(r"Requests/sec:\s+([\d.]+)", output)
        if found is None:
            raise RuntimeError(f"wrk gave no rate:\n{output}")
        return float(found.group(1)) * self.weight


_POST = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[{body}]==]
"""

_SPREAD = """
local at = 0
local requests = {{}}
function init(args)
  for i = 0, {contexts} - 1 do
    requests[i] = wrk.format(nil, "/v1/contexts/bench-" .. i .. "/messages?create=true")
  end
end
function request()
  at = (at + 7) % {contexts}
  return requests[at]
end
"""


def body_of(batch: int | None = None) -> str:
    """An append of one message, or of `batch` of them."""
    if batch is None:
        return f'{{"message":{MESSAGE}}}'
    return f'{{"messages":[{",".join([MESSAGE] * batch)}]}}'


def appends(url: str, connections: int, batch: int | None = None) -> Load:
    """Durable appends, spread over contexts."""
    script = _POST.format(body=body_of(batch)) + _SPREAD.format(contexts=CONTEXTS)
    return Load(url, script, connections, batch or 1)


def echoes(url: str, connections: int) -> Load:
    """The same JSON to the peer."""
    return Load(url + "/echo", _POST.format(body=body_of()), connections)


def reads(url: str, path: str, connections: int) -> Load:
    """GET of one path."""
    return Load(url + path, "", connections)


def appends_to(url: str, context_id: str) -> Load:
    """Appends to one context."""
    return Load(f"{url}/v1/contexts/{context_id}/messages", _POST.format(body=body_of()), 8)


def window_after_append(url: str, context_id: str) -> Load:
    """An append and a window read by turns, so that no read finds its answer ready."""
    script = (
        _POST.format(body=body_of())
        + f"""
local turn = 0
local append, window
function init(args)
  append = wrk.format("POST", "/v1/contexts/{context_id}/messages")
  window = wrk.format("GET", "/v1/contexts/{context_id}/context", {{}}, "")
end
function request()
  turn = 1 - turn
  if turn == 1 then return append end
  return window
end
"""
    )
    return Load(url, script, 8)


async def window_of_4000_tokens(url: str) -> tuple[str, bytes]:
    """A context whose window holds about 4,000 tokens; its path and the window's bytes."""
    base = f"{url}/v1/contexts/bench-window"
    async with aiohttp.ClientSession() as session:
        async with session.put(base, json={"token_budget": 1_000_000}) as answer:
            answer.raise_for_status()
        async with session.get(base) as answer:
            used = (await answer.json())["used_tokens"]
        while used < 4_000:
            async with session.post(f"{base}/messages", data=body_of(), headers={"Content-Type": "application/json"}) as answer:
                answer.raise_for_status()
                used += (await answer.json())["token_estimate"]
        async with session.get(f"{base}/context") as answer:
            return "/v1/contexts/bench-window/context", await answer.read()


async def give_bytes(url: str, body: bytes) -> None:
    """Hand the peer what it is to serve."""
    async with aiohttp.ClientSession() as session, session.put(f"{url}/bytes", data=body) as answer:
        answer.raise_for_status()


async def histories(url: str, *lengths: int) -> list[str]:
    """Contexts with so many messages each; their ids."""
    names = [f"history-{length}" for length in lengths]
    async with aiohttp.ClientSession() as session:
        for name, length in zip(names, lengths, strict=True):
            done = 0
            while done < length:
                count = min(1000, length - done)
                target = f"{url}/v1/contexts/{name}/messages?create=true"
                async with session.post(target, data=body_of(count), headers={"Content-Type": "application/json"}) as answer:
                    answer.raise_for_status()
                done += count
    return names
