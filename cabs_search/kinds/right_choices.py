"""Right choices: a context with choices of which several may be right, as in TruthfulQA's MC2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import Item, Outcome, TaskFields, Texts, text_columns, to_host, widened
from cabs_search.kinds.causal import sums_by_part
from cabs_search.kinds.choices_by_likelihood import ChoicesByLikelihood
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_SHARES

if TYPE_CHECKING:
    from torch import Tensor

Flags = tuple[int, ...]


class RightChoices(ChoicesByLikelihood):
    """Choices that continue a context; a prediction is the right ones' share of the likelihoods.

    That share is the item's score as well, and its loss is minus the log of it. A label is a list
    of 1 for each choice that is right and 0 for each that is wrong.
    """

    name: ClassVar[str] = "right-choices"
    metrics: ClassVar[tuple[Metric, ...]] = OF_SHARES
    predicts: ClassVar[type[Any]] = float

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> Flags:
        """Return 1 for each right choice and 0 for each wrong one."""
        count = len(texts) - len(text_columns(task))
        is_list = isinstance(value, list) and len(value) == count
        if not is_list or not {1} <= set(value) <= {0, 1}:
            raise ValueError(
                f"{where}.label: a label must be a list of 1 (right) or 0 for each of {count}"
                f" choices, and one must be right, but column {task.label} has {value!r}"
            )
        return tuple(map(int, value))

    def placeholder_label(self, texts: Texts) -> Flags:
        """Return the first choice as the right one: a prediction is its share then."""
        return (1,) + (0,) * (len(texts) - 2)

    def marks(self, task: TaskFields, texts: Texts, label: Flags) -> list[int]:
        """Return the places of the right choices."""
        return [place for place, flag in enumerate(label) if flag]

    def item_label(self, label: Flags) -> float:
        """Return 1, the share that the right choices should have."""
        return 1.0

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return minus the log of the right choices' share of each item."""
        import torch

        sums = sums_by_part(widened(output), items)
        return torch.stack(
            [
                own.logsumexp(0) - own[item.marks].logsumexp(0)
                for own, item in zip(sums, items, strict=True)
            ]
        )

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score log-likelihoods, [targets]."""
        losses = self.losses(task, to_host(output), items)
        shares = (-losses.double()).exp().numpy()
        return Outcome(shares.astype("float32"), losses.numpy(), shares)

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return two shares."""
        return (0.5, 1.0), (1.0, 1.0)


RIGHT_CHOICES = RightChoices()
