"""Generation: a prompt, and the text that a language model writes after it, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cabs_search.kinds.base import Item, Outcome, TaskFields, Texts
from cabs_search.kinds.causal import Continuing, Request, tokens_of
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_GENERATED
from cabs_search.metrics.squad import AnswerMetric

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings with which tokens are drawn, in place of taking the likeliest."""

    temperature: float
    """Divisor of the logits."""
    seed: int
    """Number of a run, that with an item's key seeds a generator of the item's own."""


@dataclass(frozen=True)
class Written:
    """Output of a model on some items of this kind."""

    texts: Sequence[str]
    """Texts that the model wrote, one per item, without the prompts."""
    scores: Sequence[float] | None = None
    """Scores that were given elsewhere; None: the task's metric gives them."""


class Generation(Continuing):
    """A prompt and the accepted answers, with which the text that follows is compared.

    A prediction is that text, up to the first of the task's ``stop`` strings. An item's score is
    the task's metric of it, and its loss is 1 − the score.
    """

    name: ClassVar[str] = "generation"
    metrics: ClassVar[tuple[Metric, ...]] = OF_GENERATED
    predicts: ClassVar[type[Any]] = str
    has_log_losses: ClassVar[bool] = False
    harness_text: ClassVar[str] = "prompt"
    default_max_new_tokens: ClassVar[int | None] = 256

    def check_text(self, text: str | tuple[str, str]) -> None:
        """Raise ValueError unless it is one column."""
        if not isinstance(text, str):
            raise ValueError(f"{self} must have one column of prompts, but got {', '.join(text)}")

    def label(
        self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any
    ) -> tuple[str, ...]:
        """Return the accepted answers from a text, a number, or a list of them."""
        answers = value if isinstance(value, list) else [value]
        if not answers or not all(isinstance(answer, (str, int, float)) for answer in answers):
            raise ValueError(
                f"{where}.label: a label must be a text or a list of accepted texts, but column"
                f" {task.label} has {value!r}"
            )
        return tuple(map(str, answers))

    def placeholder_label(self, texts: Texts) -> tuple[str, ...]:
        """Return an empty answer."""
        return ("",)

    def requests(self, task: TaskFields, texts: Texts) -> list[Request]:
        """Return the prompt; what follows it is to be written."""
        return [(texts[0], "")]

    def encode_requests(
        self,
        where: str,
        task: TaskFields,
        tokenizer: Any,
        config: Any,
        texts: Texts,
        label: tuple[str, ...],
        requests: Sequence[Request],
    ) -> Item:
        """Tokenize a prompt with the tokenizer's special tokens; a long one loses its beginning.

        Raises:
            ValueError: the prompt is empty.

        """
        assert task.max_new_tokens is not None, "a task of this kind has it"
        (tokens,) = tokens_of(tokenizer, [requests[0][0]])
        if not tokens:
            raise ValueError(f"{where}.text: a prompt must have a token at least, but got none")
        tokens = tokens[-(task.max_length - task.max_new_tokens) :]
        return Item(sequences=({"input_ids": tokens},), label=list(label))

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Raise ValueError: there is nothing to differentiate."""
        raise ValueError(f"the losses of {self} have no gradient")

    def outcome(self, task: TaskFields, output: Written, items: Sequence[Item]) -> Outcome:
        """Score what the model wrote."""
        scores = output.scores
        if scores is None:
            assert isinstance(task.measure, AnswerMetric)
            pairs = zip(output.texts, items, strict=True)
            scores = [task.measure.score(text, item.label) for text, item in pairs]
        found = np.array(scores, np.float32)
        return Outcome(found, 1 - found, self.values(output.texts))

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return one answer, and two accepted ones."""
        return ["an answer"], [["answer", "other"]]


GENERATION = Generation()
