"""Progress bar of a search."""

from __future__ import annotations

import sys

from tqdm import tqdm

from cabs_search.search.budget import Share
from cabs_search.search.jobs import JobSource


class Progress:
    """Bar on stderr: what is spent of the limit that is nearest, items, best score; then the rows
    to confirm.
    """

    def __init__(self, study: JobSource) -> None:
        self._study = study
        share = self._share
        self._bar = tqdm(
            total=share.limit,
            initial=share.spent,
            unit=share.unit,
            desc="search",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    @property
    def _share(self) -> Share:
        return max(self._study.shares, key=lambda share: share.spent / share.limit)

    def refresh(self) -> None:
        """Show the study's present state."""
        study, best, share = self._study, self._study.best, self._share
        if self._bar.unit != share.unit:
            self._bar.unit, self._bar.initial = share.unit, share.spent
            self._bar.reset(total=share.limit)
        self._bar.n = share.spent
        self._bar.set_description_str(study.phase, refresh=False)
        counts = [f"{study.scored_items} items"]
        if share.unit != "candidate":
            counts.insert(0, f"{study.done} candidates")
        self._bar.set_postfix_str(
            ", ".join(counts) + (f", best {best.rank:.4f}" if best else ""), refresh=False
        )
        self._bar.update(0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self._bar.close()
