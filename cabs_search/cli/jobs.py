"""Commands for searches on a cluster, as jobs: submit, status, logs, stop."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cabs_search.cli.commands import OVERRIDES, PROGRAM, print_json
from cabs_search.common.redact import without_password

if TYPE_CHECKING:
    from cabs_search.cluster.submission import Cluster


def submit(options: argparse.Namespace) -> None:
    """Have a cluster search a space, and say how to ask for it."""
    from cabs_search.cluster.submission import Cluster
    from cabs_search.workflows.package import SPEC, package

    command = _command(options, SPEC)
    with TemporaryDirectory(prefix="cabs-search-") as folder:
        package(options.spec, Path(folder), options.shared)
        cluster = Cluster(options.address)
        job = cluster.submit(command, Path(folder))
    if options.json:
        print_json({"job": job, "output": options.output})
    else:
        at, output = f"--address {shlex.quote(options.address)}", shlex.quote(options.output)
        print(f"job {job}: {shlex.join(map(without_password, command))}")
        print(f"How far it is:  {PROGRAM} status {output} {at}")
        print(f"Its log:        {PROGRAM} logs {job} {at}")
        print(f"End it:         {PROGRAM} stop {job} {at}")
        print("Submitted again with the same --output, it goes on where it stopped.", flush=True)
    if options.follow:
        _follow(cluster, job)


def _command(options: argparse.Namespace, spec: str) -> list[str]:
    """Return the command that the cluster's head node runs."""
    command = [PROGRAM, "compare" if options.over else "run", spec]
    command += ["--address", "auto", "--output", options.output]
    uri = options.tracking_uri
    if uri and uri != without_password(uri):
        raise ValueError(
            "--tracking-uri: must have no user and no password, which the cluster's dashboard"
            " would show; set CABS_SEARCH_TRACKING_URI on the head node instead"
        )
    for field in (*OVERRIDES, "tracking_uri"):
        if (value := getattr(options, field)) is not None:
            command += [f"--{field.replace('_', '-')}", str(value)]
    for axis in options.over or ():
        command += ["--over", axis]
    return command


def status(options: argparse.Namespace) -> None:
    """Print how far a search is, of a folder here or on a cluster's head node."""
    from cabs_search.record.progress_file import parse_status, read_status
    from cabs_search.reporting.terminal.status import status_text

    if options.address:
        from cabs_search.cluster.submission import Cluster

        if not Path(options.folder).is_absolute():
            raise ValueError(f"{options.folder}: an absolute path of the head node is needed")
        text = Cluster(options.address).output([PROGRAM, "status", options.folder, "--json"])
        # Ray's own lines stand before what the command prints.
        found = parse_status(text[text.index("\n{") if "\n{" in text else 0 :])
    else:
        found = read_status(Path(options.folder))
    print(found.as_json() if options.json else status_text(found))


def logs(options: argparse.Namespace) -> None:
    """Print a job's log until the job ends."""
    from cabs_search.cluster.submission import Cluster

    _follow(Cluster(options.address), options.job)


def _follow(cluster: Cluster, job: str) -> None:
    """Print a job's log until it ends; interrupted, say how to look again."""
    try:
        succeeded = cluster.follow(job)
    except KeyboardInterrupt:
        print(f"job {job} goes on; `{PROGRAM} logs` shows it, `{PROGRAM} stop` ends it")
        return
    if not succeeded:
        raise RuntimeError(f"job {job} failed, or was stopped")


def stop(options: argparse.Namespace) -> None:
    """End a job."""
    from cabs_search.cluster.submission import Cluster

    state = Cluster(options.address).stop(options.job)
    if options.json:
        print_json({"job": options.job, "state": state})
    else:
        goes_on = "; submitted again, it goes on where it stopped" if state == "STOPPED" else ""
        print(f"job {options.job}: {state.lower()}{goes_on}")
