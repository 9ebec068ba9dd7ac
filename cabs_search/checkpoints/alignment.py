"""Which tensors a base and its experts share, and which are heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cabs_search.checkpoints.checkpoint import Checkpoint

TRUNK_FIELDS = (
    *("model_type", "vocab_size"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("n_embd", "n_layer", "n_head"),  # GPT-2
    *("dim", "n_layers", "n_heads"),  # DistilBERT
)
"""What a base and its experts must have alike in ``config.json``."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What a base and its experts have in common."""

    shared: tuple[str, ...]
    """Floating tensors that the base and every expert have: what is merged."""
    heads: Mapping[str, tuple[str, ...]]
    """By expert, the floating tensors that are its own (a classifier): never merged."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the shared tensors."""

    @property
    def weights(self) -> int:
        """Number of shared weights."""
        return sum(_numel(shape) for shape in self.shapes.values())


def align(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> Alignment:
    """Find the shared tensors and the heads.

    Raises:
        ValueError: an expert is of another architecture than the base, or a tensor of another
            shape.

    """
    for name, expert in experts.items():
        _check_config(base, name, expert)
    in_all = set(base.names).intersection(*(e.names for e in experts.values()))
    floating = {
        t for t in in_all if all(c.read(t).is_floating_point() for c in (base, *experts.values()))
    }
    for name, expert in experts.items():
        for tensor in sorted(floating):
            if base.shape(tensor) != expert.shape(tensor):
                raise ValueError(
                    f"experts.{name}: every shared tensor must have the base's shape, but {tensor}"
                    f" is {expert.shape(tensor)} against {base.shape(tensor)}"
                )
    if not floating or 2 * sum(_numel(base.shape(t)) for t in floating) < _total(base):
        raise ValueError(
            f"experts must share most of the base's weights, but {len(floating)} of its"
            f" {len(base.names)} tensors are in every expert:"
            f" {', '.join(f'{n}={e.folder}' for n, e in experts.items())}"
        )
    heads = {
        name: tuple(
            t for t in expert.names if t not in floating and expert.read(t).is_floating_point()
        )
        for name, expert in experts.items()
    }
    shared = tuple(sorted(floating))
    return Alignment(shared=shared, heads=heads, shapes={t: base.shape(t) for t in shared})


def _check_config(base: Checkpoint, name: str, expert: Checkpoint) -> None:
    for field in TRUNK_FIELDS:
        ours, theirs = base.config.get(field), expert.config.get(field)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"experts.{name}: an expert must have the base's architecture, but {field} is"
                f" {theirs!r} against {ours!r} in {base.folder}"
            )


def _total(checkpoint: Checkpoint) -> int:
    return sum(_numel(checkpoint.shape(t)) for t in checkpoint.names)


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
