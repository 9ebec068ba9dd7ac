"""``make soak``: a long search of a two-layer model, whose memory and open files are looked at.

After the first tenth of the candidates, resident memory of the driver and of the workers may grow
by less than 5 %, and the number of open files not at all; the study's folder grows by as much in
the second half as in the first.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.chaos import make_pico
from benchmarks.chaos_stage import Stage
from cabs_search.common.files import connect
from cabs_search.common.formats import show_bytes, table

SECONDS = 2.0
"""Time between two looks."""
MOST_GROWTH = 0.05
"""Largest growth of memory after the first tenth."""
MOST_FILES = 5
"""Largest growth of the number of open files: a file of the cache may be open at one look."""
LINEAR = 0.3
"""Largest difference between the folder's growth in both halves."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a search holds at one time."""

    candidates: int
    memory: dict[str, int]
    """Resident bytes of the driver, and the mean of the workers."""
    files: dict[str, int]
    """Open files, likewise."""
    folder: int
    """Bytes of the study's folder, without SQLite's logs, which do not grow beyond some MB."""


def look(stage: Stage) -> Look | None:
    """Look at a search; None while it has no worker or no record."""
    record = stage.out / "outcomes" / "outcomes.sqlite"
    workers = stage.workers()
    if not workers or not record.is_file():
        return None
    with suppress(psutil.Error), closing(connect(record)) as db:
        query = "SELECT count(DISTINCT recipe) FROM blocks WHERE split = 'search'"
        (candidates,) = db.execute(query).fetchone()
        assert stage.process is not None
        driver = psutil.Process(stage.process.pid)
        files = (p for p in stage.out.rglob("*") if p.is_file() and p.suffix[-4:] != "-wal")
        return Look(
            candidates=candidates,
            memory={
                "driver": driver.memory_info().rss,
                "workers": sum(w.memory_info().rss for w in workers) // len(workers),
            },
            files={
                "driver": driver.num_fds(),
                "workers": sum(w.num_fds() for w in workers) // len(workers),
            },
            folder=sum(path.stat().st_size for path in files),
        )
    return None


def watch(stage: Stage) -> list[Look]:
    """Run a search, and look at it until it ends."""
    looks: list[Look] = []
    stage.start()
    assert stage.process is not None
    while stage.process.poll() is None:
        with suppress(FileNotFoundError):
            if (found := look(stage)) is not None:
                looks.append(found)
        time.sleep(SECONDS)
    return looks


def judge(looks: list[Look], candidates: int) -> int:
    """Print what grew; 1 if it is too much."""
    settled = [one for one in looks if one.candidates >= candidates / 10]
    first, last = settled[: len(settled) // 5 or 1], settled[-(len(settled) // 5 or 1) :]
    rows, is_wrong = [["", "after a tenth", "at the end", "growth"]], False
    for who in ("driver", "workers"):
        start, end = (median(one.memory[who] for one in part) for part in (first, last))
        is_wrong |= end > (1 + MOST_GROWTH) * start
        rows.append(
            [f"memory, {who}", show_bytes(start), show_bytes(end), f"{end / start - 1:+.1%}"]
        )
        start, end = (median(one.files[who] for one in part) for part in (first, last))
        is_wrong |= end > start + MOST_FILES
        rows.append([f"open files, {who}", f"{start:.0f}", f"{end:.0f}", f"{end - start:+.0f}"])
    half = min(settled, key=lambda one: abs(one.candidates - candidates * 0.55))
    parts = [(settled[0], half), (half, settled[-1])]
    rates = [(b.folder - a.folder) / max(1, b.candidates - a.candidates) for a, b in parts]
    is_wrong |= abs(rates[1] / max(rates[0], 1) - 1) > LINEAR
    shown = [show_bytes(rate) for rate in rates]
    rows.append(["folder, a candidate", *shown, f"{rates[1] / max(rates[0], 1) - 1:+.0%}"])
    print("\n".join(table(rows)))
    return int(is_wrong)


def main() -> int:
    """Run the search and print what grew; 1 if it is too much."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=3000)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        pico = make_pico(Path(folder) / "pico")
        stage = Stage(Path(folder), pico, random.Random(0), trials=options.candidates)
        looks = watch(stage)
        if stage.end():
            print(stage.log.read_text(errors="replace")[-2000:])
            return 1
        print(f"{options.candidates} candidates, {len(looks)} looks, {stage.searched:.0f} s")
        return judge(looks, options.candidates)


if __name__ == "__main__":
    sys.exit(main())
