"""Ray Tune runs a study's workers: each of them a trial that is fed with jobs; nothing of Tune's is kept.

Optuna's own integration tells a stopped trial as complete with its partial score, and a restored Tuner crashes on a
database study; the study here is the only state, and a Tuner is thrown away.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.search import Searcher
from tqdm import tqdm

from cabs_search.evaluate import pick_device
from cabs_search.search.desk import Desk
from cabs_search.search.studies import Studies
from cabs_search.search.study import Study
from cabs_search.search.worker import Context, Worker
from cabs_search.spec import Spec
from cabs_search.tasks import Items, SplitName

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def search(
    study: Study | Studies,
    items: Mapping[SplitName, Mapping[str, Items]],
    cache: Path,
    *,
    calibrations: Mapping[str, Path] | None = None,
    address: str | None = None,
) -> None:
    """Run a study's jobs until its budget is spent and the leaderboard's rows are confirmed.

    Args:
        study: taken up.
        items: the study's items by split and task.
        cache: the vector cache's folder, on every node.
        calibrations: files of what experts' layers saw, for mask rules that need it.
        address: a running Ray cluster's; None: the one this process has joined, else Ray is started here, for this
            search, on loopback only.

    Raises:
        RuntimeError: the search cannot go on; the message says why.
        KeyboardInterrupt: it was interrupted.

    """
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.tune", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    joined = ray.is_initialized()
    if not joined:
        _start_ray(study.spec, address)
    try:
        with study.at_work(), Progress(study) as progress:
            context = Context(
                spec=study.spec,
                items=items,
                blocks=study.blocks,
                cache=cache,
                threads=1,
                calibrations=calibrations or {},
            )
            _run(study, context, progress)
    finally:
        if not joined:
            stop_ray()
    if study.failure:
        raise RuntimeError(study.failure)
    if not study.complete:
        raise KeyboardInterrupt


def _run(study: Study | Studies, context: Context, progress: Progress) -> None:
    spec, cluster = study.spec, ray.cluster_resources()
    on_gpu = pick_device(spec.device) == "cuda"
    cpus, gpus = int(cluster.get("CPU", 1)), cluster.get("GPU", 0.0) if on_gpu else 0.0
    workers = spec.search.workers or max(1, int(gpus if on_gpu else cpus))
    widest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes())
    threads = max(1, min(cpus // workers, widest))
    context = replace(context, threads=threads)
    resources = {"cpu": float(threads)} | ({"gpu": min(1.0, gpus / workers)} if on_gpu else {})
    desk = Desk(study, workers)
    scratch = Path(tempfile.mkdtemp(prefix="cabs-search-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune.Tuner(
                tune.with_resources(tune.with_parameters(Worker, context=context), resources),
                tune_config=tune.TuneConfig(
                    search_alg=WorkerSearcher(desk),
                    num_samples=-1,
                    max_concurrent_trials=workers,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=str(scratch),
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    failure_config=tune.FailureConfig(max_failures=0),  # the study tries again, not Tune
                    stop=Ended(desk),
                    callbacks=[Recorder(desk, progress)],
                ),
            ).fit()
    finally:
        desk.write()
        shutil.rmtree(scratch, ignore_errors=True)


def _start_ray(spec: Spec, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **quiet)
        return
    # Ray turns a loopback address into a reachable one, unless it is told that there is no cluster to reach; it
    # reads that setting once, when it is imported.
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(
        address="local",
        num_cpus=max(spec.workers, os.cpu_count() or 1),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=256 << 20,
        **quiet,
    )


def stop_ray() -> None:
    """End Ray while no other thread collects garbage: a reference of Ray's that is freed meanwhile ends the process."""
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


class _Unsaved:
    """What Tune would write beside its own state, for a restart that never comes: nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class WorkerSearcher(_Unsaved, Searcher):  # type: ignore[misc]
    """Tune's view of a search: each trial is a worker, fed with jobs until there are no more."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(metric="done", mode="max")
        self._desk = desk

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 (Tune's signature)
        """A worker, also in the place of one that died; FINISHED at the end."""
        return Searcher.FINISHED if self._desk.finished else {}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
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


class Recorder(_Unsaved, tune.Callback):  # type: ignore[misc]
    """Takes in what workers did; Tune has them go on before the desk writes it down."""

    def __init__(self, desk: Desk, progress: Progress) -> None:
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
            for warning in dict.fromkeys(w for part in parts if part.result for w in part.result.warnings):
                tqdm.write(f"warning: {warning}", file=sys.stderr)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Tune has handled an event, or waited for one."""
        self._desk.rest()
        self._progress.refresh()


class Ended(_Unsaved, tune.Stopper):  # type: ignore[misc]
    """Ends workers when the desk has no more for them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 (Tune's signature)
        """No worker ends before the others."""
        return False

    def stop_all(self) -> bool:
        """Whether all is done."""
        return self._desk.finished


class Progress:
    """A bar on stderr: candidates done of the budget, items, the best so far; then the rows being confirmed."""

    def __init__(self, study: Study | Studies) -> None:
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
            f"{study.scored_items} items" + (f", best {best.score:.4f}" if best else ""), refresh=False
        )
        self._bar.update(0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self._bar.close()
