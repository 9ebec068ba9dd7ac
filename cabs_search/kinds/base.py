"""Base class of kinds of task, and what several kinds share.

An item is one row, tokenized: one sequence, or one for each choice or window. Whatever its kind, a
model's output on it becomes one score, one loss and one prediction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cabs_search.metrics.base import Metric, Values
from cabs_search.metrics.evaluated import LESS_IS_BETTER, Evaluated
from cabs_search.metrics.registry import METRICS

if TYPE_CHECKING:
    from torch import Tensor

ARRAY_TYPES: Mapping[type, Any] = {int: np.int64, float: np.float64, str: object, list: object}
"""Array type of labels and predictions, by ``Kind.predicts``."""
Scored: TypeAlias = tuple[float, float, Any]
"""Score, loss and prediction of one item."""
FLOAT32_BYTES = 4
Texts: TypeAlias = tuple[str, ...]
"""All texts of one row."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Tokens whose log-likelihoods a language model is asked for, one value of each field a token.

    Those of an item's parts, such as its choices, stand one after another.
    """

    sequences: tuple[int, ...]
    """Number of the sequence, of the item's."""
    places: tuple[int, ...]
    """Position in the sequence that predicts the token: the one before it."""
    tokens: tuple[int, ...]
    counts: tuple[int, ...]
    """Number of tokens of each part."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row, tokenized."""

    sequences: tuple[dict[str, list[int]], ...]
    """Output of the tokenizer: one sequence, or one for each choice or window."""
    label: Any
    """Value that a prediction is compared with, as JSON holds it."""
    marks: Any = None
    """Meaning of single tokens, for kinds whose predictions are read from tokens."""
    targets: Targets | None = None
    """Tokens to predict, for kinds of causal language models."""

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(len(sequence["input_ids"]) for sequence in self.sequences)

    @property
    def positions(self) -> int:
        """Number of positions that the model must have."""
        if "position_ids" in self.sequences[0]:
            return 1 + max(max(sequence["position_ids"]) for sequence in self.sequences)
        return self.longest


@dataclass(frozen=True, eq=False)
class Outcome:
    """Results of a model on some items, one value per item: all [items]."""

    scores: npt.NDArray[np.float32]
    """More is better; the kind says what it is."""
    losses: npt.NDArray[np.float32]
    """Nats, of a regression the squared error."""
    predictions: Values
    """Predictions in the form of labels; one answer where a label accepts several."""


class TaskFields(Protocol):
    """Fields of a task that kinds read."""

    @property
    def text(self) -> str | tuple[str, str]:
        """Column of the text, or the two columns of a pair."""

    @property
    def choices(self) -> str | tuple[str, ...] | None:
        """Column of lists of choices, or one column for each choice."""

    @property
    def label(self) -> str:
        """Column of the label."""

    @property
    def max_length(self) -> int:
        """Number of tokens that a sequence is cut to."""

    @property
    def stride(self) -> int | None:
        """Number of tokens that two neighbouring windows share."""

    @property
    def max_new_tokens(self) -> int | None:
        """Number of tokens that a model writes after a prompt, at most."""

    @property
    def measure(self) -> Metric:
        """Metric with its arguments."""


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of task; a value without state, equal to itself in every process.

    A subclass says what it is in class attributes and overrides what differs. ``where`` is the
    place in the spec that errors begin with, such as ``tasks.mood``; ``config`` is the
    configuration of the model whose head scores the task: an expert, or the base.
    """

    name: ClassVar[str]
    """Value of ``kind`` in a spec."""
    head: ClassVar[str]
    """End of the name of the transformers class, such as ``ForSequenceClassification``."""
    metrics: ClassVar[tuple[Metric, ...]]
    """Metrics that fit and are computed here, the default first."""
    predicts: ClassVar[type[Any]]
    """Type of a prediction: int, float, str, or list (of str)."""
    takes_other_metrics: ClassVar[bool] = True
    """True if metrics of other names may be computed by ``evaluate``."""
    takes_choices: ClassVar[bool] = False
    """True if tasks have a field ``choices``."""
    is_causal: ClassVar[bool] = False
    """True if the model is a causal language model: its output layer is merged with the trunk, no
    expert has a head, and its output is the log-likelihood of each of the items' ``targets``,
    [targets].
    """
    reads_greedy: ClassVar[bool] = False
    """True if the output must also tell whether a target is the likeliest token, [targets, 2]."""
    reads_label: ClassVar[bool] = True
    """True if rows have a column of labels."""
    has_log_losses: ClassVar[bool] = True
    """True if a loss is minus the log of the right answer's probability."""
    has_entropies: ClassVar[bool] = False
    """True if the model gives each answer of an item's a probability."""
    ensembles: ClassVar[tuple[str, ...]] = ()
    """Ensembles, of ``recipe.ENSEMBLES``, that can average the outputs of several models."""
    harness_text: ClassVar[str | tuple[str, str]] = ""
    """The field ``text`` of a task of lm-evaluation-harness: columns that a prediction needs."""
    default_max_length: ClassVar[int] = 128
    default_stride: ClassVar[int | None] = None
    """None: tasks have no field ``stride``."""
    default_max_new_tokens: ClassVar[int | None] = None
    """None: tasks have no fields ``max_new_tokens`` and ``stop``."""

    @property
    def generates(self) -> bool:
        """True if the model writes texts, whose losses have no gradient."""
        return self.default_max_new_tokens is not None

    def __str__(self) -> str:
        """Return the name, as specs and messages have it."""
        return self.name

    # fields of the spec

    def check_text(self, text: str | tuple[str, str]) -> None:  # noqa: B027 (may be anything)
        """Raise ValueError if ``text`` must name other columns."""

    def check_choices(self, choices: str | tuple[str, ...] | None) -> None:  # noqa: B027
        """Raise ValueError if ``choices`` must name other columns."""

    def check_metric(self, name: str) -> None:
        """Raise ValueError if no metric of this name fits."""
        names = [metric.name for metric in self.metrics]
        if name in LESS_IS_BETTER:
            raise ValueError(
                f"more must be better, as a search maximizes it, but got {name}; {self} has"
                f" {names[0]}"
            )
        if name in names:
            return
        if not name.isidentifier():  # of a path, ``evaluate`` would run the code
            raise ValueError(f"a metric must be a name, such as {names[0]}, but got {name}")
        if not self.takes_other_metrics:
            raise ValueError(f"{self} must have {' or '.join(sorted(names))}, but got {name}")
        if any(name == metric.name for metric in METRICS):
            raise ValueError(f"{self} must have another metric, such as {names[0]}, but got {name}")

    def metric(self, name: str, arguments: Mapping[str, Any]) -> Metric:
        """Return a metric by name; ``evaluate`` computes those that are not the kind's.

        Raises:
            ValueError: the metric takes no arguments.

        """
        fitting = (metric for metric in self.metrics if metric.name == name)
        return next(fitting, Evaluated(name=name)).with_arguments(arguments)

    # rows of data

    def inputs(self, task: TaskFields) -> list[tuple[str, str]]:
        """Return the columns that a prediction needs, as (field of the task, column)."""
        choices = (task.choices,) if isinstance(task.choices, str) else task.choices or ()
        texts = [("text", column) for column in text_columns(task)]
        return [*texts, *(("choices", column) for column in choices)]

    def reads_lists(self, task: TaskFields, column: str) -> bool:
        """Tell whether each row of an input column holds a list of texts."""
        return False

    def texts(self, where: str, task: TaskFields, row: Mapping[str, Any]) -> Texts:
        """Return all texts of a row.

        Raises:
            ValueError: a column holds something else.

        """
        return check_texts(where, task, [row[column] for column in text_columns(task)])

    @abstractmethod
    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> Any:
        """Convert what the label's column holds into a form that is equal for equal labels.

        Args:
            texts: what ``texts`` returns.
            value: what the column holds; None if rows have no label.

        Raises:
            ValueError: it is no label of this kind.

        """

    def placeholder_label(self, texts: Texts) -> Any:
        """Return any valid label, as ``label`` does, for a row that has none."""
        return 0

    # the model

    def check_head(self, where: str, model: str, config: Any) -> None:
        """Raise ValueError if the config of ``model``, such as ``experts.a``, has another head."""
        classes = config.architectures or []
        if classes and not any(name.endswith(self.head) for name in classes):
            raise ValueError(
                f"{where}.kind: {self} needs a model {self.head}, but {model} is"
                f" {', '.join(classes)}"
            )

    def tokenizer_arguments(self, config: Any) -> dict[str, Any]:
        """Return arguments that the tokenizer is loaded with."""
        return {}

    def encode(
        self, where: str, task: TaskFields, tokenizer: Any, config: Any, texts: Texts, label: Any
    ) -> Item:
        """Tokenize one row; here a text or a pair, into one sequence.

        Args:
            texts: what ``texts`` returns.
            label: what ``label`` returns.

        Raises:
            ValueError: the row does not fit into ``max_length``.

        """
        tokens = tokenizer(*([text] for text in texts), truncation=True, max_length=task.max_length)
        return Item(sequences=sequences_of(tokens), label=label)

    def shape_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shape padded sequences, each field [sequences, tokens], as the model takes them."""
        return batch

    @abstractmethod
    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the losses that ``outcome`` reports, so that they can be differentiated.

        λ is refined by their gradient: a loss that is constant almost everywhere, such as 1 for a
        wrong item, would have none. Only kinds that generate have such a loss.

        Args:
            task: the task.
            output: a model's output on the sequences of the items, in their order.
            items: the items.

        Returns:
            [items], float32 (float64 of a float64 model), on the output's device.

        """

    def entropies(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the entropy of each item's answers, in nats; arguments and result as ``losses``.

        Only kinds with ``has_entropies`` have them. No label is read.
        """
        raise NotImplementedError

    def averaged(self, outputs: Sequence[Any], items: Sequence[Item]) -> Any:
        """Return the output whose probabilities, or numbers, are the mean of the models' own.

        Only kinds that have the ensemble ``mean``.

        Args:
            outputs: of each model on the sequences of the items, in main memory.
            items: the items.

        Returns:
            An output as ``outcome`` takes it.

        """
        raise NotImplementedError

    @abstractmethod
    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score a model's output on the sequences of some items, in their order."""

    # values

    def values(self, found: Sequence[Any]) -> Values:
        """Return labels or predictions, one per item, as an array."""
        dtype = ARRAY_TYPES[self.predicts]
        if dtype is object:  # np.array would make a matrix of lists of one length
            return np.fromiter(found, dtype=object, count=len(found))
        return np.array(found, dtype=dtype)

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return a few predictions and labels, to try a metric on; here each class once.

        Args:
            classes: the head's names of its classes.

        """
        return range(len(classes)), range(len(classes))

    def stack(self, scored: Sequence[Scored]) -> Outcome:
        """Return the outcome of items that were scored one by one."""
        scores, losses, predictions = zip(*scored, strict=True)
        return Outcome(
            np.array(scores, np.float32), np.array(losses, np.float32), self.values(predictions)
        )


def text_columns(task: TaskFields) -> tuple[str, ...]:
    """Return the columns that the field ``text`` names."""
    return (task.text,) if isinstance(task.text, str) else task.text


def check_texts(where: str, task: TaskFields, texts: Sequence[Any]) -> Texts:
    """Return the texts; raise ValueError if one is no string."""
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            columns = text_columns(task)
            is_choice = place >= len(columns)
            field = "choices" if is_choice else "text"
            source = f"{task.choices!r}" if is_choice else columns[place]
            raise ValueError(
                f"{where}.{field}: every text must be a string, but column {source} has {text!r}"
            )
    return tuple(texts)


def sequences_of(encoded: Mapping[str, Any]) -> tuple[dict[str, list[int]], ...]:
    """Return the sequences of a tokenizer's output; the attention mask is made per batch."""
    fields = [field for field in encoded if field != "attention_mask"]
    return tuple({f: encoded[f][i] for f in fields} for i in range(len(encoded["input_ids"])))


def to_host(logits: Tensor) -> Tensor:
    """Return logits as float32 in main memory, without gradient."""
    return logits.detach().float().cpu()


def widened(logits: Tensor) -> Tensor:
    """Return logits as float32, if they are in half precision, with gradient and in their place."""
    return logits.float() if logits.element_size() < FLOAT32_BYTES else logits


def output_of(logits: Tensor) -> Any:
    """Return logits as a model's output."""
    from types import SimpleNamespace

    return SimpleNamespace(logits=logits)


def split_tokens(logits: Tensor, items: Sequence[Item]) -> Iterator[list[Tensor]]:
    """Yield each item's sequences, [tokens, ...], without padding."""
    rows = iter(logits)
    for item in items:
        yield [next(rows)[: len(sequence["input_ids"])] for sequence in item.sequences]
