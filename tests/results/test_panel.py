"""Tests of panels: metrics on bootstrap samples against the metrics, contrasts against scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cabs_search.kinds.base import Outcome
from cabs_search.results.as_reported import as_reported
from cabs_search.results.matrix import matrix
from cabs_search.results.panel import ItemScores, Panel
from cabs_search.results.tie_set import tie_set
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.spec.task import DataSource, Task
from cabs_search.stats.aggregate import MEAN, Aggregate, Smallest, WeightedSum
from cabs_search.stats.simultaneous import holm, resample_weights

ITEMS = 60


def task(**fields: Any) -> Task:
    return Task(dataset=DataSource(json="rows.jsonl"), text=fields.pop("text", "text"), **fields)


def values(kind: str, draw: np.random.Generator) -> Any:
    if kind == "regression":
        return draw.normal(size=ITEMS)
    if kind == "token-classification":
        words = [
            draw.integers(3, size=draw.integers(1, 6)).astype(str).tolist() for _ in range(ITEMS)
        ]
        return np.fromiter(words, dtype=object, count=ITEMS)
    return draw.integers(3, size=ITEMS)


@pytest.mark.parametrize(
    ("kind", "name", "arguments", "quick"),
    [
        ("classification", "matthews_correlation", {}, True),
        ("classification", "f1", {}, True),
        ("classification", "f1", {"average": "binary"}, True),
        ("classification", "f1", {"average": "micro"}, True),
        ("classification", "f1", {"average": "macro"}, True),
        ("classification", "f1", {"average": "weighted"}, True),
        ("classification", "f1", {"average": "macro", "labels": [0, 2]}, False),
        ("multiple-choice", "matthews_correlation", {}, True),
        ("multiple-choice", "f1", {"average": "macro"}, True),
        ("regression", "pearsonr", {}, True),
        ("regression", "spearmanr", {}, False),
        ("token-classification", "accuracy", {}, True),
        ("token-classification", "matthews_correlation", {}, True),
        ("token-classification", "f1", {"average": "micro"}, True),
        ("token-classification", "f1", {"average": "macro"}, True),
        ("token-classification", "f1", {"average": "weighted"}, True),
    ],
)
def test_a_metric_on_samples_is_the_metric_of_the_drawn_items(
    kind: str, name: str, arguments: dict[str, Any], quick: bool
) -> None:
    draw = np.random.default_rng(0)
    choices = {"choices": ("a", "b", "c")} if kind == "multiple-choice" else {}
    of = task(kind=kind, metric=name, metric_arguments=arguments, **choices)
    labels, predictions = values(kind, draw), [values(kind, draw) for _ in range(3)]
    if kind == "token-classification":  # as many words as are labelled
        predictions = [
            np.fromiter((list(reversed(w)) for w in labels), dtype=object, count=ITEMS),
            labels,
        ]
    elif name == "f1" and arguments.get("average", "binary") == "binary":
        labels, predictions = labels % 2, [p % 2 for p in predictions]
    elif name == "f1" and "labels" not in arguments:
        labels[0], predictions[0][1] = 7, 8  # classes that many samples do not have
    weights = np.concatenate(list(resample_weights(np.arange(ITEMS), 20, 0)))
    scores = [np.zeros(ITEMS)] * len(predictions)
    found = of.measure.resample(scores, predictions, labels, weights)
    for row, counts in zip(found, weights.astype(int), strict=True):
        drawn = np.repeat(np.arange(ITEMS), counts)
        assert row == pytest.approx(
            [of.measure.compute(p[drawn], labels[drawn]) for p in predictions], abs=1e-12
        )
    assert of.measure.is_quick == quick


def test_an_undefined_metric_is_0_on_samples_too() -> None:
    labels = np.zeros(ITEMS, dtype=np.int64)
    weights = np.concatenate(list(resample_weights(np.arange(ITEMS), 5, 0)))
    for name in ("matthews_correlation", "f1"):
        measure = task(metric=name).measure
        assert (measure.resample([labels], [labels], labels, weights) == 0).all()


def make_panel(
    count: int = 4, *, metric_name: str = "accuracy", together: int = 1, aggregate: Aggregate = MEAN
) -> tuple[Panel, dict[str, np.ndarray[Any, Any]]]:
    """Make candidates c0, c1, ... on tasks of 60 and 120 items, each worse than the one before."""
    draw = np.random.default_rng(5)
    names = {"large": 2 * ITEMS, "small": ITEMS}
    tasks = {name: {"dataset": {"json": "x"}, "text": "t", "metric": metric_name} for name in names}
    spec: Spec = parse(
        {"name": "x", "base": "b", "experts": {"small": "s", "large": "l"}, "tasks": tasks},
        locations=False,
    )
    labels = {name: draw.integers(2, size=size) for name, size in names.items()}
    hard = {name: draw.random(size) for name, size in names.items()}
    found, right = {}, {}
    for place in range(count):
        wrong = {name: hard[name] > 0.9 - 0.02 * place**2.5 for name in names}
        predictions = {name: labels[name] ^ wrong[name] for name in names}
        outcomes = {
            n: Outcome(1.0 - wrong[n].astype(np.float32), np.zeros(len(wrong[n])), predictions[n])
            for n in names
        }
        scores = {n: spec.tasks[n].measure.compute(predictions[n], labels[n]) for n in names}
        found[f"c{place}"] = ItemScores(tasks=outcomes, scores=scores)
        right[f"c{place}"] = np.concatenate([1.0 - wrong[name] for name in names])
    clusters = {name: np.arange(size) // together for name, size in names.items()}
    panel = Panel(
        spec.tasks, spec.seed, found, labels, clusters, replicates=2000, aggregate=aggregate
    )
    return panel, right


def test_a_contrast_is_the_mean_of_the_tasks_differences() -> None:
    panel, right = make_panel()
    (one,) = panel.contrasts([("c0", "c3")])
    parts = [right["c0"][:120] - right["c3"][:120], right["c0"][120:] - right["c3"][120:]]
    assert one.estimate == pytest.approx(np.mean([part.mean() for part in parts]))
    assert (one.wins, one.losses) == (int((right["c0"] > right["c3"]).sum()), 0)
    assert one.tests["McNemar exact"] == pytest.approx(stats.binomtest(one.wins, one.wins).pvalue)
    error = np.sqrt(sum(part.var(ddof=1) / part.size for part in parts)) / 2
    assert (one.interval[1] - one.interval[0]) / 2 == pytest.approx(1.97 * error, rel=0.1)


def test_a_contrast_of_weighted_tasks() -> None:
    weights = {"large": 1.2, "small": 0.4}  # as relative to an expert: they need not add up to 1
    panel, right = make_panel(aggregate=WeightedSum(weights))
    mean, _ = make_panel()
    same, _ = make_panel(aggregate=WeightedSum(dict.fromkeys(weights, 0.5)))
    (one,), (plain,), (equal,) = (p.contrasts([("c0", "c3")]) for p in (panel, mean, same))
    parts = [right["c0"][:120] - right["c3"][:120], right["c0"][120:] - right["c3"][120:]]
    shares = list(weights.values())
    assert one.estimate == pytest.approx(
        sum(share * part.mean() for share, part in zip(shares, parts, strict=True))
    )
    variances = [s**2 * p.var(ddof=1) / p.size for s, p in zip(shares, parts, strict=True)]
    error = np.sqrt(sum(variances))
    assert (one.interval[1] - one.interval[0]) / 2 == pytest.approx(1.97 * error, rel=0.1)
    t = one.estimate / error
    assert one.tests["paired t"] == pytest.approx(2 * stats.t.sf(t, 150), rel=0.5)
    assert equal.interval == pytest.approx(plain.interval)
    assert equal.p_value == plain.p_value
    assert equal.tests == pytest.approx(plain.tests)


def test_a_score_that_is_the_worst_task_is_so_in_every_sample() -> None:
    panel, right = make_panel(aggregate=Smallest())
    worst = [min(right[name][:120].mean(), right[name][120:].mean()) for name in panel.names]
    assert panel.scores == pytest.approx(np.array(worst))
    by_task = np.stack(list(panel.by_task.values()))
    assert (panel.replicates == by_task.min(axis=0)).all()
    (one,) = panel.contrasts([("c0", "c3")])
    assert set(one.tests) == {"bootstrap"}
    assert one.p_value == one.tests["bootstrap"] < 0.05
    low, high = panel.intervals()["c0"]
    assert low < panel.scores[0] < high


def test_a_family_of_contrasts_is_adjusted() -> None:
    panel, _ = make_panel()
    alone, family = (
        panel.contrasts([("c1", "c0")]),
        panel.contrasts([("c1", "c0"), ("c2", "c0"), ("c3", "c0")]),
    )
    assert family[0].p_value == alone[0].p_value
    assert [one.p_holm for one in family] == pytest.approx(holm([one.p_value for one in family]))
    assert any(one.p_holm > one.p_value for one in family)
    assert family[0].p_holm >= alone[0].p_holm
    assert (
        family[0].interval[0] < alone[0].interval[0] < alone[0].interval[1] < family[0].interval[1]
    )


def test_items_of_one_group_say_less() -> None:
    """Six groups of thirty items: few degrees of freedom, and few ways to flip."""
    alone, together = make_panel()[0], make_panel(together=30)[0]
    (one,), (grouped,) = (panel.contrasts([("c3", "c0")]) for panel in (alone, together))
    assert grouped.estimate == one.estimate
    assert grouped.p_value > 2 * one.p_value
    assert grouped.interval[0] < one.interval[0]
    assert together.own_interval("c0", "small")[0] != alone.own_interval("c0", "small")[0]


def test_the_ends_of_a_matrix_mirror_each_other() -> None:
    panel, _ = make_panel()
    found = matrix(panel, panel.names, ["a", "b", "c", "d"])
    assert found is not None
    low, high = np.array(found.low), np.array(found.high)
    assert low == pytest.approx(-high.T)
    assert found.labels == ("a", "b", "c", "d")
    assert matrix(panel, ["c0"], ["a"]) is None


def test_the_tie_set_in_words() -> None:
    panel, _ = make_panel()
    found = tie_set(panel, panel.names)
    assert found is not None
    assert found.labels == ("c0", "c1")
    assert found.text.startswith(
        "2 of 4 candidates cannot be told apart with 180 items; separating a gap of 0.5"
    )
    assert found.items_needed is not None
    assert f"{found.items_needed:,}" in found.text
    assert tie_set(panel, []) is None
    alone = tie_set(panel, ["c2"])
    assert alone is not None
    assert alone.text == "One of the candidates was confirmed: there is nothing to tell it from."
    clear = tie_set(panel, ["c0", "c3"])
    assert clear is not None
    assert clear.items_needed is None
    assert clear.text == "With 180 items only one of 2 candidates can be the best (95 %)."


def test_a_metric_that_is_no_mean_is_tested_by_bootstrap() -> None:
    panel, _ = make_panel(metric_name="matthews_correlation")
    (one,) = panel.contrasts([("c0", "c2")])
    assert set(one.tests) == {"bootstrap"}
    assert one.p_value == one.tests["bootstrap"] < 0.05
    low, high = panel.own_interval("c0", "small")
    assert low < panel.scores[0] + 0.2
    assert low < high


def test_tops_of_searches_are_reported_as_papers_do() -> None:
    found = as_reported({"a": [0.8, 0.81, 0.7, 0.82], "b": [0.9, 0.91, 0.92], "c": [0.5]}, 3)
    assert [one.label for one in found] == ["a", "b"]
    assert found[0].mean == pytest.approx(0.81)
    expected = stats.ttest_ind([0.9, 0.91, 0.92], [0.8, 0.81, 0.82])
    assert (found[1].student_t, found[1].student_p) == pytest.approx(
        (expected.statistic, expected.pvalue)
    )
    assert found[0].against is None
    assert found[1].against == "a"
