"""A metric is added from outside: the file of docs/add-a-metric.md and its lines in a list."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import METRICS
from tests.support.outside import add_value, blocks_of, copy_program, python

PAGE = "add-a-metric.md"
OVER_WORDS = """
source, name = {"csv": "x"}, "balanced_accuracy"
words = Task(kind="token-classification", dataset=source, text="t", metric=name)
labels = words.kind.values([["O", "O", "O"], ["B"]])
predictions = words.kind.values([["O", "O", "B"], ["B"]])
print(words.measure.compute(predictions, labels))
print(words.measure.resample([], [predictions], labels, np.array([[1, 1], [2, 1]])))
"""


def test_an_added_metric_is_computed_and_resampled(tmp_path: Path) -> None:
    program = copy_program(tmp_path / "program")
    add_value(program, PAGE, "cabs_search/metrics/registry.py")
    printed = python(program, "-c", blocks_of(PAGE, "python")[1] + OVER_WORDS).split()
    values = [float(word.strip("[]")) for word in printed if word.strip("[]") and word != "True"]
    whole, other = (2 / 3 + 1) / 2, (2 / 3 + 1) / 2  # the second sample has items 1, 1, 2 and 3
    assert values == pytest.approx([whole, whole, other, whole, whole, whole])
    assert "True" in printed


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: f"{type(metric).__name__}")
def test_a_metric_is_itself_in_another_process(metric: Metric) -> None:
    assert pickle.loads(pickle.dumps(metric)) == metric
