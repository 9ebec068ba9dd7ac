"""Ray Tune's callbacks, with which a Tune trial is not a candidate but a worker.

Tune starts workers, places them on nodes and replaces those that die. Candidates go to them as
jobs, past Tune: a trial for each candidate would load the models anew for each one.
"""

from __future__ import annotations

import sys
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from tqdm import tqdm

from cabs_search.cluster.dispatcher import Dispatcher
from cabs_search.cluster.progress import Progress


class NotPickled:
    """Mixin for objects that Tune would save for a restart, which never comes."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class WorkerSearcher(NotPickled, Searcher):  # type: ignore[misc]
    """Search algorithm that has Tune start a worker until there are no more jobs."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(metric="done", mode="max")
        self._dispatcher = dispatcher

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 (Tune's signature)
        """Start a worker, also in place of one that died, unless the search is over."""
        return Searcher.FINISHED if self._dispatcher.is_finished else {}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note that a worker died or could not start."""
        if error:
            self._dispatcher.worker_died(trial_id)
        elif result and "broken" in result:
            self._dispatcher.stop(f"a worker could not start: {result['broken']}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: the Recorder receives reports, and unlike this sees the last ones too."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the Optuna study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see save."""


class Recorder(NotPickled, tune.Callback):  # type: ignore[misc]
    """Receives reports as they come; they are recorded after Tune let the worker go on."""

    def __init__(self, dispatcher: Dispatcher, progress: Progress) -> None:
        self._dispatcher, self._progress = dispatcher, progress

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 (Tune's signature)
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Receive a worker's actor handle, or the reports of a step."""
        if "worker" in result:
            actor = result.pop("worker").value
            self._dispatcher.add_worker(trial.trial_id, actor.add_jobs.remote)
        if "reports" in result:
            reports = result.pop("reports").value
            self._dispatcher.receive(trial.trial_id, reports)
            messages = [message for report in reports for message in report.warnings]
            for message in dict.fromkeys(messages):
                tqdm.write(f"warning: {message}", file=sys.stderr)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Record and dispatch after Tune handled an event, or waited for one."""
        self._dispatcher.flush_and_dispatch()
        self._progress.refresh()


class StopWhenFinished(NotPickled, tune.Stopper):  # type: ignore[misc]
    """Ends all workers when there are no more jobs."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 (Tune's signature)
        """End no worker before the others."""
        return False

    def stop_all(self) -> bool:
        """Tell whether the search is over."""
        return self._dispatcher.is_finished
