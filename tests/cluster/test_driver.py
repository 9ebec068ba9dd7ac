"""What a search's driver hands to workers, without Ray."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cabs_search.cluster import driver
from cabs_search.cluster.worker import ANOTHER, Context, _check_weights
from cabs_search.merging.family import Family
from cabs_search.merging.recipe import BASE
from cabs_search.record.progress_file import read_status
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from tests.conftest import EXPERTS, pico_values
from tests.support.bench import Bench


def test_workers_get_no_password(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse(pico_values(pico, storage="postgresql://me:SECRET@host/study"))
    given: list[Context] = []

    def keep(_: Any, context: Context) -> None:
        given.append(context)
        raise KeyboardInterrupt

    context = Context(
        spec=replace(spec, search=replace(spec.search, storage=None)),
        items={},
        blocks={},
        cache=tmp_path,
        threads=1,
        calibrations={},
    )
    monkeypatch.setattr(driver.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(driver.ray, "nodes", lambda: [{"Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(driver.tune, "with_parameters", keep)
    study: Any = SimpleNamespace(spec=spec)
    progress: Any = None
    with pytest.raises(KeyboardInterrupt):
        driver._run(study, context, progress, is_cluster=False)
    assert given[0].spec.device == "cpu"
    assert b"SECRET" in pickle.dumps(spec)
    assert b"SECRET" not in pickle.dumps(given[0].spec)


def test_another_model_at_the_same_path_scores_nothing(pico: Path) -> None:
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    name = EXPERTS[0]
    _check_weights(family, {BASE: family.base.fingerprint} | family.fingerprints, ANOTHER)
    with pytest.raises(ValueError, match=f"{name}: holds other weights than on the driver's node"):
        _check_weights(family, {name: "another"}, ANOTHER)


def test_workers_here_know_the_weights_too(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that starts in place of another might find a model's file changed."""
    given: list[Context] = []

    def keep(_: Any, context: Context, *__: Any, **___: Any) -> None:
        given.append(context)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "start_ray", lambda *_: None)
    monkeypatch.setattr(driver, "stop_ray", lambda: None)
    monkeypatch.setattr(driver, "_run", keep)
    spec = parse(pico_values(pico, trials=4, sampler="random"))
    items = load_study_items(spec)
    study = Bench(spec, tmp_path, items).study
    with pytest.raises(KeyboardInterrupt):
        driver.search(study, items, tmp_path, weights={BASE: "hash"})
    assert given[0].weights == {BASE: "hash"}
    assert given[0].source is None


def test_ray_is_not_started_where_all_is_on_record(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StartedError(Exception):
        """Ray was to be started."""

    def start(*_: object, **__: object) -> None:
        raise StartedError

    monkeypatch.setattr(driver, "start_ray", start)
    monkeypatch.setattr(driver.ray, "is_initialized", lambda: False)
    spec = parse(pico_values(pico, trials=4, sampler="random"))
    items = load_study_items(spec)
    Bench(spec, tmp_path, items).run(blocks=3)
    note = tmp_path / "progress.json"
    with pytest.raises(StartedError):
        driver.search(Bench(spec, tmp_path, items).study, items, tmp_path, note=note)
    bench = Bench(spec, tmp_path, items)
    bench.run()
    assert len(bench.outcomes.scored("search")) == 4, "the job that was opened is not lost"
    driver.search(Bench(spec, tmp_path, items).study, items, tmp_path, note=note)
    assert read_status(tmp_path).state == "finished"
