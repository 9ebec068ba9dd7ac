"""A model on items: one outcome per item, batched by length.

``Workbench`` is what a worker holds: the trunk once, every task's head beside it, and the items. Its tensors are
rewritten in place by ``materialize``; all heads see the same trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cabs_search.calibration import Calibration
from cabs_search.checkpoint import first_line
from cabs_search.kinds import Outcome, head_of, outcome
from cabs_search.materialize import Resident
from cabs_search.metrics import Values
from cabs_search.recipe import Method, Recipe
from cabs_search.sparsify import CALIBRATED
from cabs_search.spec import Kind, Spec
from cabs_search.store import Family, Store, StoredVector
from cabs_search.tasks import Ints, Items

METHODS_OPEN = 64
"""Methods whose vectors a worker keeps open."""
BATCH_TOKENS = 1024
"""Tokens a batch holds, padding counted."""


def batches(lengths: Ints, counts: Ints, tokens: int = BATCH_TOKENS) -> Iterator[Ints]:
    """Rows for each batch: similar lengths together, at most ``tokens`` a batch once padded (one row at the least).

    Args:
        lengths: tokens of each item's longest sequence, [items].
        counts: sequences of each item, [items].
        tokens: that a batch may hold, padding counted.

    """
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        held = counts[order[start:]].cumsum() * lengths[order[start]]
        count = max(1, int(np.searchsorted(held, tokens, side="right")))
        yield order[start : start + count]
        start += count


@torch.inference_mode()
def evaluate(model: Any, items: Items, rows: Ints, device: torch.device) -> Outcome:
    """Score ``model`` on the given rows of ``items``, in the rows' order."""
    model.config.pad_token_id = items.pad["input_ids"]  # by which a decoder finds an item's last token
    scores, losses = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    predictions: Values = np.empty_like(items.labels[rows])
    for batch in batches(items.lengths[rows], items.counts[rows]):
        inputs = {k: v.to(device) for k, v in collate(items, rows[batch]).items()}
        found = outcome(items.task, model(**inputs), [items.rows[i] for i in rows[batch]])
        scores[batch], losses[batch], predictions[batch] = found.scores, found.losses, found.predictions
    return Outcome(scores, losses, predictions)


def collate(items: Items, rows: Ints) -> dict[str, Tensor]:
    """One padded batch: every field of the sequences and the attention mask, each int64, [sequences, longest].

    For multiple choice [1, sequences, longest]: all are choices of one item to the model, as items may have more or
    fewer of them.
    """
    chosen = [sequence for i in rows for sequence in items.rows[i].sequences]
    width = max(len(e["input_ids"]) for e in chosen)
    batch = {
        field: torch.tensor([e[field] + [pad] * (width - len(e[field])) for e in chosen])
        for field, pad in items.pad.items()
    }
    batch["attention_mask"] = torch.tensor(
        [[1] * len(e["input_ids"]) + [0] * (width - len(e["input_ids"])) for e in chosen]
    )
    return {f: tensor[None] for f, tensor in batch.items()} if items.task.kind == "multiple-choice" else batch


class Workbench:
    """A resident model with all its heads, ready to become any candidate."""

    def __init__(self, spec: Spec, store: Store, calibrations: Mapping[str, Path] | None = None) -> None:
        """Load the base and every head; raises ValueError where they do not fit together.

        Args:
            calibrations: files of what experts' layers saw, for mask rules that need it.

        """
        self.spec, self.store = spec, store
        self.device = torch.device(pick_device(spec.device))
        self._calibrations = dict(calibrations or {})
        self._vectors = lru_cache(METHODS_OPEN)(self._opened)
        self.family = Family.open(spec.base, spec.experts)
        dtype: torch.dtype = getattr(torch, spec.dtype)
        shared: dict[str, Tensor] = {
            name: torch.empty(shape, dtype=dtype, device=self.device)
            for name, shape in self.family.alignment.shapes.items()
        }
        self.resident = Resident(self.family.base, shared)
        self.models = {
            expert: load_model(self.family, expert, kind, shared, dtype, self.device)
            for expert, kind in {spec.expert_of(name): task.kind for name, task in spec.tasks.items()}.items()
        }

    def materialize(self, recipe: Recipe) -> None:
        """Become a candidate; vectors that the cache lacks are built."""
        self.resident.materialize(self._vectors(recipe.method), recipe)

    def _opened(self, method: Method) -> dict[str, StoredVector]:
        if isinstance(method.mask, CALIBRATED) and not self.family.calibrations:
            known = {expert: Calibration(path) for expert, path in self._calibrations.items()}
            self.family = replace(self.family, calibrations=known)
        return self.store.open(self.store.ensure(self.family, method))

    def score(self, task: str, items: Items, rows: Ints) -> Outcome:
        """Score the present candidate on some items of a task."""
        return evaluate(self.models[self.spec.expert_of(task)], items, rows, self.device)


def load_model(
    family: Family, expert: str, kind: Kind, shared: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Any:
    """The expert's model with its own head; its shared tensors are replaced by those given, not copied."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checkpoint = family.experts[expert]
    auto: Any = getattr(transformers, f"AutoModel{head_of(kind)}")
    try:
        model, loading = auto.from_pretrained(checkpoint.folder, dtype=dtype, output_loading_info=True)
    except ValueError as error:  # an architecture that has no such head
        raise ValueError(f"experts.{expert}: cannot be loaded for {kind}: {first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):  # transformers would fill them with random values
        raise ValueError(f"experts.{expert}: a model that scores must be whole, but has no {', '.join(missing)}")
    model = model.eval().to(device)
    state = model.state_dict(keep_vars=True)
    found = {name: tensor for name, tensor in shared.items() if checkpoint.model_name(name) in state}
    if 2 * sum(t.numel() for t in found.values()) < sum(t.numel() for t in shared.values()):
        raise ValueError(
            f"experts.{expert}: {type(model).__name__} has few of the shared tensors; is it another model?"
        )
    for name, tensor in found.items():  # a task's model need not use all, as RoBERTa's classifier has no pooler
        state[checkpoint.model_name(name)].data = tensor
    return model


def check_heads(spec: Spec, family: Family) -> None:
    """Raises ValueError where an expert that scores a task has no head."""
    for task in spec.tasks:
        expert = spec.expert_of(task)
        if not family.alignment.heads[expert]:
            raise ValueError(
                f"experts.{expert}: the expert that scores {task} must have a head, but has only the trunk"
            )


def pick_device(device: str) -> str:
    """``auto`` as what there is."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is asked for, but torch finds no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def blocks(items: Mapping[str, Items], size: int) -> list[dict[str, Ints]]:
    """The items of all tasks in blocks: each has its share of every task, some ``size`` of the largest.

    Returns:
        For each block, rows by task.

    """
    count = max(1, -(-max(len(i) for i in items.values()) // size))
    shares: dict[str, Sequence[Ints]] = {
        task: np.array_split(np.arange(len(i), dtype=np.int64), count) for task, i in items.items()
    }
    return [{task: share[b] for task, share in shares.items()} for b in range(count)]
