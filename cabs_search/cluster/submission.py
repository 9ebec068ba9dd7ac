"""Searches as jobs of a Ray cluster, by Ray's own job API (extra ``cluster``)."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cabs_search.common.formats import first_line

PATIENCE_SECONDS = 90
"""Time for which jobs are refused by a head node that has just started."""
ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": "60",  # before it is killed, a search gives back what runs
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


class Cluster:
    """A running Ray cluster, by the address of its dashboard."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            RuntimeError: no cluster answers at the address, or the extra is not installed.

        """
        from ray.job_submission import JobSubmissionClient

        self.address = address
        with self._in_words():
            self._client: Any = JobSubmissionClient(address)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Say errors of Ray's client in one line."""
        from aiohttp import ClientError
        from ray.exceptions import RayError

        try:
            yield
        except (ConnectionError, RuntimeError, RayError, ValueError, ClientError) as error:
            raise RuntimeError(f"{self.address}: {first_line(error)}") from error

    def submit(self, command: list[str], folder: Path | None = None) -> str:
        """Have a command run on the head node; return the job's id.

        Args:
            command: program and arguments.
            folder: becomes the job's working directory; None: it has none.

        """
        environment: dict[str, Any] = {"env_vars": ENVIRONMENT}
        if folder is not None:
            environment["working_dir"] = str(folder)
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._in_words():
                    return str(
                        self._client.submit_job(
                            entrypoint=shlex.join(command),
                            entrypoint_num_cpus=0,
                            runtime_env=environment,
                            metadata={"program": "cabs-search"},
                        )
                    )
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(2)

    def follow(self, job: str) -> bool:
        """Print a job's log until it ends, from its beginning; tell whether it succeeded."""

        async def show() -> None:
            async for lines in self._client.tail_job_logs(job):
                print(lines, end="", flush=True)

        with self._in_words():
            self._client.get_job_status(job)  # one that does not exist is an error
            asyncio.run(show())
            return str(self._client.get_job_status(job)) == "SUCCEEDED"

    def output(self, command: list[str]) -> str:
        """Run a short command on the head node and return what it prints.

        Raises:
            RuntimeError: it failed; with its last line.

        """
        job = self.submit(command)
        with self._in_words():
            while not (status := self._client.get_job_status(job)).is_terminal():
                time.sleep(0.5)
            text = str(self._client.get_job_logs(job))
            self._client.delete_job(job)
        if str(status) != "SUCCEEDED":
            raise RuntimeError((text.strip().splitlines() or ["no output"])[-1])
        return text

    def stop(self, job: str) -> str:
        """End a job, whose search then goes on by the same command; return its status."""
        with self._in_words():
            self._client.stop_job(job)
            while not (status := self._client.get_job_status(job)).is_terminal():
                time.sleep(0.5)
        return str(status)
