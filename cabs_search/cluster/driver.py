"""Ray Tune runs a study's workers: each of them a trial that is fed with jobs; nothing of Tune's is
kept.

Optuna's own integration tells a stopped trial as complete with its partial score, and a restored
Tuner crashes on a database study; the study here is the only state, and a Tuner is thrown away.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants

from cabs_search.cluster.dispatcher import Dispatcher
from cabs_search.cluster.progress import Progress
from cabs_search.cluster.tune import Ended, Recorder, WorkerSearcher
from cabs_search.cluster.worker import Context, Worker
from cabs_search.scoring.models import pick_device
from cabs_search.search.studies import Studies
from cabs_search.search.study import Study
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items, SplitName

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
        address: a running Ray cluster's; None: the one this process has joined, else Ray is started
            here, for this
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
    desk = Dispatcher(study, workers)
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
                    checkpoint_config=tune.CheckpointConfig(
                        checkpoint_frequency=0, checkpoint_at_end=False
                    ),
                    failure_config=tune.FailureConfig(
                        max_failures=0
                    ),  # the study tries again, not Tune
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
    # Ray turns a loopback address into a reachable one, unless it is told that there is no cluster
    # to reach; it
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
    """End Ray while no other thread collects garbage: a reference of Ray's that is freed meanwhile
    ends the process.
    """
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()
