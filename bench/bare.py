"""The peer of the benchmarks: aiohttp, uvloop and orjson with nothing behind them.

POST `/echo` parses the JSON and answers with it; GET `/bytes` serves what PUT `/bytes` gave. No logging, no middleware.
"""

import argparse

import orjson
import uvloop
from aiohttp import web

ready = b"{}"


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=orjson.dumps(orjson.loads(await request.read())), content_type="application/json")


async def give(request: web.Request) -> web.Response:
    return web.Response(body=ready, content_type="application/json")


async def take(request: web.Request) -> web.Response:
    global ready
    ready = await request.read()
    return web.Response(status=204)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/echo", echo)
    app.router.add_get("/bytes", give)
    app.router.add_put("/bytes", take)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=lambda _line: None)


if __name__ == "__main__":
    main()
