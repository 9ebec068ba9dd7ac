"""Contents of runs in MLflow: a candidate that was stopped has no score, and its items count."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import LambdaKey, make_recipe
from cabs_search.record.folder import StudyId
from cabs_search.search.jobs import Finished
from cabs_search.spec.load import parse
from cabs_search.tracking.background import BackgroundTracker
from cabs_search.tracking.runs import STATUSES, SearchProgress, candidate_metrics, candidate_params
from cabs_search.tracking.study_runs import find_runs
from cabs_search.tracking.writes import close, write_candidate, write_metrics
from tests.conftest import pico_values

STOPPED = Finished(
    number=3,
    recipe=make_recipe(make_method("task-arithmetic", ("a", "b")), {"a": 0.5, "b": 1.0}),
    state="stopped",
    scored=None,
    items=200,
    partial_score=0.7,
    materialize_seconds=0.1,
    started=datetime(2026, 1, 1),
    ended=datetime(2026, 1, 2),
    error=None,
)


def test_a_stopped_candidate_has_no_score_but_what_it_had_so_far() -> None:
    metrics = candidate_metrics(STOPPED)
    assert metrics == {"materialize_seconds": 0.1, "partial_score": 0.7, "items": 200.0}
    assert STATUSES[STOPPED.state] == "KILLED"


def test_many_groups_are_told_by_their_number_and_each_lambda_by_its_name() -> None:
    groups = tuple((f"layer{place}", rf"\.{place}\.") for place in range(24))
    method = make_method("task-arithmetic", ("a",))
    lambdas = {
        LambdaKey("a", name): round(0.1 * place, 9) for place, (name, _) in enumerate(groups)
    }
    recipe = make_recipe(method, lambdas, groups)
    params = candidate_params(replace(STOPPED, recipe=recipe))
    assert params["groups"] == "24"
    assert params["lambda.a.layer3"] == "0.3"
    assert str(recipe) == "task-arithmetic a=0…2.3", "a text stays short"
    two = {LambdaKey("a", "x"): 1.0, LambdaKey("a", "y"): 2.0}
    few = make_recipe(method, two, (("x", "x"), ("y", "")))
    assert candidate_params(replace(STOPPED, recipe=few))["groups"] == "x, y"
    assert str(few) == "task-arithmetic a.x=1 a.y=2"


def test_its_items_are_spent_and_the_best_stays() -> None:
    after = SearchProgress(items=600, best=0.8).after(STOPPED, ended=5)
    assert after == SearchProgress(items=800, best=0.8, ended=5)


def test_a_restart_does_not_count_its_items_again(tmp_path: Path) -> None:
    for _ in range(2):
        runs = find_runs(tmp_path, None, StudyId("id"), "s", "s")
        runs.progress = runs.progress if runs.children else SearchProgress(items=600, best=0.8)
        write_candidate(runs, STOPPED, "red")
        assert runs.progress.items == 800


def test_times_go_on_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow takes the metric of the latest time for the present one."""
    real, end = time.time, 0
    for hours, value in enumerate((0.9, 0.5, 0.7)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda back=3600 * hours: real() - back)
            runs = find_runs(tmp_path, None, StudyId("id"), "s", "s")
            ended = datetime.fromtimestamp(time.time())
            write_candidate(runs, replace(STOPPED, number=hours, started=ended, ended=ended), "red")
            write_metrics(runs, {"best": value})
            write_metrics(runs, {"best": value / 2})
            close(runs, is_complete=hours > 0)
        parent = runs.client.get_run(runs.parent_id)
        assert parent.data.metrics["best"] == value / 2
        assert parent.info.end_time > max(end, parent.info.start_time)
        end = parent.info.end_time
    close(find_runs(tmp_path, None, StudyId("id"), "s", "s"), is_complete=True)
    assert runs.client.get_run(runs.parent_id).info.end_time == end, "nothing is new"


def test_artifacts_go_where_the_spec_says(pico: Path, tmp_path: Path) -> None:
    """Of an experiment that is there already they stay, which is said."""
    said: list[str] = []
    wanted = (tmp_path / "store" / "a").as_uri()
    for folder, artifacts in (("new", wanted), ("new", wanted + "-else"), ("old", None)):
        tracking = {"model": "never"} | ({"artifacts": artifacts} if artifacts else {})
        spec = parse(pico_values(pico) | {"tracking": tracking})
        with BackgroundTracker(tmp_path / folder, None, said.append) as book:
            (tmp_path / folder).mkdir(exist_ok=True)
            log = book.study(spec)
            log._study_id = StudyId("id")
            log._add_files({"tables/one.json": folder.encode()})
        kept = [p for p in tmp_path.rglob("one.json") if p.read_text() == folder]
        assert len(kept) == 1
        if folder == "new":
            assert kept[0].is_relative_to(tmp_path / "store" / "a")
    assert kept[0].is_relative_to(tmp_path / "old" / "artifacts")
    (line,) = said
    assert line.startswith(f"MLflow keeps the artifacts of experiment 'pico' at {wanted}, where")
