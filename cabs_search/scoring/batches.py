"""Items cut into padded batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cabs_search.tasks.items import Ints, Items

BATCH_TOKENS = 1024
"""Most tokens of a batch, padding counted; small, so that activations stay in the cache."""
GPU_BATCH_TOKENS = 16 * BATCH_TOKENS
"""Most tokens of a batch on a GPU, which must be kept busy; not measured."""
PASS_TOKENS = 24
"""Cost of a forward pass beside its tokens, as a number of tokens that take as long."""
CACHED_TOKENS = 8192
"""Most tokens of a batch of texts to generate, whose keys and values are kept; new ones counted."""
GPU_CACHED_TOKENS = 4 * CACHED_TOKENS
"""The same on a GPU: 4 GB of a 7B model's with 8 key-value heads; not measured."""


def batches_of(items: Items, rows: Ints, device: torch.device) -> Iterator[Ints]:
    """Yield the places in ``rows`` of each batch that is read, or written, at once."""
    lengths, counts, new = items.lengths[rows], items.counts[rows], items.task.max_new_tokens
    if new is None:
        yield from batches(lengths, counts, batch_tokens(device))
    else:
        most = CACHED_TOKENS if device.type == "cpu" else GPU_CACHED_TOKENS
        # Another batch costs as many passes as it writes tokens.
        yield from batches(lengths + new, counts, most, pass_tokens=most)


def batches(
    lengths: Ints, counts: Ints, tokens: int = BATCH_TOKENS, pass_tokens: int = PASS_TOKENS
) -> Iterator[Ints]:
    """Yield the rows of each batch, items of similar length together.

    Of all ways to cut the items, longest first, into batches of at most ``tokens`` (one item at
    least), the one with the fewest tokens, where padding and ``pass_tokens`` per batch count.

    Args:
        lengths: number of tokens of each item's longest sequence, [items].
        counts: number of sequences of each item, [items].
        tokens: most tokens of a batch, padding counted.
        pass_tokens: cost of a pass beside its tokens, in tokens.

    """
    order = np.argsort(lengths, kind="stable")[::-1]
    before = np.concatenate([[0], counts[order].cumsum()])
    # Dynamic programme: costs[i] is the least cost of the i longest items in whole batches, and
    # begins[i] the item that the last of these batches begins with.
    costs, begins = np.full(len(order) + 1, np.inf), np.zeros(len(order) + 1, np.int64)
    costs[0] = 0
    for start, longest in enumerate(lengths[order]):
        last = int(np.searchsorted(before, before[start] + tokens // longest, side="right")) - 1
        ends = slice(start + 1, max(start + 1, last) + 1)
        cost = costs[start] + pass_tokens + longest * (before[ends] - before[start])
        is_less = cost < costs[ends]
        costs[ends][is_less], begins[ends][is_less] = cost[is_less], start
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    for start, end in itertools.pairwise(reversed(cuts)):
        yield order[start:end]


def batch_tokens(device: torch.device) -> int:
    """Return the most tokens of a batch on a device."""
    return BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS


def collate(items: Items, rows: Ints) -> dict[str, Tensor]:
    """Return one padded batch: each field of the sequences and the attention mask, int64.

    The shape is [sequences, longest], or what the kind of task makes of it.
    """
    chosen = np.concatenate([np.arange(items.firsts[i], items.firsts[i + 1]) for i in rows])
    starts, sizes = items.starts[chosen], np.diff(items.starts)[chosen]
    steps = np.arange(sizes.max())
    is_token = steps < sizes[:, None]
    places = (starts[:, None] + steps)[is_token]
    batch = {"attention_mask": torch.from_numpy(is_token.astype(np.int64))}
    for field, pad in items.pad.items():
        filled = np.full(is_token.shape, pad, np.int64)
        filled[is_token] = items.tokens[field][places]
        batch[field] = torch.from_numpy(filled)
    return items.task.kind.shape_batch(batch)


def blocks(items: Mapping[str, Items], size: int) -> list[dict[str, Ints]]:
    """Divide the items of all tasks into blocks that have an equal share of every task.

    Args:
        items: by task.
        size: about how many items of the largest task are in a block.

    Returns:
        Rows by task, for each block.

    """
    count = max(1, -(-max(len(i) for i in items.values()) // size))
    shares: dict[str, Sequence[Ints]] = {
        task: np.array_split(np.arange(len(i), dtype=np.int64), count) for task, i in items.items()
    }
    return [{task: share[b] for task, share in shares.items()} for b in range(count)]
