"""MLflow's saved views as code: ``dashboards/*.yaml`` as the tag of an experiment that MLflow's UI reads.

The format is MLflow's own (seen in 3.17): a JSON value whose ``state`` is deflated; charts are drawn over the runs that
the filter lets through, without which nested runs are collapsed and every chart is empty.
"""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from cabs_search.baselines import dimensions
from cabs_search.spec import Spec

TAG = "mlflow.sharedViewState."
SECTION = "candidates"
MOST_RUNS = 1000
"""Runs that a parallel chart draws at the most."""


def tags(spec: Spec, parent_id: str) -> dict[str, str]:
    """The experiment tags of every view that ships, for one study."""
    return dict(_tag(yaml.safe_load(text), spec, parent_id) for text in _definitions())


def comparison_url(root: str, experiment_id: str) -> str:
    """The address of a comparison's studies, the best first."""
    query = {"searchFilter": "tags.`cabs_search.study` LIKE '%'", "orderByKey": "metrics.`confirm.score`"}
    return f"{root}/#/experiments/{experiment_id}/runs?" + urlencode(query | {"orderByAsc": "false"})


def url(root: str, experiment_id: str, parent_id: str, *, charts: bool) -> str:
    """The address of a study's candidates, best first, in the UI at ``root``: as charts or as a table."""
    page = f"{root}/#/experiments/{experiment_id}/runs?"
    if charts:
        key = yaml.safe_load(next(_definitions()))["key"]
        return page + urlencode({"viewStateShareKey": f"{key}-{parent_id[:8]}", "compareRunsMode": "CHART"})
    filter_ = f"tags.`mlflow.parentRunId` = '{parent_id}'"
    return page + urlencode({"searchFilter": filter_, "orderByKey": "metrics.`score`", "orderByAsc": "false"})


def _definitions() -> Iterator[str]:
    """The texts of the views: in the package once it is installed, beside it in a checkout."""
    for folder in (Path(str(files("cabs_search"))) / "dashboards", Path(__file__).parents[1] / "dashboards"):
        if folder.is_dir():
            yield from (path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml")))
            return


def _tag(view: Mapping[str, Any], spec: Spec, parent_id: str) -> tuple[str, str]:
    state = {
        "searchFilter": view["filter"].format(parent=parent_id),
        "orderByKey": view["order"],
        "orderByAsc": False,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [
            {
                "uuid": SECTION,
                "name": view["name"],
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "compareRunCharts": [chart for made in view["charts"] for chart in _charts(made, spec)],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    value = {"name": f"{view['name']} of {spec.name}", "createdAt": 0, "state": f"deflate;{packed}"}
    return f"{TAG}{view['key']}-{parent_id[:8]}", json.dumps(value)


def _params(param: str, spec: Spec) -> list[str]:
    """The parameters that a pattern stands for: only those that every candidate has, as others empty the chart."""
    if param.startswith("rank") and not all("order" in dimensions(spec, method) for method in spec.space.method):
        return []
    if param.startswith("lambda") and spec.space.groups:
        return [param.replace("*", f"{e}.{g}") for e in spec.experts for g, _ in spec.space.groups]
    return [param.replace("*", e) for e in spec.experts] if "*" in param else [param]


def _charts(chart: Mapping[str, Any], spec: Spec) -> Iterator[dict[str, Any]]:
    for expert in spec.experts if chart.get("each") == "expert" else [""]:
        title = chart["title"].format(expert=expert)
        made = {
            "uuid": uuid.uuid5(uuid.NAMESPACE_OID, title).hex,
            "type": chart["type"],
            "metricSectionId": SECTION,
            "deleted": False,
            "isGenerated": False,
            "displayName": title,
            "runsCountToCompare": MOST_RUNS,
        }
        if chart["type"] == "PARALLEL":
            params = [name for param in chart["params"] for name in _params(param, spec)]
            yield made | {"selectedParams": params, "selectedMetrics": chart["metrics"], "showAllRuns": True}
        else:
            axes = {f"{axis}axis": {k: v.format(expert=expert) for k, v in chart[axis].items()} for axis in ("x", "y")}
            yield made | axes
