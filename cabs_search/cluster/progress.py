"""Progress of a search: a bar on stderr, and a note in the study's folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cabs_search.record.progress_file import Share, State, Status, note_status
from cabs_search.search.jobs import JobSource

NOTE_SECONDS = 2.0
"""Time between two notes."""


class _Bar(tqdm):  # type: ignore[type-arg]
    """Bar by a clock that nobody sets back: by tqdm's own it would stand still, and last less than
    no time.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()


class Progress:
    """Bar on stderr: what is spent of the limit that is nearest, items, best score; then the items
    of refining, and of the rows to confirm. Every two seconds the same is noted in a file.
    """

    def __init__(self, study: JobSource, note: Path | None = None) -> None:
        self._study, self._note = study, note
        self._began, self._noted = time.monotonic(), -NOTE_SECONDS
        self._stage, share = self._present()
        self._bar = self._new_bar(share)

    def _new_bar(self, share: Share) -> tqdm[Any]:
        return _Bar(
            total=share.limit,
            initial=share.spent,
            unit=share.unit,
            desc=self._study.phase,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def _present(self) -> tuple[str, Share]:
        """Return the stage after the search, or no text, and what is spent of the present one."""
        share = self._study.stage_share
        if share is not None:
            return self._study.phase, share
        return "", self._nearest

    @property
    def _nearest(self) -> Share:
        """Limit of the search that is nearest, and what is spent of it."""
        shares = self._study.shares or [Share("candidate", 0, 1)]  # no study can run
        return max(shares, key=lambda share: share.spent / share.limit)

    def refresh(self) -> None:
        """Show the study's present state, and note it now and then."""
        stage, share = self._present()
        if stage != self._stage:
            self._end_stage()
            self._stage, self._bar = stage, self._new_bar(share)
        self._show(share)
        if time.monotonic() - self._noted >= NOTE_SECONDS:
            self._write("at work")

    def _end_stage(self) -> None:
        """Leave the bar of a stage that is over on its line."""
        bar, searched = self._bar, self._nearest
        if self._stage:
            bar.total = max(bar.n, 1)  # the limit was the most that it could take
        elif bar.unit == searched.unit:
            bar.n = searched.spent
        bar.close()

    def _show(self, share: Share) -> None:
        study, bar = self._study, self._bar
        if bar.unit != share.unit:
            bar.unit, bar.initial = share.unit, share.spent
            bar.reset(total=share.limit)
        bar.set_description_str(self._stage or study.phase, refresh=False)
        bar.n, bar.total = share.spent, share.limit
        counts = [f"{study.scored_items} items"]
        if share.unit in ("item", "second"):
            counts.insert(0, f"{study.done} candidates")
        best = study.best
        bar.set_postfix_str(
            ", ".join(counts) + (f", best {best.rank:.4f}" if best else ""), refresh=False
        )
        bar.update(0)

    def _write(self, state: State) -> None:
        """Note the study's present state."""
        if self._note is None:
            return
        self._noted, study = time.monotonic(), self._study
        seconds, bar = self._noted - self._began, self._bar.format_dict
        gained, rest = bar["n"] - bar["initial"], max(0, bar["total"] - bar["n"])
        left = bar["elapsed"] * rest / gained if gained > 0 else None
        status = Status(
            name=study.spec.name,
            state=state,
            phase="done" if state == "finished" else study.phase,
            candidates=study.done,
            spent=study.shares,
            best=study.best.rank if study.best else None,
            items=study.scored_items,
            items_per_second=study.scored_items / max(seconds, 1e-9),
            seconds_left=left,
            noted=time.time(),
        )
        note_status(self._note, status)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        is_whole = self._study.is_finished and not self._study.failure
        self._write("finished" if is_whole else "stopped")
        self._bar.close()
