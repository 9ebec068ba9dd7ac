"""Progress bar of a search."""

from __future__ import annotations

import sys

from tqdm import tqdm

from cabs_search.search.jobs import JobSource


class Progress:
    """Bar on stderr: candidates of the budget, items, best score; then the rows to confirm."""

    def __init__(self, study: JobSource) -> None:
        self._study = study
        self._bar = tqdm(
            total=study.budget,
            initial=min(study.done, study.budget),
            unit="candidate",
            desc="search",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def refresh(self) -> None:
        """Show the study's present state."""
        study, best = self._study, self._study.best
        self._bar.n = min(study.done, study.budget)
        self._bar.set_description_str(study.phase, refresh=False)
        self._bar.set_postfix_str(
            f"{study.scored_items} items" + (f", best {best.score:.4f}" if best else ""),
            refresh=False,
        )
        self._bar.update(0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self._bar.close()
