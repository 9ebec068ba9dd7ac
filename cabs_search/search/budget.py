"""Budget of a search in candidates, items or seconds: what is spent, and what is left."""

from __future__ import annotations

import math
import time

from cabs_search.record.progress_file import Share
from cabs_search.spec.study import Search

ASSUMED_CANDIDATES = 1000
"""Candidates that a budget of seconds alone is taken for where their number counts."""
RECOMMENDED = 2
"""Candidates at the end of the budget that are kept for what is recommended: its score may change
what is. They are scored in full.
"""


class Budget:
    """Limits of a search, of which the first one reached ends it."""

    def __init__(
        self,
        limits: Search,
        candidate_items: int,
        workers: int,
        seconds: float = 0.0,
        *,
        stops_at: int | None = None,
    ) -> None:
        """Begin with nothing spent but seconds.

        Args:
            limits: the spec's.
            candidate_items: items that a candidate takes that is not stopped.
            workers: workers that score candidates at a time.
            seconds: those that earlier runs searched.
            stops_at: items after which every candidate is stopped but what is recommended; None:
                it cannot be told before.

        """
        self._limits, self._candidate_items, self._workers = limits, candidate_items, workers
        self._stops_at = stops_at or candidate_items
        self.items = 0
        """Items scored of the study's candidates, also by earlier runs."""
        self._seconds = seconds
        self._untaken = 0.0
        """Seconds that were counted since the last call of ``take_seconds``."""
        self._since: float | None = None
        """The clock when seconds were last taken; None while nothing is searched."""
        self._scored, self._worked = 0, 0.0
        """Items that workers scored in this run, and seconds that these took."""

    def start_clock(self) -> None:
        """Count seconds from now, unless they are counted."""
        self._since = time.monotonic() if self._since is None else self._since

    def stop_clock(self) -> None:
        """Count no more seconds."""
        self._count_seconds()
        self._since = None

    def take_seconds(self) -> float:
        """Return the seconds that were counted since the last call."""
        self._count_seconds()
        taken, self._untaken = self._untaken, 0.0
        return taken

    def _count_seconds(self) -> None:
        if self._since is None:
            return
        now = time.monotonic()
        self._seconds += now - self._since
        self._untaken += now - self._since
        self._since = now

    @property
    def seconds(self) -> float:
        """Seconds of searching, of all runs."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def add(self, items: int, seconds: float) -> None:
        """Count items, which took a worker so many seconds."""
        self.items += items
        self._scored += items
        self._worked += seconds

    def shares(self, done: int) -> list[Share]:
        """Return what is spent of every limit, with so many candidates that have ended."""
        candidates, items, seconds = self._limits.budget
        shares = []
        if candidates:
            shares.append(Share("candidate", min(done, candidates), candidates))
        if items:
            shares.append(Share("item", min(self.items, items), items))
        if seconds:
            shares.append(Share("second", min(int(self.seconds), seconds), seconds))
        return shares

    def left(self, started: int, owed: int, *, at_a_time: int | None = None) -> int:
        """Count the candidates that may still be started, if none is stopped that need not be.

        Args:
            started: candidates that have ended or are being scored.
            owed: items that those may still take.
            at_a_time: workers that score them; None: all.

        """
        candidates, items, seconds = self._limits.budget
        counts = []
        if candidates:
            counts.append(candidates - started)
        if items:
            counts.append(self._count(items - self.items - owed))
        if seconds and self.seconds >= seconds:
            counts.append(0)
        elif seconds and not self._worked:
            counts.append(3 * self._workers)  # nothing is known: enough for every worker
        elif seconds:
            per_item = self._worked / self._scored
            rest = seconds - self.seconds - owed * per_item / self._workers
            counts.append(self._count(rest * (at_a_time or self._workers) / per_item))
        return max(0, min(counts))

    def _count(self, items: float) -> int:
        """Return for how many candidates so many items are enough; part of one counts."""
        before = items - RECOMMENDED * self._candidate_items
        if before <= 0:
            return math.ceil(items / self._candidate_items)
        return RECOMMENDED + math.ceil(before / self._stops_at)

    def most_candidates(self, block_items: int) -> int:
        """Return how many candidates there may be, if each takes one block at least."""
        candidates, items, _ = self._limits.budget
        by_items = math.ceil(items / block_items) if items else None
        given = [count for count in (candidates, by_items) if count]
        return min(given, default=ASSUMED_CANDIDATES)
