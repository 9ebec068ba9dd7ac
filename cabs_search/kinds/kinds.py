"""Kinds of task: what a row must hold, how it becomes token sequences, and what a model's output
says of it.

An item is one row, tokenized: one sequence, or one for each choice or window. Whatever its kind, a
model's output on it becomes one score, one loss and one prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cabs_search.metrics import squad
from cabs_search.metrics.metrics import Values, values_of
from cabs_search.spec.task import Kind, Task

OWN_PREFIX_SPACE = ("roberta", "gpt2", "deberta", "bloom")
"""Models whose tokenizers must be told that a word of a list has a space before it."""
MOST = 1e9
"""The largest label of a regression, so that squared errors are finite."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of an item that count: those of which the first token is in the sequence."""

    places: tuple[int, ...]
    """Position of each word's first token."""
    labels: tuple[int, ...]
    """Class of each word."""
    names: tuple[str, ...]
    """What the head calls its classes."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row, tokenized."""

    sequences: tuple[dict[str, list[int]], ...]
    """The tokenizer's output: one sequence, or one for each choice or window."""
    label: Any
    """What is held against a prediction, as JSON holds it.

    A class, a number, a choice's place, the accepted answers, or the name of each word's class.
    """
    marks: squad.Passage | Words | None = None
    """What the tokens are tokens of, where a prediction is read from single tokens."""

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return max(len(sequence["input_ids"]) for sequence in self.sequences)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a model did on some items, one value an item: all [items]."""

    scores: npt.NDArray[np.float32]
    """1 where the item is right, else 0; regression: minus the squared error; question-answering:
    the task's metric; token-classification: the share of right words.
    """
    losses: npt.NDArray[np.float32]
    """Cross-entropy in nats; regression: the squared error."""
    predictions: Values
    """As the label is; question-answering: one text."""


def head_of(kind: Kind) -> str:
    """What the transformers class of a model with such a head ends with."""
    match kind:
        case "classification" | "regression":
            return "ForSequenceClassification"
        case "multiple-choice":
            return "ForMultipleChoice"
        case "question-answering":
            return "ForQuestionAnswering"
        case "token-classification":
            return "ForTokenClassification"


def check_head(where: str, task: Task, expert: str, config: Any) -> None:
    """Raises ValueError where an expert's config tells of a head of another kind."""
    wanted, made = head_of(task.kind), config.architectures or []
    if made and not any(name.endswith(wanted) for name in made):
        raise ValueError(
            f"{where}.kind: {task.kind} needs a model {wanted}, but experts.{expert} is"
            f" {', '.join(made)}"
        )
    if task.kind == "regression" and config.num_labels != 1:
        raise ValueError(
            f"{where}.kind: regression needs a head of one output, but experts.{expert} has"
            f" {config.num_labels}"
        )


def columns_of(task: Task) -> list[tuple[str, str]]:
    """The task's fields that name columns, and the columns."""
    choices = (task.choices,) if isinstance(task.choices, str) else task.choices or ()
    group = [("group", task.group)] if task.group else []
    return [
        *(("text", c) for c in _text(task)),
        *(("choices", c) for c in choices),
        ("label", task.label),
        *group,
    ]


def _text(task: Task) -> tuple[str, ...]:
    return (task.text,) if isinstance(task.text, str) else task.text


def texts_of(where: str, task: Task, row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row's texts: the text or pair, and behind it the choices; token-classification: the words.

    Raises:
        ValueError: a column holds something else.

    """
    columns = _text(task)
    match task.kind:
        case "token-classification":
            if not isinstance(words := row[columns[0]], list) or not words:
                raise ValueError(
                    f"{where}.text: every text must be a list of words, but column {columns[0]} has"
                    " others"
                )
            found = words
        case "multiple-choice":
            found = [*(row[c] for c in columns), *_choices(where, task, row)]
        case "classification" | "regression" | "question-answering":
            found = [row[c] for c in columns]
    if not all(isinstance(text, str) for text in found):
        field = "text or choices" if task.choices else "text"
        raise ValueError(
            f"{where}.{field}: every text must be a string, but column {' or '.join(columns)} has"
            " others"
        )
    return tuple(found)


def _choices(where: str, task: Task, row: Mapping[str, Any]) -> list[Any]:
    if not isinstance(task.choices, str):
        return [row[column] for column in task.choices or ()]
    if not isinstance(listed := row[task.choices], list) or len(listed) < 2:
        raise ValueError(
            f"{where}.choices: two choices at least must be listed, but column {task.choices} has"
            f" {listed!r}"
        )
    return listed


def label_of(where: str, task: Task, config: Any, texts: Sequence[str], label: Any) -> Any:
    """A row's label in the program's own form, equal for equal labels.

    Returns:
        A class; a number; a choice's place; every accepted answer with its place; the class of each
        word.

    Raises:
        ValueError: it is no label of this kind.

    """
    match task.kind:
        case "classification":
            return _class(where, task, config, label)
        case "regression":
            if not isinstance(label, (int, float)) or not abs(label) <= MOST:
                raise ValueError(
                    f"{where}.label: a label must be a number, at most {MOST:g}, but column"
                    f" {task.label} has {label!r}"
                )
            return float(label)
        case "multiple-choice":
            return _choice(where, task, label, len(texts) - len(_text(task)))
        case "question-answering":
            return _accepted(where, task, texts[1], label)
        case "token-classification":
            if not isinstance(label, list) or len(label) != len(texts):
                raise ValueError(
                    f"{where}.label: a label must list a class for each of its {len(texts)} words,"
                    f" but column {task.label} has {label!r}"
                )
            return tuple(_class(where, task, config, each) for each in label)


def _class(where: str, task: Task, config: Any, label: Any) -> int:
    """From the data's label to the head's class: whole numbers as they are, names by the head's
    label2id.
    """
    if isinstance(label, str) and label in config.label2id:
        return int(config.label2id[label])
    if isinstance(label, (int, float)) and 0 <= label < config.num_labels and label == int(label):
        return int(label)
    raise ValueError(
        f"{where}.label: a label must be one of the head's classes"
        f" ({', '.join(f'{i} {n}' for n, i in config.label2id.items())}), but column {task.label}"
        f" has {label!r}"
    )


def _choice(where: str, task: Task, label: Any, count: int) -> int:
    place = label
    if isinstance(label, str) and label:
        place = (
            int(label) if label.isdecimal() else ord(label) - ord("A") if len(label) == 1 else label
        )
    if not isinstance(place, (int, float)) or not 0 <= place < count or place != int(place):
        raise ValueError(
            f"{where}.label: a label must be a choice's place from 0 to {count - 1}, or its letter"
            f" from A to {chr(ord('A') + count - 1)}, but column {task.label} has {label!r}"
        )
    return int(place)


def _accepted(where: str, task: Task, context: str, label: Any) -> tuple[tuple[str, int], ...]:
    texts, starts = (
        label.get(f) if isinstance(label, Mapping) else None for f in ("text", "answer_start")
    )
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise ValueError(
            f"{where}.label: a label must be {{text: [...], answer_start: [...]}}, but column"
            f" {task.label} has {label!r}"
        )
    if not texts:
        raise ValueError(
            f"{where}.label: every question must have an answer, but column {task.label} has"
            f" {label!r}"
        )
    found = tuple(zip(texts, starts, strict=True))
    for text, start in found:
        whole = isinstance(text, str) and isinstance(start, int) and start >= 0
        if not whole or not text or not context.startswith(text, start):
            raise ValueError(
                f"{where}.label: an answer must stand in its context at answer_start, but column"
                f" {task.label} has {text!r} at {start!r}"
            )
    return found


def no_label(task: Task, texts: Sequence[str]) -> Any:
    """What stands in for the label, as ``label_of`` makes it, of a row that has none: no prediction
    depends on it.
    """
    match task.kind:
        case "classification" | "multiple-choice":
            return 0
        case "regression":
            return 0.0
        case "question-answering":
            return ((texts[1][:1], 0),)
        case "token-classification":
            return (0,) * len(texts)


def tokenizer_arguments(task: Task, config: Any) -> dict[str, Any]:
    """What a tokenizer is loaded with."""
    words = task.kind == "token-classification" and config.model_type in OWN_PREFIX_SPACE
    return {"add_prefix_space": True} if words else {}


def encode(
    where: str, task: Task, tokenizer: Any, config: Any, texts: Sequence[str], label: Any
) -> Item:
    """Tokenize one row, given its texts and its label as ``texts_of`` and ``label_of`` make them.

    Raises:
        ValueError: nothing is left of it at the task's max_length; a tokenizer without offsets
            where they are needed.

    """
    cut: dict[str, Any] = {"truncation": True, "max_length": task.max_length}
    match task.kind:
        case "classification" | "regression":
            return Item(
                sequences=_sequences(tokenizer(*([text] for text in texts), **cut)), label=label
            )
        case "multiple-choice":
            context, *question = texts[: len(_text(task))]
            ends = [" ".join((*question, choice)) for choice in texts[len(_text(task)) :]]
            return Item(
                sequences=_sequences(tokenizer([context] * len(ends), ends, **cut)), label=label
            )
        case "question-answering":
            return _encode_question(where, task, tokenizer, texts, label)
        case "token-classification":
            encoded = tokenizer([list(texts)], is_split_into_words=True, **cut)
            return _encode_words(where, task, config, encoded, label)


def _sequences(encoded: Mapping[str, Any]) -> tuple[dict[str, list[int]], ...]:
    """A tokenizer's lists of sequences; the attention mask is made with a batch."""
    fields = [field for field in encoded if field != "attention_mask"]
    return tuple({f: encoded[f][i] for f in fields} for i in range(len(encoded["input_ids"])))


def _encode_question(
    where: str, task: Task, tokenizer: Any, texts: Sequence[str], label: Any
) -> Item:
    assert task.stride is not None, "a task of this kind has one"
    try:
        encoded, passage = squad.cut(
            tokenizer, texts[0], texts[1], label[0], task.max_length, task.stride
        )
    except ValueError as error:
        raise ValueError(f"{where}.max_length: {error}") from error
    return Item(sequences=_sequences(encoded), label=[text for text, _ in label], marks=passage)


def _encode_words(where: str, task: Task, config: Any, encoded: Any, label: Sequence[int]) -> Item:
    firsts: dict[int, int] = {}
    for place, word in enumerate(encoded.word_ids(0)):
        if word is not None:
            firsts.setdefault(word, place)
    if not firsts:
        raise ValueError(
            f"{where}.max_length: every item must keep a word, but got {task.max_length} and one"
            " without"
        )
    classes = tuple(label[word] for word in firsts)
    names = names_of(config)
    marks = Words(places=tuple(firsts.values()), labels=classes, names=names)
    return Item(sequences=_sequences(encoded), label=[names[c] for c in classes], marks=marks)


def names_of(config: Any) -> tuple[str, ...]:
    """What a head calls its classes."""
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def outcome(task: Task, output: Any, items: Sequence[Item]) -> Outcome:
    """Score a model's output on the sequences of some items, one behind another.

    Args:
        output: with ``logits`` (or ``start_logits`` and ``end_logits``) of shape [sequences,
            classes] for sequences,
            [1, sequences] for choices, [sequences, tokens, ...] for tokens.

    """
    match task.kind:
        case "classification":
            return _of_classes(_host(output.logits), items)
        case "regression":
            return _of_numbers(_host(output.logits)[:, 0].double().numpy(), items)
        case "multiple-choice":
            choices = _host(output.logits)[0].split([len(item.sequences) for item in items])
            return _of_classes(
                pad_sequence(list(choices), batch_first=True, padding_value=-torch.inf), items
            )
        case "question-answering":
            parts = zip(
                _own(output.start_logits, items), _own(output.end_logits, items), items, strict=True
            )
            found = [_score_answer(task.metric, starts, ends, item) for starts, ends, item in parts]
        case "token-classification":
            found = [
                _score_words(rows[0], item)
                for rows, item in zip(_own(output.logits, items), items, strict=True)
            ]
    scores, losses, predictions = zip(*found, strict=True)
    return Outcome(
        np.array(scores, np.float32),
        np.array(losses, np.float32),
        values_of(task, list(predictions)),
    )


def _host(logits: Tensor) -> Tensor:
    return logits.float().cpu()


def _of_classes(logits: Tensor, items: Sequence[Item]) -> Outcome:
    """One class an item; ``logits`` is [items, classes], -inf where an item has fewer."""
    labels, predictions = torch.tensor([item.label for item in items]), logits.argmax(-1)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return Outcome((predictions == labels).float().numpy(), losses.numpy(), predictions.numpy())


def _of_numbers(predictions: Values, items: Sequence[Item]) -> Outcome:
    squared = (predictions - np.array([item.label for item in items])) ** 2
    return Outcome((-squared).astype(np.float32), squared.astype(np.float32), predictions)


def _own(logits: Tensor, items: Sequence[Item]) -> Iterator[list[Tensor]]:
    """Each item's sequences, [tokens, ...], without what they were padded with."""
    rows = iter(_host(logits))
    for item in items:
        yield [next(rows)[: len(sequence["input_ids"])] for sequence in item.sequences]


Scored = tuple[float, float, Any]
"""An item's score, loss and prediction."""


def _score_answer(metric: str, starts: list[Tensor], ends: list[Tensor], item: Item) -> Scored:
    assert isinstance(item.marks, squad.Passage)
    prediction = squad.best(item.marks, starts, ends)
    loss = torch.stack(list(squad.losses(item.marks, starts, ends))).mean()
    return squad.score(metric, prediction, item.label), float(loss), prediction


def _score_words(logits: Tensor, item: Item) -> Scored:
    assert isinstance(item.marks, Words)
    counted, labels = logits[list(item.marks.places)], torch.tensor(item.marks.labels)
    predictions = counted.argmax(-1)
    loss = torch.nn.functional.cross_entropy(counted, labels)
    right = (predictions == labels).float().mean()
    return float(right), float(loss), [item.marks.names[p] for p in predictions.tolist()]
