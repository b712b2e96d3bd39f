"""`contextstore operator`: the process that looks after clusters on Kubernetes.

Knows signals, clocks, the HTTP port for probes and Prometheus, and hands them to the parts. Invariants: it may end at any moment, since it
keeps nothing; "live" is said only while passes come to an end; a SIGTERM ends it within seconds.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime

import click
import kopf
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from context_operator import handlers
from context_operator.kube import Kube, KubeError
from context_operator.manager import Manager
from context_operator.reconciler import Surroundings

logger = logging.getLogger("contextstore.operator")

STALE_S = 300.0
"""A cluster that was not looked at for so long means that the operator hangs: the liveness probe fails."""

CRASHES = "CONTEXTSTORE_OPERATOR_CRASHES"
"""For tests: a folder. At each place between two effects the process then forgets everything and begins anew, once; a file there, named
after the place, tells that it was."""


@click.command("operator")
@click.option("--namespace", "namespaces", multiple=True, metavar="NAMESPACE", help="Look after this namespace only; may be repeated.")
@click.option(
    "--image",
    envvar="CONTEXTSTORE_OPERATOR_IMAGE",
    required=True,
    metavar="IMAGE",
    help="Image of new clusters that name none. [env: CONTEXTSTORE_OPERATOR_IMAGE]",
)
@click.option("--host", default="0.0.0.0", show_default=True, help="Address of probes and metrics.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port of /health and /metrics.")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"]))
def operator(namespaces: tuple[str, ...], image: str, host: str, port: int, log_level: str) -> None:
    """Look after ContextClusters and ContextPolicies on Kubernetes.

    Runs in a pod with the chart's service account, or anywhere with a kubeconfig. One at a time: the nodes refuse the
    older of two as soon as the newer has taken a step.
    """
    logging.basicConfig(
        level=log_level.upper(), format='{"at": "%(asctime)s", "level": "%(levelname)s", "logger": "%(name)s", "event": "%(message)s"}'
    )
    for noisy in ("kopf", "urllib3", "aiohttp.access"):
        logging.getLogger(noisy).setLevel("WARNING")
    try:
        kube = Kube.connect()
    except KubeError as problem:
        raise click.ClickException(str(problem)) from problem
    asyncio.run(run(kube, namespaces or None, image, host, port))


async def run(kube: Kube, namespaces: tuple[str, ...] | None, image: str, host: str, port: int) -> None:
    """Look after everything until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    around = Surroundings(kube=kube, default_image=image, epoch=time.time_ns() // 1_000_000, clock=time.monotonic, now=_now, crash=_crash)
    manager = Manager(around, namespaces)
    server = await serve(manager, host, port)
    looking = loop.create_task(manager.run(), name="manager")
    watching = loop.create_task(
        kopf.operator(
            registry=handlers.registry_of(manager),
            settings=handlers.settings_of(),
            standalone=True,
            namespaces=namespaces or (),
            clusterwide=namespaces is None,
            stop_flag=stop,
        ),
        name="kopf",
    )
    stopping = loop.create_task(stop.wait(), name="stop")
    logger.info("looking after %s", "all namespaces" if namespaces is None else ", ".join(namespaces))
    try:
        await asyncio.wait({looking, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        # Neither ends by itself: whatever it raised ends the process, which Kubernetes starts again.
        if looking.done() and not stop.is_set():
            looking.result()
        if watching.done() and not stop.is_set():
            watching.result()
    finally:
        stop.set()
        looking.cancel()
        await asyncio.wait({watching}, timeout=5)
        watching.cancel()
        stopping.cancel()
        await asyncio.gather(looking, watching, stopping, return_exceptions=True)
        await server.cleanup()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _crash(place: str) -> None:
    folder = os.environ.get(CRASHES)
    if folder is None:
        return
    try:
        os.close(os.open(os.path.join(folder, f"crashed-{place}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    logger.warning("begins anew at %s, as %s says", place, CRASHES)
    # As a kill and a start, without the pause that Kubernetes would make.
    os.execv(sys.executable, sys.orig_argv)


async def serve(manager: Manager, host: str, port: int) -> web.AppRunner:
    """Probes and metrics."""

    async def live(_request: web.Request) -> web.Response:
        age_s = manager.oldest_pass_s()
        return web.json_response(
            {"status": "live" if age_s < STALE_S else "stale", "oldest_pass_s": round(age_s, 1)}, status=200 if age_s < STALE_S else 503
        )

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(manager.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/health/live", live), web.get("/health/ready", live), web.get("/metrics", metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
