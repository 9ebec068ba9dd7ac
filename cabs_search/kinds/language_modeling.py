"""Language modeling: a text, and how likely a language model finds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import Item, Outcome, TaskFields, Texts, to_host, widened
from cabs_search.kinds.causal import (
    Causal,
    prefix_token,
    sums_by_part,
    targets_of,
    to_score,
    tokens_of,
)
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_TEXTS

if TYPE_CHECKING:
    from torch import Tensor


class LanguageModeling(Causal):
    """A text and its log-likelihood, all of its tokens in windows of ``max_length``.

    A window sees one token of the one before; the first sees BOS, or EOS without one. An item's
    label is its number of bytes, its prediction the log-likelihood, its score that of a byte. Its
    loss is minus that of a token.
    """

    name: ClassVar[str] = "language-modeling"
    metrics: ClassVar[tuple[Metric, ...]] = OF_TEXTS
    predicts: ClassVar[type[Any]] = float
    reads_label: ClassVar[bool] = False
    has_log_losses: ClassVar[bool] = False
    """False: a mean over tokens, each of which has a distribution of its own."""
    harness_text: ClassVar[str] = "text"
    default_max_length: ClassVar[int] = 1024

    def check_text(self, text: str | tuple[str, str]) -> None:
        """Raise ValueError unless it is one column."""
        if not isinstance(text, str):
            raise ValueError(f"{self} must have one column of texts, but got {list(text)}")

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> float:
        """Return the text's number of bytes."""
        return self.placeholder_label(texts)

    def placeholder_label(self, texts: Texts) -> float:
        """Return the text's number of bytes."""
        return float(len(texts[0].encode()))

    def encode(
        self, where: str, task: TaskFields, tokenizer: Any, config: Any, texts: Texts, label: float
    ) -> Item:
        """Tokenize the text in windows that do not overlap, each after one token of context."""
        (tokens,) = tokens_of(tokenizer, texts)
        if not (tokens and texts[0]):
            raise ValueError(f"{where}.text: every text must have a token, but one is {texts[0]!r}")
        tokens = [prefix_token(where, tokenizer), *tokens]
        starts = range(0, len(tokens) - 1, task.max_length)
        windows = [tokens[start : start + task.max_length + 1] for start in starts]
        return Item(label=label, **to_score(windows, [len(window) - 1 for window in windows]))

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return minus the mean log-likelihood of each item's tokens."""
        import torch

        sums = sums_by_part(widened(output), items)
        return torch.stack([_loss(own, item) for own, item in zip(sums, items, strict=True)])

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score log-likelihoods, [targets]."""
        sums = sums_by_part(to_host(output), items)
        found = []
        for own, item in zip(sums, items, strict=True):
            total = float(own.sum())
            found.append((total / item.label, float(_loss(own, item)), total))
        return self.stack(found)

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the log-likelihood of a text, and its bytes."""
        return [-1.0], [1.0]


def _loss(sums: Tensor, item: Item) -> Tensor:
    return -sums.sum() / sum(targets_of(item).counts)


LANGUAGE_MODELING = LanguageModeling()
