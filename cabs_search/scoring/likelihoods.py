"""Log-likelihoods of tokens by a causal language model.

The trunk reads every token, the output layer only those positions that predict a target: its
outputs would be the largest tensor by far, vocabulary × tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cabs_search.kinds.base import widened
from cabs_search.kinds.causal import length_of_common_beginning, targets_of
from cabs_search.scoring.batches import batch_tokens, collate
from cabs_search.scoring.modules import replaced
from cabs_search.tasks.items import Ints, Items

MOST_LOGITS = 1 << 24
"""Logits that are computed at once, 64 MB in float32."""
SHORTEST_SHARED = 32
"""Tokens of a common beginning from which it pays to read it once."""
MOST_REPEATED = 4
"""Most times that a batch attends to more tokens than it may read; keys and values take memory."""


@dataclass(frozen=True)
class Beginning:
    """Tokens with which all sequences begin, such as a task's examples, read by a model."""

    length: int = 0
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values of each layer, [1, heads, length, width]."""

    def left(self, lengths: Ints) -> Ints:
        """Return what sequences of some lengths cost in a batch, in tokens."""
        if not self.length:
            return lengths
        return np.maximum(lengths - self.length, -(-lengths // MOST_REPEATED))

    def repeated(self, count: int) -> Any:
        """Return a cache of keys and values for so many sequences."""
        from transformers import DynamicCache

        return DynamicCache(
            [
                (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1))
                for k, v in self.keys_values
            ]
        )


NOTHING = Beginning()


def read_beginning(model: Any, items: Items, rows: Ints, device: torch.device) -> Beginning:
    """Read what all sequences of some items have in common, once.

    Nothing is read if it is short, ends behind a target, or the model may not follow any mask.
    """
    sequences = [sequence for i in rows for sequence in items.rows[i].sequences]
    if "branch" not in items.pad or len(sequences) < 2:
        return NOTHING
    lengths = [length_of_common_beginning([sequence["input_ids"] for sequence in sequences])]
    lengths += [sequence["branch"].count(0) for sequence in sequences]
    lengths += [min(targets_of(items.rows[i]).places) for i in rows]
    if (length := min(lengths)) < SHORTEST_SHARED:
        return NOTHING
    from transformers import DynamicCache

    tokens = torch.tensor([sequences[0]["input_ids"][:length]], device=device)
    cache = DynamicCache()
    model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return Beginning(length, tuple((layer.keys, layer.values) for layer in cache.layers))


def log_likelihoods(
    model: Any,
    items: Items,
    rows: Ints,
    device: torch.device,
    *,
    greedy: bool = False,
    beginning: Beginning = NOTHING,
) -> Tensor:
    """Return the log-likelihood of each target of some items, [targets], float32.

    Args:
        model: a causal language model.
        items: items that have targets.
        rows: the items to score.
        device: the model's.
        greedy: whether to return [targets, 2], of which the second column is 1 if the target is
            the likeliest token, else 0.
        beginning: as ``read_beginning`` returned it for these items and others.

    """
    read_before = beginning.length
    batch = {f: tensor[:, read_before:].to(device) for f, tensor in collate(items, rows).items()}
    sequences, places, tokens = _targets(items, rows, device)
    places = places - read_before
    # An item of many windows is more than a batch by itself.
    most = max(1, batch_tokens(device) // batch["input_ids"].shape[1])
    if len(batch["input_ids"]) <= most or torch.is_grad_enabled():
        most = len(batch["input_ids"])
    read = []
    for start in range(0, len(batch["input_ids"]), most):
        part = {field: tensor[start : start + most] for field, tensor in batch.items()}
        inputs = trunk_inputs(part, model.dtype, read_before)
        if read_before:
            inputs |= {"past_key_values": beginning.repeated(len(part["input_ids"]))}
        hidden = model.base_model(**inputs, use_cache=bool(read_before))[0]
        inside = (sequences >= start) & (sequences < start + most)
        read.append(hidden[sequences[inside] - start, places[inside]])
    return _of_tokens(model, torch.cat(read), tokens, greedy)


def trunk_inputs(
    batch: dict[str, Tensor], dtype: torch.dtype, read_before: int = 0
) -> dict[str, Any]:
    """Return what a causal trunk is called with.

    Args:
        batch: as from ``collate``, padded on the right. No token sees what comes after it, so that
            padding needs no mask. Packed sequences that branch, with a field ``branch``, need one,
            which takes attention more time.
        dtype: the model's.
        read_before: number of tokens before these that all sequences see.

    """
    inputs = {"input_ids": batch["input_ids"]}
    if read_before or ("branch" in batch and batch["branch"].any()):
        mask = nn.functional.pad(_branch_mask(batch["branch"], dtype), (read_before, 0))
        inputs |= {"position_ids": batch["position_ids"], "attention_mask": mask}
    return inputs


def _branch_mask(branch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention's logits, [sequences, 1, tokens, tokens].

    A token sees the tokens up to itself that are in the common beginning or in its own branch.
    Padding counts as beginning: it comes last and is seen by padding alone.
    """
    from_, to = branch[:, :, None], branch[:, None, :]
    sees = ((to == 0) | (to == from_)).tril()
    mask = torch.zeros(sees.shape, dtype=dtype, device=branch.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def _targets(items: Items, rows: Ints, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return each target's sequence in the batch, the place that predicts it, and its token."""
    found = [targets_of(items.rows[i]) for i in rows]
    firsts = np.concatenate([[0], items.counts[rows].cumsum()])
    sequences = [np.array(t.sequences) + first for t, first in zip(found, firsts, strict=False)]
    fields = (
        np.concatenate(sequences),
        np.concatenate([t.places for t in found]),
        np.concatenate([t.tokens for t in found]),
    )
    first, second, third = (torch.from_numpy(field).to(device) for field in fields)
    return first, second, third


def _of_tokens(model: Any, hidden: Tensor, tokens: Tensor, greedy: bool) -> Tensor:
    """Return what ``log_likelihoods`` does from the trunk's output, [targets, hidden].

    The model's own ``forward`` makes logits of it, as some scale or cap them.
    """
    at_once, found = max(1, MOST_LOGITS // model.config.vocab_size), []
    given = _Given()
    with replaced(model, model.base_model_prefix, given):
        for part, of_part in zip(hidden.split(at_once), tokens.split(at_once), strict=True):
            given.hidden = part[None]
            logits = widened(model(input_ids=of_part[None]).logits[0])
            chosen = logits.gather(1, of_part[:, None])[:, 0]
            columns = [chosen - logits.logsumexp(1)]
            if greedy:
                columns.append((logits.argmax(1) == of_part).to(logits.dtype))
            found.append(torch.stack(columns, 1) if greedy else columns[0])
    return torch.cat(found)


class _Given(nn.Module):
    """A trunk whose output is given, whatever its inputs."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return the given output."""
        from transformers.modeling_outputs import (
            BaseModelOutputWithPastAndCrossAttentions as Output,
        )

        return Output(last_hidden_state=self.hidden)
