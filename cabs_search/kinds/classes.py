"""Classes and choices: what kinds that choose among answers share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import Item, Kind, Outcome, TaskFields

if TYPE_CHECKING:
    from torch import Tensor


class Choosing(Kind):
    """A kind whose items have one answer out of a few, to each of which the model gives a
    probability.
    """

    has_entropies: ClassVar[bool] = True

    @abstractmethod
    def answer_logits(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the logits of each item's answers, [items, most answers]; -inf where it has fewer.

        Arguments, dtype and device are as of ``losses``.
        """

    def losses(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the cross-entropy of each item's answers."""
        return class_losses(self.answer_logits(task, output, items), items)

    def entropies(self, task: TaskFields, output: Any, items: Sequence[Item]) -> Tensor:
        """Return the entropy of each item's answers."""
        return class_entropies(self.answer_logits(task, output, items))


def class_names(config: Any) -> tuple[str, ...]:
    """Return the head's names of its classes."""
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def class_of(where: str, task: TaskFields, config: Any, label: Any) -> int:
    """Return the head's class of a label: a class number, or a name in ``label2id``.

    Raises:
        ValueError: the head has no such class.

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


def class_losses(logits: Tensor, items: Sequence[Item]) -> Tensor:
    """Return the cross-entropy of each item's class; arguments as in ``score_classes``."""
    import torch

    labels = torch.tensor([item.label for item in items], device=logits.device)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def class_entropies(logits: Tensor) -> Tensor:
    """Return the entropies of classes' probabilities, [...], from logits [..., classes].

    Classes that do not exist for an item have -inf.
    """
    logs = logits.log_softmax(-1)
    # 0 · -inf counts as 0, also in the gradient
    return -(logs.exp() * logs.masked_fill(logs.isneginf(), 0.0)).sum(-1)


def mean_log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Return the logs of the mean over models of classes' probabilities, [..., classes].

    Args:
        logits: of each model, [..., classes], -inf where an item has fewer classes.

    """
    import torch

    logs = torch.stack([own.double().log_softmax(-1) for own in logits])
    return (logs.logsumexp(0) - math.log(len(logits))).float()


def score_classes(logits: Tensor, items: Sequence[Item]) -> Outcome:
    """Score one class per item: 1 if right, else 0; the loss is the cross-entropy.

    Args:
        logits: [items, classes], -inf where an item has fewer classes.
        items: their labels are class numbers.

    """
    import torch

    labels, predictions = torch.tensor([item.label for item in items]), logits.argmax(-1)
    losses = class_losses(logits, items)
    return Outcome((predictions == labels).float().numpy(), losses.numpy(), predictions.numpy())


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Return one row of logits for each item as [items, most choices], -inf where it has fewer."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf)
