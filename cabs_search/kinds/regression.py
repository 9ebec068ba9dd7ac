"""Regression: a text or a pair, and a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import (
    Item,
    Kind,
    Outcome,
    TaskFields,
    Texts,
    output_of,
    to_host,
    widened,
)
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_NUMBERS

if TYPE_CHECKING:
    from torch import Tensor

MAX_LABEL = 1e9
"""Largest size of a label, so that squared errors are finite."""


class Regression(Kind):
    """A text or a pair, and a number; the head has one output.

    An item's score is minus its squared error, which is the loss.
    """

    name: ClassVar[str] = "regression"
    head: ClassVar[str] = "ForSequenceClassification"
    metrics: ClassVar[tuple[Metric, ...]] = OF_NUMBERS
    predicts: ClassVar[type[Any]] = float
    has_log_losses: ClassVar[bool] = False
    ensembles: ClassVar[tuple[str, ...]] = ("mean",)

    def check_head(self, where: str, model: str, config: Any) -> None:
        """Raise ValueError unless the head is one for sequences with one output."""
        super().check_head(where, model, config)
        if config.num_labels != 1:
            raise ValueError(
                f"{where}.kind: {self} needs a head of one output, but {model} has"
                f" {config.num_labels}"
            )

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> float:
        """Return the number."""
        if not isinstance(value, (int, float)) or not abs(value) <= MAX_LABEL:
            raise ValueError(
                f"{where}.label: a label must be a number, at most {MAX_LABEL:g}, but column"
                f" {task.label} has {value!r}"
            )
        return float(value)

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the squared error of each item."""
        return _squared_errors(widened(output.logits), items)

    def averaged(self, outputs: Sequence[Any], items: Sequence[Item]) -> Any:
        """Return the mean predictions."""
        import torch

        logits = torch.stack([output.logits.double() for output in outputs])
        return output_of(logits.mean(0).float())

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score logits of shape [items, 1]."""
        logits = to_host(output.logits)
        losses = _squared_errors(logits, items).numpy()
        return Outcome(-losses, losses, logits[:, 0].double().numpy())

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[float], Sequence[float]]:
        """Return three numbers, all predicted right."""
        return (0.0, 0.5, 2.0), (0.0, 0.5, 2.0)


def _squared_errors(logits: Tensor, items: Sequence[Item]) -> Tensor:
    """Return squared errors in the dtype of ``logits``; in between float64, as labels are."""
    import torch

    labels = torch.tensor([item.label for item in items], dtype=torch.float64, device=logits.device)
    return (logits[:, 0].double() - labels).square().to(logits.dtype)


REGRESSION = Regression()
