"""End of a search that may gain less than the noise of a score, kept for runs that go on."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from cabs_search.record.outcomes import CONVERGED, Outcomes
from cabs_search.search.budget import RECOMMENDED
from cabs_search.search.proposals import Proposer
from cabs_search.search.storage import StudyDatabase, is_recommended


class Convergence:
    """Tells whether a search has converged, and keeps it in the record."""

    def __init__(
        self,
        outcomes: Outcomes,
        database: StudyDatabase,
        proposer: Proposer,
        trials: Sequence[FrozenTrial],
        *,
        stops: bool,
    ) -> None:
        """Go on from earlier runs; with other ranges there may be more to find.

        Args:
            outcomes: the record.
            database: the study's trials.
            proposer: knows what the sampler expects.
            trials: the study's trials so far.
            stops: whether a search that has converged ends.

        """
        self._outcomes, self._database, self._proposer = outcomes, database, proposer
        self._stops, self._name = stops, CONVERGED + database.id.value
        self._at = int(outcomes.amount(self._name))
        """Number of trials at which the search had converged; 0: it has not."""
        proposed = [trial for trial in trials if trial.params]
        is_of_space = bool(proposed) and proposer.is_of_space(proposed[-1])
        if self._at and not (stops and is_of_space):
            self._note(0)

    def _note(self, trials: int) -> None:
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
