"""MLflow's saved views: made for studies and comparisons, kept as tags, found again by ``ui``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cabs_search.record.folder import StudyId
from cabs_search.search.candidates import Candidates
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tracking import views
from cabs_search.tracking.background import BackgroundTracker
from cabs_search.tracking.server import default_uri, ui_links, uri_of
from cabs_search.tracking.study_runs import find_runs
from cabs_search.tracking.writes import write_views

PARENT = "0123456789abcdef"


def spec_of(experts: int = 3, **space: Any) -> Spec:
    names = [f"expert{chr(97 + i)}" for i in range(experts)]
    order = [names, names[::-1]]
    return parse(
        {
            "name": "s",
            "base": "b",
            "experts": {name: name for name in names},
            "tasks": {name: {"dataset": {"csv": "x.csv"}, "text": "t"} for name in names},
            "space": {"nm": ["2:8"], "order": order, "lambda": {"low": 0, "high": 1, "step": 0.1}}
            | space,
            "search": {"trials": 3},
        },
        locations=False,
    )


def views_of(spec: Spec, kind: views.Kind = "study") -> list[views.View]:
    return views.made_for(kind, Candidates.of(spec), tuple(spec.tasks), PARENT, "s")


def made(spec: Spec, kind: views.Kind = "study") -> dict[str, Any]:
    return {view.name: view.state for view in views_of(spec, kind)}


def axes(state: Any, kind: str) -> list[tuple[str, ...]]:
    charts = [chart for chart in state["compareRunCharts"] if chart["type"] == kind]
    return [
        tuple(chart[f"{axis}axis"]["key"] for axis in "xyz" if f"{axis}axis" in chart)
        for chart in charts
    ]


def test_a_study_gets_each_view_once() -> None:
    assert sorted(made(spec_of())) == [
        "Best score against items spent of s",
        "Candidates of s",
        "Orders compared of s",
        "Parallel coordinates of s",
        "Per-task trade-off of s",
        "λ landscape, cabs of s",
    ]


def test_the_landscape_pairs_every_two_experts() -> None:
    state = made(spec_of(3))["λ landscape, cabs of s"]
    assert axes(state, "CONTOUR") == [
        ("lambda.experta", "lambda.expertb", "score"),
        ("lambda.experta", "lambda.expertc", "score"),
        ("lambda.expertb", "lambda.expertc", "score"),
    ]
    assert axes(state, "SCATTER") == [(f"lambda.expert{e}", "score") for e in "abc"]
    assert (
        state["searchFilter"]
        == f"tags.`mlflow.parentRunId` = '{PARENT}' and params.method = 'cabs'"
    )


def test_every_method_has_a_landscape_of_its_own() -> None:
    """The λ of two methods have nothing in common but their names."""
    names = [name for name in made(spec_of(method=["cabs", "ties"])) if "landscape" in name]
    assert names == ["λ landscape, cabs of s", "λ landscape, ties of s"]


def test_with_a_shared_lambda_there_are_no_pairs() -> None:
    shared = {"lambda": {"low": 0, "high": 1, "step": 0.1, "shared": True}}
    state = made(spec_of(**shared))["λ landscape, cabs of s"]
    assert axes(state, "CONTOUR") == []
    assert axes(state, "SCATTER") == [("lambda.experta", "score")]


@pytest.mark.parametrize(
    "changes", [{"order": [["experta", "expertb", "expertc"]]}, {"method": ["task-arithmetic"]}]
)
def test_without_orders_nothing_shows_orders(changes: dict[str, Any]) -> None:
    found = made(spec_of(**changes))
    assert "Orders compared of s" not in found
    (chart,) = found["Parallel coordinates of s"]["compareRunCharts"]
    assert chart["selectedParams"] == [f"lambda.expert{e}" for e in "abc"]


def test_a_view_of_many_experts_stays_small_enough_for_people_and_for_a_tag() -> None:
    for view in views_of(spec_of(24)):
        sections = [chart["metricSectionId"] for chart in view.state["compareRunCharts"]]
        assert max(map(sections.count, sections), default=0) <= views.MAX_CHARTS
        assert len(view.tag[1]) < 5000, "what every MLflow takes"


def test_a_comparison_is_seen_as_a_whole_and_value_by_value() -> None:
    assert sorted(made(spec_of(), "comparison")) == [
        "Candidates by value of s",
        "Values compared of s",
    ]
    assert sorted(made(spec_of(), "value")) == ["Candidates of s", "Parallel coordinates of s"]


def test_a_tag_is_read_as_it_was_written() -> None:
    written = views_of(spec_of())
    found = views.found_in(dict(view.tag for view in written) | {"mlflow.note": "x"}, PARENT)
    assert sorted(found, key=lambda view: view.key) == sorted(written, key=lambda view: view.key)
    assert views.found_in(dict(view.tag for view in written), "another-run") == []


@pytest.mark.parametrize(
    ("version", "are_read"),
    [
        ("3.15.0", True),
        ("3.17.2.dev0", True),
        ("4.0", True),
        ("3.14.9", False),
        ("2.22.0", False),
        ("<html>", False),
    ],
)
def test_which_mlflow_reads_views(version: str, are_read: bool) -> None:
    assert views.are_read_by(version) is are_read


def shared_views(folder: Path) -> dict[str, str]:
    from mlflow import MlflowClient

    tags = MlflowClient(default_uri(folder)).get_experiment_by_name("s").tags
    return {key: value for key, value in tags.items() if key.startswith(views.TAG)}


class NothingBound:
    """Stand-in for a record without items."""

    def bound(self) -> list[Any]:
        return []


def test_an_old_mlflow_gets_no_views_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.__version__", "3.14.1")
    said: list[str] = []
    with BackgroundTracker(tmp_path, None, said.append) as tracker:
        for value in ("cabs", "ties"):
            log = tracker.study(spec_of(), "s")
            log.open(NothingBound(), StudyId("id", value))  # type: ignore[arg-type]
            log.close()
    (line,) = said
    assert "does not take saved views (version 3.14.1 has none, 3.15 has)" in line
    assert shared_views(tmp_path) == {}
    found = ui_links(default_uri(tmp_path), "http://x", "s", StudyId("id"), is_comparison=True)
    assert list(found) == ["all runs"]


def test_views_are_written_again_under_the_same_keys(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    runs = find_runs(tmp_path, None, StudyId("id"), "s", "s")
    write_views(runs, spec_of(), None)
    before = shared_views(tmp_path)
    key = next(iter(before))
    MlflowClient(default_uri(tmp_path)).set_experiment_tag(
        runs.experiment_id, key, "of an older version"
    )
    write_views(runs, spec_of(), None)
    assert shared_views(tmp_path) == before
    found = ui_links(default_uri(tmp_path), "http://x", "s", StudyId("id"), is_comparison=False)
    assert {url.partition("viewStateShareKey=")[2].partition("&")[0] for url in found.values()} - {
        ""
    } == {tag.removeprefix(views.TAG) for tag in before}


@contextmanager
def server_saying(version: str) -> Iterator[str]:
    """Serve /version as MLflow does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/version" else 404)
            self.end_headers()
            self.wfile.write(version.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_of_a_server_its_own_version_counts() -> None:
    from cabs_search.tracking.server import version_at

    with server_saying("2.9.1") as uri:
        assert version_at(uri) == "2.9.1"


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("http://user:secret@host:5000", "http://host:5000"),
        ("https://me:se@cret@host/mlflow", "https://host/mlflow"),
        ("https://host/mlflow", "https://host/mlflow"),
        ("https://host/mlflow?token=secret", "https://host/mlflow?token=***"),
    ],
)
def test_a_folder_remembers_its_server_without_the_password(
    tmp_path: Path, uri: str, kept: str
) -> None:
    from cabs_search.tracking.server import remember_uri

    remember_uri(tmp_path, uri)
    assert uri_of(tmp_path) == kept
    assert "cret" not in json.dumps([path.read_text() for path in tmp_path.iterdir()])
    remember_uri(tmp_path, None)
    assert uri_of(tmp_path) == default_uri(tmp_path)
