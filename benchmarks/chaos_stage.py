"""A search that a fault is done to: its folders, servers and processes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import pico_values, write_spec

TRIALS = 40
GONE_SECONDS = 60
"""Time in which processes of a search must be gone."""
MARK = "CABS_SEARCH_CHAOS"
"""Environment variable by which a search's processes are known."""
ENDS = {0, 1, 130, 143, -signal.SIGKILL}
"""Exit statuses that a fault may lead to."""


@dataclass
class Stage:
    """One search: its folders, servers and processes."""

    root: Path
    pico: Path
    draw: random.Random
    seconds: float = 0.0
    """Time of an undisturbed run."""
    trials: int = TRIALS
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    began: float = 0.0
    searched: float = 0.0
    """Time of all its runs."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    server: Any = None
    """A ``Postgres`` or an MLflow ``Server`` that the search uses."""
    nodes: Any = None
    """``TwoNodes`` that it runs on."""
    disk: Path | None = None
    """Where a disk of its own is."""

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def log(self) -> Path:
        return self.root / "log"

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the search, or another driver of it."""
        defaults = {"CABS_SEARCH_CACHE": str(self.cache), "PYTHONPATH": str(Path.cwd())}
        spec = self.root / "pico.yaml"
        if not spec.is_file():
            search = {"trials": self.trials, "block": 4, "sampler": "random", "pruner": None}
            write_spec(spec, pico_values(self.pico, **search))
        command = [sys.executable, "-m", "cabs_search.cli", "run", str(spec)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--output", str(self.out), *self.options],
                env={**os.environ, **defaults, **self.environment, MARK: self.mark},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start(self) -> None:
        self.process, self.runs, self.began = self.spawn(), self.runs + 1, time.monotonic()

    def wait_for_moment(self) -> bool:
        """Sleep until the moment of the fault; False if the search has ended before."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self.draw.uniform(0, self.seconds))
        return self.process.poll() is None

    def end(self, expected: set[int] = ENDS) -> int:
        """Wait for the search's end, and judge how it ended."""
        assert self.process is not None
        try:
            status = self.process.wait(600)
        except subprocess.TimeoutExpired:
            self.wrong.append("hangs")
            os.killpg(self.process.pid, signal.SIGKILL)
            status = self.process.wait()
        self.searched += time.monotonic() - self.began
        if status not in expected:
            self.wrong.append(f"exit status {status}")
        return status

    def workers(self) -> list[psutil.Process]:
        """Return the processes of Ray's workers that score."""
        return [p for p in self.processes() if re.match("ray::.*Trainable", _title(p))]

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the search."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    found.append(process)
        return found

    def left(self) -> list[str]:
        """Return what is left of the search's processes after a minute."""
        end = time.monotonic() + GONE_SECONDS
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.5)
        return [_title(process)[:80] for process in found]


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
