"""Items cut into padded batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cabs_search.tasks.items import Ints, Items

BATCH_TOKENS = 1024
"""Tokens a batch holds at the most, padding counted: what activations take then stays in cache."""
GPU_BATCH_TOKENS = 16 * BATCH_TOKENS
"""On a GPU, which must be kept busy; not measured."""
PASS_TOKENS = 24
"""Tokens that take about as long as what a forward does beside its tokens."""


def batches(lengths: Ints, counts: Ints, tokens: int = BATCH_TOKENS) -> Iterator[Ints]:
    """Rows for each batch: similar lengths together, at most ``tokens`` a batch once padded (one
    row at the least).

    Of all ways to cut the rows, longest first, the one with the fewest tokens, padding and
    ``PASS_TOKENS`` a batch counted.

    Args:
        lengths: tokens of each item's longest sequence, [items].
        counts: sequences of each item, [items].
        tokens: that a batch may hold, padding counted.

    """
    order = np.argsort(lengths, kind="stable")[::-1]
    held = np.concatenate([[0], counts[order].cumsum()])
    costs, begins = np.full(len(order) + 1, np.inf), np.zeros(len(order) + 1, np.int64)
    costs[0] = 0
    for start, longest in enumerate(lengths[order]):
        most = int(np.searchsorted(held, held[start] + tokens // longest, side="right")) - 1
        ends = slice(start + 1, max(start + 1, most) + 1)
        found = costs[start] + PASS_TOKENS + longest * (held[ends] - held[start])
        better = found < costs[ends]
        costs[ends][better], begins[ends][better] = found[better], start
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    for start, end in itertools.pairwise(reversed(cuts)):
        yield order[start:end]


def batch_tokens(device: torch.device) -> int:
    """Tokens that a batch may hold."""
    return BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS


def collate(items: Items, rows: Ints) -> dict[str, Tensor]:
    """One padded batch: every field of the sequences and the attention mask, each int64,
    [sequences, longest].

    For multiple choice [1, sequences, longest]: all are choices of one item to the model, as items
    may have more or fewer of them.
    """
    chosen = np.concatenate([np.arange(items.firsts[i], items.firsts[i + 1]) for i in rows])
    starts, sizes = items.starts[chosen], np.diff(items.starts)[chosen]
    steps = np.arange(sizes.max())
    inside = steps < sizes[:, None]
    places = (starts[:, None] + steps)[inside]
    batch = {"attention_mask": torch.from_numpy(inside.astype(np.int64))}
    for field, pad in items.pad.items():
        filled = np.full(inside.shape, pad, np.int64)
        filled[inside] = items.tokens[field][places]
        batch[field] = torch.from_numpy(filled)
    return (
        {f: tensor[None] for f, tensor in batch.items()}
        if items.task.kind == "multiple-choice"
        else batch
    )


def blocks(items: Mapping[str, Items], size: int) -> list[dict[str, Ints]]:
    """The items of all tasks in blocks: each has its share of every task, some ``size`` of the
    largest.

    Returns:
        For each block, rows by task.

    """
    count = max(1, -(-max(len(i) for i in items.values()) // size))
    shares: dict[str, Sequence[Ints]] = {
        task: np.array_split(np.arange(len(i), dtype=np.int64), count) for task, i in items.items()
    }
    return [{task: share[b] for task, share in shares.items()} for b in range(count)]
