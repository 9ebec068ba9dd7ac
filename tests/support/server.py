"""MLflow's tracking server as a process, to be written to, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

STARTS_WITHIN = 180
"""Seconds until it must answer."""


class Server:
    """Tracking server over SQLite on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        """Keep runs and artifacts in ``folder``."""
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        store, artifacts = self._folder / "mlflow.db", self._folder / "artifacts"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--backend-store-uri", f"sqlite:///{store}", "--port", str(self._port)]
        command += ["--artifacts-destination", str(artifacts), "--workers", "1"]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                # Its port is open before it can answer.
                urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()[-3000:]
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
