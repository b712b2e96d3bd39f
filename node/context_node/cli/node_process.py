"""A node's life as a process: start, say that it is ready, serve, and stop in order.

Knows signals, clock, randomness and the event loop, and hands them to the parts. Stopping is a sequence whose order matters: readiness
fails, the node serves on for `drain_s` until load balancers have noticed, new requests are refused and those under way finish, everything
is stored, exit 0. Invariants: "ready" is said only when it is true; a second signal exits at once; a start that cannot work ends with one
sentence and exit 2, a disk that fails while serving with one log line and exit 1. Neither shows a traceback.
"""

import asyncio
import errno
import gc
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points

import apsw
import click
import uvloop
from prometheus_client import CollectorRegistry

from context_node import __version__
from context_node.api_keys import KeyFileError, KeyRing
from context_node.archive.archiver import Archiver
from context_node.archive.cold import ColdReads
from context_node.archive.metrics import ArchiveMetrics
from context_node.archive.postgres import Postgres
from context_node.cli import banner, descriptors, wiring
from context_node.cli.exits import WORK_FAILED, CannotStart, stopped_by
from context_node.contexts.requests import ListContexts
from context_node.http.app import build_app
from context_node.http.edge import Edge
from context_node.http.logs import configure_logging, event
from context_node.http.serve import HttpServer, serve
from context_node.runtime.databases import DiskFull, StorageError
from context_node.runtime.metrics import NodeMetrics
from context_node.runtime.node import Node
from context_node.settings import Settings
from context_node.tls import Credentials, TlsError
from context_node.tokens import preload

logger = logging.getLogger("contextstore.process")

STOP_TIMEOUT_S = 30.0
SERVICES_GROUP = "contextstore.services"
FILES_POLL_S = 1.0


@dataclass(slots=True)
class Wishes:
    """What the outside wants of the process: set by signal handlers and by the node, read by `run`."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    fatal: BaseException | None = None

    def signalled(self, number: int) -> None:
        if self.stop.is_set():
            # What was acknowledged is in the fsynced log; an impatient stop costs a longer start, nothing else.
            os._exit(stopped_by(number))
        event(logger, "stopping", signal=signal.Signals(number).name)
        self.stop.set()

    def failed(self, error: BaseException) -> None:
        if self.fatal is None:
            self.fatal = error
            event(logger, "node_failed", logging.CRITICAL, reason=str(error) or type(error).__name__)
        self.stop.set()

    def task_ended(self, task: "asyncio.Task[None]") -> None:
        """A task of the process ended: by an error only if something is broken."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)


def run_process(settings: Settings, *, warnings: Iterable[str] = (), is_dev: bool) -> int:
    """Run a node until a signal or a fatal error; the exit code. Raises CannotStart."""
    configure_logging(settings.log_format, settings.log_level)
    for warning in warnings:
        event(logger, "setting_ignored", logging.WARNING, reason=warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(settings, is_dev=is_dev))


async def run(settings: Settings, *, is_dev: bool) -> int:
    """As `run_process`, inside an event loop that this call owns. Raises CannotStart."""
    wishes = Wishes()
    keyring = wiring.key_ring(settings)
    credentials = wiring.credentials(settings)
    # Not by their truth: a ring without a key yet is one to be watched too.
    files = [
        Reread("keys", one) if isinstance(one, KeyRing) else Reread("certificate", one) for one in (keyring, credentials) if one is not None
    ]
    listen_to_signals(wishes, files)
    node = Node(wiring.node_options(settings, credentials), now_ms=now_ms, random_bytes=os.urandom, on_fatal=wishes.failed)
    archiver, archive_metrics = archive_of(settings, node)
    edge = edge_of(settings, node, keyring, archive_metrics)
    # The edge listens before the node is ready: probes learn that it lives, and everybody else why they must wait.
    server = await listening(edge, settings, credentials)
    files_watch = asyncio.create_task(watch_files(files), name="files")
    files_watch.add_done_callback(wishes.task_ended)
    services: list[asyncio.Task[None]] = []
    try:
        with refusals_as_sentences(settings):
            # Not at the first write: that would stall everybody who is served then, just when leaderships have come to a new node.
            await asyncio.to_thread(preload, settings.default_tokenizer)
            await start_or_stop(node, wishes)
        if not wishes.stop.is_set():
            services += added_services(settings, node, wishes)
            if archiver is not None:
                services.append(asyncio.create_task(archiver.run(), name="archive"))
                services[-1].add_done_callback(wishes.task_ended)
            spare_collector()
            await say_ready(settings, node, server, is_dev)
            await wishes.stop.wait()
    finally:
        for task in (files_watch, *services):
            task.cancel()
        await stop(settings, node, server, wishes)
        await asyncio.gather(files_watch, *services, return_exceptions=True)
    return WORK_FAILED if wishes.fatal is not None else 0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def listen_to_signals(wishes: Wishes, files: Iterable["Reread"]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, wishes.signalled, number)
    loop.add_signal_handler(signal.SIGHUP, read_again, files)


@dataclass(slots=True)
class Reread:
    """Something that was read from files and is read again when they change. What cannot be used changes nothing: what was good stays."""

    name: str
    held: KeyRing | Credentials
    complaint: str = ""

    def read_again(self) -> None:
        """Whether they changed or not: somebody asked for it."""

        def read() -> bool:
            self.held.reload()
            return True

        self._take(read)

    def look(self) -> None:
        """If they changed; files that stay broken are complained about once."""
        self._take(self.held.reload_if_changed)

    def _take(self, read: Callable[[], bool]) -> None:
        try:
            was_read = read()
        except (KeyFileError, TlsError) as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                event(logger, f"{self.name}_not_reloaded", logging.ERROR, reason=self.complaint)
            return
        self.complaint = ""
        if was_read:
            held = {"keys": len(self.held)} if isinstance(self.held, KeyRing) else {}
            event(logger, f"{self.name}_reloaded", **held)


def read_again(files: Iterable[Reread]) -> None:
    for one in files:
        one.read_again()


async def watch_files(files: Iterable[Reread]) -> None:
    """Take up changed files without being told."""
    while files:
        await asyncio.sleep(FILES_POLL_S)
        for one in files:
            one.look()


def archive_of(settings: Settings, node: Node) -> tuple[Archiver, ArchiveMetrics] | tuple[None, None]:
    """What copies history to Postgres, where it is wished, with its metrics; what was trimmed is read from there. Told of events from
    the start, the archiver copies once it runs."""
    options = wiring.archive_options(settings)
    if options is None:
        if settings.archive_tail_keep is not None:
            reason = "archive_tail_keep needs an archive: without archive_postgres_file nothing is trimmed"
            event(logger, "setting_ignored", logging.WARNING, reason=reason)
        return None, None
    postgres, archiving = options
    archiver = Archiver(
        node.shards, Postgres(postgres), archiving, cluster_id=lambda: cluster_id_of(node), now_ms=now_ms, jitter=random.random
    )
    node.observer = archiver.note
    node.archive_health = archiver.health
    cold = node.histories.cold = ColdReads(Postgres(lambda: wiring.for_reading(postgres())), lambda: cluster_id_of(node))
    return archiver, ArchiveMetrics(archiver, cold)


def cluster_id_of(node: Node) -> str:
    return node.log.notes.identity.cluster_id if node.log is not None else ""


def edge_of(settings: Settings, node: Node, keyring: KeyRing | None, archive_metrics: ArchiveMetrics | None) -> Edge:
    registry = CollectorRegistry()
    registry.register(NodeMetrics(node))
    if archive_metrics is not None:
        registry.register(archive_metrics)
    return build_app(
        node.service,
        version=__version__,
        limits=wiring.http_limits(settings, connections_max(settings)),
        keyring=keyring,
        open_mode=settings.open_mode,
        registry=registry,
        cors_origins=settings.cors_origins,
        access_log=settings.access_log,
        admin=node.admin,
    )


def connections_max(settings: Settings) -> int:
    """The setting, or less with a warning if the process may not open so many files beside its own."""
    files_max = descriptors.raise_limit()
    allowed = descriptors.connections_within(files_max, settings.shards)
    if allowed >= settings.connections_max:
        return settings.connections_max
    event(
        logger, "connections_lowered", logging.WARNING, connections_max=allowed, wished=settings.connections_max, open_files_max=files_max
    )
    return allowed


async def listening(edge: Edge, settings: Settings, credentials: Credentials | None) -> HttpServer:
    """Raises CannotStart if the address cannot be had."""
    try:
        return await serve(edge, settings.host, settings.port, credentials.for_clients if credentials is not None else None)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(
                f"Port {settings.port} on {settings.host} is in use. Stop what listens there, or give another --port."
            ) from error
        if error.errno == errno.EACCES:
            raise CannotStart(f"This user may not listen on {where}; ports below 1024 need a privilege. Give another --port.") from error
        raise CannotStart(f"Cannot listen on {where}: {error.strerror or error}. Check --host and --port.") from error


async def start_or_stop(node: Node, wishes: Wishes) -> None:
    """Start the node, unless a signal comes first. Raises what `Node.start` raises."""
    starting = asyncio.ensure_future(node.start())
    stopping = asyncio.ensure_future(wishes.stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)


@contextmanager
def refusals_as_sentences(settings: Settings) -> Iterator[None]:
    """What keeps a node from starting, as one sentence that says what to do. Raises CannotStart."""
    directory = settings.data_dir
    try:
        yield
    except StorageError as error:
        if isinstance(error.cause, apsw.BusyError | apsw.LockedError):
            raise CannotStart(
                f"The data directory {directory} is in use by another process. Stop it, or give another --data-dir."
            ) from error
        if isinstance(error, DiskFull):
            raise CannotStart(f"The disk that holds {directory} is full. Make room and start again; nothing was lost.") from error
        if isinstance(error.cause, apsw.CantOpenError | apsw.ReadOnlyError | PermissionError):
            raise CannotStart(
                f"The data directory {directory} cannot be written: {error.cause}. Check its owner and permissions."
            ) from error
        raise CannotStart(f"The data directory {directory} cannot be used: {error}.") from error
    except OSError as error:
        raise CannotStart(f"The data directory {directory} cannot be used: {error.strerror or error}. Check --data-dir.") from error
    except RuntimeError as error:  # a SQLite library that could corrupt the data
        raise CannotStart(str(error)) from error


def added_services(settings: Settings, node: Node, wishes: Wishes) -> list["asyncio.Task[None]"]:
    """What other packages run beside a node of a cluster, such as the balancer: tasks that get the node's admin calls."""
    if node.admin is None or settings.rebalance != "auto":
        return []
    tasks = []
    for entry in entry_points(group=SERVICES_GROUP):
        task: asyncio.Task[None] = asyncio.create_task(entry.load()(node.admin), name=entry.name)
        task.add_done_callback(wishes.task_ended)
        tasks.append(task)
    return tasks


COLLECTED_AFTER = (1_000, 10, 200)
"""Thresholds of the cyclic collector (`gc.set_threshold`). A look through everything holds the event loop, 7 to 32 ms in a node that was
loaded for 20 s, and finds next to nothing, since what requests leave behind is young: so it comes after two million new objects that stayed
and not after some ten thousand. (Python's own rule that a quarter must be new does not help while there is little.)"""


def spare_collector() -> None:
    """Take what exists by now out of the cyclic collector's sight: modules, routes and replicas live as long as the process, and looking
    through them again would hold the event loop for tens of milliseconds each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


async def say_ready(settings: Settings, node: Node, server: HttpServer, is_dev: bool) -> None:
    """Tell people (the banner of `dev`) or machines (a log event) that requests are served now."""
    if is_dev:
        contexts, is_all = await count_contexts(node)
        click.echo(banner.text(settings, server.url, contexts, is_all=is_all))
    event(logger, "ready", url=server.url, data_dir=str(settings.data_dir), version=__version__, open_mode=settings.open_mode)


async def count_contexts(node: Node) -> tuple[int, bool]:
    """How many active contexts there are, as far as one page of the list tells, and whether that is all."""
    views, more = await node.service.list_contexts(ListContexts(limit=1000))
    return len(views), more is None


async def stop(settings: Settings, node: Node, server: HttpServer, wishes: Wishes) -> None:
    """The sequence of the module's docstring. A node that failed does not drain: it has nothing to offer any more."""
    was_ready = node.state.is_ready
    node.state.close("The node is stopping.")
    try:
        async with asyncio.timeout(settings.drain_s + STOP_TIMEOUT_S + settings.request_timeout_s):
            await server.stop(settings.drain_s if was_ready and wishes.fatal is None else 0.0)
            await node.stop()
    except TimeoutError:
        event(logger, "stop_timed_out", logging.ERROR)
        os._exit(WORK_FAILED)
    event(logger, "stopped")
