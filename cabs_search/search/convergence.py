"""End of a search that may gain less than the noise of a score, kept for runs that go on."""

from __future__ import annotations

from cabs_search.record.outcomes import CONVERGED, Outcomes
from cabs_search.search.budget import RECOMMENDED
from cabs_search.search.proposals import Proposer
from cabs_search.search.storage import StudyDatabase, is_recommended
from cabs_search.spec.study import Spec


class Convergence:
    """Tells whether a search has converged, and keeps it in the record."""

    def __init__(
        self, spec: Spec, outcomes: Outcomes, database: StudyDatabase, proposer: Proposer
    ) -> None:
        """Go on from earlier runs; with other ranges of λ there may be more to find.

        Args:
            spec: what is searched, and whether a search that has converged ends.
            outcomes: the record.
            database: the study's trials.
            proposer: knows what the sampler expects.

        """
        self._outcomes, self._database, self._proposer = outcomes, database, proposer
        # of other metrics the noise is not known
        are_means = all(task.measure.is_mean for task in spec.tasks.values())
        self._stops = spec.search.stops and are_means and proposer.learns_from_items
        self._name = CONVERGED + database.id.value
        ranges = {method: spec.space.range_of(method) for method in spec.space.method}
        self._ranges = "; ".join(
            f"{method}: {own.low!r} to {own.high!r} by {own.step!r}"
            for method, own in sorted(ranges.items())
        )
        self._at = int(outcomes.amount(self._name))
        """Number of trials at which the search had converged; 0: it has not."""
        is_same = outcomes.kept_text(self._name) == self._ranges
        if self._at and not (self._stops and is_same):
            self._note(0)

    def _note(self, trials: int) -> None:
        self._outcomes.keep_text(self._name, self._ranges)
        self._outcomes.record([], {self._name: trials - self._at})
        self._at = trials

    @property
    def is_reached(self) -> bool:
        """True once the search has converged."""
        return self._at > 0

    def look(self) -> bool:
        """Tell whether the search has converged by now."""
        if self._stops and not self._at and self._proposer.has_converged:
            self._note(len(self._database.trials()))
        return self.is_reached

    @property
    def has_recommended(self) -> bool:
        """True if as much was recommended since as at the end of a budget."""
        later = self._database.trials()[self._at :] if self.is_reached else []
        return sum(map(is_recommended, later)) >= RECOMMENDED
