"""Multiple choice: a context, maybe a question, and choices of which one is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import (
    Item,
    Outcome,
    TaskFields,
    Texts,
    check_texts,
    output_of,
    sequences_of,
    text_columns,
    to_host,
    widened,
)
from cabs_search.kinds.classes import Choosing, mean_log_probabilities, padded, score_classes
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_CLASSES

if TYPE_CHECKING:
    from torch import Tensor


class MultipleChoice(Choosing):
    """Choices of which one is right; rows may have more or fewer of them.

    Each choice is a sequence of its own: the pair (context, "question choice"). An item's score is
    1 if the choice is right, else 0.
    """

    name: ClassVar[str] = "multiple-choice"
    head: ClassVar[str] = "ForMultipleChoice"
    metrics: ClassVar[tuple[Metric, ...]] = OF_CLASSES
    predicts: ClassVar[type[Any]] = int
    takes_choices: ClassVar[bool] = True
    ensembles: ClassVar[tuple[str, ...]] = ("mean",)

    def check_choices(self, choices: str | tuple[str, ...] | None) -> None:
        """Raise ValueError unless there is a column of lists, or two columns at least."""
        if choices is None:
            raise ValueError(
                f"{self} must have a column of lists, or a list of columns, but got none"
            )
        if isinstance(choices, tuple) and len(choices) < 2:
            raise ValueError(
                f"{self} must have two columns at least, but got {', '.join(choices) or 'none'}"
            )

    def reads_lists(self, task: TaskFields, column: str) -> bool:
        """Tell whether the column holds the lists of choices."""
        return column == task.choices

    def texts(self, where: str, task: TaskFields, row: Mapping[str, Any]) -> Texts:
        """Return the context, the question if there is one, and the choices."""
        context = [row[column] for column in text_columns(task)]
        return check_texts(where, task, [*context, *_choices(where, task, row)])

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> Any:
        """Return the index of the right choice from its index, its index as text or its letter."""
        count, index = len(texts) - len(text_columns(task)), value
        if isinstance(value, str) and value.isdecimal():
            index = int(value)
        elif isinstance(value, str) and len(value) == 1:
            index = ord(value) - ord("A")
        if not isinstance(index, (int, float)) or not 0 <= index < count or index != int(index):
            raise ValueError(
                f"{where}.label: a label must be a choice's place from 0 to {count - 1}, or its"
                f" letter from A to {chr(ord('A') + count - 1)}, but column {task.label} has"
                f" {value!r}"
            )
        return int(index)

    def encode(
        self, where: str, task: TaskFields, tokenizer: Any, config: Any, texts: Texts, label: int
    ) -> Item:
        """Tokenize each choice with the context and the question."""
        given = len(text_columns(task))
        context, *question = texts[:given]
        ends = [" ".join((*question, choice)) for choice in texts[given:]]
        tokens = tokenizer([context] * len(ends), ends, truncation=True, max_length=task.max_length)
        return Item(sequences=sequences_of(tokens), label=label)

    def shape_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return each field as [1, sequences, tokens].

        The model takes all sequences for choices of one item, as items may differ in their number.
        """
        return {field: tensor[None] for field, tensor in batch.items()}

    def answer_logits(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the logits of each item's choices."""
        return _by_item(widened(output.logits), items)

    def averaged(self, outputs: Sequence[Any], items: Sequence[Item]) -> Any:
        """Return logits of each item's mean probabilities of its choices, [1, sequences]."""
        import torch

        means = mean_log_probabilities([_by_item(output.logits, items) for output in outputs])
        rows = [own[: len(item.sequences)] for own, item in zip(means, items, strict=True)]
        return output_of(torch.cat(rows)[None])

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score logits of shape [1, sequences]."""
        return score_classes(_by_item(to_host(output.logits), items), items)

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return three choices, all predicted right."""
        return (0, 1, 2), (0, 1, 2)


def _by_item(logits: Tensor, items: Sequence[Item]) -> Tensor:
    """Return logits of all sequences, [1, sequences], by item."""
    return padded(logits[0].split([len(item.sequences) for item in items]))


def _choices(where: str, task: TaskFields, row: Mapping[str, Any]) -> list[Any]:
    if not isinstance(task.choices, str):
        return [row[column] for column in task.choices or ()]
    choices = row[task.choices]
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(
            f"{where}.choices: two choices at least must be listed, but column {task.choices} has"
            f" {choices!r}"
        )
    return choices


MULTIPLE_CHOICE = MultipleChoice()
