"""Driver of a search: starts Ray, and has Ray Tune run the workers.

Nothing of Tune's is kept; the study is the only state. Tune's own use of Optuna would not do: it
tells a stopped trial as complete with its partial score, and a restored Tuner crashes on a study
in a database.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RaySystemError, RpcError

from cabs_search.cluster.dispatcher import Dispatcher
from cabs_search.cluster.progress import Progress
from cabs_search.cluster.travel import Source
from cabs_search.cluster.tune import Recorder, StopWhenFinished, WorkerSearcher
from cabs_search.cluster.worker import Context, Worker
from cabs_search.common.signals import kept_handler
from cabs_search.merging.calibration import CalibrationKey
from cabs_search.scoring.models import pick_device
from cabs_search.search.jobs import JobSource
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

FIRST = "first"
"""Id of the job that is opened before there are workers."""


def search(
    study: JobSource,
    items: Mapping[SplitName, Mapping[str, Items]],
    cache: Path,
    *,
    calibrations: Mapping[CalibrationKey, Path] | None = None,
    weights: Mapping[str, str] | None = None,
    address: str | None = None,
    note: Path | None = None,
) -> None:
    """Run a study's jobs until its budget is spent and the leaderboard's rows are confirmed.

    Where all of it is on record, Ray is not started.

    Args:
        study: one or several studies.
        items: their items by split and task.
        cache: the vector cache's folder on this node; other nodes get what they lack from it.
        calibrations: files of calibration statistics, for mask rules that need them.
        weights: fingerprints of base and experts by name, which those that workers open must have.
        address: of a running Ray cluster; None: the one this process has joined, else Ray is
            started for this search, on loopback only.
        note: file for the search's news; None: none are written.

    Raises:
        RuntimeError: the search cannot go on.
        KeyboardInterrupt: it was interrupted.

    """
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.tune", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = Context(
        spec=replace(study.spec, search=replace(study.spec.search, storage=None)),  # no password
        items=items,
        blocks=study.blocks,
        cache=cache,
        threads=1,
        calibrations=calibrations or {},
        weights=weights or {},
    )
    with study.connected(), Progress(study, note) as progress:
        if _has_jobs(study):
            with _joined_ray(study.spec, address):
                if address is not None:
                    models = [study.spec.base, *study.spec.experts.values()]
                    source = Source.here(models, cache)
                    context = replace(context, source=source)
                _run(study, context, progress, is_cluster=address is not None)
        if not study.is_finished and not study.failure:
            raise KeyboardInterrupt
    if study.failure:
        raise RuntimeError(study.failure)


def _has_jobs(study: JobSource) -> bool:
    """Tell whether workers are needed; the job that is opened to know it waits for them."""
    if study.next_job(FIRST) is None:
        return not study.is_finished
    study.put_back(FIRST)
    return True


@contextmanager
def _joined_ray(spec: Spec, address: str | None) -> Iterator[None]:
    """Join Ray, or start it, inside the context, unless this process has joined one."""
    was_joined = ray.is_initialized()
    if not was_joined:
        with kept_handler():
            start_ray(max(spec.workers, os.cpu_count() or 1), address)
    try:
        yield
    finally:
        if not was_joined:
            stop_ray()


def _run(study: JobSource, context: Context, progress: Progress, *, is_cluster: bool) -> None:
    spec, cluster = study.spec, ray.cluster_resources()
    gpus = _gpus(spec.device, cluster.get("GPU", 0.0), is_cluster=is_cluster)
    cpus, on_gpu = int(cluster.get("CPU", 1)), gpus > 0
    if not on_gpu:  # a worker that asked for no GPU may see one all the same
        context = replace(context, spec=replace(context.spec, device="cpu"))
    workers = spec.search.workers or max(1, int(gpus if on_gpu else cpus))
    largest_node = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes())
    threads = max(1, min(cpus // workers, largest_node))
    context = replace(context, threads=threads)
    resources = {"cpu": float(threads)} | ({"gpu": min(1.0, gpus / workers)} if on_gpu else {})
    dispatcher = Dispatcher(study, workers)
    scratch = Path(tempfile.mkdtemp(prefix="cabs-search-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune.Tuner(
                tune.with_resources(tune.with_parameters(Worker, context=context), resources),
                tune_config=tune.TuneConfig(
                    search_alg=WorkerSearcher(dispatcher),
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
                    # the study tries again, not Tune
                    failure_config=tune.FailureConfig(max_failures=0),
                    stop=StopWhenFinished(dispatcher),
                    callbacks=[Recorder(dispatcher, progress)],
                ),
            ).fit()
    finally:
        dispatcher.flush()
        shutil.rmtree(scratch, ignore_errors=True)


def _gpus(device: str, in_cluster: float, *, is_cluster: bool) -> float:
    """Return the number of GPUs that workers share; the driver's node of a cluster may have none.

    Raises:
        RuntimeError: ``cuda`` is asked for, but the cluster has no GPU.

    """
    if not is_cluster:
        return in_cluster if pick_device(device) == "cuda" else 0.0
    if device == "cuda" and not in_cluster:
        raise RuntimeError("device: cuda is asked for, but the cluster has no GPU")
    return in_cluster if device != "cpu" else 0.0


def answers(address: str) -> bool:
    """Tell whether a Ray cluster answers at HOST:PORT, or at ``auto``, where Ray itself finds one.

    If something else answers there, it takes Ray 40 seconds to give up.
    """
    found = canonicalize_bootstrap_address(address)
    if found is None:
        return False
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        GcsClient(address=found)
    except (OSError, RaySystemError, RpcError):
        return False
    return True


def start_ray(cpus: int, address: str | None = None) -> None:
    """Start Ray on loopback with ``cpus``, or join the cluster at ``address``."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **quiet)
        return
    # Ray replaces a loopback address by one that other machines can reach, unless this setting is
    # off. It reads the environment variable for it once, on import, hence the private constant.
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=256 << 20,
        **quiet,
    )


def stop_ray() -> None:
    """End Ray with garbage collection switched off.

    If another thread frees one of Ray's references during shutdown, Ray ends the process.
    """
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()
