"""Every task's metric as an objective of its own."""

from __future__ import annotations

from cabs_search.record.entries import Scored
from cabs_search.search.objectives.base import Objective
from cabs_search.spec.study import Spec


class EachTask(Objective):
    """Objectives, one for each task, in the order of their names."""

    def values(self, scored: Scored) -> tuple[float, ...]:
        """See ``Objective``."""
        return tuple(scored.scores[task] for task in self.names)


def tasks(spec: Spec) -> Objective:
    """Make the objective."""
    return EachTask(
        text=(
            "Each task's metric was an objective of its own: the candidates to confirm are of the"
            " Pareto front. The score is the mean of the tasks' metrics."
        ),
        names=tuple(sorted(spec.tasks)),
    )
