"""Token classification: a list of words, and a class for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import (
    Item,
    Kind,
    Outcome,
    Scored,
    TaskFields,
    Texts,
    check_texts,
    output_of,
    sequences_of,
    split_tokens,
    text_columns,
    to_host,
    widened,
)
from cabs_search.kinds.classes import class_entropies, class_names, class_of, mean_log_probabilities
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_WORDS

if TYPE_CHECKING:
    from torch import Tensor

NEED_PREFIX_SPACE = ("roberta", "gpt2", "deberta", "bloom")
"""Model types whose tokenizers must be told that a space precedes each word of a list."""
Label = tuple[int, ...]
"""Class number of each word."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words of an item that count: those whose first token was not cut off."""

    places: tuple[int, ...]
    """Position of each word's first token in the sequence."""
    labels: tuple[int, ...]
    """Class number of each word."""
    names: tuple[str, ...]
    """The head's names of its classes."""


class TokenClassification(Kind):
    """A list of words, and a class for each, read at the word's first token.

    An item's score is the share of its words that are right; metrics are over all words.
    """

    name: ClassVar[str] = "token-classification"
    head: ClassVar[str] = "ForTokenClassification"
    metrics: ClassVar[tuple[Metric, ...]] = OF_WORDS
    predicts: ClassVar[type[Any]] = list
    has_entropies: ClassVar[bool] = True
    ensembles: ClassVar[tuple[str, ...]] = ("mean",)

    def check_text(self, text: str | tuple[str, str]) -> None:
        """Raise ValueError unless it is one column."""
        if not isinstance(text, str):
            raise ValueError(f"{self} must have one column of word lists, but got {list(text)}")

    def reads_lists(self, task: TaskFields, column: str) -> bool:
        """Return True: words are lists."""
        return True

    def texts(self, where: str, task: TaskFields, row: Mapping[str, Any]) -> Texts:
        """Return the words."""
        (column,) = text_columns(task)
        words = row[column]
        if not isinstance(words, list) or not words:
            raise ValueError(
                f"{where}.text: every text must be a list of words, but column {column} has others"
            )
        return check_texts(where, task, words)

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> Label:
        """Return the head's class of each word."""
        if not isinstance(value, list) or len(value) != len(texts):
            raise ValueError(
                f"{where}.label: a label must list a class for each of its {len(texts)} words,"
                f" but column {task.label} has {value!r}"
            )
        return tuple(class_of(where, task, config, label) for label in value)

    def placeholder_label(self, texts: Texts) -> Label:
        """Return the first class for each word."""
        return (0,) * len(texts)

    def tokenizer_arguments(self, config: Any) -> dict[str, Any]:
        """Return ``add_prefix_space`` for tokenizers that need it."""
        return {"add_prefix_space": True} if config.model_type in NEED_PREFIX_SPACE else {}

    def encode(
        self, where: str, task: TaskFields, tokenizer: Any, config: Any, texts: Texts, label: Label
    ) -> Item:
        """Tokenize the words into one sequence and note where each begins."""
        encoded = tokenizer(
            [list(texts)], is_split_into_words=True, truncation=True, max_length=task.max_length
        )
        places: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids(0)):
            if word is not None:
                places.setdefault(word, place)
        if not places:
            raise ValueError(
                f"{where}.max_length: every item must keep a word, but got {task.max_length} and"
                " one without"
            )
        classes, names = tuple(label[word] for word in places), class_names(config)
        marks = Words(places=tuple(places.values()), labels=classes, names=names)
        return Item(sequences=sequences_of(encoded), label=[names[c] for c in classes], marks=marks)

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the mean cross-entropy of each item's words."""
        import torch

        rows = split_tokens(widened(output.logits), items)
        return torch.stack(
            [_loss(*_words(row, item)) for (row,), item in zip(rows, items, strict=True)]
        )

    def entropies(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the entropy of each item's words, on average."""
        import torch

        rows = split_tokens(widened(output.logits), items)
        return torch.stack(
            [
                class_entropies(_words(row, item)[0]).mean()
                for (row,), item in zip(rows, items, strict=True)
            ]
        )

    def averaged(self, outputs: Sequence[Any], items: Sequence[Item]) -> Any:
        """Return logits of each token's mean probabilities."""
        return output_of(mean_log_probabilities([output.logits for output in outputs]))

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score logits of shape [items, tokens, classes]."""
        rows = split_tokens(to_host(output.logits), items)
        return self.stack([_score(row, item) for (row,), item in zip(rows, items, strict=True)])

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return one item with a word of every class, all predicted right."""
        return [list(classes)], [list(classes)]


def _words(logits: Tensor, item: Item) -> tuple[Tensor, Tensor]:
    """Return logits of an item's words, [words, classes], and their classes, [words].

    ``logits`` are those of its tokens, [tokens, classes].
    """
    import torch

    assert isinstance(item.marks, Words)
    labels = torch.tensor(item.marks.labels, device=logits.device)
    return logits[list(item.marks.places)], labels


def _loss(of_words: Tensor, labels: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.cross_entropy(of_words, labels)


def _score(logits: Tensor, item: Item) -> Scored:
    """Score the words of one item; ``logits`` is [tokens, classes]."""
    of_words, labels = _words(logits, item)
    predictions = of_words.argmax(-1)
    right = (predictions == labels).float().mean()
    names = [item.marks.names[p] for p in predictions.tolist()]
    return float(right), float(_loss(of_words, labels)), names


TOKEN_CLASSIFICATION = TokenClassification()
