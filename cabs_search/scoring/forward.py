"""Forward passes over items: heads that share a trunk, tokens that a head reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cabs_search.kinds.kinds import Outcome, head_of, outcome
from cabs_search.scoring.batches import batch_tokens, batches, collate
from cabs_search.spec.task import Task
from cabs_search.tasks.items import Ints, Items

FIRST_TOKEN_ONLY = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types whose heads for a sequence read its first token alone, and whose layers are built as
BERT's are.
"""
READS_ONE_TOKEN = ("ForSequenceClassification", "ForMultipleChoice")
HEAD_FIELDS = (
    "_name_or_path", "architectures", "id2label", "label2id", "problem_type", "classifier_dropout", "pad_token_id",
    "transformers_version",
)  # fmt: skip
"""Fields of a configuration on which no trunk depends; the pad token's comes with the items."""


def evaluate(model: Any, items: Items, rows: Ints, device: torch.device) -> Outcome:
    """Score ``model`` on the given rows of ``items``, in the rows' order."""
    return evaluate_together([(model, items, rows)], device)[0]


@torch.inference_mode()
def evaluate_together(
    scored: Sequence[tuple[Any, Items, Ints]], device: torch.device
) -> list[Outcome]:
    """Score models that have one trunk on items that have the same sequences: each batch goes
    through it once.

    Args:
        scored: models, each with its items and the rows of them to score; see ``same_trunk`` and
            ``same_sequences``.
        device: the models'.

    """
    outcomes = [
        Outcome(
            np.empty(len(rows), np.float32),
            np.empty(len(rows), np.float32),
            np.empty_like(items.labels[rows]),
        )
        for _, items, rows in scored
    ]
    first, items, rows = scored[0]
    models = {id(model): model for model, _, _ in scored}
    for model in models.values():
        model.config.pad_token_id = items.pad[
            "input_ids"
        ]  # by which a decoder finds an item's last token
    with one_pass(models.values()), first_token_only(first, items.task):
        for batch in batches(items.lengths[rows], items.counts[rows], batch_tokens(device)):
            inputs = {k: v.to(device) for k, v in collate(items, rows[batch]).items()}
            outputs = {key: model(**inputs) for key, model in models.items()}
            for (model, mine, places), whole in zip(scored, outcomes, strict=True):
                found = outcome(
                    mine.task, outputs[id(model)], [mine.rows[i] for i in places[batch]]
                )
                whole.scores[batch], whole.losses[batch] = found.scores, found.losses
                whole.predictions[batch] = found.predictions
    return outcomes


@contextmanager
def one_pass(models: Iterable[Any]) -> Iterator[None]:
    """While it lasts the first model's trunk computes, and the others' give what it last gave."""
    first, *others = [model.base_model for model in models]
    kept: list[Any] = [None]

    def keep(_: Any, __: Any, output: Any) -> None:
        kept[0] = output

    handle = first.register_forward_hook(keep)
    try:
        for trunk in others:
            trunk.forward = lambda *_, **__: kept[0]
        yield
    finally:
        handle.remove()
        for trunk in others:
            vars(trunk).pop("forward", None)


@contextmanager
def first_token_only(model: Any, task: Task) -> Iterator[None]:
    """While it lasts the last layer computes just the token that the head reads, where that is the
    first one.

    Of a layer it saves all but keys and values.
    """
    config = model.config
    is_known = (
        config.model_type in FIRST_TOKEN_ONLY
        and config._attn_implementation == "sdpa"
        and not config.is_decoder
    )
    if not is_known or config.chunk_size_feed_forward or head_of(task.kind) not in READS_ONE_TOKEN:
        yield
        return
    last = model.base_model.encoder.layer[-1].attention
    handle = last.output.register_forward_pre_hook(
        lambda _, inputs: tuple(tensor[:, :1] for tensor in inputs)
    )
    last.self.forward = partial(_first_attends, last.self)
    try:
        yield
    finally:
        del last.self.forward
        handle.remove()


def _first_attends(
    layer: Any, hidden: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """BERT's self-attention of each sequence's first token, [sequences, 1, hidden]."""

    def heads(projection: Any, states: Tensor) -> Tensor:
        found: Tensor = (
            projection(states).unflatten(-1, (layer.num_attention_heads, -1)).transpose(1, 2)
        )
        return found

    found = torch.nn.functional.scaled_dot_product_attention(
        heads(layer.query, hidden[:, :1]),
        heads(layer.key, hidden),
        heads(layer.value, hidden),
        attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
    )
    return found.transpose(1, 2).flatten(2), None


def same_trunk(one: Any, other: Any) -> bool:
    """Whether two models are alike but for their heads: one class, one configuration, the same
    values in the trunk.
    """
    if type(one) is not type(other) or one.base_model is one:
        return False
    configs = [
        {k: v for k, v in m.config.to_dict().items() if k not in HEAD_FIELDS} for m in (one, other)
    ]
    ours, theirs = (m.base_model.state_dict() for m in (one, other))
    return (
        configs[0] == configs[1]
        and ours.keys() == theirs.keys()
        and all(
            t.data_ptr() == theirs[n].data_ptr() or torch.equal(t, theirs[n])
            for n, t in ours.items()
        )
    )


def same_sequences(one: tuple[Items, Ints], other: tuple[Items, Ints]) -> bool:
    """Whether rows of two tasks are the same to a trunk."""
    (ours, rows), (theirs, others) = one, other
    return (
        ours.pad == theirs.pad
        and len(rows) == len(others)
        and all(
            ours.rows[i].sequences == theirs.rows[j].sequences
            for i, j in zip(rows, others, strict=True)
        )
    )
