"""Answers in a context: windows of a long one, the best span over them, and how near it is to those
accepted.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LONGEST_ANSWER = 30
"""Tokens an answer may have."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One sequence of a question and a part of its context."""

    first: int
    """Where the context's tokens start in the sequence."""
    spans: tuple[tuple[int, int], ...]
    """For each of the context's tokens, from where to where it stands in the context, in
    characters.
    """
    target: tuple[int, int] | None
    """Positions of the answer's first and last token: what the loss is computed for; None: nothing.
    """


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A context as its windows show it."""

    context: str
    windows: tuple[Window, ...]


def cut(
    tokenizer: Any,
    question: str,
    context: str,
    answer: tuple[str, int],
    max_length: int,
    stride: int,
) -> tuple[Any, Passage]:
    """Tokenize a question with its context in overlapping windows.

    Args:
        answer: the answer that the loss is computed for, and where it starts in the context, in
            characters.
        max_length: tokens a window has at the most.
        stride: tokens of the context that a window has in common with the next.

    Returns:
        The tokenizer's output, a list of windows in each field, and the passage. A window's target
        is the answer where it stands in the window; where it stands in none, every window's target
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
        marks = [
            ids.index(mark) if (mark := tokenizer.cls_token_id) in ids else 0
            for ids in encoded["input_ids"]
        ]
        windows = [
            Window(first=w.first, spans=w.spans, target=(mark, mark))
            for w, mark in zip(windows, marks, strict=True)
        ]
    return encoded, Passage(context=context, windows=tuple(windows))


def _target(
    first: int, spans: Sequence[tuple[int, int]], answer: tuple[str, int]
) -> tuple[int, int] | None:
    """The tokens that have a part in the answer, where all of it stands in the window."""
    begin, end = answer[1], answer[1] + len(answer[0])
    if not spans or spans[0][0] > begin or spans[-1][1] < end:
        return None
    inside = [i for i, (low, high) in enumerate(spans) if low < end and high > begin]
    return (first + inside[0], first + inside[-1]) if inside else None


def best(passage: Passage, starts: Sequence[Tensor], ends: Sequence[Tensor]) -> str:
    """The span with the greatest start + end logit over all windows, as it stands in the context.

    Args:
        starts: each window's logits, [tokens].
        ends: as ``starts``.

    """
    most, text = -torch.inf, ""
    for window, start, end in zip(passage.windows, starts, ends, strict=True):
        part = slice(window.first, window.first + len(window.spans))
        for more in range(min(LONGEST_ANSWER, len(window.spans))):
            sums = start[part][: len(window.spans) - more] + end[part][more:]
            place = int(sums.argmax())
            if float(sums[place]) > most:
                most = float(sums[place])
                text = passage.context[
                    window.spans[place][0] : window.spans[place + more][1]
                ].strip()
    return text


def losses(passage: Passage, starts: Sequence[Tensor], ends: Sequence[Tensor]) -> Iterator[Tensor]:
    """Mean cross-entropy of start and end in nats, one value for each window that has a target."""
    for window, start, end in zip(passage.windows, starts, ends, strict=True):
        if window.target is not None:
            first, last = (torch.tensor(place) for place in window.target)
            cross_entropy = torch.nn.functional.cross_entropy
            yield (cross_entropy(start, first) + cross_entropy(end, last)) / 2


def score(metric: str, found: str, accepted: Sequence[str]) -> float:
    """``exact_match`` or ``f1`` of SQuAD 1.1 against the nearest of the accepted answers, 0 to
    1.
    """
    ours = normal(found).split()
    return max(
        (_exact_match if metric == "exact_match" else _f1)(ours, normal(text).split())
        for text in accepted
    )


def normal(text: str) -> str:
    """SQuAD's form of an answer: lower case, without punctuation, articles and further spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _exact_match(ours: Sequence[str], theirs: Sequence[str]) -> float:
    return float(ours == theirs)


def _f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Of words, each counted as often as both have it; 0 where they have none in common, as in
    SQuAD 1.1.
    """
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0
