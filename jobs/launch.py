r"""Launch a search on a Ray cluster as a job, follow its log, and end with its status.

    python jobs/launch.py search_spaces/quickstart.yaml --address http://HEAD:8265 \
        --output /shared/out

Needs the extra ``cluster`` (``ray[default]``) here and on the cluster's head node, and cabs-search
on every node.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient


def main() -> int:
    """Submit, follow and report; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", help="the spec's path on the head node")
    parser.add_argument(
        "--address", default="http://127.0.0.1:8265", help="the cluster's dashboard"
    )
    parser.add_argument("--output", required=True, help="the study's folder on the head node")
    parser.add_argument(
        "--job", type=Path, default=Path(__file__).with_name("search.yaml"), help="the job file"
    )
    options = parser.parse_args()
    job = yaml.safe_load(options.job.read_text(encoding="utf-8"))
    paths = {name: shlex.quote(getattr(options, name)) for name in ("spec", "output")}
    try:
        client = JobSubmissionClient(options.address)
        job_id = submit(client, job | {"entrypoint": job["entrypoint"].format(**paths)})
    except (ConnectionError, RuntimeError, RayError) as error:
        print(f"launch: {options.address}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    stop = f"ray job stop --address {options.address} {job_id}"
    print(f"job {job_id} at {options.address}; stop it with: {stop}")
    asyncio.run(follow(client, job_id))
    status = client.get_job_status(job_id)
    print(f"job {job_id}: {status}", file=sys.stderr)
    return 0 if status == JobStatus.SUCCEEDED else 1


def submit(client: JobSubmissionClient, job: dict[str, Any], patience_seconds: float = 90) -> str:
    """Submit a job; return its id.

    A head node that has just started refuses jobs for a while: try for ``patience_seconds``.
    """
    end = time.monotonic() + patience_seconds
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(2)


async def follow(client: JobSubmissionClient, job_id: str) -> None:
    """Print the job's log until it ends."""
    async for lines in client.tail_job_logs(job_id):
        print(lines, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
