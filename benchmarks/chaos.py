"""``make chaos``: searches of a two-layer model with a fault each at a random moment, and a tally.

Each search is run again until its budget is complete, as a user would. Then it is held against the
rules: nothing that was recorded is lost, nothing is there twice, every outcome is that of a fresh
evaluation, no process is left, no trial runs, MLflow has each candidate once.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos_checks import Fresh, check, recorded
from benchmarks.chaos_stage import Stage
from tests.conftest import EXPERTS, make_base, make_expert, write_rows
from tests.support import postgres
from tests.support.cluster import TwoNodes
from tests.support.postgres import Postgres
from tests.support.server import Server

RUNS_AT_MOST = 6
"""Runs after which a budget counts as not completed."""


def none(stage: Stage) -> None:
    """Do nothing."""


def worker(stage: Stage) -> None:
    """Kill a worker, once there is one."""
    end = time.monotonic() + 60
    while not (found := stage.workers()) and time.monotonic() < end:
        time.sleep(0.1)
    if found:
        with suppress(psutil.Error):
            stage.draw.choice(found).kill()
    elif stage.process.poll() is None:
        stage.wrong.append("has no worker")


def driver(stage: Stage) -> None:
    """Kill the driver."""
    stage.process.kill()


def sigterm(stage: Stage) -> None:
    """End the driver as schedulers do."""
    stage.process.terminate()


def raylet(stage: Stage) -> None:
    """Kill the raylet of the second node."""
    stage.nodes.kill_node()


def server(stage: Stage) -> None:
    """Kill the database's or MLflow's server, and start it again."""
    stage.server.kill()
    time.sleep(stage.draw.uniform(0, 5))
    stage.server.start()


def full_disk(stage: Stage) -> None:
    """Fill the disk but for some kilobytes until the search has ended, or for ten seconds."""
    filler = stage.disk / "filler"
    room = shutil.disk_usage(filler.parent).free - stage.draw.randrange(0, 100_000)
    with suppress(OSError):
        filler.write_bytes(bytes(max(0, room)))
    with suppress(subprocess.TimeoutExpired):
        stage.process.wait(10)
    filler.unlink()


def cut_entry(stage: Stage) -> None:
    """Cut an entry of the cache, which may be mapped, as soon as there is one."""
    end = time.monotonic() + 60
    while not (found := sorted(stage.cache.glob("vectors*/*.safetensors"))):
        if time.monotonic() > end:
            return
        time.sleep(0.05)
    for entry in stage.draw.sample(found, min(3, len(found))):
        os.truncate(entry, stage.draw.randrange(entry.stat().st_size))


def damaged_record(stage: Stage) -> None:
    """Kill the driver and damage the record: the next run must say so in one line."""
    stage.process.kill()
    stage.end()
    stage.left()
    record = stage.out / "outcomes" / "outcomes.sqlite"
    if not record.is_file():
        return
    kept = {path: path.read_bytes() for path in record.parent.iterdir()}
    good = record.read_bytes()
    record.write_bytes(stage.draw.randbytes(stage.draw.randrange(1, 5000)) + good[5000:])
    before = stage.log.stat().st_size
    stage.start()
    status = stage.end({2})
    said = stage.log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
    if status != 2 or str(record) not in said[-1]:
        stage.wrong.append(f"a damaged record: status {status}, {said[-1:]}")
    for path in record.parent.iterdir():
        path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)
    stage.start()


def two_drivers(stage: Stage) -> None:
    """Start a second driver in the folder."""
    second = stage.spawn()
    if second.wait(600) not in {0, 1}:
        stage.wrong.append(f"the second driver: status {second.returncode}")


@contextmanager
def on_postgres(stage: Stage) -> Iterator[None]:
    """Give a search databases on a server."""
    stage.server = Postgres()
    try:
        stage.server.start()
        stage.environment["CABS_SEARCH_STORAGE"] = stage.server.url
        stage.environment["CABS_SEARCH_TRACKING_URI"] = stage.server.tracking_url
        yield
    finally:
        stage.server.remove()


@contextmanager
def on_mlflow(stage: Stage) -> Iterator[None]:
    """Give a search a tracking server."""
    (stage.root / "server").mkdir()
    stage.server = Server(stage.root / "server")
    try:
        stage.server.start()
        stage.options += ["--tracking-uri", stage.server.uri]
        yield
    finally:
        stage.server.kill()


@contextmanager
def on_two_nodes(stage: Stage) -> Iterator[None]:
    """Give a search a cluster."""
    nodes = TwoNodes(stage.root / "nodes", hidden=stage.pico)
    stage.nodes = nodes
    try:
        stage.environment |= nodes.environment
        stage.options += ["--address", nodes.address]
        yield
    finally:
        nodes.stop()


@contextmanager
def on_small_disk(stage: Stage, folder: str) -> Iterator[None]:
    """Put a search's folder or cache on a disk of its own."""
    stage.disk = stage.root / folder
    disk = str(stage.root / folder)
    (stage.root / folder).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def as_it_is(stage: Stage) -> Iterator[None]:
    yield


Fault = tuple[Callable[[Stage], Any], Callable[[Stage], None]]
FAULTS: dict[str, Fault] = {
    "kill -9 worker": (as_it_is, worker),
    "kill -9 driver": (as_it_is, driver),
    "SIGTERM": (as_it_is, sigterm),
    "cut cache entries": (as_it_is, cut_entry),
    "kill -9 raylet of a second node": (on_two_nodes, raylet),
    "kill -9 PostgreSQL": (on_postgres, server),
    "kill -9 MLflow's server": (on_mlflow, server),
    "full disk under cache": (lambda stage: on_small_disk(stage, "cache"), full_disk),
    "full disk under the study": (lambda stage: on_small_disk(stage, "out"), full_disk),
    "damaged record": (as_it_is, damaged_record),
    "two drivers": (as_it_is, two_drivers),
}


def possible() -> dict[str, Fault]:
    """Return the faults that can be made here; say why of the others."""
    faults = dict(FAULTS)
    if lacking := postgres.lacking():
        print(f"left out: kill -9 PostgreSQL: {lacking}")
        del faults["kill -9 PostgreSQL"]
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        can = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if can:
            subprocess.run(["umount", folder], check=True)
    if not can:
        print("left out: full disks: a disk of its own cannot be mounted without root")
        faults = {name: fault for name, fault in faults.items() if "disk" not in name}
    return faults


def one(name: str, fault: Fault, stage: Stage, fresh: Fresh) -> None:
    """Run a search, with a fault, until it is complete; note what does not hold."""
    around, act = fault
    with around(stage):
        stage.start()
        if stage.wait_for_moment():
            act(stage)
        status = stage.end()
        before = recorded(stage.out) if status else {}
        while status and stage.runs < RUNS_AT_MOST:
            stage.start()
            status = stage.end()
        if status:
            stage.wrong.append(f"is not complete after {RUNS_AT_MOST} runs")
        else:
            check(stage, before, fresh)
        left = stage.left()
        if left and name != "kill -9 raylet of a second node":
            stage.wrong.append(f"{len(left)} processes are left: {left[0]}")
        for process in stage.processes():
            with suppress(psutil.Error):
                process.kill()


def make_pico(root: Path) -> Path:
    """Make a base of two layers, three experts and their rows."""
    base = make_base(root / "base")
    for seed, (name, labels) in enumerate(zip(EXPERTS, (2, 3, 2), strict=True), 1):
        make_expert(root / name, base, seed, labels)
        write_rows(root / f"{name}.csv", seed, labels, 120, pair=name == "pair")
    return root


def main() -> int:
    """Run the searches, print a line for each and a tally; 1 if something does not hold."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=FAULTS, help="these faults (repeat)")
    parser.add_argument("--keep", type=Path, help="keep folders of searches that went wrong here")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    draw, faults = random.Random(options.seed), possible()
    names = [name for name in faults if not options.only or name in options.only]
    tally: dict[str, list[int]] = {name: [0, 0, 0] for name in names}
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        root = Path(temporary)
        pico = make_pico(root / "pico")
        fresh, seconds = Fresh(pico, root / "fresh"), 0.0
        for number in range(-1, options.runs):
            name = names[number % len(names)] if number >= 0 else "undisturbed"
            stage = Stage(root / str(number), pico, random.Random(draw.random()), seconds)
            stage.root.mkdir()
            start = time.monotonic()
            one(name, faults.get(name, (as_it_is, none)), stage, fresh)
            took = time.monotonic() - start
            seconds = seconds or stage.searched
            said = "; ".join(stage.wrong) or "all holds"
            print(f"{number + 1:3} {name}: {stage.runs} runs, {took:.0f} s: {said}", flush=True)
            if number >= 0:
                tally[name][0] += 1
                tally[name][1] += not stage.wrong
                tally[name][2] += stage.runs
            if stage.wrong and options.keep:
                shutil.copytree(stage.root, options.keep / str(number), dirs_exist_ok=True)
            shutil.rmtree(stage.root, ignore_errors=True)
    print(f"\n{'fault':34} searches  all holds  runs")
    for name, (count, held, runs) in tally.items():
        print(f"{name:34} {count:8}  {held:9}  {runs:4}")
    return int(any(count > held for count, held, _ in tally.values()))


if __name__ == "__main__":
    sys.exit(main())
