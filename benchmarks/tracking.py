"""Cost of MLflow to a search: its thread's time, the search's waiting, and the rest at the end."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import cabs_search
from benchmarks import families
from benchmarks.figures import Ledger, Target, in_fresh_process
from cabs_search.tracking.background import BackgroundTracker, Write
from cabs_search.workflows import run as run_module
from tests.support.server import Server

TASKS = ("topic", "headline", "tweets", "lead")
ITEMS = 150
"""Items of each task, as in the quickstart."""
CANDIDATES = 200
MOST = 5.0
"""Largest share of a search's wall time, in percent."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one search."""

    whole: float
    """From the spec to the leaderboard."""
    busy: float
    """Worked by the thread that writes to MLflow."""
    waited: float
    """Waited by the search to queue writes."""
    tail: float
    """Waited at the end for the thread, which then writes the best found as a model."""


def measure(ledger: Ledger) -> None:
    """Time the quickstart's search, longer, with MLflow in SQLite and at a server."""
    with tempfile.TemporaryDirectory() as folder:
        add(ledger, "SQLite", in_fresh_process(searched, Path(folder), None, CANDIDATES))
        server = Server(Path(folder))
        server.start()
        try:
            add(
                ledger, "a server", in_fresh_process(searched, Path(folder), server.uri, CANDIDATES)
            )
        finally:
            server.kill()


def searched(root: Path, uri: str | None, candidates: int) -> Cost:
    """Run one search and time its tracker."""
    run_module.BackgroundTracker = Timed  # type: ignore[misc]
    spec = families.quickstart(TASKS, ITEMS)
    spec = replace(spec, search=replace(spec.search, trials=candidates, confirm=1))
    start = time.perf_counter()
    cabs_search.run(spec, root / f"study-{bool(uri)}", tracking_uri=uri, say=lambda _: None)
    (tracker,) = Timed.made
    whole = time.perf_counter() - start
    return Cost(whole=whole, busy=tracker.busy, waited=tracker.waited, tail=tracker.tail)


class Timed(BackgroundTracker):
    """A tracker that times its thread and those who wait for it."""

    made: list[Timed] = []  # noqa: RUF012
    busy = waited = tail = 0.0

    def __enter__(self) -> Timed:
        self.made.append(self)
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        start = time.perf_counter()
        super().__exit__(kind, error, trace)
        self.tail = time.perf_counter() - start

    def add(self, write: Write) -> None:
        """Queue a write as the tracker does, timed."""
        start = time.perf_counter()
        super().add(write)
        self.waited += time.perf_counter() - start

    def _do(self, write: Write) -> None:
        start = time.perf_counter()
        super()._do(write)
        self.busy += time.perf_counter() - start


def add(ledger: Ledger, store: str, cost: Cost) -> None:
    """Add a store's three shares to the ledger."""
    what = f"{CANDIDATES} candidates, {len(TASKS)} tasks of {ITEMS} items, {store}"
    note = (
        f"{cost.whole / CANDIDATES:.2f} s of wall time a candidate, MLflow"
        f" {cost.busy / CANDIDATES:.3f} s; at the end {cost.tail:.1f} s, in which the best found is"
        " written as a model"
    )
    for part, seconds in (
        ("MLflow's thread at work", cost.busy),
        ("the search waits for it", cost.waited),
        ("left at the end", cost.tail),
    ):
        ledger.add(
            part="tracking",
            what=f"{what}: {part}",
            value=100 * seconds / cost.whole,
            unit="% of wall time",
            target=Target(of="value", most=MOST),
            note=note if seconds is cost.busy else "",
        )
