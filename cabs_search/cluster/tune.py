"""Ray Tune's callbacks of a search."""

from __future__ import annotations

import sys
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from tqdm import tqdm

from cabs_search.cluster.dispatcher import Dispatcher
from cabs_search.cluster.progress import Progress


class NotPickled:
    """What Tune would write beside its own state, for a restart that never comes: nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class WorkerSearcher(NotPickled, Searcher):  # type: ignore[misc]
    """Tune's view of a search: each trial is a worker, fed with jobs until there are no more."""

    def __init__(self, desk: Dispatcher) -> None:
        super().__init__(metric="done", mode="max")
        self._desk = desk

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 (Tune's signature)
        """A worker, also in the place of one that died; FINISHED at the end."""
        return Searcher.FINISHED if self._desk.finished else {}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A worker died or could not start."""
        if error:
            self._desk.died(trial_id)
        elif result and "broken" in result:
            self._desk.stop(f"a worker could not start: {result['broken']}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Parts are taken by the Recorder, which sees the last ones too."""

    def save(self, checkpoint_path: str) -> None:
        """The Optuna study is the state; Tune keeps none."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""


class Recorder(NotPickled, tune.Callback):  # type: ignore[misc]
    """Takes in what workers did; Tune has them go on before the desk writes it down."""

    def __init__(self, desk: Dispatcher, progress: Progress) -> None:
        self._desk, self._progress = desk, progress

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 (Tune's signature)
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Take in a worker's address, or a step's parts."""
        if "worker" in result:
            self._desk.join(trial.trial_id, result.pop("worker").value.feed.remote)
        if "parts" in result:
            parts = result.pop("parts").value
            self._desk.take(trial.trial_id, parts)
            for warning in dict.fromkeys(
                w for part in parts if part.result for w in part.result.warnings
            ):
                tqdm.write(f"warning: {warning}", file=sys.stderr)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Tune has handled an event, or waited for one."""
        self._desk.rest()
        self._progress.refresh()


class Ended(NotPickled, tune.Stopper):  # type: ignore[misc]
    """Ends workers when the desk has no more for them."""

    def __init__(self, desk: Dispatcher) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 (Tune's signature)
        """No worker ends before the others."""
        return False

    def stop_all(self) -> bool:
        """Whether all is done."""
        return self._desk.finished
