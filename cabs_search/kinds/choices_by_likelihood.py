"""Choices by likelihood: a context, and continuations of which a language model takes one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import Item, Outcome, TaskFields, Texts, text_columns, to_host, widened
from cabs_search.kinds.causal import Continuing, Request, as_targets, joined, sums_by_part
from cabs_search.kinds.classes import class_losses, padded
from cabs_search.kinds.multiple_choice import MultipleChoice
from cabs_search.metrics.base import Metric
from cabs_search.metrics.choices import ChoiceAccuracy
from cabs_search.metrics.registry import OF_CHOICES

if TYPE_CHECKING:
    from torch import Tensor


class ChoicesByLikelihood(Continuing, MultipleChoice):
    """Choices that continue a context; the likeliest is taken, by the metric's measure of length.

    A space is put between a context and a choice, and between a pair of texts, unless there is one.
    An item's score is 1 if the choice is right, else 0. Its loss is minus the log of the right
    choice's share of all choices' likelihoods.
    """

    name: ClassVar[str] = "choices-by-likelihood"
    metrics: ClassVar[tuple[Metric, ...]] = OF_CHOICES
    harness_text: ClassVar[str] = "context"
    ensembles: ClassVar[tuple[str, ...]] = ("mean", "packllm")

    def texts(self, where: str, task: TaskFields, row: Mapping[str, Any]) -> Texts:
        """Return the context, of a pair both texts, and the choices."""
        texts = super().texts(where, task, row)
        if not all(texts[len(text_columns(task)) :]):
            raise ValueError(f"{where}.choices: every choice must have a character, but one is ''")
        return texts

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> Any:
        """Return the index of the right choice from its text, index, index as text or letter."""
        choices = texts[len(text_columns(task)) :]
        if not isinstance(value, str) or value not in choices:
            return super().label(where, task, config, texts, value)
        index = choices.index(value)
        try:
            place = super().label(where, task, config, texts, value)
        except ValueError:  # as most texts, it is no place
            return index
        if place != index:
            raise ValueError(
                f"{where}.label: {value!r} is the text of choice {index} and the place of choice"
                f" {place}; column {task.label} must have places as numbers"
            )
        return index

    def requests(self, task: TaskFields, texts: Texts) -> list[Request]:
        """Return the context with each choice."""
        given = len(text_columns(task))
        context = texts[0]
        for text in texts[1:given]:
            context += joined(context, text)
        return [(context, joined(context, choice)) for choice in texts[given:]]

    def marks(self, task: TaskFields, texts: Texts, label: Any) -> Any:
        """Return the size of each choice."""
        assert isinstance(task.measure, ChoiceAccuracy)
        return tuple(map(task.measure.size, texts[len(text_columns(task)) :]))

    def answer_logits(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the log-likelihoods of each item's choices."""
        return padded(sums_by_part(widened(output), items))

    def averaged(self, outputs: Sequence[Any], items: Sequence[Item]) -> Any:
        """Return log-likelihoods of the mixture of the models: each choice's is the mean."""
        import torch

        sums = [torch.cat(sums_by_part(output, items)).double() for output in outputs]
        means = torch.stack(sums).logsumexp(0) - math.log(len(sums))
        return as_targets(means.float(), items)

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score log-likelihoods, [targets]."""
        sums = sums_by_part(to_host(output), items)
        best = [
            int((own.numpy() / item.marks).argmax()) for own, item in zip(sums, items, strict=True)
        ]
        predictions = self.values(best)
        scores = predictions == self.values([item.label for item in items])
        return Outcome(
            scores.astype("float32"), class_losses(padded(sums), items).numpy(), predictions
        )


CHOICES_BY_LIKELIHOOD = ChoicesByLikelihood()
