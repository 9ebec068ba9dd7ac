"""Tensors that a base and its experts share, and tensors that are heads."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cabs_search.checkpoints.adapter import Expert
from cabs_search.checkpoints.checkpoint import OUTPUT_LAYER, Checkpoint
from cabs_search.checkpoints.vocabulary import COMMON_ROWS, SAME, TOKEN_ROWS, common_rows

TRUNK_FIELDS = (
    "model_type",
    "vocab_size",
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("n_embd", "n_layer", "n_head"),  # GPT-2
    *("dim", "n_layers", "n_heads"),  # DistilBERT
    *("num_key_value_heads", "head_dim", "rms_norm_eps"),
    *("hidden_act", "activation_function", "scale_attn_by_inverse_layer_idx"),
)
"""Fields of ``config.json`` that must be equal in a base and its experts."""
ROPE_THETA = 10_000.0
"""Base of rotary embeddings where a config names none: the default of almost all types."""
HINT = f"; `vocabulary: {COMMON_ROWS}` merges the rows of tokens that both have"


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Shared tensors and heads of one base and its experts."""

    shared: tuple[str, ...]
    """Floating-point tensors of the trunk that every checkpoint has: the tensors to merge."""
    heads: Mapping[str, tuple[str, ...]]
    """Other floating-point tensors (a classifier) by expert: never merged."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the shared tensors in the base."""
    common_rows: Mapping[str, tuple[int, int]]
    """Rows of tokens of each expert that has more or fewer than the base: its own, and those that
    are merged.
    """

    @property
    def weights(self) -> int:
        """Number of shared weights."""
        return sum(map(math.prod, self.shapes.values()))


def align(base: Checkpoint, experts: Mapping[str, Expert], vocabulary: str = SAME) -> Alignment:
    """Find the shared tensors and the heads.

    Args:
        base: the base.
        experts: by name.
        vocabulary: treatment of language models whose vocabularies have other sizes:
            ``vocabulary.SAME`` or ``COMMON_ROWS``.

    Raises:
        ValueError: an expert is of another architecture than the base, a tensor of its trunk has
            another shape, or all are language models and not all of their tensors are shared.

    """
    for name, expert in experts.items():
        _check_config(base, name, expert, vocabulary)
    shared, common = _shared(base, experts), dict[str, tuple[int, int]]()
    for name, expert in experts.items():
        if rows := _check_shapes(base, name, expert, shared, vocabulary):
            common[name] = rows
        _check_whole(base, name, expert, shared)
    weights = sum(math.prod(base.shape(tensor)) for tensor in base.names)
    shapes = {tensor: base.shape(tensor) for tensor in shared}
    if not shared or 2 * sum(map(math.prod, shapes.values())) < weights:
        raise ValueError(
            f"experts must share most of the base's weights, but {len(shared)} of its"
            f" {len(base.names)} tensors are in every expert:"
            f" {', '.join(f'{n}={e.folder}' for n, e in experts.items())}"
        )
    heads = {name: unmerged(expert, shapes) for name, expert in experts.items()}
    alignment = Alignment(shared=shared, heads=heads, shapes=shapes, common_rows=common)
    if all(is_language_model(checkpoint) for checkpoint in (base, *experts.values())):
        check_all_merged(base, experts, alignment, ())
    return alignment


def _shared(base: Checkpoint, experts: Mapping[str, Expert]) -> tuple[str, ...]:
    """Return the sorted names of trunk tensors that are floating-point in every checkpoint."""
    prefix = trunk_prefix(base)
    in_all = set(base.names).intersection(*(expert.names for expert in experts.values()))
    checkpoints = (base, *experts.values())
    apart = frozenset[str]().union(*(c.constants | c.repeated for c in checkpoints))
    return tuple(
        tensor
        for tensor in sorted(in_all - apart)
        if tensor.startswith(prefix) and all(c.is_float(tensor) for c in checkpoints)
    )


def unmerged(checkpoint: Expert, shared: Collection[str]) -> tuple[str, ...]:
    """Return floating-point tensors that are neither shared, nor constants, nor repeated."""
    rest = set(checkpoint.names) - set(shared) - checkpoint.constants - checkpoint.repeated
    return tuple(tensor for tensor in sorted(rest) if checkpoint.is_float(tensor))


def is_language_model(checkpoint: Expert) -> bool:
    """Tell whether the config names a causal language model, whose output layer is no head."""
    classes = checkpoint.config.get("architectures") or []
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in classes)


def check_all_merged(
    base: Checkpoint,
    experts: Mapping[str, Expert],
    alignment: Alignment,
    with_heads: Collection[str],
) -> None:
    """Check that no tensor of a causal language model is left out of the merge.

    Args:
        base: the base.
        experts: by name.
        alignment: of these.
        with_heads: experts whose head is used, which may have tensors of their own.

    Raises:
        ValueError: a tensor of the base is not in every expert, or an expert has others.

    """
    for tensor in unmerged(base, alignment.shapes):
        for name, expert in experts.items():
            if tensor not in expert.names or tensor in expert.repeated:
                raise ValueError(f"experts.{name}: {_lacks('this expert', tensor)}")
        raise ValueError(f"base: every tensor must be one of its trunk, but not {tensor}")
    for name, own in alignment.heads.items():
        if own and name not in with_heads:
            raise ValueError(f"experts.{name}: {_lacks('the base', own[0])}")


def _lacks(owner: str, tensor: str) -> str:
    is_output = OUTPUT_LAYER.search(tensor)
    hint = ", an output layer that is not tied to the word embeddings" if is_output else ""
    return (
        "every tensor of a language model must be in base and experts alike, but"
        f" {owner} has no {tensor}{hint}"
    )


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


def _check_config(base: Checkpoint, name: str, expert: Expert, vocabulary: str) -> None:
    for where, config in (("base", base.config), (f"experts.{name}", expert.config)):
        if config.get("quantization_config"):
            raise ValueError(f"{where}: weights must not be quantized, but config.json says so")
    ours, theirs = (_described(checkpoint.config) for checkpoint in (base, expert))
    both_speak = is_language_model(base) and is_language_model(expert)
    for field in ours.keys() & theirs.keys():
        of_tokens = field == "vocab_size" and both_speak
        if ours[field] != theirs[field] and not (of_tokens and vocabulary == COMMON_ROWS):
            raise ValueError(
                f"experts.{name}: an expert must have the base's architecture, but {field} is"
                f" {theirs[field]!r} against {ours[field]!r} in {base.folder}"
                f"{HINT if of_tokens else ''}"
            )


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of its trunk, also of rotary embeddings in the older form."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if not any(isinstance(value, dict) for value in rope.values()):  # else by type of layer
        rope.setdefault("rope_theta", config.get("rope_theta") or ROPE_THETA)
        rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    fields = {field: config.get(field) for field in TRUNK_FIELDS}
    fields |= {f"rope_parameters.{field}": value for field, value in rope.items()}
    return {field: value for field, value in fields.items() if value is not None}


def _check_whole(base: Checkpoint, name: str, expert: Expert, shared: Sequence[str]) -> None:
    """Check that an expert lacks no tensor of a module that it has; a whole one (a pooler) it may.

    Raises:
        ValueError: it lacks one, which loading would fill with random weights.

    """

    def module(tensor: str) -> str:
        return tensor.removeprefix(prefix).split(".", 1)[0]

    prefix = trunk_prefix(base)
    modules = {module(tensor) for tensor in shared}
    lacking = set(base.names) - set(expert.names) - base.constants - base.repeated
    for tensor in sorted(lacking):
        if tensor.startswith(prefix) and module(tensor) in modules:
            raise ValueError(
                f"experts.{name}: an expert must have every tensor of the base's trunk, but"
                f" {expert.folder} has no {tensor}"
            )
    for tensor in sorted(set(base.names).intersection(expert.names) - base.constants):
        is_weight = tensor.startswith(prefix) and tensor.endswith((".weight", ".bias"))
        if is_weight and base.is_float(tensor) != expert.is_float(tensor):
            owner, other = (expert, base) if base.is_float(tensor) else (base, expert)
            raise ValueError(
                f"experts.{name}: weights must be floating-point in base and expert alike, but"
                f" {tensor} is an integer in {owner.folder} and none in {other.folder}"
            )


def _check_shapes(
    base: Checkpoint, name: str, expert: Expert, shared: tuple[str, ...], vocabulary: str
) -> tuple[int, int] | None:
    """Check that shared tensors have the base's shape, but for rows of tokens where that is asked.

    Returns:
        Rows of tokens of an expert that has more or fewer than the base, and the common ones.

    """
    both_speak = is_language_model(base) and is_language_model(expert)
    found: tuple[int, int] | None = None
    for tensor in shared:
        ours, theirs = base.shape(tensor), expert.shape(tensor)
        if ours == theirs:
            continue
        of_tokens = bool(TOKEN_ROWS.search(tensor)) and ours[1:] == theirs[1:] and both_speak
        if not (of_tokens and vocabulary == COMMON_ROWS):
            raise ValueError(
                f"experts.{name}: every shared tensor must have the base's shape, but {tensor}"
                f" is {theirs} against {ours}{HINT if of_tokens else ''}"
            )
        found = theirs[0], min(theirs[0], ours[0])
    if found is None:
        return None
    try:
        return found[0], common_rows(base.folder, expert.folder, found[1])
    except ValueError as error:
        raise ValueError(f"experts.{name}: {error}") from error
