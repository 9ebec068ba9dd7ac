"""Greedy continuation: a context, and the text that a language model should go on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import Item, Outcome, TaskFields, Texts, to_host, widened
from cabs_search.kinds.causal import Continuing, Request, joined, sums_by_part, targets_of
from cabs_search.metrics.base import Metric
from cabs_search.metrics.registry import OF_CONTINUATIONS

if TYPE_CHECKING:
    from torch import Tensor


class GreedyContinuation(Continuing):
    """A pair of texts: a context and its continuation, with a space between unless there is one.

    A prediction is 1 if each token of the continuation is the likeliest after those before it,
    else 0; that is the item's score as well. Its loss is minus the log-likelihood of the
    continuation.
    """

    name: ClassVar[str] = "greedy-continuation"
    metrics: ClassVar[tuple[Metric, ...]] = OF_CONTINUATIONS
    predicts: ClassVar[type[Any]] = int
    reads_label: ClassVar[bool] = False
    reads_greedy: ClassVar[bool] = True
    harness_text: ClassVar[tuple[str, str]] = ("context", "continuation")

    def check_text(self, text: str | tuple[str, str]) -> None:
        """Raise ValueError unless it is a pair of columns."""
        if isinstance(text, str):
            raise ValueError(f"{self} must have a context and a continuation, but got {text}")

    def label(self, where: str, task: TaskFields, config: Any, texts: Texts, value: Any) -> int:
        """Return 1: the continuation is what should be predicted."""
        return 1

    def placeholder_label(self, texts: Texts) -> int:
        """Return 1."""
        return 1

    def requests(self, task: TaskFields, texts: Texts) -> list[Request]:
        """Return the pair."""
        context, continuation = texts
        return [(context, joined(context, continuation) if continuation else "")]

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return minus the log-likelihood of each item's continuation."""
        import torch

        return -torch.cat(sums_by_part(widened(output), items))

    def outcome(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Outcome:
        """Score log-likelihoods and whether their tokens are the likeliest, [targets, 2]."""
        found = to_host(output)
        counts = [sum(targets_of(item).counts) for item in items]
        right = self.values([int(part.all()) for part in (found[:, 1] > 0).split(counts)])
        return Outcome(right.astype("float32"), self.losses(task, found, items).numpy(), right)

    def samples(self, classes: Sequence[str]) -> tuple[Sequence[int], Sequence[int]]:
        """Return a right and a wrong prediction."""
        return (1, 0), (1, 1)


GREEDY_CONTINUATION = GreedyContinuation()
