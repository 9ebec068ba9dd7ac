"""A task's metric, from predictions and labels alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from cabs_search.common.formats import first_line
from cabs_search.metrics import squad
from cabs_search.spec.task import CORRELATIONS, OF_CLASSES, Task

Values = npt.NDArray[Any]
"""One value an item, [items]: int64, float64, or objects (texts, lists)."""


def metric(task: Task, predictions: Values, labels: Values) -> float:
    """A task's metric over items; by name through ``evaluate`` where it is not an ordinary one."""
    name, arguments = task.metric, task.metric_arguments
    match task.kind:
        case "question-answering":
            _no_arguments(arguments)
            return float(
                np.mean([squad.score(name, p, a) for p, a in zip(predictions, labels, strict=True)])
            )
        case "token-classification" if name in OF_CLASSES:
            return _of_classes(name, _flat(predictions), _flat(labels), arguments)
        case "regression" if name in CORRELATIONS:
            _no_arguments(arguments)
            return _correlation(name, predictions, labels)
        case "classification" | "multiple-choice" if name in OF_CLASSES:
            return _of_classes(name, predictions, labels, arguments)
    return _by_name(name, predictions, labels, arguments)


def check_metric(where: str, task: Task, names: tuple[str, ...]) -> None:
    """Raises ValueError where a task's metric cannot be computed; ``names`` are the head's
    classes.
    """
    try:
        metric(task, *_samples(task, names))
    except Exception as error:
        raise ValueError(
            f"{where}.metric: {task.metric} cannot be computed: {first_line(error)}"
        ) from error


def values_of(task: Task, found: list[Any]) -> Values:
    """Labels or predictions of a task, one an item, as an array."""
    match task.kind:
        case "classification" | "multiple-choice":
            return np.array(found, dtype=np.int64)
        case "regression":
            return np.array(found, dtype=np.float64)
        case "question-answering" | "token-classification":
            return np.fromiter(found, dtype=object, count=len(found))


def _samples(task: Task, names: tuple[str, ...]) -> tuple[Values, Values]:
    """Predictions and labels such as a task may have."""
    match task.kind:
        case "classification":
            labels = values_of(task, list(range(len(names))))
        case "multiple-choice":
            labels = values_of(task, [0, 1, 2])
        case "regression":
            labels = values_of(task, [0.0, 0.5, 2.0])
        case "question-answering":
            return values_of(task, ["an answer"]), values_of(task, [["answer", "other"]])
        case "token-classification":
            labels = values_of(task, [list(names)])
    return labels, labels


def _flat(lists: Values) -> Values:
    return np.array(list(itertools.chain.from_iterable(lists)))


def _no_arguments(arguments: dict[str, Any]) -> None:
    if arguments:
        raise ValueError(f"it takes no arguments here, but got {', '.join(arguments)}")


def _of_classes(name: str, predictions: Values, labels: Values, arguments: dict[str, Any]) -> float:
    if name == "f1":
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, zero_division=0.0, **arguments))
    _no_arguments(arguments)
    if name == "matthews_correlation":
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(labels, predictions))
    return float(np.mean(predictions == labels))


def _correlation(name: str, predictions: Values, labels: Values) -> float:
    """Pearson's correlation of the values, or (Spearman's) of their ranks; 0 where either are all
    equal.

    A correlation with a constant is undefined: 0 says that the predictions tell nothing of the
    labels.
    """
    from scipy.stats import rankdata

    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    if name == "spearmanr":
        predictions, labels = rankdata(predictions), rankdata(labels)
    return float(np.corrcoef(predictions, labels)[0, 1])


def _by_name(name: str, predictions: Values, labels: Values, arguments: dict[str, Any]) -> float:
    found = _evaluate_module(name).compute(
        predictions=predictions.tolist(), references=labels.tolist(), **arguments
    )
    value = "overall_f1" if name == "seqeval" else name
    if value not in found and len(found) != 1:
        raise ValueError(f"of its values ({', '.join(found)}) none is called {name}")
    return float(found[value] if value in found else next(iter(found.values())))


_modules: dict[str, Any] = {}


def _evaluate_module(name: str) -> Any:
    if name not in _modules:
        import evaluate

        _modules[name] = evaluate.load(name)
    return _modules[name]
