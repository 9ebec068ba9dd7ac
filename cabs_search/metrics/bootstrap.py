"""Metrics on bootstrap samples of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cabs_search.metrics.metrics import Values, _flat, metric
from cabs_search.spec.task import OF_CLASSES, Task

COUNTED_AVERAGES = ("binary", "micro", "macro", "weighted")
"""Those of F1 that are a few sums over items, as the other metrics of classes are."""


def is_mean(task: Task) -> bool:
    """Whether a task's metric is the mean of its items' scores, on which cheaper statistics
    rest.
    """
    match task.kind:
        case "question-answering":
            return True
        case "classification" | "multiple-choice":
            return task.metric in ("accuracy", "exact_match")
        case "regression" | "token-classification":
            return False


def is_quick(task: Task) -> bool:
    """Whether a metric on bootstrap samples is a few sums over items, see ``resampled``."""
    match task.kind:
        case "question-answering":
            return True
        case "regression":
            return task.metric == "pearsonr"
        case "classification" | "multiple-choice" | "token-classification" if task.metric == "f1":
            return (
                task.metric_arguments.keys() <= {"average"} and average_of(task) in COUNTED_AVERAGES
            )
    return task.metric in OF_CLASSES


def average_of(task: Task) -> Any:
    return task.metric_arguments.get("average", "binary")


def resampled(
    task: Task,
    scores: Sequence[Values],
    predictions: Sequence[Values],
    labels: Values,
    weights: Values,
) -> npt.NDArray[np.float64]:
    """A task's metric of k candidates on bootstrap samples of its items, [B, k].

    Args:
        task: of which the metric is.
        scores: of items by candidate, k times [n]; read where the metric is their mean.
        predictions: by candidate, k times [n].
        labels: [n].
        weights: how often each item stands in each sample, [B, n].

    """
    if is_mean(task):
        return np.asarray(
            weights @ np.stack(scores, axis=1) / weights.sum(axis=1, keepdims=True),
            dtype=np.float64,
        )
    if not is_quick(task):
        places = np.arange(len(labels))
        draws = [np.repeat(places, row.astype(np.int64)) for row in weights]
        return np.array(
            [[metric(task, p[draw], labels[draw]) for p in predictions] for draw in draws]
        )
    wide = weights.astype(np.float64)
    if task.kind == "regression":
        return np.stack([_pearson_of_draws(found, labels, wide) for found in predictions], axis=1)
    return _classes_of_draws(task, predictions, labels, wide)


def _pearson_of_draws(
    predictions: Values, labels: Values, weights: Values
) -> npt.NDArray[np.float64]:
    """Pearson's correlation on samples, [B]; 0 where it is undefined."""
    x, y = predictions - predictions.mean(), labels - labels.mean()
    count = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / count, weights @ y / count
    var_x, var_y = weights @ x**2 / count - mean_x**2, weights @ y**2 / count - mean_y**2
    return _ratio(
        weights @ (x * y) / count - mean_x * mean_y,
        np.sqrt(np.clip(var_x, 0, None) * np.clip(var_y, 0, None)),
    )


def _classes_of_draws(
    task: Task, predictions: Sequence[Values], labels: Values, weights: Values
) -> npt.NDArray[np.float64]:
    """A metric of classes on samples, [B, k], from how often each class is right, found and
    there.
    """
    of_words = task.kind == "token-classification"
    lists = [(_flat(values) if of_words else values).tolist() for values in (labels, *predictions)]
    classes = sorted(set().union(*lists))
    code = {name: place for place, name in enumerate(classes)}
    there, *found = (np.array([code[name] for name in names]) for names in lists)
    item = np.repeat(np.arange(len(labels)), [len(words) for words in labels] if of_words else 1)

    def drawn(codes: Values, counted: Values) -> Values:
        """How often each class stands in each sample, [B, classes]."""
        cells = (item * len(classes) + codes)[counted]
        of_items = np.bincount(cells, minlength=len(labels) * len(classes)).reshape(len(labels), -1)
        return np.asarray(weights @ of_items)

    every = np.ones(len(item), bool)
    true = drawn(there, every)
    return np.stack(
        [_from_counts(task, classes, drawn(c, c == there), drawn(c, every), true) for c in found],
        axis=1,
    )


def _from_counts(
    task: Task, classes: Sequence[Any], right: Values, found: Values, there: Values
) -> npt.NDArray[np.float64]:
    """The metric from counts of each class, all [B, classes]; as sklearn has it, 0 where it is
    undefined.
    """
    count, hits = there.sum(axis=1), right.sum(axis=1)
    if task.metric == "matthews_correlation":  # of several classes: Gorodkin 2004
        above = count * hits - (found * there).sum(axis=1)
        return _ratio(
            above,
            np.sqrt((count**2 - (found**2).sum(axis=1)) * (count**2 - (there**2).sum(axis=1))),
        )
    if task.metric != "f1" or average_of(task) == "micro":
        return _ratio(hits, count)
    each = _ratio(2 * right, found + there)
    match average_of(task):
        case "macro":  # of the classes that the sample has
            return _ratio(each.sum(axis=1), (found + there > 0).sum(axis=1))
        case "weighted":
            return _ratio((each * there).sum(axis=1), count)
    return np.asarray(each[:, [name == 1 for name in classes]].sum(axis=1), dtype=np.float64)


def _ratio(above: Values, below: Values) -> npt.NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 1e-12)
