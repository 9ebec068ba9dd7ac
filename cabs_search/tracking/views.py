"""Saved views of MLflow's UI, made of ``dashboards/*.yaml``, as tags of an experiment.

A tag's value is MLflow's own JSON, whose ``state`` is deflated. Charts show the runs that the
filter lets through: without one, nested runs are collapsed and every chart is empty. A chart that
would have no data in a study is left out, and so is a view that has no chart left.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import yaml

from cabs_search.common.files import shipped_folder
from cabs_search.search.candidates import Candidates

SINCE = (3, 15)
"""The first MLflow whose UI reads such views: its pull requests 24359 and 24360."""
TAG = "mlflow.sharedViewState."
MAX_RUNS = 1000
"""Runs that a chart draws at most."""
MAX_CHARTS = 12
"""Charts of a section: nobody looks at more, and a tag's length is limited."""
MAX_PAIRS = 6
"""Pairs that are all drawn; of more, every name is paired with the next one only."""
MAX_AXES = 24
"""Params of a parallel chart."""
SECTION = {"display": True, "isReordered": False, "deleted": False, "isGenerated": False}
CHART = {"deleted": False, "isGenerated": False, "runsCountToCompare": MAX_RUNS}
OTHERS = SECTION | {"name": "Model metrics", "display": False}
"""The section to which MLflow adds a chart of every metric that has none; closed."""
Kind = Literal["study", "value", "comparison"]
"""Subject of a view: a study, a value of a comparison, a whole comparison."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A saved view."""

    key: str
    """Its name in addresses; the same whenever it is written."""
    name: str
    """Its name in MLflow's UI."""
    state: Mapping[str, Any]
    """MLflow's own: filter, order, charts."""

    def url(self, root: str, experiment_id: str) -> str:
        """Return its address in the UI at ``root``."""
        mode = {"compareRunsMode": "CHART"} if self.state["compareRunCharts"] else {}
        query = urlencode({"viewStateShareKey": self.key} | mode)
        return f"{runs_url(root, experiment_id)}&{query}"

    @property
    def tag(self) -> tuple[str, str]:
        """Name and value of the experiment's tag that holds the view."""
        packed = base64.b64encode(zlib.compress(json.dumps(self.state).encode())).decode()
        value = {"name": self.name, "createdAt": 0, "state": f"deflate;{packed}"}
        return TAG + self.key, json.dumps(value)


def are_read_by(version: str) -> bool:
    """Tell whether the UI of an MLflow of this version reads saved views."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= SINCE


def runs_url(root: str, experiment_id: str) -> str:
    """Return the address of an experiment's runs in the UI, in its face for models and runs."""
    return f"{root}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def found_in(tags: Mapping[str, str], of: str) -> list[View]:
    """Return the views of a study or comparison that an experiment's tags hold."""
    views = []
    for tag, value in sorted(tags.items()):
        if tag.startswith(TAG) and tag.endswith(f"-{of[:8]}"):
            content = json.loads(value)
            packed = base64.b64decode(content["state"].removeprefix("deflate;"))
            state = json.loads(zlib.decompress(packed))
            views.append(View(key=tag.removeprefix(TAG), name=content["name"], state=state))
    return views


def made_for(
    kind: Kind, candidates: Candidates, tasks: Sequence[str], of: str, name: str
) -> list[View]:
    """Return the views of one study or comparison.

    Args:
        kind: which views.
        candidates: the study's, or those of one study of the comparison.
        tasks: names.
        of: id of the study's parent run; of a comparison, the record's id.
        name: shown to people.

    """
    each, names = _each(candidates, tasks), _names(candidates, tasks)
    views = []
    for path in sorted(shipped_folder("dashboards").glob("*.yaml")):
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
        if kind in definition["of"]:
            for words in each[definition.get("each", "once")]:
                view = _view(definition, each, names, {"of": of} | words, name)
                if view.state["compareRunCharts"] or not definition["charts"]:
                    views.append(view)
    return views


def _view(
    definition: Mapping[str, Any],
    each: Mapping[str, list[dict[str, str]]],
    names: Mapping[str, list[str]],
    words: Mapping[str, str],
    name: str,
) -> View:
    """Fill in the definition of a view."""
    key = "-".join(filter(None, (definition["key"], words.get("method"), words["of"][:8])))
    sections: list[dict[str, Any]] = []
    charts: list[dict[str, Any]] = []
    for number, section in enumerate(definition["charts"]):
        section_key = f"{key}-{number}"
        made = [
            _chart(section["chart"], names, {**words, **more}, section_key, count)
            for count, more in enumerate(each[section.get("each", "once")])
        ]
        charts += made
        if made:
            heading = {"uuid": section_key, "name": section["title"]}
            shape = {"columns": section["across"], "cardHeight": section["height"]}
            sections.append(SECTION | heading | shape)
    columns = [
        f"{kind}.`{column}`"
        for kind in ("metrics", "params")
        for column in _filled(definition["columns"].get(kind, []), names, words)
    ]
    state = {
        "searchFilter": definition["filter"].format(**words),
        "orderByKey": f"metrics.`{definition['best']}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "runListHidden": True,
        "isAccordionReordered": True,
        "compareRunSections": [*sections, OTHERS | {"uuid": f"{key}-others"}],
        "compareRunCharts": charts,
    }
    return View(key=key, name=f"{definition['name'].format(**words)} of {name}", state=state)


def _chart(
    definition: Mapping[str, Any],
    names: Mapping[str, list[str]],
    words: Mapping[str, str],
    section: str,
    number: int,
) -> dict[str, Any]:
    """Fill in the definition of a chart, whose fields are MLflow's."""
    place = {"uuid": f"{section}-{number}", "metricSectionId": section}
    chart: dict[str, Any] = place | CHART | _filled(definition, names, words)
    if "selectedParams" in chart:
        chart["selectedParams"] = chart["selectedParams"][:MAX_AXES]
    return chart


def _filled(value: Any, names: Mapping[str, list[str]], words: Mapping[str, str]) -> Any:
    """Replace {words} in texts, and names with a ``*`` in lists by those they stand for."""
    match value:
        case str():
            return value.format(**words)
        case dict():
            return {key: _filled(inner, names, words) for key, inner in value.items()}
        case list():
            return [name for item in value for name in names.get(item, [item])]
        case _:
            return value


def _each(candidates: Candidates, tasks: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Return the words of each chart or view that a definition asks for with ``each``."""
    lambdas, methods = _lambdas(candidates), candidates.space.method
    of_tasks = [{"a": task} for task in tasks[:MAX_CHARTS]]
    return {
        "once": [{}],
        "method": [{"method": candidates.method(name).name} for name in methods],
        "lambda": [{"a": name} for name in lambdas[:MAX_CHARTS]],
        "lambda-pair": _pairs(lambdas),
        "task": of_tasks,
        "task-pair": _pairs(tasks),
        "once-if-tasks": [{}] if len(tasks) > 1 else [],
        "once-if-orders": [{}] if _orders_differ(candidates) else [],
        "task-if-orders": of_tasks if _orders_differ(candidates) else [],
    }


def _names(candidates: Candidates, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Return what names with a ``*`` stand for: values that every candidate has.

    A value that some candidates lack empties the chart.
    """
    has_order = ("order" in candidates.dimensions(name) for name in candidates.space.method)
    has_orders = all(has_order) and _orders_differ(candidates)
    return {
        "lambda.*": [f"lambda.{name}" for name in _lambdas(candidates)],
        "rank.*": [f"rank.{e}" for e in candidates.experts] if has_orders else [],
        "score.*": [f"score.{task}" for task in tasks] if len(tasks) > 1 else [],
    }


def _lambdas(candidates: Candidates) -> list[str]:
    """Return the λ that vary freely: of experts, or of their groups of tensors."""
    first = candidates.experts[0]
    is_shared = candidates.space.lambda_.shared
    return [str(key) for key in candidates.lambda_keys if key.expert == first or not is_shared]


def _pairs(names: Sequence[str]) -> list[dict[str, str]]:
    pairs = list(itertools.combinations(names, 2))
    if len(pairs) > MAX_PAIRS:
        pairs = list(itertools.pairwise([*names, names[0]]))[:MAX_CHARTS]
    return [{"a": first, "b": second} for first, second in pairs]


def _orders_differ(candidates: Candidates) -> bool:
    """Tell whether there is more than one order to compare."""
    has_order = ("order" in candidates.dimensions(name) for name in candidates.space.method)
    return len(candidates.orders) > 1 and any(has_order)
