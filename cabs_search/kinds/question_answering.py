"""Question answering: a question and a context, and the answers that the context holds.

A long context is cut into overlapping windows; the answer is the best span over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from cabs_search.kinds.base import (
    Item,
    Kind,
    Outcome,
    Scored,
    TaskFields,
    Texts,
    sequences_of,
    split_tokens,
    to_host,
    widened,
)
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_ANSWERS
from cabs_search.metrics.squad import AnswerMetric

if TYPE_CHECKING:
    from torch import Tensor

MAX_ANSWER_TOKENS = 30
Logits: TypeAlias = "Sequence[Tensor]"
"""Logits of each window of an item, [tokens]."""
Answer = tuple[str, int]
"""An answer, and the character of the context where it starts."""
Label = tuple[Answer, ...]
"""Accepted answers."""
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Window:
    """One sequence: a question and a part of its context."""

    first: int
    """Position of the context's first token in the sequence."""
    spans: tuple[Span, ...]
    """First character and end in the context, for each of its tokens."""
    target: Span | None
    """Positions of the answer's first and last token, for the loss; None: no loss."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A context and its windows."""

    context: str
    windows: tuple[Window, ...]


class QuestionAnswering(Kind):
    """A question and a context, and the answers that the context holds, as in SQuAD 1.1.

    An item's score is the task's metric of its answer; its loss is that of the first answer.
    """

    name: ClassVar[str] = "question-answering"
    head: ClassVar[str] = "ForQuestionAnswering"
    metrics: ClassVar[tuple[Metric, ...]] = OF_ANSWERS
    predicts: ClassVar[type[Any]] = str
    takes_other_metrics: ClassVar[bool] = False
    default_max_length: ClassVar[int] = 384
    default_stride: ClassVar[int | None] = 128

    def check_text(self, text: str | tuple[str, str]) -> None:
        """Raise ValueError unless there are two columns."""
        if isinstance(text, str):
            raise ValueError(f"{self} must have [question, context], but got {text}")

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> Label:
        """Return the accepted answers from ``{text: [...], answer_start: [...]}``."""
        fields: Any = value if isinstance(value, Mapping) else {}
        answers, starts = fields.get("text"), fields.get("answer_start")
        are_lists = isinstance(answers, list) and isinstance(starts, list)
        if not are_lists or len(answers) != len(starts):
            raise ValueError(
                f"{where}.label: a label must be {{text: [...], answer_start: [...]}}, but column"
                f" {task.label} has {value!r}"
            )
        if not answers:
            raise ValueError(
                f"{where}.label: every question must have an answer, but column {task.label} has"
                f" {value!r}"
            )
        for answer, start in zip(answers, starts, strict=True):
            is_typed = isinstance(answer, str) and isinstance(start, int) and start >= 0
            if not is_typed or not answer or not texts[1].startswith(answer, start):
                raise ValueError(
                    f"{where}.label: an answer must stand in its context at answer_start, but"
                    f" column {task.label} has {answer!r} at {start!r}"
                )
        return tuple(zip(answers, starts, strict=True))

    def placeholder_label(self, texts: Texts) -> Label:
        """Return the context's first character."""
        return ((texts[1][:1], 0),)

    def encode(
        self, where: str, task: TaskFields, tokenizer: Any, config: Any, texts: Texts, label: Label
    ) -> Item:
        """Tokenize the question with its context in windows."""
        assert task.stride is not None, "a task of this kind has one"
        question, context = texts
        try:
            encoded, passage = cut_windows(
                tokenizer, question, context, label[0], task.max_length, task.stride
            )
        except ValueError as error:
            raise ValueError(f"{where}.max_length: {error}") from error
        answers = [answer for answer, _ in label]
        return Item(sequences=sequences_of(encoded), label=answers, marks=passage)

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the mean loss of each item's windows."""
        import torch

        starts = split_tokens(widened(output.start_logits), items)
        ends = split_tokens(widened(output.end_logits), items)
        return torch.stack(
            [_loss(s, e, item) for s, e, item in zip(starts, ends, items, strict=True)]
        )

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score start and end logits, each [sequences, tokens]."""
        assert isinstance(task.measure, AnswerMetric)
        metric = task.measure
        starts = split_tokens(to_host(output.start_logits), items)
        ends = split_tokens(to_host(output.end_logits), items)
        parts = zip(starts, ends, items, strict=True)
        return self.stack([_score(metric, start, end, item) for start, end, item in parts])

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return one answer, and two accepted ones."""
        return ["an answer"], [["answer", "other"]]


def cut_windows(
    tokenizer: Any, question: str, context: str, answer: Answer, max_length: int, stride: int
) -> tuple[Any, Passage]:
    """Tokenize a question with its context in overlapping windows.

    Args:
        answer: the answer that the loss is computed for, and the character where it starts.
        max_length: most tokens of a window.
        stride: number of the context's tokens that a window shares with the next.

    Returns:
        The tokenizer's output, a list of windows in each field, and the passage. A window's target
        is the answer if the window holds all of it; if no window does, the target of every window
        is the CLS token.

    Raises:
        ValueError: the question leaves no room for the context.

    """
    asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    if (room := max_length - asked - tokenizer.num_special_tokens_to_add(pair=True)) <= stride:
        raise ValueError(
            "a window must have room for a question and more than stride tokens of its context,"
            f" but got (room={room}, stride={stride}) for {question!r}"
        )
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=max_length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    windows = []
    for i, offsets in enumerate(encoded.pop("offset_mapping")):
        places = [place for place, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        spans = tuple((int(offsets[p][0]), int(offsets[p][1])) for p in places)
        first = places[0] if places else 0
        windows.append(Window(first=first, spans=spans, target=_target(first, spans, answer)))
    encoded.pop("overflow_to_sample_mapping")
    if all(window.target is None for window in windows):
        cls = tokenizer.cls_token_id
        marks = [ids.index(cls) if cls in ids else 0 for ids in encoded["input_ids"]]
        windows = [replace(w, target=(m, m)) for w, m in zip(windows, marks, strict=True)]
    return encoded, Passage(context=context, windows=tuple(windows))


def _target(first: int, spans: Sequence[Span], answer: Answer) -> Span | None:
    """Return the positions of the answer's first and last token; None if a part is outside."""
    begin, end = answer[1], answer[1] + len(answer[0])
    if not spans or spans[0][0] > begin or spans[-1][1] < end:
        return None
    inside = [i for i, (low, high) in enumerate(spans) if low < end and high > begin]
    return (first + inside[0], first + inside[-1]) if inside else None


def best_span(passage: Passage, starts: Logits, ends: Logits) -> str:
    """Return the text with the greatest start + end logit over all windows.

    Args:
        passage: the context and its windows.
        starts: logits of each window, [tokens].
        ends: as ``starts``.

    """
    best, text = float("-inf"), ""
    for window, start, end in zip(passage.windows, starts, ends, strict=True):
        count = len(window.spans)
        part = slice(window.first, window.first + count)
        # All spans of one length at once: a span of `more` + 1 tokens starts at any place.
        for more in range(min(MAX_ANSWER_TOKENS, count)):
            sums = start[part][: count - more] + end[part][more:]
            place = int(sums.argmax())
            if float(sums[place]) > best:
                best = float(sums[place])
                low, high = window.spans[place][0], window.spans[place + more][1]
                text = passage.context[low:high].strip()
    return text


def span_losses(passage: Passage, starts: Logits, ends: Logits) -> Iterator[Tensor]:
    """Yield the mean cross-entropy of start and end, in nats, of each window with a target."""
    import torch

    cross_entropy = torch.nn.functional.cross_entropy
    for window, start, end in zip(passage.windows, starts, ends, strict=True):
        if window.target is not None:
            first, last = (torch.tensor(place, device=start.device) for place in window.target)
            yield (cross_entropy(start, first) + cross_entropy(end, last)) / 2


def _loss(starts: Logits, ends: Logits, item: Item) -> Tensor:
    """Return the mean loss of an item's windows."""
    import torch

    assert isinstance(item.marks, Passage)
    return torch.stack(list(span_losses(item.marks, starts, ends))).mean()


def _score(metric: AnswerMetric, starts: Logits, ends: Logits, item: Item) -> Scored:
    assert isinstance(item.marks, Passage)
    answer = best_span(item.marks, starts, ends)
    return metric.score(answer, item.label), float(_loss(starts, ends, item)), answer


QUESTION_ANSWERING = QuestionAnswering()
