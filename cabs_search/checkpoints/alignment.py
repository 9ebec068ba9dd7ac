"""Tensors that a base and its experts share, and tensors that are heads."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cabs_search.checkpoints.adapter import Expert
from cabs_search.checkpoints.checkpoint import Checkpoint

TRUNK_FIELDS = (
    "model_type",
    "vocab_size",
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("n_embd", "n_layer", "n_head"),  # GPT-2
    *("dim", "n_layers", "n_heads"),  # DistilBERT
)
"""Fields of ``config.json`` that must be equal in a base and its experts."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Shared tensors and heads of one base and its experts."""

    shared: tuple[str, ...]
    """Floating-point tensors of the trunk that every checkpoint has: the tensors to merge."""
    heads: Mapping[str, tuple[str, ...]]
    """Other floating-point tensors (a classifier) by expert: never merged."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the shared tensors."""

    @property
    def weights(self) -> int:
        """Number of shared weights."""
        return sum(map(math.prod, self.shapes.values()))


def align(base: Checkpoint, experts: Mapping[str, Expert]) -> Alignment:
    """Find the shared tensors and the heads.

    Raises:
        ValueError: an expert is of another architecture than the base, or a tensor of its trunk
            has another shape.

    """
    for name, expert in experts.items():
        _check_config(base, name, expert)
    shared = _shared(base, experts)
    for name, expert in experts.items():
        _check_shapes(base, name, expert, shared)
    weights = sum(math.prod(base.shape(tensor)) for tensor in base.names)
    shapes = {tensor: base.shape(tensor) for tensor in shared}
    if not shared or 2 * sum(map(math.prod, shapes.values())) < weights:
        raise ValueError(
            f"experts must share most of the base's weights, but {len(shared)} of its"
            f" {len(base.names)} tensors are in every expert:"
            f" {', '.join(f'{n}={e.folder}' for n, e in experts.items())}"
        )
    heads = {name: _head(expert, shapes) for name, expert in experts.items()}
    return Alignment(shared=shared, heads=heads, shapes=shapes)


def _shared(base: Checkpoint, experts: Mapping[str, Expert]) -> tuple[str, ...]:
    """Return the sorted names of trunk tensors that are floating-point in every checkpoint."""
    prefix = trunk_prefix(base)
    in_all = set(base.names).intersection(*(expert.names for expert in experts.values()))
    checkpoints = (base, *experts.values())
    return tuple(
        tensor
        for tensor in sorted(in_all)
        if tensor.startswith(prefix) and all(c.is_float(tensor) for c in checkpoints)
    )


def _head(expert: Expert, shared: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    rest = (tensor for tensor in expert.names if tensor not in shared)
    return tuple(tensor for tensor in rest if expert.is_float(tensor))


def trunk_prefix(checkpoint: Checkpoint) -> str:
    """Return the prefix that sets the trunk's names apart from a head's, such as ``bert.``.

    The prefix is the first component that holds most weights, if all tensors with a row for each
    token of the vocabulary and some numbered blocks stand under it. Otherwise it is empty, and
    every tensor counts as the trunk's: a bare trunk has its embeddings beside its blocks, and a
    language model has an output layer (``lm_head``) beside its trunk, which is merged with it.
    """
    weights: Counter[str] = Counter()
    for tensor in checkpoint.names:
        weights[tensor.split(".", 1)[0] + "."] += math.prod(checkpoint.shape(tensor))
    prefix = max(weights, key=lambda first: weights[first], default="")
    inside = [tensor for tensor in checkpoint.names if tensor.startswith(prefix)]
    rows = (checkpoint.config.get("vocab_size"),)
    embeddings = {tensor for tensor in checkpoint.names if checkpoint.shape(tensor)[:1] == rows}
    has_blocks = any(re.search(r"\.\d+\.", tensor) for tensor in inside)
    return prefix if has_blocks and embeddings and embeddings <= set(inside) else ""


def _check_config(base: Checkpoint, name: str, expert: Expert) -> None:
    for field in TRUNK_FIELDS:
        ours, theirs = base.config.get(field), expert.config.get(field)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"experts.{name}: an expert must have the base's architecture, but {field} is"
                f" {theirs!r} against {ours!r} in {base.folder}"
            )


def _check_shapes(base: Checkpoint, name: str, expert: Expert, shared: tuple[str, ...]) -> None:
    for tensor in shared:
        if base.shape(tensor) != expert.shape(tensor):
            raise ValueError(
                f"experts.{name}: every shared tensor must have the base's shape, but {tensor}"
                f" is {expert.shape(tensor)} against {base.shape(tensor)}"
            )
