"""Choices by likelihood: a context, and continuations of which a language model takes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import (
    Item,
    Outcome,
    TaskFields,
    Texts,
    class_losses,
    text_columns,
    to_host,
    widened,
)
from cabs_search.kinds.causal import (
    Causal,
    can_pack,
    is_short_packed,
    sums_by_part,
    to_score,
    to_score_packed,
    tokens_of_pairs,
)
from cabs_search.kinds.multiple_choice import MultipleChoice
from cabs_search.metrics.base import Metric
from cabs_search.metrics.choices import ChoiceAccuracy
from cabs_search.metrics.registry import OF_CHOICES

if TYPE_CHECKING:
    from torch import Tensor


class ChoicesByLikelihood(Causal, MultipleChoice):
    """Choices that continue a context; the likeliest is taken, by the metric's measure of length.

    A space is put between a context and a choice, and between a pair of texts, unless there is one.
    An item's score is 1 if the choice is right, else 0. Its loss is minus the log of the right
    choice's share of all choices' likelihoods.
    """

    name: ClassVar[str] = "choices-by-likelihood"
    metrics: ClassVar[tuple[Metric, ...]] = OF_CHOICES
    default_max_length: ClassVar[int] = 2048

    def texts(self, where: str, task: TaskFields, row: Mapping[str, Any]) -> Texts:
        """Return the context, of a pair both texts, and the choices."""
        texts = super().texts(where, task, row)
        if not all(texts[len(text_columns(task)) :]):
            raise ValueError(f"{where}.choices: every choice must have a character, but one is ''")
        return texts

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> int:
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

    def encode(
        self, where: str, task: TaskFields, tokenizer: Any, config: Any, texts: Texts, label: int
    ) -> Item:
        """Tokenize each choice with the context, of which the first tokens are cut if need be."""
        assert isinstance(task.measure, ChoiceAccuracy)
        given = len(text_columns(task))
        context, *choices = texts[0], *texts[given:]
        for text in texts[1:given]:
            context += _join(context, text)
        sequences, counts = [], []
        for tokens, count in tokens_of_pairs(
            where, tokenizer, context, [_join(context, choice) for choice in choices]
        ):
            if not 0 < count <= task.max_length:
                raise ValueError(
                    f"{where}.max_length: a choice must have 1 to {task.max_length} tokens, but got"
                    f" {count} after {context[-40:]!r}"
                )
            sequences.append(tokens[-(task.max_length + 1) :])
            counts.append(count)
        is_packed = can_pack(config, task.max_length) and is_short_packed(sequences)
        score = to_score_packed if is_packed else to_score
        sizes = tuple(map(task.measure.size, choices))
        return Item(label=label, marks=sizes, **score(sequences, counts))

    def shape_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch as it is."""
        return batch

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the cross-entropy of each item's choices."""
        return class_losses(_padded(sums_by_part(widened(output), items)), items)

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score log-likelihoods, [targets]."""
        sums = sums_by_part(to_host(output), items)
        best = [
            int((own.numpy() / item.marks).argmax()) for own, item in zip(sums, items, strict=True)
        ]
        predictions = self.values(best)
        scores = predictions == self.values([item.label for item in items])
        return Outcome(
            scores.astype("float32"), class_losses(_padded(sums), items).numpy(), predictions
        )


def _join(before: str, text: str) -> str:
    """Return the text with a space before it, unless there is one."""
    is_apart = before.endswith(" ") or not text or text[0].isspace()
    return text if is_apart else f" {text}"


def _padded(sums: Sequence[Tensor]) -> Tensor:
    """Return log-likelihoods as [items, most choices], -inf where an item has fewer."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(list(sums), batch_first=True, padding_value=-torch.inf)


CHOICES_BY_LIKELIHOOD = ChoicesByLikelihood()
