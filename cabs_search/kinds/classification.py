"""Classification: a text or a pair, and one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import Item, Outcome, TaskFields, Texts, output_of, to_host, widened
from cabs_search.kinds.classes import Choosing, class_of, mean_log_probabilities, score_classes
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_CLASSES

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Choosing):
    """A text or a pair, and one class: a number, or a name in the head's ``label2id``.

    An item's score is 1 if its class is right, else 0.
    """

    name: ClassVar[str] = "classification"
    head: ClassVar[str] = "ForSequenceClassification"
    metrics: ClassVar[tuple[Metric, ...]] = OF_CLASSES
    predicts: ClassVar[type[Any]] = int
    ensembles: ClassVar[tuple[str, ...]] = ("mean",)

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> int:
        """Return the head's class."""
        return class_of(where, task, config, value)

    def answer_logits(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the logits of each item's classes."""
        logits: Tensor = widened(output.logits)
        return logits

    def averaged(self, outputs: Sequence[Any], items: Sequence[Item]) -> Any:
        """Return logits of the mean probabilities."""
        return output_of(mean_log_probabilities([output.logits for output in outputs]))

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score logits of shape [items, classes]."""
        return score_classes(to_host(output.logits), items)


CLASSIFICATION = Classification()
