"""MLflow's saved views as code: ``dashboards/*.yaml`` as tags of an experiment that MLflow's UI
reads.

The format is MLflow's own: a JSON value whose ``state`` is deflated; charts are drawn over the runs
that the filter lets through, without which nested runs are collapsed and every chart is empty. A
chart that would have no data in a study is left out of it, and so is a view that has no chart left.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import yaml

from cabs_search.common.files import shipped_folder
from cabs_search.search.candidates import dimensions, method_of
from cabs_search.spec.study import Spec

SINCE = (3, 15)
"""The first MLflow whose UI reads named views, ``{name, createdAt, state}``: its pull requests
24359 and 24360.
"""
TAG = "mlflow.sharedViewState."
MOST_RUNS = 1000
"""Runs that a chart draws at the most."""
MOST_CHARTS = 12
"""Charts of one kind in a view: people look at no more, and a tag has an end."""
MOST_PAIRS = 6
"""Pairs that are all drawn; of more, each one is drawn with the next alone."""
MOST_AXES = 24
"""Axes of a parallel chart."""
OTHERS = {
    "name": "Model metrics",
    "display": False,
    "isReordered": False,
    "deleted": False,
    "isGenerated": False,
}
"""The section where MLflow adds a chart for every metric that has none: there, but closed."""
Kind = Literal["study", "value", "comparison"]
"""What a view is of: a study, a value of a comparison, a whole comparison."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A saved view."""

    key: str
    """Names it in its address; stays the same when it is written again."""
    name: str
    """What MLflow's UI lists it as."""
    state: Mapping[str, Any]
    """MLflow's own: filter, order, charts."""

    def url(self, root: str, experiment_id: str) -> str:
        """Its address in the UI at ``root``."""
        mode = {"compareRunsMode": "CHART"} if self.state["compareRunCharts"] else {}
        return (
            runs_url(root, experiment_id) + "&" + urlencode({"viewStateShareKey": self.key} | mode)
        )

    @property
    def tag(self) -> tuple[str, str]:
        """The experiment's tag that holds it."""
        packed = base64.b64encode(zlib.compress(json.dumps(self.state).encode())).decode()
        return TAG + self.key, json.dumps(
            {"name": self.name, "createdAt": 0, "state": f"deflate;{packed}"}
        )


def are_read_by(version: str) -> bool:
    """Whether the UI of an MLflow of this version reads saved views."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= SINCE


def made_for(kind: Kind, spec: Spec, of: str, name: str) -> list[View]:
    """The views that ship, for one study or comparison.

    Args:
        of: the id of the study's parent run; of a comparison, what the ids of its studies begin
            with.
        name: what people call the study or comparison.

    """
    found = []
    for view in map(yaml.safe_load, _definitions()):
        if kind in view["of"]:
            methods = (
                [method_of(spec, m).name for m in spec.space.method]
                if view.get("each") == "method"
                else [""]
            )
            made = [_view(view, spec, {"of": of, "method": method}, name) for method in methods]
            found += [each for each in made if each.state["compareRunCharts"] or not view["charts"]]
    return found


def found_in(tags: Mapping[str, str], of: str) -> list[View]:
    """The views of a study or comparison that an experiment's tags hold."""
    found = []
    for tag, value in sorted(tags.items()):
        if tag.startswith(TAG) and tag.endswith(f"-{of[:8]}"):
            plain = json.loads(value)
            state = json.loads(
                zlib.decompress(base64.b64decode(plain["state"].removeprefix("deflate;")))
            )
            found.append(View(key=tag.removeprefix(TAG), name=plain["name"], state=state))
    return found


def runs_url(root: str, experiment_id: str) -> str:
    """The address of an experiment's runs in the UI at ``root``, which has another face for
    language models.
    """
    return f"{root}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def _definitions() -> Iterator[str]:
    """Texts of the views that ship."""
    for path in sorted(shipped_folder("dashboards").glob("*.yaml")):
        yield path.read_text(encoding="utf-8")


def _view(view: Mapping[str, Any], spec: Spec, words: Mapping[str, str], name: str) -> View:
    key = "-".join(filter(None, (view["key"], words["method"], words["of"][:8])))
    sections, charts = [], []
    for number, section in enumerate(view["charts"]):
        made = list(_charts(section, spec, words, f"{key}-{number}"))
        charts += made
        sections += [_section(section, f"{key}-{number}")] if made else []
    state = {
        "searchFilter": view["filter"].format(**words),
        "orderByKey": f"metrics.`{view['best']}`",
        "orderByAsc": False,
        "selectedColumns": [
            f"{kind}.`{name}`"
            for kind in ("metrics", "params")
            for name in _columns(view, kind, spec)
        ],
        "runsHiddenMode": "SHOW_ALL",
        "runListHidden": True,
        "isAccordionReordered": True,
        "compareRunSections": [*sections, {**OTHERS, "uuid": f"{key}-others"}],
        "compareRunCharts": charts,
    }
    return View(key=key, name=f"{view['name'].format(**words)} of {name}", state=state)


def _columns(view: Mapping[str, Any], kind: str, spec: Spec) -> list[str]:
    """The columns of the table of runs."""
    return [name for column in view["columns"].get(kind, ()) for name in _axes(column, spec)]


def _section(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A heading with charts below it."""
    shown = {
        "name": section["title"],
        "columns": section["across"],
        "cardHeight": section["height"],
        "display": True,
    }
    return {"uuid": key, "isReordered": False, "deleted": False, "isGenerated": False} | shown


def _charts(
    chart: Mapping[str, Any], spec: Spec, words: Mapping[str, str], key: str
) -> Iterator[dict[str, Any]]:
    """A definition as MLflow's charts: one, or one for each of what it asks for."""
    for number, more in enumerate(_each(chart.get("each"), spec)):
        own = {**words, **more}
        made = {
            "uuid": f"{key}-{number}",
            "type": chart["type"],
            "metricSectionId": key,
            "deleted": False,
            "isGenerated": False,
            "runsCountToCompare": MOST_RUNS,
        }
        match chart["type"]:
            case "PARALLEL":
                params = [name for param in chart["params"] for name in _axes(param, spec)][
                    :MOST_AXES
                ]
                metrics = [name for metric in chart["metrics"] for name in _axes(metric, spec)]
                if len(params) + len(metrics) > 1:
                    yield made | {
                        "selectedParams": params,
                        "selectedMetrics": metrics,
                        "showAllRuns": True,
                    }
            case "LINE":
                yield made | _line(chart["x"], chart["y"])
            case "BAR":
                yield made | {"metricKey": chart["y"]}
            case _:
                axes = {axis: chart[axis] for axis in "xyz" if axis in chart}
                yield made | {
                    f"{axis}axis": {k: v.format(**own) for k, v in of.items()}
                    for axis, of in axes.items()
                }


def _line(x: str, y: str) -> dict[str, Any]:
    """One metric's history over another's."""
    return {
        "metricKey": y,
        "selectedMetricKeys": [y],
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": x,
        "useGlobalXaxisKey": False,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "displayPoints": True,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
    }


def _each(what: str | None, spec: Spec) -> Iterator[dict[str, str]]:
    """What a chart's ``{a}`` and ``{b}`` stand for, one chart after another."""
    match what:
        case None:
            yield {}
        case "orders":  # one chart, where there are orders to compare
            if _orders_differ(spec):
                yield {}
        case "lambda" | "task":
            yield from ({"a": name} for name in _names(what, spec)[:MOST_CHARTS])
        case "lambda-pair" | "task-pair":
            yield from (
                {"a": a, "b": b} for a, b in _pairs(_names(what.removesuffix("-pair"), spec))
            )
        case "task-by-order":
            yield from (
                {"a": name} for name in _names("task", spec)[:MOST_CHARTS] if _orders_differ(spec)
            )
        case _:
            raise AssertionError(what)


def _names(what: str, spec: Spec) -> list[str]:
    """The tasks of a study, or those whose λ vary freely: experts, or their groups."""
    if what == "task":
        return list(spec.tasks)
    experts = list(spec.experts)[: 1 if spec.space.lambda_.shared else None]
    groups = [f".{group}" for group, _ in spec.space.groups] or [""]
    return [expert + group for expert in experts for group in groups]


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    found = list(itertools.combinations(names, 2))
    return (
        found
        if len(found) <= MOST_PAIRS
        else list(itertools.pairwise([*names, names[0]]))[:MOST_CHARTS]
    )


def _axes(name: str, spec: Spec) -> list[str]:
    """The names that one with a ``*`` stands for: only those that every candidate has, as others
    empty the chart.
    """
    what, star, _ = name.partition(".*")
    match what:
        case _ if not star:
            return [name]
        case "rank":
            is_ranked = all("order" in dimensions(spec, method) for method in spec.space.method)
            return (
                [f"rank.{expert}" for expert in spec.experts]
                if is_ranked and _orders_differ(spec)
                else []
            )
        case "score":
            return [f"score.{task}" for task in spec.tasks] if len(spec.tasks) > 1 else []
        case _:
            return [f"lambda.{each}" for each in _names("lambda", spec)]


def _orders_differ(spec: Spec) -> bool:
    """Whether there is more than one order to compare."""
    return len(spec.orders) > 1 and any(
        "order" in dimensions(spec, method) for method in spec.space.method
    )
