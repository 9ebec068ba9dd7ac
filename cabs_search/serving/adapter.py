"""A merge of LoRA adapters written as one LoRA adapter, which PEFT loads.

Of vectors that are added as they are, updates λᵢ·sᵢ·Bᵢ·Aᵢ are one product of the concatenated
matrices: exact, its rank the sum of theirs. Any other merge is written as the nearest product of a
given rank: the first singular values (Eckart and Young, 1936).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cabs_search.checkpoints.adapter import Adapter
from cabs_search.checkpoints.adapter_settings import FILE
from cabs_search.checkpoints.alignment import is_language_model
from cabs_search.checkpoints.low_rank import EMBEDDING, LAYER, PREFIX
from cabs_search.checkpoints.vocabulary import TOKEN_ROWS
from cabs_search.checkpoints.writer import CheckpointWriter
from cabs_search.merging.cache import StoredVector
from cabs_search.merging.family import Family
from cabs_search.merging.masks.keep_all import KeepAll
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.recipe import Recipe
from cabs_search.serving.card import hub_revision, name_of

ADAPTER, WEIGHTS, FACTS = "adapter", "adapter_model.safetensors", "merge.json"
"""The folder inside an export, and files in it."""
OVERSAMPLES, POWERS = 16, 4
"""Settings of randomized singular value decompositions (Halko et al., arXiv 0909.4061), which are
as good as exact ones here, and seconds in place of minutes on a 7B model's matrices.
"""
Factors = tuple[Tensor, Tensor]
"""[out, rank] and [rank, in]."""


@dataclass(frozen=True, kw_only=True)
class WrittenAdapter:
    """Rank of an adapter that was written, and what the merge lost by it."""

    rank: int
    relative_error: float
    """‖Δ − B·A‖ / ‖Δ‖ over all matrices together, Δ the merge minus the base; 0 if exact."""

    def __str__(self) -> str:
        error = f"relative error {self.relative_error:.2g}" if self.relative_error else "exact"
        return f"rank {self.rank}, {error}"


def check_adapter(family: Family, recipe: Recipe, rank: int | None) -> dict[str, Adapter]:
    """Check that a merge can be written as an adapter, and return its experts.

    Args:
        family: the base and its experts.
        recipe: the merge.
        rank: of the adapter; None: exact.

    Raises:
        ValueError: it cannot.

    """
    if recipe.stack:
        raise ValueError("--adapter: a stack of layers is no adapter of the base")
    experts: dict[str, Adapter] = {}
    for name, expert in family.experts.items():
        if not isinstance(expert, Adapter):
            raise ValueError(
                f"--adapter: every expert must be a LoRA adapter, but experts.{name} is a whole"
                " model"
            )
        if own := [*family.alignment.heads[name], *sorted(expert.biases)]:
            raise ValueError(
                f"--adapter: experts must tune matrices and modules_to_save of the base alone, but"
                f" experts.{name} tunes {own[0]}"
            )
        tuned = expert.low_rank | expert.whole
        tied = sorted(filter(TOKEN_ROWS.search, tuned))
        if tied and family.base.is_tied:
            raise ValueError(
                f"--adapter: {tied[0]} is tied to the output layer, which an adapter cannot say,"
                f" but experts.{name} tunes it"
            )
        experts[name] = expert
    if rank is None and not _is_exact(recipe, experts):
        raise ValueError(
            f"--adapter: {recipe.method} of these adapters is no sum of low-rank updates; give a"
            " rank to write the nearest one of it, such as --adapter 64"
        )
    return experts


def _is_exact(recipe: Recipe, experts: Mapping[str, Adapter]) -> bool:
    """Tell whether a merge is a sum of products of matrices."""
    if not isinstance(recipe.method.mask, KeepAll) or not recipe.method.is_linear:
        return False
    whole = frozenset[str]().union(*(expert.whole for expert in experts.values()))
    return all(
        expert.factors(name) is not None
        for expert in experts.values()
        for name in expert.low_rank - whole
    )


def write_adapter(
    family: Family,
    recipe: Recipe,
    to: Path,
    rank: int | None = None,
    vectors: Mapping[str, StoredVector] | None = None,
) -> WrittenAdapter:
    """Write a merge as an adapter of the base, tensor by tensor.

    Tensors that an expert stores whole are stored whole.

    Args:
        family: the base and its experts, all of them adapters.
        recipe: the merge.
        to: the folder to write.
        rank: of the adapter; None: the sum of the experts' ranks, without error.
        vectors: the method's vectors by expert; None: pruned and combined here.

    Raises:
        ValueError: the merge cannot be written as an adapter, or is the base itself.

    """
    experts = check_adapter(family, recipe, rank)
    whole = frozenset[str]().union(*(expert.whole for expert in experts.values()))
    owners = {n: e for e in experts.values() for n in (*e.low_rank, *e.whole)}
    modules = {name: _module(owner, name) for name, owner in owners.items()}
    kept = {n: _module(owners[t], t) for t in whole for n in _siblings(family, t)}
    keys = [key for name, m in modules.items() for key in _keys(owners[name], name, m)]
    ranks, lost, total = dict[str, int](), 0.0, 0.0
    with CheckpointWriter(to / WEIGHTS, [*keys, *(PREFIX + n for n in kept)]) as writer:
        for name, merged in merged_tensors(family, recipe, torch.float32, vectors):
            if name in kept:
                writer.add(f"{PREFIX}{kept[name]}.{name.rsplit('.', 1)[1]}", merged)
            elif name in owners:
                change = merged - family.base.read(name).float()
                change = change.T if owners[name].is_transposed(name) else change
                b, a = _sum(name, experts, recipe) if rank is None else _nearest(change, rank)
                if not len(a):
                    continue
                if rank is not None:
                    lost += float((change - b @ a).square().sum(dtype=torch.float64))
                    total += float(change.square().sum(dtype=torch.float64))
                ranks[modules[name]] = len(a)
                for key, part in zip(_keys(owners[name], name, modules[name]), (a, b), strict=True):
                    writer.add(key, part)
        if not ranks:
            raise ValueError("--adapter: the merge changes no matrix of the base")
    _write_config(family, to, ranks, sorted({kept[n] for n in kept}), owners)
    written = WrittenAdapter(
        rank=max(ranks.values()), relative_error=math.sqrt(lost / total) if total else 0.0
    )
    (to / FACTS).write_text(json.dumps(asdict(written)) + "\n")
    return written


def read_facts(export: Path) -> WrittenAdapter | None:
    """Read what is known of an export's adapter; None if it has none."""
    path = export / ADAPTER / FACTS
    return WrittenAdapter(**json.loads(path.read_text())) if path.is_file() else None


def _siblings(family: Family, name: str) -> list[str]:
    """Return the merged tensors of a tensor's module, which is stored as a whole."""
    module = name.rsplit(".", 1)[0]
    return [other for other in family.alignment.shared if other.rsplit(".", 1)[0] == module]


def _module(expert: Adapter, name: str) -> str:
    """Return the name of a tensor's module in the model that was adapted."""
    return expert.model_name(name).rsplit(".", 1)[0]


def _keys(expert: Adapter, name: str, module: str) -> tuple[str, str]:
    """Return the names of A and B in the file."""
    is_embedding = name in expert.low_rank and expert.is_embedding(name)
    a, b = EMBEDDING if is_embedding else LAYER
    return f"{PREFIX}{module}.{a}", f"{PREFIX}{module}.{b}"


def _sum(name: str, experts: Mapping[str, Adapter], recipe: Recipe) -> Factors:
    """Concatenate the matrices of all experts that are in the merge."""
    parts = [
        (recipe.lambda_of(expert, name), adapter.factors(name))
        for expert, adapter in experts.items()
        if name in adapter.low_rank
    ]
    found = [(weight * made[0], made[1]) for weight, made in parts if weight and made]
    if not found:
        return torch.empty(0, 0), torch.empty(0, 0)
    return torch.cat([b for b, _ in found], dim=1), torch.cat([a for _, a in found])


def _nearest(matrix: Tensor, rank: int) -> Factors:
    """Return the nearest product of a rank, or of a lower one if the matrix has no more."""
    if not matrix.any():
        return torch.empty(0, 0), torch.empty(0, 0)
    if 4 * (rank + OVERSAMPLES) < min(matrix.shape):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=rank + OVERSAMPLES, niter=POWERS)
            vt = v.T
    else:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    half = s[:rank].sqrt()
    return u[:, :rank] * half, half[:, None] * vt[:rank]


def _write_config(
    family: Family,
    to: Path,
    ranks: Mapping[str, int],
    whole: list[str],
    owners: Mapping[str, Adapter],
) -> None:
    """Write the settings, by which α is the rank, so that B·A counts once."""
    rank = max(ranks.values())
    other = {module: own for module, own in ranks.items() if own != rank}
    layers = [n for n, e in owners.items() if n in e.low_rank and not e.is_embedding(n)]
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_language_model(family.base) else None,
        "base_model_name_or_path": name_of(family.base.folder),
        "revision": hub_revision(family.base.folder),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "modules_to_save": whole or None,
        "fan_in_fan_out": any(owners[name].is_transposed(name) for name in layers),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    (to / FILE).write_text(json.dumps(settings, indent=2) + "\n")
